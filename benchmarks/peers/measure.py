"""Times of the ops beside every rival there is, in one process, as benchmarks/results/<name>.json.

    python benchmarks/peers/measure.py --out benchmarks/results/cpu.json
    python benchmarks/peers/measure.py --only "nms uniform" --out some.json    (cases with this in their name)

Each rival gets the same inputs and is compared with ours before it is timed. All calls of a cell, ours among
them, run in one random order. Two threads, each on a processor of its own; OpenMP's threads wait without
spinning. A sample is the mean of as many calls as take 0.1 ms; a time is the median of the samples, with
quartiles. A rival that would take longer than --limit, by its times at smaller sizes, is left out, and the
file says so.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import gc
import importlib.metadata
import json
import logging
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

# Read once, when the libraries are loaded.
THREADS = 2
WAITING = {
    "OMP_WAIT_POLICY": "passive",
    "OMP_NUM_THREADS": str(THREADS),
    "NUMBA_NUM_THREADS": str(THREADS),
    "RAYON_NUM_THREADS": str(THREADS),
    "OPENBLAS_NUM_THREADS": "1",
}
if __name__ == "__main__" and any(os.environ.get(name) != value for name, value in WAITING.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **WAITING})

import scenes  # noqa: E402, I001  first: it says where the others lie
import empty  # noqa: E402
import memory  # noqa: E402
import torch  # noqa: E402
from bench import time_limit  # noqa: E402
from stream import one_line  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402

import ssd_ops  # noqa: E402

OURS, EMPTY, COPY = "ssd_ops", "an empty op", "a copy of as many bytes"
COMPILED = "torch.compile"
BURST = 100.0  # microseconds of a sample
MOST_SAMPLES = 60
LEAST_SAMPLES = 5
SLOW_SAMPLES = 2  # of a call that takes longer than all samples should
# Seconds that a rival over the limit may take where no other is faster; it is timed once. Not with more boxes
# than that: what it would take there is a guess.
PATIENCE = 6.0
TRIED = 100_000
COMPILING = 20.0  # seconds that torch.compile may take
# Up to which number it is tried: it unrolls loops over blocks, classes and images, which takes minutes.
LARGEST_COMPILED = {
    "nms": 300,
    "batched_nms": 0,
    "multiclass_nms": 0,
    "multibox_detection": 1,
    "detect": 8,
}
PACKAGES = (
    *("torch", "torchvision", "numpy", "numba", "powerboxes", "lsnms", "onnxruntime"),
    *("opencv-python-headless", "sahi", "ensemble-boxes"),
)


class Call(NamedTuple):
    """Something to time. `answer` makes of the result of `run` what `same` compares with `expected`."""

    run: Callable
    answer: Callable
    same: Callable
    expected: object


class LeftOut(Exception):
    """Why a rival is not timed."""


def clock(run: Callable, calls: int = 1) -> float:
    """Microseconds of a call."""
    start = time.perf_counter_ns()
    for _ in range(calls):
        run()
    return (time.perf_counter_ns() - start) / 1000 / calls


def summary(samples: list[float]) -> dict:
    low, middle, high = (
        statistics.quantiles(samples, n=4, method="inclusive") if len(samples) > 1 else samples * 3
    )

    def digits(value: float) -> float:
        return float(f"{value:.4g}")

    return {"us": digits(middle), "q1": digits(low), "q3": digits(high), "samples": len(samples)}


def interleaved(
    runs: dict[str, Callable],
    seconds: float,
    draw: random.Random,
    known: dict[str, float] | None = None,
) -> dict[str, dict]:
    """The times of all: every call is warm, and each has `seconds` of samples, in one random order.

    `known`: seconds of a call, of those that have been timed before.
    """
    plan, bursts = [], {}
    for name, run in runs.items():
        once = (known or {}).get(name, 0) * 1e6
        if once < 1000:
            once = min(clock(run) for _ in range(3))
        bursts[name] = max(1, math.ceil(BURST / once))
        samples = int(seconds * 1e6 / (once * bursts[name]))
        least = LEAST_SAMPLES if once < seconds * 1e6 else SLOW_SAMPLES
        plan += [name] * max(least, min(MOST_SAMPLES, samples))
    draw.shuffle(plan)
    times: dict[str, list[float]] = {name: [] for name in runs}
    gc.collect()
    gc.disable()
    try:
        for name in plan:
            times[name].append(clock(runs[name], bursts[name]))
    finally:
        gc.enable()
    return {name: summary(samples) for name, samples in times.items()}


class Patience:
    """Says before a call how long it will take, by the times of the same rival at smaller sizes of a case."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.seen: dict[tuple, list[tuple[int, float]]] = {}

    def expected(self, key: tuple, count: int) -> float:
        """Seconds; 0 if nothing is known. Growth is a bit more than linear at least, quadratic at most."""
        before = self.seen.get(key, [])
        if not before:
            return 0.0
        (last, seconds), growth = before[-1], 1.0
        if len(before) > 1 and before[-2][0] < last:
            growth = math.log(seconds / before[-2][1]) / math.log(last / before[-2][0])
        return seconds * (count / last) ** min(max(growth, 1.2), 2.0)

    def saw(self, key: tuple, count: int, seconds: float) -> None:
        self.seen.setdefault(key, []).append((count, seconds))


