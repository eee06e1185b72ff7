"""Random changes of a training batch that leave its labels true."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ssd_ops.settings import Settings


def augment(
    images: Tensor, labels: Tensor, settings: Settings, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A batch with some images mirrored and recoloured, and their boxes with them.

    Args:
        images: uint8 ``[B, 3, H, W]``, not changed in place.
        labels: ``[B, G, 5]`` rows in fractions of the image, class -1 padding; not changed.
        settings: its `flip` and `jitter`.
        rng: where the choices come from.

    Returns:
        Images in 0..255, uint8 or, recoloured, float32, and labels.
    """
    for low, high, axis in ((1, 3, -1), (2, 4, -2)) if settings.flip else ():
        chosen = torch.from_numpy(rng.random(len(images)) < settings.flip)
        images = torch.where(chosen[:, None, None, None], images.flip(axis), images)
        mirrored = labels.clone()
        mirrored[..., low], mirrored[..., high] = 1 - labels[..., high], 1 - labels[..., low]
        real = chosen[:, None] & (labels[..., 0] >= 0)
        labels = torch.where(real[..., None], mirrored, labels)
    if settings.jitter:
        shape = (2, len(images), 3, 1, 1)
        draws = rng.uniform(-settings.jitter, settings.jitter, shape).astype(np.float32)
        scale, shift = torch.from_numpy(draws)
        images = (images * (1 + scale) + 255 * shift).clamp(0, 255)
    return images, labels
