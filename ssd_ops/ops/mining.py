"""Selection of the anchors that the class loss counts."""

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
    """Selects the positives and the hardest negatives of each image, for the class loss.

    Args:
        losses: ``[B, A]`` class loss of each anchor. NaN counts as the highest loss.
        cls_labels: ``[B, A]`` int64. An anchor is positive above 0, negative at 0 and ignored below 0.
        ratio: Negatives for each positive, 0 or more. Default: 3, as in the SSD paper.
        min_negatives: The least number of negatives in each image, also without positives. Default: 0.

    Returns:
        ``[B, A]`` bool, True where an anchor is selected. All positives are selected. In an image with P
        positives so are the ``max(floor(ratio * P), min_negatives)`` negatives with the highest losses, or
        all negatives if there are fewer. Of equal losses the lower anchor comes first. Ignored anchors are
        never selected.

    Raises:
        TypeError, ValueError: `ratio` or `min_negatives` is not valid.
        RuntimeError: a tensor has a wrong shape, dtype or device.

    Source:
        SSD (arXiv:1512.02325), section 2.2 "Hard negative mining".

    Example:
        >>> losses = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.3]])
        >>> hard_negative_mining(losses, torch.tensor([[1, 0, 0, 0, 0]]), ratio=2)
        tensor([[ True,  True, False,  True, False]])
    """
    op = "hard_negative_mining"
    check_tensors(op, losses=losses, cls_labels=cls_labels)
    return torch.ops.ssd_ops.hard_negative_mining.default(
        losses, cls_labels, as_ratio(op, "ratio", ratio), as_min_negatives(op, min_negatives)
    )


@torch.library.register_fake("ssd_ops::hard_negative_mining")
def _(losses: Tensor, cls_labels: Tensor, ratio: float, min_negatives: int) -> Tensor:
    return losses.new_empty(losses.shape, dtype=torch.bool)
