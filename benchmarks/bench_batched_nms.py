import baselines
import pytest
import torch

import ssd_ops

IMPLEMENTATIONS = {
    "ssd_ops": ssd_ops.batched_nms,
    "torchvision": baselines.torchvision_batched_nms,
    "eager": baselines.loop_batched_nms,
}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("count, classes", [(1000, 20), (10_000, 80)])
def bench_batched_nms(timed, count, classes, impl):
    """Uniform boxes of 16 to 256 pixels, log-uniform, in an image of 1333 x 800."""
    center = torch.rand(count, 2) * torch.tensor([1333.0, 800.0])
    half = 16 * 16 ** torch.rand(count, 2) / 2
    # No two scores are equal: torchvision's last sort is not stable.
    scores = torch.randperm(count) / count
    args = (
        torch.cat((center - half, center + half), 1),
        scores,
        torch.randint(0, classes, (count,)),
        0.5,
    )
    timed(
        f"batched_nms {count:,} boxes, {classes} classes", impl, IMPLEMENTATIONS, args, torch.equal
    )
