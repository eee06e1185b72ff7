"""Greedy non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor

from ssd_ops.ops import _vmap
from ssd_ops.ops._arguments import (
    as_fraction,
    check_tensors,
)

__all__ = ["batched_nms", "nms", "nms_padded"]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that greedy non-maximum suppression keeps.

    Args:
        boxes: ``[N, 4]`` xyxy, any unit.
        scores: ``[N]``.
        iou_threshold: 0..1. A box is dropped if its IoU with a kept box of higher score is greater.

    Returns:
        ``[K]`` int64, by score descending; equal scores by index. A NaN score is dropped; a box without
        area, or with a NaN corner, overlaps nothing and is kept. Memory is linear in N.

    Raises:
        ValueError: the threshold is outside 0..1.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        Drop-in for `torchvision.ops.nms`.

    Example:
        >>> boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9], [5., 5., 6., 6.]])
        >>> nms(boxes, torch.tensor([0.8, 0.9, 0.1]), 0.5)
        tensor([1, 2])
    """
    check_tensors("nms", boxes=boxes, scores=scores)
    return torch.ops.ssd_ops.nms(boxes, scores, as_fraction("nms", "iou_threshold", iou_threshold))


@torch.library.register_fake("ssd_ops::nms")
def _(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.int64)


def nms_padded(boxes: Tensor, scores: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """`nms` in a shape that does not depend on the boxes, for one image or a batch.

    On a GPU nothing waits for the host, so it can be captured in a CUDA graph; `nms` has to wait once, for
    the size of its result.

    Args:
        boxes: ``[N, 4]`` or ``[B, N, 4]`` xyxy, any unit.
        scores: ``[N]`` or ``[B, N]``.
        iou_threshold: 0..1, as in `nms`.

    Returns:
        ``(indices, counts)``: ``[N]`` and ``[]``, or ``[B, N]`` and ``[B]``, int64. What `nms` returns for
        image b is ``indices[b, :counts[b]]``, and -1 follows.

    Raises:
        ValueError: the threshold is outside 0..1.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        The padded form of TensorRT's EfficientNMS; the rules are `nms`'s.

    Example:
        >>> boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9], [5., 5., 6., 6.]])
        >>> nms_padded(boxes, torch.tensor([0.8, 0.9, 0.1]), 0.5)
        (tensor([ 1,  2, -1]), tensor(2))
    """
    check_tensors("nms_padded", boxes=boxes, scores=scores)
    threshold = as_fraction("nms_padded", "iou_threshold", iou_threshold)
    if boxes.ndim != 2 or scores.ndim != 1:
        return torch.ops.ssd_ops.nms_padded(boxes, scores, threshold)
    indices, counts = torch.ops.ssd_ops.nms_padded(boxes[None], scores[None], threshold)
    return indices[0], counts[0]


@torch.library.register_fake("ssd_ops::nms_padded")
def _(boxes: Tensor, scores: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    return (
        boxes.new_empty(scores.shape, dtype=torch.int64),
        boxes.new_empty(scores.shape[:1], dtype=torch.int64),
    )


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that greedy non-maximum suppression within each class keeps.

    Args:
        boxes: ``[N, 4]`` xyxy, any unit.
        scores: ``[N]``.
        idxs: ``[N]`` integers, the class of each box (or level, or image).
        iou_threshold: 0..1. A box is dropped if its IoU with a kept box of its class and of higher score
            is greater.

    Returns:
        ``[K]`` int64, by score descending; equal scores by index. NaN as in `nms`. Classes are compared
        and coordinates never shifted: any range of either gives exactly what `nms` gives class by class.

    Raises:
        ValueError: the threshold is outside 0..1.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        Drop-in for `torchvision.ops.batched_nms`.

    Example:
        >>> boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9], [0., 0., 2., 2.]])
        >>> batched_nms(boxes, torch.tensor([0.8, 0.9, 0.1]), torch.tensor([0, 0, 1]), 0.5)
        tensor([1, 2])
    """
    op = "batched_nms"
    check_tensors(op, boxes=boxes, scores=scores, idxs=idxs)
    if idxs.dtype in (torch.int8, torch.uint8, torch.int16, torch.int32):
        idxs = idxs.long()
    threshold = as_fraction(op, "iou_threshold", iou_threshold)
    return torch.ops.ssd_ops.batched_nms(boxes, scores, idxs, threshold)


@torch.library.register_fake("ssd_ops::batched_nms")
def _(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.int64)


_vmap.register_images("nms_padded")
