"""The steps of gpu_suite.sh. If a step fails or exceeds its time limit, the next step still runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUDGET = 530  # seconds in all
TRAINING = "training.json"  # results of pytest-benchmark for training and `predict`
PYTHON = sys.executable

sys.path.insert(0, str(HERE.parent))
from table import table as table_of_benchmarks  # noqa: E402


def steps(out: Path) -> list[tuple[str, int, list[str]]]:
    """Name, time limit in seconds and command of each step. The last line of JSON it prints is its result."""
    checks, small = str(HERE / "checks.py"), ["--batches", "2", "--replays", "0"]
    sanitizer = ["compute-sanitizer", "--error-exitcode", "9", "--tool"]
    probes = out / "probes"
    # Enough steps that recording the CUDA graph once does not matter.
    training = ["--steps", "160", f"--benchmark-json={out / TRAINING}"]
    trained = ["benchmarks/bench_training.py", "benchmarks/bench_predict.py"]
    return [
        ("build", 170, [PYTHON, "setup.py", "build_ext", "--inplace"]),
        ("tests", 150, [PYTHON, "-m", "pytest", "-q", "-rs", "tests/ops", "-k", "cuda", "-x"]),
        ("agreement and graphs", 120, [PYTHON, checks, "--batches", "10000", "--replays", "1000"]),
        ("benchmarks", 150, [PYTHON, str(HERE / "bench.py")]),
        (
            "step tests",
            60,
            [PYTHON, "-m", "pytest", "-q", "-rs", "tests/tinyssd/test_step.py", "-k", "gpu"],
        ),
        ("training", 120, [PYTHON, "-m", "pytest", "-q", "-rs", "-s", *trained, *training]),
        ("memcheck", 40, [*sanitizer, "memcheck", PYTHON, checks, *small]),
        ("racecheck", 40, [*sanitizer, "racecheck", PYTHON, checks, *small]),
        ("synccheck", 40, [*sanitizer, "synccheck", PYTHON, checks, *small]),
        ("initcheck", 40, [*sanitizer, "initcheck", PYTHON, checks, *small]),
        ("probes build", 40, ["nvcc", *_probe_flags(), "-o", str(probes), str(HERE / "probes.cu")]),
        ("probes", 20, [str(probes)]),
    ]


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
    code = (
        "import json, torch, platform; p = torch.cuda.get_device_properties(0);"
        "print(json.dumps({'gpu': p.name, 'memory_gib': round(p.total_memory / 2**30),"
        "'torch': torch.__version__, 'cuda': torch.version.cuda, 'python': platform.python_version()}))"
    )
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True)
    facts = json.loads(done.stdout) if done.returncode == 0 else {"gpu": "none that torch sees"}
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=10"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    driver = [
        "nvidia-smi",
        "--query-gpu=driver_version,clocks.sm,clocks.max.sm",
        "--format=csv,noheader",
    ]
    if shutil.which("nvidia-smi"):
        facts["driver, clocks"] = subprocess.run(
            driver, capture_output=True, text=True
        ).stdout.strip()
    return {**facts, "commit": git.stdout.strip() or "?", "date": time.strftime("%Y-%m-%d")}


def run_step(name: str, limit: float, command: list[str], log) -> dict:
    paths = os.pathsep.join(str(ROOT / folder) for folder in (".", "tests", "benchmarks"))
    env = {**os.environ, "SSD_OPS_CUDA": "1", "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    if command[0] == "compute-sanitizer":
        env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    print(f"{name} ...", end=" ", flush=True)
    print(f"\n===== {name}: {' '.join(command)}", file=log, flush=True)
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, text=True, timeout=limit, capture_output=True
        )
        output, code = done.stdout + done.stderr, done.returncode
        outcome = "passed" if code == 0 else f"failed with {code}"
        lines = done.stdout.strip().splitlines()
    except subprocess.TimeoutExpired as error:
        parts = [part for part in (error.stdout, error.stderr) if part]
        output = "".join(p.decode(errors="replace") if isinstance(p, bytes) else p for p in parts)
        outcome, lines = f"stopped after {limit:.0f} s", output.strip().splitlines()
    except FileNotFoundError:
        output, outcome, lines = "", f"{command[0]} is not installed", []
    print(output[-200_000:], file=log, flush=True)
    seconds = round(time.monotonic() - start, 1)
    print(f"{outcome} ({seconds} s)", flush=True)
    result = {"outcome": outcome, "seconds": seconds, "last": lines[-1][:300] if lines else ""}
    for line in reversed(lines):
        if line.startswith(("{", "[")):
            try:
                result["result"] = json.loads(line)
            except ValueError:
                continue
            break
    return result


def table(results: dict, out: Path) -> str:
    facts = results["machine"]
    lines = [
        f"# ssd_ops on {facts['gpu']}",
        "",
        ", ".join(f"{k} {v}" for k, v in facts.items()),
        "",
    ]
    lines += ["| step | outcome | seconds | |", "|---|---|---:|---|"]
    for name, step in results["steps"].items():
        text = "" if "result" in step and name == "benchmarks" else step["last"]
        lines.append(
            f"| {name} | {step['outcome']} | {step['seconds']} | {text[:160].replace('|', '/')} |"
        )
    bench = results["steps"].get("benchmarks", {}).get("result") or []
    if bench:
        columns = [key for key in bench[0] if key != "rivals"]
        lines += ["", "Times in microseconds. In brackets: how many times our eager time.", ""]
        lines.append("| " + " | ".join([*columns, "rivals, eager"]) + " |")
        lines.append("|---|" + "---:|" * (len(columns) - 1) + "---|")
        for row in bench:
            rivals = "; ".join(
                f"{name} {value:,.0f} ({value / row['eager']:.3g}x)"
                if isinstance(value, float)
                else f"{name}: {value}"
                for name, value in row["rivals"].items()
            )
            cells = [
                f"{row[c]:,.1f}" if isinstance(row[c], float) else str(row[c]) for c in columns
            ]
            lines.append("| " + " | ".join([*cells, rivals]) + " |")
    if (out / TRAINING).is_file():
        run = json.loads((out / TRAINING).read_text())
        lines += [
            "",
            "The chapter's training and `predict`. In brackets: how many times our time.",
            "",
        ]
        lines.append(table_of_benchmarks(run))
    return "\n".join(lines) + "\n"


def main(out: Path) -> int:
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + BUDGET
    results: dict = {"machine": machine(), "steps": {}}
    with open(out / "log.txt", "w") as log:
        for name, limit, command in steps(out):
            left = end - time.monotonic()
            if left < 5:
                results["steps"][name] = {"outcome": "no time left", "seconds": 0, "last": ""}
            else:
                results["steps"][name] = run_step(name, min(limit, left), command, log)
            for file, text in (
                ("results.json", json.dumps(results, indent=1)),
                ("table.md", table(results, out)),
            ):
                aside = out / f".{file}"
                aside.write_text(text)
                aside.replace(out / file)
    (out / "probes").unlink(missing_ok=True)
    print((out / "table.md").read_text())
    return int(any(step["outcome"] != "passed" for step in results["steps"].values()))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
