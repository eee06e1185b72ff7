from __future__ import annotations

import itertools
import math

import cases
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_nms import THRESHOLDS, pile_that_waits

import ssd_ops
from ssd_ops import reference

pytestmark = pytest.mark.usefixtures("backend")

nan, inf = float("nan"), float("inf")
METRICS = ("iou", "ios")


def nms_groups_inputs(images, size, dtype):
    return cases.boxes(images, size, dtype=dtype), torch.rand(images, size).to(dtype), 0.5


def overlaps(box, others, metric):
    """The overlap of a row with rows, in NumPy and in the dtype of the rows."""
    with np.errstate(all="ignore"):
        w = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
        h = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
        area = (box[2] - box[0]) * (box[3] - box[1])
        areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
        inter = w * h
        base = np.minimum(area, areas) if metric == "ios" else (area + areas) - inter
        valid = (w > 0) & (h > 0) & (inter > 0) & np.isfinite(area + areas)
        return np.where(valid, inter / base, 0)


def take_the_best(boxes, scores, threshold, idxs=None, metric="iou", at_least=False):
    """The groups of a loop that takes the best box with all that it overlaps: {kept: [taken, ..]}."""
    rows = boxes.to(reference._real(boxes)).numpy()
    order = scores.sort(descending=True, stable=True).indices
    order = order[~scores[order].isnan()].numpy()
    groups = {}
    while len(order):
        best, order = int(order[0]), order[1:]
        overlap = overlaps(rows[best], rows[order], metric).astype(np.float64)
        taken = overlap >= threshold if at_least else overlap > threshold
        if idxs is not None:
            taken &= (idxs[order] == idxs[best]).numpy()
        groups[best] = order[taken].tolist()
        order = order[~taken]
    return groups


def as_tensor(groups, count):
    result = torch.full((count,), -1)
    for kept, taken in groups.items():
        result[[kept, *taken]] = kept
    return result


def compare(boxes, scores, threshold, **options):
    got = ssd_ops.nms_groups(boxes, scores, threshold, **options)
    assert got.dtype == torch.int64
    if len(boxes) <= 64:
        expected = reference.nms_groups(boxes, scores, threshold, **options)
    else:
        expected = as_tensor(take_the_best(boxes, scores, threshold, **options), len(boxes))
    assert torch.equal(got, expected), options


def test_by_hand():
    # Along a line, each overlaps the next: 1 takes 0 and 2, and 2 takes nothing more.
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2], [3, 0, 5, 2], [9, 0, 9, 2]])
    scores = torch.tensor([0.5, 0.9, 0.7, 0.8, 0.1])
    assert ssd_ops.nms_groups(boxes, scores, 0.3).tolist() == [1, 1, 1, 3, 4]
    # 2 lies between two kept ones, and the better one has it, wherever it stands.
    assert ssd_ops.nms_groups(boxes, scores[[0, 3, 2, 1, 4]], 0.3).tolist() == [1, 1, 3, 3, 4]
    assert ssd_ops.nms_groups(boxes, torch.ones(5), 0.3).tolist() == [0, 0, 2, 2, 4]
    assert ssd_ops.nms_groups(boxes, scores, 0.4).tolist() == [0, 1, 2, 3, 4]
    assert ssd_ops.nms_groups(boxes, scores, 0.4, metric="ios").tolist() == [1, 1, 1, 3, 4]


def test_the_box_that_drops_it_in_nms_is_not_always_its_group():
    """Of three kept boxes over one box, the best has it, and not the one that is closest or came last."""
    boxes = torch.tensor([[0.0, 0, 4, 4], [0, 4, 4, 8], [4, 0, 8, 4], [0, 0, 8, 8], [1, 1, 6.9, 7]])
    scores = torch.tensor([0.7, 0.9, 0.8, 0.1, 0.2])
    assert ssd_ops.nms_groups(boxes, scores, 0.2).tolist() == [0, 1, 2, 1, 1]


def test_classes():
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 2, 2]])
    scores, idxs = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([5, -3, 5, -3])
    assert ssd_ops.nms_groups(boxes, scores, 0.5, idxs=idxs).tolist() == [0, 1, 2, 1]
    got = ssd_ops.nms_groups(boxes, scores, 0.5, idxs=idxs, metric="ios")
    assert got.tolist() == [0, 1, 0, 1]
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert torch.equal(
            ssd_ops.nms_groups(boxes, scores, 0.5, idxs=(idxs + 3).to(dtype), metric="ios"), got
        )


