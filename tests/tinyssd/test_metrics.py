"""Average precision: cases worked by hand, and random sets against pycocotools."""

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


def truths(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)


BOX, FAR = [0, 0, 10, 10], [50, 50, 60, 60]


def test_voc_by_hand():
    """Right, wrong, right by descending score, over three true boxes in two images."""
    predictions = [found([0, 0.9, *BOX], [0, 0.8, *FAR]), found([0, 0.7, *BOX])]
    rows = [truths([0, *BOX], [0, 20, 20, 30, 30]), truths([0, *BOX], [-1] * 5)]
    (curve,) = metrics.precision_recall(predictions, rows, 1)
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 2 / 3])
    np.testing.assert_allclose(curve.recall, [1 / 3, 1 / 3, 2 / 3])
    assert curve.truths == 3
    assert curve.ap() == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)
    # Recall 0 to 0.3 at precision 1, 0.4 to 0.6 at 2/3, nothing above.
    assert curve.ap11() == pytest.approx((4 * 1 + 3 * 2 / 3) / 11)


def test_voc_counts_a_second_box_on_an_object_as_false_even_beside_a_free_one():
    """VOC asks for the object that is overlapped most; COCO for the free one."""
    one, other = [0, 0, 10, 10], [0, 2, 10, 12]
    prediction = found([0, 0.9, *one], [0, 0.8, 0, 0.5, 10, 10.5])
    rows = truths([0, *one], [0, *other])
    (curve,) = metrics.precision_recall([prediction], [rows], 1)
    np.testing.assert_allclose(curve.precision, [1, 1 / 2])
    coco, _ = metrics.coco([prediction], [rows], 1)
    assert coco["ap50"] == pytest.approx(1.0)


def test_classes_are_apart_and_absent_ones_have_no_ap():
    predictions = [found([1, 0.9, *BOX], [0, 0.8, *BOX])]
    curves = metrics.precision_recall(predictions, [truths([1, *BOX])], 3)
    assert [curve.ap() for curve in curves] == [None, 1.0, None]
    assert [curve.ap11() for curve in curves] == [None, 1.0, None]
    nothing = metrics.precision_recall([found()], [truths([0, *BOX])], 1)[0]
    assert (nothing.ap(), nothing.ap11()) == (0.0, 0.0)


def test_measures_name_the_classes_and_skip_absent_ones_in_the_mean():
    results = Results(
        [found([0, 0.9, *BOX]), found([2, 0.9, *FAR])],
        [truths([0, *BOX]), truths([2, *BOX])],
        ["cup", "cat", "cow"],
        0.1,
        0.2,
    )
    got = measure(results)
    assert (got.class_error, got.offset_error) == (0.1, 0.2)
    assert (got.found, got.gts, got.false_boxes) == (1, 2, 1)
    assert [row["name"] for row in got.per_class] == ["cup", "cat", "cow"]
    assert [row["voc_ap"] for row in got.per_class] == [1.0, None, 0.0]
    assert got.voc_ap == got.voc_ap11 == 0.5
    assert got.ap_large is None and got.ap50 == pytest.approx(0.5)


def random_set(seed, classes=3, images=12):
    """Boxes of all three sizes; detections near them, missing, doubled, of another class."""
    rng = np.random.default_rng(seed)
    predictions, rows = [], []
    for _ in range(images):
        count = int(rng.integers(0, 9))
        corner = rng.uniform(0, 300, (count, 2))
        boxes = np.concatenate((corner, corner + np.exp(rng.uniform(1.5, 5.5, (count, 2)))), 1)
        labels = rng.integers(0, classes, count)
        rows.append(truths(*([k, *box] for k, box in zip(labels, boxes, strict=True))))
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


@pytest.mark.parametrize("seed", range(8))
def test_equals_pycocotools(seed):
    pytest.importorskip("faster_coco_eval")
    coco_module = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    classes = 3
    predictions, rows = random_set(seed, classes)
    numbers, of_class = metrics.coco(predictions, rows, classes)

    with contextlib.redirect_stdout(io.StringIO()):
        gt = coco_module.COCO()
        gt.dataset = {
            "images": [{"id": i} for i in range(len(rows))],
            "categories": [{"id": k, "name": str(k)} for k in range(classes)],
            "annotations": [
                {
                    "id": 1 + len(rows) * place + i, "image_id": i, "category_id": int(k),
                    "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "iscrowd": 0,
                }
                for i, some in enumerate(rows)
                for place, (k, x1, y1, x2, y2) in enumerate(some.tolist())
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
    precision = theirs.eval["precision"]
    for k in range(classes):
        own = precision[:, :, k, 0, -1]
        want = own[own > -1].mean() if (own > -1).any() else None
        assert of_class[k] == pytest.approx(want, abs=1e-6)
    assert 0.05 < numbers["ap"] < 0.95


def test_coco_without_the_library_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ImportError, match=r"pip install ssd_ops\[train\]"):
        metrics.coco([found()], [truths([0, *BOX])], 1)


def test_coco_of_no_truth_and_of_no_detection():
    pytest.importorskip("faster_coco_eval")
    assert set(metrics.coco([found()], [truths()], 2)[0].values()) == {None}
    numbers, of_class = metrics.coco([found()], [truths([0, *BOX])], 2)
    assert numbers["ap"] == 0.0 and of_class == [0.0, None]


def test_badness_orders_images():
    row = truths([0, *BOX])
    sure, unsure, missed = found([0, 0.9, *BOX]), found([0, 0.5, *BOX]), found()
    wrong = found([0, 0.9, *FAR])
    values = [badness(p, row) for p in (sure, unsure, missed, wrong)]
    assert values == pytest.approx([0.01, 0.25, 1.0, 1.81])
    assert badness(found(), truths([-1] * 5)) == 0
