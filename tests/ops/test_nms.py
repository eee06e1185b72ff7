from __future__ import annotations

import itertools

import cases
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ssd_ops
from ssd_ops import reference

pytestmark = pytest.mark.usefixtures("backend")

nan, inf = float("nan"), float("inf")
THRESHOLDS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def nms_inputs(images, size, dtype):
    count = images * size
    return cases.boxes(count, dtype=dtype), torch.rand(count).to(dtype), 0.5


def nms_padded_inputs(images, size, dtype):
    return cases.boxes(images, size, dtype=dtype), torch.rand(images, size).to(dtype), 0.5


def fast_nms(boxes, scores, iou_threshold, metric="iou"):
    """`reference.nms` in NumPy, with the boxes kept so far in arrays: for sets of thousands."""
    order = scores.sort(descending=True, stable=True).indices
    order = order[~scores[order].isnan()]
    rows = boxes.to(reference._real(boxes))[order].numpy()
    with np.errstate(all="ignore"):
        x1, y1, x2, y2 = rows.T.copy()
        areas = (x2 - x1) * (y2 - y1)
        kept = np.zeros((5, len(rows)), dtype=rows.dtype)
        indices = []
        for i, index in enumerate(order.tolist()):
            a = kept[:, : len(indices)]
            w = np.minimum(a[2], x2[i]) - np.maximum(a[0], x1[i])
            h = np.minimum(a[3], y2[i]) - np.maximum(a[1], y1[i])
            inter = w * h
            base = np.minimum(a[4], areas[i]) if metric == "ios" else (a[4] + areas[i]) - inter
            overlap = np.where(np.isfinite(a[4] + areas[i]), inter / base, 0)
            over = (w > 0) & (h > 0) & (inter > 0) & (overlap.astype(np.float64) > iou_threshold)
            if not over.any():
                kept[:, len(indices)] = x1[i], y1[i], x2[i], y2[i], areas[i]
                indices.append(index)
    return torch.tensor(indices, dtype=torch.int64)


def compare(boxes, scores, threshold, metrics=("iou", "ios")):
    for metric in metrics:
        got = ssd_ops.nms(boxes, scores, threshold, metric=metric)
        assert got.dtype == torch.int64
        expected = (reference.nms if len(boxes) <= 128 else fast_nms)(
            boxes, scores, threshold, metric=metric
        )
        assert torch.equal(got, expected), metric


def test_fast_nms_is_the_reference():
    for kind in cases.KINDS:
        for count, threshold in ((1, 0.5), (60, 0.0), (100, 0.3), (200, 0.7)):
            inputs = cases.boxes(count, kind=kind), cases.scores(count, kind=kind), threshold
            assert torch.equal(fast_nms(*inputs), reference.nms(*inputs))
            assert torch.equal(fast_nms(*inputs, "ios"), reference.nms(*inputs, metric="ios"))


def test_by_hand():
    # IoU of 0 and 1 is 1/3, of 1 and 2 too, of 0 and 2 it is 0.
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2]])
    scores = torch.tensor([0.5, 0.9, 0.7])
    assert ssd_ops.nms(boxes, scores, 0.4).tolist() == [1, 2, 0]
    assert ssd_ops.nms(boxes, scores, 0.3).tolist() == [1]
    # A dropped box drops nothing: 0 takes 1 away, and so 2 stays.
    assert ssd_ops.nms(boxes, torch.tensor([0.9, 0.7, 0.5]), 0.3).tolist() == [0, 2]


