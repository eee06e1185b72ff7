from __future__ import annotations

import itertools

import cases
import golden
import pytest
import torch

import ssd_ops
from ssd_ops import reference

pytestmark = pytest.mark.usefixtures("backend")

nan, inf = float("nan"), float("inf")
THRESHOLDS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)


def multibox_detection_inputs(images, size, dtype):
    probs, offsets = torch.rand(images, 3, size), torch.randn(images, 4 * size)
    return probs.to(dtype), offsets.to(dtype), cases.boxes(1, size, dtype=dtype)


@pytest.fixture
def same_exp(monkeypatch):
    monkeypatch.setattr(reference, "_exp", cases.library_exp)


def compare(inputs, *args, **options):
    got = ssd_ops.multibox_detection(*inputs, *args, **options)
    expected = reference.multibox_detection(*inputs, *args, **options)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    assert torch.equal(got.nan_to_num(nan=1e9), expected.nan_to_num(nan=1e9))


def random_inputs(images, classes, anchors, kind, dtype=torch.float32):
    """Anchors of the kind; half of the offsets are zero, so that its ties remain."""
    probs = cases.scores(images, classes + 1, anchors, kind=kind, dtype=dtype)
    offsets = 0.5 * torch.randn(images, 4 * anchors) * (torch.rand(images, 1) < 0.5)
    return probs, offsets.to(dtype), cases.boxes(anchors, kind=kind, dtype=dtype)


def test_the_book():
    rows = ssd_ops.multibox_detection(
        golden.BOOK_PROBS, torch.zeros(1, 16), golden.BOOK_DETECTION_ANCHORS, nms_threshold=0.5
    )
    torch.testing.assert_close(rows, golden.BOOK_DETECTIONS)


def test_by_hand():
    anchors = torch.tensor([[0.0, 0, 0.1, 0.1], [0.5, 0.5, 0.6, 0.6], [0.5, 0.5, 0.6, 0.61]])
    probs = torch.tensor([[[0.8, 0.1, 0.2], [0.1, 0.2, 0.7], [0.2, 0.9, 0.7]]])
    rows = ssd_ops.multibox_detection(probs, torch.zeros(1, 12), anchors, pos_threshold=0.5)
    # Anchor 0 is kept, but 0.2 < 0.5 makes it background; anchor 2 falls to anchor 1.
    expected = torch.tensor([[1, 0.9], [-1, 0.8], [-1, 0.7]])
    torch.testing.assert_close(rows[0, :, :2], expected)


def test_positional_thresholds():
    inputs = random_inputs(1, 2, 50, "uniform")
    assert torch.equal(
        ssd_ops.multibox_detection(*inputs, 0.3, 0.6),
        ssd_ops.multibox_detection(*inputs, nms_threshold=0.3, pos_threshold=0.6),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_matches_the_reference_alone(dtype):
    """With torch's exp in the reference; boxes in general position, so no bit decides."""
    inputs = random_inputs(6, 3, 120, "uniform", dtype)
    torch.testing.assert_close(
        ssd_ops.multibox_detection(*inputs),
        reference.multibox_detection(*inputs),
        rtol=0,
        atol=1e-5,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equals_reference(same_exp, dtype):
    for kind, anchors in itertools.product(cases.KINDS, (1, 2, 15, 16, 17, 40)):
        for classes, threshold in ((1, 0.5), (3, THRESHOLDS[anchors % 7])):
            inputs = random_inputs(10, classes, anchors, kind, dtype)
            compare(inputs, threshold, 0.3)


@pytest.mark.parametrize("nms_threshold", THRESHOLDS)
def test_thresholds(same_exp, nms_threshold):
    for kind in ("grid", "copies", "chain"):
        inputs = random_inputs(4, 2, 30, kind)
        for pos_threshold in (0.0, 0.25, 0.5, 1.0):
            compare(inputs, nms_threshold, pos_threshold)


def test_thresholds_are_rounded_to_the_dtype(same_exp):
    # An IoU of fl(1/3) is not over a threshold of 1/3 rounded alike, a score of fl(.1) not below.
    anchors = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2]])
    probs = torch.tensor([[[0.0, 0.0], [0.9, 0.1]]])
    for dtype in (torch.float32, torch.float64):
        inputs = probs.to(dtype), torch.zeros(1, 8), anchors
        compare(inputs, 1 / 3, 0.1)
    rows = ssd_ops.multibox_detection(probs, torch.zeros(1, 8), anchors, 1 / 3, 0.1)
    assert rows[0, :, 0].tolist() == [0, 0]


