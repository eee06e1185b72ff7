from __future__ import annotations

import itertools
import math

import cases
import pytest
import torch

import ssd_ops
from ssd_ops import reference

pytestmark = pytest.mark.usefixtures("backend")

# Feature maps around the 256 threads of a block, and of images that are not square.
MAPS = [(1, 1), (2, 4), (1, 7), (16, 16), (17, 33), (64, 5)]
OPTIONS = [
    {},
    {"clip": True},
    {"steps": (0.1, 0.07), "offsets": (0.0, 1.0)},
    {"image_size": (240, 320)},
    {"image_size": (801, 1333), "steps": (8, 8)},
    {"image_size": (33.5, 7), "steps": (3, 0.7), "offsets": (0.25, 0.75), "clip": True},
]


MAP, SHAPES = torch.zeros(3, 4), [[(0.5, 0.5)]]


def grid_anchors_inputs(images, size, dtype):
    maps = [torch.zeros(images, 8, n, n + 2, dtype=dtype) for n in (7, 4)]
    return maps, [[(0.5, 0.3)], [(0.5, 0.3), (0.2, 0.4)]]


def corners(cx, cy, width, height):
    return [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]


def test_by_hand():
    """Two levels of an image of 100 x 200 pixels: cells of 50 x 50 pixels, then of the whole image."""
    maps = [torch.zeros(2, 4), torch.zeros(1, 1)]
    shapes = [[(40, 20), (60, 100)], [(200, 100)]]
    anchors = ssd_ops.grid_anchors(maps, shapes, image_size=(100, 200))
    expected = []
    for cy, cx in itertools.product((25, 75), (25, 75, 125, 175)):  # cells row by row
        for width, height in shapes[0]:
            expected.append(corners(cx / 200, cy / 100, width / 200, height / 100))
    expected.append([0, 0, 1, 1])
    assert anchors.dtype == torch.float32
    torch.testing.assert_close(anchors, torch.tensor([expected]), rtol=0, atol=1e-7)


def drawn_shapes(count: int, scale: tuple) -> list[tuple[float, float]]:
    return [
        (width * scale[1], height * scale[0])
        for width, height in (0.05 + torch.rand(count, 2)).tolist()
    ]


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_equals_reference(dtype):
    for options, size, count in itertools.product(OPTIONS, MAPS, (1, 2, 7)):
        options = dict(options)
        if "steps" in options:
            options["steps"] = [options["steps"], options["steps"][::-1]]
        maps = [torch.zeros(2, 3, *size, dtype=dtype), torch.zeros(*size[::-1], dtype=dtype)]
        shapes = [drawn_shapes(n, options.get("image_size", (1, 1))) for n in (count, 3)]
        got = ssd_ops.grid_anchors(maps, shapes, **options)
        expected = reference.grid_anchors(maps, shapes, **options)
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected), (options, size, shapes)


def test_more_levels_and_shapes_than_a_launch_holds():
    for maps, counts in (
        ([torch.zeros(3, 2)] * 19, [1 + level % 3 for level in range(19)]),
        ([torch.zeros(5, 3), torch.zeros(0, 4), torch.zeros(2, 9)], [127, 5, 300]),
    ):
        shapes = [drawn_shapes(count, (1, 1)) for count in counts]
        if any(0 in feature_map.shape for feature_map in maps):
            alone = [
                reference.grid_anchors([feature_map], [level])
                for feature_map, level in zip(maps, shapes, strict=True)
                if feature_map.numel()
            ]
            expected = torch.cat(alone, dim=1)
        else:
            expected = reference.grid_anchors(maps, shapes)
        assert torch.equal(ssd_ops.grid_anchors(maps, shapes), expected)


def test_pixels_without_an_image_size():
    """Shapes and steps in pixels make boxes in pixels, exact where the numbers are."""
    anchors = ssd_ops.grid_anchors(
        [torch.zeros(100, 167)], [[(46, 22), (32, 32)]], steps=[(8, 8)], offsets=(0, 0)
    ).view(100, 167, 2, 4)
    assert anchors[0, 0].tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16]]
    assert anchors[99, 166, 0].tolist() == [1328 - 23, 792 - 11, 1328 + 23, 792 + 11]


def test_an_image_size_is_a_division():
    """Powers of two divide without rounding, so both units give the same bits."""
    maps, shapes = [torch.zeros(6, 9), torch.zeros(3, 4)], [[(100, 60)], [(20, 30), (7, 11)]]
    steps = [(9, 10), (17, 33)]
    pixels = ssd_ops.grid_anchors(maps, shapes, image_size=(64, 256), steps=steps)
    fractions = ssd_ops.grid_anchors(
        maps,
        [[(w / 256, h / 64) for w, h in level] for level in shapes],
        steps=[(y / 64, x / 256) for y, x in steps],
    )
    assert torch.equal(pixels, fractions)


