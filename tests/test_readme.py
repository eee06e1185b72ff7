"""The README: its Python runs, and its files are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_the_tour_runs_and_gives_the_shapes_it_names():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["anchors"].shape == (1, 5444, 4)
    assert [names[name].shape for name in ("offsets", "masks", "cls_labels")] == [
        (2, 21776),
        (2, 21776),
        (2, 5444),
    ]
    assert names["rows"].shape == (2, 5444, 6)
    assert 0 < len(names["kept"]) <= len(names["boxes"])


def test_the_files_it_shows_are_there():
    paths = re.findall(r"\]\((?!http)([^)]+)\)", TEXT)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_no_mark_is_left_to_fill_in():
    assert re.findall(r"@[A-Z_]+@", TEXT) == []