def test_intersection_over_the_smaller_area_by_hand():
    # 1 lies in 0, half of 2 does, a quarter of 3. Their IoU with 0 is 1/64 at most.
    boxes = torch.tensor([[0.0, 0, 8, 8], [1, 1, 2, 2], [7.5, 3, 8.5, 4], [7.5, 7.5, 8.5, 8.5]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    for threshold, kept in ((0.5, [0, 2, 3]), (0.49, [0, 3]), (0.24, [0]), (1.0, [0, 1, 2, 3])):
        assert ssd_ops.nms(boxes, scores, threshold, metric="ios").tolist() == kept
        assert ssd_ops.nms(boxes, scores, threshold).tolist() == [0, 1, 2, 3]
    # The smaller box drops the larger one just as well, and what only the larger one overlaps stays.
    assert ssd_ops.nms(boxes, scores.flip(0), 0.49, metric="ios").tolist() == [3, 2, 1]


@pytest.mark.parametrize("spread", [1e-3, 1e-6, 1e-12])
def test_small_boxes_in_large_ones(spread):
    """By IoS any size meets any other. Sizes lie close to each other, or at both ends of the range."""
    sizes = torch.where(torch.rand(1500, 1) < 0.5, spread, 1) * (0.2 + 0.8 * torch.rand(1500, 2))
    for size in (sizes, spread ** torch.rand(1500, 1) * sizes.sign(), spread * sizes.sign()):
        center = torch.rand(1500, 2, dtype=torch.float64)
        boxes = torch.cat((center - size / 2, center + size / 2), dim=1)
        scores = torch.rand(1500)
        for threshold in (0.0, 0.5, 0.9):
            compare(boxes, scores, threshold, ["ios"])
            # The small ones last, and first: then nothing but the grid keeps them from being compared.
            compare(boxes, size.prod(dim=1).float(), threshold, ["ios"])
            compare(boxes, -size.prod(dim=1).float(), threshold, ["ios"])


def test_boxes_that_touch_the_cells_of_others_at_their_very_border():
    """Overlaps of one digit in the last place, far from the origin, for IoS with a threshold of 0."""
    for dtype, offset in ((torch.float32, 4096.0), (torch.float64, 2.0**40)):
        ulp = torch.finfo(dtype).eps * offset
        left = offset + 64 * ulp * torch.arange(1500, dtype=dtype)
        width = ulp * torch.randint(60, 68, (1500,)).to(dtype)
        zero = torch.zeros_like(left)
        boxes = torch.stack((left, zero, left + width, zero + 1), dim=1)
        compare(boxes, torch.rand(1500), 0.0)


def test_identical_boxes_and_equal_scores():
    boxes = torch.tensor([[0.0, 0, 1, 1]]).repeat(300, 1)
    assert ssd_ops.nms(boxes, torch.ones(300), 0.5).tolist() == [0]
    assert ssd_ops.nms(boxes, torch.ones(300), 1.0).tolist() == list(range(300))
    assert ssd_ops.nms(boxes, torch.arange(300.0), 0.99).tolist() == [299]


def test_nan_scores_are_dropped():
    boxes = torch.tensor([[0.0, 0, 1, 1]]).repeat(4, 1)
    assert ssd_ops.nms(boxes, torch.tensor([nan, 0.1, nan, 0.2]), 1.0).tolist() == [3, 1]
    # A box with a NaN score suppresses nothing either.
    assert ssd_ops.nms(boxes[:2], torch.tensor([nan, 0.1]), 0.5).tolist() == [1]
    assert ssd_ops.nms(boxes, torch.full((4,), nan), 0.5).tolist() == []


def test_infinite_scores_and_zeros():
    boxes = torch.tensor([[i, 0, i + 1, 1] for i in range(5)]).float()
    scores = torch.tensor([-0.0, inf, -inf, 0.0, -1])
    assert ssd_ops.nms(boxes, scores, 0.5).tolist() == [1, 0, 3, 4, 2]


def test_boxes_without_area_are_kept():
    boxes = torch.tensor([[0.0, 0, 0, 0]] * 3 + [[0, 0, nan, 1]] * 2 + [[1, 1, 0, 0]] * 2)
    assert ssd_ops.nms(boxes, torch.ones(7), 0.0).tolist() == list(range(7))


def test_float32_iou_is_compared_with_the_threshold_itself():
    # fl(1/3) in float32 is more than 1/3 in float64, as in torchvision on the CPU.
    boxes, scores = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2]]), torch.tensor([1.0, 0.5])
    for threshold in (1 / 3, 0.3333333432674408, 0.3333333432674407):
        compare(boxes, scores, threshold)
    thin = torch.tensor([[0.0, 0, 3, 2], [2, 0, 5, 2]])
    for threshold in (1 / 3, 0.3333333432674408, 0.3333333432674407):
        compare(thin, scores, threshold, ["ios"])
    assert ssd_ops.nms(thin, scores, 1 / 3, metric="ios").tolist() == [0]
    assert ssd_ops.nms(thin, scores, 0.3333333432674408, metric="ios").tolist() == [0, 1]
    assert ssd_ops.nms(boxes, scores, 1 / 3).tolist() == [0]
    assert ssd_ops.nms(boxes, scores, 0.3333333432674408).tolist() == [0, 1]
    assert ssd_ops.nms(boxes.double(), scores, 1 / 3).tolist() == [0, 1]


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_equals_reference(dtype):
    for kind, repeat in itertools.product(cases.KINDS, cases.rounds(4)):
        for count in (1, 2, 3, 7, 15, 16, 17, 33, 64, 100):
            boxes = cases.boxes(count, kind=kind, dtype=dtype)
            scores = cases.scores(count, kind=kind, dtype=dtype)
            compare(boxes, scores, THRESHOLDS[(count + repeat) % 7])


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_equals_reference_on_small_sets(threshold):
    """Hundreds of sets for each threshold, with ties in scores and in overlaps."""
    for kind in cases.KINDS:
        for _ in cases.rounds(40):
            compare(cases.boxes(12, kind=kind), cases.scores(12, kind="ties"), threshold)


