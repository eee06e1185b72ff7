"""What nvcc makes of the kernels, for compute capability 9.0.

No arithmetic is fused or approximate; registers, spills and shared memory are within tests/machine_code.txt.

`python tests/test_machine_code.py` writes that table anew. It compiles what has changed, which takes minutes.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "machine_code.txt"
ARCHITECTURE = "90"
# The words of an instruction that break rule 1 of a kernel: the bits of the CPU.
INEXACT = re.compile(r"\b(?:fma|mad)\.\w*\.?f(?:16|32|64)\w*|\b[\w.]+\.(?:approx|ftz|full)\b[\w.]*")
# Kernels that may hold such an instruction all the same: a part of the name, the instruction, and why.
ALLOWED: dict[tuple[str, str], str] = {}

# setup.py as it is, but that `setup` tells instead of building.
FLAGS = """
import json, runpy, setuptools, sys
made = {}
setuptools.setup = lambda **arguments: made.update(arguments)
sys.argv = ["setup.py", "build_ext"]
runpy.run_path("setup.py")
(cuda,) = [one for one in made["ext_modules"] if one.name == "ssd_ops.lib.libssd_ops_cuda"]
print(json.dumps([*cuda.extra_compile_args["nvcc"], *(f"-I{path}" for path in cuda.include_dirs)]))
"""


class Usage(NamedTuple):
    registers: int
    shared: int  # bytes that are declared; a launch may ask for more
    spills: int  # bytes that are stored and loaded because there are not enough registers


def tools() -> tuple[str, str] | None:
    """nvcc and ptxas."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return None
    dry_run = subprocess.run(
        [nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True
    )
    found = re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, flags=re.MULTILINE)
    ptxas = shutil.which("ptxas", path=f"{found[1].strip()}/bin" if found else None)
    return (nvcc, ptxas) if ptxas else None


def run(command: list[str], **more) -> subprocess.CompletedProcess:
    done = subprocess.run(command, capture_output=True, text=True, **more)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"
    return done


def compiled() -> list[tuple[str, str]]:
    """Of each .cu file the PTX and what ptxas says, from nvcc with the flags of setup.py."""
    nvcc, ptxas = tools()
    env = {**os.environ, "SSD_OPS_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}
    asked = subprocess.run(
        [sys.executable, "-c", FLAGS], cwd=ROOT, env=env, capture_output=True, text=True
    )
    if "asks for CUDA kernels, but" in asked.stderr:
        pytest.skip(asked.stderr.strip().splitlines()[-1])
    assert asked.returncode == 0, asked.stderr
    flags = json.loads(asked.stdout)
    flags = [flag.replace("code=sm_", "code=compute_") for flag in flags]
    folder = ROOT / "build" / "machine-code"
    folder.mkdir(parents=True, exist_ok=True)
    csrc = ROOT / "csrc"
    headers = "".join(path.read_text() for path in sorted(csrc.rglob("*.*h")))
    version = run([nvcc, "--version"]).stdout

    def compile_one(source: Path) -> tuple[str, str]:
        texts = (source.read_text(), headers, version, *flags)
        key = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]
        ptx, said = folder / f"{source.stem}-{key}.ptx", folder / f"{source.stem}-{key}.txt"
        if not said.exists():
            run([nvcc, *flags, "-ptx", str(source), "-o", str(ptx)])
            assembled = run([ptxas, "-v", f"-arch=sm_{ARCHITECTURE}", str(ptx), "-o", os.devnull])
            aside = said.with_suffix(f".{os.getpid()}")
            aside.write_text(assembled.stderr + assembled.stdout)
            aside.rename(said)
        return ptx.read_text(), said.read_text()

    sources = [path for path in sorted(csrc.rglob("*.cu")) if path.name != "module.cu"]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, sources))


