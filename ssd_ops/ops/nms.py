"""Greedy non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor

from ssd_ops.ops import _vmap
from ssd_ops.ops._arguments import as_iou_threshold, check_tensors

__all__ = ["batched_nms", "nms", "nms_padded"]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression (NMS): the indices of the boxes that it keeps.

    Args:
        boxes: ``[N, 4]`` xyxy, in any unit.
        scores: ``[N]``.
        iou_threshold: 0 or more. A box is dropped if its IoU with a kept box of higher score is above it:
            from 1 on, none.

    Returns:
        ``[K]`` int64, highest score first; equal scores in the order of their indices. A box with a NaN
        score is dropped. A box without area or with a NaN corner overlaps nothing and is kept. Memory
        grows linearly with N.

    Raises:
        TypeError, ValueError: the threshold is not a number of 0 or more.
        RuntimeError: a tensor has a wrong shape, dtype or device.

    Source:
        Drop-in for `torchvision.ops.nms`.

    Example:
        >>> boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9], [5., 5., 6., 6.]])
        >>> nms(boxes, torch.tensor([0.8, 0.9, 0.1]), 0.5)
        tensor([1, 2])
    """
    check_tensors("nms", boxes=boxes, scores=scores)
    return torch.ops.ssd_ops.nms(boxes, scores, as_iou_threshold("nms", iou_threshold))


@torch.library.register_fake("ssd_ops::nms")
def _(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.int64)


def nms_padded(boxes: Tensor, scores: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """`nms` of one image or a batch, padded to a shape that does not depend on the values.

    On a GPU it does not wait for the host and can be captured in a CUDA graph. `nms` has to wait once, to
    learn the size of its result.

    Args:
        boxes: ``[N, 4]`` or ``[B, N, 4]`` xyxy, in any unit.
        scores: ``[N]`` or ``[B, N]``.
        iou_threshold: 0 or more, as in `nms`.

    Returns:
        ``(indices, counts)``, both int64, of shape ``[N]`` and ``[]``, or ``[B, N]`` and ``[B]``.
        ``indices[b, :counts[b]]`` is what `nms` returns for image b. The rest of the row is -1.

    Raises:
        TypeError, ValueError: the threshold is not a number of 0 or more.
        RuntimeError: a tensor has a wrong shape, dtype or device.

    Source:
        The padded output of TensorRT's EfficientNMS, with the rules of `nms`.

    Example:
        >>> boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9], [5., 5., 6., 6.]])
        >>> nms_padded(boxes, torch.tensor([0.8, 0.9, 0.1]), 0.5)
        (tensor([ 1,  2, -1]), tensor(2))
    """
    check_tensors("nms_padded", boxes=boxes, scores=scores)
    threshold = as_iou_threshold("nms_padded", iou_threshold)
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
    """Greedy non-maximum suppression within each class: the indices of the boxes that it keeps.

    Args:
        boxes: ``[N, 4]`` xyxy, in any unit.
        scores: ``[N]``.
        idxs: ``[N]`` integers: the class of each box. It can also be its level or its image.
        iou_threshold: 0 or more. A box is dropped if its IoU with a kept box of the same class and of
            higher score is above it: from 1 on, none.

    Returns:
        ``[K]`` int64, highest score first; equal scores in the order of their indices. NaN is treated as
        in `nms`. The result is exactly that of `nms` called once for each class: the op compares classes
        and does not shift coordinates. If there are no boxes, `scores` and `idxs` are not looked at and may
        be None.

    Raises:
        TypeError, ValueError: the threshold is not a number of 0 or more.
        RuntimeError: a tensor has a wrong shape, dtype or device.

    Source:
        Drop-in for `torchvision.ops.batched_nms`.

    Example:
        >>> boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9], [0., 0., 2., 2.]])
        >>> batched_nms(boxes, torch.tensor([0.8, 0.9, 0.1]), torch.tensor([0, 0, 1]), 0.5)
        tensor([1, 2])
    """
    op = "batched_nms"
    if not _has_all(boxes, scores, idxs) and isinstance(boxes, Tensor) and boxes.numel() == 0:
        return boxes.new_empty((0,), dtype=torch.int64)
    check_tensors(op, boxes=boxes, scores=scores, idxs=idxs)
    if idxs.dtype in (torch.int8, torch.uint8, torch.int16, torch.int32):
        idxs = idxs.long()
    threshold = as_iou_threshold(op, iou_threshold)
    return torch.ops.ssd_ops.batched_nms(boxes, scores, idxs, threshold)


def _has_all(boxes: object, scores: object, idxs: object) -> bool:
    """Whether `batched_nms` can look at its arguments. ``torch.tensor([])``, a common empty one, is float."""
    return (
        isinstance(boxes, Tensor)
        and isinstance(scores, Tensor)
        and isinstance(idxs, Tensor)
        and (boxes.ndim, scores.ndim) == (2, 1)
        and not idxs.is_floating_point()
    )


@torch.library.register_fake("ssd_ops::batched_nms")
def _(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.int64)


_vmap.register_images("nms_padded")
