import baselines
import cases
import pytest
import torch

import ssd_ops

IMPLEMENTATIONS = {
    "ssd_ops": ssd_ops.hard_negative_mining,
    "eager": baselines.eager_hard_negative_mining,
    "two sorts": baselines.two_sorts_hard_negative_mining,
}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("images, anchors", [(32, 5444), (32, 8732), (8, 24564)])
def bench_hard_negative_mining(timed, images, anchors, impl):
    labels = ssd_ops.multibox_target(cases.prior_anchors(anchors), cases.labels(images, 8))[2]
    # No two losses are equal: the rivals' sorts are not stable.
    losses = torch.stack([torch.randperm(anchors) for _ in range(images)]).float() / anchors
    case = f"hard_negative_mining B{images} A{anchors:,}"
    timed(case, impl, IMPLEMENTATIONS, (losses, labels), torch.equal)
