"""Rules of `torch.vmap` for ops that already accept leading batch dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

InDims = tuple[int | None, ...]


def in_front(info: Any, tensor: Tensor, dim: int | None) -> Tensor:
    """Moves the mapped dimension to the front, or expands a tensor that has none."""
    if dim is None:
        return tensor.expand(info.batch_size, *tensor.shape)
    return tensor.movedim(dim, 0)


def register_rows(name: str) -> None:
    """Registers the rule of encode_boxes or decode_boxes: rows [..., A, 4], anchors [A, 4] or like rows."""
    op = getattr(torch.ops.ssd_ops, name)

    def rule(
        info: Any, in_dims: InDims, rows: Tensor, anchors: Tensor, *settings: Any
    ) -> tuple[Tensor, int]:
        rows = in_front(info, rows, in_dims[0])
        if in_dims[1] is not None:
            anchors = anchors.movedim(in_dims[1], 0)
            while anchors.ndim > rows.ndim and anchors.shape[1] == 1:
                anchors = anchors.squeeze(1)
            missing = rows.ndim - anchors.ndim
            anchors = anchors.reshape(anchors.shape[0], *[1] * missing, *anchors.shape[1:])
            anchors = anchors.expand(rows.shape)
        return op(rows, anchors, *settings), 0

    torch.library.register_vmap(f"ssd_ops::{name}", rule)


def register_images(name: str) -> None:
    """Registers the rule of an op that takes two tensors [B, ...] and returns tensors [B, ...].

    The mapped dimension and B are flattened into one batch for the call.
    """
    op = getattr(torch.ops.ssd_ops, name)

    def rule(info: Any, in_dims: InDims, *args: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        pair = [in_front(info, t, dim) for t, dim in zip(args[:2], in_dims[:2], strict=True)]
        outer = pair[0].shape[:2]
        results = op(*(t.flatten(0, 1) for t in pair), *args[2:])
        return tuple(t.unflatten(0, outer) for t in results), (0,) * len(results)

    torch.library.register_vmap(f"ssd_ops::{name}", rule)