def test_nan_scores_have_no_group():
    boxes = torch.tensor([[0.0, 0, 1, 1]]).repeat(4, 1)
    scores = torch.tensor([nan, 0.1, nan, 0.2])
    assert ssd_ops.nms_groups(boxes, scores, 0.5).tolist() == [-1, 3, -1, 3]
    assert ssd_ops.nms_groups(boxes, torch.full((4,), nan), 0.5).tolist() == [-1] * 4
    infinite = torch.tensor([-inf, 0.0, inf, -0.0])
    assert ssd_ops.nms_groups(boxes, infinite, 0.5).tolist() == [2] * 4


def test_boxes_that_overlap_nothing_are_kept():
    boxes = torch.tensor(
        [[0.0, 0, 0, 0]] * 2 + [[0, 0, nan, 1], [1, 1, 0, 0], [0, 0, inf, inf], [0, 0, 1, 1]]
    )
    for metric in METRICS:
        got = ssd_ops.nms_groups(boxes, torch.ones(6), 0.0, metric=metric)
        assert got.tolist() == list(range(6))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_equals_reference(dtype, metric):
    for kind, count in itertools.product(cases.KINDS, (1, 2, 3, 16, 17, 33, 64)):
        boxes = cases.boxes(count, kind=kind, dtype=dtype)
        scores = cases.scores(count, kind=kind, dtype=dtype)
        threshold = THRESHOLDS[int(torch.randint(0, 7, ()))]
        compare(boxes, scores, threshold, metric=metric)
        compare(boxes, scores, threshold, metric=metric, idxs=torch.randint(0, 3, (count,)))


@pytest.mark.parametrize("metric", METRICS)
def test_equals_a_loop_at_block_sizes(metric):
    sizes = (255, 256, 257, 511, 513, 1025, 3000)
    kinds = (("uniform", 0.5), ("small", 0.1), ("odd", 0.3), ("copies", 0.5))
    for count, (kind, threshold) in itertools.product(sizes, kinds):
        args = cases.boxes(count, kind=kind), cases.scores(count, kind=kind), threshold
        compare(*args, metric=metric)
        compare(*args, metric=metric, idxs=torch.randint(-2, 2, (count,)))


@pytest.mark.parametrize("threshold", [0.0, 0.005, 0.3, 0.5, 0.9, 1.0])
def test_clusters_of_all_sizes(threshold):
    """Near-copies and parts of boxes whose sizes span five powers of ten."""
    center = torch.rand(60, 2).repeat_interleave(25, dim=0)
    size = (10 ** (-5 * torch.rand(60, 1)) * torch.rand(60, 2)).repeat_interleave(25, dim=0)
    center = center + 0.05 * size * torch.randn(1500, 2)
    size = size * torch.where(torch.rand(1500, 1) < 0.5, 1.0, 0.1 + 0.9 * torch.rand(1500, 2))
    boxes = torch.cat((center - size / 2, center + size / 2), dim=1)
    for metric in METRICS:
        compare(boxes, torch.rand(1500), threshold, metric=metric)
        compare(boxes.double(), cases.scores(1500, kind="ties"), threshold, metric=metric)


@pytest.mark.parametrize("scale", [1e-38, 1e-22, 1e-19, 1e18, 3e18, 1e19, 1e37])
def test_where_areas_leave_the_range(scale):
    for threshold, metric in itertools.product((0.0, 0.5), METRICS):
        compare(cases.boxes(700) * scale, torch.rand(700), threshold, metric=metric)


def test_areas_of_a_few_smallest_numbers():
    center = torch.rand(900, 2) * 1.4e-21
    half = 1.7e-23 * (1 + 0.05 * torch.rand(900, 2))
    boxes = torch.cat((center - half, center + half), dim=1)
    for threshold, metric in itertools.product((0.5, 0.9), METRICS):
        compare(boxes, torch.rand(900), threshold, metric=metric)


