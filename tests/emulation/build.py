"""Builds the CUDA kernels for the CPU: csrc/**/*.cu and the emulation, by g++, into one library.

`build(variant, csrc)` returns the library. What has not changed is not compiled again. The variants:

plain       what the tests run
asan, tsan  with sanitizers (tests/sanitize.py)
counted     counts steps (tests/test_work.py), with the thresholds of a GPU: the others lower some, so that
            small sets meet every kernel. Its ops are in the namespace ssd_ops_counted.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CHECKS = {
    "plain": "",
    "asan": "-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all",
    "tsan": "-fsanitize=thread",
    "counted": "-fsanitize-coverage=trace-pc -Dssd_ops_emulated=ssd_ops_counted",
}


def build(variant: str = "plain", csrc: Path = ROOT / "csrc") -> Path:
    """The library of the emulated kernels of `csrc`, without or with a sanitizer.

    A library with a sanitizer loads only into a process that has the sanitizer's runtime in front
    (LD_PRELOAD); tests/sanitize.py starts such processes.
    """
    folder = ROOT / "build" / f"emulation-{variant}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one process builds, and those that want the same wait
        return _build(variant, csrc, folder)


def _build(variant: str, csrc: Path, folder: Path) -> Path:
    from torch.utils.cpp_extension import include_paths, library_paths

    headers = _digest(path for top in (csrc, HERE) for path in top.rglob("*.*h"))
    copy = folder / f"csrc-{_digest([], str(csrc))}"
    for path in csrc.rglob("*.*"):
        made, text = (
            copy / path.relative_to(csrc),
            with_shared_memory_of_a_block(path.read_text(), path),
        )
        if variant == "counted":
            text = text.replace("#ifdef SSD_OPS_EMULATION\nconstexpr", "#if 0\nconstexpr")
        if not made.exists() or made.read_text() != text:
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(text)
    compiler = os.environ.get("CXX", "g++")
    checks = CHECKS[variant].split()
    if "-fsanitize" in CHECKS[variant]:
        checks.append("-Wno-maybe-uninitialized")  # GCC warns without cause between its own checks
    flags = [
        *("-std=c++20", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-fno-omit-frame-pointer"),
        *("-ffp-contract=off", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-psabi"),
        "-DSSD_OPS_EMULATION",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        f"-I{HERE}",
        f"-I{copy}",
        *(f"-isystem{path}" for path in include_paths()),
    ]

    def compile_one(source: Path) -> Path:
        # The fibers tell the sanitizer of every switch themselves; instrumented, they would be reported.
        own = ["-DEMULATION_" + variant.upper()] if source.parent == HERE else checks
        command = [compiler, *flags, *own, "-x", "c++", "-c", str(source)]
        key = _digest([source], headers, " ".join(command))
        made = folder / f"{source.stem}-{key}.o"
        if not made.exists():
            aside = made.with_suffix(f".{os.getpid()}")
            _run([*command, "-o", str(aside)])
            aside.rename(made)
        return made

    sources = [
        copy / path.relative_to(csrc)
        for path in sorted(csrc.rglob("*.cu"))
        if path.name != "module.cu"
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, [*sources, HERE / "fibers.cpp"]))
    library = folder / f"emulated-{_digest(objects)}.so"
    if not library.exists():
        aside = library.with_suffix(f".{os.getpid()}")
        libraries = [f"-L{path}" for path in library_paths()]
        libraries += ["-Wl,--as-needed", "-ltorch", "-ltorch_cpu", "-lc10"]
        _run([compiler, "-shared", *checks, *map(str, objects), *libraries, "-o", str(aside)])
        aside.rename(library)
    return library


def with_shared_memory_of_a_block(text: str, source: Path) -> str:
    """The text of a file with `__shared__ T name[N];` as a reference to memory of the running block."""

    def declared(match: re.Match) -> str:
        parts, depth = [""], 0
        for c in match[1]:
            depth += (c in "([{<") - (c in ")]}>")
            if c == "," and depth == 0:
                parts.append("")
            else:
                parts[-1] += c
        first = re.fullmatch(r"(.+?)\s*\b\w+\s*(\[.*\])?", parts[0])
        names = [re.fullmatch(r".*?\b(\w+)\s*(\[.*\])?", part) for part in parts]
        if depth or not first or not all(names):
            raise RuntimeError(f"{source}: the emulation cannot read `{match[0].strip()}`")
        variables = [(name[1], first[1] + (name[2] or "")) for name in names]
        return " ".join(f"auto& {n} = ::emulation::shared<{t}>([] {{}});" for n, t in variables)

    text = re.sub(r"^ *__shared__ ([^;]+);", declared, text, flags=re.MULTILINE)
    return f'#line 1 "{source}"\n{text}'


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or "warning" in done.stderr:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def _digest(paths, *texts: str) -> str:
    state = hashlib.sha256("".join(texts).encode())
    for path in sorted(paths):
        state.update(str(path).encode() + path.read_bytes())
    return state.hexdigest()[:16]


if __name__ == "__main__":
    print(build(*sys.argv[1:]))
