"""Reads detection sets in COCO's JSON format: any classes, any number of objects, any sizes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ssd_ops.tinyssd.data.bananas import Transforms, apply_transforms
from ssd_ops.tinyssd.data.images import DataError, image_size, pillow, read_image, reason

MAX_JSON = 2_000_000_000  # bytes; the instances of COCO's own training set have 450 million


class CocoDetection(Dataset):
    """Pictures and boxes of one annotation file; each picture is decoded when it is taken.

    ``dataset[i]`` is ``(image, rows)``: uint8 ``[3, H, W]`` and float32 ``[G, 5]`` rows (class, x1,
    y1, x2, y2), corners in fractions of the picture, in the file's order, none for a picture without
    objects. Classes are numbered from 0 by the ids of their categories. Boxes are cut at the border.

    Every picture's file is opened when the set is, and its size compared, so that what is missing is
    found at once and not in the middle of an epoch.

    Args:
        path: The JSON file, with ``images``, ``annotations`` and ``categories``.
        images: The folder that ``file_name`` is relative to. None (the default) looks beside the
            JSON file, in ``images`` there, and in ``images`` or the split's folder above it.
        class_names: Categories to read, in the order of their classes; one that is in the file and
            not among them is an error. None (the default): those of the file. Read a validation set
            with the names of its training set.
        transforms: What changes an example whenever it is taken, see `apply_transforms`;
            None (the default) changes nothing.

    Attributes:
        names: The file names, in the order of the file.
        sizes: (height, width) of each picture.
        rows: What ``dataset[i]`` returns of the boxes, before `transforms`.
        class_names: The category names.
        dropped: How many boxes were left out: ``{"crowd": ..., "degenerate": ...}``, the latter of no
            width or height within the picture.

    Raises:
        DataError: a file is missing, malformed or too large; the message names file and entry.
        ImportError: Pillow is not installed.

    Source: the format is that of cocodataset.org.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.new("RGB", (40, 20)).save(folder / "a.png")
        >>> _ = (folder / "set.json").write_text(json.dumps({
        ...     "images": [{"id": 7, "file_name": "a.png", "width": 40, "height": 20}],
        ...     "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [10, 5, 20, 10]}],
        ...     "categories": [{"id": 3, "name": "cup"}],
        ... }))
        >>> dataset = CocoDetection(folder / "set.json")
        >>> dataset.class_names, dataset[0][1]
        (['cup'], tensor([[0.0000, 0.2500, 0.2500, 0.7500, 0.7500]]))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        images: str | os.PathLike[str] | None = None,
        *,
        class_names: Sequence[str] | None = None,
        transforms: Transforms | None = None,
    ) -> None:
        self.path = Path(path)
        self.transforms = transforms
        content = _read_json(self.path)
        classes, self.class_names = self._classes(content["categories"], class_names)
        pillow()
        self._places: list[Path] = []
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        numbers: dict[Any, int] = {}
        roots = [Path(images)] if images is not None else _roots(self.path)
        for place, entry in enumerate(content["images"]):
            self._add_image(f"images[{place}]", entry, numbers, roots)
        if not numbers:
            raise DataError(f"data: {self.path}, images: must have an entry at least, got none")
        self.dropped = {"crowd": 0, "degenerate": 0}
        boxes: list[list[list[float]]] = [[] for _ in self.names]
        for place, entry in enumerate(content["annotations"]):
            self._add_box(f"annotations[{place}]", entry, numbers, classes, boxes)
        self.rows = [torch.tensor(some).reshape(-1, 5) for some in boxes]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        name, size = self.names[index], self.sizes[index]
        try:
            pixels = read_image(self._places[index])
            if pixels.shape[:2] != size:
                raise DataError("another size than before")
        except DataError as error:
            raise DataError(
                f"data: {self.path}, {name}: must be a readable picture, got {error}"
            ) from None
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))
        if self.transforms is None:
            return image, self.rows[index]
        return apply_transforms(self.transforms, image, self.rows[index], name)

    def _wrong(self, entry: str, wanted: str, got: object) -> DataError:
        return DataError(f"data: {self.path}, {entry}: {wanted}, got {str(got)[:80]}")

    def _classes(
        self, categories: list[Any], wanted: Sequence[str] | None
    ) -> tuple[dict[Any, int], list[str]]:
        """Classes by category id, and their names."""
        found: dict[int, str] = {}
        for place, entry in enumerate(categories):
            where = f"categories[{place}]"
            number, name = _get(entry, "id"), _get(entry, "name")
            if not _whole(number) or number in found:
                raise self._wrong(where, "id must be a whole number of its own", repr(number))
            if not isinstance(name, str) or name in found.values():
                raise self._wrong(where, "name must be a text of its own", repr(name))
            if wanted is not None and name not in wanted:
                names = ", ".join(wanted)
                raise self._wrong(
                    where, f"name must be a class of the training set ({names})", name
                )
            found[number] = name
        if not found:
            raise self._wrong("categories", "must have an entry at least", "none")
        order = list(wanted) if wanted is not None else [found[key] for key in sorted(found)]
        return {number: order.index(name) for number, name in found.items()}, order

    def _add_image(
        self, where: str, entry: Any, numbers: dict[Any, int], roots: list[Path]
    ) -> None:
        number, name = _get(entry, "id"), _get(entry, "file_name")
        if not isinstance(number, int | str) or number in numbers:
            raise self._wrong(where, "id must be a number or text of its own", repr(number))
        # Nothing outside of the folder can be named.
        parts = Path(name).parts if isinstance(name, str) and "\0" not in name else ()
        if not parts or Path(name).is_absolute() or ".." in parts:
            raise self._wrong(where, "file_name must be a file inside the folder", repr(name))
        place = next((root / name for root in roots if (root / name).is_file()), roots[0] / name)
        try:
            size = image_size(place)
        except DataError as error:
            raise self._wrong(where, f"{place} must be a readable picture", error) from None
        said = _get(entry, "height"), _get(entry, "width")
        if said not in (size, (None, None)):
            raise self._wrong(
                where,
                f"{name} must be {size[1]} x {size[0]} as its file is",
                f"{said[1]} x {said[0]}",
            )
        numbers[number] = len(self.names)
        self.names.append(name)
        self.sizes.append(size)
        self._places.append(place)

    def _add_box(
        self,
        where: str,
        entry: Any,
        numbers: dict[Any, int],
        classes: dict[Any, int],
        boxes: list[list[list[float]]],
    ) -> None:
        image, category, box = (_get(entry, key) for key in ("image_id", "category_id", "bbox"))
        if not isinstance(image, int | str) or image not in numbers:
            raise self._wrong(where, "image_id must be that of an image", repr(image))
        if not _whole(category) or category not in classes:
            raise self._wrong(where, "category_id must be that of a category", repr(category))
        four = isinstance(box, list) and len(box) == 4
        if not four or not all(_finite(number) for number in box):
            raise self._wrong(where, "bbox must be four finite numbers", repr(box))
        if _get(entry, "iscrowd"):
            self.dropped["crowd"] += 1
            return
        index = numbers[image]
        height, width = self.sizes[index]
        x, y, w, h = map(float, box)
        x1, x2 = (min(max(value, 0.0), width) / width for value in (x, x + w))
        y1, y2 = (min(max(value, 0.0), height) / height for value in (y, y + h))
        # In the precision they are kept in: a sliver may vanish there.
        corners = np.array([x1, y1, x2, y2], np.float32)
        if not (corners[0] < corners[2] and corners[1] < corners[3]):
            self.dropped["degenerate"] += 1
            return
        boxes[index].append([float(classes[category]), *corners.tolist()])


def _roots(path: Path) -> list[Path]:
    """Where the pictures of an annotation file may lie, the likeliest first."""
    here, above = path.absolute().parent, path.absolute().parent.parent
    split = path.stem.removeprefix("instances_")
    folders = [here, here / "images", here / split, above / split, above / "images"]
    folders += [here / "images" / split, above / "images" / split]
    return [folder for folder in folders if folder.is_dir()]


def _read_json(path: Path) -> dict[str, list[Any]]:
    try:
        if path.stat().st_size > MAX_JSON:
            raise DataError(f"data: {path} must have at most {MAX_JSON} bytes, got more")
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"data: {path} must be a readable file, got {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"data: {path} must be JSON, got {reason(error)}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(_get(content, key), list):
            raise DataError(f"data: {path} must hold a list {key!r}, got {_kind(content, key)}")
    return content


def _get(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else None


def _kind(content: Any, key: str) -> str:
    return type(_get(content, key)).__name__ if isinstance(content, dict) else "no object"


def _whole(number: object) -> bool:
    return isinstance(number, int) and not isinstance(number, bool)


def _finite(number: object) -> bool:
    return isinstance(number, int | float) and abs(number) < 1e9 and math.isfinite(number)
