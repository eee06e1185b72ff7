"""Detections of a batch, from its scores and its boxes or offsets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssd_ops.ops import _vmap
from ssd_ops.ops._arguments import (
    CODING,
    METRIC,
    SEMANTICS,
    VARIANCES,
    as_choice,
    as_clip,
    as_fraction,
    as_iou_threshold,
    as_levels,
    as_max_detections,
    as_max_log_size,
    as_topk,
    as_variances,
    check_tensors,
    real_dtype,
)

__all__ = ["Detections", "detect", "multibox_detection", "multiclass_nms"]


ACTIVATION = {"none": 0, "softmax": 1, "sigmoid": 2}


class Detections(NamedTuple):
    """The detections of B images, with K rows for each image, highest score first.

    The first ``counts[b]`` rows of image b are detections. The other rows are padding: boxes and scores
    are 0, labels and indices are -1.
    """

    boxes: Tensor  # [B, K, 4] xyxy
    scores: Tensor  # [B, K]
    labels: Tensor  # [B, K] int64, class from 0, without background
    indices: Tensor  # [B, K] int64, index of the anchor or input box
    counts: Tensor  # [B] int64, number of detections


def multiclass_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    topk: int = 400,
    max_detections: int = 100,
    class_agnostic: bool = False,
    metric: str = "iou",
    best_class_only: bool = False,
    level_counts: Sequence[int] | None = None,
    topk_per_level: int | None = None,
) -> Detections:
    """NMS within each class, for a batch: the best detections of each image, padded to a fixed size.

    Args:
        boxes: ``[B, N, 4]`` xyxy, in any unit. A box is the same for all classes.
        scores: ``[B, N, C]``, without background.
        score_threshold: 0..1, rounded to the dtype of the arithmetic. Every pair of a box and a class with
            a score above it is a candidate.
        iou_threshold: 0 or more. A candidate is dropped if its overlap with a kept candidate of higher
            score is above it: from 1 on, none.
        topk: The number of candidates of each class that enter NMS, highest scores first. -1: all.
        max_detections: K, the number of rows that are returned for each image.
        class_agnostic: True: NMS compares candidates of all classes. False, the default: only candidates
            of the same class.
        metric: How NMS measures overlap: ``"iou"``, the default, or ``"ios"``, as in `nms`.
        best_class_only: True: each box is a candidate with the class of its highest score alone (the
            first class on ties; NaN scores do not count), as in YOLO. False, the default: with every class
            of a score above the threshold.
        level_counts: The number of boxes of each pyramid level, a list of ints that add up to N; the
            boxes of a level follow each other. Needed with `topk_per_level`. Default: None, no levels.
        topk_per_level: Of each level, only so many candidates, of all classes together, stay before `topk`
            and NMS: those that come first by score, then class, then box. This is RetinaNet's limit.
            torchvision leaves the order of equal scores to its sort. Default: None, all.

    Returns:
        `Detections` with K rows for each image, highest score first. Equal scores are ordered by class,
        then by box. A NaN score is never a candidate. A box without area or with a NaN corner overlaps
        nothing. The host reads no values, so a GPU is never waited for.

    Raises:
        TypeError, ValueError: a threshold or a number is not valid.
        RuntimeError: a tensor has a wrong shape, dtype or device.

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
        *torch.ops.ssd_ops.multiclass_nms.default(
            boxes,
            scores,
            as_fraction(op, "score_threshold", score_threshold),
            as_iou_threshold(op, iou_threshold),
            as_topk(op, topk),
            as_max_detections(op, max_detections),
            bool(class_agnostic),
            as_choice(op, "metric", metric, METRIC),
            bool(best_class_only),
            *as_levels(op, level_counts, topk_per_level),
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
    *_settings: Any,
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
    """Detections of a batch of images, with one row for every anchor.

    Each anchor takes the class with the highest score, without the background (the first class on ties).

    - ``"d2l"``: Greedy NMS over all anchors of an image, of all classes together, drops a box if its IoU
      with a kept box is above `nms_threshold`. After that, kept boxes with a score below `pos_threshold`
      become background.
    - ``"mxnet"``: Only anchors with a score of at least `pos_threshold` enter NMS. NMS compares boxes of
      the same class, and drops a box if its IoU is `nms_threshold` or more.

    Args:
        cls_probs: ``[B, C + 1, A]`` probabilities, background first. NaN counts as 0.
        offset_preds: ``[B, 4A]``, encoded as by `multibox_target`.
        anchors: ``[1, A, 4]`` or ``[A, 4]`` xyxy, in fractions of the image.
        nms_threshold: 0..1, rounded to the dtype of the arithmetic.
        pos_threshold: 0..1. A row with a lower score becomes background. Default: the book's.
        variances: The numbers that the offsets were divided by.
        clip: Clip the boxes to 0..1. Default: None, which means only with ``"mxnet"``.
        class_agnostic: NMS compares boxes of all classes. Default: None, which means only with ``"d2l"``.
        topk: The number of boxes of each image that enter NMS, highest scores first. Default: -1, all.
        semantics: ``"d2l"``, the rules of "Dive into Deep Learning", or ``"mxnet"``, the rules of MXNet.
            For torchvision's rules use `detect`.

    Returns:
        ``[B, A, 6]`` rows (class, score, x1, y1, x2, y2). The detections are the rows with class >= 0.

        - ``"d2l"``: First the kept boxes, highest score first (equal scores by anchor), then all other
          boxes by anchor, with class -1. A box with a score below `pos_threshold` also has class -1, and
          its score becomes ``1 - score``.
        - ``"mxnet"``: The boxes that entered NMS, highest score first; a box that NMS dropped keeps its row
          and has class -1. The rows after them hold -1 everywhere. csrc/detection/multibox_detection.h
          describes MXNet's answer for a `topk` and for an `nms_threshold` of 0.

    Raises:
        TypeError, ValueError: a threshold, variance, number or the semantics is not valid.
        RuntimeError: a tensor has a wrong shape, dtype or device.

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
    return torch.ops.ssd_ops.multibox_detection.default(
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
    variances: Sequence[float] | None = None,
    clip: bool | Sequence[float] = True,
    class_agnostic: bool = False,
    metric: str = "iou",
    coding: str = "center",
    max_log_size: float | None = None,
    best_class_only: bool = False,
    level_counts: Sequence[int] | None = None,
    topk_per_level: int | None = None,
) -> Detections:
    """Post-processing of a detector in one call for a batch: activation, decoding and NMS.

    Every pair of an anchor and a class with a score above the threshold is a candidate. Only candidates
    are decoded. NMS runs within each class, as in SSD and RetinaNet. All output sizes follow from the
    input shapes and `max_detections`. The host reads no values, so a GPU is never waited for.

    Args:
        cls_scores: ``[B, A, C + 1]`` logits, background first, for ``activation="softmax"``; otherwise
            ``[B, A, C]`` without background.
        offset_preds: ``[B, A, 4]`` or ``[B, 4A]``, encoded as by `encode_boxes`.
        anchors: ``[1, A, 4]`` or ``[A, 4]`` xyxy, in the unit of `clip`: with True in fractions of the image,
            with (H, W) in pixels.
        activation: ``"softmax"`` over the classes, ``"sigmoid"`` of each class, or ``"none"``, if
            `cls_scores` are scores already.
        score_threshold: 0..1, rounded to the dtype of the arithmetic. A candidate has a score above it.
        iou_threshold: 0 or more. A candidate is dropped if its overlap with a kept candidate of higher
            score is above it: from 1 on, none.
        topk: The number of candidates of each class that enter NMS, highest scores first. -1: all.
        max_detections: K, the number of rows that are returned for each image.
        variances: The numbers that the offsets were divided by. Default: None, which means those of SSD,
            (0.1, 0.1, 0.2, 0.2), with ``coding="center"``, and 1 with the other codings.
        clip: Clip the boxes before NMS. True, the default: to 0..1. (H, W): to 0..W and 0..H, for anchors
            in pixels of an image of this size. False: not. The host reads no values, so anchors in pixels
            with True are no error: all boxes become the corner of the unit square.
        class_agnostic: True: NMS compares candidates of all classes. False, the default: only candidates
            of the same class.
        metric: How NMS measures overlap: ``"iou"``, the default, or ``"ios"``, as in `nms`.
        coding: What the offsets are: ``"center"``, the default, ``"linear"`` or ``"distance"``, see
            `encode_boxes`.
        max_log_size: The bound of log of the size ratio, only for ``"center"``, see `decode_boxes`.
            Default: None, no bound.
        best_class_only: True: each anchor is a candidate with the class of its highest score alone (the
            first class on ties; NaN scores do not count), as in YOLO. False, the default: with every class
            of a score above the threshold.
        level_counts: The number of anchors of each pyramid level, a list of ints that add up to A; the
            anchors of a level follow each other. Needed with `topk_per_level`. Default: None, no levels.
        topk_per_level: Of each level, only so many candidates, of all classes together, stay before `topk`
            and NMS: those that come first by score, then class, then anchor. This is RetinaNet's limit.
            torchvision leaves the order of equal scores to its sort. Default: None, all.

    Returns:
        `Detections` with K rows for each image, highest score first. Equal scores are ordered by class,
        then by anchor. Labels count from 0 without the background. An anchor with a NaN score is never
        a detection.

    Raises:
        TypeError, ValueError: a threshold, variance, number or the activation is not valid.
        RuntimeError: a tensor has a wrong shape, dtype or device.

    Source:
        SSD (arXiv:1512.02325), section 3.1, and `postprocess_detections` of torchvision's SSD.

    Example:
        >>> anchors = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.48]])
        >>> found = detect(torch.tensor([[[0., 3.], [0., 2.]]]), torch.zeros(1, 2, 4), anchors)
        >>> found.counts, found.labels[0, :2], found.scores[0, :2]
        (tensor([1]), tensor([ 0, -1]), tensor([0.9526, 0.0000]))
    """
    op = "detect"
    check_tensors(op, cls_scores=cls_scores, offset_preds=offset_preds, anchors=anchors)
    number = as_choice(op, "coding", coding, CODING)
    return Detections(
        *torch.ops.ssd_ops.detect.default(
            cls_scores,
            offset_preds,
            anchors,
            as_choice(op, "activation", activation, ACTIVATION),
            as_fraction(op, "score_threshold", score_threshold),
            as_iou_threshold(op, iou_threshold),
            as_topk(op, topk),
            as_max_detections(op, max_detections),
            as_variances(op, variances, number),
            as_clip(op, clip),
            bool(class_agnostic),
            as_choice(op, "metric", metric, METRIC),
            number,
            as_max_log_size(op, max_log_size, number),
            bool(best_class_only),
            *as_levels(op, level_counts, topk_per_level),
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
