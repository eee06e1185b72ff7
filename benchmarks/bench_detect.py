import baselines
import cases
import pytest
import torch

import ssd_ops

IMPLEMENTATIONS = {
    "ssd_ops": ssd_ops.detect,
    "torchvision": baselines.torchvision_detect,
    "eager": baselines.eager_detect,
}


def heads(images: int, classes: int, trained: bool):
    """Outputs like those of SSD300: noise, or high scores for anchors near one of 8 gts an image."""
    anchors = cases.prior_anchors(8732)[0]
    offsets = 0.3 * torch.randn(images, 8732, 4)
    if not trained:
        return 0.3 * torch.randn(images, 8732, classes + 1), offsets, anchors
    logits = torch.randn(images, 8732, classes + 1)
    best, gt = ssd_ops.box_iou(anchors[None].expand(images, -1, -1), cases.boxes(images, 8)).max(2)
    label = torch.randint(1, classes + 1, (images, 8)).gather(1, gt)
    logits[..., 0] += 7
    likely = torch.where(best > 0.3, 14 * best, 0).clamp(max=11)
    return logits.scatter_add(2, label[..., None], likely[..., None]), offsets, anchors


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
@pytest.mark.parametrize("images", [1, 8])
def bench_detect(timed, images, trained, impl):
    case = f"detect SSD300 B{images} 20 classes, {'trained' if trained else 'untrained'} heads"
    timed(case, impl, IMPLEMENTATIONS, heads(images, 20, trained), baselines.same_found)
