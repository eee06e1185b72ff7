"""Detections of a trained model for one image or a batch, in the pixels of the images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ssd_ops import ops
from ssd_ops.tinyssd.data.images import DataError, read_picture

# The chapter's threshold: a little below 0.01, so that a score of float32 0.01 is kept.
SCORE_THRESHOLD = 0.009999999
# Detections below it are neither drawn nor counted as found or false, if no other score is asked for.
SHOW_THRESHOLD = 0.5


class Prediction(NamedTuple):
    """The detections of one image, by descending score, on the CPU.

    ``labels`` int64 ``[K]``, 0-based classes; ``scores`` float32 ``[K]``; ``boxes`` float32
    ``[K, 4]``, xyxy in pixels of the image. A box may reach over the border of the image.
    """

    labels: Tensor
    scores: Tensor
    boxes: Tensor


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


def run(model: nn.Module, images: Tensor) -> Any:
    """What the model returns for images in 0..255."""
    preprocess: Any = model.preprocess
    return model(preprocess(images))


def own_nms_threshold(model: nn.Module, nms_threshold: float | None) -> float:
    """The threshold that is asked for, or else the model's own."""
    return getattr(model, "nms_threshold", 0.5) if nms_threshold is None else nms_threshold


def detect(outputs: tuple[Tensor, Tensor, Tensor], score: float, nms: float) -> Tensor:
    """Rows of `ops.multibox_detection` for what a model returned, `[B, A, 6]` on the CPU."""
    anchors, cls_preds, bbox_preds = outputs
    probs = cls_preds.float().softmax(dim=2).transpose(1, 2)
    return ops.multibox_detection(probs, bbox_preds.float(), anchors, nms, score).cpu()


def to_prediction(model: nn.Module, rows: Tensor, height: int, width: int) -> Prediction:
    """The detections among the rows of an image ``[A, 6]``, in its pixels."""
    rows = rows[rows[:, 0] >= 0].float()
    preprocess: Any = model.preprocess
    boxes = preprocess.to_pixels(rows[:, 2:], height, width)
    return Prediction(rows[:, 0].long(), rows[:, 1], boxes)


def predict_batch(
    model: nn.Module,
    images: Tensor,
    *,
    score_threshold: float = SCORE_THRESHOLD,
    nms_threshold: float | None = None,
) -> list[Prediction]:
    """Detections of a batch of images of one size.

    Args:
        model: a `TinySSD`, or a module with its outputs and a ``preprocess``; it may be in
            training mode, and is again afterwards.
        images: ``[B, 3, H, W]`` in 0..255, uint8 or float, on any device.
        score_threshold: detections below it are dropped; the default is the chapter's.
        nms_threshold: of two boxes whose IoU is above it, the one of lower score is dropped,
            whatever their classes. None, the default: ``model.nms_threshold``, which is 0.5, the
            chapter's, unless the model was trained for another.

    Returns:
        One `Prediction` for each image.

    Raises:
        ValueError: images of another shape.

    Example:
        >>> from ssd_ops.tinyssd.model import TinySSD
        >>> len(predict_batch(TinySSD(), torch.zeros(2, 3, 64, 96, dtype=torch.uint8)))
        2
    """
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
        raise ValueError(f"predict_batch: images must be [B, 3, H, W], got {list(images.shape)}")
    with inference(model) as device:
        outputs = run(model, images.to(device))
        rows = detect(outputs, score_threshold, own_nms_threshold(model, nms_threshold))
    height, width = images.shape[2:]
    return [to_prediction(model, image, height, width) for image in rows]


def _read_image(image: Any) -> Tensor:
    """A path, an array or a tensor as one `[3, H, W]` tensor."""
    if isinstance(image, (str, os.PathLike)):
        try:
            return torch.from_numpy(read_picture(image)).permute(2, 0, 1)
        except DataError as error:
            if not os.path.exists(image):
                raise FileNotFoundError(f"predict: image must be a file, got {image}") from None
            raise ValueError(
                f"predict: image must be a picture that Pillow can read, got {image} ({error})"
            ) from None
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(
                "predict: image must be a uint8 array [H, W, 3], "
                f"got {image.dtype} {list(image.shape)}"
            )
        return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    if isinstance(image, Tensor):
        real = image.dtype == torch.uint8 or image.is_floating_point()
        if not real or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(
                "predict: image must be a uint8 or float tensor [3, H, W], "
                f"got {str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
            )
        return image
    raise TypeError(
        f"predict: image must be a path, an array or a tensor, got {type(image).__name__}"
    )


def predict(
    model: nn.Module,
    image: str | os.PathLike[str] | np.ndarray | Tensor,
    *,
    score_threshold: float = SCORE_THRESHOLD,
    nms_threshold: float | None = None,
) -> Prediction:
    """Detections of one image of any size, in its own pixels.

    The image is resized to the input size of the model: within grey bars if it was trained so, or
    else stretched, so that a shape far from that of the training images is seen distorted.

    Args:
        model: a `TinySSD`, or a module with its outputs and a ``preprocess``.
        image: the path of a picture (this needs Pillow; transparency is dropped), a uint8 array
            ``[H, W, 3]`` RGB, or a tensor ``[3, H, W]`` RGB, uint8 or float in 0..255.
        score_threshold: as for `predict_batch`. The chapter draws what is at 0.9 or above.
        nms_threshold: as for `predict_batch`.

    Raises:
        ValueError: an array or tensor of another shape or dtype, a file that is no picture.
        TypeError: something else.
        FileNotFoundError: no file at the path.
        ImportError: a path, and no Pillow.

    Source: Dive into Deep Learning, section 14.7.3.

    Example:
        >>> from ssd_ops.tinyssd.model import TinySSD
        >>> labels, scores, boxes = predict(TinySSD(), np.zeros((48, 60, 3), dtype=np.uint8))
        >>> boxes.shape[1]
        4
    """
    batch = _read_image(image)[None]
    return predict_batch(
        model, batch, score_threshold=score_threshold, nms_threshold=nms_threshold
    )[0]