def test_any_double_makes_double():
    maps = [torch.zeros(2, 2), torch.zeros(1, 1, dtype=torch.float64)]
    anchors = ssd_ops.grid_anchors(maps, [[(0.1, 0.3)], [(0.7, 0.2)]])
    assert anchors.dtype == torch.float64
    assert torch.equal(anchors, reference.grid_anchors(maps, [[(0.1, 0.3)], [(0.7, 0.2)]]))


def test_values_and_layout_of_the_maps_do_not_matter():
    shape, boxes = (2, 3, 5, 4), [[(0.5, 0.3)]]
    expected = ssd_ops.grid_anchors([torch.zeros(shape)], boxes)
    views = {
        "nan": torch.full(shape, float("nan")),
        "channels_last": torch.rand(shape).to(memory_format=torch.channels_last),
        "expanded": torch.zeros(1).expand(shape),
        "no images": torch.zeros(0, 3, 5, 4),
        "two dimensions": torch.zeros(5, 4),
        "sliced": torch.zeros(2, 3, 10, 8)[..., ::2, ::2],
    }
    for name, view in views.items():
        assert torch.equal(ssd_ops.grid_anchors([view], boxes), expected), name


def test_empty_maps_have_no_anchors():
    for shape in ((0, 4), (4, 0), (0, 0)):
        anchors = ssd_ops.grid_anchors([torch.zeros(shape)], [[(0.5, 0.5)]], image_size=(9, 9))
        assert anchors.shape == (1, 0, 4)


def test_tensors_and_tuples_of_numbers():
    maps = [torch.zeros(3, 3), torch.zeros(2, 2)]
    shapes = [[(0.5, 0.25)], [(0.75, 1.5)]]
    expected = ssd_ops.grid_anchors(maps, shapes, steps=[(1, 2), (3, 4)])
    for convert in (torch.tensor, lambda x: tuple(map(tuple, x))):
        got = ssd_ops.grid_anchors(tuple(maps), convert(shapes), steps=convert([[1.0, 2], [3, 4]]))
        assert torch.equal(got, expected)


