"""A trained model measured over a data set; `predict`, for one image, can be had from here too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssd_ops import ops
from ssd_ops.loss import bbox_eval, cls_eval
from ssd_ops.predict import (
    SCORE_THRESHOLD,
    Prediction,
    detect,
    inference,
    own_nms_threshold,
    predict,
    predict_batch,
    run,
    to_prediction,
)

__all__ = [
    "Measures",
    "Prediction",
    "count_found",
    "evaluate",
    "predict",
    "predict_batch",
]


@dataclass(frozen=True)
class Measures:
    """What `evaluate` found.

    Args:
        class_error: share of anchors whose class is predicted wrong, as the chapter counts it.
        offset_error: absolute offset error averaged over all 4A offsets of the images, those of
            background anchors counted as zeros, as the chapter counts it.
        found: true boxes that a detection above the score threshold matches.
        truths: true boxes in the set.
        false_boxes: detections above the score threshold that match no true box, or one that a
            detection of higher score has already matched.
        ap: COCO average precision, mean over IoU 0.50 to 0.95; None without faster-coco-eval.
        ap50: COCO average precision at IoU 0.5; None without faster-coco-eval.
    """

    class_error: float
    offset_error: float
    found: int
    truths: int
    false_boxes: int
    ap: float | None
    ap50: float | None


def count_found(
    prediction: Prediction,
    truths: Tensor,
    *,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
) -> tuple[int, int]:
    """How many true boxes of an image are found, and how many detections are false.

    One to one and greedy: each detection, by descending score, takes the free true box of its
    class that it overlaps most. So a second box on one object is a false one.

    Args:
        prediction: detections of one image, by descending score.
        truths: ``[G, 5]`` rows (class, x1, y1, x2, y2) in the unit of the prediction; a row of
            negative class is padding.
        score_threshold: detections below it do not count.
        iou_threshold: the least IoU of a match.

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> twice = Prediction(torch.zeros(2), torch.tensor([0.9, 0.8]), box.repeat(2, 1))
        >>> count_found(twice, torch.tensor([[0.0, 0.0, 0.0, 4.0, 5.0]]))
        (1, 1)
    """
    counted = prediction.scores >= score_threshold
    labels, boxes = prediction.labels[counted], prediction.boxes[counted]
    truths = truths[truths[:, 0] >= 0]
    if not len(truths) or not len(boxes):
        return 0, len(boxes)
    ious = ops.box_iou(boxes, truths[:, 1:].to(boxes.dtype))
    ious[labels[:, None] != truths[:, 0].long()] = -1
    found = 0
    for row in range(len(boxes)):
        iou, best = ious[row].max(dim=0)
        if iou >= iou_threshold:
            found += 1
            ious[:, best] = -1
    return found, len(boxes) - found


def evaluate(
    model: nn.Module,
    dataset: Any,
    *,
    batch_size: int = 32,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.5,
    nms_threshold: float | None = None,
) -> Measures:
    """Measures of a model over a data set.

    Args:
        model: as for `predict_batch`.
        dataset: its ``images`` are uint8 ``[N, 3, H, W]``, its ``labels`` float32 ``[N, G, 5]``
            rows (class, x1, y1, x2, y2) in fractions of the image, class -1 padding, as those
            of `ssd_ops.data.BananaDetection` are.
        batch_size: images at a time; it changes the memory needed, not the measures.
        score_threshold: the least score of a detection that counts as found or false. The
            average precisions use every detection of the chapter's threshold and above.
        iou_threshold: the least IoU of a detection that finds a true box.
        nms_threshold: as for `predict_batch`.

    Raises:
        ValueError: an empty set.

    Example:
        >>> from types import SimpleNamespace
        >>> from ssd_ops.model import TinySSD
        >>> one = SimpleNamespace(images=torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
        ...                       labels=torch.tensor([[[0.0, 0.2, 0.2, 0.6, 0.6]]]))
        >>> evaluate(TinySSD(), one).truths
        1
    """
    images, labels = dataset.images, dataset.labels
    if not len(images):
        raise ValueError("evaluate: dataset must hold an image at least, got none")
    height, width = images.shape[2:]
    nms = own_nms_threshold(model, nms_threshold)
    correct = anchors_seen = offsets_seen = offset_sum = 0.0
    predictions = []
    with inference(model) as device:
        for start in range(0, len(images), batch_size):
            rows = labels[start : start + batch_size].to(device)
            outputs = run(model, images[start : start + batch_size].to(device))
            anchors, cls_preds, bbox_preds = outputs
            bbox_labels, bbox_masks, cls_labels = ops.multibox_target(anchors, rows)
            correct += cls_eval(cls_preds, cls_labels)
            offset_sum += bbox_eval(bbox_preds, bbox_labels, bbox_masks)
            anchors_seen += cls_labels.numel()
            offsets_seen += bbox_labels.numel()
            detections = detect(outputs, SCORE_THRESHOLD, nms)
            predictions += [to_prediction(image, height, width) for image in detections]

    truths = labels.clone()
    truths[..., 1:] *= torch.tensor([width, height, width, height])
    thresholds = {"score_threshold": score_threshold, "iou_threshold": iou_threshold}
    counts = [count_found(p, t, **thresholds) for p, t in zip(predictions, truths, strict=True)]
    ap, ap50 = _coco(predictions, truths, height, width)
    return Measures(
        class_error=1 - correct / anchors_seen,
        offset_error=offset_sum / offsets_seen,
        found=sum(found for found, _ in counts),
        truths=int((labels[..., 0] >= 0).sum()),
        false_boxes=sum(false for _, false in counts),
        ap=ap,
        ap50=ap50,
    )


def _coco(
    predictions: list[Prediction], truths: Tensor, height: int, width: int
) -> tuple[float | None, float | None]:
    """COCO AP and AP at IoU 0.5, or None twice without faster-coco-eval or without any truth."""
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        return None, None
    annotations: list[dict[str, Any]] = []
    for image, rows in enumerate(truths):
        for label, x1, y1, x2, y2 in rows[rows[:, 0] >= 0].tolist():
            entry = _coco_box(image, label, x1, y1, x2, y2)
            annotations.append({**entry, "id": len(annotations) + 1, "iscrowd": 0})
    if not annotations:
        return None, None
    results = [
        {**_coco_box(image, label, *box), "score": score}
        for image, p in enumerate(predictions)
        for label, score, box in zip(*(part.tolist() for part in p), strict=True)
    ]
    gt = COCO(
        {
            "images": [
                {"id": image, "height": height, "width": width} for image in range(len(truths))
            ],
            "annotations": annotations,
            "categories": [
                {"id": label, "name": str(label)}
                for label in sorted({entry["category_id"] for entry in annotations})
            ],
        }
    )
    scores = COCOeval_faster(gt, gt.loadRes(results), "bbox", print_function=lambda *_: None)
    scores.run()
    return float(scores.stats[0]), float(scores.stats[1])


def _coco_box(
    image: int, label: float, x1: float, y1: float, x2: float, y2: float
) -> dict[str, Any]:
    # Classes count from 1 there.
    box = [x1, y1, x2 - x1, y2 - y1]
    area = box[2] * box[3]
    return {"image_id": image, "category_id": int(label) + 1, "bbox": box, "area": area}
