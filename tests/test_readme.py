"""The README: its first call runs, its op table is complete, its links lead to files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ssd_ops

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OPS = [name for name in ssd_ops.__all__ if name[0].islower()]


def test_the_first_call_runs_and_is_short():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert len([line for line in code.splitlines() if line]) == 6
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["found"].boxes.shape == (8, 200, 4)
    assert names["found"].counts.gt(0).all()


def test_the_table_has_every_op():
    assert re.findall(r"^\| `(\w+)\(", TEXT, re.M) != []
    assert sorted(re.findall(r"^\| `(\w+)\(", TEXT, re.M)) == sorted(OPS)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_to_files_and_headings(page):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\((?!http)([^)]+)\)", prose):
        name, _, heading = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
            anchors = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
            assert heading in anchors, target


def test_no_mark_is_left_to_fill_in():
    assert re.findall(r"@[A-Z_]+@", TEXT) == []
