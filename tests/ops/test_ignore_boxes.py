"""Regions to ignore, in assign_anchors and in multibox_target."""

from __future__ import annotations

import itertools
import math
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
SEMANTICS = ("d2l", "mxnet", "torchvision")
SHARES = (0.0, 0.25, 0.5, 0.8, 1.0)


@pytest.fixture(autouse=True)
def _same_exp(monkeypatch):
    monkeypatch.setattr(reference, "_exp", cases.library_exp)


def compare(op, *args, **options):
    got = getattr(ssd_ops, op)(*args, **options)
    expected = getattr(reference, op)(*args, **options)
    assert [t.dtype for t in got] == [t.dtype for t in expected]
    if op == "multibox_target":  # its offsets differ in the last bits of log
        torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)
        got, expected = got[1:], expected[1:]
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


# Of areas 16, 16, 16 and 0; the gt is the first. Of the others, 1/4, 3/4 and all lies in the region.
ANCHORS = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4], [8, 0, 12, 4], [12, 0, 16, 4], [9, 1, 9, 2]])
GTS = torch.tensor([[[0.0, 0, 4, 4]]])
REGION = torch.tensor([[[7.0, 0, 20, 4]]])


@pytest.mark.parametrize(
    "threshold, expected",
    [
        (0.0, [0, -2, -2, -2, -1]),
        (0.25, [0, -2, -2, -2, -1]),
        (math.nextafter(0.25, 1), [0, -2, -2, -2, -1]),  # which float32 cannot tell from 1/4
        (0.26, [0, -1, -2, -2, -1]),
        (1.0, [0, -1, -2, -2, -1]),
    ],
)
def test_by_hand(threshold, expected):
    options = {"ignore_boxes": REGION, "ignore_threshold": threshold}
    idxs, ious = ssd_ops.assign_anchors(ANCHORS, GTS, **options)
    assert idxs.tolist() == [expected]
    assert torch.equal(ious, ssd_ops.assign_anchors(ANCHORS, GTS)[1])
    labels = torch.cat((torch.full((1, 1, 1), 6.0), GTS), dim=2)
    offsets, masks, classes = ssd_ops.multibox_target(ANCHORS, labels, ignore_label=-9, **options)
    assert classes.tolist() == [[7, *(-9 if i == -2 else 0 for i in expected[1:])]]
    plain = ssd_ops.multibox_target(ANCHORS, labels)
    assert torch.equal(offsets, plain[0]) and torch.equal(masks, plain[1])


def test_an_anchor_that_only_touches_a_region_is_not_ignored():
    region = torch.tensor([[[8.0, 4, 12, 8], [-4.0, 0, 0, 4]]])
    options = {"ignore_boxes": region, "ignore_threshold": 0.0}
    assert ssd_ops.assign_anchors(ANCHORS, GTS, **options)[0].tolist() == [[0, -1, -1, -1, -1]]


def test_two_regions_do_not_add_up():
    """3/8 of the second anchor lie in one, 3/8 in the other."""
    region = torch.tensor([[[4.0, 0, 5.5, 4], [6.5, 0, 8, 4]]])
    for threshold, expected in ((0.375, -2), (0.376, -1)):
        options = {"ignore_boxes": region, "ignore_threshold": threshold}
        assert ssd_ops.assign_anchors(ANCHORS, GTS, **options)[0][0, 1] == expected


@pytest.mark.parametrize("force", FORCES)
def test_a_match_stays_by_force_too(force):
    """IoU 3/4 with the first gt; the second has 3/7 with two anchors, as in test_assign_anchors.py."""
    anchors = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4], [0, 5, 4, 9]])
    gts = torch.tensor([[[0.0, 0, 4, 3], [0, 0, 8, 3]]])
    options = {"background_threshold": 0.25, "force_match": force}
    plain = ssd_ops.assign_anchors(anchors, gts, **options)[0]
    everything = torch.tensor([[[-1.0, -1, 10, 10]]])
    idxs = ssd_ops.assign_anchors(anchors, gts, ignore_boxes=everything, **options)[0]
    assert torch.equal(idxs, torch.where(plain >= 0, plain, -2))


