"""The recipes of docs/detectors.md against what the projects publish, and against their rules in Python."""

from __future__ import annotations

import math

import cases
import pytest
import torch

import ssd_ops

pytestmark = pytest.mark.usefixtures("backend")

SSD_RATIOS = [[2], [2, 3], [2, 3], [2, 3], [2], [2]]
SSD300_PIXELS = [21, 45, 99, 153, 207, 261, 315]  # NVIDIA's `dboxes300_coco`
SSD300_STEPS = [8, 16, 32, 64, 100, 300]
SSD300_CELLS = [38, 19, 10, 5, 3, 1]
SSD512 = {  # the sizes of Caffe's SSD512 on Pascal VOC
    "scales": [35.84 / 512, *(part / 100 for part in (15, 30, 45, 60, 75, 90, 105))],
    "ratios": [[2], *[[2, 3]] * 4, [2], [2]],
    "steps": [8, 16, 32, 64, 128, 256, 512],
}


@pytest.fixture
def recipe():
    return cases.recipes()


def zeros(*sizes) -> list[torch.Tensor]:
    return [torch.zeros(size) for size in sizes]


def squares(cells) -> list[torch.Tensor]:
    return zeros(*((n, n) for n in cells))


def corners(centers: list) -> torch.Tensor:
    """[1, A, 4] xyxy of rows (center x, center y, width, height), in float64."""
    x, y, w, h = torch.tensor(centers, dtype=torch.float64).unbind(1)
    return torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), dim=1)[None]


def assert_equal(got: torch.Tensor, expected: torch.Tensor, atol: float = 2e-7) -> None:
    assert got.shape == expected.shape
    torch.testing.assert_close(got.double(), expected.double(), rtol=1e-6, atol=atol)


