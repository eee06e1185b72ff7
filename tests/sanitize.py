"""Runs the op tests on kernels built with sanitizers; any report ends the run with an error.

`python tests/sanitize.py [asan] [fuzz] [tsan] [arguments]`, or `make sanitize`; all three by default:

asan  AddressSanitizer and UndefinedBehaviorSanitizer on the CPU kernels and on the emulated CUDA kernels
fuzz  the same, and calls with arguments at random in place of the tests: tests/fuzz.py, with its arguments
tsan  ThreadSanitizer on the emulated CUDA kernels: only their barriers order two CUDA threads

Works on a copy of the sources, so that the library in this checkout stays as it is.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import backends
import figures

ROOT = Path(__file__).resolve().parent.parent
PYTEST = ["-m", "pytest", "-p", "no:cacheprovider"]
DEFAULTS = {
    "asan": [*PYTEST, "-q", "tests/ops"],
    "fuzz": ["tests/fuzz.py", "--calls", "1000"],
    "tsan": [*PYTEST, "-q", "tests/ops"],
}


def environment(kind: str) -> dict[str, str]:
    """What a process needs that loads a library built with the sanitizers of `kind`."""

    def runtime(name: str) -> str:
        command = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    if kind == "plain":
        return dict(os.environ)
    if kind == "tsan":
        # torch's own threads are not instrumented, so one is all that may run.
        return {
            **os.environ,
            "LD_PRELOAD": runtime("libtsan.so"),
            "TSAN_OPTIONS": "exitcode=66 halt_on_error=1",
            "OMP_NUM_THREADS": "1",
        }
    return {
        **os.environ,
        # With libasan alone in front, the first C++ exception would end the process.
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libstdc++.so')}",
        # Python itself leaves memory to the system at exit; and no result is larger than 4 GB.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1:max_allocation_size_mb=4096",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def _copy_with_sanitized_cpu_kernels(copy: Path, checks: str) -> None:
    for name in ("csrc", "ssd_ops", "tests"):
        shutil.copytree(
            ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    env = {
        **os.environ,
        "SSD_OPS_CUDA": "0",
        "SSD_OPS_CXXFLAGS": f"{checks} -O1 -g -fno-omit-frame-pointer",
        "SSD_OPS_LDFLAGS": checks,
    }
    build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(build, cwd=copy, env=env, check=True, stdout=subprocess.DEVNULL)


def run(kind: str, arguments: list[str]) -> int:
    """Runs Python with these arguments where the kernels have the sanitizers of `kind`."""
    checks = "asan" if kind == "fuzz" else kind
    builder = backends.builder()
    env = {**environment(checks), "SSD_OPS_RECORD": str(figures.RECORD)}
    if "--cpu" not in arguments:
        env["SSD_OPS_EMULATED"] = str(builder.build(checks))
    command = [sys.executable, *arguments]
    if kind == "tsan":
        return subprocess.run([*command, "-k", "emulated"], cwd=ROOT, env=env).returncode
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        _copy_with_sanitized_cpu_kernels(copy, builder.CHECKS[checks])
        env["PYTHONPATH"] = str(copy)  # found before an installed copy, editable or not
        where = "import ssd_ops._ext as e; print(e.library_path())"
        loaded = subprocess.run(
            [sys.executable, "-c", where], cwd=copy, env=env, capture_output=True, text=True
        )
        if not loaded.stdout.startswith(str(copy)):
            print(
                f"sanitize: the sanitized library did not load: {loaded.stdout}{loaded.stderr}",
                file=sys.stderr,
            )
            return 1
        return subprocess.run(command, cwd=copy, env=env).returncode


def main(arguments: list[str]) -> int:
    kinds = [argument for argument in arguments if argument in DEFAULTS] or list(DEFAULTS)
    given = [argument for argument in arguments if argument not in kinds]
    codes = []
    for kind in kinds:
        own = DEFAULTS[kind][: 1 if kind == "fuzz" else len(PYTEST)] + given
        codes.append(run(kind, own if given else DEFAULTS[kind]))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
