"""The loss of a multibox detector, and the two measures its chapter prints while training."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd_ops import ops


class MultiBoxLoss(nn.Module):
    """Class cross-entropy plus masked offset loss, one number for each image.

    The defaults are the chapter's loss: cross-entropy averaged over the anchors plus L1 averaged
    over the 4A offsets, masked ones counted as zeros. The SSD paper's is
    ``MultiBoxLoss(offset_loss="smooth_l1", negative_mining_ratio=3.0, normalize="positives")``:
    of the negative anchors only the hardest count, and both sums are divided by the number of
    positives in the batch.

    Args:
        offset_loss: "l1", or "smooth_l1", quadratic below `beta`.
        beta: where smooth L1 turns from quadratic to linear, in units of the offsets. The default
            1.0 is the paper's; the book's sigma is ``beta = 1 / sigma**2``.
        negative_mining_ratio: negatives that count in the class loss for each positive of the same
            image, those of highest cross-entropy; 3.0 in the paper. None, the default: all count.
        min_negatives: with mining, at least as many for an image with few or no positives.
        normalize: "mean", over the anchors (those that count) and over the 4A offsets; or
            "positives": sums divided by the positives of the whole batch, so that the mean over
            the batch is the paper's loss. Without any positive the loss is 0.
        offset_weight: factor of the offset loss; 1.0 in the chapter and in the paper.

    Raises:
        ValueError: an option that is none of the above.

    Source: Dive into Deep Learning, section 14.7.2; SSD, arXiv:1512.02325, section 2.2.

    Example:
        >>> loss = MultiBoxLoss()
        >>> loss(torch.zeros(1, 2, 2), torch.tensor([[1, 0]]), torch.zeros(1, 8),
        ...      torch.ones(1, 8), torch.tensor([[1.0] * 4 + [0.0] * 4]))
        tensor([1.1931])
    """

    def __init__(
        self,
        *,
        offset_loss: str = "l1",
        beta: float = 1.0,
        negative_mining_ratio: float | None = None,
        min_negatives: int = 0,
        normalize: str = "mean",
        offset_weight: float = 1.0,
    ) -> None:
        super().__init__()
        _check(
            offset_loss in ("l1", "smooth_l1"), "offset_loss", "'l1' or 'smooth_l1'", offset_loss
        )
        _check(beta > 0, "beta", "positive", beta)
        _check(
            negative_mining_ratio is None or negative_mining_ratio > 0,
            "negative_mining_ratio",
            "positive or None",
            negative_mining_ratio,
        )
        _check(min_negatives >= 0, "min_negatives", "0 or more", min_negatives)
        _check(normalize in ("mean", "positives"), "normalize", "'mean' or 'positives'", normalize)
        _check(offset_weight >= 0, "offset_weight", "0 or more", offset_weight)
        self.offset_loss = offset_loss
        self.beta = beta
        self.negative_mining_ratio = negative_mining_ratio
        self.min_negatives = min_negatives
        self.normalize = normalize
        self.offset_weight = offset_weight

    def forward(
        self,
        cls_preds: Tensor,
        cls_labels: Tensor,
        bbox_preds: Tensor,
        bbox_labels: Tensor,
        bbox_masks: Tensor,
    ) -> Tensor:
        """The loss of each image, float32 ``[B]``; train on its mean.

        Args:
            cls_preds: ``[B, A, C+1]`` class predictions before softmax, background first. Half
                precision is computed with in float32.
            cls_labels: ``[B, A]`` int64, 0 background, -1 an anchor that must not count.
            bbox_preds: ``[B, 4A]`` predicted offsets.
            bbox_labels: ``[B, 4A]`` their targets.
            bbox_masks: ``[B, 4A]``, 1 where an offset counts and 0 elsewhere.
        """
        losses = F.cross_entropy(
            cls_preds.float().transpose(1, 2), cls_labels, ignore_index=-1, reduction="none"
        )
        counted = cls_labels >= 0
        if self.negative_mining_ratio is not None:
            counted = ops.hard_negative_mining(
                losses.detach(),
                cls_labels,
                ratio=self.negative_mining_ratio,
                min_negatives=self.min_negatives,
            )
        cls = (losses * counted).sum(dim=1)
        offsets = self._offset_losses(bbox_preds.float() * bbox_masks, bbox_labels * bbox_masks)
        if self.normalize == "mean":
            return cls / counted.sum(dim=1).clamp(min=1) + self.offset_weight * offsets.mean(dim=1)
        positives = (cls_labels > 0).sum()
        total = cls + self.offset_weight * offsets.sum(dim=1)
        scaled = total * len(total) / positives.clamp(min=1)
        return torch.where(positives > 0, scaled, torch.zeros_like(scaled))

    def _offset_losses(self, preds: Tensor, labels: Tensor) -> Tensor:
        if self.offset_loss == "l1":
            return F.l1_loss(preds, labels, reduction="none")
        return F.smooth_l1_loss(preds, labels, reduction="none", beta=self.beta)

    def extra_repr(self) -> str:
        """The options that decide the result, for ``print(loss)``."""
        return (
            f"offset_loss={self.offset_loss!r}, negative_mining_ratio={self.negative_mining_ratio},"
            f" normalize={self.normalize!r}, offset_weight={self.offset_weight}"
        )


def _check(good: bool, name: str, wanted: str, got: object) -> None:
    if not good:
        raise ValueError(f"MultiBoxLoss: {name} must be {wanted}, got {got!r}")


def cls_eval(cls_preds: Tensor, cls_labels: Tensor) -> float:
    """How many anchors are classified right; the class error is 1 minus its share.

    Args:
        cls_preds: ``[B, A, C+1]`` class predictions, background first.
        cls_labels: ``[B, A]`` int64; an anchor labelled -1 is never right, so leave it out of
            the number this is divided by.

    Source: Dive into Deep Learning, section 14.7.2.

    Example:
        >>> cls_eval(torch.tensor([[[2.0, 1.0], [0.0, 1.0]]]), torch.tensor([[0, 0]]))
        1.0
    """
    return float((cls_preds.argmax(dim=-1) == cls_labels).sum())


def bbox_eval(bbox_preds: Tensor, bbox_labels: Tensor, bbox_masks: Tensor) -> float:
    """The sum of absolute offset errors; the chapter divides it by all 4A offsets of the batch.

    Args:
        bbox_preds: ``[B, 4A]`` predicted offsets.
        bbox_labels: ``[B, 4A]`` their targets.
        bbox_masks: ``[B, 4A]``, 1 where an offset counts and 0 elsewhere.

    Source: Dive into Deep Learning, section 14.7.2.

    Example:
        >>> bbox_eval(torch.zeros(1, 4), torch.ones(1, 4), torch.tensor([[1.0, 1.0, 0.0, 0.0]]))
        2.0
    """
    return float(((bbox_labels - bbox_preds.float()) * bbox_masks).abs().sum())