def clamped(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def nvidia(side, cells, steps, sizes, ratios) -> torch.Tensor:
    """By the rules of `DefaultBoxes` of NVIDIA's DeepLearningExamples: all four numbers are clamped, and each
    shape goes over the whole map before the next."""
    rows = []
    for level, count in enumerate(cells):
        small, middle = sizes[level], math.sqrt(sizes[level] * sizes[level + 1])
        shapes = [(small, small), (middle, middle)]
        for ratio in ratios[level]:
            long, short = small * math.sqrt(ratio), small / math.sqrt(ratio)
            shapes += [(long, short), (short, long)]
        for width, height in shapes:
            for row in range(count):
                for column in range(count):
                    box = ((column + 0.5) * steps[level], (row + 0.5) * steps[level], width, height)
                    rows.append([clamped(pixels / side) for pixels in box])
    return corners(rows)


def test_ssd300_of_nvidia(recipe):
    scales = [size / 300 for size in SSD300_PIXELS]
    maps = squares(SSD300_CELLS)
    anchors = recipe["ssd_anchors"](
        maps, scales, SSD_RATIOS, SSD300_STEPS, (300, 300), clamp_centers=True
    )
    got = recipe["shape_by_shape"](anchors, maps, SSD_RATIOS)
    assert got.shape == (1, 8732, 4)
    assert_equal(got, nvidia(300, SSD300_CELLS, SSD300_STEPS, SSD300_PIXELS, SSD_RATIOS))
    # A published row: the first box of the first cell has 21 pixels round (4, 4).
    assert_equal(got[0, 0], torch.tensor([-6.5, -6.5, 14.5, 14.5]) / 300)


def test_ssd512_of_nvidia(recipe):
    cells = [64, 32, 16, 8, 4, 2, 1]
    maps = squares(cells)
    anchors = recipe["ssd_anchors"](maps, image_size=(512, 512), clamp_centers=True, **SSD512)
    got = recipe["shape_by_shape"](anchors, maps, SSD512["ratios"])
    assert got.shape == (1, 24564, 4)
    pixels = [512 * scale for scale in SSD512["scales"]]
    assert_equal(got, nvidia(512, cells, SSD512["steps"], pixels, SSD512["ratios"]))


@pytest.mark.parametrize("size", [(300, 300), (240, 400), (301, 77)])
def test_default_boxes_of_torchvision(recipe, size):
    """Its `DefaultBoxGenerator`: widths and heights are clamped, centers are not; cell by cell."""
    height, width = size
    scales = [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
    maps = zeros(*((math.ceil(height / s), math.ceil(width / s)) for s in SSD300_STEPS))
    got = recipe["ssd_anchors"](maps, scales, SSD_RATIOS, SSD300_STEPS, size)
    rows = []
    for level, (feature_map, step) in enumerate(zip(maps, SSD300_STEPS, strict=True)):
        middle = math.sqrt(scales[level] * scales[level + 1])
        shapes = [(scales[level],) * 2, (middle,) * 2]
        for ratio in SSD_RATIOS[level]:
            root = math.sqrt(ratio)
            shapes += [(scales[level] * root, scales[level] / root)]
            shapes += [(scales[level] / root, scales[level] * root)]
        for row in range(feature_map.shape[0]):
            for column in range(feature_map.shape[1]):
                center = (column + 0.5) / (width / step), (row + 0.5) / (height / step)
                rows += [[*center, clamped(w), clamped(h)] for w, h in shapes]
    assert_equal(got, corners(rows), atol=3e-7)


def test_published_boxes_of_torchvision():
    """Those of its own tests of anchors: 15 x 15 pixels, one cell of scales 0.15 and 0.9; squares of 10."""
    middle = math.sqrt(0.15 * 0.9)
    long, short = 0.15 * math.sqrt(2), 0.15 / math.sqrt(2)
    shapes = [(0.15, 0.15), (middle, middle), (long, short), (short, long)]
    expected = [
        [6.3750, 6.3750, 8.6250, 8.6250],
        [4.7443, 4.7443, 10.2557, 10.2557],
        [5.9090, 6.7045, 9.0910, 8.2955],
        [6.7045, 5.9090, 8.2955, 9.0910],
    ]
    assert_equal(ssd_ops.grid_anchors(squares([1]), [shapes])[0] * 15, torch.tensor(expected), 1e-4)

    got = cases.recipes()["retinanet_anchors"](squares([3]), [[10]], [[1]], (15, 15))
    expected = [[x - 5, y - 5, x + 5, y + 5] for y in (0, 5, 10) for x in (0, 5, 10)]
    assert got[0].tolist() == expected


@pytest.mark.parametrize("size", [(800, 1344), (416, 320), (70, 333)])
def test_retinanet_of_torchvision(recipe, size):
    """Its `AnchorGenerator`, bit for bit: round(-w / 2), round(-h / 2), .. at multiples of the step."""
    height, width = size
    sizes = [[s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))] for s in (32, 64, 128, 256, 512)]
    ratios = [[0.5, 1.0, 2.0], [1.0], [0.25, 4.0], [0.5, 1.0, 2.0], [0.3]]
    cells = [(math.ceil(height / step), math.ceil(width / step)) for step in (8, 16, 32, 64, 128)]
    got = recipe["retinanet_anchors"](zeros(*cells), sizes, ratios, size)
    levels = []
    for (rows, columns), of_level, aspects in zip(cells, sizes, ratios, strict=True):
        roots = torch.tensor(aspects).sqrt()
        w = ((1 / roots)[:, None] * torch.tensor(of_level).float()).flatten()
        h = (roots[:, None] * torch.tensor(of_level).float()).flatten()
        base = (torch.stack((-w, -h, w, h), dim=1) / 2).round()
        y, x = torch.meshgrid(
            torch.arange(rows) * (height // rows),
            torch.arange(columns) * (width // columns),
            indexing="ij",
        )
        levels.append((torch.stack((x, y, x, y), dim=2)[:, :, None] + base).view(-1, 4))
    assert torch.equal(got, torch.cat(levels)[None])


def test_published_cell_of_retinanet(recipe):
    """The nine boxes of the finest level, as torchvision prints them."""
    got = recipe["retinanet_anchors"](squares([100]), [[32, 40, 50]], [[0.5, 1, 2]], (800, 800))
    halves = [(23, 11), (28, 14), (35, 18), (16, 16), (20, 20), (25, 25), (11, 23), (14, 28)]
    halves.append((18, 35))
    assert got[0, :9].tolist() == [[-w, -h, w, h] for w, h in halves]


@pytest.mark.parametrize("size", [(640, 640), (480, 641), (1024, 765)])
def test_retinaface(recipe, size):
    """`PriorBox` of biubug6/Pytorch_Retinaface: maps of ceil(image / step) cells, all in pixels."""
    height, width = size
    levels = [(8, (16, 32)), (16, (64, 128)), (32, (256, 512))]
    maps = zeros(*((math.ceil(height / step), math.ceil(width / step)) for step, _ in levels))
    got = recipe["retinaface_anchors"](maps, size)
    rows = []
    for (step, sizes), feature_map in zip(levels, maps, strict=True):
        for row in range(feature_map.shape[0]):
            for column in range(feature_map.shape[1]):
                for side in sizes:
                    center = (column + 0.5) * step / width, (row + 0.5) * step / height
                    rows.append([*center, side / width, side / height])
    assert_equal(got, corners(rows))
    assert size != (640, 640) or got.shape == (1, 16800, 4)


# Width of the image -> its height, and the cells of each level as `fd_config.py` lists them.
ULTRA_LIGHT = {
    128: (96, (16, 8, 4, 2), (12, 6, 3, 2)),
    160: (120, (20, 10, 5, 3), (15, 8, 4, 2)),
    320: (240, (40, 20, 10, 5), (30, 15, 8, 4)),
    480: (360, (60, 30, 15, 8), (45, 23, 12, 6)),
    640: (480, (80, 40, 20, 10), (60, 30, 15, 8)),
    1280: (960, (160, 80, 40, 20), (120, 60, 30, 15)),
}


@pytest.mark.parametrize("width", ULTRA_LIGHT)
def test_ultra_light_face(recipe, width):
    """`generate_priors` of Ultra-Light-Fast-Generic-Face-Detector-1MB, all four numbers clamped."""
    height, columns, rows = ULTRA_LIGHT[width]
    got = recipe["ultra_light_anchors"](zeros(*zip(rows, columns, strict=True)), (height, width))
    sizes = ((10, 16, 24), (32, 48), (64, 96), (128, 192, 256))
    expected = []
    for level, of_level in enumerate(sizes):
        for row in range(rows[level]):
            for column in range(columns[level]):
                for size in of_level:
                    box = ((column + 0.5) / columns[level], (row + 0.5) / rows[level])
                    expected.append([*box, clamped(size / width), clamped(size / height)])
    assert_equal(got, corners(expected))
    counts = {320: 4420, 640: 17640}  # what its README and its ONNX models have
    assert got.shape[1] == counts.get(width, len(expected))


# Options of `SsdAnchorsCalculator`, the number of its anchors, and rows (center x, center y, width, height)
# of its golden files, or of its rules where there is no file.
SHORT_RANGE = {"image_size": (128, 128), "strides": [8, 16, 16, 16], "fixed_anchor_size": True}
FACES = {"image_size": (256, 256), "strides": [8, 16, 32, 32, 32], "fixed_anchor_size": True}
MOBILE = {
    "image_size": (300, 300),
    "strides": [16, 32, 64, 128, 256, 512],
    "aspect_ratios": (1.0, 2.0, 0.5, 3.0, 0.3333),
    "reduce_boxes_in_lowest_layer": True,
}
MEDIAPIPE = [
    pytest.param(
        {**SHORT_RANGE, "min_scale": 0.1484375, "max_scale": 0.75},
        896,
        {
            0: (0.03125, 0.03125, 1, 1),
            1: (0.03125, 0.03125, 1, 1),
            511: (0.96875, 0.96875, 1, 1),
            512: (0.0625, 0.0625, 1, 1),
            517: (0.0625, 0.0625, 1, 1),
            518: (0.1875, 0.0625, 1, 1),
            895: (0.9375, 0.9375, 1, 1),
        },
        id="face_detection_short_range",
    ),
    pytest.param(
        {**FACES, "min_scale": 0.1171875, "max_scale": 0.75},
        2944,
        {
            0: (0.015625, 0.015625, 1, 1),
            2: (0.046875, 0.015625, 1, 1),
            2048: (0.03125, 0.03125, 1, 1),
            2560: (0.0625, 0.0625, 1, 1),
            2565: (0.0625, 0.0625, 1, 1),
            2943: (0.9375, 0.9375, 1, 1),
        },
        id="golden_file_0",
    ),
    pytest.param(
        {**MOBILE, "min_scale": 0.2, "max_scale": 0.95},
        1917,
        {
            0: (0.0263158, 0.0263158, 0.1, 0.1),
            1: (0.0263158, 0.0263158, 0.282843, 0.141421),
            2: (0.0263158, 0.0263158, 0.141421, 0.282843),
            3: (0.0789474, 0.0263158, 0.1, 0.1),
            57: (0.0263158, 0.0789474, 0.1, 0.1),
            1832: (0.9, 0.9, 0.570088, 0.570088),
            1833: (0.166667, 0.166667, 0.65, 0.65),
            1836: (0.166667, 0.166667, 1.12583, 0.375278),
            1837: (0.166667, 0.166667, 0.375259, 1.12589),
            1838: (0.166667, 0.166667, 0.72111, 0.72111),
            1887: (0.25, 0.25, 0.8, 0.8),
            1911: (0.5, 0.5, 0.95, 0.95),
            1915: (0.5, 0.5, 0.548455, 1.64553),
            1916: (0.5, 0.5, 0.974679, 0.974679),
        },
        id="golden_file_1",
    ),
    pytest.param(
        {
            "image_size": (90, 200),  # 3 x 7 cells
            "strides": [32],
            "min_scale": 0.2,
            "max_scale": 0.4,
            "offsets": (0.25, 0.75),
            "interpolated_scale_aspect_ratio": 4.0,
        },
        42,
        {
            0: (0.75 / 7, 0.25 / 3, 0.3, 0.3),
            1: (0.75 / 7, 0.25 / 3, 2 * 0.3**0.5, 0.3**0.5 / 2),
            41: (6.75 / 7, 2.25 / 3, 2 * 0.3**0.5, 0.3**0.5 / 2),
        },
        id="one_layer",
    ),
    pytest.param(
        {
            "image_size": (64, 64),
            "strides": [32, 64],
            "min_scale": 0.2,
            "max_scale": 0.4,
            "interpolated_scale_aspect_ratio": 0,
        },
        5,
        {0: (0.25, 0.25, 0.2, 0.2), 4: (0.5, 0.5, 0.4, 0.4)},
        id="nothing_interpolated",
    ),
]


@pytest.mark.parametrize(("options", "count", "rows"), MEDIAPIPE)
def test_mediapipe(recipe, options, count, rows):
    got = recipe["mediapipe_anchors"](**options)
    assert got.shape == (1, count, 4)
    expected = corners(list(rows.values()))[0]
    assert_equal(got[0, list(rows)], expected, atol=2e-6)  # the files have six digits


def test_multiscale_anchors_of_mediapipe():
    """golden_file_2: `multiscale_anchor_generation` of 640 x 640 pixels with three scales in an octave. The
    order of its shapes is: aspect ratio, scale."""
    strides, ratios, octave = (64, 128), (1.0, 2.0, 0.5), [2 ** (i / 3) for i in range(3)]
    shapes = [
        [(3 * stride * o * r**0.5, 3 * stride * o / r**0.5) for r in ratios for o in octave]
        for stride in strides
    ]
    got = ssd_ops.grid_anchors(
        squares([10, 5]), shapes, image_size=(640, 640), steps=[(s, s) for s in strides]
    )
    assert got.shape == (1, 1125, 4)
    last = [
        (0.6, 0.6),
        (0.755953, 0.755953),
        (0.952441, 0.952441),
        (0.848528, 0.424264),
        (1.06908, 0.534539),
        (1.34695, 0.673477),
        (0.424264, 0.848528),
        (0.534539, 1.06908),
        (0.673477, 1.34695),
    ]
    expected = [(0.9, 0.9, w, h) for w, h in last]
    assert_equal(got[:, -9:], corners(expected), atol=6e-6)
    expected = [(0.15, 0.05, w / 2, h / 2) for w, h in last]  # the second cell of the first level
    assert_equal(got[:, 9:18], corners(expected), atol=6e-6)


@pytest.mark.parametrize(("offset", "first"), [(0.5, 4.0), (0.0, 0.0)], ids=["YOLO", "FCOS"])
def test_cells_of_anchor_free_detectors(recipe, offset, first):
    """`make_anchors` of Ultralytics, and the cells of torchvision's FCOS, which begin at 0."""
    sizes, strides = ((4, 6), (2, 3), (1, 2)), (8, 16, 32)
    rows = [
        (stride * (column + offset), stride * (row + offset), stride, stride)
        for (height, width), stride in zip(sizes, strides, strict=True)
        for row in range(height)
        for column in range(width)
    ]
    assert rows[0][0] == first
    got = recipe["cell_anchors"](zeros(*sizes), strides, offsets=(offset, offset))
    assert_equal(got, corners(rows))
    distances = 4 * torch.rand(len(rows), 4)
    boxes = ssd_ops.decode_boxes(distances, got[0], coding="distance")
    x, y, stride, _ = torch.tensor(rows).unbind(1)
    left, top, right, bottom = (distances * stride[:, None]).unbind(1)
    expected = torch.stack((x - left, y - top, x + right, y + bottom), dim=1)
    torch.testing.assert_close(boxes, expected, rtol=1e-6, atol=1e-4)
