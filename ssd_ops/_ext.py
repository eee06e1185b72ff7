"""Loads the compiled library, which registers the ops; says what to do where that cannot be."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from types import ModuleType
from typing import Any

import torch

REBUILD = (
    "`pip install --no-build-isolation --force-reinstall --no-deps ssd_ops` (or `.` in a checkout)"
)


def _load() -> ModuleType:
    spec = importlib.util.find_spec("ssd_ops._C")
    if spec is None:
        raise ImportError(
            "ssd_ops: the compiled library is missing beside the Python files. Build it with "
            f"{REBUILD}; if you are in the source folder of a non-editable install, leave it."
        )
    # Registering the same ops twice aborts the process, with no Python error to catch.
    if hasattr(torch.ops.ssd_ops, "nms"):
        loaded = sorted(path for path in torch.ops.loaded_libraries if "ssd_ops" in path)
        raise ImportError(
            f"ssd_ops: another copy of the library is loaded already ({', '.join(loaded) or _mapped()}), "
            f"so {spec.origin} cannot be. Uninstall one of the two and start Python anew."
        )
    try:
        return importlib.import_module("ssd_ops._C")
    except ImportError as error:
        raise ImportError(
            f"ssd_ops: {spec.origin} does not load with torch {torch.__version__} ({error}). "
            f"Build it again with {REBUILD}."
        ) from error


def _mapped() -> str:
    """The file of the copy that this process has mapped, as far as the system tells."""
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split()[-1] for line in maps if "ssd_ops" in line and ".so" in line}
    except OSError:
        paths = set()
    return ", ".join(sorted(paths)) or "its path is unknown"


def op_names() -> list[str]:
    """The ops of the library, such as "ssd_ops::nms"."""
    return [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("ssd_ops::")]


def _load_cuda() -> tuple[ModuleType | None, str]:
    """The library of the CUDA kernels, or nothing and why."""
    if torch.version.cuda is None:
        return None, "torch is built without CUDA"
    spec = importlib.util.find_spec("ssd_ops._C_cuda")
    if spec is None:
        return None, "ssd_ops was built without CUDA kernels"
    try:
        return importlib.import_module("ssd_ops._C_cuda"), ""
    except ImportError as error:
        return None, f"{spec.origin} does not load with torch {torch.__version__} ({error})"


def _explain_missing_cuda(why: str) -> torch.library.Library:
    """Gives every op a CUDA kernel that says why there is none, and what to do."""
    library = torch.library.Library("ssd_ops", "IMPL")

    def kernel(op: Any, *_args: Any) -> None:
        raise RuntimeError(
            f"{op}: its tensors are on a CUDA device, and {why}. Install the CUDA toolkit and build again "
            f"with SSD_OPS_CUDA=1 {REBUILD}, or move the tensors to the CPU."
        )

    for name in op_names():
        op = name.removeprefix("ssd_ops::")
        library.impl(name, functools.partial(kernel, op), "CUDA")
    return library


def _leave_out_gradients() -> torch.library.Library:
    """Passes every op through at the Autograd key, so that its outputs have no gradient, silently.

    Without a registration torch would mark them as requiring one, and only warn when backward finds none.
    """
    library = torch.library.Library("ssd_ops", "IMPL")
    for name in op_names():
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")
    return library


# A library of torch is undone when it is no longer referred to.
_C = _load()
_C_cuda, _why_no_cuda = _load_cuda()
if _C_cuda is None and torch.version.cuda is not None:
    _missing = _explain_missing_cuda(_why_no_cuda)
_autograd = _leave_out_gradients()


def build_info() -> dict[str, object]:
    """Versions and compilers of the loaded libraries, and what there is of CUDA.

    Example:
        >>> build_info()["torch_target"]
        '2.11'
    """
    info = dict(_C.build_info())
    if _C_cuda is None:
        info["cuda"] = f"no: {_why_no_cuda}"
    else:
        cuda = _C_cuda.build_info()
        info["cuda"] = f"{cuda['compiler']} for {cuda['architectures']}"
    return info


def library_path() -> str:
    """The file of the loaded library."""
    return str(_C.__file__)
