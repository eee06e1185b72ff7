from __future__ import annotations

import itertools
import math

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
            {"coding": "linear", "clip": (0.6, 0.9), "best_class_only": True},
            {"coding": "distance", "clip": False, "best_class_only": True, "topk": 3},
            {"max_log_size": 0.05, "clip": (1.5, 1.2), "score_threshold": 0.0},
        )
    )
    for kind, anchors in itertools.product(cases.KINDS, (1, 17, 63, 64, 65)):
        args = inputs(2, 4, anchors, kind, dtype)
        compare(args, activation=activation, **next(options))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_levels_equal_reference(same_exp, activation):
    options = itertools.cycle(
        (
            {"topk_per_level": 20, "topk": -1},
            {"topk_per_level": 3, "best_class_only": True, "coding": "linear"},
            {"topk_per_level": 9, "class_agnostic": True, "score_threshold": 0.0},
            {"topk_per_level": 40, "max_detections": 1050, "score_threshold": 0.2},
        )
    )
    for kind, dtype in itertools.product(cases.KINDS, (torch.float32, torch.float64)):
        for level_counts in ([130], [90, 0, 39, 1]):
            args = inputs(2, 4, 130, kind, dtype)
            compare(args, activation=activation, level_counts=level_counts, **next(options))


def test_retinanet_of_torchvision():
    """Its `postprocess_detections` as a plain loop, with its settings; in pixels of 200 x 320."""
    image_size, most, classes = (200, 320), math.log(1000 / 16), 7
    level_counts = [3200, 800, 200, 50]
    anchors = 320 * cases.boxes(sum(level_counts), kind="small")
    anchors[:, 1::2] *= 200 / 320
    logits = 3 * torch.randn(2, len(anchors), classes) - 3
    offsets = torch.randn(2, len(anchors), 4) * torch.tensor([0.3, 0.3, 2, 2])
    topk, score_threshold, iou_threshold, count = 300, 0.05, 0.5, 100
    found = ssd_ops.detect(
        logits, offsets, anchors, activation="sigmoid", variances=(1, 1, 1, 1), topk=-1,
        score_threshold=score_threshold, iou_threshold=iou_threshold, max_detections=count,
        clip=image_size, max_log_size=most, level_counts=level_counts, topk_per_level=topk,
    )  # fmt: skip
    for image in range(2):
        boxes, scores, labels, indices = [], [], [], []
        first = 0
        for size in level_counts:
            score = logits[image, first : first + size].sigmoid().flatten()
            over = (score > score_threshold).nonzero().flatten()
            score, order = score[over].topk(min(topk, len(over)))
            anchor = first + over[order] // classes
            box, (dx, dy, dw, dh) = anchors[anchor], offsets[image, anchor].unbind(1)
            w, h = (box[:, 2:] - box[:, :2]).unbind(1)
            x, y = box[:, 0] + 0.5 * w + dx * w, box[:, 1] + 0.5 * h + dy * h
            w, h = dw.clamp(max=most).exp() * w, dh.clamp(max=most).exp() * h
            x, y = torch.stack((x - 0.5 * w, x + 0.5 * w)), torch.stack((y - 0.5 * h, y + 0.5 * h))
            x, y = x.clamp(0, image_size[1]), y.clamp(0, image_size[0])
            boxes.append(torch.stack((x[0], y[0], x[1], y[1]), dim=1))
            scores.append(score)
            labels.append(over[order] % classes)
            indices.append(anchor)
            first += size
        box, label = torch.cat(boxes), torch.cat(labels)
        assert len(box) < (torch.sigmoid(logits[image]) > score_threshold).sum()  # levels were cut
        kept = reference.batched_nms(box, torch.cat(scores), label, iou_threshold)[:count]
        assert len(kept) == found.counts[image] == count
        assert torch.equal(found.labels[image], label[kept])
        assert torch.equal(found.indices[image], torch.cat(indices)[kept])
        torch.testing.assert_close(found.scores[image], torch.cat(scores)[kept])
        torch.testing.assert_close(found.boxes[image], box[kept], rtol=1e-5, atol=1e-3)


def test_blazeface():
    """Of raw outputs to boxes, before its weighted NMS: raw scores cut to +-100, sigmoid, 0.75 and more."""
    anchors = torch.rand(896, 2).repeat(1, 2) + torch.tensor([-0.5, -0.5, 0.5, 0.5])
    raw_boxes, raw_scores = 30 * torch.randn(2, 896, 4), 100 * torch.randn(2, 896, 1)
    raw_scores[0, 0], raw_scores[1, 1] = -3e38, 3e38
    found = ssd_ops.detect(
        raw_scores.clamp(-100, 100), raw_boxes, anchors, activation="sigmoid", coding="linear",
        variances=(1 / 128,) * 4, clip=False, score_threshold=0.75, iou_threshold=1.0, topk=-1,
        max_detections=896,
    )  # fmt: skip
    center = (anchors[:, :2] + anchors[:, 2:]) / 2
    xy, wh = raw_boxes[..., :2] / 128 + center, raw_boxes[..., 2:] / 128
    boxes = torch.cat((xy - wh / 2, xy + wh / 2), dim=2)
    scores = raw_scores.clamp(-100, 100).sigmoid()[..., 0]
    for image in range(2):
        count = int(found.counts[image])
        assert count == int((scores[image] >= 0.75).sum()) > 100
        rows = found.indices[image, :count]
        torch.testing.assert_close(
            found.boxes[image, :count], boxes[image, rows], rtol=0, atol=1e-6
        )
        torch.testing.assert_close(found.scores[image, :count], scores[image, rows])


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
    for activation, best_class_only in itertools.product(("softmax", "sigmoid"), (False, True)):
        compare(args, activation=activation, score_threshold=0.0, best_class_only=best_class_only)


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
