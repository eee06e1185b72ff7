"""Which ground truth each anchor stands for, and what it should predict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssd_ops.ops._arguments import (
    SEMANTICS,
    VARIANCES,
    as_choice,
    as_fraction,
    as_integer,
    as_min_negatives,
    as_ratio,
    as_variances,
    check_tensors,
    real_dtype,
)

__all__ = ["assign_anchors", "multibox_target"]


_FORCE_MATCH = {"none": 0, "bipartite": 1, "argmax": 2, "low_quality": 3}


def assign_anchors(
    anchors: Tensor,
    gt_boxes: Tensor | Sequence[Tensor],
    gt_counts: Tensor | None = None,
    *,
    iou_threshold: float = 0.5,
    background_threshold: float | None = None,
    force_match: str = "bipartite",
) -> tuple[Tensor, Tensor]:
    """Which ground truth each anchor stands for, for a batch of images of any number of objects.

    An anchor takes its best ground truth (the first on ties) if their IoU is at least `iou_threshold`;
    with an IoU from `background_threshold` on it is left out, below it is background. `force_match`
    then sees to it that ground truths are not left without an anchor, and overwrites:

    - ``"bipartite"``: of all free pairs the one with the highest IoU is matched, whatever that is
      (ties: lowest anchor, then lowest ground truth), until ground truths or anchors are used up.
    - ``"argmax"``: each ground truth takes its best anchor (the first on ties), whatever the IoU; of
      two that want one anchor the later gets it. torchvision's `SSDMatcher`.
    - ``"low_quality"``: every anchor that is a ground truth's best, or ties with it, and overlaps it,
      keeps its own best ground truth. `Matcher` of torchvision and detectron2 with low-quality
      matches, where a ground truth that overlaps nothing would claim every anchor.
    - ``"none"``: the thresholds alone.

    Args:
        anchors: ``[1, A, 4]`` or ``[A, 4]`` xyxy, any unit.
        gt_boxes: Boxes of the ground truths: ``[B, G, 4]``, padded at the end of each image; or a list
            of B tensors ``[G_i, 4]``; or ``[N, 4]``, those of all images one after another.
        gt_counts: int64. For padded boxes ``[B]``, how many of each image are real (None: all G), for
            ``[N, 4]`` the offsets ``[B + 1]``: image i has the rows from ``gt_counts[i]`` to
            ``gt_counts[i + 1]``. Not for a list. The values are never read on the host; one outside
            the boxes is cut to them.
        iou_threshold: 0..1, rounded like the next to the dtype of the arithmetic.
        background_threshold: 0..`iou_threshold`. None, the default: the same, nothing in between.
        force_match: See above.

    Returns:
        ``(matched_idxs [B, A] int64, matched_ious [B, A])``: the row of the ground truth in its image,
        or -1 for background and -2 between the thresholds; the IoU with it, or with the best one where
        none is matched. A ground truth without area, or with a NaN or infinite corner, matches nothing,
        and neither does such an anchor, which is -1 with IoU 0, as all are in an image without ground
        truths. Memory is linear in anchors and ground truths.

    Raises:
        TypeError, ValueError: a threshold or a name is none.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        SSD (arXiv:1512.02325) 2.2; the book's `assign_anchor_to_bbox` (``"bipartite"``); torchvision.

    Example:
        >>> anchors = torch.tensor([[0., 0., 4., 4.], [4., 0., 8., 4.], [0., 4., 4., 8.]])
        >>> gt_boxes = torch.tensor([[[0., 0., 4., 3.], [5., 5., 8., 8.]]])
        >>> assign_anchors(anchors, gt_boxes)
        (tensor([[ 0,  1, -1]]), tensor([[0.7500, 0.0000, 0.0000]]))
        >>> assign_anchors(anchors, gt_boxes, torch.tensor([1]))[0]
        tensor([[ 0, -1, -1]])
    """
    op = "assign_anchors"
    check_tensors(op, anchors=anchors)
    if not isinstance(gt_boxes, Tensor):
        gt_boxes, gt_counts = _concatenate(op, anchors, gt_boxes, gt_counts)
    if gt_counts is not None:
        check_tensors(op, gt_counts=gt_counts)
    threshold = as_fraction(op, "iou_threshold", iou_threshold)
    background = (
        threshold
        if background_threshold is None
        else as_fraction(op, "background_threshold", background_threshold)
    )
    if background > threshold:
        raise ValueError(
            f"{op}: background_threshold must be at most iou_threshold, {threshold}, got {background}"
        )
    force = as_choice(op, "force_match", force_match, _FORCE_MATCH)
    return torch.ops.ssd_ops.assign_anchors(
        anchors, gt_boxes, gt_counts, threshold, background, force
    )


def _concatenate(
    op: str, anchors: Tensor, gt_boxes: Tensor | Sequence[Tensor], gt_counts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The boxes [N, 4] of a list, and the offsets [B + 1] of its images."""
    if isinstance(gt_boxes, str) or not isinstance(gt_boxes, Sequence):
        raise TypeError(
            f"{op}: gt_boxes must be a tensor or a list of tensors, got {type(gt_boxes).__name__}"
        )
    if gt_counts is not None:
        raise ValueError(f"{op}: gt_counts must be None for a list of gt_boxes")
    offsets = [0]
    for boxes in gt_boxes:
        check_tensors(op, gt_boxes=boxes)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{op}: gt_boxes must be [G, 4] each, got {list(boxes.shape)}")
        offsets.append(offsets[-1] + boxes.shape[0])
    together = torch.cat(list(gt_boxes)) if gt_boxes else anchors.new_zeros((0, 4))
    return together, torch.tensor(offsets, dtype=torch.int64, device=together.device)


