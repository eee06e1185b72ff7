"""What `make demo` finds, with several seeds.

    python benchmarks/detector.py [SEED ...] [--out FOLDER]

runs the demo with each seed (0, 1 and 2 without an argument; five to ten minutes each on two cores), writes
benchmarks/results/detector.json, and from it the table of docs/results.md. `--table` only writes the table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import figures  # noqa: E402

RECORD = ROOT / "benchmarks" / "results" / "detector.json"
PAGE = ROOT / "docs" / "results.md"
KEPT = ("epoch", "found", "gts", "false_boxes", "ap", "ap50", "ap75")


def demo(seed: int, folder: Path) -> dict[str, float]:
    """The last epoch's measures, and the minutes it all took."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "ssd_ops", "demo", "--seed", str(seed), "--out", str(folder)]
    subprocess.run(command, check=True, cwd=ROOT)
    minutes = (time.monotonic() - begin) / 60
    last = json.loads((folder / "run" / "log.jsonl").read_text().splitlines()[-1])
    return {**{key: last[key] for key in KEPT}, "minutes": round(minutes, 1)}


def table(record: dict[str, Any]) -> str:
    head = "| seed | found | false boxes | AP at IoU 0.5 | AP | minutes |"
    rows = [head, "|---:|---:|---:|---:|---:|---:|"]
    for seed, done in record["seeds"].items():
        found = f"{done['found']} of {done['gts']}"
        rows.append(
            f"| {seed} | {found} | {done['false_boxes']} | {done['ap50']:.2f} | {done['ap']:.2f} "
            f"| {done['minutes']:.1f} |"
        )
    epochs = next(iter(record["seeds"].values()))["epoch"]
    made = f"{epochs} epochs on {record['processor']}, torch {record['torch']}."
    return "\n".join([*rows, "", made])


def page(text: str, record: dict[str, Any]) -> str:
    """The page with its table written anew."""
    return figures.filled(text, "benchmarks/detector.py", table(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("seeds", type=int, nargs="*", metavar="SEED")
    parser.add_argument("--out", type=Path, help="folder to keep the demos in")
    parser.add_argument("--table", action="store_true", help="only write the table")
    options = parser.parse_args()
    if not options.table:
        record = {**figures.made(), "seeds": {}}
        with tempfile.TemporaryDirectory() as temporary:
            for seed in options.seeds or (0, 1, 2):
                folder = (options.out or Path(temporary)).resolve() / f"seed-{seed}"
                record["seeds"][str(seed)] = demo(seed, folder)
        figures.write(RECORD, record)
    PAGE.write_text(page(PAGE.read_text(), json.loads(RECORD.read_text())))


if __name__ == "__main__":
    main()
