"""Reads image files, within limits: no file makes this fill the memory."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

LIMIT = 64_000_000  # pixels of an image: more is taken for a decompression bomb
MAX_PIXELS = int(os.environ.get("SSD_OPS_MAX_PIXELS", LIMIT))
# What turns an image as its file says, by the number of its orientation in EXIF.
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class DataError(ValueError):
    """An image or a data set that cannot be read or fetched; the message names file and entry."""


def pillow() -> Any:
    """The module PIL.Image; an ImportError says how to install it."""
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("images: Pillow is needed: pip install ssd_ops[train]") from None
    if MAX_PIXELS > LIMIT and Image.MAX_IMAGE_PIXELS is not None:  # its own limit is in the way
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)
    return Image


def read_image(path: str | os.PathLike[str], *, turned: bool = True) -> np.ndarray:
    """An image as uint8 ``[H, W, 3]``, RGB, of any format that Pillow reads.

    Transparency is dropped, and of an animation the first frame is taken. Grey levels of 16 bits are brought
    to 8. Of files with 32-bit or float levels, 0..1, 0..255 or 0..65535, the first that holds the highest
    level, becomes 0..255; for a higher level, 0 to that level. NaN and infinite levels become 0.

    Args:
        path: the file.
        turned: turn it as its EXIF orientation says, as it is shown by viewers; phones write it so. False:
            the pixels as they are stored.

    Raises:
        DataError: the file is missing, not an image, cut off, or has more than `MAX_PIXELS` pixels,
            which is seen before it is decoded; the message is the reason alone. The environment variable
            ``SSD_OPS_MAX_PIXELS`` sets this limit.
    """
    return _open(path, turned, decode=True)


def image_size(path: str | os.PathLike[str], *, turned: bool = True) -> tuple[int, int]:
    """(height, width) of an image, from the head of its file; arguments and errors as of `read_image`."""
    return _open(path, turned, decode=False)


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


def _open(path: str | os.PathLike[str], turned: bool, *, decode: bool) -> Any:
    image_module = pillow()
    # Pillow raises the first at its own limit, and the second where warnings are errors.
    bombs = (image_module.DecompressionBombError, image_module.DecompressionBombWarning)
    try:
        with image_module.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                got = f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}"
                raise DataError(f"{got}, a limit that SSD_OPS_MAX_PIXELS sets")
            turn = TURNS.get(_orientation(image)) if turned else None
            if not decode:
                size = image.height, image.width
                return size[::-1] if turn and _orientation(image) > 4 else size
            deep = image.mode[0] in "IF"  # one channel of more than 8 bits, which Pillow would clip
            pixels = image_module.fromarray(_grey(image)) if deep else image
            pixels = pixels.transpose(image_module.Transpose[turn]) if turn else pixels
            return np.array(pixels.convert("RGB"))
    except (OSError, ValueError, SyntaxError, *bombs) as error:
        raise DataError(reason(error)) from None


def _orientation(image: Any) -> int:
    """How an image is to be turned, as EXIF numbers it; 1, not at all, where its file says nothing."""
    # TIFF has none there: Pillow turns it itself. What stands behind the pixels of a PNG is not looked for.
    if "exif" not in image.info:
        return 1
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # Broken in one of many ways, in an image that is good.
        return 1


def _grey(image: Any) -> np.ndarray:
    """uint8 ``[H, W]`` of an image of 16, 32 or float bits, scaled as `read_image` says."""
    levels = np.asarray(image)
    # 16 bits of PPM, and of PNG in older versions of Pillow, are read as 32.
    if image.mode != "F" and (image.mode != "I" or image.format in ("PNG", "PPM")):
        return (levels >> 8).astype(np.uint8)
    levels = np.nan_to_num(levels.astype(np.float32), posinf=0.0)
    highest = levels.max()
    full = next((scale for scale in (1.0, 255.0, 65535.0) if highest <= scale), highest)
    return (levels.clip(0) / full * 255).round().astype(np.uint8)


def reason(error: BaseException) -> str:
    """What went wrong, in one line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return " ".join(str(error).split()) or type(error).__name__
