"""Changes of examples and of training batches, and the random numbers that they draw."""

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
from ssd_ops.tinyssd.data.rows import is_row
from ssd_ops.tinyssd.settings import Settings

Transforms = Callable[[Tensor, Tensor, Tensor], Any]


def apply_transforms(
    transforms: Transforms | None, image: Tensor, rows: Tensor, name: str = "an image"
) -> tuple[Tensor, Tensor]:
    """An example as a transform leaves it: a uint8 image ``[3, H, W]`` and its rows ``[G, 5]``.

    Boxes are cut at the border of the new image; those of which nothing is left are dropped.

    Args:
        transforms: called with the image, boxes ``[G, 4]`` xyxy in pixels and labels ``[G]`` int64;
            returns the same three, of any size and count. torchvision's v2 transforms fit: where it
            is in use, image and boxes come as its ``tv_tensors``. None changes nothing.
        image: uint8 ``[3, H, W]``.
        rows: ``[G, 5]`` (class, x1, y1, x2, y2) in fractions of the image; class -1 is padding, which
            a transform does not get, and below -1 are crowds, which it does
            (`ssd_ops.tinyssd.data.rows`).
        name: of the image, for errors.

    Raises:
        DataError: the transform fails, or returns something else.
    """
    if transforms is None:
        return image, rows
    rows = rows[is_row(rows)]
    height, width = image.shape[1:]
    boxes, labels = rows[:, 1:] * rows.new_tensor([width, height] * 2), rows[:, 0].long()
    tv_tensors: Any = sys.modules.get("torchvision.tv_tensors")
    if tv_tensors is not None:
        image = tv_tensors.Image(image)
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
    wanted = "data: transforms must return"
    try:
        changed = map(torch.as_tensor, transforms(image, boxes, labels))
        image, boxes, labels = (tensor.as_subclass(Tensor) for tensor in changed)
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


def augment(
    images: Tensor,
    labels: Tensor,
    settings: Settings,
    rng: np.random.Generator,
    *,
    part: slice = slice(None),
    in_all: int | None = None,
) -> tuple[Tensor, Tensor]:
    """A batch with some images mirrored and recoloured, and their boxes with them.

    Args:
        images: uint8 ``[B, 3, H, W]``; not changed in place, like labels.
        labels: ``[B, G, 5]`` rows in fractions of the image, as of `Batch`.
        settings: its `flip`, `flip_vertical` and `jitter`.
        rng: where the choices come from.
        part, in_all: which images these are of a batch of how many, where processes share it; the
            choices are those that one process would make. The default: all.

    Returns:
        Images in 0..255, uint8 or, recoloured, float32, and labels.
    """
    count = len(images) if in_all is None else in_all
    for chance, low, high, axis in ((settings.flip, 1, 3, -1), (settings.flip_vertical, 2, 4, -2)):
        if not chance:
            continue
        chosen = torch.from_numpy(rng.random(count) < chance)[part].to(images.device)
        images = torch.where(chosen[:, None, None, None], images.flip(axis), images)
        mirrored = labels.clone()
        mirrored[..., low], mirrored[..., high] = 1 - labels[..., high], 1 - labels[..., low]
        real = chosen[:, None] & is_row(labels)
        labels = torch.where(real[..., None], mirrored, labels)
    if settings.jitter:
        shape = (2, count, 3, 1, 1)
        draws = rng.uniform(-settings.jitter, settings.jitter, shape).astype(np.float32)
        scale, shift = torch.from_numpy(draws)[:, part].to(images.device)
        images = (images * (1 + scale) + 255 * shift).clamp(0, 255)
    return images, labels


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
