"""Reads detection sets in the JSON format of cocodataset.org: any classes, counts and sizes."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssd_ops.tinyssd.data.images import DataError, image_size, pillow, read_image, reason
from ssd_ops.tinyssd.data.rows import crowd_class
from ssd_ops.tinyssd.data.transforms import Transforms, apply_transforms


class CocoDetection(Dataset):
    """Images and boxes of one annotation file; each image is decoded when it is taken.

    ``dataset[i]`` is ``(image, rows)``: uint8 ``[3, H, W]`` and float32 ``[G, 5]`` rows (class, x1,
    y1, x2, y2), corners in fractions of the image, cut at the border; G may be 0. Classes are
    numbered from 0 by the ids of their categories; what is marked ``iscrowd`` has the class -2 - c, see
    `ssd_ops.tinyssd.data.rows`. Everything but pixels is checked at once. An image is turned by its
    EXIF orientation, unless its ``width`` and ``height`` in the file fit the pixels only as they are stored.

    Args:
        path: the JSON file, with ``images``, ``annotations`` and ``categories``.
        images: the folder that ``file_name`` is relative to. None (the default) looks beside the
            JSON file, in ``images`` there, and in ``images`` or the split's folder above it.
        class_names: the classes, in their order; another one in the file is an error. None (the
            default): those of the file. Give a validation set the names of its training set.
        transforms: changes an example whenever it is taken, see `apply_transforms`.

    Attributes:
        names, sizes, rows: of each image, its file name, (height, width) and untransformed rows.
        areas: of each image, float64 ``[G]``: the ``area`` of the annotation of each row, in pixels; where
            it has none, that of its box within the image.
        class_names: the category names.
        dropped: how many boxes were left out: ``{"degenerate": ...}``; a degenerate box has no width or
            height within the image.

    Raises:
        DataError: a file is missing or malformed; the message names file and entry.
        ImportError: Pillow is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        images: str | os.PathLike[str] | None = None,
        *,
        class_names: Sequence[str] | None = None,
        transforms: Transforms | None = None,
    ) -> None:
        self.path, self.transforms = Path(path), transforms
        pillow()
        content = _read_json(self.path)
        self._places: list[Path] = []
        self._turned: list[bool] = []  # by its EXIF orientation
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.dropped = {"degenerate": 0}
        # By the ids of the file: the class of a category, the number of an image.
        classes, self.class_names = self._read_categories(content["categories"], class_names)
        roots = _roots(self.path) if images is None else [Path(images)]
        numbers = self._read_images(content["images"], roots)
        self.rows, self.areas = self._read_boxes(content["annotations"], classes, numbers)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name = self.names[index]
        try:
            pixels = read_image(self._places[index], turned=self._turned[index])
            if pixels.shape[:2] != self.sizes[index]:
                raise DataError("another size than before")
        except DataError as error:
            self._check(False, name, "must be a readable image", error)
        image = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
        return apply_transforms(self.transforms, image, self.rows[index], name)

    def _check(self, right: bool, entry: str, wanted: str, got: object) -> None:
        if not right:
            raise DataError(f"data: {self.path}, {entry}: {wanted}, got {str(got)[:80]}") from None

    def _read_categories(
        self, categories: list[Any], wanted: Sequence[str] | None
    ) -> tuple[dict[Any, int], list[str]]:
        self._check(bool(categories), "categories", "must have an entry at least", "none")
        found: dict[int, str] = {}
        for place, entry in enumerate(categories):
            where, number, name = f"categories[{place}]", entry.get("id"), entry.get("name")
            own = type(number) is int and number not in found
            self._check(own, where, "id must be a whole number of its own", number)
            own = isinstance(name, str) and name not in found.values()
            self._check(own, where, "name must be a text of its own", name)
            known = f"name must be a class of the training set ({', '.join(wanted or ())})"
            self._check(wanted is None or name in wanted, where, known, name)
            found[number] = name
        names = [found[number] for number in sorted(found)] if wanted is None else list(wanted)
        return {number: names.index(name) for number, name in found.items()}, names

    def _read_images(self, images: list[Any], roots: list[Path]) -> dict[Any, int]:
        self._check(bool(images), "images", "must have an entry at least", "none")
        numbers: dict[Any, int] = {}
        for place, entry in enumerate(images):
            where, number, name = f"images[{place}]", entry.get("id"), entry.get("file_name")
            own = isinstance(number, int | str) and number not in numbers
            self._check(own, where, "id must be a number or text of its own", number)
            # Nothing outside of the folder can be named.
            parts = Path(name).parts if isinstance(name, str) and "\0" not in name else ()
            inside = bool(parts) and not Path(name).is_absolute() and ".." not in parts
            self._check(inside, where, "file_name must be a file inside the folder", name)
            files = [root / name for root in roots]
            file = next((file for file in files if file.is_file()), files[0])
            height, width = entry.get("height"), entry.get("width")
            try:
                size = image_size(file)
                # Where only the pixels as they are stored fit, the boxes lie in these.
                turned = (height, width) in (size, (None, None))
                size = size if turned else image_size(file, turned=False)
            except DataError as error:
                self._check(False, where, f"{file} must be a readable image", error)
            same = turned or (height, width) == size
            wanted = f"{name} must be {size[1]} x {size[0]} as its file is"
            self._check(same, where, wanted, f"{width} x {height}")
            numbers[number] = len(self.names)
            self.names.append(name)
            self.sizes.append(size)
            self._places.append(file)
            self._turned.append(turned)
        return numbers

    def _read_boxes(
        self, annotations: list[Any], classes: dict[Any, int], numbers: dict[Any, int]
    ) -> tuple[list[Tensor], list[Tensor]]:
        rows: list[list[list[float]]] = [[] for _ in self.names]
        areas: list[list[float]] = [[] for _ in self.names]
        for place, entry in enumerate(annotations):
            where = f"annotations[{place}]"
            keys = ("image_id", "category_id", "bbox", "area")
            image, category, box, area = (entry.get(key) for key in keys)
            known = isinstance(image, int | str) and image in numbers
            self._check(known, where, "image_id must be that of an image", image)
            known = type(category) is int and category in classes
            self._check(known, where, "category_id must be that of a category", category)
            four = isinstance(box, list) and len(box) == 4 and all(map(_finite, box))
            self._check(four, where, "bbox must be four finite numbers", box)
            good = area is None or (_finite(area) and area >= 0)
            self._check(good, where, "area must be a finite number from 0 on", area)
            height, width = self.sizes[numbers[image]]
            x, y, w, h = map(float, box)
            corners = x / width, y / height, (x + w) / width, (y + h) / height
            # In the precision they are kept in: a sliver may vanish there.
            x1, y1, x2, y2 = np.array(corners, np.float32).clip(0, 1).tolist()
            if not (x1 < x2 and y1 < y2):
                self.dropped["degenerate"] += 1
                continue
            label = classes[category]
            label = crowd_class(label) if entry.get("iscrowd") else label
            rows[numbers[image]].append([label, x1, y1, x2, y2])
            if area is None:
                area = (min(x + w, width) - max(x, 0)) * (min(y + h, height) - max(y, 0))
            areas[numbers[image]].append(area)
        return (
            [torch.tensor(some, dtype=torch.float32).reshape(-1, 5) for some in rows],
            [torch.tensor(some, dtype=torch.float64) for some in areas],
        )


def _roots(path: Path) -> list[Path]:
    """Where the images of an annotation file may lie, the likeliest first."""
    here = path.absolute().parent
    split = path.stem.removeprefix("instances_")
    places = ("", "images", split, f"images/{split}")
    folders = [base / place for base in (here, here.parent) for place in places]
    return [folder for folder in folders if folder.is_dir()]


def _read_json(path: Path) -> dict[str, list[Any]]:
    """The three lists of the file; an entry that is not an object is read as an empty one."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"data: {path} must be a readable file, got {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"data: {path} must be JSON, got {reason(error)}") from None
    lists = {}
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"data: {path} must hold a list {key!r}, got {type(entries).__name__}")
        lists[key] = [entry if isinstance(entry, dict) else {} for entry in entries]
    return lists


def _finite(number: object) -> bool:
    return isinstance(number, int | float) and abs(number) < 1e9
