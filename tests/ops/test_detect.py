from __future__ import annotations

import itertools

import cases
import pytest
import torch
from test_multiclass_nms import same

import ssd_ops
from ssd_ops import reference

pytestmark = pytest.mark.usefixtures("backend")

nan, inf = float("nan"), float("inf")
ACTIVATIONS = ("softmax", "sigmoid", "none")


def detect_inputs(images, size, dtype):
    logits = torch.randn(images, size, 3).to(dtype)
    return logits, torch.randn(images, size, 4).to(dtype), cases.boxes(1, size, dtype=dtype)


def detect(*args, **options) -> tuple:
    """The op with its results as a plain tuple, which every backend can move."""
    return tuple(ssd_ops.detect(*args, **options))


@pytest.fixture
def same_exp(monkeypatch):
    monkeypatch.setattr(reference, "_exp", cases.library_exp)


def compare(args, **options):
    assert same(detect(*args, **options), reference.detect(*args, **options)), options


def inputs(images, classes, anchors, kind, dtype=torch.float32):
    """Logits of which some are NaN or infinite for `odd`; half of the offsets are zero."""
    logits = 3 * cases.scores(images, anchors, classes, kind=kind)
    logits = logits + torch.randn(images, 1, 1) * (kind == "uniform")
    offsets = 0.5 * torch.randn(images, anchors, 4) * (torch.rand(images, 1, 1) < 0.5)
    return logits.to(dtype), offsets.to(dtype), cases.boxes(anchors, kind=kind, dtype=dtype)


def test_by_hand():
    anchors = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.48], [0.6, 0.6, 1.2, 0.9]])
    logits = torch.tensor([[[0.0, 2, 1], [0, 3, 0], [0, 0, 2]]])
    found = ssd_ops.detect(
        logits, torch.zeros(1, 12), anchors, score_threshold=0.2, max_detections=5
    )
    scores = logits[0].softmax(1)
    assert isinstance(found, ssd_ops.Detections)
    assert found.labels.tolist() == [[0, 1, 1, -1, -1]]
    assert found.indices.tolist() == [[1, 2, 0, -1, -1]]
    torch.testing.assert_close(found.scores[0, :3], scores[[1, 2, 0], [1, 2, 2]])
    torch.testing.assert_close(found.boxes[0, 1], torch.tensor([0.6, 0.6, 1.0, 0.9]))
    assert found.counts.tolist() == [3]
    # Class 1 has boxes 2 and 0; half of box 2 lies in box 0 once it is moved there, a fifth of their union.
    anchors[2] = torch.tensor([0.4, 0.2, 0.6, 0.4])
    for metric, indices in (("iou", [1, 2, 0]), ("ios", [1, 2])):
        found = ssd_ops.detect(
            logits, torch.zeros(1, 12), anchors, score_threshold=0.2, metric=metric
        )
        assert found.indices[0, : found.counts[0]].tolist() == indices


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_equals_reference(same_exp, dtype, activation):
    options = itertools.cycle(
        (
            {},
            {"topk": 4, "max_detections": 9, "clip": False},
            {"class_agnostic": True, "iou_threshold": 0.2, "score_threshold": 0.0},
            {"score_threshold": 0.6, "variances": (1, 1, 1, 1)},
            {"score_threshold": 0.999999, "topk": -1},
            {"score_threshold": 1.0},
            {"metric": "ios", "iou_threshold": 0.6, "score_threshold": 0.0},
        )
    )
    for kind, anchors in itertools.product(cases.KINDS, (1, 17, 63, 64, 65)):
        args = inputs(2, 4, anchors, kind, dtype)
        compare(args, activation=activation, **next(options))


