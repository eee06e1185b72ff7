"""Builds ssd_ops/lib/libssd_ops.so from csrc/**/*.cpp and, where there is nvcc, libssd_ops_cuda.so from
csrc/**/*.cu; and the Python modules `ssd_ops._C` and `ssd_ops._C_cuda` (csrc/python), which load them.

There is no list of ops: a new room is found by itself. Everything is compiled against LibTorch's Stable ABI
at the oldest torch supported, so one build serves that torch and every later one. Its headers need no CUDA,
so libssd_ops_cuda.so is built beside a CPU-only torch just as well; it is loaded where torch has CUDA. Both
libraries hold no symbol of Python: C++ programs link them too.

SSD_OPS_CUDA=1 makes a build without CUDA kernels fail, 0 leaves them out. TORCH_CUDA_ARCH_LIST and CUDA_HOME
are those of torch's own extensions.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
OBJECTS = ROOT / "build" / f"objects-{sys.implementation.cache_tag}"
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
            # With what its .pth files add: torch may be a development install.
            site.addsitedir(folder)
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


def _find_cuda(torch) -> tuple[Path | None, str]:
    """The CUDA toolkit to build with, or nothing and why."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    home = None
    if named:
        home = Path(named)
    elif nvcc := shutil.which("nvcc"):
        # The one on the PATH may be a link or a script elsewhere; the compiler itself knows where it lives.
        dry_run = subprocess.run(
            [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True
        )
        if found := re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, flags=re.MULTILINE):
            home = Path(found[1].strip()).resolve()
    elif Path("/usr/local/cuda/bin/nvcc").exists():
        home = Path("/usr/local/cuda")
    if home is None:
        return None, "nvcc is not on the PATH, and CUDA_HOME does not say where it is"
    if not (home / "bin" / "nvcc").exists():
        return None, f"there is no bin/nvcc in {home}" + (
            ", which CUDA_HOME names" if named else ""
        )
    if not _cudart_folders(home):
        return None, f"libcudart_static.a is not installed with the CUDA toolkit in {home}"
    version = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True)
    found = re.search(r"release (\d+)\.\d+", version.stdout)
    if torch.version.cuda and found and found[1] != torch.version.cuda.split(".")[0]:
        return (
            None,
            f"the toolkit is CUDA {found[1]} and torch is built with CUDA {torch.version.cuda}",
        )
    return home, ""


def _cudart_folders(home: Path) -> list[Path]:
    folders = [home / "lib64", home / "lib", *sorted(home.glob("targets/*/lib"))]
    return [folder for folder in folders if (folder / "libcudart_static.a").exists()]


def _architectures(torch) -> str:
    """GPUs to compile for, as in TORCH_CUDA_ARCH_LIST: a wheel for all, a build in place for this one."""
    if listed := os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";").strip(";"):
        return listed
    if {"bdist_wheel", "install"} & set(sys.argv):
        return "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
    if torch.cuda.is_available():
        return "{}.{}".format(*torch.cuda.get_device_capability())
    return "9.0"


def _architecture_flags(architectures: str) -> list[str]:
    flags = []
    for name in filter(None, architectures.split(";")):
        found = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", name)
        if found is None:
            sys.exit(
                "ssd_ops: TORCH_CUDA_ARCH_LIST must be numbers such as `8.0;9.0+PTX`, "
                f"got `{architectures}`"
            )
        number = found[1] + found[2] + found[3]
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if found[4]:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def _sources(suffix: str) -> list[str]:
    paths = [path.relative_to(ROOT) for path in (ROOT / "csrc").rglob(f"*{suffix}")]
    return sorted(str(path) for path in paths if path.parts[1] != "python")


def _version() -> str:
    return re.search(r'"(.+)"', (ROOT / "ssd_ops" / "version.py").read_text())[1]


def _defines() -> list[str]:
    return [
        f'-DSSD_OPS_VERSION="{_version()}"',
        f"-DTORCH_TARGET_VERSION=0x{TARGET[0]:02x}{TARGET[1]:02x}000000000000",
        f'-DSSD_OPS_TARGET="{TARGET[0]}.{TARGET[1]}"',
    ]


