"""IoU of boxes, and encoding and decoding of offsets."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ssd_ops.ops import _vmap
from ssd_ops.ops._arguments import (
    CODING,
    METRIC,
    as_choice,
    as_clip,
    as_max_log_size,
    as_number,
    as_variances,
    check_tensors,
    real_dtype,
)

__all__ = ["box_iou", "decode_boxes", "encode_boxes"]

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _exact(boxes: Tensor) -> Tensor:
    return boxes.double() if boxes.dtype in _INTEGERS else boxes


def _from_xywh(boxes: Tensor) -> Tensor:
    corner, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((corner, corner + size), dim=-1)


def _from_cxcywh(boxes: Tensor) -> Tensor:
    center, size = boxes[..., :2], boxes[..., 2:]
    return torch.cat((center - 0.5 * size, center + 0.5 * size), dim=-1)


def _corners(boxes: Tensor, convert: Callable[[Tensor], Tensor]) -> Tensor:
    if boxes.shape[-1:] != (4,) or not boxes.is_floating_point():
        return boxes  # for the op to refuse
    return convert(boxes.to(real_dtype(boxes)))


_TO_CORNERS = {"xyxy": lambda boxes: boxes, "xywh": _from_xywh, "cxcywh": _from_cxcywh}


def box_iou(boxes1: Tensor, boxes2: Tensor, fmt: str = "xyxy", *, metric: str = "iou") -> Tensor:
    """Intersection over union (IoU), or over the smaller area (IoS), of every pair of boxes.

    Args:
        boxes1: ``[..., N, 4]``, in any unit. Integers are computed with in float64.
        boxes2: ``[..., M, 4]`` in the same unit. Leading dimensions are broadcast.
        fmt: What the four numbers of a box are: ``"xyxy"``, two corners, the default; ``"xywh"``, the
            upper left corner, width and height; ``"cxcywh"``, the center, width and height.
        metric: ``"iou"``, the default, or ``"ios"``: the intersection divided by the area of the smaller
            box. It is 1 for a box that lies in the other, however small it is.

    Returns:
        ``[..., N, M]`` in 0..1, float32, or float64 if at least one input is float64. It is 0, never NaN,
        if the boxes do not overlap, if one of them has no area or an infinite one, or if a corner is NaN.

    Raises:
        ValueError: the leading dimensions cannot be broadcast, or `fmt` or the metric is not valid.
        RuntimeError: a tensor has a wrong shape, dtype or device.

    Source:
        Drop-in for `torchvision.ops.box_iou`. Two differences: torchvision gives NaN for two boxes without
        area, and it computes in half precision, where the IoU of a box with itself can be 1.0009.
        torchvision's formats of rotated boxes are not here.

    Example:
        >>> box_iou(torch.tensor([[0., 0., 2., 2.]]), torch.tensor([[1., 0., 3., 2.], [5., 5., 6., 6.]]))
        tensor([[0.3333, 0.0000]])
        >>> box_iou(torch.tensor([[0., 0., 9., 9.]]), torch.tensor([[1., 1., 2., 2.]]), metric="ios")
        tensor([[1.]])
    """
    op = "box_iou"
    check_tensors(op, boxes1=boxes1, boxes2=boxes2)
    if boxes1.dtype in _INTEGERS or boxes2.dtype in _INTEGERS:
        real = real_dtype(boxes1, boxes2)
        return box_iou(_exact(boxes1), _exact(boxes2), fmt, metric=metric).to(real)
    if fmt != "xyxy":
        to_corners = as_choice(op, "fmt", fmt, _TO_CORNERS)
        boxes1, boxes2 = (_corners(boxes, to_corners) for boxes in (boxes1, boxes2))
    lead1, lead2 = boxes1.shape[:-2], boxes2.shape[:-2]
    if lead1 != lead2 and boxes1.ndim > 1 and boxes2.ndim > 1:
        try:
            lead = torch.broadcast_shapes(lead1, lead2)
        except RuntimeError:
            raise ValueError(
                f"{op}: boxes2 must have leading dimensions that broadcast with {list(boxes1.shape)}, "
                f"got {list(boxes2.shape)}"
            ) from None
        boxes1 = boxes1.expand(*lead, *boxes1.shape[-2:])
        boxes2 = boxes2.expand(*lead, *boxes2.shape[-2:])
    return torch.ops.ssd_ops.box_iou.default(
        boxes1, boxes2, as_choice(op, "metric", metric, METRIC)
    )


@torch.library.register_fake("ssd_ops::box_iou")
def _(boxes1: Tensor, boxes2: Tensor, metric: int) -> Tensor:
    return boxes1.new_empty(
        (*boxes1.shape[:-1], boxes2.shape[-2]), dtype=real_dtype(boxes1, boxes2)
    )


def encode_boxes(
    boxes: Tensor,
    anchors: Tensor,
    *,
    variances: Sequence[float] | None = None,
    eps: float = 0.0,
    coding: str = "center",
) -> Tensor:
    """Encodes boxes as offsets to anchors.

    Args:
        boxes: ``[..., A, 4]`` xyxy.
        anchors: ``[A, 4]``, ``[1, A, 4]`` or the shape of `boxes`; xyxy in the same unit.
        variances: v0 to v3, all greater than 0; the four offsets are divided by them. Default: None, which
            means those of SSD, (0.1, 0.1, 0.2, 0.2), with ``"center"``, and 1 with the other codings.
        eps: Added inside the logarithm. Default: 0. "Dive into Deep Learning" uses 1e-6. Only ``"center"``
            has a logarithm, so it must be 0 with the other codings.
        coding: What the four offsets are. In it dx, dy is the distance of the centers, bw, bh the size of
            the box and w, h the size of the anchor:

            - ``"center"``, the default, as SSD, RetinaNet and Faster R-CNN:
              ``(dx / w / v0, dy / h / v1, log(eps + bw / w) / v2, log(eps + bh / h) / v3)``.
            - ``"linear"``, without the logarithm, as BlazeFace and MediaPipe:
              ``(dx / w / v0, dy / h / v1, bw / w / v2, bh / h / v3)``.
            - ``"distance"``, from the center of the anchor to the sides of the box, as FCOS:
              ``(left / w / v0, top / h / v1, right / w / v2, bottom / h / v3)``. For distances in strides
              (FCOS, YOLOX, YOLOv8), give anchors whose sides are the stride; for distances in pixels,
              anchors with sides of one pixel.

    Returns:
        Offsets in the shape of `boxes`. A box or an anchor without area gives infinite or NaN offsets.

    Raises:
        TypeError, ValueError: a variance is not positive, `eps` is negative or not for this coding, or the
            coding is not known.
        RuntimeError: a tensor has a wrong shape, dtype or device.

    Source:
        SSD (arXiv:1512.02325), equation 2. The book's `offset_boxes` takes the anchors first. BlazeFace
        (arXiv:1907.05047); FCOS (arXiv:1904.01355), as `BoxLinearCoder` of torchvision.

    Example:
        >>> box, anchor = torch.tensor([[0., 0., 2., 2.]]), torch.tensor([[1., 1., 3., 3.]])
        >>> encode_boxes(box, anchor)
        tensor([[-5., -5.,  0.,  0.]])
        >>> encode_boxes(box, anchor, coding="distance")
        tensor([[1., 1., 0., 0.]])
    """
    op = "encode_boxes"
    check_tensors(op, boxes=boxes, anchors=anchors)
    eps = as_number(op, "eps", eps)
    if not 0 <= eps < math.inf:
        raise ValueError(f"{op}: eps must be 0 or more and finite, got {eps}")
    number = as_choice(op, "coding", coding, CODING)
    if eps != 0 and coding != "center":
        raise ValueError(f"{op}: eps must be 0 with a coding other than 'center', got {eps}")
    return torch.ops.ssd_ops.encode_boxes.default(
        boxes, anchors, as_variances(op, variances, number), eps, number
    )


@torch.library.register_fake("ssd_ops::encode_boxes")
def _(boxes: Tensor, anchors: Tensor, *_settings: Any) -> Tensor:
    return boxes.new_empty(boxes.shape, dtype=real_dtype(boxes, anchors))


def decode_boxes(
    offsets: Tensor,
    anchors: Tensor,
    *,
    variances: Sequence[float] | None = None,
    clip: bool | Sequence[float] = False,
    coding: str = "center",
    max_log_size: float | None = None,
) -> Tensor:
    """Decodes offsets to anchors into boxes: the inverse of `encode_boxes` with `eps=0`.

    Args:
        offsets: ``[..., A, 4]``.
        anchors: ``[A, 4]``, ``[1, A, 4]`` or the shape of `offsets`; xyxy.
        variances: The numbers that the offsets were divided by, all greater than 0. Default: None, which
            means those of SSD, (0.1, 0.1, 0.2, 0.2), with ``"center"``, and 1 with the other codings.
        clip: True: clip the boxes to 0..1. (H, W): to 0..W and 0..H, for anchors in pixels of an image of
            this size. Default: False, boxes are not clipped.
        coding: ``"center"``, the default, ``"linear"`` or ``"distance"``: what the offsets are, see
            `encode_boxes`.
        max_log_size: The most that the logarithm of the size ratio (an offset times its variance) can be:
            what is more is cut to it before exp. torchvision has ``math.log(1000 / 16)``. Default: None, no
            bound. Only for ``"center"``.

    Returns:
        Boxes xyxy, in the shape of `offsets` and the unit of `anchors`. If exp of an offset overflows, the
        box is infinite. NaN stays NaN.

    Raises:
        TypeError, ValueError: a variance or a limit is not positive, or the coding is not known.
        RuntimeError: a tensor has a wrong shape, dtype or device.

    Source:
        The book's `offset_inverse`, which takes the anchors first. exp gives the same bits on every device,
        within 1 ulp of the C library's. `BoxCoder` and `BoxLinearCoder` of torchvision.

    Example:
        >>> anchor = torch.tensor([[1., 1., 3., 3.]])
        >>> decode_boxes(torch.tensor([[-5., -5., 0., 0.]]), anchor)
        tensor([[0., 0., 2., 2.]])
        >>> decode_boxes(torch.tensor([[1., 3., 0.5, 9.]]), anchor, coding="distance", clip=(8, 6))
        tensor([[0., 0., 3., 8.]])
    """
    op = "decode_boxes"
    check_tensors(op, offsets=offsets, anchors=anchors)
    number = as_choice(op, "coding", coding, CODING)
    return torch.ops.ssd_ops.decode_boxes.default(
        offsets,
        anchors,
        as_variances(op, variances, number),
        as_clip(op, clip),
        number,
        as_max_log_size(op, max_log_size, number),
    )


@torch.library.register_fake("ssd_ops::decode_boxes")
def _(offsets: Tensor, anchors: Tensor, *_settings: Any) -> Tensor:
    return offsets.new_empty(offsets.shape, dtype=real_dtype(offsets, anchors))


@torch.library.register_vmap("ssd_ops::box_iou")
def _(info: Any, in_dims: _vmap.InDims, *args: Any) -> tuple[Tensor, int]:
    both = [_vmap.in_front(info, b, dim) for b, dim in zip(args[:2], in_dims[:2], strict=True)]
    return torch.ops.ssd_ops.box_iou.default(*both, *args[2:]), 0


_vmap.register_rows("encode_boxes")
_vmap.register_rows("decode_boxes")
