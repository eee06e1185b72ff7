from __future__ import annotations

import functools
import itertools
import math

import cases
import golden
import pytest
import torch

import ssd_ops
from ssd_ops import reference

pytestmark = pytest.mark.usefixtures("backend")

nan, inf = float("nan"), float("inf")
THRESHOLDS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def multibox_target_inputs(images, size, dtype):
    return cases.boxes(1, size, dtype=dtype), cases.labels(images, 4, dtype=dtype)


def check(got, expected):
    """Masks and classes equal; offsets to the last bits of log."""
    offsets, masks, classes = got
    assert [t.dtype for t in got] == [t.dtype for t in expected]
    assert [t.shape for t in got] == [t.shape for t in expected]
    assert torch.equal(classes, expected[2])
    assert torch.equal(masks, expected[1])
    rtol = 1e-5 if offsets.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(offsets, expected[0], rtol=rtol, atol=rtol)


def compare(*args, **options):
    check(ssd_ops.multibox_target(*args, **options), reference.multibox_target(*args, **options))


def test_the_book():
    offsets, masks, classes = ssd_ops.multibox_target(golden.BOOK_ANCHORS, golden.BOOK_LABELS)
    assert torch.equal(classes, golden.BOOK_CLASSES)
    assert torch.equal(masks.reshape(1, 5, 4).amax(2).bool(), golden.BOOK_CLASSES > 0)
    matched = offsets.reshape(5, 4)[[1, 2, 4]]
    torch.testing.assert_close(matched, golden.BOOK_OFFSETS, rtol=5e-3, atol=5e-6)


def test_mxnet():
    offsets, masks, classes = ssd_ops.multibox_target(golden.MXNET_ANCHORS, golden.MXNET_LABELS)
    torch.testing.assert_close(offsets, golden.MXNET_OFFSETS, rtol=0, atol=2e-5)
    assert torch.equal(masks, golden.MXNET_MASKS)
    assert torch.equal(classes, golden.MXNET_CLASSES)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("coding", ["linear", "distance"])
def test_codings(coding, dtype):
    """The offsets of matched anchors are those of encode_boxes; nothing else depends on the coding."""
    anchors, labels = cases.boxes(60, dtype=dtype), cases.labels(3, 5, dtype=dtype)
    for semantics, variances in itertools.product(
        ("d2l", "mxnet", "torchvision"), (None, (0.3, 0.05, 2, 0.7))
    ):
        options = {"semantics": semantics, "variances": variances, "coding": coding}
        got = ssd_ops.multibox_target(anchors, labels, **options)
        expected = reference.multibox_target(anchors, labels, **options)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        center = ssd_ops.multibox_target(anchors, labels, semantics=semantics)
        assert torch.equal(got[1], center[1]) and torch.equal(got[2], center[2])
        matched = got[1].reshape(3, 60, 4)[..., 0] > 0
        boxes = ssd_ops.decode_boxes(
            got[0].reshape(3, 60, 4), anchors, coding=coding, variances=variances
        )
        at_center = ssd_ops.decode_boxes(center[0].reshape(3, 60, 4), anchors)
        torch.testing.assert_close(boxes[matched], at_center[matched], rtol=0, atol=1e-5)


def test_padding_changes_nothing():
    expected = ssd_ops.multibox_target(golden.BOOK_ANCHORS, golden.BOOK_LABELS)
    pad = torch.tensor(
        [
            [
                [-1.0, 0, 0, 0, 0],
                [-1, 0.1, 0.08, 0.52, 0.92],
                [nan, 0.1, 0.08, 0.52, 0.92],
                [0, nan, 0.08, 0.52, 0.92],
                [0, 0.1, 0.08, inf, 0.92],
                [0, 0.52, 0.08, 0.1, 0.92],
                [0, 0.1, 0.92, 0.52, 0.08],
            ]
        ]
    )
    dog, cat = golden.BOOK_LABELS[:, :1], golden.BOOK_LABELS[:, 1:]
    for rows in ((dog, cat, pad), (pad, dog, cat), (dog, pad, cat), (pad, dog, pad, cat, pad)):
        got = ssd_ops.multibox_target(golden.BOOK_ANCHORS, torch.cat(rows, dim=1))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_reference_on_small_images(dtype):
    """Thousands of images in all, more ground truths than anchors among them."""
    for kind, num_anchors, count in itertools.product(
        cases.KINDS, (1, 2, 5, 12, 40), (1, 2, 7, 15)
    ):
        for threshold in (0.5, THRESHOLDS[(num_anchors + count) % 7]):
            anchors = cases.boxes(num_anchors, kind=kind, dtype=dtype)
            labels = cases.labels(10, count, kind=kind, dtype=dtype)
            compare(anchors, labels, iou_threshold=threshold)