# The same bits on every machine: nothing is fused, reordered or assumed away.
ARITHMETIC = ["-ffp-contract=off"]


LIBRARY, CUDA_LIBRARY = "ssd_ops.lib.libssd_ops", "ssd_ops.lib.libssd_ops_cuda"


def _link_flags(library: str) -> list[str]:
    """Of a library without Python: what it shows, and where it finds those that it needs."""
    return [
        f"-Wl,-soname,{library.rpartition('.')[2]}.so",
        # A second copy must see itself, not the one that is loaded already, to refuse itself.
        "-Wl,-Bsymbolic-functions",
        "-Wl,--version-script=csrc/common/exports.map",
        # Its neighbour; and, for C++ programs, the torch that it is installed beside.
        *("-Wl,-rpath,$ORIGIN", "-Wl,-rpath,$ORIGIN/../../torch/lib"),
        *os.environ.get("SSD_OPS_LDFLAGS", "").split(),
    ]


def _cxx_flags() -> list[str]:
    debug = os.environ.get("DEBUG", "0") == "1"
    return [
        "-std=c++17",
        "-O0" if debug else "-O3",
        "-g" if debug else "-g0",
        "-Wall",
        "-Wextra",
        "-Wno-psabi",  # wide vectors cross no call: everything that takes one is inlined
        "-fvisibility=hidden",
        *ARITHMETIC,
        # These two only drop side effects of arithmetic (errno, traps), which would keep loops from
        # vectorising.
        "-fno-math-errno",
        "-fno-trapping-math",
        f"-ffile-prefix-map={ROOT}=ssd_ops",
        *_defines(),
        *os.environ.get("SSD_OPS_CXXFLAGS", "").split(),
    ]


def _library() -> Extension:
    from torch.utils.cpp_extension import include_paths, library_paths

    # System headers, so that their warnings stay theirs.
    flags = [*_cxx_flags(), *(f"-isystem{path}" for path in include_paths())]
    return Extension(
        LIBRARY,
        sources=_sources(".cpp"),
        depends=[*_sources(".h"), *_sources(".map")],
        include_dirs=[str(ROOT / "csrc")],
        library_dirs=library_paths(),
        # The C++ library first, or symbols of it would be taken from torch, which shows some by chance.
        libraries=["stdc++", "torch", "torch_cpu", "c10"],
        extra_compile_args=flags,
        extra_link_args=["-Wl,--as-needed", *_link_flags(LIBRARY)],
        language="c++",
    )


def _module(name: str, *libraries: str) -> Extension:
    """A Python module that loads libraries of ours, which have been built before."""
    import pybind11

    return Extension(
        f"ssd_ops.{name}",
        sources=[f"csrc/python/{name}.cpp"],
        depends=["csrc/common/module.h"],
        include_dirs=[str(ROOT / "csrc")],
        libraries=[library.rpartition(".lib")[2] for library in libraries],
        extra_compile_args=[*_cxx_flags(), f"-isystem{pybind11.get_include()}"],
        extra_link_args=[
            "-Wl,-rpath,$ORIGIN/lib",
            *os.environ.get("SSD_OPS_LDFLAGS", "").split(),
        ],
        language="c++",
    )


def _cuda_library(torch, home: Path) -> Extension:
    import torch.utils.cpp_extension as cpp_extension

    # torch looks for nvcc only where it has CUDA itself.
    cpp_extension.CUDA_HOME = str(home)
    debug = os.environ.get("DEBUG", "0") == "1"
    architectures = _architectures(torch)
    host = ["-fvisibility=hidden", *ARITHMETIC, f"-ffile-prefix-map={ROOT}=ssd_ops"]
    flags = [
        "-std=c++17",
        "-O0" if debug else "-O3",
        *(["-G", "-g"] if debug else []),
        "--fmad=false",
        "--expt-relaxed-constexpr",
        *(["-compress-mode=size"] if ";" in architectures else []),
        f"-Xcompiler={','.join(host)}",
        *_architecture_flags(architectures),
        *_defines(),
        f'-DSSD_OPS_ARCHITECTURES="{architectures}"',
        *(f"-isystem={path}" for path in cpp_extension.include_paths()),
        *os.environ.get("SSD_OPS_NVCCFLAGS", "").split(),
    ]
    return Extension(
        CUDA_LIBRARY,
        sources=_sources(".cu"),
        depends=_sources(".cuh") + _sources(".h") + _sources(".map"),
        include_dirs=[str(ROOT / "csrc")],
        library_dirs=[*cpp_extension.library_paths(), *map(str, _cudart_folders(home))],
        libraries=["stdc++", "ssd_ops", "torch_cpu", "c10"],
        extra_compile_args={"cxx": [], "nvcc": flags},
        # libtorch brings what only a CUDA torch has. The CUDA runtime is linked in, so that the library does
        # not depend on the version that torch brings.
        extra_link_args=[
            *("-Wl,--no-as-needed", "-ltorch"),
            *("-Wl,--exclude-libs,ALL", "-lcudart_static", "-ldl", "-lrt", "-lpthread"),
            *_link_flags(CUDA_LIBRARY),
        ],
        language="c++",
    )


