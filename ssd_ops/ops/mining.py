"""Which negatives the class loss should count."""

from __future__ import annotations

import torch
from torch import Tensor

from ssd_ops.ops._arguments import (
    as_min_negatives,
    as_ratio,
    check_tensors,
)

__all__ = ["hard_negative_mining"]


def hard_negative_mining(
    losses: Tensor, cls_labels: Tensor, *, ratio: float = 3.0, min_negatives: int = 0
) -> Tensor:
    """Which anchors the class loss should count: the positives and the hardest negatives of each image.

    Args:
        losses: ``[B, A]`` class loss of each anchor; NaN counts as the highest.
        cls_labels: ``[B, A]`` int64: above 0 positive, 0 negative, below 0 ignored.
        ratio: Negatives per positive, 0 or more. 3 as in the SSD paper.
        min_negatives: At least so many negatives in each image, also in one without positives.

    Returns:
        ``[B, A]`` bool. An image with P positives selects ``max(floor(ratio * P), min_negatives)``
        negatives, or all it has; equal losses go to the lower anchor. A positive is selected once,
        an ignored anchor never. A batch without positives and with `min_negatives` 0 selects nothing.

    Raises:
        ValueError: `ratio` or `min_negatives` is negative.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        SSD (arXiv:1512.02325), section 2.2 "Hard negative mining".

    Example:
        >>> losses = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.3]])
        >>> hard_negative_mining(losses, torch.tensor([[1, 0, 0, 0, 0]]), ratio=2)
        tensor([[ True,  True, False,  True, False]])
    """
    op = "hard_negative_mining"
    check_tensors(op, losses=losses, cls_labels=cls_labels)
    return torch.ops.ssd_ops.hard_negative_mining(
        losses, cls_labels, as_ratio(op, "ratio", ratio), as_min_negatives(op, min_negatives)
    )


@torch.library.register_fake("ssd_ops::hard_negative_mining")
def _(losses: Tensor, cls_labels: Tensor, ratio: float, min_negatives: int) -> Tensor:
    return losses.new_empty(losses.shape, dtype=torch.bool)
