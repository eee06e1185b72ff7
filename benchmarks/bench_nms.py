import baselines
import cases
import pytest
import torch

import ssd_ops

IMPLEMENTATIONS = {
    "ssd_ops": ssd_ops.nms,
    "torchvision": baselines.torchvision_nms,
    "d2l": baselines.d2l_nms,
    "eager": baselines.eager_nms,
}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("count", [1000, 10_000, 20_000])
def bench_nms(timed, count, impl):
    """Uniform boxes of 16 to 256 pixels, log-uniform, in an image of 1333 x 800."""
    center = torch.rand(count, 2) * torch.tensor([1333.0, 800.0])
    half = 16 * 16 ** torch.rand(count, 2) / 2
    if count > {"d2l": 1000, "eager": 10_000}.get(impl, count):
        pytest.skip(f"{impl}: takes seconds a call with {count:,} boxes")
    # No two scores are equal: the book's sort is not stable.
    args = torch.cat((center - half, center + half), dim=1), torch.randperm(count) / count, 0.5
    timed(f"nms {count:,} uniform boxes", impl, IMPLEMENTATIONS, args, torch.equal)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
def bench_nms_clusters(timed, impl):
    """8,732 boxes in clusters around 88 ground truths, like the output of a trained detector."""
    boxes = cases.boxes(88).repeat_interleave(100, dim=0)[:8732]
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    args = boxes + 0.06 * size * torch.randn(8732, 4), torch.randperm(8732) / 8732, 0.45
    timed("nms 8,732 boxes in 88 clusters", impl, IMPLEMENTATIONS, args, torch.equal)


def padded(nms):
    """`nms_padded` made from an `nms` of one image."""

    def run(boxes, scores, threshold):
        indices = torch.full(scores.shape, -1)
        counts = torch.zeros(len(scores), dtype=torch.int64)
        for image, row in enumerate(indices):
            kept = nms(boxes[image], scores[image], threshold)
            row[: len(kept)] = kept
            counts[image] = len(kept)
        return indices, counts

    return run


PADDED = {
    name: impl if isinstance(impl, str) else padded(impl)
    for name, impl in IMPLEMENTATIONS.items()
    if name != "eager"
} | {"ssd_ops": ssd_ops.nms_padded}


@pytest.mark.parametrize("impl", PADDED)
def bench_nms_padded(timed, impl):
    """A batch of eight images with 1,000 boxes each."""
    scores = torch.stack([torch.randperm(1000) for _ in range(8)]) / 1000
    args = cases.boxes(8, 1000), scores, 0.5
    timed("nms_padded B8 1,000 boxes", impl, PADDED, args, lambda a, b: all(map(torch.equal, a, b)))
