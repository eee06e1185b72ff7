"""Average precision: cases worked by hand, random sets against pycocotools and a plain loop."""

import contextlib
import io
import sys

import numpy as np
import pytest
import torch

from ssd_ops.tinyssd.measure import metrics
from ssd_ops.tinyssd.measure.evaluate import Results, measure
from ssd_ops.tinyssd.measure.metrics import badness
from ssd_ops.tinyssd.predict import Prediction


def found(*rows):
    rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Prediction(rows[:, 0].long(), rows[:, 1], rows[:, 2:])


def gt_rows(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)


BOX, FAR = [0, 0, 10, 10], [50, 50, 60, 60]


def test_precision_by_hand():
    """Right, wrong, right by descending score, over three ground truths in two images."""
    pytest.importorskip("faster_coco_eval")
    predictions = [found([0, 0.9, *BOX], [0, 0.8, *FAR]), found([0, 0.7, *BOX])]
    rows = [gt_rows([0, *BOX], [0, 20, 20, 30, 30]), gt_rows([0, *BOX], [-1] * 5)]
    numbers, precision = metrics.coco(predictions, rows, 1)
    assert precision.shape == (10, 101, 1)
    # Recall 0 to 0.33 at precision 1, 0.34 to 0.66 at 2/3, nothing above; alike at every IoU.
    expected = np.array([1] * 34 + [2 / 3] * 33 + [0] * 34)
    np.testing.assert_allclose(precision, np.tile(expected[:, None], (10, 1, 1)), rtol=1e-9)
    for name in ("ap", "ap50", "ap75", "ap_small"):
        assert numbers[name] == pytest.approx((34 + 33 * 2 / 3) / 101)
    assert numbers["ar100"] == pytest.approx(2 / 3) and numbers["ap_large"] is None


def test_a_second_box_may_find_the_free_one_beside():
    one, other = [0, 0, 10, 10], [0, 2, 10, 12]
    prediction = found([0, 0.9, *one], [0, 0.8, 0, 0.5, 10, 10.5])
    pytest.importorskip("faster_coco_eval")
    numbers, _ = metrics.coco([prediction], [gt_rows([0, *one], [0, *other])], 1)
    assert numbers["ap50"] == pytest.approx(1.0)


def test_classes_are_apart_and_absent_ones_have_no_precision():
    pytest.importorskip("faster_coco_eval")
    predictions = [found([1, 0.9, *BOX], [0, 0.8, *BOX])]
    _, precision = metrics.coco(predictions, [gt_rows([1, *BOX])], 3)
    np.testing.assert_allclose(precision[0], np.tile([-1.0, 1.0, -1.0], (101, 1)))
    _, nothing = metrics.coco([found()], [gt_rows([0, *BOX])], 1)
    assert (nothing == 0).all()


def test_measures_name_the_classes_and_skip_absent_ones_in_the_mean():
    results = Results(
        [found([0, 0.9, *BOX]), found([2, 0.9, *FAR])],
        [gt_rows([0, *BOX]), gt_rows([2, *BOX])],
        ["cup", "cat", "cow"],
        0.1,
        0.2,
    )
    got = measure(results)
    assert (got.class_error, got.offset_error) == (0.1, 0.2)
    assert (got.found, got.gts, got.false_boxes) == (1, 2, 1)
    assert [list(row) for row in got.per_class] == [["name", "gts", "ap", "ap50"]] * 3
    assert [row["name"] for row in got.per_class] == ["cup", "cat", "cow"]
    assert [row["gts"] for row in got.per_class] == [1, 0, 1]
    pytest.importorskip("faster_coco_eval")
    for name in ("ap", "ap50"):
        assert [row[name] for row in got.per_class] == [pytest.approx(1.0), None, 0.0]
        assert getattr(got, name) == pytest.approx(0.5)
    assert got.ap_large is None