def test_equals_reference_at_block_sizes(same_exp):
    for anchors in (255, 256, 257, 1023, 1024, 1025):
        compare(random_inputs(2, 2, anchors, "uniform"))


def test_equals_reference_on_tiny_ssd(same_exp):
    for classes in (1, 4):
        inputs = (*cases.detection(1, classes, 5444), cases.prior_anchors(5444))
        compare(inputs)


def test_dtypes_in_any_mix(same_exp):
    for first in cases.DTYPES:
        for second in cases.DTYPES:
            for third in cases.DTYPES:
                probs, offsets, anchors = random_inputs(1, 2, 20, "uniform")
                compare((probs.to(first), offsets.to(second), anchors.to(third)))


def test_nan_and_infinite_probabilities(same_exp):
    anchors = cases.boxes(5)
    probs = torch.tensor([[[0] * 5, [nan, nan, 0.5, inf, -inf], [0.2, nan, nan, 0.1, -1.0]]])
    rows = ssd_ops.multibox_detection(probs, torch.zeros(1, 20), anchors, 1.0)
    assert rows[0, :, 0].tolist() == [0, 0, 1, -1, -1]
    assert rows[0, :3, 1].tolist() == [inf, 0.5, pytest.approx(0.2)]
    compare((probs, torch.zeros(1, 20), anchors), 1.0)


def test_offsets_without_bound(same_exp):
    offsets = torch.tensor([[nan, inf, -inf, 1e30, 0, 0, 500, 500, 0, 0, -500, -500, 1, 1, 1, 1]])
    inputs = torch.rand(1, 2, 4), offsets, cases.boxes(4)
    compare(inputs)


def test_layouts():
    probs, offsets, anchors = random_inputs(3, 2, 40, "uniform")
    expected = ssd_ops.multibox_detection(probs, offsets, anchors)
    calls = [(view, offsets, anchors) for view in cases.odd_layouts(probs).values()]
    calls += [(probs, view, anchors) for view in cases.odd_layouts(offsets).values()]
    calls += [(probs, offsets, view) for view in cases.odd_layouts(anchors).values()]
    calls += [(probs, offsets, anchors[None])]
    for call in calls:
        assert torch.equal(ssd_ops.multibox_detection(*call), expected)
    # As the chapter makes them: scores [B, A, C + 1] are softmaxed, then permuted.
    channels = probs.permute(0, 2, 1).contiguous().permute(0, 2, 1)
    assert torch.equal(ssd_ops.multibox_detection(channels, offsets, anchors), expected)


def test_rows_are_every_anchor_once():
    probs, offsets, anchors = random_inputs(5, 3, 200, "uniform")
    rows = ssd_ops.multibox_detection(probs, offsets, anchors, pos_threshold=0.0)
    boxes = ssd_ops.decode_boxes(offsets.reshape(5, 200, 4), anchors)
    for image in range(5):
        assert torch.equal(rows[image, :, 2:].sort(dim=0).values, boxes[image].sort(dim=0).values)
        kept = rows[image, rows[image, :, 0] >= 0]
        assert (kept[:, 1].diff() <= 0).all()
        overlap = ssd_ops.box_iou(kept[:, 2:], kept[:, 2:]).fill_diagonal_(0)
        assert (overlap <= 0.5).all()


def test_agrees_with_nms():
    probs, offsets, anchors = random_inputs(4, 1, 300, "uniform")
    rows = ssd_ops.multibox_detection(probs, offsets, anchors, 0.5, 0.0)
    boxes = ssd_ops.decode_boxes(offsets.reshape(4, 300, 4), anchors)
    for image in range(4):
        kept = ssd_ops.nms(boxes[image], probs[image, 1], 0.5)
        assert torch.equal(rows[image, : len(kept), 2:], boxes[image][kept])
        assert (rows[image, len(kept) :, 0] == -1).all()


def test_batch_is_loop_of_singles():
    probs, offsets, anchors = random_inputs(6, 2, 150, "grid")
    together = ssd_ops.multibox_detection(probs, offsets, anchors)
    singles = [
        ssd_ops.multibox_detection(probs[i : i + 1], offsets[i : i + 1], anchors) for i in range(6)
    ]
    assert torch.equal(together, torch.cat(singles))


