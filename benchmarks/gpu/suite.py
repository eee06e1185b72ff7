"""The steps of gpu_suite.sh, each within its time; what fails or hangs stops no other step.

A step runs in a process group of its own, which is gone when the step is over. Results are written after each
step and each result of a case, so that little is lost when the suite itself is stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUDGET = 530.0  # seconds in all
TRAINING = "training.json"  # what pytest-benchmark writes of the trainer and of `predict`
PREDICTED = HERE / "predicted.json"
LOG_LIMIT = 1_500_000  # characters of a step; of more, the end
SLACK = 3.0  # seconds that a case gets beyond its limit, in which it says where it hangs
PYTHON = sys.executable

sys.path.insert(0, str(HERE.parent))
from table import table as table_of_benchmarks  # noqa: E402


@dataclass(frozen=True)
class Step:
    """One command. `{seconds}` in it becomes the time that it has.

    Attributes:
        limit: seconds that it has in any case. Those of all steps fit into the budget.
        most: seconds that it may take if the steps before it have left some.
        by_cases: the command is started again after a case that hung or ended it (stream.py).
    """

    name: str
    limit: float
    command: list[str]
    most: float = 0.0
    by_cases: bool = False


def steps(out: Path, device: str = "cuda") -> list[Step]:
    """All steps; on another device than "cuda" those of a rehearsal, on tiny shapes."""
    on = ["--device", device] + ["--tiny"] * (device != "cuda")
    checks, bench = [PYTHON, str(HERE / "checks.py")], [PYTHON, str(HERE / "bench.py"), *on]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--tool"]
    small = [*checks, "calls", "--draws", "1", "--replays", "0", *on]
    pytest = [PYTHON, "-m", "pytest", "-q", "-rfEs", "--tb=short", "-p", "no:cacheprovider"]
    # Enough steps that recording the graph, once in a run, does not count.
    training = ["--steps", "160", f"--benchmark-json={out / TRAINING}"]
    trained = ["benchmarks/bench_training.py", "benchmarks/bench_predict.py"]
    agreement = [*checks, "agreement", "--seconds", "{seconds}", *on]
    probes = str(out / "probes")
    return [
        Step("build", 130, [PYTHON, "setup.py", "build_ext", "--inplace"]),
        Step("one call of every op", 20, [*checks, "calls", *on], by_cases=True),
        Step("memcheck", 30, [*sanitizer, "memcheck", *small], most=60),
        Step("racecheck", 30, [*sanitizer, "racecheck", *small], most=60),
        Step("tests", 60, [*pytest, "tests/ops", "-k", "cuda", *_in_parallel()], most=150),
        Step("large shapes", 40, [*checks, "large", *on], most=90, by_cases=True),
        Step("benchmarks", 90, bench, most=200, by_cases=True),
        Step("agreement", 25, agreement, most=90),
        Step("step tests", 20, [*pytest, "tests/tinyssd/test_step.py", "-k", "gpu"], most=40),
        Step("training", 40, [*pytest, "-s", *trained, *training], most=90),
        Step("torch.compile", 15, [*bench, "--compiled"], most=120, by_cases=True),
        Step("probes build", 20, ["nvcc", *_probe_flags(), "-o", probes, str(HERE / "probes.cu")]),
        Step("probes", 5, [probes], most=20),
    ]


def _in_parallel() -> list[str]:
    """Options of pytest for what is installed: several processes, and a limit for a test that hangs."""
    if not importlib.util.find_spec("xdist"):
        return []
    options = ["-n", str(min(8, os.cpu_count() or 1))]
    if importlib.util.find_spec("pytest_timeout"):
        # By a thread that ends the process, since no signal reaches one that waits for the GPU; a new
        # process goes on with the next test.
        options += ["--timeout", "30", "--timeout-method", "thread"]
    return options


def _probe_flags() -> list[str]:
    return [
        "-std=c++17",
        "-O3",
        "--fmad=false",
        "--expt-relaxed-constexpr",
        "-arch=native",
        f"-I{ROOT}/csrc",
    ]


def machine() -> dict[str, str]:
    """What the results were measured on; a program that is not there, or hangs, leaves its fact out."""

    def ask(*command: str) -> str:
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    code = (
        "import json, torch, platform; p = torch.cuda.get_device_properties(0);"
        "print(json.dumps({'gpu': p.name, 'memory_gib': round(p.total_memory / 2**30),"
        "'torch': torch.__version__, 'cuda': torch.version.cuda, 'python': platform.python_version()}))"
    )
    query = "--query-gpu=driver_version,clocks.sm,clocks.max.sm"
    return {
        **json.loads(ask(PYTHON, "-c", code) or '{"gpu": "none that torch sees"}'),
        "driver, clocks": ask("nvidia-smi", query, "--format=csv,noheader") or "?",
        "commit": ask("git", "describe", "--always", "--dirty", "--abbrev=10") or "?",
        "date": time.strftime("%Y-%m-%d"),
    }


class Log:
    """Takes the lines of a step as they come: up to a limit, then the last ones at its end."""

    def __init__(self, file):
        self.file, self.written, self.rest = file, 0, deque[str](maxlen=400)

    def begin(self, title: str) -> None:
        self.written = 0
        print(f"\n===== {title}", file=self.file, flush=True)

    def line(self, text: str) -> None:
        text = text[:4000]
        self.written += len(text) + 1
        if self.written < LOG_LIMIT:
            print(text, file=self.file, flush=True)
        else:
            self.rest.append(text)

    def end(self) -> None:
        if self.rest:
            print("[...]", *self.rest, sep="\n", file=self.file, flush=True)
        self.rest.clear()


def kill_group(process: subprocess.Popen) -> None:
    """Ends the process and all that it has started in its group, whatever they make of other signals."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)  # one that the driver of the GPU holds ends later


