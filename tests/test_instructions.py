"""How many instructions the CPU kernels take on fixed inputs: times are noise, these counts are not.

callgrind counts what runs inside our library, on one thread, with vectors of 256 bits, the widest that it
knows. `python tests/test_instructions.py` writes instructions.json anew, for the compiler of this build.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import cases  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

import ssd_ops  # noqa: E402
from ssd_ops import _ext  # noqa: E402

TABLE = ROOT / "tests" / "instructions.json"
TOLERANCE = 1.1
HEADER = Path("/usr/include/valgrind/callgrind.h")
# Requests that callgrind reads from the instructions themselves.
CLIENT = f"""
#include "{HEADER}"
extern "C" void start() {{ CALLGRIND_START_INSTRUMENTATION; CALLGRIND_ZERO_STATS; }}
extern "C" void stop(const char* name) {{
  CALLGRIND_DUMP_STATS_AT(name);
  CALLGRIND_STOP_INSTRUMENTATION;
}}
"""


def pixels(count: int, kind: str) -> torch.Tensor:
    """Boxes [count, 4]: spread over an image, or a pile of which few are kept, or a chain."""
    if kind == "chain":
        return 1000 * cases.boxes(count, kind="chain")
    center = torch.rand(count, 2) * (torch.tensor([1333.0, 800.0]) if kind == "uniform" else 2)
    half = (
        16 + 240 * torch.rand(count, 2) ** 3 if kind == "uniform" else 100 + torch.rand(count, 2)
    ) / 2
    return torch.cat((center - half, center + half), dim=1)


def ranks(images: int, count: int) -> torch.Tensor:
    """Scores [images, count], no two equal in an image."""
    return (torch.stack([torch.randperm(count) for _ in range(images)]) + 1) / (count + 1)


def all_cases() -> dict[str, Callable[[], tuple[Callable, tuple]]]:
    """By name: a function that makes an op and its arguments. Only `rand` and `randperm` draw: their bits are
    the same on every machine."""
    found: dict[str, Callable[[], tuple[Callable, tuple]]] = {}

    def add(name: str, op: Callable, make: Callable[[], tuple]) -> None:
        found[name] = lambda: (op, make())

    def scored(count: int, kind: str) -> tuple:
        return pixels(count, kind), ranks(1, count)[0]

    for kind in ("uniform", "pile", "chain"):
        for count in (10, 300, 10_000):
            add(
                f"nms {kind} {count:,}",
                ssd_ops.nms,
                lambda n=count, k=kind: (*scored(n, k), 0.5),
            )
    add(
        "batched_nms uniform 10,000",
        ssd_ops.batched_nms,
        lambda: (*scored(10_000, "uniform"), torch.arange(10_000) % 80, 0.5),
    )
    add(
        "nms_padded uniform B4 1,000",
        ssd_ops.nms_padded,
        lambda: (pixels(4000, "uniform").view(4, 1000, 4), ranks(4, 1000), 0.5),
    )
    add(
        "nms_groups uniform 3,000",
        ssd_ops.nms_groups,
        lambda: (*scored(3000, "uniform"), 0.5),
    )
    add("box_iou 5,444 x 8", ssd_ops.box_iou, lambda: (cases.boxes(5444), cases.boxes(8)))
    for op in (ssd_ops.encode_boxes, ssd_ops.decode_boxes):
        add(f"{op.__name__} 5,444", op, lambda: (cases.boxes(5444), cases.boxes(5444)))
    add("multibox_priors", ssd_ops.multibox_priors, tiny_ssd)
    add(
        "grid_anchors",
        ssd_ops.grid_anchors,
        lambda: ([torch.zeros(32, 32)], [[(0.2, 0.2), (0.1, 0.3)]]),
    )
    add(
        "assign_anchors B4 G8 5,444",
        ssd_ops.assign_anchors,
        lambda: (cases.boxes(5444), cases.boxes(4, 8)),
    )
    add(
        "multibox_target B4 G8 5,444",
        ssd_ops.multibox_target,
        lambda: (cases.boxes(5444), torch.cat((torch.zeros(4, 8, 1), cases.boxes(4, 8)), dim=2)),
    )
    add(
        "hard_negative_mining B4 5,444",
        ssd_ops.hard_negative_mining,
        lambda: (ranks(4, 5444), (torch.rand(4, 5444) < 0.02).long()),
    )
    # Few scores are high, as a trained network gives them.
    add(
        "detect B2 C20 5,444",
        ssd_ops.detect,
        lambda: (
            torch.rand(2, 5444, 21) ** 4 * 12,
            torch.rand(2, 5444, 4) - 0.5,
            cases.boxes(5444),
        ),
    )
    add(
        "multiclass_nms B2 C20 1,000",
        ssd_ops.multiclass_nms,
        lambda: (cases.boxes(2, 1000), torch.rand(2, 1000, 20) ** 8),
    )
    add(
        "multibox_detection B2 5,444",
        ssd_ops.multibox_detection,
        lambda: (torch.rand(2, 2, 5444), torch.rand(2, 4 * 5444) - 0.5, cases.boxes(5444)),
    )
    return found


def tiny_ssd() -> tuple:
    maps, sizes, ratios = cases.TINY_SSD
    return [torch.zeros(n, n) for n in maps], sizes, ratios


def run_all(library: str) -> None:
    """Runs every case once to warm up, and once between the requests of the client library."""
    client = ctypes.CDLL(library)
    for name, make in all_cases().items():
        torch.manual_seed(0)
        op, args = make()
        op(*args)
        client.start()
        op(*args)
        client.stop(name.encode())


def inside(text: str, folder: Path) -> int:
    """Instructions that a callgrind file counts in the shared libraries of a folder.

    A line of costs belongs to the object named last, but that after `calls=` is the cost of what is called.
    """
    names: dict[str, str] = {}
    total, ours, called = 0, False, False
    for line in text.splitlines():
        if found := re.fullmatch(r"c?ob=(\(\d+\))(?: (.*))?", line):
            names.setdefault(found[1], found[2] or "")
            if line.startswith("ob="):
                ours = Path(names[found[1]]).parent == folder
        elif line.startswith("calls="):
            called = True
        elif re.match(r"[+\-*\d]", line):
            total += int(line.split()[1]) if ours and not called else 0
            called = False
    return total


def why_not() -> str:
    """Why nothing can be counted here, or an empty string."""
    if shutil.which("valgrind") is None:
        return "valgrind is not installed"
    if not HEADER.exists():
        return f"{HEADER} is not installed"
    if shutil.which("g++") is None:
        return "g++ is not installed"
    if " avx2 " not in Path("/proc/cpuinfo").read_text():
        return "the processor has no AVX2"
    return ""


def count() -> dict[str, int]:
    """Instructions by case."""
    with tempfile.TemporaryDirectory() as folder:
        code, library, out = (Path(folder, name) for name in ("client.cpp", "client.so", "counts"))
        code.write_text(CLIENT)
        subprocess.run(["g++", "-shared", "-fPIC", str(code), "-o", str(library)], check=True)
        command = ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no"]
        command += [f"--callgrind-out-file={out}", sys.executable, __file__, str(library)]
        path = os.pathsep.join(sys.path)
        env = {**os.environ, "OMP_NUM_THREADS": "1", "SSD_OPS_SIMD": "256", "PYTHONPATH": path}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        counts = {}
        for dump in Path(folder).glob("counts.*"):
            text = dump.read_text()
            (name,) = re.findall(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
            counts[name] = inside(text, Path(_ext.library_path()).parent)
    return {name: counts[name] for name in all_cases()}


def compiler() -> str:
    """Name and major version: another one makes other instructions."""
    return str(_ext.build_info()["compiler"]).split(".")[0]


def more(counts: dict[str, int], allowed: dict[str, int]) -> list[str]:
    """The cases that take more instructions than they may."""
    return [
        f"{name}: {found:,} instructions, {found / allowed[name]:.2f} times those of the table"
        for name, found in counts.items()
        if found > TOLERANCE * allowed[name]
    ]


def test_a_file_of_callgrind_is_read():
    text = """ob=(1) /a/ours.so
