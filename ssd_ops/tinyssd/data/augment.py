"""Random changes of a training batch that leave its labels true."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssd_ops.tinyssd.settings import Settings


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
        labels: ``[B, G, 5]`` rows in fractions of the image, class -1 padding.
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
        real = chosen[:, None] & (labels[..., 0] >= 0)
        labels = torch.where(real[..., None], mirrored, labels)
    if settings.jitter:
        shape = (2, count, 3, 1, 1)
        draws = rng.uniform(-settings.jitter, settings.jitter, shape).astype(np.float32)
        scale, shift = torch.from_numpy(draws)[:, part].to(images.device)
        images = (images * (1 + scale) + 255 * shift).clamp(0, 255)
    return images, labels
