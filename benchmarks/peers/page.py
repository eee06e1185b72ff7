"""Writes the tables and the plots of docs/performance.md, and the README's table, from a measurement.

    python benchmarks/peers/page.py    (reads benchmarks/results/cpu.json)

A block of a page stands between `<!-- NAME: from cpu.json -->` and `<!-- end of NAME -->`; the rest is
written by hand and holds no measured number. tests/test_performance.py compares.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "benchmarks" / "results" / "cpu.json"
PAGES = (ROOT / "docs" / "performance.md", ROOT / "README.md")
PLOTS = {"nms": ROOT / "docs" / "nms.png", "batched_nms": ROOT / "docs" / "batched_nms.png"}
OURS, EMPTY, COPY = "ssd_ops", "an empty op", "a copy of as many bytes"
COLORS = {
    "ssd_ops": "black",
    "an empty op": "gray",
    "torchvision": "tab:green",
    "torchvision, loop": "lime",
    "torchvision, shifted": "teal",
    "eager": "tab:red",
    "torch.compile": "tab:purple",
    "d2l": "tab:brown",
    "powerboxes": "magenta",
    "powerboxes, R-tree": "darkgreen",
    "lsnms": "tab:blue",
    "onnxruntime": "tab:cyan",
    "opencv": "navy",
    "sahi": "tab:orange",
    "ensemble-boxes": "gold",
}
NO_RIVALS = {OURS, EMPTY, COPY}
SMALL = "small"
OTHERS = (
    *("nms_padded", "nms_groups", "box_iou", "multibox_target", "assign_anchors"),
    *("hard_negative_mining", "encode_boxes", "decode_boxes", "multibox_priors", "grid_anchors"),
    *("multibox_detection", "detect", "multiclass_nms"),
)
# Of the README: an op, a case, a number, and how it is said there.
BEST = [
    ("nms", "uniform", 1000, "`nms`, 1,000 uniform boxes"),
    ("nms", "uniform", 10_000, "`nms`, 10,000 uniform boxes"),
    ("nms", "clustered", 10_000, "`nms`, 10,000 boxes in clusters"),
    ("nms", "few kept", 100, "`nms`, 100 boxes, few kept"),
    ("nms", "few kept", 10_000, "`nms`, 10,000 boxes, few kept"),
    ("batched_nms", "uniform", 10_000, "`batched_nms`, 10,000 uniform boxes, 80 classes"),
    ("box_iou", "anchors x 64", 8732, "`box_iou`, 8,732 x 64"),
    (
        "multibox_target",
        "SSD300, 8 gts",
        32,
        "`multibox_target`, 32 images with 8 gts, 8,732 anchors",
    ),
    ("hard_negative_mining", "SSD300", 32, "`hard_negative_mining`, 32 images, 8,732 anchors"),
    ("decode_boxes", "SSD300", 8, "`decode_boxes`, 8 images, 8,732 anchors"),
    ("multibox_detection", "SSD300, 20 classes", 8, "`multibox_detection`, 8 images, 20 classes"),
    ("detect", "SSD300, 20 classes, trained", 8, "`detect`, SSD300, 8 images, trained network"),
]


def digits(value: float, count: int = 3) -> str:
    """So many significant digits, without an exponent."""
    text = f"{float(f'{value:.{count}g}'):,.10f}".rstrip("0").rstrip(".")
    return text or "0"


def duration(us: float) -> str:
    for unit, scale in (("s", 1e6), ("ms", 1e3)):
        if us >= scale:
            return f"{digits(us / scale)} {unit}"
    return f"{digits(us)} µs"


def spread(times: dict) -> str:
    """A median with its quartiles."""
    if times["samples"] == 1:
        return f"{duration(times['us'])} (once)"
    unit, scale = duration(times["us"]).split()[1], {"s": 1e6, "ms": 1e3, "µs": 1.0}
    low, high = (digits(times[key] / scale[unit]) for key in ("q1", "q3"))
    return f"{duration(times['us'])} ({low} to {high})"


def size(count: int) -> str:
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{digits(count / scale)} {unit}"
    return f"{count} B"


def rivals(cell: dict) -> dict[str, dict]:
    return {name: times for name, times in cell["times"].items() if name not in NO_RIVALS}


def best(cell: dict) -> str:
    """The fastest rival."""
    others = rivals(cell)
    return min(others, key=lambda name: others[name]["us"]) if others else ""


def lead(cell: dict) -> float:
    """Times of our time that the fastest rival takes."""
    return cell["times"][best(cell)]["us"] / cell["times"][OURS]["us"]


def times_ours(value: float) -> str:
    """Bold where we do not lead."""
    text = f"{digits(value, 2)}x"
    return text if value >= 1 else f"**{text}**"


def named(cell: dict, name: str) -> str:
    """A rival, marked if its result is not ours."""
    return f"{name} ≠" if cell["differs"].get(name) else name


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)


def of(result: dict, op: str, case: str | None = None) -> list[dict]:
    return [
        cell
        for cell in result["cells"]
        if cell["op"] == op and cell["case"] != SMALL and case in (None, cell["case"])
    ]


def cases(cells: list[dict]) -> list[str]:
    return list(dict.fromkeys(cell["case"] for cell in cells))


# One function for each block.


def machine(result: dict) -> str:
    about = result["about"]
    speeds = result["bandwidth"]
    return (
        f"{about['processor']} ({about['simd']}), {about['threads']} threads on as many processors, "
        f"{about['system']}, commit {about['commit']}, {about['date']}. The measurement took "
        f"{about['took']:,} s; the load of the machine was {about['load']} before and "
        f"{about['load_after']} after it. A large copy moves {speeds['copy']} GB/s, reads and writes "
        f"together; a sum reads {speeds['read']} GB/s.\n\n"
        f"Command: `{about['command']}`"
    )


def score(result: dict) -> str:
    """In how many cells we lead."""
    rows = []
    for op in ("nms", "batched_nms", *OTHERS):
        leads = [lead(cell) for cell in of(result, op) if best(cell)]
        if leads:
            won = sum(value >= 1 for value in leads)
            middle = statistics.median(leads)
            low, high = times_ours(min(leads)), times_ours(max(leads))
            rows.append([f"`{op}`", f"{won} of {len(leads)}", low, times_ours(middle), high])
    return table(["op", "cells that we lead", "least", "median", "most"], rows)


def losses(result: dict) -> str:
    """The cells that we do not lead, in words."""
    lines = []
    for op in ("nms", "batched_nms", *OTHERS):
        for case in cases(of(result, op)):
            lost = [cell for cell in of(result, op, case) if best(cell) and lead(cell) < 1]
            if lost:
                counts = ", ".join(f"{cell['n']:,}" for cell in lost)
                to = ", ".join(dict.fromkeys(map(best, lost)))
                lines.append(f"- `{op}` {case}: {counts} (to {to})")
    return "\n".join(lines) or "None."


def leads(op: str) -> Callable[[dict], str]:
    """A row for each number of boxes, a column for each scene."""

    def block(result: dict) -> str:
        cells = of(result, op)
        names = cases(cells)
        found = {(cell["case"], cell["n"]): cell for cell in cells}
        rows = []
        for count in sorted({cell["n"] for cell in cells}):
            row = [f"{count:,}"]
            for name in names:
                cell = found.get((name, count))
                if cell is None or not best(cell):
                    row.append("no rival" if cell else "")
                else:
                    row.append(f"{times_ours(lead(cell))} {named(cell, best(cell))}")
            rows.append(row)
        return table(["boxes", *names], rows)

    return block


def every_rival(op: str) -> Callable[[dict], str]:
    """The times of all, scene by scene."""

    def cell_text(cell: dict, name: str) -> str:
        if name in cell["times"]:
            return named(cell, duration(cell["times"][name]["us"]))
        return cell["left_out"].get(name, "")

    def block(result: dict) -> str:
        parts = []
        for case in cases(of(result, op)):
            cells = of(result, op, case)
            names = list(dict.fromkeys(n for c in cells for n in (*rivals(c), *c["left_out"])))
            rows = [[name, *(cell_text(cell, name) for cell in cells)] for name in [OURS, *names]]
            rows[0][1:] = [spread(cell["times"][OURS]) for cell in cells]
            kept = ["kept", *(f"{cell['kept']:,}" for cell in cells)]
            header = [case, *(f"{cell['n']:,}" for cell in cells)]
            parts.append(table(header, [kept, *rows]))
        return "\n\n".join(parts)

    return block


def others(result: dict) -> str:
    """The other ops: their best rivals."""
    rows = []
    for op in OTHERS:
        for cell in of(result, op):
            row = [f"`{op}` {cell['case']}, {cell['n']:,}", spread(cell["times"][OURS])]
            if best(cell):
                other = best(cell)
                row += [named(cell, other), spread(cell["times"][other]), times_ours(lead(cell))]
            else:
                row += ["", "", ""]
            for name in ("eager", "torch.compile", "torchvision"):
                found = cell["times"].get(name)
                text = duration(found["us"]) if found else cell["left_out"].get(name, "")
                row.append(named(cell, text) if found and name in cell["differs"] else text)
            rows.append(row)
    header = ["op, case, images or boxes", OURS, "best rival", "its time", "times ours"]
    return table([*header, "eager", "torch.compile", "torchvision"], rows)


def floors(result: dict) -> str:
    """Bytes, and the time to move them."""
    rows = []
    for op in ("nms", "batched_nms", *OTHERS):
        for cell in of(result, op):
            copy = cell["times"].get(COPY)
            if copy is None or (op.endswith("nms") and cell["case"] not in ("uniform", "few kept")):
                continue
            ours = cell["times"][OURS]["us"]
            floor = cell["bytes"] / result["bandwidth"]["copy"] / 1000
            rows.append(
                [
                    f"`{op}` {cell['case']}, {cell['n']:,}",
                    size(cell["bytes"]),
                    duration(ours),
                    f"{duration(floor)} ({digits(ours / floor, 2)}x)",
                    f"{duration(copy['us'])} ({digits(ours / copy['us'], 2)}x)",
                ]
            )
    header = ["op, case, images or boxes", "bytes", OURS, "at the speed of a large copy"]
    return table([*header, "a copy of as many bytes"], rows)


def small(result: dict) -> str:
    """What a call costs."""
    rows = []
    for cell in result["cells"]:
        few = cell["case"] != SMALL and cell["n"] <= {"nms": 100, "box_iou": 10}.get(cell["op"], 0)
        if cell["case"] != SMALL and not few:
            continue
        ours, nothing = cell["times"][OURS]["us"], cell["times"][EMPTY]["us"]
        name = f"`{cell['op']}`" + (f" {cell['case']}, {cell['n']}" if few else "")
        row = [name, duration(ours), duration(nothing), duration(ours - nothing)]
        other = best(cell)
        row.append(f"{other} {duration(cell['times'][other]['us'])}" if other else "")
        rows.append(row)
    return table(["op", OURS, "an empty op", "over the empty op", "best rival"], rows)


def memory(result: dict) -> str:
    rows = []
    for row in result["memory"]:
        one, other = row["cells"]
        texts = [f"{size(c['peak'])} ({size(c['results'])})" for c in (one, other)]
        counts = [f"{c['n']:,}: {text}" for c, text in zip((one, other), texts, strict=True)]
        growth = f"{digits(other['peak'] / one['peak'], 2)}x"
        rows.append(
            [
                f"`{row['op']}` {row['case']}",
                *counts,
                f"{digits(other['n'] / one['n'], 2)}x",
                growth,
            ]
        )
    return table(
        ["op, case", "fewer: peak (results)", "more: peak (results)", "more by", "grows by"], rows
    )


def training(result: dict) -> str:
    found = {row["loop"]: row for row in result["training"]}

    def rate(who: str, how: str) -> str:
        row = found[f"{who}, {how}"]
        return f"{row['images_a_second']} ({row['low']} to {row['high']})"

    kinds = ("float32", "bfloat16 + channels_last")
    loops = (OURS, "the chapter's loop")
    rows = [[who, *(rate(who, how) for how in kinds)] for who in loops]
    return table(["training, images a second", *kinds], rows)


def versions(result: dict) -> str:
    found = result["about"]["versions"]
    return ", ".join(f"{name} {version}" for name, version in found.items())


def best_rivals(result: dict) -> str:
    rows = []
    for op, case, count, text in BEST:
        for cell in of(result, op, case):
            if cell["n"] == count:
                other = best(cell)
                theirs = f"{named(cell, other)}, {duration(cell['times'][other]['us'])}"
                ours = duration(cell["times"][OURS]["us"])
                rows.append([text, ours, theirs, times_ours(lead(cell))])
    about = result["about"]
    where = f"{about['threads']} threads, {about['processor']} ({about['simd']}), {about['date']}."
    return table(["case", OURS, "best rival", "times ours"], rows) + f"\n\n{where}"


BLOCKS: dict[str, Callable[[dict], str]] = {
    "machine": machine,
    "score": score,
    "losses": losses,
    "leads of nms": leads("nms"),
    "times of nms": every_rival("nms"),
    "leads of batched_nms": leads("batched_nms"),
    "times of batched_nms": every_rival("batched_nms"),
    "other ops": others,
    "floors": floors,
    "small calls": small,
    "memory": memory,
    "training": training,
    "versions": versions,
    "best rivals": best_rivals,
}
BLOCK = re.compile(r"(<!-- ([\w ]+): from cpu\.json -->\n)(.*?)(<!-- end of \2 -->)", re.DOTALL)


def renewed(text: str, result: dict) -> str:
    """A page with its blocks written anew."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]](result)}\n\n{found[4]}", text)


