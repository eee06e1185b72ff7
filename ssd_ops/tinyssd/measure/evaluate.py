"""A trained model measured over a data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ssd_ops import ops
from ssd_ops.tinyssd import distributed
from ssd_ops.tinyssd.data.loader import Loader
from ssd_ops.tinyssd.data.rows import crowd_boxes, is_row
from ssd_ops.tinyssd.loss import bbox_eval, cls_eval
from ssd_ops.tinyssd.measure import metrics
from ssd_ops.tinyssd.predict import SHOW_THRESHOLD, Prediction, inference, predictions


class Results(NamedTuple):
    """What a model says of each image of a set, and its ground truths."""

    predictions: list[Prediction]
    gts: list[Tensor]  # float32 [G, 5] rows (class, x1, y1, x2, y2) in pixels, crowds below -1
    class_names: list[str]  # those of the set, and numbers for other classes that occur
    class_error: float  # as in Measures
    offset_error: float  # as in Measures
    areas: list[Tensor] | None = None  # [G] of the gts in pixels; None: those of their boxes


@dataclass(frozen=True)
class Measures:
    """How good a model is: the chapter's errors, counts, and COCO's average precision and recall.

    The errors compare each anchor with what it is trained on: anchors are matched at the model's
    ``match_iou``, so that a model that predicts its targets has none. What is found is counted at IoU 0.5.
    COCO's are None without faster-coco-eval, and where there is no ground truth.
    """

    class_error: float  # share of anchors whose class is wrong; in crowds none is
    offset_error: float  # mean absolute error of all 4A offsets, 0 for background anchors
    found: int  # ground truths found by a detection above the score threshold
    gts: int
    false_boxes: int  # the other detections above it, but for those in crowds
    ap: float | None  # mean over IoU 0.50 to 0.95
    ap50: float | None  # at IoU 0.5
    ap75: float | None
    ap_small: float | None  # of ground truths below 32 x 32 pixels
    ap_medium: float | None  # up to 96 x 96 pixels
    ap_large: float | None
    ar1: float | None  # average recall with one detection an image
    ar10: float | None
    ar100: float | None
    ar_small: float | None  # with a hundred, of sizes as above
    ar_medium: float | None
    ar_large: float | None
    per_class: list[dict[str, Any]]  # for each class "name", "gts", "ap" and "ap50"
    # the curves at IoU 0.5, [101, C] as of `metrics.coco`, or None
    precision: np.ndarray | None = field(default=None, repr=False, compare=False)


def collect(
    model: nn.Module, dataset: Any, *, batch_size: int = 32, nms_threshold: float | None = None
) -> Results:
    """What a model says of every image of a set, or of a `Loader` of one.

    Processes that share a run each look at a part. `batch_size` changes the memory needed, not the
    results; the model and its `nms_threshold` are as for `predict_batch`. Its ``match_iou``, or else 0.5,
    is that of the errors.
    """
    preprocess: Any = model.preprocess
    match_iou: Any = getattr(model, "match_iou", 0.5)
    loader = dataset if isinstance(dataset, Loader) else Loader(dataset, preprocess)
    batches = torch.arange(len(loader)).split(batch_size)
    own = batches[distributed.rank() :: distributed.size()]
    sums = torch.zeros(4, dtype=torch.float64)
    results: list[tuple[int, Prediction, Tensor]] = []
    with inference(model) as device:
        for numbers, batch in zip(own, loader.batches(own), strict=True):
            outputs = model(preprocess(batch.images.to(device)))
            anchors, cls_preds, bbox_preds = outputs
            Y = batch.labels.to(device)
            offsets, masks, classes = ops.multibox_target(
                anchors, Y, iou_threshold=match_iou, ignore_boxes=crowd_boxes(Y)
            )
            right = cls_eval(cls_preds, classes) + int((classes < 0).sum())
            wrong = bbox_eval(bbox_preds, offsets, masks)
            sums += sums.new_tensor([right, wrong, classes.numel(), offsets.numel()])
            sizes = batch.sizes.tolist()
            found = predictions(model, outputs, sizes, nms_threshold=nms_threshold)
            gts = [rows[is_row(rows)] for rows in batch.labels.cpu()]
            for rows, size in zip(gts, sizes, strict=True):
                rows[:, 1:] = preprocess.to_pixels(rows[:, 1:], *size)
            results += zip(numbers.tolist(), found, gts, strict=True)
    results = [result for part in distributed.gather(results) for result in part]
    results.sort(key=lambda result: result[0])
    right, wrong, anchors_seen, offsets_seen = distributed.all_sum(sums).tolist()
    dataset = loader.examples.dataset
    names = list(getattr(dataset, "class_names", ()))
    # What a transform does to an area, only the boxes tell.
    areas = getattr(dataset, "areas", None) if not loader.examples.varies else None
    labels = [torch.cat((found.labels, rows[:, 0])) for _, found, rows in results]
    count = 1 + int(max((some.max() for some in labels if len(some)), default=0))
    names += [f"class {number}" for number in range(len(names), count)]
    _, all_found, all_gts = map(list, zip(*results, strict=True))
    errors = 1 - right / anchors_seen, wrong / offsets_seen
    return Results(all_found, all_gts, names, *errors, areas)


def measure(
    results: Results, *, score_threshold: float = SHOW_THRESHOLD, iou_threshold: float = 0.5
) -> Measures:
    """The measures of what `collect` returns.

    Detections from `score_threshold` on count as found or false, found from `iou_threshold` on. The
    average precisions take every detection.
    """
    found, gts, names = results.predictions, results.gts, results.class_names
    thresholds: Any = {"score_threshold": score_threshold, "iou_threshold": iou_threshold}
    counts = [metrics.count_found(*pair, **thresholds) for pair in zip(found, gts, strict=True)]
    coco: dict[str, Any]
    try:
        coco, precision = metrics.coco(found, gts, len(names), results.areas)
        at_half: Any = precision[0]
    except ImportError:
        coco, precision = dict.fromkeys(metrics.COCO_NAMES), np.full((1, 1, len(names)), -1.0)
        at_half = None
    labels = torch.cat(gts)[:, 0].long()
    numbers = labels[labels >= 0].bincount(minlength=len(names)).tolist()
    per_class = []
    for name, number, curves in zip(names, numbers, precision.T, strict=True):
        ap, ap50 = (None if p < 0 else float(p) for p in (curves.mean(), curves[:, 0].mean()))
        per_class.append({"name": name, "gts": number, "ap": ap, "ap50": ap50})
    right, false = map(sum, zip(*counts, strict=True))
    errors = results.class_error, results.offset_error
    counted = right, sum(numbers), false
    return Measures(*errors, *counted, **coco, per_class=per_class, precision=at_half)


def evaluate(
    model: nn.Module, dataset: Any, *, score_threshold: float = SHOW_THRESHOLD, **options: Any
) -> Measures:
    """The measures of a model over a data set: `measure` of what `collect` returns for the options."""
    return measure(collect(model, dataset, **options), score_threshold=score_threshold)
