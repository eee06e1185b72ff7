"""Runs the op tests on CPU kernels built with AddressSanitizer and UndefinedBehaviorSanitizer.

`python tests/sanitize.py [pytest arguments]`, or `make sanitize`. Works on a copy of the sources, so
that the library in this checkout stays as it is. Any report ends the run with an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECKS = "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all"
OP_TESTS = [
    "tests/test_bad_input.py",
    "tests/test_box_iou.py",
    "tests/test_encode_decode.py",
    "tests/test_hard_negative_mining.py",
    "tests/test_multibox_detection.py",
    "tests/test_multibox_priors.py",
    "tests/test_multibox_target.py",
    "tests/test_nms.py",
]


def library(name: str) -> str:
    """The path of one of the compiler's runtime libraries."""
    command = [os.environ.get("CXX", "g++"), f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("csrc", "ssd_ops", "tests"):
            shutil.copytree(
                ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.so", "__pycache__")
            )
        for name in ("setup.py", "pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy)
        env = {
            **os.environ,
            "SSD_OPS_CXXFLAGS": f"{CHECKS} -O1 -g -fno-omit-frame-pointer",
            "SSD_OPS_LDFLAGS": CHECKS,
            # Found before an installed copy, editable or not.
            "PYTHONPATH": str(copy),
            "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaves memory to the system at exit
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=copy, env=env, check=True, stdout=subprocess.DEVNULL)
        # With libasan alone in front, the first C++ exception would end the process.
        env["LD_PRELOAD"] = f"{library('libasan.so')} {library('libstdc++.so')}"
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
        tests = arguments or ["-q", *OP_TESTS]
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *tests], cwd=copy, env=env
        ).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
