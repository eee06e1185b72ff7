"""docs/performance.md and the README's table say what benchmarks/results/cpu.json says.

And how that is measured.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ssd_ops
from ssd_ops import _ext

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "peers"
# A number with the unit of something measured.
MEASURED = re.compile(r"(?<![\w.-])\d[\d.,]*(?: ?(?:(?:µs|us|ms|kB|MB|GB/s)\b|%)| s\b|x\b(?! \d))")


@pytest.fixture
def load(monkeypatch):
    """load(name): a module of benchmarks/peers."""
    for folder in (FOLDER.parent, FOLDER.parent / "gpu", FOLDER):
        monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module


@pytest.fixture
def page(load):
    return load("page")


@pytest.fixture
def result(page):
    return json.loads(page.DATA.read_text())


def test_the_pages_are_those_of_the_measurement(page, result):
    for path in page.PAGES:
        text = path.read_text()
        assert page.BLOCK.search(text), path
        assert text == page.renewed(text, result), f"{path.name}: run `make performance`"


def test_one_other_digit_is_seen(page, result):
    """In a page, and in each number of the measurement that a page shows."""
    for path in page.PAGES:
        text = path.read_text()
        for found in page.BLOCK.finditer(text):
            place = next(
                found.start(3) + match.start() for match in re.finditer(r"(?<= )\d", found[3])
            )
            other = text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :]
            assert page.renewed(other, result) == text != other
    for key, change in (("cells", "times"), ("memory", "cells"), ("training", "low")):
        other = copy.deepcopy(result)
        row = other[key][0]
        if change == "times":
            row["times"]["ssd_ops"]["us"] *= 1.3
        elif change == "cells":
            row["cells"][0]["peak"] *= 2
        else:
            row["low"] += 1
        text = page.PAGES[0].read_text()
        assert page.renewed(text, other) != text, key


def test_nothing_is_claimed_without_the_measurement(page):
    for path in page.PAGES:
        assert MEASURED.findall(page.by_hand(path.read_text())) == [], path
    assert MEASURED.findall("it takes 0.34 ms, 77x less, 12 % of 8 GB/s") == [
        *("0.34 ms", "77x", "12 %", "8 GB/s")
    ]


def test_every_block_is_on_a_page(page):
    found = {match[2] for path in page.PAGES for match in page.BLOCK.finditer(path.read_text())}
    assert found == page.BLOCKS.keys()


def test_the_plots_show_the_measurement(page, result):
    for op, path in page.PLOTS.items():
        assert page.digest_of(path) == page.digest(result, op), "run `make performance`"
        other = copy.deepcopy(result)
        page.of(other, op)[0]["times"]["ssd_ops"]["us"] += 1
        assert page.digest(other, op) != page.digest(result, op)


def test_cells_that_we_do_not_lead_are_bold(page):
    cell = {"times": {"ssd_ops": {"us": 9.0}, "other": {"us": 3.0}, "an empty op": {"us": 1.0}}}
    assert page.best(cell) == "other"
    assert page.times_ours(page.lead(cell)) == "**0.33x**"
    assert page.times_ours(1.0) == "1x"


@pytest.mark.parametrize(
    ("us", "text"),
    [
        *((0.8134, "0.813 µs"), (999.6, "1,000 µs"), (12.3456, "12.3 µs"), (1234.5, "1.23 ms")),
        *((5.0, "5 µs"), (6.378e6, "6.38 s"), (55e6, "55 s")),
    ],
)
def test_durations(page, us, text):
    assert page.duration(us) == text


def test_every_op_is_measured(load, result):
    ops = {name.removeprefix("ssd_ops::") for name in _ext.op_names()}
    cells = load("scenes").all_cells()
    assert ops <= {cell.op for cell in cells if cell.case != "small"}
    assert ops < {cell.op for cell in cells if cell.case == "small"}  # and multibox_prior
    assert ops - {"grid_anchors"} <= {row["op"] for row in result["memory"]}
    assert [(cell.op, cell.case, cell.count) for cell in cells] == [
        (cell["op"], cell["case"], cell["n"]) for cell in result["cells"]
    ], "measure again: `make rivals`"


def test_memory_is_linear_in_the_candidates(result):
    for row in result["memory"]:
        one, other = row["cells"]
        # The table of all pairs is the result of box_iou itself.
        counts = [c["results"] if row["op"] == "box_iou" else c["n"] for c in (one, other)]
        if (
            row["op"] == "nms"
        ):  # threads, with memory of their own, come in between the two: bytes of a box
            assert max(one["peak"] / one["n"], other["peak"] / other["n"]) <= 100, row["case"]
            continue
        assert other["peak"] <= 1.1 * one["peak"] * counts[1] / counts[0], row["case"]


def test_the_results_are_of_a_whole_run(result):
    about = result["about"]
    assert about["threads"] == 2 and about["environment"]["OMP_WAIT_POLICY"] == "passive"
    assert {"torch", "torchvision", "powerboxes", "lsnms", "sahi"} <= about["versions"].keys()
    assert result["bandwidth"]["copy"] > 0 < result["bandwidth"]["read"]
    for cell in result["cells"]:
        assert {"ssd_ops", "an empty op"} <= cell["times"].keys()
        for times in cell["times"].values():
            assert times["q1"] <= times["us"] <= times["q3"] and times["samples"] >= 1


# How it is measured.


def test_calls_are_interleaved_and_bounded(load):
    measure = load("measure")
    order: list[str] = []

    def call(name, seconds):
        def run():
            order.append(name)
            time.sleep(seconds)

        return run

    runs = {"fast": call("fast", 0.0005), "slow": call("slow", 0.02)}
    times = measure.interleaved(runs, 0.05, random.Random(0))
    assert times["slow"]["samples"] == measure.LEAST_SAMPLES
    assert times["slow"]["samples"] < times["fast"]["samples"] <= measure.MOST_SAMPLES
    assert times["fast"]["us"] < times["slow"]["us"] > 2e4
    changes = sum(a != b for a, b in itertools.pairwise(order))
    assert changes > times["slow"]["samples"]


def test_what_a_rival_would_take(load):
    patience = load("measure").Patience(1.0)
    assert patience.expected("a", 10) == 0
    patience.saw("a", 100, 0.001)
    assert patience.expected("a", 1000) == pytest.approx(0.001 * 10**1.2)
    patience.saw("a", 1000, 0.05)  # grows with the power of 1.7
    assert patience.expected("a", 10_000) == pytest.approx(2.5)
    patience.saw("b", 10, 1e-5)
    patience.saw("b", 100, 1.0)  # it was set up: no growth beyond the square
    assert patience.expected("b", 1000) == pytest.approx(100)


GPP = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


@GPP
def test_a_cell_says_what_happened_to_every_rival(load, monkeypatch):
    measure, scenes, adapters = load("measure"), load("scenes"), load("adapters")

    def broken(*_):
        raise ValueError("no such boxes")

    found = {
        "right": adapters.Adapter("torch", lambda *args: lambda: ssd_ops.nms(*args).numpy()),
        "wrong": adapters.Adapter("torch", lambda *args: lambda: ssd_ops.nms(*args)[2:]),
        "broken": adapters.Adapter("torch", broken),
        "absent": adapters.Adapter("no_such_package", broken),
        "slow": adapters.Adapter("torch", broken),
    }
    monkeypatch.setitem(adapters.ADAPTERS, "nms", found)
    monkeypatch.setitem(measure.LARGEST_COMPILED, "nms", 0)
    patience = measure.Patience(limit=1.0)
    patience.saw(("nms", "uniform", "slow"), 10, 5.0)
    (cell,) = (c for c in scenes.all_cells() if (c.op, c.case, c.count) == ("nms", "uniform", 30))
    options = SimpleNamespace(seconds=0.001, limit=1.0)
    row = measure.measure_cell(cell, options, patience, random.Random(0))
    assert {"ssd_ops", "an empty op", "right", "wrong", "eager", "d2l"} <= row["times"].keys()
    assert row["times"].keys().isdisjoint({"broken", "absent", "slow", "torch.compile"})
    assert row["differs"] == {"wrong": 2}
    assert row["left_out"]["broken"] == "ValueError: no such boxes"
    assert row["left_out"]["absent"].startswith("no_such_package does not import")
    assert row["left_out"]["slow"] == "about 20 s"
    assert row["bytes"] == 30 * 20 + 8 * row["kept"]


@GPP
def test_a_slow_rival_is_timed_once_where_it_is_the_fastest(load, monkeypatch):
    measure, scenes, adapters = load("measure"), load("scenes"), load("adapters")
    (cell,) = (c for c in scenes.all_cells() if (c.op, c.case, c.count) == ("nms", "uniform", 30))
    shape = cell.shape()._replace(rivals={})
    ours = shape.ours(*shape.args)
    calls: list[str] = []

    def adapter(name):
        return adapters.Adapter("torch", lambda *_: lambda: calls.append(name) or ours)

    names = {"absent": 2.0, "second": 3.0, "third": 4.0}
    found = {name: adapter(name) for name in names}
    found["absent"] = found["absent"]._replace(package="no_such_package")
    monkeypatch.setitem(adapters.ADAPTERS, "nms", found)
    for limit, timed in ((1.0, ["second"]), (0.1, [])):
        patience = measure.Patience(limit)
        for name, seconds in names.items():
            patience.saw(("nms", "uniform", name), 30, seconds if limit == 1.0 else 10 * seconds)
        row: dict = {"times": {}, "differs": {}, "left_out": {}}
        calls.clear()
        options = SimpleNamespace(limit=limit)
        assert measure.time_rivals(cell, shape, ours, options, patience, row) == ({}, {})
        assert calls == timed == list(row["times"])
        assert row["left_out"].keys() == names.keys() - set(timed)


@GPP
def test_memory_is_counted_exactly(load, tmp_path):
    """In a process of its own: a block that is freed before the next is made counts once."""
    library = load("empty").compile_library(
        load("memory").COUNTER, str(tmp_path), "counter", "-pthread"
    )
    code = """
