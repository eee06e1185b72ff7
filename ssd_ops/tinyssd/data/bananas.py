"""Reads the banana detection format of "Dive into Deep Learning".

A set is a folder with ``bananas_train`` and ``bananas_val``; each holds ``label.csv`` with the
columns ``img_name,label,xmin,ymin,xmax,ymax`` (pixels) and the images in ``images``.
"""

from __future__ import annotations

import csv
import itertools
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ssd_ops.tinyssd.data.images import DataError, pillow, read_image
from ssd_ops.tinyssd.data.transforms import Transforms, apply_transforms

HEADER = ["img_name", "label", "xmin", "ymin", "xmax", "ymax"]
NUMBER = r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*"


class BananaDetection(Dataset):
    """Images and boxes of one split, decoded once and kept in memory.

    ``dataset[i]`` is ``(images[i], labels[i])``, views and not copies, or what `transforms` makes of
    them. A set of 1,000 images of 256 x 256 pixels takes 200 MB. Boxes lie in the images as
    they are shown, turned by their EXIF orientation.

    Args:
        folder: holds ``bananas_train`` and ``bananas_val``.
        split: ``"train"`` (the default) or ``"val"``.
        class_names: the classes, in their order; None (the default) finds them, see below.
        transforms: changes an example whenever it is taken, see `apply_transforms`.

    Attributes:
        images: ``[N, 3, H, W]`` uint8, in the order in which the file first names them.
        labels: ``[N, G, 5]`` float32 rows (class, x1, y1, x2, y2), corners in fractions of the
            image, in the file's order; rows of -1 fill up to the largest count of an image.
        names: the N file names.
        class_names: ``["banana"]``, or numbered names where either split in the folder has more classes.

    Raises:
        DataError: a file is missing or malformed, a box leaves its image, or sizes differ.
        ImportError: Pillow is not installed.

    Source: Dive into Deep Learning, section 14.6.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        split: str = "train",
        *,
        class_names: Sequence[str] | None = None,
        transforms: Transforms | None = None,
    ) -> None:
        if split not in ("train", "val"):
            raise DataError(f"data: split must be 'train' or 'val', got {split!r}")
        root = Path(folder) / f"bananas_{split}"
        groups: dict[str, list[_Row]] = {}
        for row in _read_rows(root / "label.csv"):
            groups.setdefault(row.name, []).append(row)
        self.names = list(groups)
        self.images = _read_images(root / "images", groups)
        self.labels = _labels(groups, *self.images.shape[2:])
        self.class_names = _class_names(Path(folder)) if class_names is None else list(class_names)
        self.transforms = transforms

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, rows = self.images[index], self.labels[index]
        return apply_transforms(self.transforms, image, rows, self.names[index])


class _Row(NamedTuple):
    """A line below the header; `where` it stands is what errors start with."""

    where: str
    name: str
    label: float
    box: list[float]


def _read_rows(path: Path) -> list[_Row]:
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the header.
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if header != HEADER:
                got = "an empty file" if header is None else repr(",".join(header)[:80])
                raise DataError(f"data: {path}, line 1: must be {','.join(HEADER)!r}, got {got}")
            rows = [_row(f"data: {path}, line {reader.line_num}", row) for row in reader if row]
    except OSError as error:
        raise DataError(f"data: {path} must be a readable file, got {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"data: {path} must be CSV in UTF-8, got {error}") from None
    if not rows:
        raise DataError(f"data: {path}, line 2: must be an image's row, got the end of the file")
    return rows


def _row(where: str, cells: list[str]) -> _Row:
    if len(cells) != len(HEADER):
        raise DataError(f"{where}: must have {len(HEADER)} columns, got {len(cells)}")
    # A name is one part of a path, so nothing outside of the folder can be named.
    checks = [("img_name", r"(?!\.{0,2}$)[^/\\\0]+", "file name")]
    checks += [("label", NUMBER, "number"), ("label", r"\d{1,4}(\.0*)?", "class number from 0")]
    checks += [(corner, NUMBER, "number") for corner in HEADER[2:]]
    cell = dict(zip(HEADER, cells, strict=True))
    for column, pattern, kind in checks:
        if not re.fullmatch(pattern, cell[column], re.ASCII):
            raise DataError(f"{where}: {column} must be a {kind}, got {cell[column]!r}")
    return _Row(where, cells[0], float(cells[1]), [float(text) for text in cells[2:]])


def _class_names(folder: Path) -> list[str]:
    """Those of both splits, of which one may lack a class."""
    files = [folder / f"bananas_{split}" / "label.csv" for split in ("train", "val")]
    rows = itertools.chain(*(_read_rows(file) for file in files if file.is_file()))
    count = 1 + max(int(row.label) for row in rows)
    return ["banana"] if count == 1 else [f"class {number}" for number in range(count)]


def _read_images(folder: Path, groups: dict[str, list[_Row]]) -> Tensor:
    """The images of these names, all of one size."""
    pillow()

    def read(name: str) -> Tensor:
        try:
            return torch.from_numpy(read_image(folder / name)).permute(2, 0, 1).contiguous()
        except DataError as error:
            where = f"{groups[name][0].where}: {folder / name}"
            raise DataError(f"{where} must be a readable image, got {error}") from None

    # Pillow decodes without the interpreter's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        images = list(pool.map(read, groups))
    first, size = next(iter(groups)), images[0].shape
    for (name, rows), image in zip(groups.items(), images, strict=True):
        if image.shape != size:
            wanted = f"{size[2]} x {size[1]} pixels like {first}"
            got = f"{image.shape[2]} x {image.shape[1]}"
            raise DataError(f"{rows[0].where}: {name} must be {wanted}, got {got}")
    return torch.stack(images)


def _labels(groups: dict[str, list[_Row]], height: int, width: int) -> Tensor:
    for row in itertools.chain(*groups.values()):
        x1, y1, x2, y2 = row.box
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
            raise DataError(
                f"{row.where}: the box must lie in the {width} x {height} pixels of {row.name} "
                f"with xmin < xmax and ymin < ymax, got {', '.join(f'{v:g}' for v in row.box)}"
            )
    scale = torch.tensor([1, width, height, width, height], dtype=torch.float64)
    tables = [scale.new_tensor([[r.label, *r.box] for r in rows]) for rows in groups.values()]
    return pad_sequence([(table / scale).float() for table in tables], True, -1.0)
