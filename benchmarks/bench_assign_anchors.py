import baselines
import cases
import pytest
import torch

import ssd_ops


def argmax(anchors, gt_boxes):
    return ssd_ops.assign_anchors(anchors, gt_boxes, force_match="argmax")


IMPLEMENTATIONS = {
    "ssd_ops": argmax,
    "torchvision": baselines.torchvision_assign_anchors,
    "eager": baselines.eager_assign_anchors,
}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("images, gts, anchors", [(32, 8, 8732), (32, 64, 8732)])
def bench_assign_anchors(timed, images, gts, anchors, impl):
    args = cases.prior_anchors(anchors)[0], cases.boxes(images, gts)
    case = f"assign_anchors B{images} G{gts} A{anchors:,}"
    timed(case, impl, IMPLEMENTATIONS, args, baselines.same_matches)


def ignoring(anchors, gt_boxes, regions):
    return ssd_ops.assign_anchors(anchors, gt_boxes, ignore_boxes=regions)


def eager_ignoring(anchors, gt_boxes, regions):
    """The match of the library, then a matrix of anchors x regions, as mmdet makes it."""
    idxs, ious = ssd_ops.assign_anchors(anchors, gt_boxes)
    low = torch.maximum(anchors[:, None, :2], regions[:, None, :, :2])
    high = torch.minimum(anchors[:, None, 2:], regions[:, None, :, 2:])
    areas = (anchors[:, 2:] - anchors[:, :2]).prod(dim=1)
    share = (high - low).clamp(min=0).prod(dim=3) / areas[:, None]
    ignored = (share >= 0.5).any(dim=2) & (idxs < 0)
    return idxs.masked_fill(ignored, -2), ious


IGNORING = {"ssd_ops": ignoring, "eager": eager_ignoring}


@pytest.mark.parametrize("impl", IGNORING)
@pytest.mark.parametrize("images, regions, anchors", [(32, 1, 8732), (32, 8, 8732)])
def bench_assign_anchors_ignoring(timed, images, regions, anchors, impl):
    args = cases.prior_anchors(anchors)[0], cases.boxes(images, 8), cases.boxes(images, regions)
    case = f"assign_anchors ignoring {regions} B{images} G8 A{anchors:,}"
    timed(case, impl, IGNORING, args, baselines.same_matches)
