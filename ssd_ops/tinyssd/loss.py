"""The loss of a multibox detector, and the two measures its chapter prints while training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd_ops import ops
from ssd_ops.tinyssd.checks import NOT_NEGATIVE, POSITIVE, check_fields, choice

RULES = {
    "cls_loss": choice("cross_entropy", "focal"),
    "offset_loss": choice("l1", "smooth_l1"),
    "normalize": choice("mean", "positives"),
    **dict.fromkeys(("focal_alpha", "sigma", "negative_mining_ratio"), POSITIVE),
    **dict.fromkeys(("focal_gamma", "min_negatives", "cls_weight", "offset_weight"), NOT_NEGATIVE),
}


@dataclass(frozen=True)
class LossOptions:
    """What `MultiBoxLoss` computes; the defaults are the chapter's loss."""

    cls_loss: str = "cross_entropy"  # or "focal": focal_loss
    focal_gamma: float = 2.0  # as for focal_loss
    focal_alpha: float = 1.0  # as for focal_loss
    offset_loss: str = "l1"  # or "smooth_l1"
    sigma: float = 1.0  # as for smooth_l1
    negative_mining_ratio: float | None = None  # of hard_negative_mining, 3.0 in the paper, or None
    min_negatives: int = 0  # with mining, at least so many for an image with few or no positives
    normalize: str = "mean"  # of what counts, or "positives": sums over the positives of the batch
    cls_weight: float = 1.0  # factor of the class loss
    offset_weight: float = 1.0  # factor of the offset loss

    def __post_init__(self) -> None:
        check_fields("MultiBoxLoss", self, RULES)


class MultiBoxLoss(nn.Module):
    """Class loss plus masked offset loss, one number for each image; takes `LossOptions` by name.

    The defaults are the chapter's loss: cross-entropy averaged over the anchors plus L1 averaged
    over the 4A offsets, masked ones counted as zeros. The SSD paper's is
    ``MultiBoxLoss(offset_loss="smooth_l1", negative_mining_ratio=3.0, normalize="positives")``.

    Source: Dive into Deep Learning, section 14.7.2; SSD, arXiv:1512.02325, section 2.2.

    Example:
        >>> loss = MultiBoxLoss()
        >>> loss(torch.zeros(1, 2, 2), torch.tensor([[1, 0]]), torch.zeros(1, 8),
        ...      torch.ones(1, 8), torch.tensor([[1.0] * 4 + [0.0] * 4]))
        tensor([1.1931])
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = LossOptions(**options)

    def forward(
        self,
        cls_preds: Tensor,
        cls_labels: Tensor,
        bbox_preds: Tensor,
        bbox_labels: Tensor,
        bbox_masks: Tensor,
        *,
        whole: tuple[int, Tensor] | None = None,
    ) -> Tensor:
        """The loss of each image, ``[B]``; train on its mean.

        Args:
            cls_preds: ``[B, A, C+1]`` class predictions before softmax, background first. The
                result is float32, also for half precision, or float64 where they are.
            cls_labels: ``[B, A]`` int64, 0 background, -1 an anchor that must not count.
            bbox_preds: ``[B, 4A]`` predicted offsets.
            bbox_labels: ``[B, 4A]`` their targets.
            bbox_masks: ``[B, 4A]``, 1 where an offset counts and 0 elsewhere.
            whole: images and positive anchors (a tensor of one number) of the batch that these
                images are a part of, where processes share one; None, the default: they are all.
        """
        options = self.options
        if options.cls_loss == "focal":
            losses = focal_loss(cls_preds, cls_labels, options.focal_gamma, options.focal_alpha)
        else:
            losses = cross_entropy(cls_preds, cls_labels)
        counted, ratio = cls_labels >= 0, options.negative_mining_ratio
        if ratio is not None:
            counted = ops.hard_negative_mining(
                losses.detach(), cls_labels, ratio=ratio, min_negatives=options.min_negatives
            )
        cls = options.cls_weight * (losses * counted).sum(dim=1)

        errors = offset_errors(bbox_preds, bbox_labels, bbox_masks)
        smooth = options.offset_loss == "smooth_l1"
        distances = smooth_l1(errors, options.sigma) if smooth else errors.abs()
        offsets = options.offset_weight * distances.sum(dim=1)

        if options.normalize == "mean":
            return cls / counted.sum(dim=1).clamp(min=1) + offsets / max(errors.shape[1], 1)
        images, positives = whole or (len(cls), (cls_labels > 0).sum())
        scaled = (cls + offsets) * images / positives.clamp(min=1)
        return torch.where(positives > 0, scaled, torch.zeros_like(scaled))


def cross_entropy(cls_preds: Tensor, cls_labels: Tensor) -> Tensor:
    """``-log p`` of each anchor's own class, ``[B, A]``; arguments as of `MultiBoxLoss`."""
    logits = _wide(cls_preds).transpose(1, 2)
    return F.cross_entropy(logits, cls_labels, ignore_index=-1, reduction="none")


def focal_loss(
    cls_preds: Tensor, cls_labels: Tensor, gamma: float = 2.0, alpha: float = 1.0
) -> Tensor:
    """The focal loss ``-alpha (1 - p)**gamma log p`` of each anchor, ``[B, A]``; 0 where labelled -1.

    p is the probability of the anchor's own class, by softmax with the background. The greater
    gamma, the less an anchor counts that is surely right: 0 gives cross-entropy, 2.0 is the paper's.

    Source: arXiv:1708.02002; Dive into Deep Learning, section 14.7, exercise 2.

    Example:
        >>> focal_loss(torch.zeros(1, 1, 2), torch.tensor([[1]]), gamma=1.0)
        tensor([[0.3466]])
    """
    # It keeps its gradient where p has long been rounded to 1 or 0.
    losses = cross_entropy(cls_preds, cls_labels)
    if gamma:
        # 1 - p, without the cancellation. At exactly 0 the power of a gamma below 1 has no slope.
        missing = -torch.expm1(-losses)
        losses = missing.clamp(min=torch.finfo(losses.dtype).tiny) ** gamma * losses
    return alpha * losses


def smooth_l1(errors: Tensor, sigma: float = 1.0) -> Tensor:
    """Smooth L1 of each error: ``(sigma x)**2 / 2`` near zero, ``|x| - 0.5 / sigma**2`` elsewhere.

    The border is at ``1 / sigma**2``: the greater sigma, the nearer to L1. 1.0 is the SSD paper's.

    Source: Dive into Deep Learning, section 14.7, exercise 2.
    """
    return F.smooth_l1_loss(errors, torch.zeros_like(errors), reduction="none", beta=sigma**-2)


def cls_eval(cls_preds: Tensor, cls_labels: Tensor) -> float:
    """How many anchors are classified right, as the chapter counts; one labelled -1 never is."""
    return float((cls_preds.argmax(dim=-1) == cls_labels).sum())


def bbox_eval(bbox_preds: Tensor, bbox_labels: Tensor, bbox_masks: Tensor) -> float:
    """The sum of absolute offset errors; the chapter divides it by all 4A offsets of the batch."""
    return float(offset_errors(bbox_preds.detach(), bbox_labels, bbox_masks).abs().sum())


def offset_errors(bbox_preds: Tensor, bbox_labels: Tensor, bbox_masks: Tensor) -> Tensor:
    """Predicted offsets minus their targets, 0 where they do not count, ``[B, 4A]``."""
    return (_wide(bbox_preds) - bbox_labels) * bbox_masks


def _wide(numbers: Tensor) -> Tensor:
    """Half precision as float32; the rest as it is."""
    return numbers if numbers.dtype == torch.float64 else numbers.float()
