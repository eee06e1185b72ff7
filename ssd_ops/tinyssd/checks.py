"""Checks of the fields of a dataclass, by type and by a table of rules; and of installed packages."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

Rule = tuple[Callable[[Any], bool], str]  # whether a value is good, and what it must be


def extra(module: str) -> Any:
    """A module that comes with the extra `train`; an ImportError says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(f"{module} is needed: pip install ssd_ops[train]") from None


def is_number(value: object) -> bool:
    """Whether this is a finite real number; True and False are not."""
    return isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)


def choice(*names: str) -> Rule:
    """One of these words."""
    return names.__contains__, f"{', '.join(names[:-1])} or {names[-1]}"


AT_LEAST_1: Rule = (lambda value: value >= 1, "at least 1")
NOT_NEGATIVE: Rule = (lambda value: value >= 0, "0 or more")
POSITIVE: Rule = (lambda value: value > 0, "positive")
FRACTION: Rule = (lambda value: 0 <= value <= 1, "in 0..1")
# A rule for each annotation of a field; types that are not here are left to the table.
TYPES: dict[str, Rule] = {
    "int": (lambda value: type(value) is int, "a whole number"),
    "float": (is_number, "a finite number"),
    "bool": (lambda value: type(value) is bool, "true or false"),
}


def check_fields(owner: str, record: Any, rules: Mapping[str, Rule]) -> None:
    """Check every field of a dataclass, whose annotations are strings, by its type and its rule.

    None is good where the annotation allows it. The first value that is not valid is a ValueError:
    ``owner: name must be X, got Y``.
    """
    for field in fields(record):
        value, kind = getattr(record, field.name), str(field.type)
        if value is None and kind.endswith(" | None"):
            continue
        for rule in (TYPES.get(kind.removesuffix(" | None")), rules.get(field.name)):
            if rule and not rule[0](value):
                raise ValueError(f"{owner}: {field.name} must be {rule[1]}, got {value!r}")