def test_per_class_numbers_are_those_of_the_class_alone():
    pytest.importorskip("faster_coco_eval")
    predictions, rows = random_set(3)
    got = measure(Results(predictions, rows, ["a", "b", "c"], 0.0, 0.0))
    for label, row in enumerate(got.per_class):
        own = [Prediction(*(part[p.labels == label] for part in p)) for p in predictions]
        gts = [some[some[:, 0] == label] for some in rows]
        alone = measure(Results(own, gts, ["a", "b", "c"], 0.0, 0.0))
        assert row["gts"] == alone.gts > 0 and 0 < row["ap"] < row["ap50"]
        assert row["ap"] == pytest.approx(alone.ap) and row["ap50"] == pytest.approx(alone.ap50)


def random_set(seed, classes=3, images=12):
    """Boxes of all three sizes; detections near them, missing, doubled, of another class."""
    rng = np.random.default_rng(seed)
    predictions, rows = [], []
    for _ in range(images):
        count = int(rng.integers(0, 9))
        corner = rng.uniform(0, 300, (count, 2))
        boxes = np.concatenate((corner, corner + np.exp(rng.uniform(1.5, 5.5, (count, 2)))), 1)
        labels = rng.integers(0, classes, count)
        rows.append(gt_rows(*([k, *box] for k, box in zip(labels, boxes, strict=True))))
        times = rng.integers(0, 4, count)
        near = np.repeat(boxes, times, axis=0)
        near += rng.normal(0, 0.08, near.shape) * (near[:, 2:] - near[:, :2]).repeat(2, axis=1)
        stray = rng.uniform(0, 200, (int(rng.integers(0, 4)), 4))
        stray[:, 2:] += stray[:, :2] + 1
        every = np.concatenate((near, stray))
        every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 0.5)
        kinds = rng.integers(0, classes, len(every))
        right = rng.random(len(near)) < 0.85
        kinds[: len(near)][right] = np.repeat(labels, times)[right]
        # Coarse scores: ties are part of what has to agree.
        scores = rng.integers(1, 20, len(every)) / 20
        predictions.append(
            found(*([k, s, *b] for k, s, b in zip(kinds, scores, every, strict=True)))
        )
    return predictions, rows


def crowded_set(seed):
    """Of `random_set` every third box a crowd with stray detections inside, and areas of any size."""
    predictions, rows = random_set(seed)
    rng = np.random.default_rng(seed)
    areas = []
    for image, some in enumerate(rows):
        crowd = torch.from_numpy(rng.random(len(some)) < 1 / 3)
        some[crowd, 0] = -2 - some[crowd, 0]
        sides = some[:, 3:].double() - some[:, 1:3].double()
        # Often so much less than the box that it is of another size.
        areas.append(sides.prod(dim=1) * torch.from_numpy(rng.choice([0.05, 0.5, 1], len(some))))
        inside = [
            [-2 - label, rng.integers(1, 20) / 20, *(x1 + (x2 - x1) * rng.uniform(-0.1, 0.6, 2)),
             *(x1 + (x2 - x1) * rng.uniform(0.6, 1.1, 2))]
            for label, x1, y1, x2, y2 in some[crowd].tolist()
        ]  # fmt: skip
        stray = found(*inside)
        predictions[image] = Prediction(
            *(torch.cat(pair) for pair in zip(predictions[image], stray, strict=True))
        )
        rows[image] = torch.cat((some, gt_rows([-1] * 5)))  # padding last
        areas[-1] = torch.cat((areas[-1], torch.zeros(1)))
    return predictions, rows, areas


