from __future__ import annotations

import itertools
import subprocess
import sys

import cases
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ssd_ops
from ssd_ops import reference

pytestmark = pytest.mark.usefixtures("backend")

nan, inf = float("nan"), float("inf")
FORCES = ("bipartite", "argmax", "low_quality", "none")


def assign_anchors_inputs(images, size, dtype):
    counts = torch.arange(images) % 5
    return cases.boxes(1, size, dtype=dtype), cases.boxes(images, 4, dtype=dtype), counts


def compare(*args, **options):
    got = ssd_ops.assign_anchors(*args, **options)
    expected = reference.assign_anchors(*args, **options)
    assert got[0].dtype == torch.int64 and got[1].dtype == expected[1].dtype
    for name, a, b in zip(("matched_idxs", "matched_ious"), got, expected, strict=True):
        assert torch.equal(a, b), name


# The IoUs are 3/4 and 3/7, 0 and 3/7, 0 and 0: both anchors are the second's best.
ANCHORS = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4], [0, 5, 4, 9]])
GTS = torch.tensor([[[0.0, 0, 4, 3], [0, 0, 8, 3]]])


@pytest.mark.parametrize(
    "force, expected",
    [
        ("none", [0, -2, -1]),
        ("bipartite", [0, 1, -1]),
        ("argmax", [1, -2, -1]),  # both want anchor 0, and the later has it
        ("low_quality", [0, 1, -1]),  # both tie, and anchor 0 keeps its own best
    ],
)
def test_by_hand(force, expected):
    idxs, ious = ssd_ops.assign_anchors(
        ANCHORS, GTS, iou_threshold=0.5, background_threshold=0.25, force_match=force
    )
    iou = ssd_ops.box_iou(ANCHORS, GTS[0])
    torch.testing.assert_close(iou, torch.tensor([[3 / 4, 3 / 7], [0, 3 / 7], [0, 0]]))
    assert idxs.tolist() == [expected]
    best = iou.max(dim=1).values
    of_match = torch.tensor([iou[a, g] if g >= 0 else best[a] for a, g in enumerate(expected)])
    assert torch.equal(ious[0], of_match)


def test_low_quality_keeps_every_tie():
    anchors = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 2, 4], [9, 9, 10, 10]])
    gts = torch.tensor([[[0.0, 0, 2, 1], [20, 20, 21, 21]]])  # the second overlaps nothing
    idxs, _ = ssd_ops.assign_anchors(anchors, gts, iou_threshold=0.9, force_match="low_quality")
    assert idxs.tolist() == [[0, 0, -1, -1]]