def same_indices(theirs: Tensor, ours: Tensor) -> int:
    """How many indices only one of the two has. The order is not compared: some sort class by class."""
    both = torch.cat((theirs.unique(), ours))
    return int((both.unique(return_counts=True)[1] == 1).sum())


def as_is(result):
    return result


def gives_indices(cell: scenes.Cell) -> bool:
    return cell.op in {"nms", "batched_nms"}


def rivals_of(cell: scenes.Cell, shape: scenes.Shape, ours) -> dict[str, Callable[[], Call]]:
    """Makers of the calls of all rivals, by name; a maker may raise LeftOut."""
    found: dict[str, Callable[[], Call]] = {}

    def of_torch(rival, function) -> Call:
        if isinstance(function, str):
            raise LeftOut(function)
        same = same_indices if gives_indices(cell) else rival.same
        expected = ours if rival.against is None else rival.against(*shape.args)
        return Call(partial(function, *shape.args), as_is, same, expected)

    def of_compiler(rival) -> Call:
        if cell.count > LARGEST_COMPILED.get(cell.op, math.inf):
            raise LeftOut("minutes to compile")
        call = of_torch(rival, compiled(rival.function))
        start = time.perf_counter()
        try:
            with time_limit(COMPILING):
                call.run()
        except Exception as error:  # the compiler wraps that of the limit
            if time.perf_counter() - start < COMPILING:
                raise
            raise LeftOut(f"over {COMPILING:g} s to compile") from error
        return call

    def of_package(adapter) -> Call:
        if why := adapter.missing():
            raise LeftOut(why)
        run, answer = adapter.start(shape.args)
        same = same_indices if gives_indices(cell) else scenes.shapes.baselines.close
        return Call(run, answer, same, ours)

    for name, rival in shape.rivals.items():
        found[name] = partial(of_torch, rival, rival.function)
        if name == "eager":
            found[COMPILED] = partial(of_compiler, rival)
    for name, adapter in cell.adapters().items():
        found[name] = partial(of_package, adapter)
    return found


@functools.cache
def compiled(function: Callable) -> Callable:
    """torch.compile for the shapes of each cell alone, which gives it the fastest code."""
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(function, dynamic=False)


def compare(call: Call) -> tuple[float, int | bool]:
    """Seconds of a first call, and how much its result differs: a number of rows, or whether at all."""
    start = time.perf_counter()
    result = call.run()
    seconds = time.perf_counter() - start
    same = call.same(call.answer(result), call.expected)
    return seconds, same if call.same is same_indices else not same


def moved_bytes(cell: scenes.Cell, shape: scenes.Shape, result) -> int:
    """What has to be read and written once."""
    reads = shape.args if cell.reads is None else [shape.args[i] for i in cell.reads]
    leaves = [leaf for leaf in tree_leaves([reads, result]) if isinstance(leaf, Tensor)]
    return sum(leaf.numel() * leaf.element_size() for leaf in leaves)


