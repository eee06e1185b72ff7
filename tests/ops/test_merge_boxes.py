from __future__ import annotations

import math

import cases
import numpy as np
import pytest
import torch
from test_nms_groups import overlaps, take_the_best

import ssd_ops

pytestmark = pytest.mark.usefixtures("backend")

nan = float("nan")


def merge_boxes_inputs(images, size, dtype):
    boxes, scores = cases.boxes(images, size, dtype=dtype), torch.rand(images, size).to(dtype)
    # Which box is whose does not have to come from NMS.
    return boxes, scores, torch.randint(-1, max(size // 3, 1), (images, size)).clamp(max=size - 1)


def scene(count=None, classes=3):
    """Objects that are each found several times, whole or in part, as in tiles of an image."""
    objects = int(torch.randint(1, 12, ()))
    count = int(torch.randint(1, 90, ())) if count is None else count
    of = torch.randint(objects, (count,))
    center, size = 100 * torch.rand(objects, 2)[of], 5 + 25 * torch.rand(objects, 2)[of]
    boxes = torch.cat((center - size / 2, center + size / 2), dim=1)
    boxes += 0.1 * size.repeat(1, 2) * torch.randn(count, 4)
    cut = torch.rand(count) < 0.3
    boxes[cut, 2] -= 0.7 * (boxes[cut, 2] - boxes[cut, 0])
    return boxes, torch.randperm(count) / count + 0.01, torch.randint(classes, (count,))[of % count]


def rows_of(merged, how="boxes"):
    """The merged rows, by the index of the kept box."""
    kept = (merged.counts > 0).nonzero()[:, 0].tolist()
    return {k: getattr(merged, how)[k] for k in kept}


def test_by_hand():
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 0, 2, 3], [1, 1, 4, 5], [8, 8, 9, 9], [0, 0, 1, 1]])
    scores = torch.tensor([0.5, 1.0, 0.25, 0.75, nan])
    groups = torch.tensor([1, 1, 1, 3, -1])
    values = torch.tensor([[1.0, 10], [2, 20], [4, 40], [8, 80], [16, 160]])
    union = ssd_ops.merge_boxes(boxes, scores, groups, values=values)
    assert union.boxes.tolist() == [[0] * 4, [0, 0, 4, 5], [0] * 4, [8, 8, 9, 9], [0] * 4]
    assert union.scores.tolist() == [0, 1, 0, 0.75, 0]
    torch.testing.assert_close(union.mean_scores, torch.tensor([0, 1.75 / 3, 0, 0.75, 0]))
    assert union.values.tolist() == [[0, 0], [2, 20], [0, 0], [8, 80], [0, 0]]
    assert union.counts.tolist() == [0, 3, 0, 1, 0]
    mean = ssd_ops.merge_boxes(boxes, scores, groups, how="weighted", values=values)
    # Weights 2 : 4 : 1.
    expected = torch.tensor([1.0, 1, 8 + 8 + 4, 8 + 12 + 5]) / 7
    torch.testing.assert_close(mean.boxes[1], expected)
    torch.testing.assert_close(mean.values[1], torch.tensor([14.0, 140]) / 7)
    for name in ("scores", "mean_scores", "counts"):
        assert torch.equal(getattr(mean, name), getattr(union, name))
    assert mean.boxes[3].tolist() == [8, 8, 9, 9] and mean.boxes[[0, 2, 4]].eq(0).all()
    assert ssd_ops.merge_boxes(boxes, scores, groups).values.shape == (5, 0)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_sums_are_taken_in_the_order_of_the_boxes(dtype):
    """The bits of a loop."""
    for _ in cases.rounds(5):
        boxes, scores, groups = merge_boxes_inputs(1, 200, dtype)
        boxes, scores, groups = boxes[0], scores[0], groups[0]
        values = torch.randn(200, 3).to(dtype)
        merged = ssd_ops.merge_boxes(boxes, scores, groups, how="weighted", values=values)
        real = torch.float64 if dtype == torch.float64 else torch.float32
        assert merged.boxes.dtype == merged.values.dtype == merged.scores.dtype == real
        rows = torch.cat((boxes, values), dim=1).to(real)
        for k in range(200):
            members = (groups == k).nonzero()[:, 0].tolist()
            total, summed = torch.zeros((), dtype=real), torch.zeros(7, dtype=real)
            for i in members:
                total = total + scores[i].to(real)
                summed = summed + scores[i].to(real) * rows[i]
            assert merged.counts[k] == len(members)
            if len(members) > 1 and total > 0:
                assert torch.equal(merged.boxes[k], (summed / total)[:4])
                assert torch.equal(merged.values[k], (summed / total)[4:])
                assert torch.equal(merged.mean_scores[k], total / len(members))
            elif len(members) == 1:
                assert torch.equal(merged.boxes[k], rows[k, :4])
        union = ssd_ops.merge_boxes(boxes, scores, groups, values=values)
        for k, box in rows_of(union).items():
            members = rows[groups == k, :4]
            if len(members) > 1:
                assert torch.equal(box, torch.cat((members.amin(0)[:2], members.amax(0)[2:])))