def _extensions(torch) -> list[Extension]:
    wanted = os.environ.get("SSD_OPS_CUDA", "")
    if wanted not in ("", "0", "1"):
        sys.exit(f"ssd_ops: SSD_OPS_CUDA must be 0 or 1, got `{wanted}`")
    extensions = [_library(), _module("_C", LIBRARY)]
    if wanted == "0":
        return extensions
    home, why_not = _find_cuda(torch)
    if home is not None:
        extensions += [_cuda_library(torch, home), _module("_C_cuda", CUDA_LIBRARY, LIBRARY)]
    elif wanted == "1":
        sys.exit(f"ssd_ops: SSD_OPS_CUDA=1 asks for CUDA kernels, but {why_not}")
    else:
        print(f"ssd_ops: building without CUDA kernels: {why_not}", file=sys.stderr)
    return extensions


class Sdist(sdist):
    """With the sources to compile; without tests, of which setuptools would take some."""

    def make_distribution(self):
        self.filelist.graft("csrc")
        self.filelist.prune("tests")
        super().make_distribution()


def main() -> None:
    # Building an sdist, or asking for metadata, compiles nothing and needs no torch.
    if not {"build_ext", "bdist_wheel", "editable_wheel", "develop", "install", "build"} & set(
        sys.argv
    ):
        setup(cmdclass={"sdist": Sdist})
        return
    torch = _import_torch()
    _check_compiler()
    from torch.utils.cpp_extension import BuildExtension

    class Build(BuildExtension):
        def run(self):
            # What an earlier build of other libraries has left would go into the wheel.
            wanted = {os.path.join(self.build_lib, self._path_of(ext)) for ext in self.extensions}
            for made in Path(self.build_lib).glob("ssd_ops/**/*.so"):
                if str(made) not in wanted:
                    made.unlink()
            super().run()

        def _path_of(self, ext):
            return os.path.join(
                *ext.name.split(".")[:-1], self.get_ext_filename(ext.name.split(".")[-1])
            )

        def get_ext_filename(self, fullname):
            if fullname.rpartition(".")[2].startswith("libssd_ops"):  # with or without its package
                return f"{fullname.replace('.', os.sep)}.so"
            return super().get_ext_filename(fullname)

        def build_extension(self, ext):
            # Where the libraries are that this one is linked with.
            ext.library_dirs.insert(0, os.path.dirname(self.get_ext_fullpath(LIBRARY)))
            # One folder for all kinds of builds, so that only what has changed is compiled again. The
            # objects of box_iou.cpp and box_iou.cu are both called box_iou.o.
            common, self.build_temp = self.build_temp, str(OBJECTS / ext.name)
            if ext.name == CUDA_LIBRARY:
                # Beside a CPU-only torch, torch's ninja file does not know the headers of .cu files.
                newest = max(os.path.getmtime(ROOT / header) for header in ext.depends)
                for made in (OBJECTS / ext.name).rglob("*.o"):
                    if made.stat().st_mtime < newest:
                        made.unlink()
            super().build_extension(ext)
            self.build_temp = common

    setup(ext_modules=_extensions(torch), cmdclass={"build_ext": Build, "sdist": Sdist})


main()
