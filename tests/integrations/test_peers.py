"""The rivals of benchmarks/peers: each that is installed gives our answer in every scene.

`make peers` installs all.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "peers"
sys.path.insert(0, str(FOLDER))
adapters = importlib.import_module("adapters")
RIVALS = [(op, name) for op, found in adapters.ADAPTERS.items() for name in found]


@pytest.fixture(scope="module")
def scenes():
    return importlib.import_module("scenes")


@pytest.fixture(scope="module")
def measure(scenes):
    return importlib.import_module("measure")


def cells(scenes, op: str):
    return [cell for cell in scenes.all_cells() if cell.op == op and cell.count <= 1000]


@pytest.mark.parametrize(("op", "name"), RIVALS)
def test_a_rival_gives_our_answer(scenes, measure, op, name):
    if why := adapters.ADAPTERS[op][name].missing():
        pytest.skip(why)
    compared = 0
    for cell in cells(scenes, op):
        if name not in cell.adapters():
            continue
        shape = cell.shape()
        call = measure.rivals_of(cell, shape, shape.ours(*shape.args))[name]()
        _, differs = measure.compare(call)
        assert not differs, cell.name
        compared += 1
    assert compared >= 3


@pytest.mark.parametrize("op", ["nms", "batched_nms"])
def test_another_answer_is_seen(scenes, measure, op):
    """A rival that keeps one box less, and one that takes another threshold."""
    (cell, *_) = (cell for cell in cells(scenes, op) if cell.count >= 100)
    shape = cell.shape()
    ours = shape.ours(*shape.args)
    assert measure.same_indices(ours.flip(0), ours) == 0
    assert measure.same_indices(ours[1:], ours) == 1
    others = shape.ours(*shape.args[:-1], 0.1)
    assert measure.same_indices(others, ours) == len(ours) - len(others) > 0


def test_a_cell_gives_the_same_numbers_each_time(scenes):
    for cell in cells(scenes, "nms"):
        assert all(map(torch.equal, cell.shape().args[:2], cell.shape().args[:2]))