def test_equals_reference_at_block_sizes():
    sizes = (255, 256, 257, 1023, 1024, 1025, 3000)
    kinds = (("uniform", 0.5), ("small", 0.1), ("odd", 0.3))
    for count, (kind, threshold) in itertools.product(sizes, kinds):
        compare(cases.boxes(count, kind=kind), cases.scores(count, kind=kind), threshold)


def test_areas_of_a_few_smallest_numbers():
    """Such an area is 1e-45 or 3e-45: boxes that share half of theirs may have an IoU of 1."""
    for threshold in (0.8, 0.9, 0.95):
        center = torch.rand(1500, 2) * 1.4e-21
        half = 1.7e-23 * (1 + 0.05 * torch.rand(1500, 2))
        boxes = torch.cat((center - half, center + half), dim=1)
        compare(boxes, torch.rand(1500), threshold)


@pytest.mark.parametrize("threshold", [0.009, 0.01, 0.05, 0.3, 0.5, 0.7, 0.95, 0.999999, 1.0])
def test_equals_reference_on_clusters(threshold):
    """Many near-copies: overlaps on both sides of every threshold, in few and in many places."""
    center = cases.boxes(40, kind="small").repeat_interleave(40, dim=0)
    for jitter in (1e-7, 1e-3, 1e-2):
        boxes = center + jitter * torch.randn(1600, 4)
        compare(boxes, torch.rand(1600), threshold)


