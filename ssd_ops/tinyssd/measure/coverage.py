"""How well anchors cover the objects of a set, and which would cover them better."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssd_ops import ops
from ssd_ops.tinyssd.model import TinySSD
from ssd_ops.tinyssd.predict import inference
from ssd_ops.tinyssd.preprocess import Preprocess

Shapes = tuple[tuple[float, ...], ...]  # sizes or ratios, scale by scale

SAMPLE = 300  # objects that candidates are tried on: enough to tell them apart, and quick
STEPS = (0.5, 0.8, 0.95, 1.05, 1.25, 2.0)  # factors tried on each size and ratio


class Suggestion(NamedTuple):
    """Anchors for a set: ``sizes`` and ``ratios`` as for `TinySSD`, and the ``ious`` they reach."""

    sizes: Shapes
    ratios: Shapes
    ious: Tensor


def boxes_of(dataset: Any, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """All boxes ``[N, 4]`` of a set, xyxy in fractions of the input, and their classes ``[N]``.

    Args:
        dataset: has ``labels`` and ``images`` as a banana set has, or ``rows`` and ``sizes`` as a
            COCO set; no picture is decoded.
        preprocess: of the model.

    Raises:
        ValueError: a set without any object.

    Example:
        >>> from types import SimpleNamespace
        >>> one = SimpleNamespace(rows=[torch.tensor([[2, 0.0, 0.0, 1.0, 1.0]])], sizes=[(10, 20)])
        >>> boxes_of(one, Preprocess((64, 64), letterbox=True))
        (tensor([[0.0000, 0.2500, 1.0000, 0.7500]]), tensor([2]))
    """
    given = hasattr(dataset, "rows")
    sizes = dataset.sizes if given else [dataset.images.shape[2:]] * len(dataset.labels)
    parts = []
    for rows, (height, width) in zip(dataset.rows if given else dataset.labels, sizes, strict=True):
        rows = rows[rows[:, 0] >= 0]
        boxes = preprocess.to_input(rows[:, 1:], height, width)
        parts.append(torch.cat((rows[:, :1], boxes), dim=1))
    rows = torch.cat(parts)
    if not len(rows):
        raise ValueError("anchors: the set must hold an object at least, got none")
    return rows[:, 1:], rows[:, 0].long()


def feature_maps(model: TinySSD) -> list[Tensor]:
    """Empty maps ``[1, 1, H, W]`` of the sizes that the model's scales have at its input size.

    Example:
        >>> [tuple(fmap.shape[2:]) for fmap in feature_maps(TinySSD())]
        [(32, 32), (16, 16), (8, 8), (4, 4), (1, 1)]
    """
    with inference(model) as device:
        maps = model.feature_maps(torch.zeros(1, 3, *model.preprocess.size, device=device))
        return [torch.zeros(1, 1, *fmap.shape[-2:]) for fmap in maps]


def best_ious(boxes: Tensor, anchors: Tensor) -> Tensor:
    """The IoU ``[N]`` of each box with the anchor that covers it best, 0 where there is none.

    Args:
        boxes: ``[N, 4]`` xyxy, in fractions of the input.
        anchors: ``[1, A, 4]`` or ``[A, 4]``.

    Example:
        >>> best_ious(torch.tensor([[0.0, 0.0, 0.5, 0.5]]), torch.tensor([[0.0, 0.0, 0.5, 1.0]]))
        tensor([0.5000])
    """
    anchors = anchors.reshape(-1, 4)
    # By parts: the whole matrix of a large set would fill the memory.
    parts = [ops.box_iou(part, anchors).amax(dim=1) for part in boxes.split(256)]
    return torch.cat(parts) if parts else torch.zeros(0)


def suggest(
    boxes: Tensor, maps: Sequence[Tensor], sizes: Shapes, ratios: Shapes, input_ratio: float = 1.0
) -> Suggestion:
    """Anchors that cover these boxes better than the given ones do, as many at every scale.

    Starts from the given anchors, and from quantiles of the boxes' sizes and ratios; changes one
    number after another as long as that helps, and returns the better end: first by how many boxes an
    anchor covers at IoU 0.5 or more, then by the mean IoU. Deterministic.

    Args:
        boxes: ``[N, 4]`` xyxy, in fractions of the input, N at least 1.
        maps: of `feature_maps`.
        sizes: of each scale, now.
        ratios: of each scale, now.
        input_ratio: width of the input over its height, in pixels.

    Example:
        >>> boxes = torch.tensor([[0.3, 0.3, 0.5, 0.4], [0.6, 0.1, 0.7, 0.15]])
        >>> maps, sizes, ratios = [torch.zeros(1, 1, 8, 8)], ((0.9, 0.95),), ((1.0, 2.0),)
        >>> best_ious(boxes, ops.multibox_priors(maps, sizes, ratios)).max() < 0.1
        tensor(True)
        >>> suggest(boxes, maps, sizes, ratios).ious.mean() > 0.2
        tensor(True)
    """
    sample = boxes[torch.linspace(0, len(boxes) - 1, min(SAMPLE, len(boxes))).long()]
    starts = (sizes, ratios), _quantiles(sample, sizes, ratios, input_ratio)
    ends = [_climb(sample, maps, *start) for start in starts]
    best = max(ends, key=lambda end: _worth(end.ious))
    anchors = ops.multibox_priors(maps, best.sizes, best.ratios)
    return Suggestion(best.sizes, best.ratios, best_ious(boxes, anchors))


def _climb(boxes: Tensor, maps: Sequence[Tensor], sizes: Shapes, ratios: Shapes) -> Suggestion:
    """Where changes of single numbers lead; its IoUs are those of each scale ``[scales, N]``."""
    shapes = [[list(row) for row in rows] for rows in (sizes, ratios)]

    def reached(scale: int) -> Tensor:
        return best_ious(boxes, ops.multibox_prior(maps[scale], *(rows[scale] for rows in shapes)))

    # Scale by scale, so that a change costs the anchors of its own alone.
    ious = torch.stack([reached(scale) for scale in range(len(maps))])
    before = None
    while before != _worth(ious):
        before = _worth(ious)
        for scale, kind in product(range(len(maps)), (0, 1)):
            row = shapes[kind][scale]
            for place, factor in product(range(len(row)), STEPS):
                kept, row[place] = row[place], max(0.001, round(row[place] * factor, 3))
                changed = ious.clone()
                changed[scale] = reached(scale)
                if _worth(changed) > _worth(ious):
                    ious = changed
                else:
                    row[place] = kept
    found_sizes, found_ratios = (tuple(map(tuple, rows)) for rows in shapes)
    return Suggestion(found_sizes, found_ratios, ious)


def _worth(ious: Tensor) -> tuple[float, float]:
    """Of the best IoUs ``[scales, N]``: the share of boxes that are covered, then the mean."""
    best = ious.amax(dim=0)
    return float((best >= 0.5).float().mean()), float(best.mean())


def _quantiles(
    boxes: Tensor, sizes: Shapes, ratios: Shapes, input_ratio: float
) -> tuple[Shapes, Shapes]:
    """Sizes and ratios spread as those of the boxes are, small ones on the fine maps."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    # In units of the input's height, as sizes are; see `ops.multibox_prior`.
    width = width * input_ratio
    counts = [len(row) for row in sizes]
    at = (torch.arange(sum(counts)) + 0.5) / sum(counts)
    levels = (width * height).sqrt().quantile(at).split(counts)
    shapes: list[tuple[float, ...]] = []
    for row in ratios:
        at = (torch.arange(len(row)) + 0.5) / len(row)
        found = (width / height).log().quantile(at).exp().tolist()
        # The middle one first: it is the one that goes with every size.
        middle = found.pop(len(found) // 2)
        shapes.append(tuple(round(value, 3) for value in (middle, *found)))
    found_sizes = tuple(tuple(max(0.001, round(v, 3)) for v in level.tolist()) for level in levels)
    return found_sizes, tuple(shapes)


def as_toml(sizes: Any, ratios: Any) -> str:
    """Two lines for a file of settings.

    Example:
        >>> print(as_toml(((0.2, 0.3),), ((1.0,),)))
        sizes = [[0.2, 0.3]]
        ratios = [[1.0]]
    """
    lists = [[list(row) for row in rows] for rows in (sizes, ratios)]
    return f"sizes = {lists[0]}\nratios = {lists[1]}"
