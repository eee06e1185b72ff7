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
