"""Calls the ops with arguments changed at random, right and wrong, past the Python functions.

`python tests/fuzz.py [--calls 1000] [--seed 0] [OP ...]`; `make sanitize` does so under its sanitizers. With
`--draw set` or `--draw threshold` the arguments are right: sets of boxes of any kind, and those on a border.
A call must return or raise an error that starts with the name of the op (or is the dispatcher's own), and
the CPU kernels and the emulated CUDA kernels must do the same, to the bit. The process must live. What fails
is printed with its seed; put that into test_fuzz.py.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import backends
import cases
import figures
import torch
from torch import Tensor

import ssd_ops

OPS = sorted(s.name.removeprefix("ssd_ops::") for s in backends.schemas())
FLOATS = [
    0.0,
    -0.0,
    0.3,
    0.5,
    1.0,
    1.5,
    -1.0,
    1e-40,
    1e-7,
    1e30,
    1e300,
    *map(float, ("inf", "-inf", "nan")),
]
INTS = [0, 1, 2, 3, 5, 100, -1, -2, -3, 2**31 - 1, 2**31, -(2**31), 2**63 - 1, -(2**63)]
DTYPES = [*cases.DTYPES, torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64]
# What torch says itself, of arguments that do not fit the schema or that no memory is there for.
BY_TORCH = ("ssd_ops", "DefaultCPUAllocator", "Overflow when unpacking", "expected ", "Expected ")
BY_TORCH += ("There were no tensor arguments",)  # of an empty list of feature maps


def raw_arguments(name: str, images: int, dtype: torch.dtype, size: int) -> list[Any]:
    """Arguments with which the public function calls the op."""
    inputs = cases.inputs(name, images, dtype, size)
    return list(cases.raw_call(getattr(ssd_ops, name), inputs)[1])


def odd_tensor(tensor: Tensor, rng: random.Random) -> Tensor:
    """A tensor with other numbers, of another shape, dtype or layout."""
    shape = list(tensor.shape)
    at = rng.randrange(len(shape)) if shape else 0
    match rng.randrange(12):
        case 0 | 1 | 2 if tensor.is_floating_point() and tensor.numel():  # odd numbers
            tensor = tensor.clone(memory_format=torch.contiguous_format)
            flat = tensor.view(-1)
            for _ in range(rng.choice([1, 3, flat.numel()])):
                value = torch.tensor(rng.choice(FLOATS), dtype=torch.float64)
                flat[rng.randrange(flat.numel())] = value.to(flat.dtype)
            return tensor
        case 3 if tensor.dtype in (torch.int64, torch.int32, torch.uint8) and tensor.numel():
            tensor = tensor.clone(memory_format=torch.contiguous_format)
            for _ in range(3):
                info = torch.iinfo(tensor.dtype)
                tensor.view(-1)[rng.randrange(tensor.numel())] = min(
                    max(rng.choice(INTS), info.min), info.max
                )
            return tensor
        case 4:
            return tensor.to(rng.choice(DTYPES))
        case 5 if shape:  # one less, or one more
            index = list(range(shape[at]))
            index = index[:-1] if rng.random() < 0.5 else index + index[:1]
            return tensor.index_select(at, torch.tensor(index, dtype=torch.int64))
        case 6:
            return tensor.unsqueeze(rng.randrange(len(shape) + 1))
        case 7 if shape:
            return tensor.select(at, 0) if shape[at] else tensor.flatten()
        case 8 if shape:  # another layout of the same numbers
            return tensor.transpose(0, -1).contiguous().transpose(0, -1)
        case 9 if shape and shape[at]:  # one row, as if repeated
            return tensor.narrow(at, 0, 1).expand(shape)
        case 10 if shape:
            return tensor.narrow(at, 0, 0)
        case 11:
            return (
                tensor * rng.choice([0.0, -1.0, 1e-3, 1e10])
                if tensor.is_floating_point()
                else tensor
            )
    return tensor


def odd(value: Any, rng: random.Random) -> Any:
    if isinstance(value, Tensor):
        return odd_tensor(value, rng)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(INTS)
    if isinstance(value, float):
        return rng.choice(FLOATS)
    if isinstance(value, list | tuple):
        some = list(value)
        if some and rng.random() < 0.6:
            at = rng.randrange(len(some))
            some[at] = odd(some[at], rng)
        elif some and rng.random() < 0.5:
            some.pop()
        else:
            some.append(some[0] if some else 1.0)
        return some
    return rng.choice([None, torch.zeros(2, 3)])


def arguments(name: str, seed: int) -> list[Any]:
    """The arguments of one call: the same for the same seed."""
    rng = random.Random(f"{name} {seed}")
    torch.manual_seed(rng.randrange(2**31))
    images, dtype, size = (
        rng.choice(some) for some in ([0, 1, 2, 3], cases.DTYPES, [0, 1, 2, 9, 40])
    )
    args = raw_arguments(name, images, dtype, size)
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        at = rng.randrange(len(args))
        args[at] = odd(args[at], rng)
    return args


BOXES = ("boxes", "boxes1", "boxes2", "anchors", "gt_boxes", "ignore_boxes", "labels")


def set_of_boxes(name: str, seed: int) -> list[Any]:
    """Right arguments: boxes of any kind but odd ones, and scores of which many are equal, or none."""
    rng = random.Random(f"{name} {seed}")
    kind = rng.choice(["uniform", "small", "grid", "copies", "chain"])
    return list(_of_a_kind(name, rng, kind, [1, 7, 32, 33, 90, 150]).values())


def set_at_the_threshold(name: str, seed: int) -> list[Any]:
    """Right arguments at the borders: a few boxes many times, equal scores, and a threshold that is the IoU
    of two of the boxes, or the number before or after it."""
    rng = random.Random(f"{name} {seed}")
    args = _of_a_kind(name, rng, "copies", [8, 33, 70])
    if "offset_preds" in args:  # the decoded boxes are the anchors
        args["offset_preds"] = torch.zeros_like(args["offset_preds"])
        args["clip"] = False if isinstance(args["clip"], bool) else [0.0, 0.0]
    boxes = [args[each] for each in BOXES if each in args and args[each] is not None]
    for each in ("iou_threshold", "nms_threshold"):
        if each in args:
            args[each] = _near_an_iou(boxes[0], boxes[-1], rng)
    if "background_threshold" in args:
        args["background_threshold"] = min(args["background_threshold"], args["iou_threshold"])
    return list(args.values())


def _of_a_kind(name: str, rng: random.Random, kind: str, counts: list[int]) -> dict[str, Any]:
    """Arguments of an op, by name, with boxes and scores of a kind (cases.py)."""
    torch.manual_seed(rng.randrange(2**31))
    drawn = raw_arguments(name, rng.choice([1, 2]), rng.choice(cases.DTYPES), rng.choice(counts))
    names = [
        argument.name for argument in getattr(torch.ops.ssd_ops, name).default._schema.arguments
    ]
    args = dict(zip(names, drawn, strict=True))
    for each, value in args.items():
        if each in BOXES and value is not None:
            new = cases.boxes(*value.shape[:-1], kind=kind, dtype=value.dtype)
            args[each] = torch.cat((value[..., :-4], new), dim=-1)  # the class of a label stays
        elif isinstance(value, Tensor) and value.is_floating_point():
            args[each] = cases.scores(*value.shape, kind=kind, dtype=value.dtype)
    return args


def _near_an_iou(first: Tensor, last: Tensor, rng: random.Random) -> float:
    real = torch.float64 if first.dtype == torch.float64 else torch.float32
    first, last = (boxes.flatten(0, -2)[:9, -4:] for boxes in (first, last))
    ious = ssd_ops.box_iou(first, last)
    between = [0.5, *ious[(ious > 0) & (ious < 1)].tolist()]
    chosen = torch.tensor(rng.choice(between[-8:]), dtype=real)
    return float(chosen.nextafter(chosen + rng.choice([-1, 0, 1])))


DRAWS = {"any": arguments, "set": set_of_boxes, "threshold": set_at_the_threshold}


def outcome(op: Any, args: list[Any]) -> tuple[Tensor, ...] | str:
    """What an op returns, or the first line of its error."""
    try:
        result = op(*args)
    except (RuntimeError, ValueError, TypeError, IndexError, OverflowError) as error:
        said = str(error).splitlines()[0].replace("ssd_ops_emulated", "ssd_ops")
        return said.partition(" (e.g., you passed an empty list")[
            0
        ]  # what follows is of the dispatcher
    return result if isinstance(result, tuple) else (result,)


def fault(name: str, seed: int, *, emulated: bool, draw: str = "any") -> str | None:
    """What is wrong with one call, or None."""
    args = DRAWS[draw](name, seed)
    before = [a.clone() for a in args if isinstance(a, Tensor)]
    got = outcome(getattr(torch.ops.ssd_ops, name), args)
    for now, then in zip((a for a in args if isinstance(a, Tensor)), before, strict=True):
        if not same(now, then):
            return "an argument was changed"
    if isinstance(got, str) and not got.startswith((f"{name}: ", *BY_TORCH)):
        return f"an error without the op's name: {got}"
    if isinstance(got, str) and draw != "any":
        return got
    if not emulated:
        return None
    other = outcome(getattr(torch.ops.ssd_ops_emulated, name), args)
    if isinstance(got, str) or isinstance(other, str):
        return None if got == other else f"cpu: {told(got)}; emulated: {told(other)}"
    alike = len(got) == len(other) and all(map(same, got, other))
    return None if alike else f"cpu and emulated differ: {told(got)} and {told(other)}"


def same(one: Tensor, other: Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and bool(((one == other) | ((one != one) & (other != other))).all())


def told(outcome: tuple[Tensor, ...] | str) -> str:
    return outcome if isinstance(outcome, str) else str([list(t.shape) for t in outcome])


def faults(name: str, seeds: Iterable[int], **how: Any) -> Iterator[str]:
    """What is wrong with the calls of these seeds; `how` as for `fault`."""
    for seed in seeds:
        if wrong := fault(name, seed, **how):
            yield f"{name}, seed {seed}: {wrong}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help="all, if none is named")
    parser.add_argument("--calls", type=int, default=1000, help="of each op")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first call; the next one has the next"
    )
    parser.add_argument("--draw", choices=DRAWS, default="any", help="what arguments")
    parser.add_argument("--cpu", action="store_true", help="the CPU kernels alone")
    parser.add_argument(
        "--note", help="the name of this check in reliability.json, for its figures"
    )
    options = parser.parse_args()
    if not options.cpu:
        backends.load()
    count = 0
    for name in options.ops or OPS:
        print(f"{name} ...", flush=True)
        began, wrong = time.perf_counter(), 0
        seeds = range(options.seed, options.seed + options.calls)
        for told_fault in faults(name, seeds, emulated=not options.cpu, draw=options.draw):
            print(f"  {told_fault}", flush=True)
            wrong += 1
        count += wrong
        if options.note:
            seconds = round(time.perf_counter() - began)
            figures.note(options.note, name, calls=options.calls, faults=wrong, seconds=seconds)
    print(f"{count} faults")
    return int(count > 0)


if __name__ == "__main__":
    sys.exit(main())
