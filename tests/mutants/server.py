"""Collects tests once, and runs chosen ones in forked children: a planted fault costs no import."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pytest
from _pytest.runner import runtestprotocol

MEMORY = 12 * 2**30  # bytes of address space of a child: a fault may ask for any amount


@dataclass
class Run:
    """What a test does where nothing is wrong: seconds, and a bit for each fault that it reaches."""

    seconds: float
    reached: int

    def reaches(self, number: int) -> bool:
        return bool(self.reached >> number & 1)


class Watch(Protocol):
    """Sees which faults are reached."""

    def start(self) -> None: ...

    def stop(self) -> int:
        """A bit for each fault reached since the start."""


class Server:
    """A plugin of pytest. In place of running the tests it calls `drive(self)`."""

    def __init__(self, drive: Callable[[Server], None]) -> None:
        self.drive = drive
        self.items: dict[str, pytest.Item] = {}
        self.after_setup: Callable[[], Any] = bool

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        self.drive(self)
        return True

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self) -> Generator[None, None, None]:
        yield
        self.after_setup()

    def first_failure(self, names: Sequence[str]) -> str | None:
        """Runs tests up to one that fails. Those of one file in a row share its fixtures."""
        for name, following in zip(names, [*names[1:], None], strict=True):
            after = self.items[following] if following else None
            reports = runtestprotocol(self.items[name], log=False, nextitem=after)
            if any(report.failed for report in reports):
                return name
        return None

    def time_tests(self, names: list[str], watch: Watch, limit: float) -> dict[str, Run] | None:
        """What the tests of one file do that pass, in a child; None if it dies.

        What the fixtures do counts for all: the file's own are set up in the first test that asks for them.
        """

        def work() -> dict[str, list]:
            result, fixtures = {}, 0
            for name, following in zip(names, [*names[1:], None], strict=True):
                seen = []
                self.after_setup = lambda seen=seen: (seen.append(watch.stop()), watch.start())
                watch.start()
                began = time.perf_counter()
                after = self.items[following] if following else None
                reports = runtestprotocol(self.items[name], log=False, nextitem=after)
                seconds, reached = time.perf_counter() - began, watch.stop()
                fixtures |= sum(seen)
                if not any(report.failed for report in reports):
                    result[name] = [seconds, reached]
            return {name: [seconds, hex(r | fixtures)] for name, (seconds, r) in result.items()}

        found = in_child(work, limit)
        return found and {name: Run(seconds, int(r, 16)) for name, (seconds, r) in found.items()}

    def noticed_by(self, names: list[str], plant: Callable[[], None], limit: float) -> str | None:
        """The test that fails with a fault, "the process" if that dies or hangs, or None."""

        def work() -> list[str | None]:
            plant()
            return [self.first_failure(names)]

        result = in_child(work, limit)
        return "the process" if result is None else result[0]


def in_child(work: Callable[[], Any], limit: float) -> Any:
    """What work() returns in a forked child, as JSON; None if it does not return in time."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            with os.fdopen(writer, "w") as pipe:
                json.dump(work(), pipe)
        finally:
            os._exit(0)
    os.close(writer)
    deadline, text = time.monotonic() + limit, b""
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(deadline - time.monotonic(), 0))[0]:
            piece = pipe.read(1 << 20)
            text += piece
            if not piece:
                break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # and whatever it has started
    os.waitpid(child, 0)
    try:
        return json.loads(text)
    except ValueError:
        return None


def spread(runs: dict[str, Run]) -> list[str]:
    """The names of the tests, so that every function of them gets as much time, the quick cases first."""
    spent: dict[str, float] = {}
    order: dict[str, float] = {}
    for name in sorted(runs, key=lambda name: runs[name].seconds):
        function = name.partition("[")[0]
        order[name] = spent[function] = spent.get(function, 0.0) + runs[name].seconds
    return sorted(order, key=lambda name: order[name])


def by_file(names: Sequence[str]) -> list[str]:
    """The same names in the order of their files, where a file comes when its first test does."""
    files = list(dict.fromkeys(name.partition("::")[0] for name in names))
    return sorted(names, key=lambda name: files.index(name.partition("::")[0]))