@pytest.mark.parametrize("crowds", [False, True], ids=["plain", "crowds and areas"])
@pytest.mark.parametrize("seed", range(8))
def test_equals_pycocotools(seed, crowds):
    pytest.importorskip("faster_coco_eval")
    coco_module = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    classes = 3
    predictions, rows, *areas = crowded_set(seed) if crowds else random_set(seed, classes)
    numbers, curves = metrics.coco(predictions, rows, classes, *areas)
    if crowds:  # both are looked at
        without = [some[some[:, 0] >= -1] for some in rows]
        assert metrics.coco(predictions, without, classes)[0]["ap"] < numbers["ap"] - 0.005
        assert metrics.coco(predictions, rows, classes)[0]["ap_small"] != numbers["ap_small"]

    with contextlib.redirect_stdout(io.StringIO()):
        gt = coco_module.COCO()
        gt.dataset = {
            "images": [{"id": i} for i in range(len(rows))],
            "categories": [{"id": k, "name": str(k)} for k in range(classes)],
            "annotations": [
                {
                    "id": 1 + len(rows) * place + i, "image_id": i,
                    "category_id": int(k if k >= 0 else -2 - k), "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(areas[0][i][place]) if areas else (x2 - x1) * (y2 - y1),
                    "iscrowd": int(k < -1),
                }
                for i, some in enumerate(rows)
                for place, (k, x1, y1, x2, y2) in enumerate(some.tolist())
                if k != -1
            ],
        }  # fmt: skip
        gt.createIndex()
        results = gt.loadRes(
            [
                {
                    "image_id": i, "category_id": k, "score": s,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
                for i, p in enumerate(predictions)
                for k, s, (x1, y1, x2, y2) in zip(*(part.tolist() for part in p), strict=True)
            ]
        )  # fmt: skip
        theirs = COCOeval(gt, results, "bbox")
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    expected = [None if value < 0 else value for value in theirs.stats]
    assert list(numbers) == list(metrics.COCO_NAMES)
    for name, want in zip(metrics.COCO_NAMES, expected, strict=True):
        assert numbers[name] == pytest.approx(want, abs=1e-6), name
    np.testing.assert_allclose(curves, theirs.eval["precision"][:, :, :, 0, -1], atol=1e-6)
    assert 0.05 < numbers["ap"] < 0.95


def plain_curve(predictions, rows, label, threshold):
    """The precision at 101 recalls, box by box: the best free ground truth is taken, by score."""
    hits, count = [], 0
    for image, (prediction, gts) in enumerate(zip(predictions, rows, strict=True)):
        free = [box for kind, *box in gts.tolist() if kind == label]
        count += len(free)
        boxes = zip(*(part.tolist() for part in prediction), strict=True)
        for _, score, box in sorted((b for b in boxes if b[0] == label), key=lambda b: -b[1]):
            best = max(free, key=lambda gt: overlap(box, gt), default=None)
            right = best is not None and overlap(box, best) >= threshold
            if right:
                free.remove(best)
            hits.append((-score, image, right))
    hits.sort(key=lambda hit: hit[:2])
    right = np.cumsum([hit[2] for hit in hits])
    recall, precision = right / count, right / np.arange(1, len(hits) + 1)
    # COCO's own levels, to the bit: a recall of 7 / 20 is below its level 0.35.
    return [precision[recall >= level].max(initial=0) for level in np.linspace(0, 1, 101)]


def overlap(one, other):
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    inter = max(width, 0) * max(height, 0)
    area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
    return inter / (area - inter)


@pytest.mark.parametrize("seed", range(8))
def test_curves_equal_a_plain_loop(seed):
    pytest.importorskip("faster_coco_eval")
    predictions, rows = random_set(seed)
    _, curves = metrics.coco(predictions, rows, 3)
    for place, threshold in ((0, 0.5), (5, 0.75)):
        for label in range(3):
            expected = plain_curve(predictions, rows, label, threshold)
            np.testing.assert_allclose(curves[place, :, label], expected, atol=1e-6)


def test_coco_without_the_library_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ImportError, match=r"pip install ssd_ops\[train\]"):
        metrics.coco([found()], [gt_rows([0, *BOX])], 1)


