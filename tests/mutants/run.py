"""Plants faults in the code and runs the tests that should notice.

`python tests/mutants/run.py [python] [csrc]`, or `make mutants`; both by default. A sample of the faults is
drawn by a seed. Each is planted in a forked child of a process that has collected the tests (server.py): in
Python by replacing functions (faults_python.py), in C++ by a switch in libraries that hold all faults
(fault.h, faults_csrc.py). It is caught if a test fails, or the process dies or hangs. Of the tests that reach
its line the quick ones run first, and no more than `--seconds` of them.

Writes benchmarks/results/mutants.json: the figures, and each fault that no test has noticed. The faults of
equal.txt change nothing that a caller could see, and do not count.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
if __name__ == "__main__":
    sys.path[0] = str(HERE.parent)

import pytest  # noqa: E402
from mutants import faults_csrc, faults_python  # noqa: E402
from mutants.fault import EQUAL, Fault, bits, edited, is_equal, read_equal  # noqa: E402
from mutants.server import Run, Server, Watch, by_file, spread  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "mutants.json"
COPIED = ("ssd_ops", "tests", "docs", "csrc", "benchmarks", ".github", ".ci")
# Tests of what is not the code of the package, or that start a process for each case.
OPTIONS = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark"]
ARGUMENTS = {
    "python": [
        *("tests/ops", "tests/tinyssd", "tests/integrations", "tests/test_docs.py"),
        *("tests/test_house.py", "tests/test_readme.py", "tests/test_tutorial.py"),
        *("-k", "not emulated"),
    ],
    "csrc": ["tests/ops", "tests/test_fuzz.py"],
}


Verdict = Callable[[int], str | None]  # who notices the fault of a number


def say(text: str) -> None:
    os.write(OUT, f"{text}\n".encode())


OUT = os.dup(1)  # pytest takes the standard output for itself


def make_copy(folder: Path) -> Path:
    """A copy of the repository, in which faults are planted."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    for name in COPIED:
        if (ROOT / name).exists():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, copy)
    return copy


def timed_runs(server: Server, key: str, watch: Watch, folder: Path, jobs: int) -> dict[str, Run]:
    """What each test does where nothing is wrong. Kept until the code, or the file of the test, changes."""
    files: dict[str, list[str]] = {}
    for name in server.items:
        files.setdefault(name.partition("::")[0], []).append(name)

    def of_file(file: str) -> dict[str, Run]:
        names = files[file]
        digest = hashlib.sha256(f"{key} {sorted(names)}".encode() + Path(file).read_bytes())
        kept = folder / f"runs-{digest.hexdigest()[:16]}.json"
        if not kept.exists():
            say(f"timing {len(names)} tests of {file}")
            found = server.time_tests(names, watch, limit=3600.0)
            if found is None:
                raise RuntimeError(f"the tests of {file} end the process")
            kept.write_text(
                json.dumps({n: [run.seconds, hex(run.reached)] for n, run in found.items()})
            )
        found = json.loads(kept.read_text())
        if failed := sorted(set(names) - set(found)):
            say(f"{len(failed)} tests fail without a fault, such as {failed[0]}")
        return {name: Run(seconds, int(reached, 16)) for name, (seconds, reached) in found.items()}

    with ThreadPoolExecutor(jobs) as pool:
        return {name: run for runs in pool.map(of_file, files) for name, run in runs.items()}


def chosen(reaching: dict[str, Run], seconds: float, most: int = 2000) -> tuple[list[str], float]:
    """The tests that a fault is shown to, in order, and how long they take."""
    names, total = [], 0.0
    for name in spread(reaching)[:most]:
        if total + reaching[name].seconds <= seconds:
            names.append(name)
            total += reaching[name].seconds
    return by_file(names), total


def sample(
    faults: list[Fault | None], options: argparse.Namespace, equal: dict
) -> tuple[list[int], int]:
    """Numbers (from 1) of the faults to plant, and how many of those drawn change nothing."""
    numbers = [n for n, f in enumerate(faults, 1) if f is not None and options.only in f.file]
    random.Random(options.seed).shuffle(numbers)
    drawn = numbers[: options.count or None]
    kept = [n for n in drawn if not is_equal(faults[n - 1], equal)]
    return kept, len(drawn) - len(kept)


def judge(
    faults: list[Fault | None], options: argparse.Namespace, verdict: Verdict, jobs: int = 1
) -> dict:
    """Plants the faults of the sample, `jobs` at a time, each in a child of its own, and counts."""
    numbers, unseen = sample(faults, options, read_equal(EQUAL.read_text()))
    total, caught, survivors = Counter(), Counter(), []
    deadline = time.monotonic() + 60 * options.minutes

    def judged(number: int) -> None:
        if time.monotonic() > deadline:
            return
        fault, by = faults[number - 1], verdict(number)
        total[fault.file] += 1
        caught[fault.file] += by is not None
        where = f"{fault.file}:{fault.line}: {fault.change}"
        say(f"{caught.total()}/{total.total()} {where}: {by or 'NOT NOTICED'}")
        if by is None:
            row = {"file": fault.file, "line": fault.line, "code": fault.code}
            survivors.append({**row, "change": fault.change})

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(judged, numbers))
    survivors.sort(key=lambda row: (row["file"], row["line"]))
    return {
        "seed": options.seed,
        "planted": total.total(),
        "caught": caught.total(),
        "equal": unseen,
        "possible": sum(fault is not None for fault in faults),
        "files": {file: [caught[file], total[file]] for file in sorted(total)},
        "not noticed": survivors,
    }