@torch.library.register_fake("ssd_ops::assign_anchors")
def _(
    anchors: Tensor, gt_boxes: Tensor, gt_counts: Tensor, *_settings: Any
) -> tuple[Tensor, Tensor]:
    num_images = gt_boxes.shape[0] if gt_boxes.ndim == 3 else gt_counts.shape[0] - 1
    shape = (num_images, anchors.shape[-2])
    return (
        anchors.new_empty(shape, dtype=torch.int64),
        anchors.new_empty(shape, dtype=real_dtype(anchors, gt_boxes)),
    )


def multibox_target(
    anchors: Tensor,
    labels: Tensor,
    cls_preds: Tensor | None = None,
    *,
    iou_threshold: float = 0.5,
    variances: Sequence[float] = VARIANCES,
    negative_mining_ratio: float | None = None,
    negative_mining_threshold: float = 0.5,
    min_negatives: int = 0,
    ignore_label: int = -1,
    semantics: str = "d2l",
) -> tuple[Tensor, Tensor, Tensor]:
    """What each anchor should predict: its offsets to a ground truth, and its class.

    An anchor takes its best ground truth (the first on ties) if their IoU is at least `iou_threshold`.
    Then each ground truth is forced on one anchor: of all free pairs the one with the highest IoU,
    whatever it is (ties: lowest anchor, then lowest ground truth), again and again. So it is with
    ``semantics="d2l"``; the others are told apart in docs/semantics.md.

    Args:
        anchors: ``[1, A, 4]`` or ``[A, 4]`` xyxy in fractions of the image.
        labels: ``[B, G, 5]`` rows (class, x1, y1, x2, y2), class from 0. A row with a negative class is
            padding, wherever it stands; so is one with a NaN, an infinity, or corners out of order.
        cls_preds: ``[B, C + 1, A]`` logits, the background first; needed where negatives are mined.
        iou_threshold: 0..1, rounded to the dtype of the arithmetic.
        variances: What the four offsets are divided by.
        negative_mining_ratio: Negatives per positive, 0 or more. None, the default: every anchor that
            is not matched is a negative.
        negative_mining_threshold: 0..1: anchors of this IoU with a ground truth, or more, are never
            mined as negatives.
        min_negatives: Mine at least so many in each image, also in one without ground truths.
        ignore_label: The class of anchors that are neither matched nor mined.
        semantics: ``"d2l"``, the rules of "Dive into Deep Learning"; ``"mxnet"``: forced matches only
            above an IoU of 1e-6, all others only above the threshold, and no class but `ignore_label`
            in an image without ground truths; ``"torchvision"``: each ground truth forced on its best
            anchor, the later one winning, and ground truths without area are padding. These two
            take the logarithm of the ratio itself, d2l adds 1e-6.

    Returns:
        ``(bbox_offsets [B, 4A], bbox_masks [B, 4A], cls_labels [B, A] int64)``: encoded boxes (0 where
        unmatched), 1 for the four numbers of each matched anchor, and class + 1 or 0 for background.
        An image without ground truths is all background. With more ground truths than anchors the
        last in the order above stay unmatched. An anchor without area, or not finite, matches nothing.
        Mined are the negatives with the lowest probability of background, or all there are.

    Raises:
        ValueError: a threshold, variance, number or the semantics is none.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        Drop-in for the book's `multibox_target` (14.4), whose padding rows take anchors from real
        objects, and which fails without ground truths. MXNet 1.9's MultiBoxTarget on the CPU, which
        stops at the first padding row, and aborts with fewer candidates than negatives to mine.
        torchvision's SSD. Never makes an anchors x ground truths matrix.

    Example:
        >>> anchors = torch.tensor([[[0., 0., 0.5, 0.5], [0.5, 0.5, 1., 1.]]])
        >>> labels = torch.tensor([[[2, 0.5, 0.5, 1., 1.], [-1, 0, 0, 0, 0]]])
        >>> offsets, masks, cls_labels = multibox_target(anchors, labels)
        >>> masks, cls_labels
        (tensor([[0., 0., 0., 0., 1., 1., 1., 1.]]), tensor([[0, 3]]))
    """
    op = "multibox_target"
    check_tensors(op, anchors=anchors, labels=labels)
    if cls_preds is not None:
        check_tensors(op, cls_preds=cls_preds)
    ratio = -1.0
    if negative_mining_ratio is not None:
        ratio = as_ratio(op, "negative_mining_ratio", negative_mining_ratio)
        if cls_preds is None:
            raise ValueError(f"{op}: cls_preds must be given for negative_mining_ratio, got None")
    return torch.ops.ssd_ops.multibox_target(
        anchors,
        labels,
        cls_preds,
        as_fraction(op, "iou_threshold", iou_threshold),
        as_variances(op, variances),
        ratio,
        as_fraction(op, "negative_mining_threshold", negative_mining_threshold),
        as_min_negatives(op, min_negatives),
        as_integer(op, "ignore_label", ignore_label),
        as_choice(op, "semantics", semantics, SEMANTICS),
    )


@torch.library.register_fake("ssd_ops::multibox_target")
def _(
    anchors: Tensor, labels: Tensor, cls_preds: Tensor | None, *_settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    num_images, num_anchors = labels.shape[0], anchors.shape[-2]
    real = real_dtype(anchors, labels, *(() if cls_preds is None else (cls_preds,)))
    return (
        anchors.new_empty((num_images, 4 * num_anchors), dtype=real),
        anchors.new_empty((num_images, 4 * num_anchors), dtype=real),
        anchors.new_empty((num_images, num_anchors), dtype=torch.int64),
    )
