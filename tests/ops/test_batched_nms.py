from __future__ import annotations

import itertools

import cases
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_nms import THRESHOLDS, fast_nms

import ssd_ops
from ssd_ops import reference

pytestmark = pytest.mark.usefixtures("backend")

nan, inf = float("nan"), float("inf")


def batched_nms_inputs(images, size, dtype):
    count = images * size
    classes = torch.randint(0, 3, (count,))
    return cases.boxes(count, dtype=dtype), torch.rand(count).to(dtype), classes, 0.5


def by_class(boxes, scores, idxs, threshold, metric="iou"):
    """`reference.batched_nms` for sets of thousands."""
    kept = torch.cat(
        [
            members[fast_nms(boxes[members], scores[members], threshold, metric)]
            for members in ((idxs == category).nonzero()[:, 0] for category in idxs.unique())
        ]
    )
    kept = kept.sort().values
    return kept[scores[kept].sort(descending=True, stable=True).indices]


def compare(*args):
    for metric in ("iou", "ios"):
        got = ssd_ops.batched_nms(*args, metric=metric)
        expected = (reference.batched_nms if len(args[0]) <= 128 else by_class)(
            *args, metric=metric
        )
        assert got.dtype == torch.int64
        assert torch.equal(got, expected), metric


def test_by_hand():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [0, 0, 2, 2], [5, 5, 6, 6]])
    scores = torch.tensor([0.8, 0.9, 0.1, 0.9])
    assert ssd_ops.batched_nms(boxes, scores, torch.tensor([7, 7, -2, -2]), 0.5).tolist() == [
        1,
        3,
        2,
    ]


def test_parts_of_a_larger_box_by_hand():
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 1, 2, 2], [1, 1, 2, 2]])
    args = boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1])
    assert ssd_ops.batched_nms(*args, 0.5).tolist() == [0, 1, 2]
    assert ssd_ops.batched_nms(*args, 0.5, metric="ios").tolist() == [0, 2]


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_equals_reference(dtype):
    for kind, count in itertools.product(cases.KINDS, (1, 2, 3, 16, 17, 33, 100)):
        for classes in (1, 3, 40):
            boxes = cases.boxes(count, kind=kind, dtype=dtype)
            scores = cases.scores(count, kind=kind, dtype=dtype)
            idxs = torch.randint(0, classes, (count,))
            compare(boxes, scores, idxs, THRESHOLDS[(count + classes) % 7])


@pytest.mark.slow_emulated
def test_equals_reference_on_large_sets():
    for kind, count, classes in (
        ("uniform", 10_000, 80),
        ("small", 20_000, 3),
        ("grid", 5000, 20),
        ("odd", 3000, 7),
    ):
        boxes, scores = cases.boxes(count, kind=kind), cases.scores(count, kind=kind)
        compare(boxes, scores, torch.randint(0, classes, (count,)), 0.5)


def test_any_class_numbers():
    numbers = torch.tensor([-(2**63), 2**63 - 1, 0, -1, 5000])
    boxes, scores = cases.boxes(500), torch.rand(500)
    which = torch.randint(0, 5, (500,))
    expected = ssd_ops.batched_nms(boxes, scores, which, 0.4)
    assert torch.equal(ssd_ops.batched_nms(boxes, scores, numbers[which], 0.4), expected)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(ssd_ops.batched_nms(boxes, scores, which.to(dtype), 0.4), expected)


@pytest.mark.parametrize("shift", [0.0, -3.0, 1e4])
def test_coordinates_of_any_range(shift):
    """Where boxes are moved apart by class, negative corners reach into the next class and far ones
    lose the digits that tell two boxes apart."""
    boxes, idxs = cases.boxes(2000, kind="small") + shift, torch.randint(0, 1000, (2000,))
    compare(boxes, torch.rand(2000), idxs, 0.3)


def test_one_class_is_nms_and_a_class_each_keeps_all():
    boxes, scores = cases.boxes(700), cases.scores(700, kind="ties")
    expected = ssd_ops.nms(boxes, scores, 0.3)
    assert torch.equal(ssd_ops.batched_nms(boxes, scores, torch.full((700,), -4), 0.3), expected)
    kept = ssd_ops.batched_nms(boxes, scores, torch.arange(700), 0.3)
    assert torch.equal(kept, scores.sort(descending=True, stable=True).indices)


def test_nan_scores_are_dropped():
    boxes, idxs = torch.tensor([[0.0, 0, 1, 1]]).repeat(4, 1), torch.tensor([0, 1, 0, 1])
    assert ssd_ops.batched_nms(boxes, torch.tensor([nan, 0.1, 0.3, nan]), idxs, 0.5).tolist() == [
        2,
        1,
    ]


@given(
    boxes=st.lists(st.tuples(*[st.floats(width=32)] * 4), min_size=1, max_size=10),
    threshold=st.floats(0, 1),
    data=st.data(),
)
def test_any_numbers(boxes, threshold, data):
    size = len(boxes)
    scores = data.draw(st.lists(st.floats(width=32), min_size=size, max_size=size))
    idxs = data.draw(
        st.lists(st.integers(-(2**63), 2**63 - 1), min_size=size, max_size=size)
        | st.lists(st.integers(0, 2), min_size=size, max_size=size)
    )
    compare(torch.tensor(boxes), torch.tensor(scores), torch.tensor(idxs), threshold)


def test_layouts_and_dtypes():
    args = cases.boxes(300), cases.scores(300, kind="ties"), torch.randint(0, 5, (300,))
    expected = ssd_ops.batched_nms(*args, 0.4)
    for place, argument in enumerate(args):
        for name, view in cases.odd_layouts(argument).items():
            views = [*args[:place], view, *args[place + 1 :]]
            assert torch.equal(ssd_ops.batched_nms(*views, 0.4), expected), name
    for first, second in itertools.product(cases.DTYPES, repeat=2):
        compare(args[0].to(first), args[1].to(second), args[2], 0.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_boxes(dtype):
    boxes, scores = torch.zeros(0, 4, dtype=dtype), torch.zeros(0, dtype=dtype)
    kept = ssd_ops.batched_nms(boxes, scores, torch.zeros(0).long(), 0.5)
    assert kept.shape == (0,) and kept.dtype == torch.int64


@pytest.mark.slow_emulated
def test_threads_and_runs_agree(threads):
    args = cases.boxes(9000, kind="grid"), cases.scores(9000, kind="ties"), torch.arange(9000) % 30
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(ssd_ops.batched_nms(*args, 0.5))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


def test_no_boxes_as_torchvision_takes_them():
    for boxes in (torch.empty(0), torch.empty(0, 4), torch.empty(3, 0)):
        for scores, idxs in (
            (None, None),
            (torch.empty(0), None),
            (torch.empty(0, 1), torch.empty(0)),
        ):
            kept = ssd_ops.batched_nms(boxes, scores, idxs, 0.5)
            assert kept.shape == (0,) and kept.dtype == torch.int64
    with pytest.raises(TypeError, match=r"^batched_nms: scores must be a tensor, got NoneType"):
        ssd_ops.batched_nms(torch.zeros(1, 4), None, None, 0.5)