# Around the lanes of a vector, and around the numbers of boxes from which a sample is looked at.
@pytest.mark.parametrize("count", [1, 2, 7, 16, 17, 100, 300, 1023, 1024, 1025, 2000])
def test_equals_reference_on_piles(count):
    """Few boxes are kept: of some piles one each, and those that lie alone."""
    for piles, alone, dtype in (
        (1, 0, torch.float32),
        (1, 5, torch.float64),
        (3, 0, torch.half),
        (7, count // 3, torch.float32),
    ):
        center = torch.rand(piles, 2)[torch.randint(piles, (count,))] * 500 + torch.rand(count, 2)
        center[:alone] = 1000 + 300 * torch.rand(len(center[:alone]), 2)
        half = 20 + torch.rand(count, 2)
        boxes = torch.cat((center - half, center + half), dim=1)
        for scores in (torch.rand(count), torch.randint(0, 4, (count,)).double()):
            scores[torch.rand(count) < 0.1] = nan
            scores[:alone] += 2  # the first boxes that are taken close no other
            boxes, scores = boxes[order := torch.randperm(count)].to(dtype), scores[order]
            for threshold in (0.0, 0.3, 0.85, 1.0):
                compare(boxes, scores, threshold, metrics=("iou",))


def test_a_small_call_leaves_nothing_to_the_next():
    """Of larger, smaller and equal size, with other dtypes in between."""
    for count in (300, 20, 300, 1000, 33, 32, 0, 5):
        for dtype in (torch.float32, torch.float64):
            boxes = cases.boxes(count, kind="small", dtype=dtype)
            compare(boxes, torch.rand(count), 0.3)
            compare(boxes, torch.rand(count, dtype=torch.float64), 0.3)


@pytest.mark.parametrize("shape", ["tall", "wide", "sizes"])
@pytest.mark.parametrize("threshold", [0.02, 0.3, 0.5, 0.9])
def test_equals_reference_on_uneven_shapes(threshold, shape):
    """Long boxes and sizes over six powers of ten."""
    boxes = cases.boxes(1500)
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    if shape == "sizes":
        half = half * 10 ** (-6 * torch.rand(1500, 1))
    else:
        half[:, 0 if shape == "tall" else 1] *= 0.01
    boxes = torch.cat((center - half, center + half), dim=1)
    compare(boxes, torch.rand(1500), threshold)


@pytest.mark.parametrize("scale", [1e-38, 1e-22, 1e-19, 1e18, 3e18, 1e19, 1e37])
def test_equals_reference_where_areas_leave_the_range(scale):
    """Areas that are subnormal, zero or infinite in float32."""
    for threshold in (0.0, 0.3, 0.5, 0.9):
        compare(cases.boxes(900) * scale, torch.rand(900), threshold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("overlap", [0.1, 0.3, 0.5, 0.7, 0.97])
def test_close_calls(overlap, dtype):
    """Pairs whose IoU is the threshold, or a few digits in the last place from it, of all sizes there are."""
    sizes = torch.arange(-60, 61, 3).to(dtype).repeat(4)
    to_left, to_top = torch.arange(len(sizes)) % 2 == 1, torch.arange(len(sizes)) % 4 > 1
    long, high = (torch.exp2(sizes) * (1 + torch.rand(2, len(sizes), dtype=dtype))).unbind()
    digits = torch.finfo(dtype).eps * torch.randint(-4, 5, (len(sizes),)).to(dtype)
    short = long * (overlap * (1 + digits))
    zero = torch.zeros_like(long)

    def rows(width):
        left, right = torch.where(to_left, -width, zero), torch.where(to_left, zero, width)
        top, bottom = torch.where(to_top, -high, zero), torch.where(to_top, zero, high)
        return torch.stack((left, top, right, bottom), dim=1)

    boxes = torch.cat((rows(long), rows(short)))
    threshold = (short * high / (long * high)).median().item()
    scores = torch.rand(len(boxes))
    num_kept = len(ssd_ops.nms(boxes, scores, threshold))
    assert len(sizes) + 10 < num_kept < len(boxes) - 10, "some pairs are beyond it and some are not"
    compare(boxes, scores, threshold)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_far_from_the_origin(threshold):
    """Coordinates of which float32 has lost most digits."""
    for offset in (1e3, 1e5, 1e6):
        boxes = (cases.boxes(1200, kind="small") * 50 + offset).float()
        compare(boxes, torch.rand(1200), threshold)


@pytest.mark.not_emulated("20,000 boxes; smaller sets meet the same grid")
def test_equals_reference_on_large_sets():
    sets = ((10_000, "grid"), (20_000, "uniform"), (20_000, "small"))
    kinds = ((torch.float32, 0.5), (torch.float64, 0.3))
    for (count, kind), (dtype, threshold) in itertools.product(sets, kinds):
        boxes, scores = cases.boxes(count, kind=kind, dtype=dtype), cases.scores(count, kind=kind)
        compare(boxes, scores, threshold)


def test_a_chain_keeps_every_other_box():
    # Each box overlaps the next with 3/5 and the one after with 1/3.
    boxes = cases.boxes(2000, kind="chain", dtype=torch.float64)
    scores = torch.arange(2000, 0, -1).float()
    assert ssd_ops.nms(boxes, scores, 0.5).tolist() == list(range(0, 2000, 2))
    assert ssd_ops.nms(boxes, scores, 0.7).tolist() == list(range(2000))
    assert ssd_ops.nms(boxes, scores.flip(0), 0.5).tolist() == list(range(1999, 0, -2))


def pile_that_waits():
    """A box that more others of higher rank overlap than a GPU's warp has lanes, and the last one drops it.

    Before that is known, all of them are undecided: they are dropped themselves, by the first of the pile.
    Boxes far away have the highest scores, so that the pile is spread over several blocks.
    """
    left = (
        [0.0] + [0.9] * 62 + [1.7] + [1.5] * 60
    )  # 3 wide: two drop each other if less than 1 apart
    near = torch.tensor([[x, 0, x + 3, 1] for x in left])
    far = torch.tensor([[10.0 * i, 5, 10 * i + 3, 6] for i in range(300)])
    boxes = torch.cat((far, near))
    scores = torch.arange(len(boxes), 0, -1).float()
    return boxes, scores, [*range(301), 363]


def test_by_hand_where_many_boxes_are_undecided():
    boxes, scores, kept = pile_that_waits()
    assert ssd_ops.nms(boxes, scores, 0.5).tolist() == kept
    groups = torch.arange(2).repeat_interleave(len(boxes))
    two = torch.cat((boxes, boxes)), torch.cat((scores, scores))
    order = torch.tensor(kept).repeat_interleave(2) + torch.tensor([0, len(boxes)]).repeat(
        len(kept)
    )
    assert torch.equal(ssd_ops.batched_nms(*two, groups, 0.5), order)


@given(
    boxes=st.lists(st.tuples(*[st.floats(width=32)] * 4), min_size=1, max_size=12),
    threshold=st.floats(0, 1),
    data=st.data(),
)
def test_any_floats(boxes, threshold, data):
    size = len(boxes)
    scores = data.draw(st.lists(st.floats(width=32), min_size=size, max_size=size))
    compare(torch.tensor(boxes), torch.tensor(scores), threshold)


def test_keeping_what_was_kept_changes_nothing():
    boxes, scores = cases.boxes(1500, kind="uniform"), torch.rand(1500)
    kept = ssd_ops.nms(boxes, scores, 0.5)
    again = ssd_ops.nms(boxes[kept], scores[kept], 0.5)
    assert again.tolist() == list(range(len(kept)))


def test_order_of_boxes_does_not_matter():
    boxes, scores = cases.boxes(1500), torch.randperm(1500).float()
    order = torch.randperm(1500)
    kept = ssd_ops.nms(boxes, scores, 0.5)
    assert torch.equal(order[ssd_ops.nms(boxes[order], scores[order], 0.5)], kept)


def test_powers_of_two_scale_without_a_change():
    boxes, scores = cases.boxes(1500), torch.rand(1500)
    kept = ssd_ops.nms(boxes, scores, 0.5)
    for scale in (2.0**-20, 2.0**20):
        assert torch.equal(ssd_ops.nms(boxes * scale, scores, 0.5), kept)


def test_dtypes_in_any_mix():
    for first in cases.DTYPES:
        for second in cases.DTYPES:
            compare(cases.boxes(150, dtype=first), cases.scores(150, dtype=second), 0.4)


def test_layouts():
    boxes, scores = cases.boxes(300), cases.scores(300, kind="ties")
    expected = ssd_ops.nms(boxes, scores, 0.4)
    for name, view in cases.odd_layouts(boxes).items():
        assert torch.equal(ssd_ops.nms(view, scores, 0.4), expected), name
    for name, view in cases.odd_layouts(scores).items():
        assert torch.equal(ssd_ops.nms(boxes, view, 0.4), expected), name
    assert torch.equal(
        ssd_ops.nms(boxes, torch.ones(1).expand(300), 0.4), ssd_ops.nms(boxes, torch.ones(300), 0.4)
    )


def test_an_iou_too_small_for_a_float_is_0():
    # The intersection is 1e-40, the union 2e20.
    boxes = torch.tensor([[-1e10, -1e10, 1e-20, 1e-20], [0.0, 0.0, 1e10, 1e10]])
    assert ssd_ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.0).tolist() == [0, 1]
    assert ssd_ops.nms(boxes.double(), torch.tensor([0.9, 0.8]), 0.0).tolist() == [0]


@pytest.mark.parametrize("threshold", [1, 1.0000001, 1.5, 1e300, float("inf")])
def test_thresholds_from_1_on_drop_nothing(threshold):
    boxes, scores = cases.boxes(1, 40).repeat(1, 3, 1), torch.rand(1, 120)
    expected = scores[0].sort(descending=True, stable=True).indices
    assert torch.equal(ssd_ops.nms(boxes[0], scores[0], threshold), expected)
    idxs = torch.zeros(120, dtype=torch.int64)
    assert torch.equal(ssd_ops.batched_nms(boxes[0], scores[0], idxs, threshold), expected)
    assert torch.equal(ssd_ops.nms_padded(boxes, scores, threshold)[0][0], expected)
    rules = {"score_threshold": 0, "topk": -1, "max_detections": 120, "iou_threshold": threshold}
    of_classes = scores[..., None]
    found = ssd_ops.multiclass_nms(boxes, of_classes, **rules)
    assert torch.equal(found.indices[0], expected)
    offsets = torch.zeros(1, 120, 4)
    found = ssd_ops.detect(of_classes, offsets, boxes, activation="none", clip=False, **rules)
    assert torch.equal(found.indices[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_boxes(dtype):
    kept = ssd_ops.nms(torch.zeros(0, 4, dtype=dtype), torch.zeros(0, dtype=dtype), 0.5)
    assert kept.shape == (0,) and kept.dtype == torch.int64
    for images in (0, 3):
        empty = torch.zeros(images, 0, 4, dtype=dtype), torch.zeros(images, 0, dtype=dtype)
        indices, counts = ssd_ops.nms_padded(*empty, 0.5)
        assert indices.shape == (images, 0) and counts.tolist() == [0] * images


@pytest.mark.slow_emulated
def test_threads_and_runs_agree(threads):
    boxes, scores = cases.boxes(5000, kind="grid"), cases.scores(5000, kind="ties")
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(ssd_ops.nms(boxes, scores, 0.5))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


@pytest.mark.not_emulated("strips of the grid are a matter of CPU threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_strips_change_nothing(threads, threshold, dtype):
    """As many strips as threads. At their borders boxes wait for each other in long chains."""
    count = 96_000
    center = torch.rand(count, 2, dtype=dtype) * 800
    near = 200 * torch.randint(1, 4, (count // 3,))  # the borders of 2 and of 4 strips
    center[: count // 3, 1] = near + 3 * torch.randn(count // 3)
    for kind in ("alone", "copies"):
        if kind == "copies":
            center = center[torch.randint(count // 10, (count,))] + 0.2 * torch.rand(count, 2)
        half = 0.5 + torch.rand(count, 2, dtype=dtype)
        half[::100] *= torch.tensor([20.0, 1])
        half[::101] = 0
        half[::103] *= 1e-22 if dtype == torch.float32 else 1e-160  # areas below the normal numbers
        boxes = torch.cat((center - half, center + half), dim=1)[torch.randperm(count)]
        scores = torch.randint(0, 5000, (count,)).to(dtype)
        threads(1)
        expected = ssd_ops.nms(boxes, scores, threshold)
        for number in (2, 4, 7):
            threads(number)
            assert torch.equal(ssd_ops.nms(boxes, scores, threshold), expected), (kind, number)
            padded = ssd_ops.nms_padded(boxes[None], scores[None], threshold)[0]
            assert torch.equal(padded[0, : len(expected)], expected)


@pytest.mark.parametrize("images", [0, 1, 3, 17])  # from 16 on a GPU gives each image a block
@pytest.mark.parametrize("count", [0, 1, 33, 300, 600])
def test_padded_is_nms_of_each_image(images, count):
    boxes = cases.boxes(images, count, kind="odd")
    scores = cases.scores(images, count, kind="odd")
    for metric in ("iou", "ios"):
        check_padded(boxes, scores, metric)


def check_padded(boxes, scores, metric):
    images, count = scores.shape
    indices, counts = ssd_ops.nms_padded(boxes, scores, 0.4, metric=metric)
    assert indices.shape == (images, count) and counts.shape == (images,)
    assert indices.dtype == counts.dtype == torch.int64
    for image in range(images):
        kept = fast_nms(boxes[image], scores[image], 0.4, metric)
        assert indices[image].tolist() == kept.tolist() + [-1] * (count - len(kept))
        assert counts[image] == len(kept)


def test_padded_equals_reference():
    for kind in cases.KINDS:
        for dtype in (torch.float32, torch.float64):
            args = cases.boxes(3, 50, kind=kind, dtype=dtype), cases.scores(3, 50, dtype=dtype), 0.3
            for metric in ("iou", "ios"):
                got = ssd_ops.nms_padded(*args, metric=metric)
                expected = reference.nms_padded(*args, metric=metric)
                assert all(map(torch.equal, got, expected))


def test_padded_of_one_image():
    boxes, scores = cases.boxes(40), cases.scores(40, kind="ties")
    indices, count = ssd_ops.nms_padded(boxes, scores, 0.3)
    expected = reference.nms_padded(boxes, scores, 0.3)
    assert torch.equal(indices, expected[0]) and torch.equal(count, expected[1])
