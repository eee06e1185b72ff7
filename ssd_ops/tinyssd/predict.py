"""Detections of a trained model for one image or a batch, in the pixels of the images."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ssd_ops import ops
from ssd_ops.tinyssd.data.images import as_image, check_range

# The chapter's: a little below 0.01, so that a score of float32 0.01 is kept.
SCORE_THRESHOLD = 0.009999999
# Detections below it are neither drawn nor counted as found or false, if no other score is asked for.
SHOW_THRESHOLD = 0.5


class Prediction(NamedTuple):
    """The detections of one image, by descending score, on the CPU."""

    labels: Tensor  # int64 [K], 0-based classes
    scores: Tensor  # float32 [K]
    boxes: Tensor  # float32 [K, 4], xyxy in pixels; they may reach over the border of the image


@contextmanager
def inference(model: nn.Module) -> Iterator[torch.device]:
    """The model in evaluation mode without gradients, put back after; yields its device."""
    # Each module's own mode: parts may be frozen while the rest is trained.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        for module, training in modes:
            module.training = training


def predictions(
    model: Any,
    outputs: tuple[Tensor, Tensor, Tensor],
    sizes: Sequence[Sequence[int]],
    *,
    score_threshold: float = SCORE_THRESHOLD,
    nms_threshold: float | None = None,
) -> list[Prediction]:
    """The detections in what a model returned for a batch; `sizes` are (height, width) of its images.

    They are those of the book's `multibox_detection`: each anchor has its best class, and a box
    suppresses those of every class. Where two scores are equal, the lower class comes first. For the
    thresholds, see `predict_batch`.
    """
    anchors, cls_preds, bbox_preds = outputs
    if nms_threshold is None:
        nms_threshold = getattr(model, "nms_threshold", 0.5)
    # `detect` takes what is above its threshold, the book also what is at it.
    below = float(np.nextafter(np.float32(score_threshold), np.float32(0)))
    # At IoU 1 nothing suppresses the other classes of an anchor, which the book does not count.
    classes = cls_preds.shape[2] - 1 if nms_threshold == 1 else 1
    found = ops.detect(
        cls_preds,
        bbox_preds,
        anchors,
        score_threshold=below,
        iou_threshold=nms_threshold,
        topk=-1,
        max_detections=max(1, cls_preds.shape[1] * classes),
        clip=False,
        class_agnostic=True,
    )
    results = []
    rows = zip(*(tensor.cpu() for tensor in found), sizes, strict=True)
    for boxes, scores, labels, indices, count, (height, width) in rows:
        # Of each anchor the first, its best class.
        kept = np.sort(np.unique(indices[:count].numpy(), return_index=True)[1])
        own = model.preprocess.to_pixels(boxes[kept].float(), height, width)
        results.append(Prediction(labels[kept], scores[kept].float(), own))
    return results


def predict_batch(
    model: nn.Module,
    images: Tensor,
    *,
    score_threshold: float = SCORE_THRESHOLD,
    nms_threshold: float | None = None,
) -> list[Prediction]:
    """Detections of a batch of images of one size, a `Prediction` for each.

    Args:
        model: a `TinySSD`, or a module with its outputs and a ``preprocess``, in any mode.
        images: ``[B, 3, H, W]``, uint8 or float, on any device. Floats are in 0..255 too; those in 0..1
            must be multiplied by 255, and what is normalised already is refused.
        score_threshold: detections below it are dropped; the default is the chapter's.
        nms_threshold: of two boxes whose IoU is above it, the one of lower score is dropped,
            whatever their classes. None, the default: ``model.nms_threshold``, or else 0.5.
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"predict_batch: images must be [B, 3, H, W], got {list(images.shape)}")
    check_range("predict_batch: images must be", images)
    preprocess: Any = model.preprocess
    sizes = [images.shape[2:]] * len(images)
    options: Any = {"score_threshold": score_threshold, "nms_threshold": nms_threshold}
    with inference(model) as device:
        return predictions(model, model(preprocess(images.to(device))), sizes, **options)


def predict(
    model: nn.Module,
    image: str | os.PathLike[str] | np.ndarray | Tensor,
    *,
    score_threshold: float = SCORE_THRESHOLD,
    nms_threshold: float | None = None,
) -> Prediction:
    """Detections of one image of any size, in its own pixels.

    Args:
        model, score_threshold, nms_threshold: as for `predict_batch`.
        image: a path, a uint8 array ``[H, W, 3]``, or a tensor ``[3, H, W]``, uint8 or float in 0..255, as
            for `as_image`. A file is turned by its EXIF orientation, and the boxes lie in it as it is shown.
            The image is stretched to the input size, or put within grey bars if the model was trained so.

    Raises: as `as_image`.

    Source: Dive into Deep Learning, section 14.7.3, which draws what has a score of 0.9 or above.

    Example:
        >>> from ssd_ops.tinyssd.model import TinySSD
        >>> labels, scores, boxes = predict(TinySSD(), np.zeros((48, 60, 3), dtype=np.uint8))
        >>> boxes.shape[1]
        4
    """
    options: Any = {"score_threshold": score_threshold, "nms_threshold": nms_threshold}
    return predict_batch(model, as_image("predict", image)[None], **options)[0]