def mmdets_rule(anchors, gts, regions, low, high, share):
    """The rule of mmdet's MaxIoUAssigner, with ignore_wrt_candidates and without low-quality matches.

    Its gt_inds count from 1 and are 0 for background, -1 for what is between and for what is ignored:
    anchors of which more than `share` lies in a region take no part at all.
    """

    def shared(a, b):
        width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
        return max(width, 0) * max(height, 0)

    def area(box):
        return (box[2] - box[0]) * (box[3] - box[1])

    found = []
    for anchor in anchors:
        if any(shared(anchor, region) / area(anchor) > share for region in regions):
            found.append(-1)
            continue
        ious = [shared(anchor, gt) / (area(anchor) + area(gt) - shared(anchor, gt)) for gt in gts]
        best = max(ious)
        found.append(ious.index(best) + 1 if best >= high else 0 if best < low else -1)
    return found


def test_the_rule_of_mmdet():
    """With boxes of whole numbers, whose shares never equal 0.7; two of its -1 have another name here."""
    seen = set()
    for _ in cases.rounds(30):
        corner = torch.randint(0, 9, (3, 60, 2))
        boxes = torch.cat((corner, corner + torch.randint(1, 7, (3, 60, 2))), dim=2)
        anchors, gts, regions = boxes[0], boxes[1, :4], torch.cat((boxes[1, :2], boxes[2, :2]))
        args = anchors.tolist(), gts.tolist(), regions.tolist(), 0.2, 0.4, 0.7
        options = {"iou_threshold": 0.4, "background_threshold": 0.2, "force_match": "none"}
        options |= {"ignore_boxes": regions[None].float(), "ignore_threshold": 0.7}
        ours = ssd_ops.assign_anchors(anchors.float(), gts[None].float(), **options)[0][0].tolist()
        plain = mmdets_rule(args[0], args[1], [], *args[3:])  # without regions
        for mine, theirs, without in zip(ours, mmdets_rule(*args), plain, strict=True):
            ignored = theirs == -1 and without != -1
            seen.add((ignored, without > 0))
            # The difference: what is matched stays matched here.
            assert mine == (without - 1 if without > 0 else -2 if ignored or without < 0 else -1)
    assert seen == set(itertools.product((False, True), repeat=2))


def test_mmdets_own_example():
    """Of its tests: an anchor of which 0.8 lies in the region, another that is the best of a gt."""
    anchors = torch.tensor([[0.0, 0, 10, 10], [10, 10, 20, 20], [5, 5, 15, 15], [30, 32, 40, 42]])
    gts = [torch.tensor([[0.0, 0, 10, 9], [0, 10, 10, 19]])]
    region = [torch.tensor([[30.0, 30, 40, 40]])]
    idxs, _ = ssd_ops.assign_anchors(anchors, gts, force_match="low_quality", ignore_boxes=region)
    assert idxs.tolist() == [[0, -1, 1, -2]]


@pytest.mark.parametrize("force", FORCES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_assign_anchors_equals_reference(dtype, force):
    shares = itertools.cycle(SHARES)
    for kind, num_anchors in itertools.product(cases.KINDS, (1, 17, 255, 257)):
        for num_gts, num_regions in ((0, 3), (5, 1), (3, 0), (2, 40)):
            anchors = cases.boxes(num_anchors, kind=kind, dtype=dtype)
            gts = cases.boxes(3, num_gts, kind=kind, dtype=dtype)
            regions = cases.boxes(3, num_regions, kind=kind, dtype=dtype)
            options = {"force_match": force, "background_threshold": 0.3, "ignore_boxes": regions}
            compare("assign_anchors", anchors, gts, **options, ignore_threshold=next(shares))


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.half], ids=str)
def test_multibox_target_equals_reference(dtype, semantics):
    settings = itertools.cycle(
        (
            {},
            {"ignore_label": 0},
            {"negative_mining_ratio": 3.0},
            {"negative_mining_ratio": 0.7, "negative_mining_threshold": 0.2, "ignore_label": -7},
            {"negative_mining_ratio": 0.0, "min_negatives": 5, "ignore_label": 9},
        )
    )
    shares = itertools.cycle(SHARES[:4])
    for kind, num_anchors in itertools.product(cases.KINDS, (1, 17, 255, 257)):
        for num_gts in (0, 3, 9):
            anchors = cases.boxes(num_anchors, kind=kind, dtype=dtype)
            labels = cases.labels(3, num_gts, kind=kind, dtype=dtype)
            logits = cases.scores(3, 4, num_anchors, kind="odd" if kind == "odd" else "ties")
            options = {"ignore_boxes": cases.boxes(3, 2, kind=kind), "semantics": semantics}
            options |= {"ignore_threshold": next(shares), **next(settings)}
            compare("multibox_target", anchors, labels, logits, **options)