def run_process(command: list[str], end: float, take: Callable[[str], float | None]) -> int | None:
    """Runs a command until it ends, or until `end`; its exit status, or None if it was stopped.

    `take` gets each line of its output and returns when the command has to be stopped if no other line
    comes before: a time of time.monotonic(), or None for `end`.
    """
    paths = os.pathsep.join(str(ROOT / folder) for folder in (".", "tests", "benchmarks"))
    env = {**os.environ, "SSD_OPS_CUDA": "1", "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    if command[0] == "compute-sanitizer":
        env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    )
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        with contextlib.suppress(ValueError, OSError):
            for line in process.stdout:
                lines.put(line.rstrip("\n"))
        lines.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    stop: float | None = None
    try:
        while True:
            now = time.monotonic()
            at = end if stop is None else min(end, stop)
            if now >= at:
                return None
            try:
                line = lines.get(timeout=min(at - now, 0.1))
            except queue.Empty:
                # Its children may hold the pipe open.
                if process.poll() is not None:
                    break
                continue
            if line is None:
                break
            stop = take(line)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=max(0.0, end - time.monotonic()))
        return process.poll()
    finally:
        kill_group(process)
        reader.join(timeout=2)
        while not lines.empty():
            line = lines.get()
            if line is not None:
                take(line)


def merge(row: dict, news: dict) -> None:
    """Adds to a row what is new; dictionaries within it are joined."""
    for key, value in news.items():
        if isinstance(value, dict) and isinstance(row.get(key), dict):
            merge(row[key], value)
        else:
            row[key] = value


class Rows:
    """The cases of a step, from the lines that it prints."""

    def __init__(self, log: Log, changed: Callable[[], None]):
        self.log, self.changed = log, changed
        self.cases: dict[str, dict] = {}
        self.open = ""  # the case that has begun and not ended
        self.stop: float | None = None
        self.last, self.failed, self.result = "", [], None

    def take(self, line: str) -> float | None:
        self.log.line(line)
        row = None
        if line.startswith("{"):
            with contextlib.suppress(ValueError):
                row = json.loads(line)
        if row is None:
            self.last = line.strip()[:300] or self.last
            if line.startswith(("FAILED ", "ERROR ")) and len(self.failed) < 100:
                self.failed.append(line[:300])
        elif "begin" in row:
            self.open = row["begin"]
            self.stop = time.monotonic() + row["limit"] + SLACK
            self.cases.setdefault(self.open, {})
        elif "end" in row:
            self.open, self.stop = "", None
        elif "case" in row:
            merge(self.cases.setdefault(row.pop("case"), {}), row)
            self.changed()
        else:
            self.result = row
        return self.stop

    def bad(self) -> list[str]:
        """The cases that went wrong, with what is known of it."""
        return [
            f"{name}: {row.get('error') or row['different']}"
            for name, row in self.cases.items()
            if row.get("error") or row.get("different")
        ]


