"""What all tests share: backends, seeds, hypothesis profile."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

import backends
import pytest
import torch
from hypothesis import HealthCheck, settings

import ssd_ops  # noqa: F401  (registers the ops)

# A machine that is shared is slow at times, which is no failure; and a failure must come back.
settings.register_profile(
    "ssd_ops",
    deadline=None,
    derandomize=True,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def pytest_configure(config):
    config.addinivalue_line("markers", "not_emulated(why): a test that runs for minutes emulated")


settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ssd_ops"))


def _param(name: str):
    why_not = backends.why_not(name)
    mark = pytest.mark.skipif(bool(why_not), reason=why_not or "-")
    return pytest.param(name, marks=mark)


@pytest.fixture(params=[_param(name) for name in ("cpu", "emulated", "cuda")])
def backend(request) -> Iterator[str]:
    """Every backend in turn; all ops that a test calls run there. What this machine lacks is skipped."""
    too_long = request.node.get_closest_marker("not_emulated")
    if too_long and request.param == "emulated":
        pytest.skip(f"too long for the emulation: {too_long.args[0]}")
    with backends.active(request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _seed(request):
    """Each test draws the same numbers alone, in the whole suite, in any order and in any folder."""
    state = torch.get_rng_state()
    torch.manual_seed(zlib.crc32(request.node.nodeid.rpartition("/")[2].encode()))
    yield
    torch.set_rng_state(state)


@pytest.fixture
def threads():
    """Sets the number of threads; the old one comes back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
