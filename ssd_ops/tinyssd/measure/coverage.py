"""How well anchors cover the ground truths of a set, and which would cover them better."""

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

SAMPLE = 300  # boxes that candidates are tried on: enough to tell them apart, and quick
FACTORS = (0.2, 0.5, 0.8, 0.95, 0.99, 1.01, 1.05, 1.25, 2.0, 5.0)  # tried on each size and ratio


class Suggestion(NamedTuple):
    """Anchors for a set, as in a settings file, and the IoUs that they reach."""

    sizes: list[list[float]]
    ratios: list[list[float]]
    ious: Tensor


def boxes_of(dataset: Any, preprocess: Preprocess) -> tuple[Tensor, Tensor]:
    """All boxes ``[N, 4]`` of a set, xyxy in fractions of the input, and their classes ``[N]``.

    The set has ``labels`` and ``images`` as a banana set, or ``rows`` and ``sizes`` as a COCO set; no
    image is decoded. One without ground truths is a ValueError.
    """
    if hasattr(dataset, "rows"):
        gts, sizes = dataset.rows, dataset.sizes
    else:
        gts, sizes = dataset.labels, [dataset.images.shape[2:]] * len(dataset.labels)
    boxes = [preprocess.to_input(r[:, 1:], *size) for r, size in zip(gts, sizes, strict=True)]
    classes = torch.cat([rows[:, 0] for rows in gts])
    real = classes >= 0
    if not real.any():
        raise ValueError("anchors: the set must hold a ground truth at least, got none")
    return torch.cat(boxes)[real], classes[real].long()


def feature_maps(model: TinySSD) -> list[Tensor]:
    """Empty maps ``[1, 1, H, W]`` of the sizes that the model's scales have at its input size."""
    with inference(model) as device:
        maps = model.feature_maps(torch.zeros(1, 3, *model.preprocess.size, device=device))
    return [torch.zeros(1, 1, *fmap.shape[-2:]) for fmap in maps]


def best_ious(boxes: Tensor, anchors: Tensor) -> Tensor:
    """The IoU ``[N]`` of each box ``[N, 4]`` with the anchor that covers it best."""
    # By parts: the whole matrix of a large set would fill the memory.
    parts = boxes.split(256)
    return torch.cat([ops.box_iou(part, anchors.reshape(-1, 4)).amax(dim=1) for part in parts])


def suggest(
    boxes: Tensor,
    maps: Sequence[Tensor],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[Sequence[float]],
) -> Suggestion:
    """Anchors that cover these boxes better than the given ones do, as many at every scale.

    Changes one size or ratio after another as long as that helps: first by how many boxes an anchor
    covers at IoU 0.5 or more, then by the mean IoU. The same input gives the same answer.

    Args:
        boxes: ``[N, 4]`` xyxy, in fractions of the input, N at least 1.
        maps: of `feature_maps`.
        sizes, ratios: of each scale, as for `TinySSD`; the search starts there.
    """
    sample = boxes[torch.linspace(0, len(boxes) - 1, min(SAMPLE, len(boxes))).long()]
    new_sizes, new_ratios = [list(row) for row in sizes], [list(row) for row in ratios]

    # Scale by scale, [scales, N], so that a change costs the anchors of its own scale alone.
    scales = list(zip(maps, new_sizes, new_ratios, strict=True))
    rows = [(n, row) for n, (_, *pair) in enumerate(scales) for row in pair]
    places = [(n, row, place) for n, row in rows for place in range(len(row))]
    ious = torch.stack([best_ious(sample, ops.multibox_prior(*scale)) for scale in scales])
    before, now = None, _worth(ious)
    while before != now:
        before = now
        for (number, row, place), factor in product(places, FACTORS):
            kept, row[place] = row[place], max(0.001, round(row[place] * factor, 3))
            changed = ious.clone()
            changed[number] = best_ious(sample, ops.multibox_prior(*scales[number]))
            if _worth(changed) > now:
                ious, now = changed, _worth(changed)
            else:
                row[place] = kept
    anchors = ops.multibox_priors(maps, new_sizes, new_ratios)
    return Suggestion(new_sizes, new_ratios, best_ious(boxes, anchors))


def _worth(ious: Tensor) -> tuple[float, float]:
    """Of the best IoUs ``[scales, N]``: the share of boxes that are covered, then the mean."""
    best = ious.amax(dim=0)
    return float((best >= 0.5).float().mean()), float(best.mean())