def test_empty():
    for images, anchors in ((0, 5), (3, 0), (0, 0)):
        rows = ssd_ops.multibox_detection(
            torch.zeros(images, 2, anchors),
            torch.zeros(images, 4 * anchors),
            torch.zeros(anchors, 4),
        )
        assert rows.shape == (images, anchors, 6)


@pytest.mark.slow_emulated
def test_threads_and_runs_agree(threads):
    inputs = (*cases.detection(5, 2, 5444), cases.prior_anchors(5444))
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(ssd_ops.multibox_detection(*inputs))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


MXNET_OPTIONS = (
    {},
    {"class_agnostic": True},
    {"topk": 5},
    {"topk": 1, "clip": False},
    {"topk": 10**6},
)


@pytest.mark.parametrize("options", MXNET_OPTIONS, ids=str)
def test_mxnet_equals_reference(same_exp, options):
    for kind, anchors in itertools.product(cases.KINDS, (1, 2, 16, 40)):
        for classes, threshold in ((1, 0.5), (3, THRESHOLDS[anchors % 7]), (3, 0.0), (2, 1.0)):
            inputs = random_inputs(4, classes, anchors, kind)
            compare(inputs, threshold, 0.3, semantics="mxnet", **options)


@pytest.mark.parametrize(
    "options", [{"class_agnostic": False}, {"topk": 5}, {"clip": True, "topk": 300}], ids=str
)
def test_d2l_options_equal_reference(same_exp, options):
    for kind, anchors in itertools.product(cases.KINDS, (1, 2, 16, 40)):
        inputs = random_inputs(4, 3, anchors, kind)
        compare(inputs, 0.4, 0.3, **options)


def test_mxnet_by_hand():
    """The rows that MXNet 1.9.1 gives: NMS stops at the topk, whose rest it leaves in anchor order."""
    left = torch.arange(8.0)[:, None] / 10
    anchors = torch.cat((left, left, left + 0.1, left + 0.1), dim=1)
    scores = torch.tensor([0.3, 0.9, 0.5, 0.1, 0.7, 0.6, 0.2, 0.8])
    probs = torch.stack((1 - scores, scores))[None]
    args = probs, torch.zeros(1, 32), anchors
    rows = ssd_ops.multibox_detection(*args, 0.5, 0.25, topk=3, semantics="mxnet")[0]
    assert rows[:, 0].tolist() == [0, 0, 0, -1, -1, -1, -1, -1]
    expected = torch.tensor([0.9, 0.8, 0.7, 0.7, 0.6, 0.8, -1, -1])
    assert torch.equal(rows[:, 1], expected)
    torch.testing.assert_close(rows[:6, 2:], anchors[[1, 7, 4, 4, 5, 7]])
    assert rows[6:].eq(-1).all()
    rows = ssd_ops.multibox_detection(*args, 0.0, 0.25, topk=3, semantics="mxnet")[0]
    assert torch.equal(rows[:6, 1], scores[[0, 1, 2, 4, 5, 7]])
    assert rows[:, 0].tolist() == [0] * 6 + [-1] * 2


def test_mxnet_suppresses_at_the_threshold_itself():
    anchors = torch.tensor([[0.0, 0, 0.5, 0.5], [0, 0, 0.5, 0.25], [0, 0, 0.5, 0.5]])
    probs = torch.tensor([[[0.1, 0.1, 0.1], [0.9, 0.8, 0.1], [0.0, 0.0, 0.7]]])
    args = probs, torch.zeros(1, 12), anchors
    rows = ssd_ops.multibox_detection(*args, 0.5, semantics="mxnet")[0]
    assert rows[:, 0].tolist() == [0, -1, 1]  # another class is no rival
    assert ssd_ops.multibox_detection(*args, 0.51, semantics="mxnet")[0, :, 0].tolist() == [0, 0, 1]
    assert ssd_ops.multibox_detection(*args, 0.5)[0, :, 0].tolist() == [0, 0, -1]


def test_mxnet_nan_is_never_the_best():
    probs = torch.tensor([[[0.5, 0.5, 0.5], [nan, nan, -1.0], [0.2, nan, -1.0]]])
    anchors = cases.boxes(3)
    rows = ssd_ops.multibox_detection(
        probs, torch.zeros(1, 12), anchors, 0.5, 0.0, semantics="mxnet"
    )
    assert rows[0, :, 0].tolist() == [1, -1, -1]
    assert rows[0, 1:].eq(-1).all()
