"""What a call of a CUDA op costs the host, from the dispatcher to the last launch: no GPU is needed.

    python benchmarks/host_time.py --out benchmarks/results/host_time.json

The emulation (tests/emulation) runs the launching code of csrc, with launches that do nothing: so checks,
allocations and arguments are counted, the CUDA driver is not. It takes 2 to 3 us a launch more. `nms` and
`batched_nms` wait for their result and cannot be timed like this; nms_padded makes the same launches.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
import backends  # noqa: E402
import cases  # noqa: E402
import torch  # noqa: E402

RUNS = 300


def calls() -> dict[str, tuple[str, tuple]]:
    """By case: an op, and the arguments of its schema."""
    torch.manual_seed(0)
    anchors = cases.boxes(1, 5444)[0]
    boxes, scores = cases.boxes(1, 10_000), torch.rand(1, 10_000)
    labels = torch.cat((torch.zeros(32, 8, 1), cases.boxes(32, 8)), dim=2)
    probs, flat = torch.rand(1, 2, 5444), torch.randn(1, 4 * 5444)
    variances = [0.1, 0.1, 0.2, 0.2]
    heads = torch.randn(8, 5444, 21), torch.randn(8, 5444, 4), anchors
    few, one = torch.rand(32, 5444), torch.zeros(32, 5444, dtype=torch.int64)
    return {
        "box_iou 1,000 x 1,000": ("box_iou", (boxes[0, :1000], boxes[0, :1000])),
        "decode_boxes B8 A5444": ("decode_boxes", (heads[1], anchors, variances, False)),
        "multibox_target B32 A5444 G8": (
            "multibox_target",
            (anchors, labels, None, 0.5, variances, -1.0, 0.5, 0, -1, 0, None, 0.5),
        ),
        "assign_anchors B32 A5444 G8": (
            "assign_anchors",
            (anchors, labels[..., 1:].contiguous(), None, 0.5, 0.5, 1, None, 0.5),
        ),
        "hard_negative_mining B32 A5444": ("hard_negative_mining", (few, one, 3.0, 0)),
        "nms_padded 1,000": ("nms_padded", (boxes[:, :1000], scores[:, :1000], 0.5)),
        "nms_padded 10,000": ("nms_padded", (boxes, scores, 0.5)),
        "multibox_detection B1 A5444": (
            "multibox_detection",
            (probs, flat, anchors, 0.5, 0.01, variances, False, False, -1, 0),
        ),
        "detect B8 A5444 C20": (
            "detect",
            (*heads, 1, 0.01, 0.45, 400, 200, variances, True, False),
        ),
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="also writes the result here, as JSON")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    about = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "commit": commit or None,
        "runs": RUNS,
    }
    results = {"about": about, "host": measure()}
    if out:
        aside = out.with_suffix(".part")
        aside.write_text(json.dumps(results, indent=1) + "\n")
        aside.replace(out)


if __name__ == "__main__":
    main()
