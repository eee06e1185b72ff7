"""The emulation itself: its checks bite, and no result depends on the order of blocks and warps."""

from __future__ import annotations

import re
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


def schedule(seed: int, resident: int) -> dict[str, str]:
    """The variables of the environment for a schedule (emulation/fibers.h)."""
    return {
        "SSD_OPS_EMULATION_SEED": str(seed),
        "SSD_OPS_EMULATION_BLOCKS": str(resident),
    }


# Kernels that do one thing each, right or wrong.
KERNELS = """
#include <cuda_runtime.h>

using ssd_ops::load_relaxed;
using ssd_ops::store_relaxed;

__global__ void wait_for_the_next_block(int* words) {
  if (blockIdx.x + 1 < gridDim.x)
    while (load_relaxed(&words[blockIdx.x + 1]) == 0) {
    }
  store_relaxed(&words[blockIdx.x], 1);
}
__global__ void meet_in_two_places(int*) {
  if (threadIdx.x < 16)
    __syncwarp();
  else
    __syncwarp();
}
__global__ void keep_one_number(int* words) {
  __shared__ int before, mine[2];
  if (threadIdx.x == 0) {
    before = mine[1] == mine[0];  // garbage, all the same
    mine[1] = static_cast<int>(blockIdx.x);
  }
  for (int i = 0; i < 20; ++i) __nanosleep(1);
  __syncthreads();
  if (threadIdx.x == 33) words[blockIdx.x] = before && mine[1] == static_cast<int>(blockIdx.x);
}
template <bool kFences>
__global__ void publish(int* words) {
  if (threadIdx.x > 0) return;
  if (blockIdx.x == 0) {
    words[1] = 7;
    if (kFences) __threadfence();
    store_relaxed(&words[0], 1);
  } else {
    while (load_relaxed(&words[0]) == 0) {
    }
    if (kFences) __threadfence();
    words[2] = words[1];
  }
}
template <bool kBarrier>
__global__ void tell_the_warp(int* words) {
  if (threadIdx.x == 7) words[0] = 7;
  kBarrier ? __syncwarp() : static_cast<void>(__any_sync(0xffffffffu, 1));
  if (threadIdx.x == 8) words[1] = words[0];
}
__global__ void read_where_nothing_is(int* words) {
  __shared__ int first[8], second[8];
  first[threadIdx.x % 8] = second[threadIdx.x % 8] = 0;
  words[0] = *(&first[0] + words[1]);
}

#define NAMED(kernel) {#kernel, kernel}
struct {
  const char* name;
  void (*kernel)(int*);
} kernels[] = {NAMED(wait_for_the_next_block), NAMED(meet_in_two_places),    NAMED(keep_one_number),
               NAMED(publish<true>),           NAMED(publish<false>),        NAMED(tell_the_warp<true>),
               NAMED(tell_the_warp<false>),    NAMED(read_where_nothing_is)};

#pragma GCC visibility push(default)
extern "C" void run(const char* name, int blocks, int threads, int* words) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  for (const auto& entry : kernels)
    if (std::strcmp(entry.name, name) == 0) cudaLaunchKernelEx(&config, entry.kernel, words);
}
"""
RUN = """
import ctypes, sys
library, name, blocks, threads, *words = sys.argv[1:]
words = (ctypes.c_int * len(words))(*map(int, words))
ctypes.CDLL(library).run(name.encode(), int(blocks), int(threads), words)
print(*words)
"""


