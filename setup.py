"""Builds `ssd_ops._C` from csrc/**/*.cpp. There is no list of ops: a new room is found by itself.

Everything is compiled against LibTorch's Stable ABI at the oldest torch supported, so one build
serves that torch and every later one.
"""

from __future__ import annotations

import os
import shutil
import site
import sys
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
TARGET = (2, 11)  # the oldest torch that the binary runs on
NO_TORCH = (
    "ssd_ops: building needs torch {}.{} or newer, and {}. Install torch first, then run "
    "`pip install --no-build-isolation ssd_ops` (or `pip install --no-build-isolation .` in a checkout)."
)


def _import_torch():
    """The installed torch, also from inside pip's isolated build environment.

    That environment hides the user's packages, and asking for torch in `build-system.requires` would
    download another one of several GB. The interpreter is the user's own all the same, so its package
    folders are known: they go last on the path, after what the environment provides.
    """
    try:
        import torch
    except ImportError:
        for folder in (*site.getsitepackages(), site.getusersitepackages()):
            site.addsitedir(folder)  # with what its .pth files add: torch may be a development install
        try:
            import torch
        except ImportError:
            sys.exit(NO_TORCH.format(*TARGET, "there is none for this Python"))
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < TARGET:
        sys.exit(NO_TORCH.format(*TARGET, f"torch {torch.__version__} is installed"))
    return torch


def _check_compiler() -> None:
    compiler = os.environ.get("CXX", "g++").split()[0]
    if shutil.which(compiler) is None:
        sys.exit(
            f"ssd_ops: building needs a C++17 compiler, and `{compiler}` is not on the PATH. Install one "
            "(Debian, Ubuntu: `apt install g++`) or name yours in the environment variable CXX."
        )
    os.environ.setdefault("CXX", compiler)


def _extension(torch) -> Extension:
    import pybind11
    from torch.utils.cpp_extension import include_paths, library_paths

    debug = os.environ.get("DEBUG", "0") == "1"
    flags = [
        "-std=c++17",
        "-O0" if debug else "-O3",
        "-g" if debug else "-g0",
        "-Wall",
        "-Wextra",
        "-Wno-psabi",  # wide vectors cross no call: everything that takes one is inlined
        "-fvisibility=hidden",
        # The same bits on every machine: nothing is fused, reordered or assumed away. The other two
        # only drop side effects of arithmetic (errno, traps), which would keep loops from vectorising.
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fno-trapping-math",
        f"-ffile-prefix-map={ROOT}=ssd_ops",
        f"-DTORCH_TARGET_VERSION=0x{TARGET[0]:02x}{TARGET[1]:02x}000000000000",
        f'-DSSD_OPS_TARGET="{TARGET[0]}.{TARGET[1]}"',
        # System headers, so that their warnings stay theirs.
        *(f"-isystem{path}" for path in (pybind11.get_include(), *include_paths())),
        *os.environ.get("SSD_OPS_CXXFLAGS", "").split(),
    ]
    return Extension(
        "ssd_ops._C",
        sources=sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.cpp")),
        depends=sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*.h")),
        include_dirs=[str(ROOT / "csrc")],
        library_dirs=library_paths(),
        libraries=["torch", "torch_cpu", "c10"],
        extra_compile_args=flags,
        extra_link_args=["-Wl,--as-needed", *os.environ.get("SSD_OPS_LDFLAGS", "").split()],
        language="c++",
    )


def main() -> None:
    # Building an sdist, or asking for metadata, compiles nothing and needs no torch.
    if not {"build_ext", "bdist_wheel", "editable_wheel", "develop", "install", "build"} & set(
        sys.argv
    ):
        setup()
        return
    torch = _import_torch()
    _check_compiler()
    from torch.utils.cpp_extension import BuildExtension

    setup(ext_modules=[_extension(torch)], cmdclass={"build_ext": BuildExtension})


main()
