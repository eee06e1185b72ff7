"""The backends of the op tests: the CPU kernels, the emulated CUDA kernels, the CUDA kernels on a GPU."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType

import torch

import ssd_ops  # noqa: F401  (registers the ops)

HERE = Path(__file__).resolve().parent
NAMESPACES = {"plain": "ssd_ops_emulated", "counted": "ssd_ops_counted"}


def why_not(backend: str) -> str:
    """Why a backend cannot run here, or nothing."""
    if backend == "cpu":
        return ""
    if backend == "cuda":
        if not torch.cuda.is_available():
            return "torch sees no CUDA device"
        if not torch._C._dispatch_has_kernel_for_dispatch_key("ssd_ops::nms", "CUDA"):
            return "the CUDA kernels are not built"
        return ""
    if platform.system() != "Linux":
        return "the emulation needs Linux"
    if shutil.which(os.environ.get("CXX", "g++").split()[0]) is None:
        return "the emulation needs a C++ compiler"
    return ""


def schemas() -> list[torch.FunctionSchema]:
    """Of all ops of the library."""
    return [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("ssd_ops::")]


def builder() -> ModuleType:
    """The module emulation/build.py."""
    spec = importlib.util.spec_from_file_location("_build", HERE / "emulation" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load(variant: str = "plain") -> ctypes.CDLL:
    """The emulated kernels as ops; once for each variant."""
    return _load(variant)


@functools.cache
def _load(variant: str) -> ctypes.CDLL:
    """Registers emulated kernels, and returns the library with its handles for tests.

    It is the library SSD_OPS_EMULATED, if that is set, or else built here if need be. The variant
    `counted` (emulation/build.py) is always built here.
    """
    given = os.environ.get("SSD_OPS_EMULATED") if variant == "plain" else None
    path = given or str(builder().build(variant))
    library = torch.library.Library(NAMESPACES[variant], "DEF")
    for schema in schemas():
        library.define(str(schema).removeprefix("ssd_ops::"))
    torch.ops.load_library(path)
    handles = ctypes.CDLL(path)
    handles.definitions = library  # they live as long as it does
    return handles


@contextmanager
def _instead_of_cpu_kernels(call: Callable) -> Iterator[None]:
    """Every op on CPU tensors becomes call(name, *arguments), from Python, compiled code and any thread."""
    library = torch.library.Library("ssd_ops", "IMPL")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a kernel is overridden
            for schema in schemas():
                name = schema.name.removeprefix("ssd_ops::")
                library.impl(name, functools.partial(call, name), "CPU", allow_override=True)
        yield
    finally:
        library._destroy()


@contextmanager
def filled_new_memory() -> Iterator[None]:
    """torch fills the memory that it hands out: with NaN, or the greatest integer (bytes: 255).

    A kernel that reads what it did not write gives other results than it should.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)


def active(backend: str) -> AbstractContextManager:
    """Inside, the ops take and give CPU tensors as ever, and the kernels of `backend` compute them.

    Beside the backends of the op tests there is `counted`: emulated with the thresholds of a GPU;
    `counts` says what was done.
    """
    if backend in ("emulated", "counted"):
        variant = "plain" if backend == "emulated" else backend
        load(variant)
        ops = getattr(torch.ops, NAMESPACES[variant])
        return _instead_of_cpu_kernels(lambda name, *args: getattr(ops, name)(*args))
    if backend == "cuda":
        return _instead_of_cpu_kernels(
            lambda name, *args: _to("cpu", getattr(torch.ops.ssd_ops, name)(*_to("cuda", args)))
        )
    return nullcontext()


class Counts(ctypes.Structure):
    """What launches did (emulation/fibers.h)."""

    launches: int
    blocks: int
    barriers: int
    warp_operations: int
    polls: int
    steps: int
    longest: int
    _fields_ = tuple((name, ctypes.c_int64) for name in __annotations__)


def counts(variant: str = "counted") -> Counts:
    """What the emulated launches did since the last call of this function."""
    result = Counts()
    load(variant).emulation_counts(ctypes.byref(result))
    return result


def _to(device: str, value):
    if isinstance(value, torch.Tensor):
        # Not `.contiguous()`: strides are part of what is tested.
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_to(device, item) for item in value)
    return value