@given(
    boxes=st.lists(st.tuples(*[st.floats(width=32)] * 4), min_size=1, max_size=10),
    threshold=st.floats(0, 1),
    metric=st.sampled_from(METRICS),
    data=st.data(),
)
def test_any_numbers(boxes, threshold, metric, data):
    size = len(boxes)
    scores = data.draw(st.lists(st.floats(width=32), min_size=size, max_size=size))
    idxs = data.draw(
        st.none() | st.lists(st.integers(-(2**63), 2**63 - 1), min_size=size, max_size=size)
    )
    idxs = None if idxs is None else torch.tensor(idxs)
    compare(torch.tensor(boxes), torch.tensor(scores), threshold, metric=metric, idxs=idxs)


@pytest.mark.not_emulated("20,000 boxes; smaller sets meet the same kernels")
@pytest.mark.parametrize("metric", METRICS)
def test_large_sets(metric):
    for kind, count in (("uniform", 20_000), ("small", 20_000), ("grid", 9_000)):
        boxes, scores = cases.boxes(count, kind=kind), cases.scores(count, kind=kind)
        compare(boxes, scores, 0.5, metric=metric)


@pytest.mark.parametrize("metric", METRICS)
def test_own_index_is_what_nms_keeps(metric):
    boxes, scores = cases.boxes(900, kind="odd"), cases.scores(900, kind="odd")
    idxs = torch.randint(0, 4, (900,))
    for threshold in (0.0, 0.4):
        groups = ssd_ops.nms_groups(boxes, scores, threshold, metric=metric)
        kept = ssd_ops.nms(boxes, scores, threshold, metric=metric)
        assert torch.equal((groups == torch.arange(900)).nonzero()[:, 0], kept.sort().values)
        groups = ssd_ops.nms_groups(boxes, scores, threshold, idxs=idxs, metric=metric)
        kept = ssd_ops.batched_nms(boxes, scores, idxs, threshold, metric=metric)
        assert torch.equal((groups == torch.arange(900)).nonzero()[:, 0], kept.sort().values)
        assert torch.equal(groups == -1, scores.isnan())


def test_where_many_boxes_are_undecided():
    boxes, scores, kept = pile_that_waits()
    groups = ssd_ops.nms_groups(boxes, scores, 0.5)
    assert groups.unique().tolist() == kept
    compare(boxes, scores, 0.5)


@pytest.mark.parametrize("lead", [(3,), (17,), (2, 9), (1, 1, 1)])
def test_each_image_by_itself(lead):
    boxes, scores = cases.boxes(*lead, 300, kind="odd"), cases.scores(*lead, 300, kind="ties")
    idxs = torch.randint(0, 3, (*lead, 300))
    for options in ({}, {"metric": "ios"}, {"idxs": idxs}):
        got = ssd_ops.nms_groups(boxes, scores, 0.3, **options)
        assert got.shape == (*lead, 300)
        for image in itertools.product(*map(range, lead)):
            own = {**options, **({"idxs": idxs[image]} if "idxs" in options else {})}
            expected = ssd_ops.nms_groups(boxes[image], scores[image], 0.3, **own)
            assert torch.equal(got[image], expected)


