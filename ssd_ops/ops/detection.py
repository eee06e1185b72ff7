"""From scores and boxes of a batch to its detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssd_ops.ops import _vmap
from ssd_ops.ops._arguments import (
    SEMANTICS,
    VARIANCES,
    as_choice,
    as_fraction,
    as_max_detections,
    as_topk,
    as_variances,
    check_tensors,
    real_dtype,
)

__all__ = ["Detections", "detect", "multibox_detection", "multiclass_nms"]


ACTIVATION = {"none": 0, "softmax": 1, "sigmoid": 2}


class Detections(NamedTuple):
    """What `detect` and `multiclass_nms` find in B images, K places each, best first.

    Image b has found ``counts[b]``; the places after them hold 0, 0, -1 and -1.
    """

    boxes: Tensor  # [B, K, 4] xyxy
    scores: Tensor  # [B, K]
    labels: Tensor  # [B, K] int64, the class from 0
    indices: Tensor  # [B, K] int64, which anchor or box it was
    counts: Tensor  # [B] int64


def multiclass_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    topk: int = 400,
    max_detections: int = 100,
    class_agnostic: bool = False,
) -> Detections:
    """The best boxes of each image after NMS within each class, with sizes that no value changes.

    Args:
        boxes: ``[B, N, 4]`` xyxy, any unit, shared by all classes.
        scores: ``[B, N, C]``, without background.
        score_threshold: 0..1, rounded to the dtype of the arithmetic. Every pair of box and class with
            a higher score is a candidate.
        iou_threshold: 0..1. A candidate is dropped if its IoU with a kept one before it is greater.
        topk: So many candidates of each class, the highest scores, go into NMS; -1: all.
        max_detections: K: so many of an image are returned.
        class_agnostic: Compare boxes of all classes in NMS, not of one class only.

    Returns:
        `Detections` of K places for each image, by score; equal scores by class, then by box. A NaN score
        is never a candidate; a box without area, or with a NaN corner, overlaps nothing. Nothing is
        read on the host.

    Raises:
        TypeError, ValueError: a threshold or a number is none.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        The post-processing of torchvision's SSD and Faster R-CNN.

    Example:
        >>> boxes = torch.tensor([[[0., 0., 2., 2.], [0., 0., 2., 1.9], [5., 5., 6., 6.]]])
        >>> scores = torch.tensor([[[0.8, 0.1], [0.9, 0.0], [0.0, 0.7]]])
        >>> found = multiclass_nms(boxes, scores, max_detections=4)
        >>> found.indices, found.labels, found.counts
        (tensor([[ 1,  2,  0, -1]]), tensor([[ 0,  1,  1, -1]]), tensor([3]))
    """
    op = "multiclass_nms"
    check_tensors(op, boxes=boxes, scores=scores)
    return Detections(
        *torch.ops.ssd_ops.multiclass_nms(
            boxes,
            scores,
            as_fraction(op, "score_threshold", score_threshold),
            as_fraction(op, "iou_threshold", iou_threshold),
            as_topk(op, topk),
            as_max_detections(op, max_detections),
            bool(class_agnostic),
        )
    )


def _fake_detections(
    like: Tensor, num_images: int, count: int, real: torch.dtype
) -> tuple[Tensor, ...]:
    return (
        like.new_empty((num_images, count, 4), dtype=real),
        like.new_empty((num_images, count), dtype=real),
        like.new_empty((num_images, count), dtype=torch.int64),
        like.new_empty((num_images, count), dtype=torch.int64),
        like.new_empty((num_images,), dtype=torch.int64),
    )


@torch.library.register_fake("ssd_ops::multiclass_nms")
def _(
    boxes: Tensor,
    scores: Tensor,
    score_threshold: float,
    iou_threshold: float,
    topk: int,
    max_detections: int,
    class_agnostic: bool,
) -> tuple[Tensor, ...]:
    return _fake_detections(boxes, boxes.shape[0], max_detections, real_dtype(boxes, scores))


def multibox_detection(
    cls_probs: Tensor,
    offset_preds: Tensor,
    anchors: Tensor,
    nms_threshold: float = 0.5,
    pos_threshold: float = 0.009999999,
    *,
    variances: Sequence[float] = VARIANCES,
    clip: bool | None = None,
    class_agnostic: bool | None = None,
    topk: int = -1,
    semantics: str = "d2l",
) -> Tensor:
    """Detections of a batch of images, one row for every anchor.

    Each anchor has its best class that is not the background (the first on ties). ``"d2l"``: greedy NMS
    over all anchors of an image, whatever their class, drops a box whose IoU with a kept one is greater
    than `nms_threshold`; then scores are held against `pos_threshold`. ``"mxnet"``: only scores of at
    least `pos_threshold` enter, and NMS within each class drops at `nms_threshold` or more.

    Args:
        cls_probs: ``[B, C + 1, A]`` probabilities, the background first. NaN counts as 0.
        offset_preds: ``[B, 4A]`` as `multibox_target` encodes them.
        anchors: ``[1, A, 4]`` or ``[A, 4]`` xyxy.
        nms_threshold: 0..1, rounded to the dtype of the arithmetic.
        pos_threshold: 0..1: a lower score makes a row background.
        variances: What the offsets were divided by.
        clip: Cut the boxes to 0..1. None, the default: only with ``"mxnet"``.
        class_agnostic: Compare boxes of all classes in NMS. None, the default: only with ``"d2l"``.
        topk: So many of an image, the highest scores, go into NMS; -1, the default: all.
        semantics: ``"d2l"``, the rules of "Dive into Deep Learning", or ``"mxnet"``, those of MXNet. For
            torchvision's there is `detect`.

    Returns:
        ``[B, A, 6]`` rows (class, score, x1, y1, x2, y2); take those of class >= 0. ``"d2l"``: the kept
        ones by score (equal scores by anchor), then the others by anchor with class -1. A kept row with a
        score below `pos_threshold` has class -1 too, and every such row the score ``1 - score``.
        ``"mxnet"``: the anchors that entered NMS by score, those it dropped with class -1 in their
        places; then -1 everywhere. `topk` and an `nms_threshold` of 0 leave what MXNet leaves: see
        csrc/detection/multibox_detection.h.

    Raises:
        TypeError, ValueError: a threshold, variance, number or the semantics is none.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        Drop-in for the book's `multibox_detection` (14.4); MXNet 1.9's MultiBoxDetection on the CPU.

    Example:
        >>> anchors = torch.tensor([[[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.48]]])
        >>> cls_probs = torch.tensor([[[0.1, 0.3], [0.9, 0.7]]])
        >>> multibox_detection(cls_probs, torch.zeros(1, 8), anchors)
        tensor([[[ 0.0000,  0.9000,  0.1000,  0.1000,  0.5000,  0.5000],
                 [-1.0000,  0.7000,  0.1000,  0.1000,  0.5000,  0.4800]]])
    """
    op = "multibox_detection"
    check_tensors(op, cls_probs=cls_probs, offset_preds=offset_preds, anchors=anchors)
    if semantics == "torchvision":
        raise ValueError(f"{op}: semantics must be 'd2l' or 'mxnet'; for 'torchvision' use detect")
    mode = as_choice(op, "semantics", semantics, SEMANTICS)
    return torch.ops.ssd_ops.multibox_detection(
        cls_probs,
        offset_preds,
        anchors,
        as_fraction(op, "nms_threshold", nms_threshold),
        as_fraction(op, "pos_threshold", pos_threshold),
        as_variances(op, variances),
        semantics == "mxnet" if clip is None else bool(clip),
        semantics == "d2l" if class_agnostic is None else bool(class_agnostic),
        as_topk(op, topk),
        mode,
    )


@torch.library.register_fake("ssd_ops::multibox_detection")
def _(cls_probs: Tensor, offset_preds: Tensor, anchors: Tensor, *_settings: Any) -> Tensor:
    real = real_dtype(cls_probs, offset_preds, anchors)
    return cls_probs.new_empty((cls_probs.shape[0], cls_probs.shape[2], 6), dtype=real)


def detect(
    cls_scores: Tensor,
    offset_preds: Tensor,
    anchors: Tensor,
    *,
    activation: str = "softmax",
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    topk: int = 400,
    max_detections: int = 200,
    variances: Sequence[float] = VARIANCES,
    clip: bool = True,
    class_agnostic: bool = False,
) -> Detections:
    """From the heads of a detector to its boxes: activation, decoding and NMS of a batch in one call.

    Every class of an anchor whose score is above the threshold is a candidate, only candidates are
    decoded, and NMS runs within each class, as in SSD and RetinaNet. All sizes follow from the shapes
    and `max_detections`; nothing is read on the host.

    Args:
        cls_scores: ``[B, A, C + 1]`` logits, the background first, with ``activation="softmax"``, or
            ``[B, A, C]``.
        offset_preds: ``[B, A, 4]`` or ``[B, 4A]``, as `encode_boxes` makes them.
        anchors: ``[1, A, 4]`` or ``[A, 4]`` xyxy.
        activation: ``"softmax"`` over the classes, ``"sigmoid"`` of each, or ``"none"``.
        score_threshold: 0..1, rounded to the dtype of the arithmetic; a candidate's score is higher.
        iou_threshold: 0..1. A candidate is dropped if its IoU with a kept one before it is greater.
        topk: So many candidates of each class, the highest scores, go into NMS; -1: all.
        max_detections: K: so many of an image are returned.
        variances: What the offsets were divided by.
        clip: Cut the boxes to 0..1, before NMS. On by default.
        class_agnostic: Compare boxes of all classes in NMS, not of one class only.

    Returns:
        `Detections` of K places for each image, by score; equal scores by class, then by anchor. Labels
        count from 0 without the background. An anchor with a NaN score is left out.

    Raises:
        TypeError, ValueError: a threshold, variance, number or the activation is none.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        SSD (arXiv:1512.02325) 3.1 and the `postprocess_detections` of torchvision's SSD.

    Example:
        >>> anchors = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.48]])
        >>> found = detect(torch.tensor([[[0., 3.], [0., 2.]]]), torch.zeros(1, 2, 4), anchors)
        >>> found.counts, found.labels[0, :2], found.scores[0, :2]
        (tensor([1]), tensor([ 0, -1]), tensor([0.9526, 0.0000]))
    """
    op = "detect"
    check_tensors(op, cls_scores=cls_scores, offset_preds=offset_preds, anchors=anchors)
    return Detections(
        *torch.ops.ssd_ops.detect(
            cls_scores,
            offset_preds,
            anchors,
            as_choice(op, "activation", activation, ACTIVATION),
            as_fraction(op, "score_threshold", score_threshold),
            as_fraction(op, "iou_threshold", iou_threshold),
            as_topk(op, topk),
            as_max_detections(op, max_detections),
            as_variances(op, variances),
            bool(clip),
            bool(class_agnostic),
        )
    )


@torch.library.register_fake("ssd_ops::detect")
def _(
    cls_scores: Tensor,
    offset_preds: Tensor,
    anchors: Tensor,
    activation: int,
    score_threshold: float,
    iou_threshold: float,
    topk: int,
    max_detections: int,
    *_settings: Any,
) -> tuple[Tensor, ...]:
    real = real_dtype(cls_scores, offset_preds, anchors)
    return _fake_detections(cls_scores, cls_scores.shape[0], max_detections, real)


_vmap.register_images("multiclass_nms")