@pytest.mark.parametrize("kind", ["grid", "copies"])
def test_equal_overlaps(kind):
    """Anchors and ground truths of the same few boxes: ties everywhere."""
    for _ in cases.rounds(20):
        few = cases.boxes(4, kind=kind)
        anchors = few[torch.randint(0, 4, (30,))]
        box = few[torch.randint(0, 4, (16, 9))]
        labels = torch.cat((torch.randint(-1, 3, (16, 9, 1)).float(), box), dim=2)
        for threshold in THRESHOLDS:
            compare(anchors, labels, iou_threshold=threshold)


def test_equals_reference_across_block_sizes():
    sizes = (1, 15, 16, 17, 255, 256, 257, 1023, 1024, 1025, 5444)
    for num_anchors, kind in itertools.product(sizes, ("uniform", "grid", "odd")):
        anchors = cases.boxes(num_anchors, kind=kind)
        labels = cases.labels(3, 20, kind="grid" if kind == "grid" else "small")
        compare(anchors, labels)
        compare(anchors, labels, iou_threshold=0.0)


def test_equals_reference_on_real_anchors():
    for count in cases.ANCHOR_COUNTS:
        for kind in ("uniform", "small", "grid", "copies"):
            compare(cases.prior_anchors(count), cases.labels(2, 12, kind=kind))


def test_many_ground_truths_want_the_same_anchors():
    """Long chains of taken anchors: every ground truth loses its first choices."""
    anchors = cases.prior_anchors(5444)
    box = torch.tensor([0.3, 0.3, 0.7, 0.7]) + 0.001 * torch.randn(2, 200, 4)
    compare(anchors, torch.cat((torch.zeros(2, 200, 1), box), dim=2))
    same = box[:, :1].expand(2, 150, 4)
    compare(anchors, torch.cat((torch.zeros(2, 150, 1), same), dim=2))
    compare(anchors[:, :100], torch.cat((torch.zeros(2, 150, 1), same), dim=2))


def test_copies_of_few_ground_truths_take_turns():
    """The class of a row is its number, so the result says which copy took which anchor."""
    anchors = cases.prior_anchors(5444)
    few = torch.tensor([0.3, 0.3, 0.7, 0.7]) + 0.001 * torch.randn(4, 4)
    few[3] = few[2] + torch.tensor([1.0, 0, 1, 0])  # of the first 100 anchors it overlaps none
    labels = torch.cat((torch.arange(280.0)[:, None], few[torch.randint(0, 4, (280,))]), dim=1)
    for some, semantics in itertools.product((anchors, anchors[:, :100]), ("d2l", "mxnet")):
        compare(some, labels[None], semantics=semantics)


def test_variances():
    anchors, labels = cases.boxes(60), cases.labels(4, 5)
    for variances in (
        (1, 1, 1, 1),
        (0.3, 0.05, 2, 0.7),
        torch.tensor([0.1, 0.1, 0.2, 0.2]).tolist(),
    ):
        compare(anchors, labels, variances=variances)


def test_dtypes_in_any_mix():
    for first in cases.DTYPES:
        for second in cases.DTYPES:
            compare(cases.boxes(300, dtype=first), cases.labels(3, 6, dtype=second))


