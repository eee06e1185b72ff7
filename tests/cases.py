"""Random inputs of the ops, for tests and benchmarks. They draw from torch's global generator."""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import ssd_ops
from ssd_ops import reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PLAIN = {
    "merge_boxes",
    "pack_targets",
}  # public functions in plain PyTorch: they call no op of the library
KINDS = ("uniform", "small", "grid", "copies", "chain", "odd")

# Feature maps, sizes and ratios of each level. The last two have the shapes of SSD300 and SSD512.
TINY_SSD = (
    (32, 16, 8, 4, 1),
    [[0.2, 0.272], [0.37, 0.447], [0.54, 0.619], [0.71, 0.79], [0.88, 0.961]],
    [[1, 2, 0.5]] * 5,
)
SSD300 = (
    (38, 19, 10, 5, 3, 1),
    [[0.1, 0.14], [0.2, 0.27], [0.37, 0.45], [0.54, 0.62], [0.71, 0.79], [0.88, 0.96]],
    [[1, 2, 0.5], *[[1, 2, 0.5, 3, 1 / 3]] * 3, [1, 2, 0.5], [1, 2, 0.5]],
)
SSD512 = (
    (64, 32, 16, 8, 4, 2, 1),
    [[0.07, 0.1], [0.15, 0.22], [0.3, 0.37], [0.45, 0.52], [0.6, 0.67], [0.75, 0.82], [0.9, 0.95]],
    [[1, 2, 0.5], *[[1, 2, 0.5, 3, 1 / 3]] * 4, [1, 2, 0.5], [1, 2, 0.5]],
)
ANCHOR_COUNTS = {5444: TINY_SSD, 8732: SSD300, 24564: SSD512}

OP_TESTS = Path(__file__).resolve().parent / "ops"
sys.path.append(str(OP_TESTS))  # `inputs` imports from there


def inputs(op: str, images: int = 3, dtype: torch.dtype = torch.float32, size: int = 20) -> tuple:
    """Arguments of a public op, from the function `<op>_inputs` in a module of tests/ops.

    The general tests and the checks on a GPU call every op with them: a batch of `images`, each with
    `size` boxes or anchors.
    """
    return _function_of_inputs(op)(images, size, dtype)


def raw_call(function: Callable, args: tuple) -> tuple[Any, tuple]:
    """(op, arguments) of the one call of `torch.ops.ssd_ops` that a public function makes."""
    calls = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "ssd_ops":
                calls.append((func, args))
            return func(*args, **(kwargs or {}))

    with Recorder():
        function(*args)
    (call,) = calls
    return call


@functools.cache
def _function_of_inputs(op: str) -> Callable[[int, int, torch.dtype], tuple]:
    name = f"{op}_inputs"
    for path in sorted(OP_TESTS.glob("test_*.py")):
        if f"def {name}(" in path.read_text():
            return getattr(importlib.import_module(path.stem), name)
    raise LookupError(f"{op}: define {name}(images, size, dtype) in tests/ops/test_{op}.py")


@functools.cache
def has_fixed_shape(op: str) -> bool:
    """Whether the shapes of the results follow from those of the arguments, as the fake kernel says."""
    args = inputs(op)
    with FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True) as mode:
        results = tree_leaves(getattr(ssd_ops, op)(*tree_map_only(Tensor, mode.from_tensor, args)))
    return all(isinstance(size, int) for result in results for size in result.shape)


