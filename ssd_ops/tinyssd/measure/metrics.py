"""How right detections are: counts, and average precision by the rules of COCO and Pascal VOC.

All take, for each image, its `Prediction` and its true boxes ``[G, 5]``, rows (class, x1, y1, x2,
y2) in pixels, class -1 padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssd_ops import ops
from ssd_ops.tinyssd.predict import SHOW_THRESHOLD, Prediction

# The twelve numbers of COCO's summary, in its order.
COCO_NAMES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip


def count_found(
    prediction: Prediction,
    truths: Tensor,
    *,
    score_threshold: float = SHOW_THRESHOLD,
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
    right = int(_matched(labels, boxes, truths, iou_threshold).sum())
    return right, len(boxes) - right


def _matched(labels: Tensor, boxes: Tensor, truths: Tensor, iou_threshold: float) -> Tensor:
    """Which detections, by descending score, take a true box of their own, bool ``[K]``."""
    right = torch.zeros(len(boxes), dtype=torch.bool)
    if not len(truths):
        return right
    ious = ops.box_iou(boxes, truths[:, 1:].to(boxes.dtype))
    ious[labels[:, None] != truths[:, 0].long()] = -1
    for row in range(len(right)):
        iou, best = ious[row].max(dim=0)
        if iou >= iou_threshold:
            right[row] = True
            ious[:, best] = -1
    return right


def badness(prediction: Prediction, truths: Tensor, *, iou_threshold: float = 0.5) -> float:
    """How wrong the detections of an image are: 0 where each object is found for certain.

    The sum of the squares of what each true box lacks to a score of 1, and of the squares of the
    scores of false boxes, so that the many false boxes of a low score count for little.

    Args:
        prediction: as for `count_found`.
        truths: as for `count_found`.
        iou_threshold: as for `count_found`.

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> one = Prediction(torch.zeros(1), torch.tensor([0.75]), box)
        >>> badness(one, torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0], [0.0, 8.0, 8.0, 9.0, 9.0]]))
        1.0625
    """
    truths = truths[truths[:, 0] >= 0]
    right = _matched(prediction.labels, prediction.boxes, truths, iou_threshold)
    scores = prediction.scores
    missed = len(truths) - int(right.sum())
    return missed + float((1 - scores[right]).square().sum() + scores[~right].square().sum())


@dataclass(frozen=True)
class Curve:
    """How precision falls as recall grows, for one class at one IoU threshold.

    Args:
        precision: after each detection, by descending score.
        recall: after each detection.
        truths: true boxes of the class.
    """

    precision: np.ndarray
    recall: np.ndarray
    truths: int

    def ap(self) -> float | None:
        """Average precision: the area below the curve, made to fall; None without a true box.

        Source: Pascal VOC from 2010 on.
        """
        if not self.truths:
            return None
        recall = np.concatenate(([0.0], self.recall))
        highest = np.maximum.accumulate(self.precision[::-1])[::-1]
        return float((np.diff(recall) * highest).sum())

    def ap11(self) -> float | None:
        """The mean of the highest precision at recall 0, 0.1 ... 1 or more; None without a true box.

        Source: Pascal VOC until 2009.
        """
        if not self.truths:
            return None
        levels = np.arange(11) / 10
        best = [self.precision[self.recall >= level].max(initial=0.0) for level in levels]
        return float(np.mean(best))


def precision_recall(
    predictions: Sequence[Prediction],
    truths: Sequence[Tensor],
    num_classes: int,
    iou_threshold: float = 0.5,
) -> list[Curve]:
    """The curve of each class, by the rules of Pascal VOC.

    Over all images by descending score (equal scores by image, then by place), a detection is right
    where the true box of its class that it overlaps most has an IoU of the threshold or more and has
    not been found by an earlier one. Boxes are xyxy without the extra pixel of VOC's own code.

    Args:
        predictions: for each image its detections.
        truths: for each image its true boxes.
        num_classes: classes without background.
        iou_threshold: the least IoU; VOC's is 0.5.

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> found = Prediction(torch.tensor([0]), torch.tensor([0.9]), box)
        >>> (curve,) = precision_recall([found], [torch.tensor([[0, 0.0, 0.0, 4.0, 5.0]])], 1)
        >>> curve.ap(), curve.ap11()
        (1.0, 1.0)
    """
    hits: list[list[tuple[float, bool]]] = [[] for _ in range(num_classes)]
    counts = [0] * num_classes
    for found, rows in zip(predictions, truths, strict=True):
        rows = rows[rows[:, 0] >= 0]
        for label in rows[:, 0].long().tolist():
            counts[label] += 1
        order = found.scores.argsort(descending=True, stable=True)
        labels, boxes = found.labels[order], found.boxes[order]
        ious = ops.box_iou(boxes, rows[:, 1:].to(boxes.dtype))
        ious[labels[:, None] != rows[:, 0].long()] = -1
        taken: set[int] = set()
        scores = found.scores[order].tolist()
        for place, (label, score) in enumerate(zip(labels.tolist(), scores, strict=True)):
            right = False
            if len(rows):
                iou, best = ious[place].max(dim=0)
                right = float(iou) >= iou_threshold and int(best) not in taken
                taken |= {int(best)} if right else set()
            hits[label].append((score, right))
    return [_curve(some, count) for some, count in zip(hits, counts, strict=True)]


def _curve(hits: list[tuple[float, bool]], count: int) -> Curve:
    hits = sorted(hits, key=lambda hit: -hit[0])
    found = np.cumsum([right for _, right in hits], dtype=np.float64)
    return Curve(found / np.arange(1, len(hits) + 1), found / max(count, 1), count)


def coco(
    predictions: Sequence[Prediction],
    truths: Sequence[Tensor],
    num_classes: int,
) -> tuple[dict[str, float | None], list[float | None]]:
    """COCO's average precisions and recalls, by faster-coco-eval.

    The numbers are those of `COCO_NAMES`: the mean over IoU 0.50 to 0.95, at 0.5 and at 0.75, by the
    area of the true box (32 and 96 pixels squared apart), and recalls at 1, 10 and 100 detections an
    image. None stands where there is no true box. Also the first of them, class by class.

    Args:
        predictions: for each image its detections.
        truths: for each image its true boxes.
        num_classes: classes without background.

    Raises:
        ImportError: faster-coco-eval is not installed.

    Example:
        >>> box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
        >>> found = Prediction(torch.tensor([0]), torch.tensor([0.9]), box)
        >>> numbers, of_class = coco([found], [torch.tensor([[0, 0.0, 0.0, 4.0, 4.5]])], 1)
        >>> round(numbers["ap"], 3), numbers["ap_large"]
        (0.8, None)
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError:
        raise ImportError(
            "metrics: COCO's measures need faster-coco-eval: pip install ssd_ops[train]"
        ) from None
    annotations: list[dict[str, Any]] = []
    for image, rows in enumerate(truths):
        for label, *corners in rows[rows[:, 0] >= 0].tolist():
            entry = _coco_box(image, label, corners)
            annotations.append({**entry, "id": len(annotations) + 1, "iscrowd": 0})
    if not annotations:
        return dict.fromkeys(COCO_NAMES), [None] * num_classes
    results = [
        {**_coco_box(image, label, box), "score": score}
        for image, p in enumerate(predictions)
        for label, score, box in zip(
            p.labels.tolist(), p.scores.tolist(), p.boxes.tolist(), strict=True
        )
    ]
    gt = COCO(
        {
            "images": [{"id": image} for image in range(len(truths))],
            "annotations": annotations,
            "categories": [{"id": label + 1, "name": str(label)} for label in range(num_classes)],
        }
    )
    evaluation = COCOeval_faster(gt, gt.loadRes(results), "bbox", print_function=lambda *_: None)
    evaluation.run()
    numbers = dict(zip(COCO_NAMES, map(_number, evaluation.stats), strict=False))
    # [IoU, recall, class, area, detections]: all areas, a hundred detections.
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    of_class = [precision[:, :, label] for label in range(num_classes)]
    return numbers, [_number(p[p > -1].mean() if (p > -1).any() else -1) for p in of_class]


def _number(value: Any) -> float | None:
    """COCO says -1 where there is nothing to find."""
    return None if value < 0 else float(value)


def _coco_box(image: int, label: float, corners: Sequence[float]) -> dict[str, Any]:
    # Classes count from 1 there.
    x1, y1, x2, y2 = corners
    box = [x1, y1, x2 - x1, y2 - y1]
    area = box[2] * box[3]
    return {"image_id": image, "category_id": int(label) + 1, "bbox": box, "area": area}
