"""What a call of a CUDA op costs the host, from the dispatcher to the last launch: no GPU is needed.

    python benchmarks/host_time.py [--table]

writes benchmarks/results/host_time.json, and from it the table of docs/results.md; `--table` only the table.

The emulation (tests/emulation) runs the launching code of csrc, with launches that do nothing: so checks,
allocations and arguments are counted, the CUDA driver is not. `nms` and `batched_nms` wait
for their result and cannot be timed like this; nms_padded makes the same launches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import backends  # noqa: E402
import cases  # noqa: E402
import figures  # noqa: E402
import torch  # noqa: E402

import ssd_ops  # noqa: E402

RUNS = 300
RECORD = ROOT / "benchmarks" / "results" / "host_time.json"
PAGE = ROOT / "docs" / "results.md"


def calls() -> dict[str, tuple[str, tuple]]:
    """By case: an op, and the arguments of its schema, as its public function gives them."""
    torch.manual_seed(0)
    anchors = cases.boxes(1, 5444)[0]
    boxes, scores = cases.boxes(1, 10_000), torch.rand(1, 10_000)
    labels = torch.cat((torch.zeros(32, 8, 1), cases.boxes(32, 8)), dim=2)
    heads = torch.randn(8, 5444, 21), torch.randn(8, 5444, 4), anchors
    functions = {
        "box_iou 1,000 x 1,000": (ssd_ops.box_iou, (boxes[0, :1000], boxes[0, :1000])),
        "decode_boxes B8 A5444": (ssd_ops.decode_boxes, heads[1:]),
        "multibox_target B32 A5444 G8": (ssd_ops.multibox_target, (anchors, labels)),
        "assign_anchors B32 A5444 G8": (
            ssd_ops.assign_anchors,
            (anchors, labels[..., 1:].contiguous()),
        ),
        "hard_negative_mining B32 A5444": (
            ssd_ops.hard_negative_mining,
            (torch.rand(32, 5444), torch.zeros(32, 5444, dtype=torch.int64)),
        ),
        "nms_padded 1,000": (ssd_ops.nms_padded, (boxes[:, :1000], scores[:, :1000], 0.5)),
        "nms_padded 10,000": (ssd_ops.nms_padded, (boxes, scores, 0.5)),
        "multibox_detection B1 A5444": (
            ssd_ops.multibox_detection,
            (torch.rand(1, 2, 5444), torch.randn(1, 4 * 5444), anchors),
        ),
        "detect B8 A5444 C20": (ssd_ops.detect, heads),
    }
    raw = {case: cases.raw_call(*call) for case, call in functions.items()}
    return {
        case: (op._schema.name.removeprefix("ssd_ops::"), args) for case, (op, args) in raw.items()
    }


def measure() -> dict[str, dict[str, float]]:
    emulation = backends.load("counted")
    ops = getattr(torch.ops, backends.NAMESPACES["counted"])
    emulation.emulation_run_kernels(False)
    results = {}
    for case, (op, arguments) in calls().items():
        call = getattr(ops, op)
        for _ in range(RUNS // 10):
            call(*arguments)
        backends.counts()
        call(*arguments)
        launches = backends.counts().launches
        times = []
        for _ in range(RUNS):
            begin = time.perf_counter_ns()
            call(*arguments)
            times.append((time.perf_counter_ns() - begin) / 1000)
        results[case] = {"us": round(statistics.median(times), 1), "launches": launches}
        print(f"| `{case}` | {results[case]['us']} | {launches} |", flush=True)
    return results


def table(record: dict[str, Any]) -> str:
    rows = ["| call | host us | launches |", "|---|---:|---:|"]
    rows += [
        f"| `{case}` | {row['us']} | {row['launches']} |" for case, row in record["host"].items()
    ]
    made = f"Medians of {record['runs']} calls, {record['processor']}, torch {record['torch']}."
    return "\n".join([*rows, "", made])


def page(text: str, record: dict[str, Any]) -> str:
    """The page with its table written anew."""
    return figures.filled(text, "benchmarks/host_time.py", table(record))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="only write the table")
    if not parser.parse_args().table:
        torch.set_num_threads(1)
        figures.write(RECORD, {**figures.made(), "runs": RUNS, "host": measure()})
    PAGE.write_text(page(PAGE.read_text(), json.loads(RECORD.read_text())))


if __name__ == "__main__":
    main()
