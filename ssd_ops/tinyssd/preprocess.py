"""What a model expects of its input, and where boxes lie before and after."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

PAD = 127  # the grey around a letterboxed image: the middle of its range


@dataclass(frozen=True)
class Preprocess:
    """What a model expects of its input: called on raw images, returns what `forward` takes.

    Images are resized and scaled here alone, so that training, evaluation and prediction cannot
    differ. A model has its own as ``model.preprocess``.

    Args:
        size: (height, width) in pixels that images are resized to, bilinear and antialiased.
        mean, std: of the three channels in units of 0..255: the one is subtracted, and the other
            divided by. The defaults leave the channels as they are, as the chapter does.
        letterbox: keep the shape of an image, in the middle of grey bars; False, the default,
            stretches it to `size`.
    """

    size: tuple[int, int] = (256, 256)
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    letterbox: bool = False

    def __call__(self, images: Tensor) -> Tensor:
        """Scaled images, float32 ``[B, 3, *size]``, from ``[B, 3, H, W]`` in 0..255, any dtype."""
        images = self.fit(images).float()
        # Nothing to do where it would change nothing: the chapter's network takes 0..255.
        if any(self.mean) or set(self.std) != {1.0}:
            mean, std = (_channels(values, images.device) for values in (self.mean, self.std))
            images = (images - mean) / std
        return images

    def fit(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` at the input size, of the same dtype and not yet scaled."""
        height, width = images.shape[-2:]
        if (height, width) == self.size:
            return images
        x, y, w, h = self._place(height, width)
        resized = images.float()
        if (height, width) != (h, w):
            resized = F.interpolate(resized, (h, w), mode="bilinear", antialias=True)
        right, below = self.size[1] - x - w, self.size[0] - y - h
        resized = F.pad(resized, (x, right, y, below), value=PAD).round()
        # Whole grey levels from floats too: the same pixels, whatever they come in.
        return resized if images.is_floating_point() else resized.to(images.dtype)

    def _place(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Left, top, width and height in pixels of the input that an image takes."""
        rows, columns = self.size
        if not self.letterbox:
            return 0, 0, columns, rows
        scale = min(rows / height, columns / width)
        w, h = max(1, round(width * scale)), max(1, round(height * scale))
        return (columns - w) // 2, (rows - h) // 2, w, h

    def _fractions(self, like: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """The corner and the sides of that place in fractions of the input, as ``[4]`` for xyxy."""
        scale = like.new_tensor(self.size).flip(0).repeat(2)
        x, y, w, h = self._place(height, width)
        return like.new_tensor([x, y, x, y]) / scale, like.new_tensor([w, h, w, h]) / scale

    def to_input(self, boxes: Tensor, height: int, width: int) -> Tensor:
        """Boxes ``[..., 4]``, xyxy in fractions of an image of this size, in those of the input."""
        corner, sides = self._fractions(boxes, height, width)
        return boxes * sides + corner

    def to_pixels(self, boxes: Tensor, height: int, width: int) -> Tensor:
        """Boxes ``[..., 4]``, xyxy in fractions of the input, in pixels of an image of this size."""
        corner, sides = self._fractions(boxes, height, width)
        return (boxes - corner) / sides * boxes.new_tensor([width, height] * 2)


@lru_cache(maxsize=32)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    """``[C, 1, 1]``, made once: a copy to a GPU in every step would wait for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]
