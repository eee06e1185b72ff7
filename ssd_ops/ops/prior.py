"""Anchors of feature maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ssd_ops.ops._arguments import (
    as_fraction,
    as_positives,
    as_tuple_of,
    check_tensors,
    real_dtype,
)

__all__ = ["multibox_prior", "multibox_priors"]


def multibox_prior(
    feature_map: Tensor,
    sizes: Sequence[float],
    ratios: Sequence[float],
    *,
    steps: Sequence[float] | None = None,
    offsets: Sequence[float] = (0.5, 0.5),
    clip: bool = False,
) -> Tensor:
    """Makes the anchors of one feature map: S + R - 1 boxes in each cell.

    Args:
        feature_map: ``[..., H, W]`` floating point. Only its shape, dtype and device are used.
        sizes: S sizes, in fractions of the image's height, greater than 0.
        ratios: R aspect ratios (width divided by height, in pixels of a square image), greater than 0.
        steps: (y, x) distance of neighbouring cells, in fractions of the image. Default: None, which
            means (1 / H, 1 / W): the cells fill the image.
        offsets: (y, x) position of the box center in its cell, 0..1. Default: the middle of the cell.
        clip: Clip the boxes to 0..1. Default: False, as in the book and in MXNet.

    Returns:
        ``[1, H * W * (S + R - 1), 4]`` xyxy in fractions of the image, float32 (float64 for a float64
        feature map). Cells follow row by row. Within a cell come all sizes with the first ratio, then
        the first size with each other ratio. A box is ``s * sqrt(r) * H / W`` wide and ``s / sqrt(r)``
        high.

    Raises:
        TypeError, ValueError: a list is empty, or a number is not positive.
        RuntimeError: the feature map has fewer than two dimensions or is not floating point.

    Source:
        Drop-in for the function of this name in "Dive into Deep Learning" (14.4). `steps`, `offsets` and
        `clip` work as in MXNet's MultiBoxPrior. In float32 the result equals the book's bit for bit,
        except for ratios whose square root torch does not round correctly.

    Example:
        >>> multibox_prior(torch.zeros(1, 3, 2, 4), [0.75, 0.5], [1, 2, 0.5])[0, 0]
        tensor([-0.0625, -0.1250,  0.3125,  0.6250])
    """
    check_tensors("multibox_prior", feature_map=feature_map)
    return _priors(
        "multibox_prior",
        [feature_map],
        [sizes],
        [ratios],
        None if steps is None else [steps],
        offsets,
        clip,
    )


def multibox_priors(
    feature_maps: Sequence[Tensor],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[Sequence[float]],
    *,
    steps: Sequence[Sequence[float]] | None = None,
    offsets: Sequence[float] = (0.5, 0.5),
    clip: bool = False,
) -> Tensor:
    """Makes the anchors of all levels of a detector in one call.

    Args:
        feature_maps: L tensors ``[..., H_l, W_l]``, on one device.
        sizes: One list of sizes for each level, as in `multibox_prior`.
        ratios: One list of ratios for each level.
        steps: One pair (y, x) for each level. Default: None, which means (1 / H, 1 / W).
        offsets: (y, x) position of the box center in its cell, the same for all levels.
        clip: Clip the boxes to 0..1. Default: False.

    Returns:
        ``[1, A, 4]``, the anchors of `multibox_prior` of each level, one level after another.

    Raises:
        TypeError, ValueError, RuntimeError: as in `multibox_prior`; also if the lists differ in length.

    Source:
        The loop over the levels in "Dive into Deep Learning" (14.7.1.5), as one op.

    Example:
        >>> maps = [torch.zeros(1, 1, n, n) for n in (32, 16, 8, 4, 1)]
        >>> multibox_priors(maps, [[0.2, 0.272]] * 5, [[1, 2, 0.5]] * 5).shape
        torch.Size([1, 5444, 4])
    """
    op = "multibox_priors"
    if isinstance(feature_maps, Tensor) or not isinstance(feature_maps, Sequence):
        raise TypeError(
            f"{op}: feature_maps must be a list of tensors, got {type(feature_maps).__name__}"
        )
    if not feature_maps:
        raise ValueError(f"{op}: feature_maps must be at least one tensor, got none")
    for feature_map in feature_maps:
        check_tensors(op, feature_maps=feature_map)
    for name, values in (("sizes", sizes), ("ratios", ratios), ("steps", steps)):
        if values is not None and len(values) != len(feature_maps):
            raise ValueError(
                f"{op}: {name} must be {len(feature_maps)} lists, one a level, got {len(values)}"
            )
    return _priors(op, feature_maps, sizes, ratios, steps, offsets, clip)


def _priors(
    op: str,
    feature_maps: Sequence[Tensor],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[Sequence[float]],
    steps: Sequence[Sequence[float]] | None,
    offsets: Sequence[float],
    clip: bool,
) -> Tensor:
    all_sizes = [as_positives(op, "sizes", level) for level in sizes]
    all_ratios = [as_positives(op, "ratios", level) for level in ratios]
    all_steps = [
        as_positives(op, "steps", as_tuple_of(op, "steps", level, 2)) for level in steps or ()
    ]
    return torch.ops.ssd_ops.multibox_priors(
        list(feature_maps),
        [size for level in all_sizes for size in level],
        [len(level) for level in all_sizes],
        [ratio for level in all_ratios for ratio in level],
        [len(level) for level in all_ratios],
        [step for level in all_steps for step in level],
        [as_fraction(op, "offsets", offset) for offset in as_tuple_of(op, "offsets", offsets, 2)],
        bool(clip),
    )


@torch.library.register_fake("ssd_ops::multibox_priors")
def _(
    feature_maps: list[Tensor],
    sizes: list[float],
    size_counts: list[int],
    ratios: list[float],
    ratio_counts: list[int],
    *_settings: Any,
) -> Tensor:
    count = 0
    for feature_map, num_sizes, num_ratios in zip(
        feature_maps, size_counts, ratio_counts, strict=True
    ):
        count += feature_map.shape[-2] * feature_map.shape[-1] * (num_sizes + num_ratios - 1)
    return feature_maps[0].new_empty((1, count, 4), dtype=real_dtype(*feature_maps))