def test_layouts():
    anchors, labels = cases.boxes(1, 70), cases.labels(5, 6)
    expected = ssd_ops.multibox_target(anchors, labels)
    views = [(view, labels) for view in cases.odd_layouts(anchors).values()]
    views += [(anchors, view) for view in cases.odd_layouts(labels).values()]
    views += [(anchors[0], labels)]
    for view, rows in views:
        got = ssd_ops.multibox_target(view, rows)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    one = labels[:1].expand(5, 6, 5)
    compare(anchors, one)


def test_nothing_to_match():
    anchors = cases.boxes(9)
    for labels in (
        torch.zeros(3, 0, 5),
        cases.labels(3, 4, padding=1.1),
        torch.full((3, 4, 5), nan),
        torch.full((3, 4, 5), inf),
    ):
        offsets, masks, classes = ssd_ops.multibox_target(anchors, labels)
        assert offsets.shape == masks.shape == (3, 36)
        assert classes.shape == (3, 9)
        assert not offsets.any() and not masks.any() and not classes.any()


def test_empty_batch_and_no_anchors():
    shapes = [t.shape for t in ssd_ops.multibox_target(cases.boxes(9), torch.zeros(0, 4, 5))]
    assert shapes == [(0, 36), (0, 36), (0, 9)]
    for anchors in (torch.zeros(0, 4), torch.zeros(1, 0, 4)):
        shapes = [t.shape for t in ssd_ops.multibox_target(anchors, cases.labels(2, 3))]
        assert shapes == [(2, 0), (2, 0), (2, 0)]


def test_unusable_anchors_match_nothing():
    anchors = torch.tensor(
        [
            [0.5, 0.5, 0.5, 0.5],
            [0, 0, nan, 1],
            [0, 0, inf, 1],
            [1, 1, 0, 0],
            [0, 0, 0, 1],
            [0.2, 0.2, 0.4, 0.4],
        ]
    )
    labels = torch.tensor([[[1.0, 0, 0, 1, 1], [2, 0.5, 0.5, 0.5, 0.5]]])
    for threshold in (0.0, 0.5):
        offsets, masks, classes = ssd_ops.multibox_target(anchors, labels, iou_threshold=threshold)
        assert classes.tolist() == [[0, 0, 0, 0, 0, 2]]
        assert offsets.isfinite().all()
        assert masks.reshape(6, 4).sum(1).tolist() == [0, 0, 0, 0, 0, 4]


def test_a_ground_truth_without_area_is_forced_like_any_other():
    anchors = torch.tensor([[0.0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]])
    labels = torch.tensor([[[3.0, 0.7, 0.7, 0.7, 0.7], [1, 0.0, 0, 0.5, 0.5]]])
    offsets, _, classes = ssd_ops.multibox_target(anchors, labels)
    assert classes.tolist() == [[2, 4]]
    # log(1e-6) / .2, as the book's epsilon has it.
    torch.testing.assert_close(offsets[0, 6:], torch.full((2,), -69.0776), rtol=1e-5, atol=0)


def test_every_ground_truth_has_an_anchor():
    anchors = cases.prior_anchors(5444)
    labels = cases.labels(4, 30, kind="small", padding=0.4)
    labels[..., 0] = torch.where(labels[..., 0] < 0, -1, torch.arange(30).float())
    classes = ssd_ops.multibox_target(anchors, labels, iou_threshold=1.0)[2]
    for image, rows in enumerate(labels):
        wanted = {int(c) + 1 for c in rows[:, 0] if c >= 0}
        found = classes[image][classes[image] > 0].tolist()
        assert set(found) == wanted
        assert len(found) == len(wanted)


def test_matched_offsets_decode_to_the_ground_truth():
    anchors = cases.prior_anchors(5444)
    labels = cases.labels(3, 8, padding=0)
    labels[..., 0] = torch.arange(8).float()
    offsets, _, classes = ssd_ops.multibox_target(anchors, labels)
    boxes = ssd_ops.decode_boxes(offsets.reshape(3, -1, 4), anchors)
    for image in range(3):
        positive = classes[image] > 0
        expected = labels[image, classes[image][positive] - 1, 1:]
        torch.testing.assert_close(boxes[image, positive], expected, rtol=0, atol=1e-4)


