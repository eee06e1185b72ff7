"""Assignment of anchors to ground truths, and training targets."""

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
    """Assigns each anchor to a ground truth (gt) or to the background, for a batch of images.

    An anchor is matched to the gt with the highest IoU (the first on ties) if that IoU is at least
    `iou_threshold`. Below `background_threshold` the anchor is background. Between the two thresholds it
    is neither. After that, `force_match` gives anchors to ground truths that would otherwise have none.
    A forced match replaces an earlier one:

    - ``"bipartite"``: Of all pairs of an anchor and a gt that are not yet forced, the pair with the highest
      IoU is matched, even if that IoU is 0 (ties: lowest anchor, then lowest gt). This repeats until no gt
      or no anchor is left.
    - ``"argmax"``: Each gt takes the anchor with the highest IoU (the first on ties), even if that IoU is
      0. If two gts take the same anchor, the later gt gets it. This is torchvision's `SSDMatcher`.
    - ``"low_quality"``: An anchor whose IoU with some gt is the highest of all anchors (ties included) and
      above 0 is matched to its own best gt. This is `Matcher` of torchvision and detectron2 with
      `allow_low_quality_matches`. There, a gt that overlaps no anchor takes all anchors.
    - ``"none"``: Only the thresholds count.

    Args:
        anchors: ``[1, A, 4]`` or ``[A, 4]`` xyxy, in any unit.
        gt_boxes: The ground truth boxes, in the same unit, in one of three forms: ``[B, G, 4]``, padded at
            the end of each image; a list of B tensors ``[G_i, 4]``; or ``[N, 4]``, the boxes of all images
            one after another.
        gt_counts: int64. For ``[B, G, 4]``: ``[B]``, the number of real boxes of each image; None, the
            default, means all G. For ``[N, 4]``: ``[B + 1]``, where the boxes of image i are the rows from
            ``gt_counts[i]`` to ``gt_counts[i + 1]``. For a list: None. The host does not read the values.
            A value outside the range of the boxes is clipped to it.
        iou_threshold: 0..1, rounded to the dtype of the arithmetic.
        background_threshold: 0..`iou_threshold`, rounded in the same way. Default: None, which means
            `iou_threshold`: no anchor is between the two.
        force_match: ``"bipartite"``, the default, ``"argmax"``, ``"low_quality"`` or ``"none"``; see above.

    Returns:
        ``(matched_idxs [B, A] int64, matched_ious [B, A])``. `matched_idxs` holds the row of the gt among
        the boxes of its image, -1 for background, or -2 between the two thresholds. `matched_ious` holds
        the IoU with that gt; for an anchor without a match it is the highest IoU with any gt. A gt or an
        anchor without area, or with a NaN or infinite corner, matches nothing; such an anchor has -1 and
        IoU 0. In an image without ground truths all anchors have -1 and IoU 0. Memory grows linearly
        with anchors and ground truths.

    Raises:
        TypeError, ValueError: a threshold or `force_match` is not valid, or `gt_counts` is given for a list.
        RuntimeError: a tensor has a wrong shape, dtype or device.

    Source:
        SSD (arXiv:1512.02325), section 2.2. ``"bipartite"`` is the book's `assign_anchor_to_bbox`.

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
    """Turns a list of boxes into boxes [N, 4] and gt_counts [B + 1]."""
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
    """Makes the training targets of each anchor: its offsets to a ground truth (gt), and its class.

    With ``semantics="d2l"`` an anchor is matched to the gt with the highest IoU (the first on ties) if that
    IoU is at least `iou_threshold`. After that each gt is forced on one anchor: of all free pairs of an
    anchor and a gt, the pair with the highest IoU is matched, even if that IoU is 0 (ties: lowest anchor,
    then lowest gt). This repeats until no gt or no anchor is left. docs/semantics.md compares the other
    two semantics.

    Args:
        anchors: ``[1, A, 4]`` or ``[A, 4]`` xyxy, in fractions of the image.
        labels: The ground truths: ``[B, G, 5]`` rows (class, x1, y1, x2, y2), class from 0. A row with a
            negative class is padding and may stand anywhere. So is a row with a NaN or infinite number,
            or with x2 < x1 or y2 < y1.
        cls_preds: ``[B, C + 1, A]`` logits, background first. Needed only with `negative_mining_ratio`.
        iou_threshold: 0..1, rounded to the dtype of the arithmetic.
        variances: The four offsets are divided by these numbers. Default: those of SSD.
        negative_mining_ratio: Negatives for each positive, 0 or more. Default: None: every anchor without
            a match is a negative.
        negative_mining_threshold: 0..1. An anchor that has this IoU or more with a gt is never mined as a
            negative.
        min_negatives: The least number of negatives that are mined in each image, also without gts.
        ignore_label: The class label of an anchor that is neither matched nor mined. Default: -1.
        semantics: The rules for matching and encoding:

            - ``"d2l"``: the rules of "Dive into Deep Learning", described above. The logarithm of the
              offsets is taken of the size ratio + 1e-6, in the other two of the ratio itself.
            - ``"mxnet"``: A forced match needs an IoU above 1e-6, every other match an IoU above the
              threshold. In an image without gts every anchor has `ignore_label`.
            - ``"torchvision"``: Each gt is forced on its best anchor, and a later gt replaces an earlier
              one. A gt without area is padding.

    Returns:
        ``(bbox_offsets [B, 4A], bbox_masks [B, 4A], cls_labels [B, A] int64)``. Offsets are encoded boxes,
        and 0 for an anchor without a match. Masks are 1 for the four numbers of a matched anchor, else 0.
        Labels are class + 1, or 0 for background. In an image without gts all anchors are background. If
        there are more gts than anchors, the gts that are left when no anchor is free have no match. An
        anchor without area or with a NaN or infinite corner matches nothing. The mined negatives are
        those with the lowest probability of background; if there are too few candidates, all are taken.

    Raises:
        TypeError, ValueError: a threshold, variance, number or the semantics is not valid, or `cls_preds`
            is missing.
        RuntimeError: a tensor has a wrong shape, dtype or device.

    Source:
        Drop-in for the book's `multibox_target` (14.4). There, padding rows take anchors from real gts,
        and an image without gts is an error. ``"mxnet"``: MultiBoxTarget of MXNet 1.9 on the CPU. It stops
        at the first padding row, and aborts if there are fewer candidates than negatives to mine.
        ``"torchvision"``: its SSD. No semantics makes a matrix of anchors x gts.

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
