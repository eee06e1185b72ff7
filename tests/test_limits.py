"""What a machine allows: many boxes, more than 2^31 elements, memory that runs out, and memory that stays."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cases
import fuzz
import pytest
import torch
from hypothesis import settings
from torch import Tensor

import ssd_ops

MANY = 2**31 + 3


def memory() -> tuple[int, int]:
    """Bytes that this process has reserved, and those that it uses."""
    with open("/proc/self/statm") as file:
        size, resident = file.read().split()[:2]
    return int(size) * resource.getpagesize(), int(resident) * resource.getpagesize()


@contextmanager
def at_most_more(size: int) -> Iterator[None]:
    """Inside, no more memory than so many bytes can be had."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory()[0] + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_nms_of_four_million_boxes():
    """Pairs, far from each other, of which the better one is kept."""
    count = 2_100_000
    at = torch.arange(count)
    corner = torch.stack((at % 1500, at // 1500), dim=1) * 4.0
    boxes = torch.cat((corner, corner + 3), dim=1).repeat(2, 1)
    boxes[count:, 2] += 0.5
    scores = torch.randperm(2 * count).double()
    kept = ssd_ops.nms(boxes, scores, 0.5)
    better = torch.where(scores[:count] > scores[count:], at, at + count)
    assert torch.equal(kept, better[scores[better].argsort(descending=True)])


def box(*shape: int) -> Tensor:
    return torch.tensor([0.0, 0, 1, 1]).expand(*shape, 4)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(1, dtype=dtype).expand(*shape)


def integers(*shape: int) -> Tensor:
    return zeros(*shape, dtype=torch.int64)


# op, arguments; of one number each, that a stride of 0 repeats
LARGE = [
    ("nms", (box(MANY), zeros(MANY), 0.5)),
    ("nms_padded", (box(1, MANY), zeros(1, MANY), 0.5)),
    ("nms_padded", (box(MANY, 1), zeros(MANY, 1), 0.5)),
    ("nms_groups", (box(1, MANY), zeros(1, MANY), 0.5)),
    ("batched_nms", (box(MANY), zeros(MANY), integers(MANY), 0.5)),
    ("multiclass_nms", (box(1, MANY), zeros(1, MANY, 1))),
    ("multiclass_nms", (box(1, 1), zeros(1, 1, MANY))),
    ("multiclass_nms", (box(1, 2**16), zeros(1, 2**16, 2**16))),
    ("detect", (zeros(1, MANY, 2), zeros(1, MANY, 4), box(MANY))),
    ("multibox_detection", (zeros(1, 2, MANY), zeros(1, 4 * MANY), box(MANY))),
    ("box_iou", (box(2**16), box(2**16))),
    ("box_iou", (box(MANY), box(1))),
    ("encode_boxes", (box(MANY), box(MANY))),
    ("decode_boxes", (box(MANY), box(MANY))),
    ("assign_anchors", (box(MANY), box(1, 1))),
    ("assign_anchors", (box(4), box(1, MANY))),
    ("assign_anchors", (box(4), box(MANY, 1))),
    ("multibox_target", (box(MANY), zeros(1, 1, 5))),
    ("multibox_target", (box(4), zeros(1, MANY, 5))),
    ("multibox_target", (box(4), zeros(MANY, 1, 5))),
    ("hard_negative_mining", (zeros(1, MANY), integers(1, MANY))),
    ("hard_negative_mining", (zeros(MANY, 1), integers(MANY, 1))),
    ("multibox_priors", ([zeros(1, 1, 2**16, 2**15 + 1)], [[0.5]], [[1]])),
    ("grid_anchors", ([zeros(1, 1, 2**16, 2**15 + 1)], [[(0.5, 0.5)]])),
]


def test_every_op_has_a_large_call():
    assert {name for name, _ in LARGE} == set(fuzz.OPS)


@pytest.mark.parametrize("name, args", LARGE, ids=[f"{n}-{row[0]}" for n, row in enumerate(LARGE)])
def test_more_elements_than_an_int_counts_are_one_error(name, args):
    """What a machine with more memory does with so many, `make long` tries with one op."""
    small = cases.inputs(name)
    expected = getattr(ssd_ops, name)(*small)
    # `ssd_ops` stands for the op where torch could not give the memory.
    with (
        at_most_more(3 << 30),
        pytest.raises(RuntimeError, match=rf"^({name}|ssd_ops): .* must .*, got .*\d{{5,}}"),
    ):
        getattr(ssd_ops, name)(*args)
    for got, right in zip(getattr(ssd_ops, name)(*small), expected, strict=True):
        assert torch.equal(got, right)


@pytest.mark.long
def test_more_overlaps_than_an_int_counts():
    """In the profile `long`, and where 10 GB are free."""
    count = 46_341  # its square is more than 2^31
    with open("/proc/meminfo") as file:
        free = next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    if settings().max_examples < 50_000 or free < 10_000_000:
        pytest.skip("only in `make long`, with 10 GB of memory")
    boxes = cases.boxes(count)
    overlaps = ssd_ops.box_iou(boxes, boxes)
    assert overlaps.numel() > 2**31
    assert torch.equal(overlaps[-9:], ssd_ops.box_iou(boxes[-9:], boxes))
    assert torch.equal(overlaps[:, -1], overlaps[-1])


SCARCE = """
import sys, torch
sys.path.insert(0, {tests!r})
import cases, ssd_ops, test_limits
for name in {names!r}:
    args = cases.inputs(name, 1, torch.float32, 300_000)
    op = getattr(ssd_ops, name)
    expected = op(*args)
    for megabytes in range(1, 16):
        said = "it went well"
        try:
            with test_limits.at_most_more(megabytes << 20):
                op(*args)
        except Exception as error:
            said = f"{{type(error).__name__}} {{error}}"
        print(name, said)
    results = op(*args)
    results, expected = ((t,) if torch.is_tensor(t) else t for t in (results, expected))
    assert all(map(torch.equal, results, expected)), "the next call is wrong"
"""


def test_work_that_does_not_fit_in_memory_is_one_error():
    """In a process in which memory that is given back can be had again only from the system."""
    names = [name for name in fuzz.OPS if "nms" in name or name in ("detect", "multibox_detection")]
    code = SCARCE.format(tests=str(Path(__file__).parent), names=names)
    env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    work = "arguments must leave memory for the work on them, got shapes .*300000"
    allowed = (
        rf"it went well|RuntimeError (\S+: {work}|ssd_ops: results must fit in memory, got .*)"
    )
    told = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert [said for _, said in told if not re.match(allowed, said)] == []
    assert {name for name, said in told if said.startswith(f"RuntimeError {name}: ")} == set(names)


def growth(call, calls: int) -> int:
    """How many bytes more a process uses after so many calls than after the first ones."""
    for _ in range(calls // 10 + 100):
        call()
    before = used()
    for _ in range(calls):
        call()
    return used() - before


def used() -> int:
    """Bytes, without those that are given back and kept for later."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return memory()[1]


@pytest.mark.long
@pytest.mark.parametrize("name", fuzz.OPS)
def test_memory_does_not_grow(name, note):
    args = cases.inputs(name, 2, torch.float32, 9)
    calls = min(100_000, 20 * settings().max_examples)
    grown = growth(lambda: getattr(ssd_ops, name)(*args), calls)
    assert grown < 2**20
    note("memory", name, calls=calls, kB=max(0, grown) // 1024)


def test_memory_that_grows_is_seen():
    kept = []
    assert growth(lambda: kept.append(bytearray(1024)), 2000) >= 2**20
