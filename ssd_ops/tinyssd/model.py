"""TinySSD, the single-shot detector of the d2l book, from the pieces its chapter names."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd_ops import ops
from ssd_ops.tinyssd.preprocess import Preprocess

SIZES = ((0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961))
RATIOS = ((1.0, 2.0, 0.5),) * 5
CHANNELS = (16, 32, 64, 128, 128, 128)
BASE_BLOCKS = 3  # blocks of the base network; each further block is a scale of its own


def cls_predictor(num_inputs: int, num_anchors: int, num_classes: int) -> nn.Conv2d:
    """A layer that predicts the class of every anchor of a map ``[B, num_inputs, H, W]``.

    Channel ``i * (num_classes + 1) + j`` of its output is class j of a cell's anchor i; class 0 is
    the background, which `num_classes` does not count.
    """
    return nn.Conv2d(num_inputs, num_anchors * (num_classes + 1), kernel_size=3, padding=1)


def bbox_predictor(num_inputs: int, num_anchors: int) -> nn.Conv2d:
    """A layer that predicts the offsets of every anchor: channel ``4i + j`` is offset j of anchor i."""
    return nn.Conv2d(num_inputs, num_anchors * 4, kernel_size=3, padding=1)


def flatten_pred(pred: Tensor) -> Tensor:
    """``[B, C, H, W]`` to ``[B, H*W*C]``, cell by cell, in the order of the anchors."""
    return pred.permute(0, 2, 3, 1).flatten(start_dim=1)


def concat_preds(preds: Sequence[Tensor]) -> Tensor:
    """Predictions of several scales, each ``[B, C_k, H_k, W_k]``, as one ``[B, sum H_k*W_k*C_k]``."""
    return torch.cat([flatten_pred(pred) for pred in preds], dim=1)


class Halve(nn.Module):
    """Max-pooling that halves a map, rounding down; a side of one cell stays one cell.

    `nn.MaxPool2d(2)` differs only there: it fails, and with it every image below 64 pixels.
    """

    def forward(self, X: Tensor) -> Tensor:
        """``[B, C, H, W]`` to ``[B, C, max(H // 2, 1), max(W // 2, 1)]``."""
        return F.max_pool2d(X, (min(2, X.shape[-2]), min(2, X.shape[-1])))


def down_sample_blk(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 3x3 convolutions with batch norm and ReLU, then a pooling that halves the map."""
    layers: list[nn.Module] = []
    for channels in (in_channels, out_channels):
        layers += [
            nn.Conv2d(channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, Halve())


def base_net(channels: Sequence[int] = CHANNELS[:BASE_BLOCKS]) -> nn.Sequential:
    """Blocks with these output channels, from an RGB image to a map, by default 8 times smaller."""
    return nn.Sequential(*(down_sample_blk(a, b) for a, b in pairwise((3, *channels))))


class TinySSD(nn.Module):
    """The chapter's detector: a base network, blocks that halve, a global max-pooling at the end,
    and on each of these scales a class and an offset predictor.

    Modules are named as in the chapter's class, so a state dict of that class loads here and gives
    the same outputs. Any input size works; ``memory_format=torch.channels_last`` is faster on a CPU.

    Args:
        num_classes: classes without background.
        sizes: for each scale, the anchor sizes as fractions of the image.
        ratios: for each scale, the anchor aspect ratios, as for `multibox_prior`.
        channels: output channels of the blocks. The first three make the first scale, each further
            one is a scale, and global max-pooling is the last: one scale less than entries.
        preprocess: what the model expects of raw images, by default 256 x 256 pixels in 0..255;
            `forward` does not apply it.
        nms_threshold: the default of `predict` and `evaluate`; 0.5 is the chapter's.
        match_iou: the IoU at which `evaluate` matches anchors for its class and offset errors: that of
            training. 0.5 is the chapter's.

    Source: Dive into Deep Learning, section 14.7; SSD, arXiv:1512.02325.

    Example:
        >>> anchors, cls_preds, bbox_preds = TinySSD(num_classes=1)(torch.zeros(32, 3, 256, 256))
        >>> anchors.shape, cls_preds.shape, bbox_preds.shape
        (torch.Size([1, 5444, 4]), torch.Size([32, 5444, 2]), torch.Size([32, 21776]))
    """

    def __init__(
        self,
        num_classes: int = 1,
        sizes: Sequence[Sequence[float]] = SIZES,
        ratios: Sequence[Sequence[float]] = RATIOS,
        channels: Sequence[int] = CHANNELS,
        preprocess: Preprocess | None = None,
        nms_threshold: float = 0.5,
        match_iou: float = 0.5,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"TinySSD: num_classes must be at least 1, got {num_classes}")
        if len(channels) < BASE_BLOCKS:
            raise ValueError(f"TinySSD: channels must have 3 entries or more, got {len(channels)}")
        self.num_scales = len(channels) - BASE_BLOCKS + 2
        for name, value in (("sizes", sizes), ("ratios", ratios)):
            if len(value) != self.num_scales or not all(len(row) for row in value):
                wanted = f"{self.num_scales} lists that are not empty, one for each scale"
                raise ValueError(f"TinySSD: {name} must be {wanted}, got {value!r}")
        self.num_classes = num_classes
        self.sizes = [[float(size) for size in row] for row in sizes]
        self.ratios = [[float(ratio) for ratio in row] for row in ratios]
        self.channels = tuple(channels)
        self.preprocess = preprocess or Preprocess()
        self.nms_threshold = nms_threshold
        self.match_iou = match_iou

        base, later = channels[:BASE_BLOCKS], channels[BASE_BLOCKS - 1 :]
        halving = [down_sample_blk(a, b) for a, b in pairwise(later)]
        blocks = [base_net(base), *halving, nn.AdaptiveMaxPool2d((1, 1))]
        widths = [*later, later[-1]]
        for scale, (block, width) in enumerate(zip(blocks, widths, strict=True)):
            num_anchors = len(sizes[scale]) + len(ratios[scale]) - 1
            self.add_module(f"blk_{scale}", block)
            self.add_module(f"cls_{scale}", cls_predictor(width, num_anchors, num_classes))
            self.add_module(f"bbox_{scale}", bbox_predictor(width, num_anchors))

    def feature_maps(self, X: Tensor) -> list[Tensor]:
        """The map ``[B, C_k, H_k, W_k]`` of each scale, for images as `forward` takes them."""
        maps = [X]
        for scale in range(self.num_scales):
            maps.append(getattr(self, f"blk_{scale}")(maps[-1]))
        return maps[1:]

    def forward(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Anchors, class predictions and offsets of a batch.

        Args:
            X: ``[B, 3, H, W]`` images as `preprocess` returns them.

        Returns:
            anchors ``[1, A, 4]`` xyxy in fractions of the image, float32 (float64 for a float64
            network); class predictions ``[B, A, num_classes + 1]`` before softmax, background
            first, and offsets ``[B, 4A]``, both in the dtype of the network or of autocast.
        """
        feature_maps = self.feature_maps(X)
        anchors = ops.multibox_priors(feature_maps, self.sizes, self.ratios)
        cls_preds, bbox_preds = [], []
        for scale, feature_map in enumerate(feature_maps):
            cls_preds.append(getattr(self, f"cls_{scale}")(feature_map))
            bbox_preds.append(getattr(self, f"bbox_{scale}")(feature_map))
        classes = concat_preds(cls_preds).unflatten(1, (-1, self.num_classes + 1))
        return anchors, classes, concat_preds(bbox_preds)
