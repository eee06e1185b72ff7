"""Checks of the arguments that are not tensors, and their conversion to the types of the schemas.

Every `as_` function returns its argument in the type that the schema wants, or raises `TypeError` or
`ValueError` with the message ``op: argument must be X, got Y``. C++ checks the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Choice = TypeVar("Choice")
VARIANCES = (0.1, 0.1, 0.2, 0.2)
# The schemas take an int: a string argument leaks memory in torch 2.13 and older.
SEMANTICS = {"d2l": 0, "mxnet": 1, "torchvision": 2}
METRIC = {"iou": 0, "ios": 1}
CODING = {"center": 0, "linear": 1, "distance": 2}
_LISTS = (
    list,
    tuple,
    Sequence,
    Tensor,
)  # common types first: isinstance of an abstract class is slow


def check_tensors(op: str, **tensors: object) -> None:
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")


def as_number(op: str, name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}") from None


def as_fraction(op: str, name: str, value: object) -> float:
    number = as_number(op, name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{op}: {name} must be in 0..1, got {number}")
    return number


def as_iou_threshold(op: str, value: object) -> float:
    """A number that IoUs are compared with; from 1 on they are all alike, since no IoU is above 1."""
    number = as_number(op, "iou_threshold", value)
    if not number >= 0:
        raise ValueError(f"{op}: iou_threshold must be 0 or more, got {number}")
    return number if number < 1.0 else 1.0


def as_numbers(op: str, name: str, values: Sequence[object] | Tensor) -> list[float]:
    try:
        return list(map(float, values))
    except (TypeError, ValueError):
        return [as_number(op, name, value) for value in values]  # names the wrong one


def as_positives(op: str, name: str, values: object) -> list[float]:
    """A list of at least one number, all positive and finite."""
    if isinstance(values, str) or not isinstance(values, _LISTS):
        raise TypeError(f"{op}: {name} must be a list of numbers, got {type(values).__name__}")
    numbers = as_numbers(op, name, values)
    if not numbers:
        raise ValueError(f"{op}: {name} must be at least one number, got none")
    for number in numbers:
        if not 0 < number < math.inf:
            raise ValueError(f"{op}: {name} must be positive and finite, got {number}")
    return numbers


def as_tuple_of(op: str, name: str, values: object, count: int) -> list[float]:
    if isinstance(values, str) or not isinstance(values, _LISTS) or len(values) != count:
        raise ValueError(f"{op}: {name} must be {count} numbers, got {values!r}")
    return as_numbers(op, name, values)


def as_variances(op: str, values: object, coding: int = 0) -> list[float]:
    """Four positive numbers; None is those of SSD, or 1 for a coding other than center."""
    if values is None:
        return list(VARIANCES) if coding == 0 else [1.0] * 4
    return as_positives(op, "variances", as_tuple_of(op, "variances", values, 4))


def as_clip(op: str, clip: object) -> list[float]:
    """Height and width that boxes are clipped to: those given, 1 and 1 for True, zeros for False.

    No empty list: torch's AOTInductor takes none for an argument, nor infinity.
    """
    if clip is True or clip is False:
        return [1.0, 1.0] if clip else [0.0, 0.0]
    if not isinstance(clip, _LISTS):
        raise TypeError(f"{op}: clip must be True, False or (height, width), got {clip!r}")
    return as_positives(op, "clip", as_tuple_of(op, "clip", clip, 2))


def as_max_log_size(op: str, value: object, coding: int) -> float:
    """The bound; -1 for None."""
    if value is None:
        return -1.0
    number = as_number(op, "max_log_size", value)
    if not number > 0:
        raise ValueError(f"{op}: max_log_size must be None or positive, got {number}")
    if coding != CODING["center"]:
        raise ValueError(
            f"{op}: max_log_size must be None with a coding other than 'center', got {number}"
        )
    return number if number < math.inf else -1.0


def as_levels(op: str, level_counts: object, topk_per_level: object) -> tuple[list[int], int]:
    """The boxes of each level and the candidates that each keeps; [0] and -1 for None."""
    if level_counts is None and topk_per_level is None:
        return [0], -1
    if level_counts is None or topk_per_level is None:
        missing = "level_counts" if level_counts is None else "topk_per_level"
        given = "topk_per_level" if level_counts is None else "level_counts"
        raise ValueError(f"{op}: {missing} must be given with {given}, got None")
    if not isinstance(level_counts, list | tuple):
        raise TypeError(
            f"{op}: level_counts must be a list of ints, got {type(level_counts).__name__}"
        )
    if not level_counts:
        raise ValueError(f"{op}: level_counts must be at least one int, got none")
    counts = [as_integer(op, "level_counts", count) for count in level_counts]
    topk = as_integer(op, "topk_per_level", topk_per_level)
    if min(counts) < 0:
        raise ValueError(f"{op}: level_counts must be 0 or more, got {min(counts)}")
    if topk < 1:
        raise ValueError(f"{op}: topk_per_level must be 1 or more, got {topk}")
    return counts, topk


def as_choice(op: str, name: str, value: object, choices: Mapping[str, Choice]) -> Choice:
    if not isinstance(value, str) or value not in choices:
        *names, last = map(repr, choices)
        raise ValueError(f"{op}: {name} must be {', '.join(names)} or {last}, got {value!r}")
    return choices[value]


def as_integer(op: str, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: {name} must be an int, got {value!r}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{op}: {name} must be an int of 64 bits, got {value}")
    return value


def as_ratio(op: str, name: str, value: object) -> float:
    ratio = as_number(op, name, value)
    if not 0 <= ratio < math.inf:
        raise ValueError(f"{op}: {name} must be 0 or more and finite, got {ratio}")
    return ratio


def as_topk(op: str, value: object) -> int:
    topk = as_integer(op, "topk", value)
    if topk < 1 and topk != -1:
        raise ValueError(f"{op}: topk must be 1 or more, or -1 for all, got {topk}")
    return topk


def as_min_negatives(op: str, value: object) -> int:
    count = as_integer(op, "min_negatives", value)
    if count < 0:
        raise ValueError(f"{op}: min_negatives must be 0 or more, got {count}")
    return count


def as_max_detections(op: str, value: object) -> int:
    count = as_integer(op, "max_detections", value)
    if count < 1:
        raise ValueError(f"{op}: max_detections must be 1 or more, got {count}")
    return count


def real_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of the arithmetic and of floating-point results."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
