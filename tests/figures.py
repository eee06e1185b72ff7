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
BLOCK = re.compile(r"(<!-- from reliability\.json -->\n).*?(<!-- end -->)", re.DOTALL)


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
        aside = RECORD.with_suffix(".part")
        aside.write_text(json.dumps(dict(sorted(record.items())), indent=1) + "\n")
        os.replace(aside, RECORD)
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
