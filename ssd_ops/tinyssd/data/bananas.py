"""The banana detection format of "Dive into Deep Learning", and transforms of examples.

A set is a folder with ``bananas_train`` and ``bananas_val``; each holds ``label.csv`` with the
columns ``img_name,label,xmin,ymin,xmax,ymax`` (pixels) and the pictures in ``images``.
"""

from __future__ import annotations

import csv
import os
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssd_ops.tinyssd.data.images import DataError, pillow, read_image

HEADER = ["img_name", "label", "xmin", "ymin", "xmax", "ymax"]
MAX_CLASSES = 10_000  # a larger class number is taken for a mistake

Transforms = Callable[[Tensor, Tensor, Tensor], Any]


class BananaDetection(Dataset):
    """Pictures and boxes of one split, decoded once and kept in memory.

    ``dataset[i]`` is ``(images[i], labels[i])``, views and not copies, or what `transforms` makes of
    them; ``len(dataset)`` counts pictures. A set of 1,000 pictures of 256 x 256 pixels takes 200 MB.

    Args:
        folder: Holds ``bananas_train`` and ``bananas_val``.
        split: ``"train"`` (the default) or ``"val"``.
        transforms: what changes an example whenever it is taken, see `apply_transforms`; None (the
            default) changes nothing.

    Attributes:
        images: ``[N, 3, H, W]`` uint8, in the order in which the file first names them.
        labels: ``[N, G, 5]`` float32 rows (class, x1, y1, x2, y2), corners in fractions of the
            picture, in the file's order; rows of -1 fill up to the largest count of a picture.
        names: The N file names.
        class_names: ``["banana"]``, or numbered names where the file has more classes.

    Raises:
        DataError: a file is missing or malformed, a box leaves its picture, or sizes differ; the
            message names file and line, of which the header is the first.
        ImportError: Pillow is not installed.

    Source: Dive into Deep Learning, section 14.6, where every picture has one row.

    Example:
        >>> import tempfile
        >>> from ssd_ops.tinyssd.data.draw_bananas import make_bananas
        >>> folder = make_bananas(Path(tempfile.mkdtemp()) / "set", train=2, val=1, size=64)
        >>> image, labels = BananaDetection(folder, "val")[0]
        >>> image.shape, labels.shape
        (torch.Size([3, 64, 64]), torch.Size([1, 5]))
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        split: str = "train",
        *,
        transforms: Transforms | None = None,
    ) -> None:
        if split not in ("train", "val"):
            raise DataError(f"data: split must be 'train' or 'val', got {split!r}")
        root = Path(folder) / f"bananas_{split}"
        path = root / "label.csv"
        rows = _read_rows(path)
        first_lines: dict[str, int] = {}
        for line, row in rows:
            first_lines.setdefault(row[0], line)
        self.names = list(first_lines)
        self.images = _read_images(path, first_lines)
        self.labels = _labels(path, rows, self.names, self.images)
        count = int(self.labels[..., 0].max()) + 1
        self.class_names = ["banana"] if count == 1 else [f"class {i}" for i in range(count)]
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, rows = self.images[index], self.labels[index]
        if self.transforms is None:
            return image, rows
        return apply_transforms(self.transforms, image, rows, self.names[index])


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows below the header with their line numbers."""
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the header.
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if header != HEADER:
                raise DataError(
                    f"data: {path}, line 1: must be {','.join(HEADER)!r}, got {_text(header)}"
                )
            rows = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise DataError(f"data: {path} must be a readable file, got {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"data: {path} must be CSV in UTF-8, got {error}") from None
    if not rows:
        raise DataError(f"data: {path}, line 2: must be a picture's row, got the end of the file")
    for line, row in rows:
        if len(row) != len(HEADER):
            raise DataError(
                f"data: {path}, line {line}: must have {len(HEADER)} columns, got {len(row)}"
            )
    return rows


def _text(row: list[str] | None) -> str:
    return "an empty file" if row is None else repr(",".join(row)[:80])


def _read_images(path: Path, first_lines: dict[str, int]) -> Tensor:
    """The pictures named in a label file, all of one size."""
    pillow()
    folder = path.parent / "images"

    def read(item: tuple[str, int]) -> np.ndarray:
        name, line = item
        # A name is one part of a path, so nothing outside of the folder can be named.
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise DataError(
                f"data: {path}, line {line}: img_name must be a file name, got {name!r}"
            )
        try:
            return read_image(folder / name)
        except DataError as error:
            raise DataError(
                f"data: {path}, line {line}: {folder / name} must be a readable picture, got {error}"
            ) from None

    items = list(first_lines.items())
    # Pillow decodes without the interpreter's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        first = read(items[0])
        height, width = first.shape[:2]
        images = np.empty((len(items), 3, height, width), np.uint8)
        images[0] = first.transpose(2, 0, 1)
        for index, image in enumerate(pool.map(read, items[1:]), start=1):
            if image.shape != first.shape:
                name, line = items[index]
                raise DataError(
                    f"data: {path}, line {line}: {name} must be {width} x {height} pixels "
                    f"like {items[0][0]}, got {image.shape[1]} x {image.shape[0]}"
                )
            images[index] = image.transpose(2, 0, 1)
    return torch.from_numpy(images)


def _labels(
    path: Path, rows: list[tuple[int, list[str]]], names: list[str], images: Tensor
) -> Tensor:
    height, width = images.shape[2:]
    groups: dict[str, list[list[float]]] = {name: [] for name in names}
    for line, row in rows:
        label, *corners = (
            _number(path, line, name, text) for name, text in zip(HEADER[1:], row[1:], strict=True)
        )
        if not (label.is_integer() and 0 <= label < MAX_CLASSES):
            raise DataError(
                f"data: {path}, line {line}: label must be a class number from 0, got {row[1]!r}"
            )
        x1, y1, x2, y2 = corners
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
            raise DataError(
                f"data: {path}, line {line}: the box must lie in the {width} x {height} pixels of "
                f"{row[0]} with xmin < xmax and ymin < ymax, got {', '.join(row[2:])}"
            )
        groups[row[0]].append([label, x1 / width, y1 / height, x2 / width, y2 / height])
    labels = torch.full((len(names), max(map(len, groups.values())), 5), -1.0)
    for index, name in enumerate(names):
        labels[index, : len(groups[name])] = torch.tensor(groups[name])
    return labels


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise DataError(f"data: {path}, line {line}: {column} must be a number, got {text!r}")
    return number


def apply_transforms(
    transforms: Transforms, image: Tensor, rows: Tensor, name: str = "an image"
) -> tuple[Tensor, Tensor]:
    """An example as a transform leaves it: a uint8 image ``[3, H, W]`` and its rows ``[G, 5]``.

    Boxes are cut at the border of the new image, and those of which nothing is left are dropped.

    Args:
        transforms: called with the image, boxes ``[G, 4]`` xyxy in pixels and labels ``[G]`` int64;
            returns the same three, of any size and count. Where torchvision is in use, image and
            boxes come as its ``tv_tensors``, so its v2 transforms can be given as they are.
        image: uint8 ``[3, H, W]``.
        rows: ``[G, 5]`` (class, x1, y1, x2, y2) in fractions of the image; a row of negative class
            is padding, and is left out.
        name: of the image, for errors.

    Raises:
        DataError: the transform fails, or returns something else.

    Example:
        >>> def mirror(image, boxes, labels):
        ...     width = image.shape[2]
        ...     x1, y1, x2, y2 = boxes.unbind(1)
        ...     return image.flip(2), torch.stack((width - x2, y1, width - x1, y2), 1), labels
        >>> _, rows = apply_transforms(mirror, torch.zeros(3, 8, 8, dtype=torch.uint8),
        ...                            torch.tensor([[1, 0.0, 0.25, 0.5, 1.0]]))
        >>> rows
        tensor([[1.0000, 0.5000, 0.2500, 1.0000, 1.0000]])
    """
    rows = rows[rows[:, 0] >= 0]
    height, width = image.shape[1:]
    boxes, labels = rows[:, 1:] * rows.new_tensor([width, height] * 2), rows[:, 0].long()
    tv_tensors: Any = sys.modules.get("torchvision.tv_tensors")
    if tv_tensors is not None:
        image = tv_tensors.Image(image)
        boxes = tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width))
    try:
        image, boxes, labels = transforms(image, boxes, labels)
        image = torch.as_tensor(image).as_subclass(Tensor)
        boxes = torch.as_tensor(boxes).as_subclass(Tensor).float().reshape(-1, 4)
        labels = torch.as_tensor(labels).as_subclass(Tensor).long()
    except Exception as error:
        raise DataError(
            f"data: transforms must return an image, boxes and labels, got "
            f"{type(error).__name__} for {name}: {error}"
        ) from error
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise DataError(
            f"data: transforms must return a uint8 image [3, H, W], got {image.dtype} "
            f"{list(image.shape)} for {name}"
        )
    if labels.shape != (len(boxes),) or not boxes.isfinite().all():
        raise DataError(
            f"data: transforms must return as many labels as boxes, all finite, got "
            f"{list(labels.shape)} and {list(boxes.shape)} for {name}"
        )
    height, width = image.shape[1:]
    boxes = (boxes / boxes.new_tensor([width, height] * 2)).clamp(0, 1)
    kept = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return image, torch.cat((labels[:, None].float(), boxes), dim=1)[kept]


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """The random numbers of torch, numpy and Python drawn from `numbers`; put back after.

    Args:
        numbers: from 0; another one, other draws.

    Example:
        >>> with seeded(7, 1):
        ...     one = torch.rand(3)
        >>> with seeded(7, 1):
        ...     bool((torch.rand(3) == one).all())
        True
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
