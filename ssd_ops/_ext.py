"""Loads the compiled libraries, which register the ops. If one does not load, the error says what to do."""

from __future__ import annotations

import ctypes
import functools
import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ssd_ops.version import __version__

REBUILD = (
    "`pip install --no-build-isolation --force-reinstall --no-deps ssd_ops` (or `.` in a checkout)"
)


def _load() -> ModuleType:
    spec = importlib.util.find_spec("ssd_ops._C")
    own = Path(spec.origin or "").parent / "lib" / "libssd_ops.so" if spec else None
    if spec is None or own is None or not own.exists():
        raise ImportError(
            "ssd_ops: the compiled library is missing beside the Python files. Build it with "
            f"{REBUILD}; if you are in the source folder of a non-editable install, leave it."
        )
    if hasattr(torch.ops.ssd_ops, "nms"):
        _refuse_another_copy(own)
    try:
        module = importlib.import_module("ssd_ops._C")
    except ImportError as error:
        raise ImportError(
            f"ssd_ops: {spec.origin} does not load with torch {torch.__version__} ({error}). "
            f"Build it again with {REBUILD}."
        ) from error
    if module.version() != __version__:
        raise ImportError(
            f"ssd_ops: {module.path()} is of version {module.version()}, and the Python files are of version "
            f"{__version__}. Build it again with {REBUILD}."
        )
    return module


def _refuse_another_copy(own: Path) -> None:
    """An ImportError if the ops are of another file: to register them twice ends the process."""
    mapped = _mapped()
    if any(own.samefile(path) for path in mapped):
        return
    loaded = ", ".join(f"{path}, version {_version_of(path)}" for path in mapped)
    raise ImportError(
        f"ssd_ops: another copy of the library is loaded already ({loaded or 'its path is unknown'}), "
        f"so {own}, version {__version__}, cannot be loaded. Uninstall one of the two and restart Python."
    )


def _mapped() -> list[Path]:
    """The files of our CPU library that this process has mapped, if /proc shows them."""
    try:
        with open("/proc/self/maps") as maps:
            paths = {line.split(maxsplit=5)[-1].strip() for line in maps if "libssd_ops.so" in line}
    except OSError:
        return []
    return [Path(path) for path in sorted(paths) if Path(path).exists()]


def _version_of(library: Path) -> str:
    function = ctypes.CDLL(str(library)).ssd_ops_version
    function.restype = ctypes.c_char_p
    version: bytes = function()
    return version.decode()


def op_names() -> list[str]:
    """The full names of all ops of the library, for example "ssd_ops::nms"."""
    return [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("ssd_ops::")]


def _load_cuda() -> tuple[ModuleType | None, str]:
    """The library of the CUDA kernels and "", or None and the reason why it is not there."""
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
    """Registers, for every op, a CUDA kernel that raises an error: why kernels are missing and what to do."""
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
    """Registers a fallthrough at the Autograd key for every op: its outputs never require a gradient.

    Without it torch would mark the outputs as requiring a gradient, and warn only during backward.
    """
    library = torch.library.Library("ssd_ops", "IMPL")
    for name in op_names():
        library.impl(name, torch.library.fallthrough_kernel, "Autograd")
    return library


# The registrations of a torch.library.Library end when the object is deleted, so it is kept in a global.
_C = _load()
_C_cuda, _why_no_cuda = _load_cuda()
if _C_cuda is None and torch.version.cuda is not None:
    _missing = _explain_missing_cuda(_why_no_cuda)
_autograd = _leave_out_gradients()


def build_info() -> dict[str, object]:
    """Versions and compilers of the loaded libraries, and whether the CUDA kernels are loaded.

    Returns:
        A dict of strings. Its entry ``cuda`` names the compiler and the architectures, or is "no: " and
        the reason.

    Example:
        >>> build_info()["torch_target"]
        '2.11'
    """
    info = dict(json.loads(_C.build_info()))
    if _C_cuda is None:
        info["cuda"] = f"no: {_why_no_cuda}"
    else:
        cuda = json.loads(_C_cuda.build_info())
        info["cuda"] = f"{cuda['compiler']} for {cuda['architectures']}"
    return info


def library_path() -> str:
    """The path of the loaded CPU library, which C++ programs link too."""
    return str(_C.path())


def cmake_prefix_path() -> str:
    """The value of CMake's ``CMAKE_PREFIX_PATH`` with which it finds this package and torch.

    Returns:
        Two folders with a semicolon between them: that of this package, which holds ``include/ssd_ops.h``,
        ``lib/libssd_ops.so`` and the files of CMake, and torch's. `docs/deploy.md` has a C++ project that
        uses it. `ssd-ops info --cmake` prints the same.

    Example:
        >>> from pathlib import Path
        >>> ours, torch_s = cmake_prefix_path().split(";")
        >>> Path(ours, "include", "ssd_ops.h").exists()
        True
    """
    return f"{Path(__file__).resolve().parent};{torch.utils.cmake_prefix_path}"
