"""Transforms of examples, and the random numbers that they draw."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssd_ops.tinyssd.data.images import DataError

Transforms = Callable[[Tensor, Tensor, Tensor], Any]


def apply_transforms(
    transforms: Transforms, image: Tensor, rows: Tensor, name: str = "an image"
) -> tuple[Tensor, Tensor]:
    """An example as a transform leaves it: a uint8 image ``[3, H, W]`` and its rows ``[G, 5]``.

    Boxes are cut at the border of the new image; those of which nothing is left are dropped.

    Args:
        transforms: called with the image, boxes ``[G, 4]`` xyxy in pixels and labels ``[G]`` int64;
            returns the same three, of any size and count. torchvision's v2 transforms fit: where it
            is in use, image and boxes come as its ``tv_tensors``.
        image: uint8 ``[3, H, W]``.
        rows: ``[G, 5]`` (class, x1, y1, x2, y2) in fractions of the image; class -1 is padding.
        name: of the image, for errors.

    Raises:
        DataError: the transform fails, or returns something else.
    """
    rows = rows[rows[:, 0] >= 0]
    height, width = image.shape[1:]
    boxes, labels = rows[:, 1:] * rows.new_tensor([width, height] * 2), rows[:, 0].long()
    tv_tensors: Any = sys.modules.get("torchvision.tv_tensors")
    if tv_tensors is not None:
        image = tv_tensors.Image(image)
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
    wanted = "data: transforms must return"
    try:
        parts = transforms(image, boxes, labels)
        image, boxes, labels = (torch.as_tensor(part).as_subclass(Tensor) for part in parts)
        boxes, labels = boxes.float().reshape(-1, 4), labels.long()
    except Exception as error:
        got = f"{type(error).__name__} for {name}: {error}"
        raise DataError(f"{wanted} an image, boxes and labels, got {got}") from error
    got = f"{image.dtype} {list(image.shape)}, {list(labels.shape)} and {list(boxes.shape)} for {name}"
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise DataError(f"{wanted} a uint8 image [3, H, W], got {got}")
    if labels.shape != (len(boxes),) or not boxes.isfinite().all():
        raise DataError(f"{wanted} as many labels as boxes, all finite, got {got}")
    height, width = image.shape[1:]
    boxes = (boxes / boxes.new_tensor([width, height] * 2)).clamp(0, 1)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return image, torch.cat((labels[:, None].float(), boxes), dim=1)[kept]


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Within the block, torch, numpy and Python draw random numbers that follow from `numbers`.

    After the block, the generators stand where they stood before it.
    """
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    states = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not those of the GPUs, as torch.manual_seed
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(states[0])
            random.setstate(states[1])
