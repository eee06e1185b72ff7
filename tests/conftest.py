"""What all tests share: backends, seeds, hypothesis profile."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import emulated
import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor

import ssd_ops  # noqa: F401  (registers the ops)

# A machine that is shared is slow at times, which is no failure; and a failure must come back.
settings.register_profile(
    "ssd_ops",
    deadline=None,
    derandomize=True,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ssd_ops"))


def _cuda_missing() -> str:
    """Why the CUDA cases cannot run here, or nothing."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    if not torch._C._dispatch_has_kernel_for_dispatch_key("ssd_ops::nms", "CUDA"):
        return "the CUDA kernels are not built"
    return ""


@dataclass(frozen=True)
class Backend:
    """One implementation of the ops. Test bodies make inputs and compare results on the CPU."""

    name: str
    device: str

    def run(self, op: Callable, *args, **kwargs):
        """`op` on this backend: tensors go there, results come back."""
        if self.name == "emulated":
            emulated.load()
            with emulated.Emulated():
                return op(*args, **kwargs)
        return _to("cpu", op(*_to(self.device, args), **kwargs))


def _to(device: str, value):
    if isinstance(value, Tensor):
        # Not `.contiguous()`, and nothing at all on the CPU: strides are part of what is tested.
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_to(device, item) for item in value)
    return value


def _param(name: str, device: str, why_not: str):
    mark = pytest.mark.skipif(bool(why_not), reason=why_not or "-")
    return pytest.param(Backend(name, device), id=name, marks=mark)


@pytest.fixture(
    params=[
        _param("cpu", "cpu", ""),
        _param("emulated", "cpu", emulated.why_not()),
        _param("cuda", "cuda", _cuda_missing()),
    ]
)
def backend(request) -> Backend:
    """Every backend in turn; those that this machine lacks are shown as skipped."""
    return request.param


@pytest.fixture(autouse=True)
def _seed(request):
    """Each test draws the same numbers alone, in the whole suite, and in any order."""
    state = torch.get_rng_state()
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))
    yield
    torch.set_rng_state(state)


@pytest.fixture
def threads():
    """Sets the number of threads; the old one comes back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