def by_hand(text: str) -> str:
    """A page without its blocks, and without those of benchmarks/deploy.py, which has a test of its own."""
    others = r"<!-- benchmarks/deploy\.py: \w+ -->.*?<!-- end -->"
    return re.sub(others, "", BLOCK.sub("", text), flags=re.DOTALL)


def digest(result: dict, op: str) -> str:
    """Of what a plot shows; it stands in the file of the plot."""
    points = [
        (cell["case"], cell["n"], {n: t["us"] for n, t in cell["times"].items() if n != COPY})
        for cell in of(result, op)
    ]
    return hashlib.sha256(json.dumps(points, sort_keys=True).encode()).hexdigest()


def digest_of(plot: Path) -> str:
    """What a PNG says that it shows."""
    found = re.search(rb"Description\x00([0-9a-f]{64})", plot.read_bytes())
    return found[1].decode() if found else ""


def draw(result: dict, op: str, path: Path) -> None:
    """Time against the number of boxes, a panel for each scene; the last one holds the names."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cells = of(result, op)
    names = list(dict.fromkeys(name for cell in cells for name in cell["times"] if name != COPY))
    figure, panels = plt.subplots(2, 3, figsize=(12, 7.5), layout="constrained", sharey=True)
    lines = {}
    for panel, case in zip(panels.flat, cases(cells), strict=False):
        for number, name in enumerate(names):
            points = [
                (cell["n"], cell["times"][name]["us"])
                for cell in cells
                if cell["case"] == case and name in cell["times"]
            ]
            style = {"linewidth": 1.2, "markersize": 4, "color": COLORS[name]}
            style["marker"] = "osD^v<>pPX*h"[number % 12]
            if name == OURS:
                style |= {"linewidth": 3, "color": "black", "zorder": 3}
            elif name == EMPTY:
                style |= {"linestyle": ":", "color": "gray", "marker": ""}
            if points:
                (lines[name],) = panel.plot(*zip(*points, strict=True), **style)
        panel.set(xscale="log", yscale="log", title=case, xlabel="boxes", ylabel="µs")
        panel.tick_params(labelleft=True)
        panel.grid(alpha=0.3)
    panels.flat[-1].axis("off")
    panels.flat[-1].legend(lines.values(), lines.keys(), loc="center", frameon=False)
    figure.suptitle(f"{op}, median time of a call (two threads)")
    metadata = {"Description": digest(result, op), "Software": None}
    figure.savefig(path, dpi=80, metadata=metadata)
    plt.close(figure)


def main() -> int:
    data = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA
    result = json.loads(data.read_text())
    for page in PAGES:
        page.write_text(renewed(page.read_text(), result))
    for op, path in PLOTS.items():
        if not path.exists() or digest_of(path) != digest(result, op):
            draw(result, op, path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
