"""The work of the emulated kernels of NMS is bounded, with the thresholds of a GPU.

A kernel that is right but quadratic, or that mostly waits for other blocks, fails here without a GPU. The
numbers in WORK were counted; `python tests/test_work.py 1000 5000` counts them again, for a kernel that has
become better. A test fails where one is half as much again, and also where one is less than half: then put
the new number in, so that it is not lost again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import backends
import cases
import pytest
import torch
from torch import Tensor

import ssd_ops

WHY_NOT = backends.why_not("emulated") or (
    "SSD_OPS_EMULATED names another library" if "SSD_OPS_EMULATED" in os.environ else ""
)
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")

SCHEDULE = "SSD_OPS_EMULATION_"
THRESHOLD = 0.5
IMAGES = 16
RESIDENT = 64  # blocks, so that what waits is seen to wait


def around(centers: Tensor, sizes: Tensor) -> Tensor:
    return torch.cat((centers - sizes / 2, centers + sizes / 2), dim=1)


def large(count: int) -> Tensor:
    """Two random corners."""
    return torch.rand(count, 2, 2).sort(dim=1).values.flatten(1)


def small(count: int) -> Tensor:
    return cases.boxes(count, kind="small")


def clustered(count: int) -> Tensor:
    """300 objects, each found many times."""
    of = torch.randint(300, (count,))
    centers, sizes = torch.rand(300, 2)[of], 0.02 + 0.08 * torch.rand(300, 2)[of]
    return around(
        centers + 0.1 * sizes * torch.randn(count, 2), sizes * (1 + 0.1 * torch.rand(count, 2))
    )


def pile(count: int) -> Tensor:
    """Every box overlaps every other; the best one drops all."""
    return around(2 * torch.rand(count, 2), 100 + 2 * torch.rand(count, 2))


def chain(count: int) -> Tensor:
    """Each box drops the next by an IoU just above the threshold, if it is kept itself; see `scores`."""
    left = torch.arange(count, dtype=torch.float64) * 0.33
    zero = torch.zeros_like(left)
    return torch.stack((left, zero, left + 1, zero + 1), dim=1)


def duplicates(count: int) -> Tensor:
    """Every box about twenty times."""
    few = small(count // 20)
    return few[torch.randint(len(few), (count,))]


def corner(count: int) -> Tensor:
    """One box far away from all others, which are small: a grid over all has them in one cell."""
    boxes = 1e-3 * small(count)
    boxes[0] = torch.tensor([1e3, 1e3, 1e3 + 1, 1e3 + 1])
    return boxes


def classes(count: int) -> Tensor:
    """Of `groups`: boxes at random."""
    return small(count)


def piles(count: int) -> Tensor:
    """The same, every box over every other of its class."""
    return pile(count)


def images(count: int) -> Tensor:
    """Of 16 images, so many that every one has several heads."""
    return large(count)


def scene(kind: str, count: int) -> tuple[str, tuple]:
    """An op and its arguments."""
    torch.manual_seed(0)
    boxes = globals()[kind](count)
    scores = torch.arange(count, 0, -1).float() if kind == "chain" else torch.rand(count)
    if kind in ("classes", "piles"):
        return "batched_nms", (boxes, scores, torch.randint(80, (count,)), THRESHOLD)
    if kind == "images":
        return "nms_padded", (boxes.view(IMAGES, -1, 4), scores.view(IMAGES, -1), THRESHOLD)
    return "nms", (boxes, scores, THRESHOLD)


@contextmanager
def schedule(**variables: int) -> Iterator[None]:
    """That of these variables (emulation/fibers.h) alone."""
    before = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith(SCHEDULE)}
    os.environ.update({SCHEDULE + key: str(value) for key, value in variables.items()})
    try:
        yield
    finally:
        for key in variables:
            del os.environ[SCHEDULE + key]
        os.environ.update(before)


def work(kind: str, count: int) -> tuple[int, int, int, int]:
    """(launches, steps a box, longest, polls a box) of one call, whose result is right.

    A step is a basic block that one thread runs; the longest are those of the busiest thread of each
    launch, added: what would be left of the time on a GPU without end. Polls are relaxed loads and sleeps.
    """
    op, arguments = scene(kind, count)
    call = getattr(ssd_ops, op)
    expected = call(*arguments)
    with schedule(BLOCKS=RESIDENT), backends.active("counted"):
        backends.counts()
        got = call(*arguments)
        counts = backends.counts()
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    return counts.launches, counts.steps // count, counts.longest, counts.polls // count


# By scene and count, as `work` gives them.
WORK = {
    ("large", 1000): (3, 69210, 2693, 0),
    ("small", 1000): (3, 69160, 2573, 0),
    ("clustered", 1000): (3, 69223, 2584, 0),
    ("pile", 1000): (3, 70088, 2608, 0),
    ("chain", 1000): (3, 72255, 5601, 0),
    ("duplicates", 1000): (3, 69111, 2555, 0),
    ("corner", 1000): (3, 69160, 2573, 0),
    ("classes", 1000): (3, 69159, 2460, 0),
    ("piles", 1000): (3, 70662, 2569, 0),
    ("large", 5000): (11, 41055, 18624, 9),
    ("small", 5000): (11, 59008, 10524, 21),
    ("clustered", 5000): (11, 22170, 5987, 6),
    ("pile", 5000): (11, 16781, 2936, 6),
    ("chain", 5000): (11, 108082, 33963, 30),
    ("duplicates", 5000): (11, 18675, 5690, 6),
    ("corner", 5000): (11, 59004, 10524, 21),
    ("classes", 5000): (11, 62458, 8922, 24),
    ("piles", 5000): (11, 17649, 3145, 6),
    ("large", 20000): (10, 58857, 49904, 12),
    ("chain", 20000): (10, 188536, 42376, 32),
    ("images", 38400): (18, 15549, 14410, 1),
    ("pile", 100000): (10, 1996, 2656, 0),
    ("clustered", 100000): (10, 9951, 28584, 5),
    ("duplicates", 100000): (10, 39354, 56997, 28),
    ("piles", 100000): (10, 2918, 2863, 0),
    ("classes", 100000): (10, 62731, 17866, 31),
    ("corner", 100000): (10, 84674, 66878, 29),
    ("small", 100000): (10, 84675, 66878, 29),
}


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        pytest.param(kind, count, marks=[pytest.mark.slow] if count > 5000 else [])
        for kind, count in WORK
    ],
)
def test_work_is_bounded(kind, count):
    names = ("launches", "steps a box", "steps of the longest", "polls a box")
    for name, got, known in zip(names, work(kind, count), WORK[kind, count], strict=True):
        assert got <= 1.5 * known + 1, f"{name}: {got}, which were {known}"
        assert got >= known / 2 - 1, f"{name}: {got} only, which were {known}: put them into WORK"


def main(counts: list[int]) -> None:
    kinds = list(dict.fromkeys(kind for kind, _ in WORK))
    for count in counts:
        for kind in kinds:
            print(f'    ("{kind}", {count}): {work(kind, count)},', flush=True)


if __name__ == "__main__":
    main([int(count) for count in sys.argv[1:]])
