"""What a row (class, x1, y1, x2, y2) of an image's labels is, by its class.

- From 0 on: a ground truth of this class.
- -1: padding.
- Below -1: a crowd, a region with objects that nobody boxed one by one. A crowd of class c has the class
  -2 - c. What is found there is ignored by training and by evaluation, as COCO does with ``iscrowd``.

To an op that does not know crowds they are padding. `ssd_ops.pack_targets` makes the same rows.
"""

from __future__ import annotations

from torch import Tensor


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