fn=(1) f
16 100
+1 20
cob=(2) /b/libc.so
cfn=(2) memcpy
calls=3 0
* 900
ob=(2)
fn=(2)
0 900
ob=(1)
fn=(3) g
* 3
"""
    assert inside(text, Path("/a")) == 123
    assert inside(text, Path("/b")) == 900


def test_more_instructions_are_found():
    assert more({"nms": 110, "detect": 100}, {"nms": 100, "detect": 200}) == []
    (line,) = more({"nms": 111, "detect": 100}, {"nms": 100, "detect": 200})
    assert line == "nms: 111 instructions, 1.11 times those of the table"


def test_every_op_is_counted():
    counted = {name.split()[0] for name in all_cases()}
    assert counted == {name.removeprefix("ssd_ops::") for name in _ext.op_names()}
    for table in json.loads(TABLE.read_text()).values():
        assert list(table) == list(all_cases()), "write the table anew"


@pytest.mark.slow
def test_no_kernel_takes_more_instructions():
    if why_not():
        pytest.skip(why_not())
    allowed = json.loads(TABLE.read_text()).get(compiler())
    if allowed is None:
        pytest.skip(f"tests/instructions.json has no counts of {compiler()}")
    assert more(count(), allowed) == []


def main() -> None:
    if len(sys.argv) == 2:
        run_all(sys.argv[1])
        return
    if why_not():
        sys.exit(why_not())
    tables = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    tables[compiler()] = count()
    TABLE.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
