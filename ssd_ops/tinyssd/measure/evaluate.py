"""A trained model measured over a data set; `predict`, for one image, can be had from here too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ssd_ops import ops
from ssd_ops.tinyssd import distributed
from ssd_ops.tinyssd.data.loader import Loader
from ssd_ops.tinyssd.loss import bbox_eval, cls_eval
from ssd_ops.tinyssd.measure import metrics
from ssd_ops.tinyssd.measure.metrics import count_found
from ssd_ops.tinyssd.predict import (
    SHOW_THRESHOLD,
    Prediction,
    inference,
    predictions,
)


class Results(NamedTuple):
    """What a model says of a data set, and what is true.

    ``predictions`` a `Prediction` for each image; ``truths`` for each image its true boxes, float32
    ``[G, 5]`` rows (class, x1, y1, x2, y2) in pixels; ``class_names``, those of the set, and numbers
    for what else occurs; ``class_error`` and ``offset_error`` as in `Measures`.
    """

    predictions: list[Prediction]
    truths: list[Tensor]
    class_names: list[str]
    class_error: float
    offset_error: float


@dataclass(frozen=True)
class Measures:
    """What `evaluate` found. None stands where there is nothing to measure, as without a true box.

    Args:
        class_error: share of anchors whose class is predicted wrong, as the chapter counts it.
        offset_error: absolute offset error averaged over all 4A offsets of the images, those of
            background anchors counted as zeros, as the chapter counts it.
        found: true boxes that a detection above the score threshold matches.
        gts: true boxes in the set.
        false_boxes: detections above the score threshold that match no true box, or one that a
            detection of higher score has already matched.
        ap: COCO average precision, mean over IoU 0.50 to 0.95; like all of COCO's, None also without
            faster-coco-eval.
        ap50: at IoU 0.5.
        ap75: at IoU 0.75.
        ap_small: of true boxes below 32 x 32 pixels of their image.
        ap_medium: of those up to 96 x 96.
        ap_large: of those above.
        ar1: COCO average recall with a detection an image.
        ar10: with ten.
        ar100: with a hundred.
        ar_small: with a hundred, of small true boxes.
        ar_medium: the same, of medium ones.
        ar_large: the same, of large ones.
        voc_ap: Pascal VOC average precision at IoU 0.5, the whole area below the curve (from 2010
            on), mean over the classes that have true boxes.
        voc_ap11: the same at eleven recalls (until 2009).
        per_class: for each class its "name", "truths", "ap", "voc_ap" and "voc_ap11".
    """

    class_error: float
    offset_error: float
    found: int
    gts: int
    false_boxes: int
    ap: float | None
    ap50: float | None
    ap75: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar1: float | None
    ar10: float | None
    ar100: float | None
    ar_small: float | None
    ar_medium: float | None
    ar_large: float | None
    voc_ap: float | None
    voc_ap11: float | None
    per_class: list[dict[str, Any]]


def collect(
    model: nn.Module,
    dataset: Any,
    *,
    batch_size: int = 32,
    nms_threshold: float | None = None,
) -> Results:
    """What a model says of every image of a set, and the chapter's two errors.

    Where processes share a run, each looks at its part, and all get the whole.

    Args:
        model: as for `predict_batch`.
        dataset: a set, as for `ssd_ops.tinyssd.data.loader.Loader`, or such a loader.
        batch_size: images at a time; it changes the memory needed, not the results.
        nms_threshold: as for `predict_batch`.

    Raises:
        ValueError: an empty set.

    Example:
        >>> from types import SimpleNamespace
        >>> from ssd_ops.tinyssd.model import TinySSD
        >>> one = SimpleNamespace(images=torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        ...                       labels=torch.tensor([[[0.0, 0.25, 0.25, 0.5, 0.5]]]))
        >>> collect(TinySSD(), one).truths
        [tensor([[ 0., 16., 16., 32., 32.]])]
    """
    preprocess: Any = model.preprocess
    loader = dataset if isinstance(dataset, Loader) else Loader(dataset, preprocess)
    batches = torch.arange(len(loader)).split(batch_size)
    own = batches[distributed.rank() :: distributed.size()]
    sums = torch.zeros(4, dtype=torch.float64)
    results: list[tuple[int, Prediction, Tensor]] = []
    with inference(model) as device:
        for numbers, batch in zip(own, loader.batches(own), strict=True):
            outputs = model(preprocess(batch.images.to(device)))
            anchors, cls_preds, bbox_preds = outputs
            bbox_labels, bbox_masks, cls_labels = ops.multibox_target(
                anchors, batch.labels.to(device)
            )
            right = cls_eval(cls_preds, cls_labels)
            wrong = bbox_eval(bbox_preds, bbox_labels, bbox_masks)
            seen = cls_labels.numel(), bbox_labels.numel()
            sums += torch.tensor([right, wrong, *seen], dtype=torch.float64)
            sizes = batch.sizes.tolist()
            found = predictions(model, outputs, sizes, nms_threshold=nms_threshold)
            for number, prediction, labels, (height, width) in zip(
                numbers.tolist(), found, batch.labels.cpu(), sizes, strict=True
            ):
                labels = labels[labels[:, 0] >= 0]
                boxes = preprocess.to_pixels(labels[:, 1:], height, width)
                results.append((number, prediction, torch.cat((labels[:, :1], boxes), dim=1)))
    parts = distributed.gather(results)
    everything = sorted((one for part in parts for one in part), key=lambda one: one[0])
    right, wrong, anchors_seen, offsets_seen = sum(distributed.gather(sums)).tolist()
    names = list(getattr(loader.examples.dataset, "class_names", ()))
    labels = [rows[:, 0].long() for _, _, rows in everything]
    labels += [prediction.labels for _, prediction, _ in everything]
    count = 1 + max((int(some.max()) for some in labels if len(some)), default=0)
    names += [f"class {number}" for number in range(len(names), count)]
    return Results(
        [prediction for _, prediction, _ in everything],
        [rows for _, _, rows in everything],
        names,
        class_error=1 - right / anchors_seen,
        offset_error=wrong / offsets_seen,
    )


def measure(
    results: Results, *, score_threshold: float = SHOW_THRESHOLD, iou_threshold: float = 0.5
) -> Measures:
    """The measures of results.

    Args:
        results: of `collect`.
        score_threshold: as for `evaluate`.
        iou_threshold: as for `evaluate`.

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> found = Prediction(torch.tensor([0]), torch.tensor([0.9]), box)
        >>> results = Results([found], [torch.tensor([[0, 0.0, 0.0, 4.0, 4.5]])], ["cup"], 0.0, 0.0)
        >>> measure(results).found
        1
    """
    every, truths, names = results.predictions, results.truths, results.class_names
    counts = [
        count_found(p, t, score_threshold=score_threshold, iou_threshold=iou_threshold)
        for p, t in zip(every, truths, strict=True)
    ]
    try:
        coco, coco_of_class = metrics.coco(every, truths, len(names))
    except ImportError:
        coco, coco_of_class = dict.fromkeys(metrics.COCO_NAMES), [None] * len(names)
    curves = metrics.precision_recall(every, truths, len(names))
    per_class: list[dict[str, Any]] = [
        {
            "name": name,
            "truths": curve.truths,
            "ap": ap,
            "voc_ap": curve.ap(),
            "voc_ap11": curve.ap11(),
        }
        for name, curve, ap in zip(names, curves, coco_of_class, strict=True)
    ]
    return Measures(
        class_error=results.class_error,
        offset_error=results.offset_error,
        found=sum(found for found, _ in counts),
        gts=sum(map(len, truths)),
        false_boxes=sum(false for _, false in counts),
        **coco,
        voc_ap=_mean([row["voc_ap"] for row in per_class]),
        voc_ap11=_mean([row["voc_ap11"] for row in per_class]),
        per_class=per_class,
    )


def _mean(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def evaluate(
    model: nn.Module,
    dataset: Any,
    *,
    batch_size: int = 32,
    score_threshold: float = SHOW_THRESHOLD,
    iou_threshold: float = 0.5,
    nms_threshold: float | None = None,
) -> Measures:
    """Measures of a model over a data set.

    Args:
        model: as for `predict_batch`.
        dataset: as for `collect`, such as a `BananaDetection`.
        batch_size: as for `collect`.
        score_threshold: the least score of a detection that counts as found or false. The
            average precisions use every detection of the chapter's threshold and above.
        iou_threshold: the least IoU of a detection that finds a true box.
        nms_threshold: as for `predict_batch`.

    Raises:
        ValueError: an empty set.

    Example:
        >>> from types import SimpleNamespace
        >>> from ssd_ops.tinyssd.model import TinySSD
        >>> one = SimpleNamespace(images=torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        ...                       labels=torch.tensor([[[0.0, 0.2, 0.2, 0.6, 0.6]]]))
        >>> evaluate(TinySSD(), one).gts
        1
    """
    results = collect(model, dataset, batch_size=batch_size, nms_threshold=nms_threshold)
    return measure(results, score_threshold=score_threshold, iou_threshold=iou_threshold)