def readable(names: list[str]) -> dict[str, str]:
    """Of mangled names of kernels: with template arguments, without those of the call."""
    lines = run(["c++filt"], input="\n".join(names)).stdout.splitlines()
    short = [line.removeprefix("void ").replace("ssd_ops::", "") for line in lines]
    short = [re.sub(r"\((?:[^()]|\([^()]*\))*\)$", "", line) for line in short]
    return dict(zip(names, short, strict=True))


def usages(said: list[str]) -> dict[str, Usage]:
    """By readable name; of kernels in several files, which are the same, one."""
    found = {}
    for text in said:
        for name, body in re.findall(
            r"Compiling entry function '(\w+)'(.*?)(?=Compiling entry function|\Z)", text, re.DOTALL
        ):
            shared = re.search(r"(\d+) bytes smem", body)
            spills = re.findall(r"(\d+) bytes spill", body)
            found[name] = Usage(
                int(re.search(r"Used (\d+) registers", body)[1]),
                int(shared[1]) if shared else 0,
                sum(map(int, spills)),
            )
    names = readable(list(found))
    # CUB's own kernels are not ours to judge.
    return {names[name]: use for name, use in found.items() if not names[name].startswith("cub::")}


def table() -> tuple[str, dict[str, Usage]]:
    """The version of nvcc, and what each kernel uses."""
    first, *lines = TABLE.read_text().splitlines()
    rows = [line.split(maxsplit=3) for line in lines if not line.startswith("#")]
    return first.removeprefix("# nvcc "), {row[3]: Usage(*map(int, row[:3])) for row in rows}


def nvcc_version() -> str:
    return re.search(r"release ([\d.]+)", run([tools()[0], "--version"]).stdout)[1]


WHY_NOT = "nvcc and its ptxas are not installed" if tools() is None else ""
WHY_NOT = WHY_NOT or ("" if shutil.which("c++filt") else "c++filt (binutils) is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-"),
]


@pytest.fixture(scope="module")
def machine_code():
    return compiled()


def test_no_arithmetic_is_fused_or_approximate(machine_code):
    wrong = {}
    for ptx, _ in machine_code:
        kernels = re.split(r"\.(?:entry|func)\s", ptx)[1:]
        names = readable([re.search(r"(\w+)\(", kernel)[1] for kernel in kernels])
        for kernel, name in zip(kernels, names.values(), strict=True):
            found = {match[0] for match in INEXACT.finditer(re.sub(r"//.*", "", kernel))}
            allowed = {what for (part, what) in ALLOWED if part in name}
            if found - allowed:
                wrong[name] = sorted(found - allowed)
    assert not wrong, f"they would give other bits than the CPU; ALLOWED names exceptions: {wrong}"


def test_registers_spills_and_shared_memory_stay_within_the_table(machine_code):
    found = usages([said for _, said in machine_code])
    version, known = table()
    if nvcc_version() != version:
        pytest.skip(f"the table is of nvcc {version}, this is {nvcc_version()}")
    how = f"if it has to be so, `python tests/{Path(__file__).name}` writes {TABLE.name} anew"
    new = {name: found[name] for name in found.keys() - known.keys()}
    assert not new, f"kernels that are not in the table yet: {new}; {how}"
    gone = known.keys() - found.keys()
    assert not gone, f"kernels of the table that are no more: {gone}; {how}"
    more = {
        name: f"{usage}, were {known[name]}"
        for name, usage in found.items()
        if any(now > before for now, before in zip(usage, known[name], strict=True))
    }
    assert not more, f"kernels that use more than they did: {more}; {how}"


def main() -> None:
    rows = sorted(usages([said for _, said in compiled()]).items())
    lines = [f"{use.registers:9} {use.shared:6} {use.spills:6} {name}" for name, use in rows]
    head = [
        f"# nvcc {nvcc_version()}",
        "# registers, bytes of shared memory, bytes of spills, kernel",
    ]
    TABLE.write_text("\n".join([*head, *lines, ""]))


if __name__ == "__main__":
    main()
