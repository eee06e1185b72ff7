"""Every op equals the reference on numbers that are odd: NaN, infinite, denormal, beyond 1e30; on boxes that
are inverted, without area or infinite; on arguments without rows; and at odd thresholds."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import cases
import fuzz
import pytest
import torch
from torch import Tensor

import ssd_ops
from ssd_ops import reference

pytestmark = pytest.mark.usefixtures("backend", "library_math")

nan, inf = float("nan"), float("inf")
NUMBERS = [nan, inf, -inf, 1e-40, -1e-40, 5e-324, 1e-30, -0.0, 1e31, -1e31, 3e38, 1e300, -1.0]
POSITIVE = [
    5e-324,
    1e-40,
    1e-38,
    1e-30,
    1e-7,
    1.0,
    1e7,
    1e30,
    1e31,
    3e38,
    1e300,
]  # sides, ratios, steps
FRACTIONS = [0.0, 5e-324, 1e-40, 1e-7, 1 - 2**-24, 1 - 2**-53, 1.0]  # thresholds
BOXES = [
    *([0.9, 0.8, 0.1, 0.2], [0.9, 0.2, 0.1, 0.8], [0.1, 0.8, 0.9, 0.2]),  # inverted
    *([0.5, 0.1, 0.5, 0.9], [0.5, 0.5, 0.5, 0.5]),  # without area
    *([0, 0, 1e-40, 1e-40], [-1e31, -1e31, 1e31, 1e31], [1e30, 1e30, 1e31, 1e31]),
    *([-inf, -inf, inf, inf], [0, 0, inf, inf], [nan] * 4, [nan, 0, 1, 1]),
]

Call = tuple[list, dict[str, Any]]  # arguments, options


def places(value: Any) -> Iterator[tuple[Any, Callable[[Any], Any]]]:
    """The tensors and numbers in an argument, with a function that gives it with another in its place."""
    if isinstance(value, list | tuple):
        for at, item in enumerate(value):
            for leaf, put in places(item):
                yield leaf, lambda new, at=at, put=put: [*value[:at], put(new), *value[at + 1 :]]
    else:
        yield value, lambda new: new


def odd_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The tensor with one odd number, with some, with nothing else; with odd boxes, where it is of boxes."""
    flat = tensor.numel()
    if not tensor.is_floating_point() or not flat:
        return
    for number in NUMBERS:
        odd = torch.tensor(number, dtype=torch.float64).to(tensor.dtype)
        for step in (flat, 7, 3, 2, 1):
            new = tensor.clone()
            new.view(-1)[min(1, flat - 1) :: step] = odd
            yield new
    if tensor.shape[-1] in (4, 5):
        for box in BOXES:
            for rows in (slice(1, 2), slice(None, None, 2)):
                new = tensor.clone()
                of_rows = new.view(-1, tensor.shape[-1])
                of_rows[rows, -4:] = torch.tensor(box, dtype=torch.float64).to(tensor.dtype)
                yield new


def calls(name: str, dtype: torch.dtype) -> Iterator[Call]:
    op = getattr(ssd_ops, name)
    args = list(cases.inputs(name, 2, dtype, 9))
    for at, argument in enumerate(args):
        for leaf, put in places(argument):
            # Of feature maps the shape counts alone.
            if isinstance(leaf, Tensor) and name not in ("grid_anchors", "multibox_priors"):
                others: Any = odd_tensors(leaf)
            else:
                others = POSITIVE if isinstance(leaf, float | int) and at else ()
            if "threshold" in list(inspect.signature(op).parameters)[at]:
                others = FRACTIONS
            for other in others:
                yield [*args[:at], put(other), *args[at + 1 :]], {}
    for option, default in inspect.signature(op).parameters.items():
        if "threshold" in option and default.default is not inspect.Parameter.empty:
            for fraction in FRACTIONS:
                # The one threshold must be at most the other.
                least = {"iou_threshold": 1.0} if option == "background_threshold" else {}
                yield args, {**least, option: fraction}
    if "steps" in inspect.signature(op).parameters:
        for step in POSITIVE:
            yield args, {"steps": [(step, 0.5)] * 2, "clip": step > 1}
            yield args, {"offsets": (min(step, 1.0), 0.0)}
    yield list(cases.inputs(name, 0, dtype, 9)), {}
    yield list(cases.inputs(name, 2, dtype, 0)), {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("name", fuzz.OPS)
def test_equals_reference(name, dtype, backend):
    drawn = list(calls(name, dtype))
    if backend == "emulated":
        if dtype != torch.float32:
            pytest.skip("too long for the emulation: the values are those of float32")
        drawn = drawn[:: len(drawn) // 60]
    assert len(drawn) >= 60
    for args, options in drawn:
        got, expected = (getattr(of, name)(*args, **options) for of in (ssd_ops, reference))
        got, expected = ((x,) if isinstance(x, Tensor) else tuple(x) for x in (got, expected))
        for place, pair in enumerate(zip(got, expected, strict=True)):
            assert fuzz.same(*pair), (place, args, options)
