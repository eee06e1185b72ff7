"""Greedy non-maximum suppression."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssd_ops.ops import _vmap
from ssd_ops.ops._arguments import (
    METRIC,
    as_choice,
    as_iou_threshold,
    check_tensors,
    real_dtype,
)

__all__ = ["MergedBoxes", "batched_nms", "merge_boxes", "nms", "nms_groups", "nms_padded"]

HOW = {"union": 0, "weighted": 1}


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, *, metric: str = "iou") -> Tensor:
    """Greedy non-maximum suppression (NMS): the indices of the boxes that it keeps.

    Args:
        boxes: ``[N, 4]`` xyxy, in any unit.
        scores: ``[N]``.
        iou_threshold: 0 or more. A box is dropped if its overlap with a kept box of higher score is above
            it: from 1 on, none.
        metric: How overlap is measured: ``"iou"``, the default, or ``"ios"``, the intersection divided by
            the area of the smaller box, which also drops the parts of a larger box.

    Returns:
        ``[K]`` int64, highest score first; equal scores in the order of their indices. A box with a NaN
        score is dropped. A box without area or with a NaN corner overlaps nothing and is kept. Memory
        grows linearly with N.

    Raises:
        TypeError, ValueError: the threshold is not a number of 0 or more, or the metric is not valid.
        RuntimeError: a tensor has a wrong shape, dtype or device.

    Source:
        Drop-in for `torchvision.ops.nms`.

    Example:
        >>> boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9], [5., 5., 6., 6.]])
        >>> nms(boxes, torch.tensor([0.8, 0.9, 0.1]), 0.5)
        tensor([1, 2])
    """
    check_tensors("nms", boxes=boxes, scores=scores)
    threshold = as_iou_threshold("nms", iou_threshold)
    return torch.ops.ssd_ops.nms.default(
        boxes, scores, threshold, as_choice("nms", "metric", metric, METRIC)
    )


@torch.library.register_fake("ssd_ops::nms")
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, metric: int) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.int64)


def nms_padded(
    boxes: Tensor, scores: Tensor, iou_threshold: float, *, metric: str = "iou"
) -> tuple[Tensor, Tensor]:
    """`nms` of one image or a batch, padded to a shape that does not depend on the values.

    On a GPU it does not wait for the host and can be captured in a CUDA graph. `nms` has to wait once, to
    learn the size of its result.

    Args:
        boxes: ``[N, 4]`` or ``[B, N, 4]`` xyxy, in any unit.
        scores: ``[N]`` or ``[B, N]``.
        iou_threshold: 0 or more, as in `nms`.
        metric: ``"iou"``, the default, or ``"ios"``, as in `nms`.

    Returns:
        ``(indices, counts)``, both int64, of shape ``[N]`` and ``[]``, or ``[B, N]`` and ``[B]``.
        ``indices[b, :counts[b]]`` is what `nms` returns for image b. The rest of the row is -1.

    Raises:
        TypeError, ValueError: the threshold is not a number of 0 or more, or the metric is not valid.
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
    number = as_choice("nms_padded", "metric", metric, METRIC)
    if boxes.ndim != 2 or scores.ndim != 1:
        return torch.ops.ssd_ops.nms_padded.default(boxes, scores, threshold, number)
    indices, counts = torch.ops.ssd_ops.nms_padded.default(
        boxes[None], scores[None], threshold, number
    )
    return indices[0], counts[0]


@torch.library.register_fake("ssd_ops::nms_padded")
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, metric: int) -> tuple[Tensor, Tensor]:
    return (
        boxes.new_empty(scores.shape, dtype=torch.int64),
        boxes.new_empty(scores.shape[:1], dtype=torch.int64),
    )


