import baselines
import cases
import pytest

import ssd_ops

IMPLEMENTATIONS = {
    "ssd_ops": ssd_ops.box_iou,
    "d2l": baselines.d2l_box_iou,
    "eager": baselines.eager_box_iou,
    "torchvision": baselines.torchvision_box_iou,
}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("anchors, gts", [(5444, 8), (8732, 64), (24564, 64)])
def bench_box_iou(timed, anchors, gts, impl):
    args = cases.prior_anchors(anchors)[0], cases.boxes(gts)
    timed(f"box_iou {anchors:,} x {gts}", impl, IMPLEMENTATIONS, args, baselines.close)