@pytest.fixture(scope="module")
def run_kernel(tmp_path_factory):
    """run_kernel(name, blocks, threads, words) launches one of KERNELS in a process of its own."""
    folder = tmp_path_factory.mktemp("kernels")
    (folder / "kernels.cu").write_text(KERNELS)

    def run(name, blocks, threads, words, *, kind="plain", seed=0, resident=2):
        library = backends.builder().build(kind, folder)
        env = sanitize.environment(kind) | schedule(seed, resident)
        arguments = map(str, (library, name, blocks, threads, *words))
        command = [sys.executable, "-c", RUN, *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    return run


def test_a_block_may_wait_for_another_that_has_begun(run_kernel):
    done = run_kernel("wait_for_the_next_block", 4, 32, [0] * 4, resident=4)
    assert done.stdout == "1 1 1 1\n", done.stderr
    # The first blocks wait for one that has no room; from the last to the first, none waits for long.
    stuck = run_kernel("wait_for_the_next_block", 4, 32, [0] * 4, resident=3)
    assert stuck.returncode != 0 and "other blocks cannot begin" in stuck.stderr
    done = run_kernel("wait_for_the_next_block", 4, 32, [0] * 4, resident=1, seed=1)
    assert done.stdout == "1 1 1 1\n", done.stderr


def test_lanes_that_meet_in_different_places_are_reported(run_kernel):
    done = run_kernel("meet_in_two_places", 1, 32, [0])
    assert done.returncode != 0 and "lanes of a warp meet in different places" in done.stderr
    places = re.findall(r"in __syncwarp at \S+kernels.cu:(\d+)", done.stderr)
    lines = KERNELS.splitlines()
    assert len(set(places)) == 2 and all("__syncwarp" in lines[int(n) - 1] for n in places)


@pytest.mark.parametrize("seed", range(4))
def test_each_block_has_shared_memory_of_its_own(run_kernel, seed):
    done = run_kernel("keep_one_number", 9, 64, [0] * 9, resident=3, seed=seed)
    assert done.stdout.split() == ["1"] * 9, done.stderr


@pytest.mark.parametrize(
    ("kind", "kernel", "blocks", "report"),
    [
        ("tsan", "publish<true>", 2, ""),
        ("tsan", "publish<false>", 2, "ThreadSanitizer: data race"),
        ("tsan", "tell_the_warp<true>", 1, ""),
        ("tsan", "tell_the_warp<false>", 1, "ThreadSanitizer: data race"),
        ("asan", "read_where_nothing_is", 1, "AddressSanitizer: use-after-poison"),
    ],
    ids=["fences", "no-fences", "a-warp-barrier", "a-vote-alone", "outside-a-shared-variable"],
)
def test_what_orders_memory(run_kernel, kind, kernel, blocks, report):
    done = run_kernel(kernel, blocks, 32, [0, 8, 0], kind=kind)
    if report:
        assert done.returncode != 0 and report in done.stderr, done.stderr
    else:
        assert done.returncode == 0 and "7" in done.stdout, done.stderr


# Calls of one op, on more than one block.
CALLS = """
import sys
sys.path.insert(0, {tests!r})
import backends, torch, ssd_ops
torch.set_num_threads(1)
with backends.filled_new_memory(), backends.active("emulated"):
    torch.manual_seed(0)
    {call}
print("the end")
"""
MINING_CALL = """
    losses, labels = torch.rand(2, 1500), torch.randint(-1, 2, (2, 1500))
    ssd_ops.hard_negative_mining(losses, labels, ratio=0.5)
"""
NMS_CALL = """
    from ops.test_nms import pile_that_waits
    boxes, scores, kept = pile_that_waits()
    assert ssd_ops.nms(boxes, scores, 0.5).tolist() == kept
"""


def run_planted(
    kind: str, folder: Path, room: str, fault: tuple[str, str, str] | None
) -> subprocess.CompletedProcess:
    """One emulated op in a process of its own, with a fault planted in a copy of its sources."""
    csrc = folder / "csrc"
    for name in ("common", room):
        shutil.copytree(ROOT / "csrc" / name, csrc / name)
    for source in csrc.glob("nms/*_*.cu"):  # the others of the room
        source.unlink()
    if fault:
        file, *fault = fault
        kernel = csrc / file
        text = kernel.read_text()
        assert text.count(fault[0]) == 1
        kernel.write_text(text.replace(*fault))
    library = backends.builder().build(kind, csrc)
    # With three blocks resident, of the four that wait for each other in NMS_CALL, one has no room at first.
    env = {**sanitize.environment(kind), "SSD_OPS_EMULATED": str(library)} | schedule(0, resident=3)
    code = CALLS.format(tests=str(ROOT / "tests"), call=NMS_CALL if room == "nms" else MINING_CALL)
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


def test_a_failed_launch_leaves_no_error_behind():
    """A CUDA error stays until it is asked for: the next call, a valid one, must not meet it."""
    boxes, scores = cases.boxes(300), cases.scores(300)
    expected = ssd_ops.nms(boxes, scores, 0.5)
    handles = backends.load("plain")
    with backends.active("emulated"):
        for launch in (1, 2, 3):
            handles.emulation_fail_launch(launch)
            with pytest.raises(RuntimeError, match="nms: CUDA said: invalid configuration"):
                ssd_ops.nms(boxes, scores, 0.5)
            assert torch.equal(ssd_ops.nms(boxes, scores, 0.5), expected)


def test_no_call_lowers_what_another_may_ask_for():
    """Two threads launch one kernel with different sizes: its limit has to serve both."""
    handles = backends.load("plain")
    with backends.active("emulated"):
        # The keys of so many boxes need more than the 48 KB that any kernel may have.
        for count in (6400, 7400, 6200, 7000):
            boxes = torch.tensor([[0.0, 0, 1, 1]], dtype=torch.float64).repeat(count, 1)
            scores = torch.rand(count, dtype=torch.float64)
            assert ssd_ops.nms(boxes, scores, 0.5).tolist() == [int(scores.argmax())]
    assert handles.emulation_lowered_attributes() == 0


SELECT, MINING = "common/block_select.cuh", "mining/hard_negative_mining.cuh"
BARRIER = (
    SELECT,
    "space.bins[b + thread] = 0;\n    __syncthreads();",
    "space.bins[b + thread] = 0;",
)
SHARED = (SELECT, "low = space.bins[2 * thread],", "low = space.bins[2 * thread + 2],")
OUTPUT = (MINING, "selected[i + j] = is_hard", "selected[i + j + 1] = is_hard")
RESOLVE = "nms/greedy_resolve.cuh"
FORGET = (RESOLVE, "- 1) owed = undecided;", "- 1) owed = min_of(undecided, -1);")
NO_ROOM = (RESOLVE, "has_room = __popc(open) <= __popc(idle);", "has_room = true;")
BACKWARDS = (
    RESOLVE,
    "tile.turn = atomicAdd(tiles.next, 1ull);",
    "tile.turn = gridDim.x - 1 - atomicAdd(tiles.next, 1ull);",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "room", "fault", "report"),
    [
        pytest.param("tsan", "mining", None, "", id="tsan-unchanged"),
        pytest.param("tsan", "mining", BARRIER, "ThreadSanitizer: data race", id="no-barrier"),
        pytest.param("asan", "mining", None, "", id="asan-unchanged"),
        pytest.param("asan", "mining", OUTPUT, "heap-buffer-overflow", id="an-output-shifted"),
        pytest.param("asan", "mining", SHARED, "out of bounds", id="shared-memory-shifted"),
        pytest.param("plain", "nms", None, "", id="nms-unchanged"),
        pytest.param("plain", "nms", FORGET, "AssertionError", id="undecided-boxes-forgotten"),
        pytest.param("plain", "nms", NO_ROOM, "AssertionError", id="no-room-for-owed-boxes"),
        pytest.param("plain", "nms", BACKWARDS, "other blocks cannot begin", id="tiles-backwards"),
    ],
)
def test_planted_faults_are_reported(kind, room, fault, report, tmp_path):
    done = run_planted(kind, tmp_path, room, fault)
    if fault is None:
        assert done.returncode == 0 and done.stdout == "the end\n", done.stderr
    else:
        assert done.returncode != 0
        assert report in done.stderr, done.stderr