def test_layouts_and_dtypes():
    args = cases.boxes(2, 90), cases.scores(2, 90, kind="ties"), torch.randint(0, 5, (2, 90))
    expected = ssd_ops.nms_groups(*args[:2], 0.4, idxs=args[2])
    for place, argument in enumerate(args):
        for name, view in cases.odd_layouts(argument).items():
            boxes, scores, idxs = (*args[:place], view, *args[place + 1 :])
            assert torch.equal(ssd_ops.nms_groups(boxes, scores, 0.4, idxs=idxs), expected), name
    for first, second in itertools.product(cases.DTYPES, repeat=2):
        compare(args[0][0].to(first), args[1][0].to(second), 0.4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_boxes(dtype):
    for lead in ((), (0,), (3,), (2, 0)):
        boxes, scores = torch.zeros(*lead, 0, 4, dtype=dtype), torch.zeros(*lead, 0, dtype=dtype)
        groups = ssd_ops.nms_groups(boxes, scores, 0.5, idxs=torch.zeros(*lead, 0).long())
        assert groups.shape == (*lead, 0) and groups.dtype == torch.int64
    none = ssd_ops.nms_groups(torch.zeros(0, 5, 4), torch.zeros(0, 5), 0.5)
    assert none.shape == (0, 5)


@pytest.mark.slow_emulated
def test_threads_and_runs_agree(threads):
    args = cases.boxes(4, 3000, kind="grid"), cases.scores(4, 3000, kind="ties"), 0.5
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(ssd_ops.nms_groups(*args, metric="ios"))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


def test_vmap():
    boxes, scores = cases.boxes(3, 2, 40), torch.rand(3, 2, 40)
    idxs = torch.randint(0, 2, (2, 3, 40))
    got = torch.vmap(lambda b, s: ssd_ops.nms_groups(b, s, 0.3))(boxes, scores)
    assert torch.equal(got, ssd_ops.nms_groups(boxes, scores, 0.3))
    got = torch.vmap(
        lambda b, s, i: ssd_ops.nms_groups(b, s, 0.3, idxs=i), in_dims=(1, None, 0), out_dims=1
    )(boxes, scores[:, 0], idxs)
    for image, lead in itertools.product(range(3), range(2)):
        args = boxes[image, lead], scores[image, 0], 0.3
        expected = ssd_ops.nms_groups(*args, idxs=idxs[lead, image])
        assert torch.equal(got[image, lead], expected)


def test_at_least_the_threshold():
    """SAHI and supervision group by `overlap >= threshold`: the number before it makes that of ours."""
    boxes, scores = cases.boxes(2000, kind="grid"), torch.randperm(2000).float()
    for threshold, metric in itertools.product((0.25, 1 / 3, 0.5, 1.0), METRICS):
        before = math.nextafter(threshold, 0)
        got = ssd_ops.nms_groups(boxes, scores, before, metric=metric)
        expected = take_the_best(boxes, scores, threshold, metric=metric, at_least=True)
        assert torch.equal(got, as_tensor(expected, 2000))
        same = torch.equal(got, ssd_ops.nms_groups(boxes, scores, threshold, metric=metric))
        assert same == (threshold == 1 / 3)  # which no float32 is


@pytest.mark.parametrize(
    "call, error, message",
    [
        (([[0.0] * 4], torch.zeros(1), 0.5), TypeError, "boxes must be a tensor, got list"),
        ((torch.zeros(6, 5), torch.zeros(6), 0.5), RuntimeError, r"boxes must be \[\.\.\., N, 4\]"),
        ((torch.zeros(4), torch.zeros(()), 0.5), RuntimeError, r"boxes must be \[\.\.\., N, 4\]"),
        ((torch.zeros(6, 4), torch.zeros(5), 0.5), RuntimeError, r"scores must be .* got \[5\]"),
        (
            (torch.zeros(2, 6, 4), torch.zeros(6), 0.5),
            RuntimeError,
            r"scores must be .*, got \[6\]",
        ),
        ((torch.zeros(6, 4), torch.zeros(6).long(), 0.5), RuntimeError, "scores must be float"),
        ((torch.zeros(6, 4), torch.zeros(6), -1.5), ValueError, "iou_threshold must be 0 or more"),
        ((torch.zeros(6, 4), torch.zeros(6), nan), ValueError, "iou_threshold must be 0 or more"),
        ((torch.zeros(6, 4), torch.zeros(6), 0.5, "min"), ValueError, "metric must be 'iou' or"),
        ((torch.zeros(6, 4), torch.zeros(6), 0.5, "iou", [0]), TypeError, "idxs must be a tensor"),
        (
            (torch.zeros(6, 4), torch.zeros(6), 0.5, "iou", torch.zeros(6)),
            RuntimeError,
            "idxs must be int64, got Float",
        ),
        (
            (torch.zeros(6, 4), torch.zeros(6), 0.5, "iou", torch.zeros(5).long()),
            RuntimeError,
            r"idxs must be \[\.\.\., N\] with the sizes of boxes, got \[5\]",
        ),
    ],
)
def test_wrong_calls(call, error, message):
    boxes, scores, threshold, *options = call
    with pytest.raises(error, match=f"^nms_groups: {message}"):
        ssd_ops.nms_groups(
            boxes, scores, threshold, **dict(zip(("metric", "idxs"), options, strict=False))
        )