def test_argmax_of_a_ground_truth_that_overlaps_nothing_is_the_first_anchor():
    anchors = torch.tensor([[0.0, 0, 0, 1], [0, 0, 2, 2], [9, 9, 10, 10]])  # the first has no area
    gts = torch.tensor([[[20.0, 20, 21, 21]]])
    idxs, ious = ssd_ops.assign_anchors(anchors, gts, force_match="argmax")
    assert idxs.tolist() == [[-1, 0, -1]]
    assert ious.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("force", FORCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_equals_reference(dtype, force):
    thresholds = itertools.cycle(((0.5, None), (0.7, 0.3), (0.0, None), (0.2, 0.0), (1.0, 0.9)))
    for kind, num_anchors in itertools.product(cases.KINDS, (1, 2, 17, 60, 300)):
        for num_gts in (0, 1, 3, 17):
            anchors = cases.boxes(num_anchors, kind=kind, dtype=dtype)
            gts = cases.boxes(3, num_gts, kind=kind, dtype=dtype)
            counts = torch.randint(-1, num_gts + 2, (3,))
            high, low = next(thresholds)
            options = {"iou_threshold": high, "background_threshold": low, "force_match": force}
            compare(anchors, gts, counts, **options)


@pytest.mark.parametrize("force", FORCES)
def test_equals_reference_at_real_sizes(force):
    anchors = cases.prior_anchors(8732)
    for kind in ("uniform", "small", "copies"):
        gts, counts = cases.boxes(2, 64, kind=kind), torch.tensor([64, 9])
        compare(anchors, gts, counts, force_match=force)


# The CUDA kernels keep 128 ground truths of an image in shared memory, and read as many at a time.
@pytest.mark.parametrize("force", FORCES)
def test_equals_reference_around_128_ground_truths(force):
    anchors = cases.boxes(300)
    for kind, num_gts in (("uniform", 128), ("copies", 129), ("uniform", 257)):
        compare(anchors, cases.boxes(1, num_gts, kind=kind), force_match=force)
    offsets = torch.tensor([0, 128, 128, 257, 270])
    compare(anchors, cases.boxes(270, kind="copies"), offsets, force_match=force)


# They cut the anchors of an image into tiles of 128, and of more where there would be over 128 tiles.
@pytest.mark.parametrize("force", FORCES)
@pytest.mark.parametrize(
    "num_gts, sizes", [(3, (127, 128, 129, 16_384, 16_385)), (130, (129, 16_385))]
)
def test_equals_reference_around_the_tiles(force, num_gts, sizes):
    for num_anchors in sizes:
        anchors, gts = cases.boxes(num_anchors), cases.boxes(2, num_gts)
        # Equal anchors far apart, and ground truths like them: the lowest anchor has to win.
        anchors[torch.randint(0, num_anchors, (3 * num_gts,))] = gts[1].repeat(3, 1)
        compare(anchors, gts, force_match=force)


def test_more_anchors_than_shared_memory_has_bits_for():
    """From 131,072 anchors on, what is taken is noted in global memory."""
    num_anchors = 131_073
    anchors = cases.boxes(num_anchors, kind="small")
    one = torch.tensor([0.4, 0.4, 0.6, 0.6])
    at = torch.tensor([7, 40, 60_000, 131_071, 131_072])
    anchors[at] = one + torch.tensor([0.0, 0, 0.01, 0.02, 0.03])[:, None]
    gts = one.repeat(2, 7, 1)
    gts[1] += 0.005
    compare(anchors, gts)
    assert set(ssd_ops.assign_anchors(anchors, gts)[0][0, at].tolist()) == {0, 1, 2, 3, 4}


def test_many_images_by_offsets():
    """Most without ground truths; then offsets that go back or leave the boxes."""
    anchors, gts = cases.boxes(40), cases.boxes(60)
    for num_images in (31, 32, 33, 100):
        draw = torch.randint(0, 61, (num_images + 1,))
        sparse = torch.where(draw < 6, draw, 0).cumsum(0).clamp(max=60)
        for offsets in (sparse, draw, draw.sort().values, 3 * draw - 60):
            compare(anchors, gts, offsets)


@given(data=st.data())
def test_any_floats(data):
    box = st.tuples(*[st.floats(width=32)] * 4)
    anchors = torch.tensor(data.draw(st.lists(box, min_size=1, max_size=8)))
    gts = torch.tensor(data.draw(st.lists(box, min_size=1, max_size=8)))[None]
    high = data.draw(st.floats(0, 1))
    low = data.draw(st.one_of(st.none(), st.floats(0, high)))
    force = data.draw(st.sampled_from(FORCES))
    compare(anchors, gts, iou_threshold=high, background_threshold=low, force_match=force)


@pytest.mark.parametrize("force", FORCES)
def test_three_ways_to_pass_the_ground_truths(force):
    anchors, counts = cases.boxes(1, 200), [3, 0, 7, 1]
    padded = cases.boxes(4, 7, kind="grid")
    images = [padded[image, :count] for image, count in enumerate(counts)]
    offsets = torch.tensor([0, 3, 3, 10, 11])
    expected = ssd_ops.assign_anchors(anchors, padded, torch.tensor(counts), force_match=force)
    for gts in ((images,), (torch.cat(images), offsets)):
        got = ssd_ops.assign_anchors(anchors, *gts, force_match=force)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        compare(anchors, *gts, force_match=force)


def test_offsets_that_leave_the_boxes_are_cut():
    anchors, gts = cases.boxes(50), cases.boxes(6)
    for offsets in ([-3, 2, 9], [4, 2, 6], [7, 8, 9], [-(2**62), 2**62, 0], [0, 5, 2, 6]):
        idxs, _ = ssd_ops.assign_anchors(anchors, gts, torch.tensor(offsets))
        cut = list(itertools.accumulate((min(max(offset, 0), 6) for offset in offsets), max))
        images = [gts[begin:end] for begin, end in itertools.pairwise(cut)]
        assert torch.equal(idxs, ssd_ops.assign_anchors(anchors, images)[0]), offsets


def test_degenerate_boxes_match_nothing_and_change_nothing():
    anchors, gts = cases.boxes(300), cases.boxes(1, 5)
    bad = torch.tensor([[0.5, 0.5, 0.5, 0.9], [0.9, 0.9, 0.1, 0.1], [nan, 0, 1, 1], [0, 0, inf, 1]])
    for force in FORCES:
        expected, ious = ssd_ops.assign_anchors(anchors, gts, force_match=force)
        mixed = torch.cat((gts[0, :2], bad, gts[0, 2:]))[None]
        idxs, mixed_ious = ssd_ops.assign_anchors(anchors, mixed, force_match=force)
        assert torch.equal(idxs, torch.where(expected >= 2, expected + len(bad), expected))
        assert torch.equal(mixed_ious, ious)
        more, _ = ssd_ops.assign_anchors(torch.cat((bad, anchors)), gts, force_match=force)
        assert torch.equal(more[:, len(bad) :], expected) and more[:, : len(bad)].eq(-1).all()


def test_bipartite_is_the_matching_of_multibox_target():
    anchors, labels = cases.prior_anchors(5444), cases.labels(3, 20, padding=0)
    idxs, _ = ssd_ops.assign_anchors(anchors, labels[..., 1:])
    classes = labels[..., 0].gather(1, idxs.clamp(min=0)).long() + 1
    expected = ssd_ops.multibox_target(anchors, labels)[2]
    assert torch.equal(torch.where(idxs >= 0, classes, 0), expected)


def test_empty():
    for shape, images in (((0, 3, 4), 0), ((2, 0, 4), 2)):
        idxs, ious = ssd_ops.assign_anchors(torch.rand(5, 4), torch.zeros(shape))
        assert idxs.shape == ious.shape == (images, 5)
        assert idxs.eq(-1).all() and ious.eq(0).all()
    assert ssd_ops.assign_anchors(torch.zeros(0, 4), torch.rand(2, 3, 4))[0].shape == (2, 0)
    assert ssd_ops.assign_anchors(torch.rand(5, 4), [])[0].shape == (0, 5)


def test_layouts_and_dtypes():
    anchors, gts, counts = cases.boxes(80), cases.boxes(2, 9), torch.tensor([9, 4])
    expected = ssd_ops.assign_anchors(anchors, gts, counts)
    for name, view in cases.odd_layouts(anchors).items():
        assert torch.equal(ssd_ops.assign_anchors(view, gts, counts)[0], expected[0]), name
    for name, view in cases.odd_layouts(gts).items():
        assert torch.equal(ssd_ops.assign_anchors(anchors, view, counts)[0], expected[0]), name
    strided = torch.tensor([9, 0, 4, 0])[::2]
    assert torch.equal(ssd_ops.assign_anchors(anchors, gts, strided)[0], expected[0])
    for first, second in itertools.product(cases.DTYPES, repeat=2):
        compare(anchors.to(first), gts.to(second), counts)


@pytest.mark.slow_emulated
def test_threads_and_runs_agree(threads):
    anchors, gts = cases.prior_anchors(5444), cases.boxes(9, 30, kind="grid")
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(ssd_ops.assign_anchors(anchors, gts, force_match="low_quality"))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


MANY = """
import resource, torch, ssd_ops
anchors, gts = (torch.rand(n, 2).repeat(1, 2) for n in (100_000, 10_000))
anchors[:, 2:] += 0.02 * torch.rand(100_000, 2) + 1e-3
gts[:, 2:] += 0.02 * torch.rand(10_000, 2) + 1e-3
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
idxs, ious = ssd_ops.assign_anchors(anchors, gts[None], force_match={force!r})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, len(idxs.unique()))
"""


@pytest.mark.not_emulated("a process of its own, with the CPU kernels")
@pytest.mark.parametrize("force", ["bipartite", "low_quality"])
def test_ten_thousand_ground_truths_and_a_hundred_thousand_anchors(force):
    """A matrix of them has 4 GB; a process of its own, since the peak of this one is past."""
    run = subprocess.run(
        [sys.executable, "-c", MANY.format(force=force)], capture_output=True, text=True, check=True
    )
    megabytes, matched = map(int, run.stdout.split())
    assert megabytes < 100
    assert matched > 8000
