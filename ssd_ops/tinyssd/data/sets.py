"""Opens a detection set on disk, whichever of the formats it is in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ssd_ops.tinyssd.data.bananas import BananaDetection
from ssd_ops.tinyssd.data.coco import CocoDetection
from ssd_ops.tinyssd.data.images import DataError

# Where annotation files of COCO's format are looked for in a folder, by split.
PLACES = (
    "{split}.json",
    "annotations/{split}.json",
    "annotations/instances_{split}.json",
    "annotations/instances_{split}[0-9][0-9][0-9][0-9].json",
    "{split}/_annotations.coco.json",
)
NAMES = {"train": ("train",), "val": ("val", "valid", "validation")}


def open_set(
    path: str | os.PathLike[str],
    split: str = "train",
    *,
    images: str | os.PathLike[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> BananaDetection | CocoDetection:
    """The set at a path, banana CSV or COCO JSON.

    Args:
        path: a COCO JSON file; or a folder that holds ``bananas_train`` and ``bananas_val``, or JSON
            files at one of `PLACES`.
        split: ``"train"`` or ``"val"``; a JSON file is read whatever its name.
        images: as for `CocoDetection`; not used by banana sets.
        class_names: the classes, in their order. None (the default): those of the file.

    Raises:
        DataError: there is no set, more than one that fits, or a bad one.
    """
    path = Path(path)
    if path.is_file():
        return CocoDetection(path, images, class_names=class_names)
    if not path.is_dir():
        raise DataError(f"data: {path} must be a folder or a COCO JSON file, got neither")
    if (path / f"bananas_{split}").is_dir():
        return BananaDetection(path, split, class_names=class_names)
    places = [place.format(split=name) for name in NAMES[split] for place in PLACES]
    found = [file for place in places for file in sorted(path.glob(place))]
    if len(found) != 1:
        wanted = f"bananas_{split} or one of {', '.join(places[: len(PLACES)])}"
        got = ", ".join(str(file.relative_to(path)) for file in found) or "none of them"
        raise DataError(f"data: {path} must hold {wanted}, got {got}")
    return CocoDetection(found[0], images, class_names=class_names)