def test_equals_reference_on_ssd300(same_exp):
    anchors = cases.prior_anchors(8732)
    logits, offsets = torch.randn(1, 8732, 5), 0.3 * torch.randn(1, 8732, 4)
    logits[..., 0] += 6  # as trained: nearly all is background
    for args in ((logits, offsets, anchors), (logits * 0.1, offsets, anchors)):
        compare(args, score_threshold=0.05, max_detections=50)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_scores_are_those_of_torch(activation):
    """With torch's own activations; in general position, so that no bit decides."""
    logits, offsets, anchors = inputs(2, 6, 300, "uniform")
    got = ssd_ops.detect(
        logits, offsets, anchors, activation=activation, iou_threshold=1.0, topk=-1
    )
    own = {
        "softmax": lambda x: x.softmax(2)[..., 1:],
        "sigmoid": torch.sigmoid,
        "none": lambda x: x,
    }
    scores = own[activation](logits).flatten(1).sort(descending=True).values[:, :200]
    scores = scores.where(scores > 0.01, 0)  # the default threshold
    torch.testing.assert_close(got.scores, scores, rtol=2e-6, atol=0)


def test_large_logits(same_exp):
    logits = torch.tensor(
        [[[1e4, -1e4, 90.0], [-1e4, 1e4, 1e4], [inf, 0, 0], [0, nan, 0], [0, -inf, 1]]]
    )
    args = logits, torch.zeros(1, 5, 4), cases.boxes(5)
    for activation in ("softmax", "sigmoid"):
        compare(args, activation=activation, score_threshold=0.0)


def test_it_is_multiclass_nms_of_decoded_boxes():
    logits, offsets, anchors = inputs(3, 4, 200, "uniform")
    boxes = ssd_ops.decode_boxes(offsets, anchors, clip=True)
    settings = {"score_threshold": 0.3, "iou_threshold": 0.4, "topk": 50, "max_detections": 30}
    got = ssd_ops.detect(logits, offsets, anchors, activation="none", **settings)
    assert same(got, ssd_ops.multiclass_nms(boxes, logits, **settings))
    flat = ssd_ops.detect(logits, offsets.flatten(1), anchors[None], activation="none", **settings)
    assert same(got, flat)


def test_it_finds_what_multibox_detection_finds():
    """One class and one threshold: the book's rows above it are these detections."""
    anchors = cases.prior_anchors(5444)
    probs, offsets = cases.detection(2, 1, 5444)
    found = ssd_ops.detect(
        probs[:, 1:].mT, offsets, anchors, activation="none", clip=False, topk=-1,
        score_threshold=0.55, iou_threshold=0.5, max_detections=5444,
    )  # fmt: skip
    rows = ssd_ops.multibox_detection(probs, offsets, anchors, 0.5, 0.55)
    for image in range(2):
        count = int(found.counts[image])
        assert count == int((rows[image, :, 0] >= 0).sum()) > 100
        assert torch.equal(found.boxes[image, :count], rows[image, :count, 2:])
        assert torch.equal(found.scores[image, :count], rows[image, :count, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_empty(dtype):
    for images, anchors in ((0, 5), (2, 0)):
        shapes = (images, anchors, 3), (images, anchors, 4), (anchors, 4)
        got = ssd_ops.detect(*(torch.rand(shape, dtype=dtype) for shape in shapes))
        assert got.boxes.shape == (images, 200, 4) and got.counts.eq(0).all()
        assert got.labels.eq(-1).all() and got.boxes.eq(0).all()


def test_layouts_and_dtypes(same_exp):
    args = inputs(2, 3, 70, "uniform")
    expected = ssd_ops.detect(*args)
    for place, argument in enumerate(args):
        for name, view in cases.odd_layouts(argument).items():
            views = [*args[:place], view, *args[place + 1 :]]
            assert same(ssd_ops.detect(*views), expected), name
    for dtypes in itertools.product(cases.DTYPES, repeat=3):
        compare([t.to(dtype) for t, dtype in zip(args, dtypes, strict=True)])


@pytest.mark.slow_emulated
def test_threads_and_runs_agree(threads):
    args = (torch.randn(5, 5444, 3), torch.randn(5, 5444, 4), cases.prior_anchors(5444))
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(ssd_ops.detect(*args))
    assert same(results[0], results[1]) and same(results[1], results[2])