def test_coco_of_no_ground_truth_and_of_no_detection():
    pytest.importorskip("faster_coco_eval")
    for prediction in (found(), found([0, 0.9, *BOX])):
        numbers, curves = metrics.coco([prediction], [gt_rows()], 2)
        assert set(numbers.values()) == {None} and (curves == -1).all()
    numbers, curves = metrics.coco([found()], [gt_rows([0, *BOX])], 2)
    assert numbers["ap"] == 0.0 and curves.mean(axis=(0, 1)).tolist() == [0.0, -1.0]


def test_a_detection_in_a_crowd_is_neither_right_nor_wrong():
    """Of its own class alone, with half of its area or more, and several in one crowd."""
    crowd = [-2.0, 10, 0, 30, 20]  # of class 0
    rows = gt_rows([0, *BOX], crowd, [-1] * 5)
    right = [0, 0.9, *BOX]
    for box, label, counts in (
        ([12, 2, 20, 10], 0, (1, 0)),  # inside
        ([5, 0, 15, 10], 0, (1, 0)),  # a half
        ([4, 0, 15, 10], 0, (1, 1)),  # less: 5 / 11
        ([12, 2, 20, 10], 1, (1, 1)),  # of another class
        ([0, 0, 10, 11], 0, (1, 1)),  # a second one of the ground truth, beside the crowd
        ([12, 2, 12, 10], 0, (1, 1)),  # without area
    ):
        more = [label, 0.95, *box]
        assert metrics.count_found(found(right, more, more), rows) == (1, 2 * counts[1]), box
        fault = badness(found(right, more), rows) - badness(found(right), rows)
        assert fault == pytest.approx(0.95**2 * counts[1]), box
    assert metrics.count_found(found(right), gt_rows(crowd)) == (0, 1)
    # What finds a ground truth is right, in a crowd too.
    everywhere = gt_rows([0, *BOX], [-2, 0, 0, 99, 99])
    assert metrics.count_found(found(right, right), everywhere) == (1, 0)


def test_a_toy_set_with_a_crowd():
    """A detection of high score in the crowd: as a false one, it would halve the precision."""
    pytest.importorskip("faster_coco_eval")
    prediction = found([0, 0.9, 12, 2, 20, 10], [0, 0.8, *BOX])
    rows = gt_rows([0, *BOX], [-2, 10, 0, 30, 20])
    assert metrics.coco([prediction], [rows], 1)[0]["ap"] == pytest.approx(1)
    assert metrics.coco([prediction], [rows[:1]], 1)[0]["ap"] == pytest.approx(0.5)
    got = measure(Results([prediction], [rows], ["cup"], 0.0, 0.0))
    assert (got.ap, got.found, got.gts, got.false_boxes) == (pytest.approx(1), 1, 1, 0)
    assert got.per_class[0]["gts"] == 1
    # A class with nothing but a crowd has no precision.
    only = metrics.coco([prediction], [rows[1:]], 1)
    assert only[0]["ap"] is None and (only[1] == -1).all()


def test_areas_say_what_is_small():
    pytest.importorskip("faster_coco_eval")
    rows = gt_rows([0, 0, 0, 40, 40])
    for area, size in ((None, "medium"), (1024.0, "small"), (1024.5, "medium"), (9217.0, "large")):
        areas = None if area is None else [torch.tensor([area])]
        results = Results([found([0, 0.9, 0, 0, 40, 40])], [rows], ["cup"], 0.0, 0.0, areas)
        got = vars(measure(results))
        assert got[f"ap_{size}"] == pytest.approx(1), area
        # 32 x 32 itself is both small and medium, as for pycocotools.
        assert (got["ap_medium"] is None) == (size == "large"), area


def test_badness_orders_images():
    row = gt_rows([0, *BOX])
    sure, unsure, missed = found([0, 0.9, *BOX]), found([0, 0.5, *BOX]), found()
    wrong = found([0, 0.9, *FAR])
    values = [badness(p, row) for p in (sure, unsure, missed, wrong)]
    assert values == pytest.approx([0.01, 0.25, 1.0, 1.81])
    assert badness(found(), gt_rows([-1] * 5)) == 0
