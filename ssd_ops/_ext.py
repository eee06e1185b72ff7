"""Loads the compiled library, which registers the ops; says what to do where that cannot be."""

from __future__ import annotations

import importlib
import importlib.util
from types import ModuleType

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


_C = _load()


def build_info() -> dict[str, object]:
    """Versions and compiler of the loaded library.

    Example:
        >>> build_info()["torch_target"]
        '2.11'
    """
    return dict(_C.build_info())


def library_path() -> str:
    """The file of the loaded library."""
    return str(_C.__file__)