def test_batch_is_loop_of_singles():
    anchors, labels = cases.boxes(500), cases.labels(9, 6, kind="grid")
    together = ssd_ops.multibox_target(anchors, labels)
    singles = [ssd_ops.multibox_target(anchors, labels[i : i + 1]) for i in range(9)]
    for got, parts in zip(together, zip(*singles, strict=True), strict=True):
        assert torch.equal(got, torch.cat(parts))


def test_order_of_ground_truths_does_not_matter_in_general_position():
    anchors, labels = cases.boxes(400), cases.labels(6, 9)
    expected = ssd_ops.multibox_target(anchors, labels)
    got = ssd_ops.multibox_target(anchors, labels[:, torch.randperm(9)])
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_order_of_anchors_does_not_matter_in_general_position():
    anchors, labels = cases.boxes(400), cases.labels(6, 9)
    order = torch.randperm(400)
    expected = ssd_ops.multibox_target(anchors, labels)
    got = ssd_ops.multibox_target(anchors[order], labels)
    assert torch.equal(got[2], expected[2][:, order])
    assert torch.equal(got[0].reshape(6, 400, 4), expected[0].reshape(6, 400, 4)[:, order])


@pytest.mark.not_emulated("10,000 ground truths on 100,000 anchors")
def test_a_problem_too_large_for_a_matrix():
    """10,000 x 100,000 IoUs would take 4 GB."""
    anchors = cases.boxes(100_000, kind="small")
    labels = cases.labels(1, 10_000, kind="small", padding=0)
    labels[..., 0] = torch.arange(10_000).float()
    classes = ssd_ops.multibox_target(anchors, labels, iou_threshold=1.0)[2][0]
    found = classes[classes > 0]
    assert len(found) == len(found.unique()) == 10_000


@pytest.mark.slow_emulated
def test_threads_and_runs_agree(threads):
    anchors, labels = cases.prior_anchors(5444), cases.labels(7, 20, kind="grid")
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(ssd_ops.multibox_target(anchors, labels))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def random_inputs(images, num_anchors, num_gts, kind, dtype):
    return cases.boxes(num_anchors, kind=kind, dtype=dtype), cases.labels(
        images, num_gts, kind=kind, dtype=dtype
    )


SEMANTICS = ("d2l", "mxnet", "torchvision")


@pytest.fixture
def same_exp(monkeypatch):
    monkeypatch.setattr(reference, "_exp", cases.library_exp)


@pytest.mark.parametrize("semantics", ["mxnet", "torchvision"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.half], ids=str)
def test_other_semantics_equal_reference(dtype, semantics):
    thresholds = itertools.cycle((0.5, 0.0, 0.3, 1.0, 0.7))
    for kind, num_anchors in itertools.product(cases.KINDS, (1, 2, 17, 100)):
        for num_gts in (0, 1, 4, 20):
            args = random_inputs(3, num_anchors, num_gts, kind, dtype)
            options = {"iou_threshold": next(thresholds), "semantics": semantics}
            compare(*args, **options)


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_mining_equals_reference(same_exp, semantics):
    settings = itertools.cycle(
        (
            {"negative_mining_ratio": 3.0},
            {"negative_mining_ratio": 0.7, "negative_mining_threshold": 0.2, "ignore_label": -7},
            {"negative_mining_ratio": 0.0, "min_negatives": 5},
            {"negative_mining_ratio": 1e30, "negative_mining_threshold": 0.0},
            {"negative_mining_ratio": 1.0, "min_negatives": 2**62, "ignore_label": 9},
        )
    )
    for kind, num_anchors in itertools.product(cases.KINDS, (1, 17, 255, 257)):
        for num_gts, dtype in ((0, torch.float32), (3, torch.float32), (9, torch.float64)):
            args = random_inputs(3, num_anchors, num_gts, kind, dtype)
            # Quarters, so that equal probabilities are common; some NaN and infinite for `odd`.
            logits = cases.scores(3, 4, num_anchors, kind="odd" if kind == "odd" else "ties")
            compare(*args, logits, semantics=semantics, **next(settings))