def test_equals_reference_at_real_sizes():
    for count in (5444, 8732):
        anchors, labels = cases.prior_anchors(count), cases.labels(2, 8)
        regions = cases.boxes(2, 30)
        compare("multibox_target", anchors, labels, ignore_boxes=regions)
        compare("assign_anchors", anchors, labels[..., 1:], ignore_boxes=regions)


def test_ignored_anchors_are_neither_mined_nor_counted():
    """One positive and ratio 2: two of the three anchors that are left, not the two hardest of all."""
    labels = torch.cat((torch.zeros(1, 1, 1), GTS), dim=2)
    anchors = torch.cat((ANCHORS[:4], torch.tensor([[0.0, 4, 4, 8], [4, 4, 8, 8]])))
    logits = torch.tensor([[[9.0, 1, -5, -5, 2, 3], [0.0] * 6]])  # the lower, the harder
    options = {"negative_mining_ratio": 2.0, "ignore_boxes": REGION}
    assert ssd_ops.multibox_target(anchors, labels, logits, **options)[2].tolist() == [
        [1, 0, -1, -1, 0, -1]
    ]
    options["min_negatives"] = 6  # more than there are candidates
    assert ssd_ops.multibox_target(anchors, labels, logits, **options)[2].tolist() == [
        [1, 0, -1, -1, 0, 0]
    ]


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_an_image_without_ground_truths(semantics):
    labels = torch.full((2, 3, 5), -1.0)
    regions = torch.stack((REGION[0], torch.zeros(1, 4)))
    classes = ssd_ops.multibox_target(
        ANCHORS, labels, ignore_boxes=regions, ignore_label=5, semantics=semantics
    )[2]
    assert classes.tolist() == (
        [[5] * 5] * 2 if semantics == "mxnet" else [[0, 0, 5, 5, 0], [0] * 5]
    )
    idxs, ious = ssd_ops.assign_anchors(ANCHORS, torch.zeros(2, 0, 4), ignore_boxes=regions)
    assert idxs.tolist() == [[-1, -1, -2, -2, -1], [-1] * 5] and not ious.any()


def test_cross_entropy_leaves_ignored_anchors_out():
    labels = torch.cat((torch.zeros(1, 1, 1), GTS), dim=2)
    classes = ssd_ops.multibox_target(ANCHORS, labels, ignore_boxes=REGION)[2]
    logits = torch.randn(1, 2, 5, requires_grad=True)
    torch.nn.functional.cross_entropy(logits, classes, ignore_index=-1).backward()
    assert logits.grad.abs().sum(1).bool().tolist() == [[True, True, False, False, True]]


