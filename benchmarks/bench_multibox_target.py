import baselines
import cases
import pytest

import ssd_ops

IMPLEMENTATIONS = {
    "ssd_ops": ssd_ops.multibox_target,
    "d2l": baselines.d2l_multibox_target,
    "eager": baselines.eager_multibox_target,
}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "images, gts, anchors", [(32, 1, 5444), (32, 8, 5444), (8, 64, 5444), (32, 8, 8732)]
)
def bench_multibox_target(timed, images, gts, anchors, impl):
    # Without padding: the book's function is wrong on it.
    args = cases.prior_anchors(anchors), cases.labels(images, gts, padding=0)
    case = f"multibox_target B{images} G{gts} A{anchors:,}"
    timed(case, impl, IMPLEMENTATIONS, args, baselines.same_targets)
