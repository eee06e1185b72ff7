"""How right detections are: counts, and average precision by COCO's rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssd_ops import ops
from ssd_ops.tinyssd.checks import extra
from ssd_ops.tinyssd.data.rows import crowd_class, is_crowd, is_row
from ssd_ops.tinyssd.predict import SHOW_THRESHOLD, Prediction

# The twelve numbers of COCO's summary, in its order.
COCO_NAMES = (
    "ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip


def count_found(
    prediction: Prediction,
    gts: Tensor,
    *,
    score_threshold: float = SHOW_THRESHOLD,
    iou_threshold: float = 0.5,
) -> tuple[int, int]:
    """How many ground truths of an image are found, and how many detections are false.

    Each detection in turn takes the free ground truth of its class that it overlaps most. So a second
    detection of one ground truth is a false one. What finds none, but lies in a crowd of its class with
    `iou_threshold` of its area or more, is neither. Scores and IoUs at the thresholds count. `gts` are
    ``[G, 5]`` rows (class, x1, y1, x2, y2) in pixels, class -1 padding and below -1 crowds, see
    `ssd_ops.tinyssd.data.rows`.
    """
    counted = prediction.scores >= score_threshold
    right, false = _match(Prediction(*(part[counted] for part in prediction)), gts, iou_threshold)
    return int(right.sum()), int(false.sum())


def badness(prediction: Prediction, gts: Tensor) -> float:
    """How wrong the detections of an image are: 0 where each ground truth is found with score 1.

    The sum of ``(1 - score)**2`` over the ground truths, 1 for one not found at IoU 0.5, and of
    ``score**2`` over the false detections, so that the many of low score count for little.
    """
    (right, false), scores = _match(prediction, gts, 0.5), prediction.scores
    missed = int((gts[:, 0] >= 0).sum()) - int(right.sum())
    return missed + float((1 - scores[right]).square().sum() + scores[false].square().sum())


def _match(prediction: Prediction, gts: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Which detections take a ground truth of their own, and which are false, bool ``[K]`` each."""
    ious = ops.box_iou(prediction.boxes, gts[:, 1:].to(prediction.boxes.dtype))
    # No class is negative, so this leaves padding and crowds out too.
    ious[prediction.labels[:, None] != gts[:, 0].long()] = -1
    right = torch.zeros(len(ious), dtype=torch.bool)
    # Where no IoU is enough, nothing that is taken before makes it enough.
    for row in (ious >= iou_threshold).any(dim=1).nonzero().flatten().tolist():
        iou, best = ious[row].max(dim=0)
        if iou >= iou_threshold:
            right[row] = True
            ious[:, best] = -1
    ignored = torch.zeros_like(right)
    nothing = prediction.boxes.new_zeros((1, 0, 4))
    for label, *box in gts[is_crowd(gts)].tolist():
        # In the words of the op: the anchors of which enough lies in the box are -2.
        region = prediction.boxes.new_tensor([[box]])
        inside, _ = ops.assign_anchors(
            prediction.boxes, nothing, ignore_boxes=region, ignore_threshold=iou_threshold
        )
        ignored |= (inside[0] == -2) & (prediction.labels == crowd_class(label))
    return right, ~right & ~ignored


def coco(
    predictions: Sequence[Prediction],
    gts: Sequence[Tensor],
    num_classes: int,
    areas: Sequence[Tensor] | None = None,
) -> tuple[dict[str, float | None], np.ndarray]:
    """COCO's average precisions and recalls of images, by faster-coco-eval.

    Args:
        predictions: of each image.
        gts: of each image, rows as for `count_found`.
        num_classes: classes are 0 to ``num_classes - 1``.
        areas: of each image the areas ``[G]`` of its rows in pixels, which say what is small, medium and
            large. None, the default: those of the boxes.

    Returns:
        The numbers of `COCO_NAMES`, None where there is no ground truth. And the precision, float64
        ``[10, 101, C]``, at IoU 0.50, 0.55, ... 0.95 and at recall 0, 0.01, ... 1: the highest at that
        recall or a greater one, 0 where it is not reached, -1 for a class without ground truth. Its
        mean is the average precision.

    Source: cocodataset.org, detection evaluation.
    """
    library = extra("faster_coco_eval")
    images = [{"id": image} for image in range(len(gts))]
    classes = [{"id": label} for label in range(num_classes)]
    annotations = _annotations(gts, areas)
    truth = library.COCO({"images": images, "annotations": annotations, "categories": classes})
    rows = [_rows(image, *prediction) for image, prediction in enumerate(predictions)]
    found = truth.loadRes(torch.cat(rows).numpy())
    evaluation = library.COCOeval_faster(truth, found, "bbox", print_function=lambda *_: None)
    evaluation.run()
    # COCO says -1 where there is no ground truth.
    values = [None if value < 0 else float(value) for value in evaluation.stats]
    # [IoU, recall, class, area, detections]: of any area, a hundred detections.
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    return dict(zip(COCO_NAMES, values, strict=False)), precision


def _annotations(gts: Sequence[Tensor], areas: Sequence[Tensor] | None) -> list[dict[str, Any]]:
    """The ground truths of all images as faster-coco-eval reads them, without padding."""
    found: list[dict[str, Any]] = []
    for image, rows in enumerate(gts):
        boxes = rows[:, 1:].double()  # which holds the others without rounding
        sides = boxes[:, 2:] - boxes[:, :2]
        of_image = sides.prod(dim=1) if areas is None else areas[image]
        columns = rows[:, 0], is_crowd(rows), torch.cat((boxes[:, :2], sides), dim=1), of_image
        kept = is_row(rows)
        for label, in_crowd, box, area in zip(*(c[kept].tolist() for c in columns), strict=True):
            found.append(
                {
                    "id": len(found) + 1,  # 0 would be no match
                    "image_id": image,
                    "category_id": int(crowd_class(label) if in_crowd else label),
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(in_crowd),
                }
            )
    return found


def _rows(image: int, labels: Tensor, scores: Tensor, boxes: Tensor) -> Tensor:
    """Rows (image, x, y, width, height, score, class) of an image, as faster-coco-eval reads them."""
    boxes = boxes.double()
    sides = boxes[:, 2:] - boxes[:, :2]
    number = torch.full((len(labels), 1), image)
    return torch.cat((number, boxes[:, :2], sides, scores[:, None], labels[:, None]), dim=1)
