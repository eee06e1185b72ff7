"""docs/reliability.md shows what a long run did, and no page has a measured number without a record."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from pathlib import Path

import figures
import fuzz
import pytest
from test_performance import MEASURED

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What a script writes from a file of benchmarks/results; each has a test that compares the two.
WRITTEN = re.compile(r"<!-- ([\w ./]+)(?:: [\w ./]+)? -->\n.*?<!-- end(?: of \1)? -->", re.DOTALL)


@pytest.fixture
def record():
    return json.loads(figures.RECORD.read_text())


def test_the_page_is_that_of_the_record(record):
    text = figures.PAGE.read_text()
    assert figures.block(record) in text
    assert text == figures.page(text, record), "run `python tests/figures.py`"


def test_every_figure_is_on_the_page(record):
    for check, column in figures.COLUMNS.items():
        other = copy.deepcopy(record)
        figure = re.search(r"{(\w+)", column[1])[1]
        next(iter(other[check]["done"].values()))[figure] += 1
        assert figures.block(other) != figures.block(record), check


def test_every_op_was_checked(record):
    for check in figures.COLUMNS:
        assert set(record[check]["done"]) <= set(fuzz.OPS)
        made = record[check]["made"]
        assert all(made[name] for name in ("processor", "python", "torch", "commit", "command"))
    assert set(record["examples"]["done"]) == set(record["memory"]["done"]) == set(fuzz.OPS)
    assert all(done["kB"] < 1024 for done in record["memory"]["done"].values())
    assert not any(
        done["faults"]
        for check in ("sanitized", "set", "threshold")
        for done in record[check]["done"].values()
    )


def test_notes_of_one_check_come_together(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "RECORD", tmp_path / "some.json")
    monkeypatch.setattr(figures.sys, "argv", ["/anywhere/pytest/__main__.py", "-k", "nms"])
    figures.note("calls", "nms", calls=2)
    figures.note("calls", "box_iou", calls=1)
    figures.note("calls", "nms", calls=3)
    record = json.loads(figures.RECORD.read_text())
    assert record["calls"]["done"] == {"box_iou": {"calls": 1}, "nms": {"calls": 3}}
    assert record["calls"]["made"]["command"].endswith("pytest -k nms")


@pytest.mark.parametrize("name", ["detector", "host_time"])
def test_the_tables_are_those_of_their_records(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    text, record = script.PAGE.read_text(), json.loads(script.RECORD.read_text())
    assert script.table(record) in text
    assert text == script.page(text, record), f"run `python benchmarks/{name}.py --table`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_has_a_measured_number_of_its_own(page):
    text = re.sub("```.*?```", "", WRITTEN.sub("", page.read_text()), flags=re.DOTALL)
    assert MEASURED.findall(text) == []
