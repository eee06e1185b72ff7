import baselines
import cases
import pytest

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