def test_mining_on_ssd300(same_exp):
    anchors, labels = cases.prior_anchors(8732), cases.labels(2, 8)
    logits = torch.randn(2, 21, 8732)
    for semantics in SEMANTICS:
        compare(anchors, labels, logits, semantics=semantics, negative_mining_ratio=3)


def test_mining_around_the_limit_of_shared_memory(same_exp):
    """Of the emulation, which has 64 KB."""
    for dtype, limit in ((torch.float32, 13_276), (torch.float64, 6_638)):
        for num_anchors in (limit, limit + 1):
            args = random_inputs(2, num_anchors, 3, "uniform", dtype)
            logits = cases.scores(2, 2, num_anchors, kind="ties")
            compare(*args, logits, negative_mining_ratio=2.5)


def test_mxnet_by_hand():
    anchors = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8], [4, 4, 8, 8]]) / 8
    labels = torch.tensor([[[2.0, 0, 0, 4, 2], [1, 20, 20, 24, 24]], [[-1.0] * 5] * 2])
    labels[..., 1:] /= 8
    run = functools.partial(ssd_ops.multibox_target, anchors, labels)
    # IoU 1/2 is not more than 1/2, but the match is forced; what overlaps nothing is left out.
    assert run(semantics="mxnet")[2].tolist() == [[3, 0, 0, 0], [-1] * 4]
    assert run(semantics="torchvision")[2].tolist() == [[2, 0, 0, 0], [0] * 4]
    assert run(semantics="d2l")[2].tolist() == [[3, 2, 0, 0], [0] * 4]
    logits = torch.tensor([[0.0, 1, 2, 0], [0, 0, 0, 3]]).expand(2, 2, 4)
    run = functools.partial(run, logits, semantics="mxnet", negative_mining_ratio=1)
    assert run()[2].tolist() == [[3, -1, -1, 0], [-1] * 4]
    assert run(min_negatives=2, ignore_label=5)[2].tolist() == [[3, 0, 5, 0], [0, 5, 5, 0]]


def test_mxnet_golden_vector():
    """From MXNet's own tests: ratio 3 leaves one candidate for three negatives."""
    targets = ssd_ops.multibox_target(
        golden.MXNET_ANCHORS,
        golden.MXNET_LABELS,
        torch.arange(10.0).reshape(1, 5, 2),
        negative_mining_ratio=3,
        negative_mining_threshold=0.4,
        semantics="mxnet",
    )
    torch.testing.assert_close(targets[0], golden.MXNET_OFFSETS, rtol=0, atol=2e-5)
    assert torch.equal(targets[1], golden.MXNET_MASKS)
    assert torch.equal(targets[2], golden.MXNET_CLASSES)


def test_torchvision_gives_an_anchor_to_the_later_ground_truth():
    anchors = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0.5, 1]])
    labels = torch.tensor([[[3.0, 0, 0, 1, 1], [4, 0, 0, 1, 0.9], [5, 0.2, 0.2, 0.2, 0.8]]])
    offsets, _, classes = ssd_ops.multibox_target(anchors, labels, semantics="torchvision")
    assert classes.tolist() == [[5, 4]]  # 5 has no area, and anchor 1 has 1/2 of gt 0
    assert offsets[0, 6].item() == pytest.approx(math.log(2) / 0.2)


def test_predictions_are_not_read_without_mining():
    anchors, labels = cases.boxes(9), cases.labels(2, 3)
    nothing = torch.full((2, 4, 9), nan)
    with_preds = ssd_ops.multibox_target(anchors, labels, nothing)
    for a, b in zip(with_preds, ssd_ops.multibox_target(anchors, labels), strict=True):
        assert torch.equal(a, b)
