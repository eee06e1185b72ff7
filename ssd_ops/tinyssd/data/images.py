"""Reads image files, within limits: no file makes this fill the memory."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_PIXELS = 64_000_000  # of one image: more is taken for a decompression bomb


class DataError(ValueError):
    """An image or a data set that cannot be read or fetched; the message names file and entry."""


def pillow() -> Any:
    """The module PIL.Image; an ImportError says how to install it."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("images: Pillow is needed: pip install ssd_ops[train]") from None
    return Image


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """An image as uint8 ``[H, W, 3]``, RGB, of any format that Pillow reads.

    Transparency is dropped, 16-bit grey is brought to 8, and of an animation the first frame is
    taken. A note in the file that the image is to be turned is not followed: boxes would not turn.

    Raises:
        DataError: the file is missing, not an image, cut off, or has more than `MAX_PIXELS` pixels,
            which is seen before it is decoded; the message is the reason alone.
    """
    return _open(path, decode=True)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of an image, from the head of its file; errors as of `read_image`."""
    return _open(path, decode=False)


def as_image(op: str, image: Any) -> Tensor:
    """A tensor ``[3, H, W]``, RGB in 0..255, of an image given as path, array or tensor.

    Args:
        op: what errors start with.
        image: a path; a uint8 array ``[H, W, 3]``; or a tensor ``[3, H, W]``, uint8 or float in 0..255,
            which comes back as it is.

    Raises:
        ValueError, TypeError: not such an image, see `check_range` for floats.
        FileNotFoundError: no file at the path.

    Example:
        >>> as_image("predict", np.zeros((48, 60, 3), np.uint8)).shape
        torch.Size([3, 48, 60])
    """
    wanted = f"{op}: image must be"
    if isinstance(image, str | os.PathLike):
        try:
            image = read_image(image)
        except DataError as error:
            kind = ValueError if os.path.exists(image) else FileNotFoundError
            raise kind(f"{wanted} a readable file, got {image} ({error})") from None
    if not isinstance(image, np.ndarray | Tensor):
        raise TypeError(f"{wanted} a path, an array or a tensor, got {type(image).__name__}")
    shape, dtype = list(image.shape), str(image.dtype).removeprefix("torch.")
    if isinstance(image, Tensor):
        what, channels = "uint8 or float tensor [3, H, W]", shape[:1]
        good = dtype == "uint8" or image.is_floating_point()
    else:
        what, channels, good = "uint8 array [H, W, 3]", shape[2:], dtype == "uint8"
    if not good or len(shape) != 3 or channels != [3] or 0 in shape:
        raise ValueError(f"{wanted} a {what}, got {dtype} {shape}")
    if isinstance(image, Tensor):
        check_range(wanted, image)
        return image
    return torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)


def check_range(wanted: str, images: Tensor) -> None:
    """A ValueError if images are floats and not in 0..255, but in 0..1 or normalised, say.

    Fractions, and nothing above 1, are taken for 0..1. The values are read, which waits for a GPU.

    Args:
        wanted: what the error starts with.
        images: of any shape; whole numbers are always right.
    """
    if not images.is_floating_point() or not images.numel():
        return
    low, high = (float(value) for value in images.detach().aminmax())
    fractions = high <= 1 and bool((images != images.round()).any())
    if fractions or not (low >= 0 and high <= 255):
        raise ValueError(
            f"{wanted} in 0..255, as read from a file, got values in {low:g}..{high:g}"
        )


def _open(path: str | os.PathLike[str], *, decode: bool) -> Any:
    image_module = pillow()
    # Pillow raises the first at its own limit, and the second where warnings are errors.
    bombs = (image_module.DecompressionBombError, image_module.DecompressionBombWarning)
    try:
        with image_module.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
            if not decode:
                return image.height, image.width
            if image.mode.startswith("I;16"):
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.array(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, *bombs) as error:
        raise DataError(reason(error)) from None


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return " ".join(str(error).split()) or type(error).__name__