def run_python(options: argparse.Namespace, folder: Path, copy: Path) -> dict:
    faults = faults_python.find(copy)
    lines = faults_python.Lines(copy, faults)
    result = {}

    def drive(server: Server) -> None:
        on_import = lines.stop()
        functions = faults_python.Functions(copy / "ssd_ops")
        key = f"{digest_of([copy / 'ssd_ops'])} {[(f.file, f.lines) for f in faults]}"
        runs = timed_runs(server, key, lines, folder, options.jobs)

        def verdict(number: int) -> str | None:
            path = copy / faults[number - 1].file
            text = path.read_text()
            changed = edited(text, list(faults[number - 1].edits))
            try:
                path.write_text(changed)  # for the processes that tests start
                reaching = {name: run for name, run in runs.items() if run.reaches(number)}
                names, total = chosen(reaching, options.seconds)
                plant = functools.partial(functions.replace, str(path), changed)
                by = server.noticed_by(names, plant, limit=30 + 4 * total) if names else None
                return in_new_process(number) if by is None and on_import >> number & 1 else by
            finally:
                path.write_text(text)

        def in_new_process(number: int) -> str | None:
            """For code that runs when the package is imported: the tests that reach its file.

            Those of the code that follows come first: of the function whose default it is, say.
            """
            file = faults[number - 1].file
            near = [n for n, f in enumerate(faults, 1) if f.file == file and not on_import >> n & 1]
            following = next((n for n in near if n > number), 0)
            of_file, next_to_it = bits(near), bits([following])
            reaching = {name: run for name, run in runs.items() if run.reached & next_to_it}
            names, total = chosen(reaching, options.seconds / 2, most=100)
            reaching = {n: r for n, r in runs.items() if r.reached & of_file or not near}
            others, more = chosen(reaching, options.seconds / 2, most=100)
            names, total = list(dict.fromkeys([*names, *others])), total + more
            command = [sys.executable, "-m", "pytest", "-x", *OPTIONS, *names]
            try:
                done = subprocess.run(command, capture_output=True, timeout=120 + 4 * total)
            except subprocess.TimeoutExpired:
                return "the process"
            return "a new process" if done.returncode else None

        result.update(judge(faults, options, verdict))

    import torch  # noqa: F401  (not watched)

    lines.start()  # what runs when the package is imported, too
    pytest.main([*OPTIONS, *ARGUMENTS["python"]], plugins=[Server(drive)])
    return result


def run_csrc(options: argparse.Namespace, folder: Path, copy: Path) -> dict:
    every = faults_csrc.find(copy)
    made, emulated, built = faults_csrc.Build(copy, folder).make(every, options.jobs, say)
    faults = [fault if n in built else None for n, fault in enumerate(every, 1)]
    cpu = copy / "ssd_ops" / "lib" / made.name
    shutil.copy(made, cpu)
    os.environ["SSD_OPS_EMULATED"] = str(emulated)
    result = {}

    def drive(server: Server) -> None:
        flags = faults_csrc.Flags([cpu, emulated], built)
        sources = [copy / "csrc", copy / "tests" / "emulation"]
        key = digest_of([*sources, HERE / "fault.h", HERE / "faults_csrc.py"])
        runs = timed_runs(server, key, flags, folder, options.jobs)

        def verdict(number: int) -> str | None:
            reaching = {name: run for name, run in runs.items() if run.reaches(number)}
            names, total = chosen(reaching, options.seconds)
            plant = functools.partial(flags.switch_on, number)
            return server.noticed_by(names, plant, limit=30 + 4 * total)

        result.update(judge(faults, options, verdict, options.jobs))

    pytest.main([*OPTIONS, *ARGUMENTS["csrc"]], plugins=[Server(drive)])
    return result


def digest_of(folders: list[Path]) -> str:
    state = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.*")) if folder.is_dir() else [folder]:
            if path.is_file() and path.suffix not in (".so", ".pyc", ".txt"):
                state.update(str(path.name).encode() + path.read_bytes())
    return state.hexdigest()


def about() -> dict:
    import torch

    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return {
        "machine": names[0] if names else platform.machine(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": commit,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "kinds", nargs="*", metavar="KIND", help="python, csrc; both, if none is named"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--count", type=int, default=300, help="faults of a kind; 0: all")
    parser.add_argument("--minutes", type=float, default=60, help="after which a kind ends")
    parser.add_argument(
        "--seconds", type=float, default=30, help="of tests that a fault is shown to"
    )
    parser.add_argument(
        "--only", default="", metavar="TEXT", help="files that have this in their path"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    kinds = options.kinds or ["python", "csrc"]
    folder = ROOT / "build" / "mutants"
    if len(kinds) > 1:  # a process each: both import the package, from a copy of their own
        command = [sys.executable, __file__, *sys.argv[1:]]
        return max(subprocess.run([*command, kind]).returncode for kind in kinds)
    (kind,) = kinds
    folder /= kind
    folder.mkdir(parents=True, exist_ok=True)
    copy = make_copy(folder)
    os.chdir(copy)
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path[:1] = [str(copy), str(copy / "tests")]
    result = {"python": run_python, "csrc": run_csrc}[kind](options, folder, copy)
    if not result:
        return 1
    say(f"{kind}: {result['caught']} of {result['planted']} faults caught")
    for row in result["not noticed"]:
        say(f"  {row['file']}:{row['line']}: {row['change']}\n      {row['code']}")
    whole = json.loads(options.out.read_text()) if options.out.exists() else {}
    command = " ".join(["python", "tests/mutants/run.py", *sys.argv[1:]])
    whole[kind] = {"command": command, **about(), **result}
    options.out.write_text(json.dumps(whole, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