import ctypes, memory, torch
counter = ctypes.CDLL(None)
def call():
    for _ in range(3):
        torch.empty(10**6)
    return torch.empty(10**6, dtype=torch.uint8)
print(*memory.peak_of(counter, call))
"""
    path = os.pathsep.join([str(FOLDER), *sys.path])
    env = {**os.environ, "LD_PRELOAD": library, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak, results = map(int, done.stdout.split())
    assert results == 10**6
    assert 4 * 10**6 <= peak < 4.1 * 10**6


@GPP
def test_the_empty_op_takes_the_arguments_of_ours(load):
    empty = load("empty")
    boxes, scores = torch.rand(5, 4), torch.rand(5)
    call = empty.empty_call(ssd_ops.nms, (boxes, scores, 0.5))
    assert call.args[2:] == (0.5, 0)
    assert torch.equal(call(), boxes)
    maps = [torch.zeros(1, 1, 3, 3)]
    assert empty.empty_call(ssd_ops.multibox_priors, (maps, [[0.5]], [[1]]))().shape == (1, 1, 3, 3)
    boxes.requires_grad_()
    assert not empty.empty_call(ssd_ops.nms, (boxes, scores, 0.5))().grad_fn


def test_bytes_are_those_that_have_to_move(load):
    measure, scenes = load("measure"), load("scenes")
    shape = scenes.Shape(
        lambda a, b: a, (torch.zeros(10), torch.zeros(4, dtype=torch.int64)), {}, None
    )
    cell = scenes.Cell("op", "case", 1, lambda: shape)
    assert measure.moved_bytes(cell, shape, torch.zeros(3)) == 40 + 32 + 12
    assert measure.moved_bytes(cell._replace(reads=(1,)), shape, torch.zeros(3)) == 32 + 12
    assert measure.moved_bytes(cell._replace(reads=()), shape, None) == 0
