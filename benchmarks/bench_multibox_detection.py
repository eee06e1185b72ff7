from functools import partial

import baselines
import cases
import mxnet_rival
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
    """Outputs of a network that was never trained: all anchors have similar scores, few boxes overlap."""
    args = (*cases.detection(images, classes, anchors), cases.prior_anchors(anchors))
    case = f"multibox_detection B{images} {classes} class{'es' * (classes > 1)} A{anchors:,}"
    timed(case, impl, IMPLEMENTATIONS, args, baselines.same_detections)


BY_MXNETS_RULES = {
    "ssd_ops": partial(ssd_ops.multibox_detection, semantics="mxnet", pos_threshold=0.01),
    "mxnet": mxnet_rival.rival("detection"),
}


@pytest.mark.parametrize("impl", BY_MXNETS_RULES)
@pytest.mark.parametrize("images, classes, anchors", [(32, 1, 5444), (8, 20, 8732)])
def bench_multibox_detection_mxnet(timed, images, classes, anchors, impl):
    args = (*cases.detection(images, classes, anchors), cases.prior_anchors(anchors))
    case = f"multibox_detection mxnet B{images} {classes} class{'es' * (classes > 1)} A{anchors:,}"
    timed(case, impl, BY_MXNETS_RULES, args, mxnet_rival.fetched(baselines.same_detections))
