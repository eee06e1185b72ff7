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
    """Anchors of one feature map: one box per cell, size and ratio.

    Args:
        feature_map: ``[..., H, W]`` floating; only its shape, dtype and device are used.
        sizes: S scales, as fractions of the image's height, greater than 0.
        ratios: R aspect ratios, width to height in pixels of a square image, greater than 0.
        steps: (y, x) distance of neighbouring cells, in fractions of the image. None (the default)
            means (1 / H, 1 / W): the cells fill the image.
        offsets: (y, x) place of the center in its cell, in cells, 0..1. Default: the middle.
        clip: Cut the boxes to 0..1. Off by default, as in the book and in MXNet.

    Returns:
        ``[1, H * W * (S + R - 1), 4]`` xyxy in fractions of the image, float32 (float64 for a float64
        feature map). Cells row by row; in a cell every size with the first ratio, then the first size
        with each other ratio. A box is ``s * sqrt(r) * H / W`` wide and ``s / sqrt(r)`` high.

    Raises:
        TypeError, ValueError: a list is empty, or a number is not positive.
        RuntimeError: the feature map has fewer than two dimensions or is not floating.

    Source:
        Drop-in for the function of this name in "Dive into Deep Learning" (14.4); `steps`, `offsets`
        and `clip` are those of MXNet's MultiBoxPrior. Bit-equal to the book's in float32, but for
        ratios whose square root torch rounds to the neighbouring number.

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
    """Anchors of all levels of a detector in one call.

    Args:
        feature_maps: L tensors ``[..., H_l, W_l]``, on one device.
        sizes: For each level its list of sizes, as in `multibox_prior`.
        ratios: For each level its list of ratios.
        steps: For each level (y, x), or None (the default) for (1 / H, 1 / W).
        offsets: (y, x) place of the center in its cell, for all levels.
        clip: Cut the boxes to 0..1.

    Returns:
        ``[1, A, 4]``: what `multibox_prior` returns for each level, one after another.

    Raises:
        TypeError, ValueError, RuntimeError: as `multibox_prior`, or the lists differ in length.

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
