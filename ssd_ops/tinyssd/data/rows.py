"""What a row (class, x1, y1, x2, y2) of an image's labels is, by its class.

- From 0 on: a ground truth of this class.
- -1: padding.
- Below -1: a crowd, a region with objects that nobody boxed one by one. A crowd of class c has the class
  -2 - c. What is found there is ignored by training and by evaluation, as COCO does with ``iscrowd``.

To an op that does not know crowds they are padding. `ssd_ops.pack_targets` makes the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ssd_ops.tinyssd.data.images import DataError


def is_row(rows: Tensor) -> Tensor:
    """Which rows ``[..., 5]`` are ground truths or crowds, bool ``[...]``; the others are padding."""
    return (rows[..., 0] >= 0) | is_crowd(rows)


def is_crowd(rows: Tensor) -> Tensor:
    """Which rows ``[..., 5]`` are crowds, bool ``[...]``."""
    return rows[..., 0] < -1


def crowd_class(label: int) -> int:
    """The class in the row of a crowd of class `label`; and back, since it is its own inverse."""
    return -2 - label


def crowd_boxes(labels: Tensor) -> Tensor:
    """The boxes ``[..., 4]`` of the crowds in labels ``[..., 5]``; zeros in the place of other rows."""
    return labels[..., 1:].where(is_crowd(labels)[..., None], 0)


def check_rows(rows: Tensor, num_classes: float, names: Sequence[object]) -> None:
    """A DataError, which names the image, for the first row ``[N, G, 5]`` of N images that is not valid.

    They must be float32 or float64, as bfloat16 would round the classes above 256. Classes are whole numbers
    below `num_classes`. Boxes are in fractions of the image and may reach beyond it, by no more than its own
    sides: one that does is in pixels.
    """
    if rows.dtype not in (torch.float32, torch.float64):
        got = str(rows.dtype).removeprefix("torch.")
        raise DataError(f"data: labels must be float32 or float64, got {got}")
    classes, boxes = rows[..., 0], rows[..., 1:]
    known = (classes < num_classes) & (classes == classes.round())
    inside = ((boxes >= -1) & (boxes <= 2)).all(dim=-1)
    upright = (boxes[..., :2] <= boxes[..., 2:]).all(dim=-1)
    fractions = "(x1, y1, x2, y2) in fractions of the image"
    for good, wanted in (
        (known, f"the class must be a whole number below {num_classes}, the count of class_names"),
        (inside, f"the box must be {fractions}, not in pixels"),
        (upright, f"the box must be {fractions}, with x1 <= x2 and y1 <= y2"),
    ):
        for image, row in (is_row(rows) & ~good).nonzero()[:1].tolist():
            got = ", ".join(f"{number:g}" for number in rows[image, row].tolist())
            raise DataError(f"data: {names[image]}: {wanted}, got the row ({got})")
