"""The emulation itself: its checks bite, and no result depends on the order of the blocks."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import backends
import cases
import pytest
import sanitize
import torch

import ssd_ops

ROOT = Path(__file__).resolve().parent.parent
WHY_NOT = backends.why_not("emulated")
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")

# A call of one op, on more than one block.
CALLS = """
import sys
sys.path.insert(0, {tests!r})
import backends, torch, ssd_ops
torch.set_num_threads(1)
with backends.active("emulated"):
    torch.manual_seed(0)
    losses, labels = torch.rand(2, 1500), torch.randint(-1, 2, (2, 1500))
    ssd_ops.hard_negative_mining(losses, labels, ratio=0.5)
print("the end")
"""


def run_mining(
    kind: str, folder: Path, fault: tuple[str, str, str] | None
) -> subprocess.CompletedProcess:
    """The emulated hard_negative_mining in a process of its own, with a fault planted in a copy."""
    csrc = folder / "csrc"
    for room in ("common", "mining"):
        shutil.copytree(ROOT / "csrc" / room, csrc / room)
    if fault:
        file, *fault = fault
        kernel = csrc / file
        text = kernel.read_text()
        assert text.count(fault[0]) == 1
        kernel.write_text(text.replace(*fault))
    library = backends.builder().build(kind, csrc)
    env = {**sanitize.environment(kind), "SSD_OPS_EMULATED": str(library)}
    code = CALLS.format(tests=str(ROOT / "tests"))
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


def emulation() -> ctypes.CDLL:
    """The library that holds the emulation, with its handles for tests."""
    backends.load()
    (path,) = (path for path in torch.ops.loaded_libraries if "emulat" in Path(path).name)
    return ctypes.CDLL(path)


def test_a_failed_launch_leaves_no_error_behind():
    """A CUDA error stays until it is asked for: the next call, a valid one, must not meet it."""
    boxes, scores = cases.boxes(300), cases.scores(300)
    expected = ssd_ops.nms(boxes, scores, 0.5)
    handles = emulation()
    with backends.active("emulated"):
        for launch in (1, 2, 3):
            handles.emulation_fail_launch(launch)
            with pytest.raises(RuntimeError, match="nms: CUDA said: invalid configuration"):
                ssd_ops.nms(boxes, scores, 0.5)
            assert torch.equal(ssd_ops.nms(boxes, scores, 0.5), expected)


def test_no_call_lowers_what_another_may_ask_for():
    """Two threads launch one kernel with different sizes: its limit has to serve both."""
    handles = emulation()
    with backends.active("emulated"):
        # The keys of so many boxes need more than the 48 KB that any kernel may have.
        for count in (6400, 7400, 6200, 7000):
            boxes = torch.tensor([[0.0, 0, 1, 1]], dtype=torch.float64).repeat(count, 1)
            scores = torch.rand(count, dtype=torch.float64)
            assert ssd_ops.nms(boxes, scores, 0.5).tolist() == [int(scores.argmax())]
    assert handles.emulation_lowered_attributes() == 0


SELECT, MINING = "common/block_select.cuh", "mining/hard_negative_mining.cuh"
BARRIER = (SELECT, "space.bins[b] = 0;\n    __syncthreads();", "space.bins[b] = 0;")
SHARED = (SELECT, "low = space.bins[2 * thread],", "low = space.bins[2 * thread + 2],")
OUTPUT = (MINING, "selected[first + i] = label > 0;", "selected[first + i + 1] = label > 0;")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fault", "report"),
    [
        pytest.param("tsan", None, "", id="tsan-unchanged"),
        pytest.param("tsan", BARRIER, "ThreadSanitizer: data race", id="a-barrier-taken-away"),
        pytest.param("asan", None, "", id="asan-unchanged"),
        pytest.param("asan", OUTPUT, "heap-buffer-overflow", id="an-index-of-the-output-shifted"),
        pytest.param("asan", SHARED, "out of bounds", id="an-index-of-shared-memory-shifted"),
    ],
)
def test_planted_faults_are_reported(kind, fault, report, tmp_path):
    done = run_mining(kind, tmp_path, fault)
    if fault is None:
        assert done.returncode == 0 and done.stdout == "the end\n", done.stderr
    else:
        assert done.returncode != 0
        assert report in done.stderr, done.stderr


def every_op() -> list[torch.Tensor]:
    """Results of all ops on inputs that need several blocks, and NMS both ways."""
    torch.manual_seed(0)
    losses, classes = torch.rand(3, 1500), torch.randint(-1, 2, (3, 1500))
    results = [
        ssd_ops.multibox_priors([torch.zeros(20, 20)] * 2, [[0.1, 0.2]] * 2, [[1, 2]] * 2),
        ssd_ops.grid_anchors([torch.zeros(20, 30)] * 2, [[(0.1, 0.3), (0.2, 0.1)]] * 2),
        ssd_ops.box_iou(cases.boxes(20), cases.boxes(600)),
        ssd_ops.encode_boxes(cases.boxes(600), cases.boxes(600)),
        ssd_ops.decode_boxes(torch.randn(600, 4), cases.boxes(600)),
        *ssd_ops.multibox_target(cases.boxes(1, 700), cases.labels(3, 40)),
        ssd_ops.hard_negative_mining(losses, classes, ratio=0.5),
        *ssd_ops.nms_padded(cases.boxes(17, 100), cases.scores(17, 100), 0.5),
        ssd_ops.nms(cases.boxes(700), cases.scores(700), 0.5),
        ssd_ops.nms(cases.boxes(8200, kind="small"), cases.scores(8200), 0.5),
    ]
    cls_probs, offsets = cases.detection(2, 3, 300)
    return [*results, ssd_ops.multibox_detection(cls_probs, offsets, cases.boxes(1, 300))]


def test_no_result_depends_on_the_order_of_blocks(monkeypatch):
    expected = every_op()
    for order in ("forward", "reverse"):
        monkeypatch.setenv("SSD_OPS_EMULATION_ORDER", order)
        with backends.active("emulated"):
            for got, want in zip(every_op(), expected, strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