def test_threads_and_runs_agree(threads):
    maps = [torch.zeros(200, 201)]  # more than one task
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(ssd_ops.grid_anchors(maps, [[(0.1, 0.2), (0.3, 0.1)]]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


@pytest.mark.parametrize("dtype", (torch.float16, torch.float64), ids=str)
def test_multibox_priors_in_pixels(dtype):
    """Width s sqrt(r) pixels, height s / sqrt(r) pixels, whatever the shapes of the image and of the maps."""
    maps = [torch.zeros(30, 40, dtype=dtype), torch.zeros(5, 9, dtype=dtype)]
    sizes, ratios = [[10, 16.5], [64]], [[1.5, 2, 0.5], [1, 3]]
    for options in (
        {"image_size": (240, 320)},
        {"image_size": (240, 360), "steps": [(8, 9), (48, 40)], "offsets": (0, 0.5), "clip": True},
    ):
        got = ssd_ops.multibox_priors(maps, sizes, ratios, **options)
        assert torch.equal(got, reference.multibox_priors(maps, sizes, ratios, **options))
        single = []
        for level, lists in enumerate(zip(maps, sizes, ratios, strict=True)):
            own = options | ({"steps": options["steps"][level]} if "steps" in options else {})
            single.append(ssd_ops.multibox_prior(*lists, **own))
            assert torch.equal(single[-1], reference.multibox_prior(*lists, **own))
        assert torch.equal(got, torch.cat(single, dim=1))

    anchors = ssd_ops.multibox_priors(maps, sizes, ratios, image_size=(240, 320))
    x1, y1, x2, y2 = anchors[0].double().unbind(1)
    pairs = [(10, 1.5), (16.5, 1.5), (10, 2), (10, 0.5)] * 30 * 40 + [(64, 1), (64, 3)] * 5 * 9
    widths = torch.tensor([size * math.sqrt(ratio) for size, ratio in pairs], dtype=torch.float64)
    heights = torch.tensor([size / math.sqrt(ratio) for size, ratio in pairs], dtype=torch.float64)
    torch.testing.assert_close((x2 - x1) * 320, widths, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close((y2 - y1) * 240, heights, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("image_size", "error", "message"),
    [
        (300, ValueError, "image_size must be 2 numbers, got 300"),
        ((300,), ValueError, r"image_size must be 2 numbers, got \(300,\)"),
        ((300, 0), ValueError, "image_size must be positive and finite, got 0"),
        ((300, math.inf), ValueError, "image_size must be positive and finite, got inf"),
        ((300, "wide"), TypeError, "image_size must be a number, got 'wide'"),
    ],
)
def test_wrong_image_sizes(image_size, error, message):
    calls = {
        "multibox_prior": (MAP, [0.5], [1]),
        "multibox_priors": ([MAP], [[0.5]], [[1]]),
        "grid_anchors": ([MAP], SHAPES),
    }
    for op, args in calls.items():
        with pytest.raises(error, match=f"^{op}: {message}"):
            getattr(ssd_ops, op)(*args, image_size=image_size)


@pytest.mark.parametrize(
    "args, options, error, message",
    [
        ((MAP, SHAPES), {}, TypeError, "feature_maps must be a list of tensors, got Tensor"),
        (([], []), {}, ValueError, "feature_maps must be at least one tensor, got none"),
        (([3], SHAPES), {}, TypeError, "feature_maps must be a tensor, got int"),
        (([MAP.long()], SHAPES), {}, RuntimeError, "feature_maps must be float16.*got Long"),
        (([MAP[0]], SHAPES), {}, RuntimeError, r"feature_maps must be \[..., H, W\], got \[4\]"),
        (([MAP], SHAPES * 2), {}, ValueError, "shapes must be 1 lists, one a level, got 2"),
        (([MAP], [(0.5, 0.5)]), {}, ValueError, r"shapes must be a list of \(width, height\)"),
        (([MAP], [[(1, 2, 3)]]), {}, ValueError, r"shapes must be a list of \(width, height\)"),
        (([MAP], [[("1", None)]]), {}, ValueError, r"shapes must be a list of \(width, height\)"),
        (([MAP], [7]), {}, ValueError, r"shapes must be a list of \(width.*got 7"),
        (([MAP], [[]]), {}, ValueError, "shapes must be at least one for each level, got none"),
        (([MAP], [[(0.5, 0)]]), {}, ValueError, "shapes must be positive and finite, got 0"),
        (([MAP], [[(math.nan, 1)]]), {}, ValueError, "shapes must be positive.*got nan"),
        (([MAP], SHAPES), {"steps": [(1, 1)] * 2}, ValueError, "steps must be 1 lists"),
        (([MAP], SHAPES), {"steps": [8]}, ValueError, "steps must be 2 numbers, got 8"),
        (([MAP], SHAPES), {"steps": [(8, -1)]}, ValueError, "steps must be positive.*got -1"),
        (([MAP], SHAPES), {"offsets": (0.5, 1.5)}, ValueError, r"offsets must be in 0\.\.1"),
    ],
)
def test_wrong_calls(args, options, error, message):
    with pytest.raises(error, match=f"^grid_anchors: {message}"):
        ssd_ops.grid_anchors(*args, **options)


@pytest.mark.parametrize(
    "args, message",
    [
        (([MAP], [1.0, 1.0], [2], [], [], [0.5, 0.5]), "shapes must fill its counts"),
        (([MAP], [1.0] * 4, [1], [], [], [0.5, 0.5]), "shapes must be 2 numbers, got 4"),
        (([MAP], [1.0] * 3, [1], [], [], [0.5, 0.5]), "shapes must be 2 numbers, got 3"),
        (([MAP], [1.0, 1.0], [1, 1], [], [], [0.5, 0.5]), "shapes must be 1 lists, got 2"),
        (([MAP], [], [0], [], [], [0.5, 0.5]), r"shapes must be at least one \(width, height\)"),
        (([MAP], [1.0, -1.0], [1], [], [], [0.5, 0.5]), "shapes must be positive"),
        (([MAP], [1.0, 1.0], [1], [4.0], [], [0.5, 0.5]), r"image_size must be \(height, width\)"),
        (([MAP], [1.0, 1.0], [1], [4.0, 0.0], [], [0.5, 0.5]), "image_size must be positive"),
        (([MAP], [1.0, 1.0], [1], [], [1.0], [0.5, 0.5]), r"steps must be a \(y, x\) pair"),
        (([MAP], [1.0, 1.0], [1], [], [], [0.5]), r"offsets must be \(y, x\), got 1 numbers"),
    ],
)
def test_wrong_calls_of_the_torch_op(args, message):
    with pytest.raises(RuntimeError, match=f"^grid_anchors: {message}"):
        torch.ops.ssd_ops.grid_anchors(*args, False)
