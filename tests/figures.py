"""The figures of docs/reliability.md: what long runs have done. `make long` writes them, then the page.

`python tests/figures.py` writes the table of the page from benchmarks/results/reliability.json.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
# tests/sanitize.py runs a copy of the tests, and tells it where the record is.
RECORD = Path(
    os.environ.get("SSD_OPS_RECORD", ROOT / "benchmarks" / "results" / "reliability.json")
)
PAGE = ROOT / "docs" / "reliability.md"
# By check: what a column of the table says, and which figures it shows.
COLUMNS = {
    "examples": ("examples equal to the reference", "{examples:,}"),
    "sanitized": ("calls at random under sanitizers", "{calls:,}"),
    "set": ("sets of boxes, CPU = emulated", "{calls:,}"),
    "threshold": ("sets at the threshold, CPU = emulated", "{calls:,}"),
    "memory": ("growth of memory in so many calls", "{kB} kB in {calls:,}"),
}


def note(check: str, of: str, **figures: float) -> None:
    """Puts what a check has done, of an op or of all, into the record; many processes may do so at once."""
    lock = os.open(RECORD.parent, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        done = record.setdefault(check, {"made": {}, "done": {}})
        done["made"] = made()
        done["done"][of] = figures
        done["done"] = dict(sorted(done["done"].items()))
        write(RECORD, dict(sorted(record.items())))
    finally:
        os.close(lock)


def made() -> dict[str, str]:
    """On which machine, with which versions, by which command."""
    with open("/proc/cpuinfo") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    commit = ["git", "-C", str(RECORD.parent), "rev-parse", "--short", "HEAD"]
    return {
        "processor": f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": subprocess.run(commit, capture_output=True, text=True).stdout.strip(),
        "command": " ".join(
            [Path(sys.argv[0]).name.replace("__main__.py", "pytest"), *sys.argv[1:]]
        ),
    }


def write(path: Path, record: dict) -> None:
    """The file is whole, or the one before."""
    aside = path.with_suffix(".part")
    aside.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(aside, path)


def filled(text: str, script: str, table: str) -> str:
    """A page with the table of a script, between the marks that name it, written anew."""
    marks = re.compile(rf"(<!-- {re.escape(script)} -->\n).*?(<!-- end -->)", re.DOTALL)
    return marks.sub(lambda found: f"{found[1]}\n{table}\n\n{found[2]}", text)


def page(text: str, record: dict) -> str:
    """The page with its figures written anew."""
    return filled(text, "tests/figures.py", block(record))


def block(record: dict) -> str:
    """The table of the ops, what is not of one op, and where it was made."""
    ops = sorted({op for check in COLUMNS for op in record.get(check, {"done": {}})["done"]})
    head = ["op", *(title for title, _ in COLUMNS.values())]
    rows = [head, ["---", *["---:"] * len(COLUMNS)]]
    rows += [[f"`{op}`", *(_cell(record, check, op) for check in COLUMNS)] for op in ops]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    decided = [f["decided"] for f in record["examples"]["done"].values() if "decided" in f]
    low, high = (round(100 * share) for share in (min(decided), max(decided)))
    lines += [
        "",
        f"- Where an op chooses, a box drops another or a tie decides in {low} to {high} % of the examples.",
    ]
    for width, done in record["repeats"]["done"].items():
        lines.append(
            f"- Vectors of {width} bits, {done['sizes']} sizes, 1 to {done['threads']} threads, "
            f"{done['repeats']} times each: the bits of 512."
        )
    for done in record["forks"]["done"].values():
        lines.append(
            f"- {done['epochs']} epochs of {done['workers']} forked workers that call ops."
        )
    made = sorted(
        {tuple(check["made"][name] for name in ("processor", "torch")) for check in record.values()}
    )
    lines += ["", "; ".join(f"{processor}, torch {version}" for processor, version in made) + "."]
    return "\n".join(lines)


def _cell(record: dict, check: str, op: str) -> str:
    figures = record.get(check, {"done": {}})["done"].get(op)
    return COLUMNS[check][1].format(**figures) if figures else ""


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(), json.loads(RECORD.read_text())))
