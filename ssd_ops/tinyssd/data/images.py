"""Reads image files, within limits: no file makes this fill the memory."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

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

    Example:
        >>> read_image("nowhere.png")
        Traceback (most recent call last):
        ssd_ops.tinyssd.data.images.DataError: no such file
    """
    return _open(path, decode=True)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of an image, from the head of its file; errors as of `read_image`."""
    return _open(path, decode=False)


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
