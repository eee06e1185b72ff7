import baselines
import cases
import pytest
import torch

import ssd_ops

IMPLEMENTATIONS = {"ssd_ops": ssd_ops.multiclass_nms, "eager": baselines.eager_multiclass_nms}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("images, boxes, classes", [(8, 1000, 80)])
def bench_multiclass_nms(timed, images, boxes, classes, impl):
    """The second stage of a Faster R-CNN: 1,000 proposals in each image, each with few likely classes."""
    scores = (2 * torch.randn(images, boxes, classes)).softmax(2)
    args = cases.boxes(images, boxes), scores
    case = f"multiclass_nms B{images} {boxes:,} boxes, {classes} classes"
    timed(case, impl, IMPLEMENTATIONS, args, baselines.same_found)


def best_class(boxes, scores):
    return ssd_ops.multiclass_nms(
        boxes, scores, best_class_only=True, score_threshold=0.25, iou_threshold=0.7, topk=-1
    )


def ultralytics(boxes, scores):
    """Its `non_max_suppression` with `multi_label=False`: NMS of boxes that are moved apart by class."""
    found = []
    for box, score in zip(boxes, scores, strict=True):
        value, label = score.max(dim=1)
        over = value > 0.25
        box, value, label = box[over], value[over], label[over]
        keep = baselines.eager_nms(box + 7680 * label[:, None], value, 0.7)[:100]
        found.append({"boxes": box[keep], "scores": value[keep], "labels": label[keep] + 1})
    return found


BEST_CLASS = {"ssd_ops": best_class, "ultralytics": ultralytics}


@pytest.mark.parametrize("impl", BEST_CLASS)
@pytest.mark.parametrize("images", [1, 8])
def bench_best_class_only(timed, images, impl):
    """YOLOv8 at 640 x 640: 8,400 boxes; one in a hundred has a likely class."""
    scores = torch.rand(images, 8400, 80) ** 8 * (torch.rand(images, 8400, 1) < 0.01)
    args = 640 * cases.boxes(images, 8400), scores
    case = f"multiclass_nms B{images} 8,400 boxes, 80 classes, best class only"
    timed(case, impl, BEST_CLASS, args, baselines.same_found)
