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
    return min(number, 1.0)


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


def as_variances(op: str, values: object) -> list[float]:
    return as_positives(op, "variances", as_tuple_of(op, "variances", values, 4))


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
