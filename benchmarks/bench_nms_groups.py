import baselines
import pytest
import torch

import ssd_ops

IMPLEMENTATIONS = {"ssd_ops": ssd_ops.nms_groups, "loop": baselines.loop_nms_groups}
MERGED = {"ssd_ops": ssd_ops.merge_boxes, "loop": baselines.loop_merge_boxes}


def sliced(count):
    """Boxes of 16 to 256 pixels from overlapping tiles of an image of 8,000 x 8,000 pixels.

    Each object is found about 20 times; a fifth of the boxes are cut off at the border of a tile.
    """
    objects = count // 20
    size = 16 * 16 ** torch.rand(objects, 1) * (0.7 + 0.6 * torch.rand(objects, 2))
    size = size.repeat_interleave(20, dim=0)
    center = (8000 * torch.rand(objects, 2)).repeat_interleave(20, dim=0)
    center = center + 0.05 * size * torch.randn(len(size), 2)
    size = size * (1 + 0.1 * torch.randn(len(size), 2)).clamp(min=0.3)
    boxes = torch.cat((center - size / 2, center + size / 2), dim=1)
    cut = torch.rand(len(boxes)) < 0.2
    left = 0.3 + 0.6 * torch.rand(int(cut.sum()))
    boxes[cut, 2] = boxes[cut, 0] + left * (boxes[cut, 2] - boxes[cut, 0])
    return boxes, torch.randperm(len(boxes)) / len(boxes)


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("metric", ["iou", "ios"])
@pytest.mark.parametrize("count", [10_000, 70_000])
def bench_nms_groups(timed, count, metric, impl):
    if count > 10_000 and impl == "loop":
        pytest.skip(f"{impl}: takes seconds a call with {count:,} boxes")
    functions = {
        name: lambda *args, function=function: function(*args, metric=metric)
        for name, function in IMPLEMENTATIONS.items()
    }
    args = *sliced(count), 0.5
    timed(f"nms_groups {count:,} boxes of tiles, {metric}", impl, functions, args, torch.equal)


@pytest.mark.parametrize("impl", MERGED)
@pytest.mark.parametrize("how", ["union", "weighted"])
def bench_merge_boxes(timed, how, impl):
    boxes, scores = sliced(10_000)
    args = boxes, scores, ssd_ops.nms_groups(boxes, scores, 0.5, metric="ios")
    functions = {
        "ssd_ops": lambda *args: MERGED["ssd_ops"](*args, how=how).boxes,
        "loop": lambda *args: MERGED["loop"](*args, how=how),
    }
    timed(f"merge_boxes 10,000 boxes of tiles, {how}", impl, functions, args, baselines.close)