def sahi(boxes, scores, classes, threshold, metric):
    """SAHI's greedy NMM, as it is described: {kept box: (box, score)}, and the same where a box is tested
    again with the union so far, as its postprocessing does."""
    groups = take_the_best(boxes, scores, threshold, classes, metric, at_least=True)
    merged, tested = {}, {}
    rows = boxes.numpy()
    for kept, taken in groups.items():
        merged[kept], tested[kept] = rows[kept], rows[kept]
        for i in taken:
            low, high = np.minimum(merged[kept], rows[i])[:2], np.maximum(merged[kept], rows[i])[2:]
            merged[kept] = np.concatenate((low, high))
            if overlaps(tested[kept], rows[i, None], metric)[0] > threshold:
                low, high = (
                    np.minimum(tested[kept], rows[i])[:2],
                    np.maximum(tested[kept], rows[i])[2:],
                )
                tested[kept] = np.concatenate((low, high))
    return merged, tested


@pytest.mark.parametrize("metric", ["iou", "ios"])
def test_greedy_nmm_of_sahi(metric):
    differ = 0
    for round_ in cases.rounds(200):
        boxes, scores, classes = scene()
        threshold = (0.1, 0.3, 0.5, 0.7)[round_ % 4]
        groups = ssd_ops.nms_groups(
            boxes, scores, math.nextafter(threshold, 0), idxs=classes, metric=metric
        )
        merged = ssd_ops.merge_boxes(boxes, scores, groups)
        expected, tested = sahi(boxes, scores, classes, threshold, metric)
        got = rows_of(merged)
        assert got.keys() == expected.keys()
        for k, box in got.items():
            assert box.tolist() == expected[k].tolist()
            assert merged.scores[k] == scores[k] == scores[groups == k].max()
            # What SAHI leaves out is all that makes its box smaller.
            assert (box[:2] <= torch.from_numpy(tested[k][:2])).all()
            assert (box[2:] >= torch.from_numpy(tested[k][2:])).all()
            differ += box.tolist() != tested[k].tolist()
    assert differ > 0 or metric == "ios"  # by IoS it is rare


def supervision(boxes, scores, classes, threshold, metric):
    """The lists of supervision's `box_non_max_merge`: of each class, from the best box on, the box and then
    what it takes, by score."""
    lists = []
    for category in sorted(set(classes.tolist())):
        left = [i for i in range(len(boxes)) if classes[i] == category]
        left.sort(key=lambda i: -float(scores[i]))
        while left:
            best, *others = left
            over = overlaps(boxes[best].numpy(), boxes[others].numpy(), metric) >= threshold
            lists.append([best] + [i for i, is_over in zip(others, over, strict=True) if is_over])
            left = [i for i in others if i not in lists[-1]]
    return lists


@pytest.mark.parametrize("metric", ["iou", "ios"])
def test_box_non_max_merge_of_supervision(metric):
    for round_ in cases.rounds(100):
        boxes, scores, classes = scene()
        boxes = boxes.double()
        threshold = (0.1, 0.3, 0.5, 0.7)[round_ % 4]
        groups = ssd_ops.nms_groups(
            boxes, scores, math.nextafter(threshold, 0), idxs=classes, metric=metric
        )
        order = scores.argsort(descending=True)
        lists = [
            order[groups[order] == kept].tolist() for kept in order[groups[order] == order].tolist()
        ]
        assert sorted(lists) == sorted(supervision(boxes, scores, classes, threshold, metric))


def blazeface(detections, threshold):
    """Weighted NMS of BlazeFace-PyTorch: detections [N, 17] are a box, six points and a score."""
    found = {}
    left = detections[:, 16].argsort(descending=True).tolist()
    while left:
        best = left[0]
        over = overlaps(detections[best].numpy(), detections[left].numpy(), "iou") > threshold
        group = [i for i, is_over in zip(left, over, strict=True) if is_over]
        left = [i for i, is_over in zip(left, over, strict=True) if not is_over]
        found[best] = detections[best].clone()
        if len(group) > 1:
            rows, scores = detections[group, :16], detections[group, 16:]
            found[best][:16] = (rows * scores).sum(dim=0) / scores.sum()
            found[best][16] = scores.mean()
    return found


