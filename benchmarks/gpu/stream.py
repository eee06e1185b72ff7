"""Named cases, one after another, each with a limit of its own; results are printed as lines of JSON.

    {"begin": "nms 1,000", "limit": 20}       a case begins; the driver stops it after so many seconds
    {"case": "nms 1,000", "eager": ..}        what is known of it so far; several lines add up
    {"end": "nms 1,000"}

A case that hangs or breaks the process costs itself alone: the driver (suite.py) then starts the command
again with `--after "nms 1,000"`.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from device import Gpu, StandIn

BROKEN = 75  # exit status: the case failed, and the process cannot run the next one


class Case(NamedTuple):
    """`run(say)` does the work; `say(key=value, ..)` prints what is known of it."""

    name: str
    limit: float  # seconds
    run: Callable[[Callable[..., None]], None]


def say(**row) -> None:
    print(json.dumps(row), flush=True)


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every list of cases has."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--device", default="cuda", choices=("cuda", "cpu", "emulated"))
    result.add_argument("--tiny", action="store_true", help="tiny shapes, for a rehearsal")
    result.add_argument("--after", default="", help="leave out all cases up to this one")
    return result


def run(cases: Iterable[Case], device: Gpu | StandIn, after: str = "") -> int:
    """Runs the cases after the one named `after`. The exit status: 0, 1 if one failed, or `BROKEN`."""
    status = 0
    skipping = bool(after)
    for case in cases:
        if skipping:
            skipping = case.name != after
            continue
        say(begin=case.name, limit=case.limit)
        # Where it hung, for the log, before the driver ends the process.
        faulthandler.dump_traceback_later(0.9 * case.limit, file=sys.__stderr__)
        try:
            case.run(lambda name=case.name, **facts: say(case=name, **facts))
            device.synchronize()
        except Exception as error:
            traceback.print_exc()
            say(case=case.name, error=one_line(error))
            status = 1
            if device.broken():
                return BROKEN
        finally:
            faulthandler.cancel_dump_traceback_later()
        say(end=case.name)
    if skipping:
        print(f"no case is called {after!r}", file=sys.stderr)
        return 1
    return status


def one_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160]}" if text else type(error).__name__