def every_op() -> list[torch.Tensor]:
    """Results of all ops on inputs that need several blocks, and NMS in more ways."""
    torch.manual_seed(0)
    ops = [name for name in ssd_ops.__all__ if name[0].islower()]
    results = [getattr(ssd_ops, op)(*cases.inputs(op, images=3, size=300)) for op in ops]
    losses, classes = torch.rand(3, 1500), torch.randint(-1, 2, (3, 1500))
    results += [
        ssd_ops.multibox_target(cases.boxes(1, 700), cases.labels(3, 40)),
        ssd_ops.hard_negative_mining(losses, classes, ratio=0.5),
        ssd_ops.nms_padded(cases.boxes(17, 100), cases.scores(17, 100), 0.5),
        ssd_ops.nms(cases.boxes(700), cases.scores(700), 0.5),
        ssd_ops.nms(cases.boxes(8200, kind="small"), cases.scores(8200), 0.5),
    ]
    return torch.utils._pytree.tree_leaves(results)


def test_op_tests_fill_new_memory(backend):
    assert torch.empty(4, dtype=torch.uint8).tolist() == [255] * 4
    assert torch.ones(4).new_empty(4).isnan().all()


def test_no_result_depends_on_the_schedule_or_the_thresholds(monkeypatch):
    expected = every_op()
    # An odd seed: the last block first. `counted` has the thresholds of a GPU.
    emulated = [("emulated", 0, 1), ("emulated", 1, 8), ("emulated", 2, 3), ("emulated", 3, 2)]
    for backend, seed, resident in (*emulated, ("counted", 0, 4)):
        for variable, value in schedule(seed, resident).items():
            monkeypatch.setenv(variable, value)
        with backends.active(backend):
            for got, want in zip(every_op(), expected, strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "op", [name for name in ssd_ops.__all__ if name[0].islower() and name not in cases.PLAIN]
)
def test_a_call_allocates_its_scratch_memory_at_once(op):
    arguments = cases.inputs(op, images=3, size=300)
    on_cpu = [torch.profiler.ProfilerActivity.CPU]
    profiled = torch.profiler.profile(activities=on_cpu, profile_memory=True)
    with backends.active("counted"), profiled as profile:
        results = torch.utils._pytree.tree_leaves(getattr(ssd_ops, op)(*arguments))
    events = profile.profiler.kineto_results.events()
    made = sum(event.name() == "[memory]" and event.nbytes() > 0 for event in events)
    assert len(results) <= made <= len(results) + 1