def run_step(step: Step, seconds: float, log: Log, result: dict, changed: Callable) -> None:
    """Runs a step for at most so many seconds; `result` is filled while it goes on."""
    start = time.monotonic()
    end = start + seconds
    rows = Rows(log, changed)
    result["cases"] = rows.cases
    # What prints until its deadline needs some seconds to begin and to end.
    command = [part.replace("{seconds}", f"{max(1, seconds - 12):.0f}") for part in step.command]
    log.begin(f"{step.name}: {' '.join(command)}")
    outcome = "stopped from outside"
    try:
        again = command
        while True:
            rows.open, rows.stop = "", None
            code = run_process(again, end, rows.take)
            died = (
                f"stopped after {min(seconds, time.monotonic() - start):.1f} s"
                if code is None
                else f"killed by signal {-code}"
                if code < 0
                else f"failed with {code}"
            )
            outcome = "passed" if code == 0 else died
            if rows.open:
                over = "the time of the step was over" if time.monotonic() >= end else "hangs"
                text = over if code is None else f"the process {died}"
                rows.cases[rows.open].setdefault("error", text)
                log.line(f"[{rows.open}: {text}]")
            if not rows.open or not step.by_cases:
                break
            if time.monotonic() > end - 5:
                outcome = died
                break
            again = [*command, "--after", rows.open]
    except OSError as error:
        outcome = f"{step.command[0]} does not start: {error.strerror}"
    finally:
        bad = rows.bad()
        if bad:
            of_cases = f"{len(bad)} of {len(rows.cases)} cases failed"
            stopped = outcome.startswith("stopped")
            outcome = f"{outcome}, {of_cases}" if stopped else of_cases
        log.end()
        result["outcome"] = outcome
        result["seconds"] = round(time.monotonic() - start, 1)
        result["last"] = rows.last
        result["failed"] = rows.failed + bad
        if rows.result is not None:
            result["result"] = rows.result


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def times(value) -> str:
    """`12.3 (11.9 to 14)` of a measure; a text, as why there is none, stays what it is."""
    if not isinstance(value, dict):
        return "" if value is None else number(value) if isinstance(value, float) else str(value)
    return f"{number(value['median'])} ({number(value['p10'])} to {number(value['p90'])})"


def rival_text(name: str, rival: dict, row: dict) -> str:
    parts = [rival["error"][:70]] if "error" in rival else []
    for measure in ("eager", "graph"):
        theirs, ours = rival.get(measure), row.get(measure)
        if isinstance(theirs, dict):
            times_ours = (
                f" ({theirs['median'] / ours['median']:.3g}x)" if isinstance(ours, dict) else ""
            )
            parts.append(f"{number(theirs['median'])}{times_ours} {measure}")
    others = " [gives others]" if rival.get("same") is False else ""
    return f"{name}{others}: {', '.join(parts)}"