def test_weighted_nms_of_blazeface():
    for _ in cases.rounds(100):
        boxes, scores, _ = scene(classes=1)
        points = boxes[:, :2].repeat(1, 6) + 10 * torch.rand(len(boxes), 12)
        expected = blazeface(torch.cat((boxes, points, scores[:, None]), dim=1), 0.3)
        groups = ssd_ops.nms_groups(boxes, scores, 0.3)
        merged = ssd_ops.merge_boxes(boxes, scores, groups, how="weighted", values=points)
        assert rows_of(merged).keys() == expected.keys()
        for k, row in expected.items():
            torch.testing.assert_close(merged.boxes[k], row[:4], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(merged.values[k], row[4:16], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(merged.mean_scores[k], row[16])
            assert merged.scores[k] == scores[k]


def test_a_group_of_one_is_its_box_bit_for_bit():
    boxes = torch.tensor([[0.1, 0.2, 0.3, 0.7], [nan, 0, 1, 1], [-0.0, 0, 1, 1]])
    for scores in (torch.tensor([0.3, 0.7, 0.1]), torch.zeros(3)):
        for how in ("union", "weighted"):
            merged = ssd_ops.merge_boxes(boxes, scores, torch.arange(3), how=how, values=boxes)
            for rows in (merged.boxes, merged.values):
                assert torch.equal(rows.view(torch.int32), boxes.view(torch.int32))
            assert torch.equal(merged.mean_scores, scores)


def test_scores_of_zero():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 3]])
    merged = ssd_ops.merge_boxes(boxes, torch.zeros(2), torch.tensor([1, 1]), how="weighted")
    assert merged.boxes.tolist() == [[0, 0, 0, 0], [0, 0, 2, 3]]
    assert merged.counts.tolist() == [0, 2]


@pytest.mark.parametrize("lead", [(4,), (2, 3), (0,), (2, 0), (1, 1, 1)])
def test_each_image_by_itself(lead):
    boxes, scores = cases.boxes(*lead, 40), torch.rand(*lead, 40)
    groups = ssd_ops.nms_groups(boxes, scores, 0.2)
    values = torch.rand(*lead, 40, 2)
    for how in ("union", "weighted"):
        merged = ssd_ops.merge_boxes(boxes, scores, groups, how=how, values=values)
        assert merged.boxes.shape == (*lead, 40, 4) and merged.values.shape == (*lead, 40, 2)
        assert merged.counts.shape == merged.scores.shape == merged.mean_scores.shape == (*lead, 40)
        for image in np.ndindex(*lead):
            own = ssd_ops.merge_boxes(
                boxes[image], scores[image], groups[image], how=how, values=values[image]
            )
            for got, expected in zip(merged, own, strict=True):
                assert torch.equal(got[image], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_boxes(dtype):
    for lead in ((), (3,), (0,)):
        merged = ssd_ops.merge_boxes(
            torch.zeros(*lead, 0, 4, dtype=dtype),
            torch.zeros(*lead, 0),
            torch.zeros(*lead, 0).long(),
            how="weighted",
            values=torch.zeros(*lead, 0, 5),
        )
        assert merged.boxes.shape == (*lead, 0, 4) and merged.values.shape == (*lead, 0, 5)
        assert merged.boxes.dtype == dtype and merged.counts.shape == (*lead, 0)


def test_it_carries_no_gradient():
    boxes, values = cases.boxes(9).requires_grad_(), torch.rand(9, 2, requires_grad=True)
    merged = ssd_ops.merge_boxes(boxes, torch.rand(9), torch.zeros(9).long(), values=values)
    assert not any(t.requires_grad for t in merged)


BOXES, SCORES, GROUPS = torch.zeros(2, 6, 4), torch.zeros(2, 6), torch.zeros(2, 6).long()


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        (([], SCORES, GROUPS), {}, TypeError, "boxes must be a tensor, got list"),
        ((BOXES, SCORES, None), {}, TypeError, "groups must be a tensor, got NoneType"),
        (
            (BOXES[0, 0], SCORES, GROUPS),
            {},
            RuntimeError,
            r"boxes must be \[\.\.\., N, 4\], got \[4\]",
        ),
        ((BOXES, SCORES[0], GROUPS), {}, RuntimeError, r"scores must be \[\.\.\., N\] .*got \[6\]"),
        ((BOXES, SCORES, GROUPS[:1]), {}, RuntimeError, r"groups must be .*, got \[1, 6\]"),
        ((BOXES.long(), SCORES, GROUPS), {}, RuntimeError, "boxes must be floating-point, got"),
        ((BOXES, GROUPS, GROUPS), {}, RuntimeError, "scores must be floating-point, got"),
        ((BOXES, SCORES, SCORES), {}, RuntimeError, "groups must be int64, got torch.float32"),
        ((BOXES, SCORES, GROUPS), {"how": "mean"}, ValueError, "how must be 'union' or 'weighted'"),
        ((BOXES, SCORES, GROUPS), {"values": [1]}, TypeError, "values must be a tensor, got list"),
        (
            (BOXES, SCORES, GROUPS),
            {"values": SCORES},
            RuntimeError,
            r"values must be .*got \[2, 6\]",
        ),
        (
            (BOXES, SCORES, GROUPS),
            {"values": BOXES.long()},
            RuntimeError,
            "values must be floating",
        ),
        (
            (BOXES, SCORES, GROUPS),
            {"values": torch.zeros(2, 5, 3)},
            RuntimeError,
            r"values must be \[\.\.\., N, D\] with the sizes of boxes, got \[2, 5, 3\]",
        ),
    ],
)
def test_wrong_calls(arguments, options, error, message):
    with pytest.raises(error, match=f"^merge_boxes: {message}"):
        ssd_ops.merge_boxes(*arguments, **options)
