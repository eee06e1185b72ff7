from __future__ import annotations

import itertools

import cases
import golden
import pytest
import torch

import ssd_ops
from ssd_ops import reference

pytestmark = pytest.mark.usefixtures("backend")

MAPS, SIZES, RATIOS = cases.TINY_SSD
SHAPES = [(1, 1), (2, 4), (3, 2), (1, 7), (16, 16), (17, 33), (64, 5)]
OPTIONS = [
    {},
    {"clip": True},
    {"steps": (0.1, 0.07)},
    {"offsets": (0.0, 1.0)},
    {"steps": (0.03, 0.2), "offsets": (0.25, 0.75), "clip": True},
]


def multibox_prior_inputs(images, size, dtype):
    return torch.zeros(images, 8, 7, 6, dtype=dtype), [0.5, 0.3], [1, 2]


def multibox_priors_inputs(images, size, dtype):
    maps = [torch.zeros(images, 8, n, n, dtype=dtype) for n in (7, 4)]
    return maps, [[0.5, 0.3]] * 2, [[1, 2]] * 2


@pytest.mark.parametrize("shape, sizes, ratios, cell, box", golden.PRIOR_BOXES)
def test_known_boxes(shape, sizes, ratios, cell, box):
    anchors = ssd_ops.multibox_prior(torch.zeros(1, 3, *shape), sizes, ratios)
    height, width = shape
    per_cell = len(sizes) + len(ratios) - 1
    assert anchors.shape == (1, height * width * per_cell, 4)
    first = anchors.reshape(height, width, per_cell, 4)[(*cell, 0)]
    torch.testing.assert_close(first, torch.tensor(box), rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_equals_reference(dtype):
    for options, (height, width) in itertools.product(OPTIONS, SHAPES):
        for num_sizes, num_ratios in ((1, 1), (2, 3), (3, 1), (1, 5)):
            sizes = (0.05 + torch.rand(num_sizes)).tolist()
            ratios = (0.2 + 3 * torch.rand(num_ratios)).tolist()
            feature_map = torch.zeros(2, 3, height, width, dtype=dtype)
            got = ssd_ops.multibox_prior(feature_map, sizes, ratios, **options)
            expected = reference.multibox_prior(feature_map, sizes, ratios, **options)
            assert got.dtype == expected.dtype
            assert torch.equal(got, expected), (options, height, width, sizes, ratios)


def test_levels_of_real_detectors():
    for count, (maps, sizes, ratios) in cases.ANCHOR_COUNTS.items():
        maps = [torch.zeros(1, 8, n, n) for n in maps]
        got = ssd_ops.multibox_priors(maps, sizes, ratios)
        assert torch.equal(got, cases.prior_anchors(count)), count


def test_levels_are_the_single_calls_one_after_another():
    maps = [torch.zeros(1, 8, n, 2 * n + 1) for n in MAPS]
    steps = [(0.01 * level, 0.02 * level) for level in range(1, 6)]
    for options in ({}, {"clip": True, "offsets": (0.1, 0.2)}, {"steps": steps}):
        together = ssd_ops.multibox_priors(maps, SIZES, RATIOS, **options)
        single = []
        for level, (feature_map, s, r) in enumerate(zip(maps, SIZES, RATIOS, strict=True)):
            own = options | ({"steps": steps[level]} if "steps" in options else {})
            single.append(ssd_ops.multibox_prior(feature_map, s, r, **own))
        assert torch.equal(together, torch.cat(single, dim=1))


def test_any_double_makes_double():
    maps = [torch.zeros(2, 2), torch.zeros(1, 1, dtype=torch.float64)]
    anchors = ssd_ops.multibox_priors(maps, [[0.5], [0.7]], [[1], [2]])
    assert anchors.dtype == torch.float64
    assert torch.equal(anchors, reference.multibox_priors(maps, [[0.5], [0.7]], [[1], [2]]))


def test_values_and_layout_of_the_map_do_not_matter():
    shape = (2, 3, 5, 4)
    expected = ssd_ops.multibox_prior(torch.zeros(shape), [0.5, 0.3], [1, 2])
    views = {
        "nan": torch.full(shape, float("nan")),
        "channels_last": torch.rand(shape).to(memory_format=torch.channels_last),
        "expanded": torch.zeros(1).expand(shape),
        "no images": torch.zeros(0, 3, 5, 4),
        "two dimensions": torch.zeros(5, 4),
        "sliced": torch.zeros(2, 3, 10, 8)[..., ::2, ::2],
    }
    for name, view in views.items():
        assert torch.equal(ssd_ops.multibox_prior(view, [0.5, 0.3], [1, 2]), expected), name


def test_an_empty_map_has_no_anchors():
    for shape in ((0, 4), (4, 0), (0, 0)):
        assert ssd_ops.multibox_prior(torch.zeros(shape), [0.5], [1, 2]).shape == (1, 0, 4)
    anchors = ssd_ops.multibox_priors(
        [torch.zeros(0, 3), torch.zeros(1, 1)], [[0.5]] * 2, [[1]] * 2
    )
    assert anchors.shape == (1, 1, 4)


def test_tensors_and_tuples_of_numbers():
    feature_map = torch.zeros(3, 3)
    expected = ssd_ops.multibox_prior(feature_map, [0.5, 0.25], [1, 2])
    assert torch.equal(ssd_ops.multibox_prior(feature_map, (0.5, 0.25), (1, 2)), expected)
    assert torch.equal(
        ssd_ops.multibox_prior(feature_map, torch.tensor([0.5, 0.25]), torch.tensor([1, 2])),
        expected,
    )


def test_threads_and_runs_agree(threads):
    feature_map = torch.zeros(200, 201)  # more than one task
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(ssd_ops.multibox_prior(feature_map, [0.1, 0.2], [1, 2, 0.5]))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])
