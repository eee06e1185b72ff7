"""Anchors of feature maps."""

from __future__ import annotations

import math
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

__all__ = ["grid_anchors", "multibox_prior", "multibox_priors"]


def multibox_prior(
    feature_map: Tensor,
    sizes: Sequence[float],
    ratios: Sequence[float],
    *,
    image_size: Sequence[float] | None = None,
    steps: Sequence[float] | None = None,
    offsets: Sequence[float] = (0.5, 0.5),
    clip: bool = False,
) -> Tensor:
    """Makes the anchors of one feature map: S + R - 1 boxes in each cell.

    Args:
        feature_map: ``[..., H, W]`` floating point. Only its shape, dtype and device are used.
        sizes: S sizes, greater than 0, in fractions of the image's height; in pixels if `image_size` is
            given.
        ratios: R aspect ratios (width divided by height, in pixels), greater than 0.
        image_size: (height, width) of the image in pixels. With it, boxes are right for images of any
            shape. Default: None, which means that the image has the shape of the feature map.
        steps: (y, x) distance of neighbouring cells, in fractions of the image; in pixels if
            `image_size` is given. Default: None, which means that the cells fill the image.
        offsets: (y, x) position of the box center in its cell, 0..1. Default: the middle of the cell.
        clip: Clip the boxes to 0..1. Default: False, as in the book and in MXNet.

    Returns:
        ``[1, H * W * (S + R - 1), 4]`` xyxy in fractions of the image, float32 (float64 for a float64
        feature map). Cells follow row by row. Within a cell come all sizes with the first ratio, then
        the first size with each other ratio. A box is ``s * sqrt(r) * H / W`` wide and ``s / sqrt(r)``
        high; with an `image_size`, it has ``s * sqrt(r)`` by ``s / sqrt(r)`` pixels.

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
        >>> multibox_prior(torch.zeros(1, 3, 2, 4), [60], [1], image_size=(120, 200))[0, 0]
        tensor([-0.0250,  0.0000,  0.2750,  0.5000])
    """
    check_tensors("multibox_prior", feature_map=feature_map)
    return _priors(
        "multibox_prior",
        [feature_map],
        [sizes],
        [ratios],
        image_size,
        None if steps is None else [steps],
        offsets,
        clip,
    )


