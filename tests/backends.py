"""The backends of the op tests: the CPU kernels, the emulated CUDA kernels, the CUDA kernels on a GPU."""

from __future__ import annotations

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


@functools.cache
def load() -> None:
    """Registers the emulated kernels: of the library SSD_OPS_EMULATED, or else built here if need be."""
    path = os.environ.get("SSD_OPS_EMULATED") or str(builder().build())
    library = torch.library.Library("ssd_ops_emulated", "DEF")
    for schema in schemas():
        library.define(str(schema).removeprefix("ssd_ops::"))
    load.library = library  # type: ignore[attr-defined]  # the definitions live as long as it does
    torch.ops.load_library(path)


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


def active(backend: str) -> AbstractContextManager:
    """Inside, the ops take and give CPU tensors as ever, and the kernels of `backend` compute them."""
    if backend == "emulated":
        load()
        ops = torch.ops.ssd_ops_emulated
        return _instead_of_cpu_kernels(lambda name, *args: getattr(ops, name)(*args))
    if backend == "cuda":
        return _instead_of_cpu_kernels(
            lambda name, *args: _to("cpu", getattr(torch.ops.ssd_ops, name)(*_to("cuda", args)))
        )
    return nullcontext()


def _to(device: str, value):
    if isinstance(value, torch.Tensor):
        # Not `.contiguous()`: strides are part of what is tested.
        return value.to(device)
    if isinstance(value, tuple | list):
        return type(value)(_to(device, item) for item in value)
    return value
