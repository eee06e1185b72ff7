import baselines
import cases
import pytest

import ssd_ops

IMPLEMENTATIONS = {
    "ssd_ops": ssd_ops.multibox_detection,
    "d2l": baselines.d2l_multibox_detection,
    "eager": baselines.eager_multibox_detection,
}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("images, classes, anchors", [(1, 1, 5444), (32, 1, 5444), (1, 20, 8732)])
def bench_multibox_detection(timed, images, classes, anchors, impl):
    """Heads that were never trained: every anchor has a score, few boxes overlap alike."""
    args = (*cases.detection(images, classes, anchors), cases.prior_anchors(anchors))
    case = f"multibox_detection B{images} {classes} class{'es' * (classes > 1)} A{anchors:,}"
    timed(case, impl, IMPLEMENTATIONS, args, baselines.same_detections)