def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, *, metric: str = "iou"
) -> Tensor:
    """Greedy non-maximum suppression within each class: the indices of the boxes that it keeps.

    Args:
        boxes: ``[N, 4]`` xyxy, in any unit.
        scores: ``[N]``.
        idxs: ``[N]`` integers: the class of each box. It can also be its level or its image.
        iou_threshold: 0 or more. A box is dropped if its overlap with a kept box of the same class and of
            higher score is above it: from 1 on, none.
        metric: ``"iou"``, the default, or ``"ios"``, as in `nms`.

    Returns:
        ``[K]`` int64, highest score first; equal scores in the order of their indices. NaN is treated as
        in `nms`. The result is exactly that of `nms` called once for each class: the op compares classes
        and does not shift coordinates. If there are no boxes, `scores` and `idxs` are not looked at and may
        be None.

    Raises:
        TypeError, ValueError: the threshold is not a number of 0 or more, or the metric is not valid.
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
    threshold = as_iou_threshold(op, iou_threshold)
    number = as_choice(op, "metric", metric, METRIC)
    return torch.ops.ssd_ops.batched_nms.default(boxes, scores, _long(idxs), threshold, number)


def _long(idxs: Tensor) -> Tensor:
    narrow = idxs.dtype in (torch.int8, torch.uint8, torch.int16, torch.int32)
    return idxs.long() if narrow else idxs


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
def _(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, metric: int) -> Tensor:
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.int64)


def nms_groups(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    *,
    idxs: Tensor | None = None,
    metric: str = "iou",
) -> Tensor:
    """For each box the kept box that suppressed it: NMS that says which boxes belong together.

    The host reads no values, so a GPU is never waited for. `merge_boxes` makes one box of each group.

    Args:
        boxes: ``[..., N, 4]`` xyxy, in any unit.
        scores: ``[..., N]``.
        iou_threshold: 0..1. A box is suppressed if its overlap with a kept box of higher score is above it.
            For "at least the threshold", as SAHI and supervision have it, pass
            ``math.nextafter(threshold, 0)``.
        idxs: ``[..., N]`` integers: the class of each box. Only boxes of the same class suppress each
            other. Default: None, all of one class.
        metric: ``"iou"``, the default, or ``"ios"``, as in `nms`.

    Returns:
        ``[..., N]`` int64. A box that `nms` keeps has its own index. Any other has the index of the kept
        box of highest score (the first, if scores are equal) that overlaps it above the threshold. That is
        the box that removes it in a loop which takes the best box and removes all that it overlaps. A NaN
        score gives -1.

    Raises:
        TypeError, ValueError: the threshold is not a number of 0 or more, or the metric is not valid.
        RuntimeError: a tensor has a wrong shape, dtype or device.

    Source:
        The lists of `greedy_nmm` in SAHI and of `box_non_max_merge` in supervision.

    Example:
        >>> boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9], [5., 5., 6., 6.]])
        >>> nms_groups(boxes, torch.tensor([0.8, 0.9, 0.1]), 0.5)
        tensor([1, 1, 2])
    """
    op = "nms_groups"
    check_tensors(op, boxes=boxes, scores=scores)
    if idxs is not None:
        check_tensors(op, idxs=idxs)
        idxs = _long(idxs)
    threshold = as_iou_threshold(op, iou_threshold)
    number = as_choice(op, "metric", metric, METRIC)
    return torch.ops.ssd_ops.nms_groups.default(boxes, scores, idxs, threshold, number)


@torch.library.register_fake("ssd_ops::nms_groups")
def _(
    boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float, metric: int
) -> Tensor:
    return boxes.new_empty(boxes.shape[:-1], dtype=torch.int64)


@torch.library.register_vmap("ssd_ops::nms_groups")
def _(info: Any, in_dims: _vmap.InDims, *args: Any) -> tuple[Tensor, int]:
    tensors = [
        None if t is None else _vmap.in_front(info, t, dim)
        for t, dim in zip(args[:3], in_dims[:3], strict=True)
    ]
    return torch.ops.ssd_ops.nms_groups.default(*tensors, *args[3:]), 0


class MergedBoxes(NamedTuple):
    """One box for each group of boxes that belong together.

    The group of a kept box lies in the row of that box. All other rows are padding: 0, with a count of 0.
    """

    boxes: Tensor  # [..., N, 4] xyxy
    scores: Tensor  # [..., N], the highest score of the group: that of the kept box
    mean_scores: Tensor  # [..., N], the mean score of the group
    values: Tensor  # [..., N, D]; D is 0 if none were given
    counts: Tensor  # [..., N] int64, number of boxes of the group


def merge_boxes(
    boxes: Tensor,
    scores: Tensor,
    groups: Tensor,
    *,
    how: str = "union",
    values: Tensor | None = None,
) -> MergedBoxes:
    """Makes one box of each group that `nms_groups` found.

    This is plain PyTorch: all shapes follow from the inputs, the host reads no values, and each sum is taken
    in the order of the boxes, so that every run and every device gives the same bits.

    Args:
        boxes: ``[..., N, 4]`` xyxy, in any unit.
        scores: ``[..., N]``; 0 or more for ``how="weighted"``.
        groups: ``[..., N]`` int64, the group of each box: the index of its kept box, or -1 for none.
        how: ``"union"``, the default: the smallest box that holds all boxes of the group. ``"weighted"``:
            the mean of the boxes, each weighted by its score.
        values: ``[..., N, D]`` numbers of each box, such as keypoints or a mask's coefficients. Merged like
            the boxes by ``"weighted"``; ``"union"`` leaves those of the kept box. Default: None.

    Returns:
        `MergedBoxes`, a row for each box. The merged boxes are the rows with a count above 0. A group of
        one box is that box, bit for bit; so is the kept box of a group whose scores are all 0.

    Raises:
        TypeError, ValueError: an argument is no tensor, or `how` is not valid.
        RuntimeError: a tensor has a wrong shape or dtype.

    Source:
        SAHI's greedy NMM and supervision's `box_non_max_merge` (union); box voting (arXiv:1505.01749) and
        the weighted NMS of BlazeFace (arXiv:1907.05047). MediaPipe gives a weighted box the highest score,
        BlazeFace-PyTorch the mean.

    Example:
        >>> boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.8], [5., 5., 6., 6.]])
        >>> scores = torch.tensor([0.75, 0.25, 0.5])
        >>> merged = merge_boxes(boxes, scores, nms_groups(boxes, scores, 0.5), how="weighted")
        >>> merged.boxes[merged.counts > 0]
        tensor([[0.0000, 0.0000, 2.0000, 1.9500],
                [5.0000, 5.0000, 6.0000, 6.0000]])
        >>> merged.counts, merged.scores, merged.mean_scores
        (tensor([2, 0, 1]), tensor([0.7500, 0.0000, 0.5000]), tensor([0.5000, 0.0000, 0.5000]))
    """
    op = "merge_boxes"
    check_tensors(op, boxes=boxes, scores=scores, groups=groups)
    weighted = as_choice(op, "how", how, HOW) == HOW["weighted"]
    if boxes.ndim < 2 or boxes.shape[-1] != 4:
        raise RuntimeError(f"{op}: boxes must be [..., N, 4], got {list(boxes.shape)}")
    rows = {"boxes": boxes}
    if values is not None:
        check_tensors(op, values=values)
        rows["values"] = values
        if values.shape[:-1] != boxes.shape[:-1] or values.ndim != boxes.ndim:
            raise RuntimeError(
                f"{op}: values must be [..., N, D] with the sizes of boxes, got {list(values.shape)}"
            )
    for name, tensor in (("scores", scores), ("groups", groups)):
        if tensor.shape != boxes.shape[:-1]:
            raise RuntimeError(
                f"{op}: {name} must be [..., N] with the sizes of boxes, got {list(tensor.shape)}"
            )
    for name, tensor in (*rows.items(), ("scores", scores)):
        if not tensor.is_floating_point():
            raise RuntimeError(f"{op}: {name} must be floating-point, got {tensor.dtype}")
    if groups.dtype != torch.int64:
        raise RuntimeError(f"{op}: groups must be int64, got {groups.dtype}")

    real = real_dtype(*rows.values(), scores)
    weights = scores.detach().to(real)[..., None]
    own = torch.cat([tensor.detach().to(real) for tensor in rows.values()], dim=-1)
    members = _Members(groups)
    counts = members.counts
    totals = members.reduce("sum", torch.cat((weights, weights * own), -1) if weighted else weights)
    if weighted:
        is_mean = (counts[..., None] > 1) & (totals[..., :1] > 0)
        merged = torch.where(is_mean, totals[..., 1:] / totals[..., :1], own)
    else:
        corners = torch.cat((own[..., :2], -own[..., 2:4]), dim=-1)
        low = members.reduce("min", corners)
        merged = torch.cat((low[..., :2], -low[..., 2:], own[..., 4:]), dim=-1)
        merged = torch.where(counts[..., None] > 1, merged, own)
    merged = torch.where(counts[..., None] > 0, merged, 0)
    mean = torch.where(counts > 1, totals[..., 0] / counts, weights[..., 0])
    return MergedBoxes(
        merged[..., :4],
        torch.where(counts > 0, weights[..., 0], 0),
        torch.where(counts > 0, mean, 0),
        merged[..., 4:],
        counts,
    )


class _Members:
    """The members of each group: a row for each box, with those whose group it is."""

    def __init__(self, groups: Tensor) -> None:
        size = groups.shape[-1]
        # -1 goes last, and belongs to no row.
        keys = groups.detach().where(groups >= 0, size).reshape(groups.shape[:-1].numel(), size)
        keys, self.order = keys.sort(dim=-1, stable=True)
        rows = torch.arange(size, device=groups.device).expand_as(keys).contiguous()
        ends = torch.searchsorted(keys, rows, right=True)
        self.counts = ends.diff(dim=-1, prepend=ends.new_zeros(len(keys), 1)).view(groups.shape)

    def reduce(self, how: str, values: Tensor) -> Tensor:
        """The sum or the minimum, [..., N, C], of the members' values [..., N, C]."""
        flat = values.reshape(*self.order.shape, values.shape[-1])
        together = flat.gather(1, self.order[..., None].expand_as(flat))
        # One thread adds up a segment, from its first row on. `scatter_add` and `index_add` use atomics on
        # a GPU. `unsafe` leaves out a check that would wait for the GPU.
        lengths = self.counts.view(self.order.shape)
        result = torch.segment_reduce(together, how, lengths=lengths, axis=1, unsafe=True)
        return result.view(values.shape)


_vmap.register_images("nms_padded")