def test_boxes_without_area_or_with_odd_corners_ignore_nothing_and_are_not_ignored():
    odd = [[7.0, 0, 7, 4], [20, 4, 7, 0], [nan, 0, 20, 4], [7, nan, 20, 4], [7, 0, nan, 4]]
    odd += [[7, 0, 20, nan], [7, 0, inf, 4], [-inf, -inf, inf, inf], [7, -inf, 20, 4], [0] * 4]
    regions = torch.tensor([odd])
    for threshold in (0.0, 0.5):
        options = {"ignore_boxes": regions, "ignore_threshold": threshold}
        idxs, _ = ssd_ops.assign_anchors(ANCHORS, GTS, **options)
        assert idxs.tolist() == [[0, -1, -1, -1, -1]]
        anchors = torch.cat((ANCHORS, regions[0]))
        big = torch.cat((regions, torch.tensor([[[-1e30, -1e30, 1e30, 1e30]]])), dim=1)
        options = {"ignore_boxes": big, "ignore_threshold": threshold}
        idxs, _ = ssd_ops.assign_anchors(anchors, GTS, **options)
        # The share of an infinite overlap is 1 or nothing, that of a finite one is right.
        assert idxs.tolist() == [[0, -2, -2, -2, *[-1] * 11]]
        compare("assign_anchors", anchors, GTS, **options)


@given(data=st.data())
def test_any_floats(data):
    box = st.tuples(*[st.floats(width=32)] * 4)
    draw = [torch.tensor(data.draw(st.lists(box, min_size=1, max_size=8))) for _ in range(3)]
    anchors, gts, regions = draw[0], draw[1][None], draw[2][None]
    options = {"ignore_boxes": regions, "ignore_threshold": data.draw(st.floats(0, 1))}
    compare("assign_anchors", anchors, gts, **options)
    labels = torch.cat((torch.zeros(1, gts.shape[1], 1), gts), dim=2)
    got = ssd_ops.multibox_target(anchors, labels, **options)
    expected = reference.multibox_target(anchors, labels, **options)
    assert all(torch.equal(a, b) for a, b in zip(got[1:], expected[1:], strict=True))


def test_a_list_and_padding_at_any_place():
    anchors, counts = cases.boxes(1, 300), (3, 0, 7, 1)
    images = [cases.boxes(count) for count in counts]
    padded = torch.zeros(4, 9, 4)
    for row, boxes in zip(padded, images, strict=True):
        row[torch.randperm(9)[: len(boxes)]] = boxes
    labels = cases.labels(4, 5)
    for op, args in (("multibox_target", (labels,)), ("assign_anchors", (labels[..., 1:],))):
        expected = getattr(ssd_ops, op)(anchors, *args, ignore_boxes=padded)
        got = getattr(ssd_ops, op)(anchors, *args, ignore_boxes=images)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        assert (got[-1] if op == "multibox_target" else got[0]).lt(0).any()
        compare(op, anchors, *args, ignore_boxes=tuple(images))


def test_layouts_and_dtypes():
    anchors, labels, regions = cases.boxes(80), cases.labels(2, 9), cases.boxes(2, 5)
    expected = ssd_ops.multibox_target(anchors, labels, ignore_boxes=regions)
    for name, view in cases.odd_layouts(regions).items():
        got = ssd_ops.multibox_target(anchors, labels, ignore_boxes=view)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), name
    for first, second in itertools.product(cases.DTYPES, repeat=2):
        options = {"ignore_boxes": regions.to(second)}
        compare("multibox_target", anchors.to(first), labels.to(first), **options)
        compare("assign_anchors", anchors.to(first), labels[..., 1:].to(first), **options)


def test_empty():
    anchors, labels = cases.boxes(5), cases.labels(2, 3)
    plain = ssd_ops.multibox_target(anchors, labels)
    for regions in (torch.zeros(2, 0, 4), [torch.zeros(0, 4)] * 2, torch.zeros(2, 3, 4)):
        got = ssd_ops.multibox_target(anchors, labels, ignore_boxes=regions)
        assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))
    for images in (torch.zeros(0, 3, 4), []):
        got = ssd_ops.multibox_target(anchors, labels[:0], ignore_boxes=images)
        assert [len(t) for t in got] == [0, 0, 0]
    regions = torch.rand(2, 3, 4)
    assert ssd_ops.multibox_target(anchors[:0], labels, ignore_boxes=regions)[2].shape == (2, 0)
    idxs, _ = ssd_ops.assign_anchors(anchors[:0], labels[..., 1:], ignore_boxes=regions)
    assert idxs.shape == (2, 0)


