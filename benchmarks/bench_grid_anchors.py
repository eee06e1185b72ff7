import baselines
import pytest
import torch

import ssd_ops


def loops(feature_maps, shapes, *, steps, offsets=(0.5, 0.5)):
    """Cell by cell in Python, as RetinaFace and Ultra-Light-Face make their anchors."""
    anchors = []
    for feature_map, level, (step_y, step_x) in zip(feature_maps, shapes, steps, strict=True):
        height, width = feature_map.shape[-2:]
        for y in range(height):
            for x in range(width):
                cx, cy = (x + offsets[1]) * step_x, (y + offsets[0]) * step_y
                for w, h in level:
                    anchors.append([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    return torch.tensor([anchors])


IMPLEMENTATIONS = {
    "ssd_ops": ssd_ops.grid_anchors,
    "torchvision": baselines.torchvision_grid_anchors,
    "eager": baselines.eager_grid_anchors,
    "loops": loops,
}


def face(height, width):
    """Ultra-Light-Face: feature maps, shapes and steps."""
    maps = [(height // step, width // step) for step in (8, 16, 32, 64)]
    sizes = [[10, 16, 24], [32, 48], [64, 96], [128, 192, 256]]
    shapes = [[(s / width, s / height) for s in level] for level in sizes]
    return maps, shapes, [(1 / h, 1 / w) for h, w in maps]


def retina(height, width):
    """RetinaNet of torchvision, in pixels."""
    steps = [8, 16, 32, 64, 128]
    maps = [(-(-height // step), -(-width // step)) for step in steps]
    sizes = [[4 * step * 2 ** (i / 3) for i in range(3)] for step in steps]
    shapes = [[(s / r**0.5, s * r**0.5) for r in (0.5, 1, 2) for s in level] for level in sizes]
    return maps, shapes, [(step, step) for step in steps]


CASES = {
    "Ultra-Light-Face 640 x 480": face(480, 640),
    "RetinaNet 1333 x 800": retina(800, 1333),
}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES)
def bench_grid_anchors(timed, case, impl):
    maps, shapes, steps = CASES[case]
    maps = [torch.zeros(size) for size in maps]
    functions = {
        name: function
        if isinstance(function, str)
        else lambda *args, function=function: function(*args, steps=steps)
        for name, function in IMPLEMENTATIONS.items()
    }
    count = functions["ssd_ops"](maps, shapes).shape[1]
    timed(f"grid_anchors {case} A{count:,}", impl, functions, (maps, shapes), baselines.close)