def copying(count: int) -> Callable:
    """A copy that reads and writes so many bytes in all."""
    source = torch.ones(max(count // 2, 1), dtype=torch.uint8)
    target = torch.ones_like(source)
    return lambda: target.copy_(source)


def would_take(seconds: float) -> str:
    return f"about {float(f'{seconds:.1g}'):g} s" if seconds < 1000 else "over 1,000 s"


def time_rivals(cell, shape, result, options, patience: Patience, row: dict) -> tuple[dict, dict]:
    """Compares all rivals with ours. Returns calls to time, and seconds of each; the row gets the rest."""
    runs, known = {}, {}
    slow: list[tuple[float, str, Callable]] = []

    def start(name: str, make: Callable) -> None:
        try:
            call = make()
            first, differs = compare(call)
            if differs:
                row["differs"][name] = differs
            if name in row["left_out"]:  # it was too slow to be timed again
                row["times"][name] = summary([first * 1e6])
                del row["left_out"][name]
                return
            again = clock(call.run) / 1e6  # what was set up once does not count
            patience.saw((cell.op, cell.case, name), cell.count, again)
            runs[name], known[name] = call.run, again
        except LeftOut as why:
            row["left_out"][name] = str(why)
        except Exception as error:
            row["left_out"][name] = one_line(error)

    for name, make in rivals_of(cell, shape, result).items():
        expected = patience.expected((cell.op, cell.case, name), cell.count)
        if expected > options.limit:
            row["left_out"][name] = would_take(expected)
            slow.append((expected, name, make))
        else:
            start(name, make)
    # The first of them that runs may be the fastest rival all the same.
    for expected, name, make in sorted(slow, key=lambda item: item[0]):
        if cell.count <= TRIED and expected < min([*known.values(), PATIENCE]):
            start(name, make)
        if name in row["times"]:
            break
    return runs, known


def measure_cell(cell: scenes.Cell, options, patience: Patience, draw: random.Random) -> dict:
    shape = cell.shape()
    ours = partial(shape.ours, *shape.args)
    result = ours()
    moved = moved_bytes(cell, shape, result)
    row: dict = {"op": cell.op, "case": cell.case, "n": cell.count, "bytes": moved}
    if gives_indices(cell):
        row["kept"] = len(result)
    row |= {"times": {}, "differs": {}, "left_out": {}}
    rivals, known = time_rivals(cell, shape, result, options, patience, row)
    runs = {OURS: ours, EMPTY: empty.empty_call(shape.ours, shape.args)}
    if moved >= 2**16:
        runs[COPY] = copying(moved)
    row["times"] = interleaved(runs | rivals, options.seconds, draw, known) | row["times"]
    return row


def bandwidth(seconds: float) -> dict[str, float]:
    """GB/s of memory: a large copy, which reads and writes, and a sum, which reads."""
    source = torch.ones(2**26)  # 256 MiB
    target = torch.ones_like(source)
    size = source.numel() * source.element_size()
    runs = {"copy": lambda: target.copy_(source), "read": source.sum}
    times = interleaved(runs, seconds, random.Random(0))
    moved = {"copy": 2 * size, "read": size}
    return {name: round(moved[name] / times[name]["us"] / 1000, 2) for name in runs}


def training(rounds: int, steps: int) -> list[dict]:
    """Images a second of training: ours and the chapter's loop, each in both precisions."""
    import tempfile

    import bench_training as bench

    from ssd_ops.tinyssd.data.bananas import BananaDetection
    from ssd_ops.tinyssd.data.draw_bananas import make_bananas

    with tempfile.TemporaryDirectory() as folder, torch.enable_grad():
        make_bananas(folder, train=64, val=1)
        train_set = BananaDetection(folder, "train")
        batches = [list(range(start, start + bench.BATCH)) for start in (0, 32)] * (steps // 2)
        plan = [name for name in bench.LOOPS for _ in range(rounds)]
        random.Random(0).shuffle(plan)
        rates: dict[str, list[float]] = {name: [] for name in bench.LOOPS}
        for name in bench.LOOPS:  # what is set up once in a process
            bench.LOOPS[name](bench.fresh(), train_set, batches[:1])
        for name in plan:
            model = bench.fresh()
            seconds = clock(partial(bench.LOOPS[name], model, train_set, batches)) / 1e6
            rates[name].append(len(batches) * bench.BATCH / seconds)
    return [
        {
            "loop": name,
            "images_a_second": round(statistics.median(found), 1),
            "low": round(min(found), 1),
            "high": round(max(found), 1),
        }
        for name, found in rates.items()
    ]


def processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(": ")[2]
    return platform.processor() or "?"


def git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=scenes.ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def about(options) -> dict:
    versions = {"ssd_ops": ssd_ops.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    commit = git("rev-parse", "--short=10", "HEAD")
    changed = " with changes" if git("status", "--porcelain", "--untracked-files=no") else ""
    return {
        "processor": processor(),
        "simd": torch.backends.cpu.get_cpu_capability(),
        "system": platform.system(),
        "threads": THREADS,
        "on": sorted(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "environment": WAITING,
        "versions": versions,
        "commit": commit + changed if commit else None,
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "seconds": options.seconds,
        "limit": options.limit,
    }


def write(path: Path, result: dict) -> None:
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(result, indent=1) + "\n")
    aside.replace(path)


def measure(options) -> dict:
    start = time.perf_counter()
    # All sizes of a case: the small ones say how long the large ones would take.
    cells = [cell for cell in scenes.all_cells() if options.only in f"{cell.op} {cell.case}"]
    result = {"about": about(options), "bandwidth": bandwidth(options.seconds), "cells": []}
    patience, draw = Patience(options.limit), random.Random(0)
    for cell in cells:
        row = measure_cell(cell, options, patience, draw)
        result["cells"].append(row)
        ranked = sorted(row["times"].items(), key=lambda item: item[1]["us"])
        first = ", ".join(f"{name} {times['us']:g}" for name, times in ranked[:4])
        print(f"{time.perf_counter() - start:5.0f} s  {cell.name}: {first}", flush=True)
    if not options.only:
        result["memory"] = memory.measure(THREADS)
        result["training"] = training(options.rounds, steps=2)
    result["about"]["took"] = round(time.perf_counter() - start)
    result["about"]["load_after"] = round(os.getloadavg()[0], 2)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="where the JSON is written")
    parser.add_argument("--only", default="", help="ops and cases with this in their name")
    parser.add_argument("--seconds", type=float, default=0.1, help="of samples, for each call")
    parser.add_argument("--limit", type=float, default=1.0, help="seconds that a call may take")
    parser.add_argument("--rounds", type=int, default=3, help="of each training loop")
    options = parser.parse_args()
    logging.getLogger("torch").setLevel(logging.ERROR)
    if os.getloadavg()[0] > 1:
        print(f"This machine is busy (load {os.getloadavg()[0]:.1f}): times will be too long.")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    torch.set_num_threads(THREADS)
    with torch.no_grad():
        result = measure(options)
    if options.out:
        write(options.out, result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
