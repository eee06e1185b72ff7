"""What a planted fault is, and the list of those that change nothing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

EQUAL = Path(__file__).with_name("equal.txt")


@dataclass(frozen=True)
class Edit:
    """A piece of a text between two other pieces; or, with `instead`, the first of them in its place."""

    start: int
    end: int
    before: str
    after: str = ""
    instead: bool = False


@dataclass(frozen=True)
class Fault:
    """One change of one source file."""

    file: str  # from the root of the repository
    line: int
    code: str  # the line as it is, which finds it again when lines before it come and go
    change: str  # in words, such as "< becomes <="; numbered where a line has several alike
    edits: tuple[Edit, ...]
    lines: range  # a test that runs one of these may notice


def edited(text: str, edits: list[Edit]) -> str:
    """The text with all edits made. Of those that begin in one place the longest is outermost."""
    opening = sorted(edits, key=lambda edit: (edit.start, -edit.end))
    closing = sorted(reversed(opening), key=lambda edit: (edit.end, -edit.start))
    marks = [(edit.start, 1, at, edit.before) for at, edit in enumerate(opening)]
    marks += [(edit.end, 0, at, edit.after) for at, edit in enumerate(closing) if edit.after]
    gone = {edit.start: edit.end for edit in edits if edit.instead}
    pieces, done = [], 0
    for place, _, _, inserted in sorted(marks):
        pieces += [text[done:place], inserted]
        done = max(done, gone.get(place, place))
    return "".join(pieces) + text[done:]


def numbered(faults: list[Fault]) -> list[Fault]:
    """The same; changes that are said alike of one line get a number."""
    seen: dict[tuple[str, int, str], int] = {}
    result = []
    for fault in faults:
        key = fault.file, fault.line, fault.change
        seen[key] = seen.get(key, 0) + 1
        said = fault.change + (f" ({seen[key]})" if seen[key] > 1 else "")
        result.append(Fault(fault.file, fault.line, fault.code, said, fault.edits, fault.lines))
    return result


def read_equal(text: str) -> dict[tuple[str, str, str], str]:
    """Reasons by file, code and change. A line of the list: file :: code :: change :: reason."""
    rows = [line.split(" :: ") for line in text.splitlines() if line and not line.startswith("#")]
    return {(file, code, change): reason for file, code, change, reason in rows}


def is_equal(fault: Fault, equal: dict[tuple[str, str, str], str]) -> bool:
    """Whether the list has it; the change `*` stands for every change of a line of code."""
    return any((fault.file, fault.code, change) in equal for change in (fault.change, "*"))


def bits(numbers: Iterable[int]) -> int:
    """A set of numbers as the bits of one: thousands of sets of thousands fit into memory."""
    result = 0
    for number in set(numbers):
        result |= 1 << number
    return result