def table_of_times(cases: dict[str, dict]) -> list[str]:
    predicted = json.loads(PREDICTED.read_text())["cases"]
    speeds = [row["bytes a microsecond"] for row in cases.values() if "bytes a microsecond" in row]
    lines = [
        "",
        "Microseconds: median (10th to 90th percentile). Cold: after other data have taken the L2 cache.",
        "A rival's times ours stand in brackets. Predicted, to reach: in a graph, by predicted.json.",
        "",
        "| case | predicted | to reach | graph | graph, cold | eager | eager, cold "
        "| kernels | floor | rivals |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, row in cases.items():
        aims = predicted.get(name, {})
        kernels = f"{number(row['kernels'])} in {row['launches']:g}" if "kernels" in row else ""
        cells = [
            name,
            *(f"{aims[key]:,}" if key in aims else "" for key in ("predicted", "to reach")),
            *(times(row.get(key)) for key in ("graph", "graph, cold", "eager", "eager, cold")),
            kernels,
            number(row["bytes"] / speeds[0]) if speeds and "bytes" in row else "",
            "; ".join(rival_text(key, value, row) for key, value in row.get("rivals", {}).items()),
        ]
        if "error" in row:
            cells[-1] += f" **{row['error'][:120]}**"
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return lines


def table(results: dict, out: Path) -> str:
    facts = results["machine"]
    lines = [f"# ssd_ops on {facts['gpu']}", ""]
    lines += [", ".join(f"{key} {value}" for key, value in facts.items()), ""]
    lines += ["| step | outcome | seconds | |", "|---|---|---:|---|"]
    for name, step in results["steps"].items():
        text = step.get("last", "")[:160].replace("|", "/")
        lines.append(f"| {name} | {step['outcome']} | {step.get('seconds', '')} | {text} |")
    failed = [
        f"- {name}: {text}" for name, step in results["steps"].items() for text in step["failed"]
    ]
    if failed:
        lines += ["", "What failed:", "", *failed]
    agreement = results["steps"].get("agreement", {}).get("cases", {}).get("agreement", {})
    if "batches" in agreement:
        different = agreement["different"] or "none"
        lines += [
            "",
            f"CPU and CUDA: {agreement['batches']:,} batches of every op; different: {different}.",
        ]
    measured: dict[str, dict] = {}
    for step in ("benchmarks", "torch.compile"):
        merge(
            measured,
            json.loads(json.dumps(results["steps"].get(step, {}).get("cases", {}))),
        )
    if measured:
        lines += table_of_times(measured)
    probes = results["steps"].get("probes", {}).get("result")
    if probes:
        lines += ["", "| probe | |", "|---|---:|", *(f"| {k} | {v} |" for k, v in probes.items())]
    with contextlib.suppress(OSError, ValueError, KeyError):
        run = json.loads((out / TRAINING).read_text())
        lines += ["", "The chapter's training and `predict`; in brackets: times ours.", ""]
        lines.append(table_of_benchmarks(run))
    return "\n".join(lines) + "\n"


def write(results: dict, out: Path) -> None:
    """results.json and table.md, each whole at any time."""
    for file, text in (
        ("results.json", json.dumps(results, indent=1)),
        ("table.md", table(results, out)),
    ):
        aside = out / f".{file}"
        aside.write_text(text)
        aside.replace(out / file)


def _stop(number: int, frame) -> None:
    raise SystemExit(128 + number)


def main(out: Path, todo: list[Step], budget: float = BUDGET) -> int:
    """Runs the steps; 0 if all have passed."""
    end = time.monotonic() + budget
    signal.signal(signal.SIGTERM, _stop)
    out.mkdir(parents=True, exist_ok=True)
    results: dict = {"machine": machine(), "steps": {}}
    last = time.monotonic()

    def changed() -> None:
        nonlocal last
        if time.monotonic() > last + 1:
            write(results, out)
            last = time.monotonic()

    with open(out / "log.txt", "w") as file:
        log = Log(file)
        for place, step in enumerate(todo):
            left = end - time.monotonic()
            later = sum(other.limit for other in todo[place + 1 :])
            seconds = min(left, max(step.limit, min(step.most, left - later)))
            result: dict = {"outcome": "runs", "failed": []}
            results["steps"][step.name] = result
            if seconds < min(2.0, step.limit):
                result |= {"outcome": "no time left", "seconds": 0}
                continue
            print(f"{step.name} (at most {seconds:.0f} s) ...", end=" ", flush=True)
            try:
                run_step(step, seconds, log, result, changed)
            finally:
                print(f"{result['outcome']} ({result.get('seconds')} s)", flush=True)
                write(results, out)
    write(results, out)
    (out / "probes").unlink(missing_ok=True)
    print((out / "table.md").read_text())
    return int(any(step["outcome"] != "passed" for step in results["steps"].values()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder for results.json, table.md and log.txt")
    parser.add_argument(
        "--device", default="cuda", help="cpu or emulated: a rehearsal on tiny shapes"
    )
    options = parser.parse_args()
    folder = options.out.resolve()
    sys.exit(main(folder, steps(folder, options.device)))
