"""The emulated CUDA kernels as a backend: torch.ops.ssd_ops_emulated, and a mode that sends calls there."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shutil
from pathlib import Path
from types import ModuleType

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ssd_ops  # noqa: F401  (registers the ops)

HERE = Path(__file__).resolve().parent


def why_not() -> str:
    """Why the emulation cannot run here, or nothing."""
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
    """Registers the emulated kernels, built before if need be. SSD_OPS_EMULATED names a library already built."""
    path = os.environ.get("SSD_OPS_EMULATED") or str(builder().build())
    library = torch.library.Library("ssd_ops_emulated", "DEF")
    for schema in schemas():
        library.define(str(schema).removeprefix("ssd_ops::"))
    load.library = library  # type: ignore[attr-defined]  # the definitions live as long as it does
    torch.ops.load_library(path)


class Emulated(TorchDispatchMode):
    """Under this mode torch.ops.ssd_ops runs the emulated CUDA kernels, on CPU tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "ssd_ops":
            func = getattr(torch.ops.ssd_ops_emulated, func._opname).default
        return func(*args, **(kwargs or {}))
