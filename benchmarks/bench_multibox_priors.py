import baselines
import cases
import pytest
import torch

import ssd_ops

IMPLEMENTATIONS = {
    "ssd_ops": ssd_ops.multibox_priors,
    "d2l": baselines.d2l_multibox_priors,
    "eager": baselines.eager_multibox_priors,
}
NAMES = {5444: "TinySSD", 8732: "SSD300", 24564: "SSD512"}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("anchors", cases.ANCHOR_COUNTS)
def bench_multibox_priors(timed, anchors, impl):
    maps, sizes, ratios = cases.ANCHOR_COUNTS[anchors]
    maps = [torch.zeros(32, 8, n, n) for n in maps]
    timed(
        f"multibox_priors {NAMES[anchors]} {len(maps)} levels A{anchors:,}",
        impl,
        IMPLEMENTATIONS,
        (maps, sizes, ratios),
        baselines.close,
    )