def multibox_priors(
    feature_maps: Sequence[Tensor],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[Sequence[float]],
    *,
    image_size: Sequence[float] | None = None,
    steps: Sequence[Sequence[float]] | None = None,
    offsets: Sequence[float] = (0.5, 0.5),
    clip: bool = False,
) -> Tensor:
    """Makes the anchors of all levels of a detector in one call.

    Args:
        feature_maps: L tensors ``[..., H_l, W_l]``, on one device.
        sizes: One list of sizes for each level, as in `multibox_prior`.
        ratios: One list of ratios for each level.
        image_size: (height, width) of the image in pixels: sizes and steps are in pixels then. Default:
            None, which means fractions.
        steps: One pair (y, x) for each level. Default: None, which means that the cells fill the image.
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
    _check_levels(op, feature_maps, sizes=sizes, ratios=ratios, steps=steps)
    return _priors(op, feature_maps, sizes, ratios, image_size, steps, offsets, clip)


def _check_levels(
    op: str, feature_maps: Sequence[Tensor], **lists: Sequence[object] | None
) -> None:
    """Tensors, and as many entries in each list."""
    if isinstance(feature_maps, Tensor) or not isinstance(feature_maps, Sequence):
        raise TypeError(
            f"{op}: feature_maps must be a list of tensors, got {type(feature_maps).__name__}"
        )
    if not feature_maps:
        raise ValueError(f"{op}: feature_maps must be at least one tensor, got none")
    for feature_map in feature_maps:
        check_tensors(op, feature_maps=feature_map)
    for name, values in lists.items():
        if values is not None and len(values) != len(feature_maps):
            raise ValueError(
                f"{op}: {name} must be {len(feature_maps)} lists, one a level, got {len(values)}"
            )


def _priors(
    op: str,
    feature_maps: Sequence[Tensor],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[Sequence[float]],
    image_size: Sequence[float] | None,
    steps: Sequence[Sequence[float]] | None,
    offsets: Sequence[float],
    clip: bool,
) -> Tensor:
    all_sizes = [as_positives(op, "sizes", level) for level in sizes]
    all_ratios = [as_positives(op, "ratios", level) for level in ratios]
    if image_size is not None:
        shapes = [_shapes(*level) for level in zip(all_sizes, all_ratios, strict=True)]
        return _grid(op, feature_maps, shapes, image_size, steps, offsets, clip)
    return torch.ops.ssd_ops.multibox_priors.default(
        list(feature_maps),
        [size for level in all_sizes for size in level],
        [len(level) for level in all_sizes],
        [ratio for level in all_ratios for ratio in level],
        [len(level) for level in all_ratios],
        _as_steps(op, steps),
        _as_offsets(op, offsets),
        bool(clip),
    )


def _shapes(sizes: list[float], ratios: list[float]) -> list[list[float]]:
    """(width, height) of each box of a cell, in the order of `multibox_prior`."""
    pairs = [(size, ratios[0]) for size in sizes] + [(sizes[0], ratio) for ratio in ratios[1:]]
    return [[size * math.sqrt(ratio), size / math.sqrt(ratio)] for size, ratio in pairs]


def _as_steps(op: str, steps: Sequence[Sequence[float]] | None) -> list[float]:
    """(y, x) of each level, one after another; empty for the default."""
    levels = () if steps is None else steps
    pairs = [as_positives(op, "steps", as_tuple_of(op, "steps", pair, 2)) for pair in levels]
    return [step for pair in pairs for step in pair]


def _as_offsets(op: str, offsets: Sequence[float]) -> list[float]:
    return [as_fraction(op, "offsets", offset) for offset in as_tuple_of(op, "offsets", offsets, 2)]


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


def grid_anchors(
    feature_maps: Sequence[Tensor],
    shapes: Sequence[Sequence[Sequence[float]]],
    *,
    image_size: Sequence[float] | None = None,
    steps: Sequence[Sequence[float]] | None = None,
    offsets: Sequence[float] = (0.5, 0.5),
    clip: bool = False,
) -> Tensor:
    """Makes the anchors of all levels of a detector from the widths and heights of its boxes.

    Args:
        feature_maps: L tensors ``[..., H_l, W_l]`` floating point, on one device. Only their shapes,
            dtypes and device are used.
        shapes: One list for each level, of at least one (width, height), greater than 0: the boxes of
            each cell. In fractions of the image; in pixels if `image_size` is given.
        image_size: (height, width) of the image in pixels: shapes and steps are in pixels then, and the
            boxes are in fractions of it. Default: None.
        steps: One pair (y, x) for each level, the distance of neighbouring cells, in the unit of the
            shapes. Default: None, which means that the cells fill the image.
        offsets: (y, x) position of the box center in its cell, 0..1, the same for all levels. Default:
            the middle of the cell.
        clip: Clip the boxes to 0..1. Default: False.

    Returns:
        ``[1, A, 4]`` xyxy in fractions of the image, float32 (float64 if a feature map is float64). The
        order is: level, row, column, shape. Without an `image_size` but with `steps`, boxes have the unit
        of shapes and steps, whatever it is: with both in pixels, boxes are in pixels. (`torch.compile`
        takes an `image_size` as a constant and compiles again for another one. Pixels need none.)

    Raises:
        TypeError, ValueError: a list is empty or has another length, or a number is not positive.
        RuntimeError: a feature map has fewer than two dimensions or is not floating point.

    Source:
        The grids of SSD, torchvision, RetinaFace, Ultra-Light-Face and MediaPipe; docs/detectors.md has
        the arguments for each.

    Example:
        >>> maps = [torch.zeros(3, 4), torch.zeros(2, 2)]
        >>> anchors = grid_anchors(maps, [[(40, 20)], [(80, 80), (80, 40)]], image_size=(120, 160))
        >>> anchors.shape
        torch.Size([1, 20, 4])
        >>> anchors[0, 0]  # 40 x 20 pixels at (20, 20)
        tensor([0.0000, 0.0833, 0.2500, 0.2500])
    """
    op = "grid_anchors"
    _check_levels(op, feature_maps, shapes=shapes, steps=steps)
    levels = [_as_shapes(op, level) for level in shapes]
    return _grid(op, feature_maps, levels, image_size, steps, offsets, clip)


def _as_shapes(op: str, level: Any) -> list[list[float]]:
    try:
        pairs = [as_tuple_of(op, "shapes", pair, 2) for pair in level]
    except (TypeError, ValueError):
        raise ValueError(
            f"{op}: shapes must be a list of (width, height) for each level, got {level!r}"
        ) from None
    if not pairs:
        raise ValueError(f"{op}: shapes must be at least one for each level, got none")
    return [as_positives(op, "shapes", pair) for pair in pairs]


def _grid(
    op: str,
    feature_maps: Sequence[Tensor],
    shapes: list[list[list[float]]],
    image_size: Sequence[float] | None,
    steps: Sequence[Sequence[float]] | None,
    offsets: Sequence[float],
    clip: bool,
) -> Tensor:
    size: list[float] = []
    if image_size is not None:
        size = as_positives(op, "image_size", as_tuple_of(op, "image_size", image_size, 2))
    return torch.ops.ssd_ops.grid_anchors.default(
        list(feature_maps),
        [side for level in shapes for shape in level for side in shape],
        [len(level) for level in shapes],
        size,
        _as_steps(op, steps),
        _as_offsets(op, offsets),
        bool(clip),
    )


@torch.library.register_fake("ssd_ops::grid_anchors")
def _(
    feature_maps: list[Tensor], shapes: list[float], shape_counts: list[int], *_settings: Any
) -> Tensor:
    count = 0
    for feature_map, num_shapes in zip(feature_maps, shape_counts, strict=True):
        count += feature_map.shape[-2] * feature_map.shape[-1] * num_shapes
    return feature_maps[0].new_empty((1, count, 4), dtype=real_dtype(*feature_maps))
