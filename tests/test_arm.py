"""The CPU kernels give the same bits on ARM: compiled for it, and run by an emulator, on calls at random.

arm/host.cpp stands in for torch. The calls are those of fuzz.py, right and wrong, with odd numbers; what
returns here, on this processor and under torch, has to return there.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cases
import fuzz
import numpy as np
import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
HOST = ROOT / "tests" / "arm" / "host.cpp"
COMPILER = "aarch64-linux-gnu-g++"
RUNNER = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
WHY_NOT = "".join(
    f"{name} is not installed; " for name in (COMPILER, RUNNER[0]) if not shutil.which(name)
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-"),
]
NUMBERS = {  # of torch's ScalarType
    torch.uint8: 0, torch.int32: 3, torch.int64: 4, torch.float16: 5, torch.float32: 6,
    torch.float64: 7, torch.bool: 11, torch.bfloat16: 15,
}  # fmt: skip
DTYPES = {number: dtype for dtype, number in NUMBERS.items()}


def arithmetic() -> list[str]:
    """The flags of setup.py that the bits hang on."""
    (flags,) = re.findall(r"^ARITHMETIC = \[(.*)\]$", (ROOT / "setup.py").read_text(), re.MULTILINE)
    return re.findall(r'"([^"]+)"', flags)


def build(flags: list[str]) -> Path:
    """The program of arm/host.cpp and the CPU kernels, made with these flags for the arithmetic."""
    from torch.utils.cpp_extension import include_paths

    folder = ROOT / "build" / "arm"
    folder.mkdir(parents=True, exist_ok=True)
    rooms = [path for path in (ROOT / "csrc").iterdir() if path.name not in ("common", "python")]
    sources = [HOST, *sorted(path for room in rooms for path in room.glob("*.cpp"))]
    command = [COMPILER, "-std=c++17", "-O3", "-fvisibility=hidden", "-fno-math-errno", *flags]
    command += [
        "-fno-trapping-math",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        '-DSSD_OPS_TARGET="2.11"',
    ]
    command += [f"-I{ROOT / 'csrc'}", *(f"-isystem{path}" for path in include_paths())]
    state = hashlib.sha256(" ".join(command).encode())
    for path in [*sources, *sorted((ROOT / "csrc").rglob("*.h"))]:
        state.update(path.read_bytes())
    program = folder / f"host-{state.hexdigest()[:16]}"
    if program.exists():
        return program

    def compile_one(source: Path) -> str:
        made = f"{program}-{source.stem}.o"
        subprocess.run([*command, "-c", str(source), "-o", made], check=True)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, sources))
    subprocess.run([COMPILER, *objects, "-o", f"{program}.part"], check=True)
    os.replace(f"{program}.part", program)
    for path in objects:
        os.unlink(path)
    return program


def of_tensor(tensor: Tensor) -> bytes:
    plain = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
    head = struct.pack(f"<cii{plain.ndim}q", b"T", NUMBERS[plain.dtype], plain.ndim, *plain.shape)
    if not plain.numel():
        return head
    return head + plain.reshape(-1).view(torch.uint8).numpy().tobytes()


def of_value(value, kind: str) -> bytes:
    """A value as arm/host.cpp reads it, by its type in the schema."""
    if kind.startswith("Optional["):
        return b"N" if value is None else b"O" + of_value(value, kind[len("Optional[") : -1])
    if kind.startswith("List["):
        items = b"".join(of_value(item, kind[len("List[") : -1]) for item in value)
        return b"L" + struct.pack("<Q", len(value)) + items
    if kind == "Tensor":
        return of_tensor(value)
    if kind == "bool":
        return struct.pack("<c?", b"B", value)
    return struct.pack("<cd" if kind == "float" else "<cq", b"I", value)


def call_as_bytes(name: str, args: list) -> bytes:
    """A call, or an error where an argument does not fit the schema, which is torch's to say."""
    schema = getattr(torch.ops.ssd_ops, name).default._schema
    parts = [struct.pack("<I", len(name)), name.encode()]
    parts.append(struct.pack("<II", len(args), len(schema.returns)))
    for argument, value in zip(schema.arguments, args, strict=True):
        parts.append(of_value(value, str(argument.type)))
    return b"".join(parts)


def read_results(content: bytes, counts: list[int]) -> list[str | tuple[Tensor, ...]]:
    """What each call returned, `counts` tensors, or its error."""
    at, results = 0, []

    def take(form: str) -> tuple:
        nonlocal at
        values = struct.unpack_from(form, content, at)
        at += struct.calcsize(form)
        return values

    for count in counts:
        (length,) = take("<I")
        error = take(f"<{length}s")[0].decode()
        tensors = []
        for _ in range(0 if error else count):
            number, dim = take("<ii")
            shape, dtype = take(f"<{dim}q"), DTYPES[number]
            size = int(np.prod(shape, dtype=np.int64)) * torch.empty(0, dtype=dtype).element_size()
            raw = torch.frombuffer(
                bytearray(content[at : at + size] or b"\0" * 8), dtype=torch.uint8
            )
            tensors.append(raw[:size].view(dtype).reshape(shape))
            at += size
        results.append(error or tuple(tensors))
    assert at == len(content)
    return results


def answers(program: Path, calls: list[bytes], counts: list[int], folder: Path) -> list:
    given, got = folder / "calls", folder / "results"
    given.write_bytes(struct.pack("<I", len(calls)) + b"".join(calls))
    subprocess.run([*RUNNER, str(program), str(given), str(got)], check=True)
    return read_results(got.read_bytes(), counts)


def random_calls(count: int) -> list[tuple[str, int, bytes, str | tuple[Tensor, ...]]]:
    """Calls of every op that fit their schemas: op, seed, the bytes, and what torch gives."""
    found = []
    for name in fuzz.OPS:
        for seed in range(count):
            args = fuzz.arguments(name, seed)
            result = fuzz.outcome(getattr(torch.ops.ssd_ops, name), args)
            # What torch refuses itself, and results too large for any memory.
            if isinstance(result, str) and not result.startswith(f"{name}: "):
                continue
            try:
                found.append((name, seed, call_as_bytes(name, args), result))
            except (KeyError, TypeError, AttributeError, struct.error):
                continue  # an argument of another type, which torch converts
    return found


def differing(flags: list[str], count: int, folder: Path) -> list[str]:
    """Calls that do not give the same there, of so many of each op."""
    calls = random_calls(count)
    counts = [len(getattr(torch.ops.ssd_ops, name).default._schema.returns) for name, *_ in calls]
    found = answers(build(flags), [call for _, _, call, _ in calls], counts, folder)
    assert sum(isinstance(got, tuple) for got in found) > len(calls) / 3
    wrong = []
    for (name, seed, _, expected), got in zip(calls, found, strict=True):
        if isinstance(expected, str) or isinstance(got, str):
            alike = isinstance(got, str) and expected == got.splitlines()[0]
        else:
            alike = all(map(fuzz.same, expected, got))
        if not alike:
            wrong.append(f"{name}, seed {seed}: {fuzz.told(expected)} here, {fuzz.told(got)} there")
    return wrong


def test_the_bits_are_the_same(tmp_path):
    assert differing(arithmetic(), max(60, len(cases.rounds(400))), tmp_path) == []


def test_other_arithmetic_is_seen(tmp_path):
    """On ARM a compiler fuses products and sums, unless it is told not to."""
    wrong = differing(["-ffp-contract=fast"], 60, tmp_path)
    assert {line.split(",")[0] for line in wrong} >= {
        "box_iou",
        "decode_boxes",
        "multibox_detection",
    }
