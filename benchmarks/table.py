"""Markdown table of a benchmark run: `python benchmarks/table.py out.json`.

Each cell is a median time. In brackets: how many times our time that is. A note of the benchmark, such as the
accuracy, follows.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

OURS = "ssd_ops"


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def table(run: dict) -> str:
    medians: dict[str, dict[str, float]] = {}
    notes: dict[tuple[str, str], str] = {}
    for case in run["benchmarks"]:
        group, name = case["group"] or case["name"], case["extra_info"].get("impl", OURS)
        medians.setdefault(group, {})[name] = case["stats"]["median"]
        if "note" in case["extra_info"]:
            notes[group, name] = "; " + case["extra_info"]["note"]
    names = [OURS, *sorted({name for row in medians.values() for name in row} - {OURS})]
    lines = ["| case | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    for case, row in medians.items():
        cells = []
        for name in names:
            if name not in row:
                cells.append("")
            elif name == OURS or OURS not in row:
                cells.append(duration(row[name]) + notes.get((case, name), ""))
            else:
                times = f"{duration(row[name])} ({row[name] / row[OURS]:.3g}x)"
                cells.append(times + notes.get((case, name), ""))
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def where(run: dict) -> str:
    machine, commit = run["machine_info"], run.get("commit_info", {})
    processor = machine.get("cpu", {}).get("brand_raw") or machine.get("processor") or "?"
    changed = " with changes" if commit.get("dirty") else ""
    return (
        f"{processor} ({machine.get('simd', '?')}), {machine.get('threads', '?')} threads, "
        f"torch {machine.get('torch', '?')}, Python {machine.get('python_version', '?')}, "
        f"commit {str(commit.get('id', '?'))[:10]}{changed}, {run.get('datetime', '?')[:10]}. "
        "Medians; in brackets: how many times our time."
    )


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/table.py out.json")
    result = json.loads(Path(sys.argv[1]).read_text())
    print(table(result) + "\n\n" + where(result))