def recipes() -> dict[str, Callable]:
    """The functions of docs/detectors.md, by their names."""
    text = (OP_TESTS.parent.parent / "docs" / "detectors.md").read_text()
    names: dict[str, Callable] = {}
    for code in re.findall(r"^```python\n(def .*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        names |= {"torch": torch, "ssd_ops": ssd_ops}
        exec(compile(code, "detectors.md", "exec"), names)
    return names


def rounds(count: int) -> range:
    """As many rounds of random cases as the profile of hypothesis wants: `count` of them for `ci`."""
    from hypothesis import settings  # the benchmarks need no hypothesis

    return range(max(1, count * settings().max_examples // 100))


def some(options: tuple) -> list:
    """All of the options, in any order, for the profile `ci`; for a smaller one, some drawn at random."""
    order = torch.randperm(len(options))[: len(rounds(len(options)))]
    return [options[index] for index in order.tolist()]


def prior_anchors(count: int) -> Tensor:
    """The anchors [1, count, 4] of a real detector: 5,444, 8,732 or 24,564 of them."""
    maps, sizes, ratios = ANCHOR_COUNTS[count]
    anchors = reference.multibox_priors([torch.zeros(n, n) for n in maps], sizes, ratios)
    assert anchors.shape == (1, count, 4)
    return anchors


def boxes(*shape: int, kind: str = "uniform", dtype: torch.dtype = torch.float32) -> Tensor:
    """Boxes [*shape, 4] xyxy, in or near the unit square.

    Kinds: `uniform` and `small` in general position; `grid` with corners on a grid of eighths, so
    that equal IoUs and boxes without area are common; `copies` of few boxes; a `chain` in which
    each box overlaps the next; `odd` with inverted, empty, NaN, infinite, huge and tiny ones.
    """
    real = torch.float64 if dtype == torch.float64 else torch.float32
    if kind in ("uniform", "small"):
        center = torch.rand(*shape, 2, dtype=real)
        low, high = (0.05, 0.5) if kind == "uniform" else (0.01, 0.1)
        half = (low + (high - low) * torch.rand(*shape, 2, dtype=real)) / 2
        result = torch.cat((center - half, center + half), dim=-1)
    elif kind == "grid":
        corners = torch.randint(0, 9, (*shape, 2, 2)).to(real) / 8
        result = corners.sort(dim=-2).values.flatten(-2)
    elif kind == "copies":
        few = boxes(3, dtype=real)
        result = few[torch.randint(0, 3, shape)]
    elif kind == "chain":
        count = shape[-1]
        left = (torch.arange(count, dtype=real) / 4).expand(shape)
        zero = torch.zeros_like(left)
        result = torch.stack((left, zero, left + 1, zero + 1), dim=-1) / 8
    else:
        result = _odd(boxes(*shape, dtype=real))
    return result.to(dtype)


def _odd(result: Tensor) -> Tensor:
    flat = result.view(-1, 4)
    specials = torch.tensor([float("nan"), float("inf"), float("-inf"), 1e30, -1e30, 1e-30, 0.0])
    for row in flat:
        what = int(torch.randint(0, 8, ()))
        if what == 0:  # inverted, one side or both
            row.copy_(row[[2, 1, 0, 3]] if torch.rand(()) < 0.5 else row[[2, 3, 0, 1]])
        elif what == 1:  # without area: a line or a point
            row[2] = row[0]
            if torch.rand(()) < 0.5:
                row[3] = row[1]
        elif what == 2:
            row[int(torch.randint(0, 4, ()))] = specials[int(torch.randint(0, 7, ()))].to(row.dtype)
        elif what == 3:
            row.mul_(torch.tensor([1e-12, 1e-22, 1e12, 1e19])[int(torch.randint(0, 4, ()))])
    return result


def labels(
    images: int,
    count: int,
    *,
    kind: str = "uniform",
    padding: float = 0.3,
    classes: int = 20,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Labels [images, count, 5] of which a share is padding, at any place: class -1, any box."""
    box = boxes(images, count, kind=kind, dtype=dtype)
    category = torch.randint(0, classes, (images, count, 1)).to(dtype)
    pad = torch.rand(images, count, 1) < padding
    return torch.cat((torch.where(pad, -torch.ones_like(category), category), box), dim=2)


def scores(*shape: int, kind: str = "uniform", dtype: torch.dtype = torch.float32) -> Tensor:
    """Scores in 0..1; of `ties` there are five, of `odd` some are NaN, infinite, negative or -0."""
    result = torch.rand(*shape)
    if kind in ("ties", "grid", "copies"):
        result = torch.randint(0, 5, shape) / 4
    elif kind == "odd":
        specials = torch.tensor([float("nan"), float("inf"), float("-inf"), -1.0, -0.0, 0.0])
        chosen = specials[torch.randint(0, 6, shape)]
        result = torch.where(torch.rand(*shape) < 0.3, chosen, result)
    return result.to(dtype)


def detection(
    images: int, classes: int, anchors: int, *, spread: float = 0.3
) -> tuple[Tensor, Tensor]:
    """(cls_probs [B, C + 1, A], offset_preds [B, 4A]) as from heads that were never trained."""
    cls_probs = (spread * torch.randn(images, classes + 1, anchors)).softmax(dim=1)
    return cls_probs, spread * torch.randn(images, 4 * anchors)


def library_exp(x: Tensor) -> Tensor:
    """The exp of the kernels, which has tests of its own: as `reference._exp` it makes scores and boxes
    of the reference the same bits as theirs, so that what follows can be held to equality."""
    rows = torch.zeros(*x.shape, 4, dtype=x.dtype)
    rows[..., 2] = x
    anchor = torch.tensor([-1.0, -1, 1, 1], dtype=x.dtype)
    return ssd_ops.decode_boxes(rows.reshape(-1, 4), anchor, variances=(1, 1, 1, 1))[:, 2].reshape(
        x.shape
    )


def library_log(x: Tensor) -> Tensor:
    """The log of the kernels, as `reference._log`: the offset of the side of a box to a side of 1."""
    rows = torch.zeros(*x.shape, 4, dtype=x.dtype)
    rows[..., 2] = x
    rows[..., 3] = 1
    anchor = torch.tensor([0.0, 0, 1, 1], dtype=x.dtype)
    offsets = ssd_ops.encode_boxes(rows.reshape(-1, 4), anchor, variances=(1, 1, 1, 1))
    return offsets[:, 2].reshape(x.shape)


def odd_layouts(tensor: Tensor) -> dict[str, Tensor]:
    """Tensors equal to the given one whose memory is laid out differently."""
    wide = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
    wide[..., ::2] = tensor
    shifted = torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)
    shifted[1:] = tensor.flatten()
    return {
        "strided": wide[..., ::2],
        "transposed": tensor.transpose(0, -1).contiguous().transpose(0, -1),
        "offset": shifted[1:].view(tensor.shape),
    }
