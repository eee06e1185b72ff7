"""What all tests share: backends, seeds, hypothesis profile."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator

import backends
import cases
import figures
import pytest
import torch
from hypothesis import HealthCheck, settings

from ssd_ops import reference

LONG = 50_000  # examples
# A machine that is shared is slow at times, which is no failure; and a failure must come back. `cases.rounds`
# sizes the loops of random cases by the same profile; `long` is for the tests with the mark `long` alone.
for _name, _examples in (("dev", 20), ("ci", 100), ("long", LONG)):
    settings.register_profile(
        _name,
        deadline=None,
        derandomize=True,
        max_examples=_examples,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

LEFT_OUT = pytest.StashKey[Counter]()  # slow tests of a file that were not selected


def pytest_configure(config):
    config.addinivalue_line("markers", "not_emulated(why): a test that runs for minutes emulated")
    config.addinivalue_line(
        "markers", "long: does far more in the profile `long`, as in `make long`"
    )
    config.addinivalue_line("markers", "slow: takes many seconds; left to `make test-all`")
    config.addinivalue_line("markers", "slow_emulated: slow, but in the emulation alone")
    config.stash[LEFT_OUT] = Counter()


@pytest.hookimpl(tryfirst=True)  # before `-m "not slow"` chooses
def pytest_collection_modifyitems(items):
    for item in items:
        emulated = hasattr(item, "callspec") and item.callspec.params.get("backend") == "emulated"
        if emulated and item.get_closest_marker("slow_emulated"):
            item.add_marker(pytest.mark.slow)


def pytest_deselected(items):
    for item in items:
        if item.get_closest_marker("slow"):
            item.config.stash[LEFT_OUT][item.nodeid.partition("::")[0]] += 1


def pytest_sessionfinish(session):
    # A worker of pytest-xdist, whose output nobody sees.
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(session.config.stash[LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Every worker has left out the same tests."""
    node.config.stash[LEFT_OUT] |= Counter(getattr(node, "workeroutput", {}).get("left_out", {}))


def pytest_terminal_summary(terminalreporter, config):
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")
    if left_out := config.stash[LEFT_OUT]:
        terminalreporter.write_line(f"{left_out.total()} slow tests are left to `make test-all`:")
        for file, count in sorted(left_out.items()):
            terminalreporter.write_line(f"  {count:3} in {file}")


def _param(name: str):
    why_not = backends.why_not(name)
    mark = pytest.mark.skipif(bool(why_not), reason=why_not or "-")
    return pytest.param(name, marks=mark)


@pytest.fixture(params=[_param(name) for name in ("cpu", "emulated", "cuda")])
def backend(request) -> Iterator[str]:
    """Every backend in turn; all ops that a test calls run there. What this machine lacks is skipped.

    New memory, scratch of kernels too, is filled with what no kernel may rely on.
    """
    too_long = request.node.get_closest_marker("not_emulated")
    if too_long and request.param == "emulated":
        pytest.skip(f"too long for the emulation: {too_long.args[0]}")
    with backends.filled_new_memory(), backends.active(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _seed(request):
    """Each test draws the same numbers alone, in the whole suite, in any order and in any folder."""
    state = torch.get_rng_state()
    torch.manual_seed(zlib.crc32(request.node.nodeid.rpartition("/")[2].encode()))
    yield
    torch.set_rng_state(state)


@pytest.fixture
def note():
    """note(check, op, **figures): for docs/reliability.md, what a test has done in the profile `long`."""
    long = settings().max_examples == LONG
    return figures.note if long else lambda *_, **__: None


@pytest.fixture
def library_math(monkeypatch):
    """The reference has the exp and the log of the kernels, so both are equal bit for bit."""
    monkeypatch.setattr(reference, "_exp", cases.library_exp)
    monkeypatch.setattr(reference, "_log", cases.library_log)


@pytest.fixture
def threads():
    """Sets the number of threads; the old one comes back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