def test_float64_regions_make_float64_results():
    """On the meta device too, where the fake kernels say so."""
    anchors, labels, regions = cases.boxes(5), cases.labels(2, 3), cases.boxes(2, 1).double()
    for device in ("cpu", "meta"):
        tensors = [t.to(device) for t in (anchors, labels, regions)]
        offsets = ssd_ops.multibox_target(*tensors[:2], ignore_boxes=tensors[2])[0]
        rows = tensors[1][..., 1:]
        ious = ssd_ops.assign_anchors(tensors[0], rows, ignore_boxes=tensors[2])[1]
        assert offsets.dtype == ious.dtype == torch.float64


def test_every_form_of_gt_boxes():
    anchors, gts, regions = cases.boxes(60), cases.boxes(3, 4), cases.boxes(3, 2)
    expected = ssd_ops.assign_anchors(anchors, gts, ignore_boxes=regions)
    for form in ((list(gts),), (gts.flatten(0, 1), torch.tensor([0, 4, 8, 12]))):
        got = ssd_ops.assign_anchors(anchors, *form, ignore_boxes=regions)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.slow_emulated
def test_threads_and_runs_agree(threads):
    anchors, labels = cases.prior_anchors(5444), cases.labels(7, 20, kind="grid")
    regions = cases.boxes(7, 9)
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(ssd_ops.multibox_target(anchors, labels, ignore_boxes=regions))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


MANY = """
import resource, torch, ssd_ops
anchors, regions = (torch.rand(n, 2).repeat(1, 2) for n in (100_000, 10_000))
anchors[:, 2:] += 0.01
regions[:, 2:] += 0.012
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
options = {"ignore_boxes": regions[None], "ignore_threshold": 1.0}
idxs, _ = ssd_ops.assign_anchors(anchors, torch.zeros(1, 0, 4), **options)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, int((idxs == -2).sum()))
"""


@pytest.mark.not_emulated("a process of its own, with the CPU kernels")
def test_ten_thousand_regions_and_a_hundred_thousand_anchors():
    """A matrix of them has 4 GB. A region holds an anchor where its corner is at most 0.002 before."""
    run = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True, check=True)
    megabytes, ignored = map(int, run.stdout.split())
    assert megabytes < 100
    expected = 100_000 * (1 - math.exp(-10_000 * 0.002**2))
    assert abs(ignored / expected - 1) < 0.2


@pytest.mark.parametrize("op", ["assign_anchors", "multibox_target"])
def test_wrong_calls(op):
    anchors = torch.zeros(6, 4)
    rows = torch.zeros(2, 3, 4 if op == "assign_anchors" else 5)
    for regions, error, message in (
        (torch.zeros(2, 4), RuntimeError, r"must be \[2, K, 4\], got \[2, 4\]"),
        (torch.zeros(3, 1, 4), RuntimeError, r"must be \[2, K, 4\], got \[3, 1, 4\]"),
        (torch.zeros(2, 1, 5), RuntimeError, r"must be \[2, K, 4\], got \[2, 1, 5\]"),
        (torch.zeros(2, 1, 4).long(), RuntimeError, "must be float16, .* got Long"),
        ([torch.zeros(1, 4)], RuntimeError, r"must be \[2, K, 4\], got \[1, 1, 4\]"),
        ([torch.zeros(4)] * 2, ValueError, r"must be \[K, 4\] each, got \[4\]"),
        ([None] * 2, TypeError, "must be a tensor, got NoneType"),
        (3, TypeError, "must be a tensor or a list of tensors, got int"),
    ):
        with pytest.raises(error, match=f"^{op}: ignore_boxes {message}"):
            getattr(ssd_ops, op)(anchors, rows, ignore_boxes=regions)
    for threshold in (-0.1, 1.1, nan):
        with pytest.raises(ValueError, match=f"^{op}: ignore_threshold must be in 0..1, got"):
            getattr(ssd_ops, op)(anchors, rows, ignore_threshold=threshold)
    with pytest.raises(TypeError, match=f"^{op}: ignore_threshold must be a number, got '1/2'"):
        getattr(ssd_ops, op)(anchors, rows, ignore_threshold="1/2")
