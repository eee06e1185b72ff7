"""Reads picture files, within limits: no file makes this fill the memory."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

MAX_PIXELS = 64_000_000  # of one picture: more is taken for a decompression bomb


class DataError(ValueError):
    """A picture or a data set that cannot be read or fetched; the message names file and entry."""


def pillow() -> Any:
    """The module PIL.Image.

    Raises:
        ImportError: Pillow is not installed; the message says how to.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("pictures: Pillow is needed: pip install ssd_ops[train]") from None
    return Image


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """A picture as uint8 ``[H, W, 3]``, RGB.

    Transparency is dropped, 16-bit grey is brought to 8, of an animation the first frame is taken,
    and a note in the file that the picture be turned is not followed, as boxes are not turned either.

    Args:
        path: a file of any format that Pillow reads.

    Raises:
        DataError: no such file, no picture, a cut one, or one of more than `MAX_PIXELS` pixels, which
            is found before it is decoded; the message is the reason alone.
        ImportError: Pillow is not installed.

    Example:
        >>> read_image("nowhere.png")
        Traceback (most recent call last):
        ssd_ops.tinyssd.data.images.DataError: no such file
    """
    return _open(path, decode=True)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of a picture, from the head of its file.

    Args:
        path: as for `read_image`, which raises the same.
    """
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
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError, *bombs) as error:
        raise DataError(reason(error)) from None


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return " ".join(str(error).split()) or type(error).__name__
