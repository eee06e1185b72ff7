"""The tutorial: its Python blocks run one after another, and its commands and settings exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("PIL")
pytest.importorskip("matplotlib")
pytest.importorskip("faster_coco_eval")
pytest.importorskip("safetensors.torch")

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "tutorial.md").read_text()
BLOCKS = [
    (TEXT.count("\n", 0, match.start()) + 2, match[1])
    for match in re.finditer(r"```python\n(.*?)```", TEXT, re.S)
]


def test_every_block_runs():
    assert len(BLOCKS) > 10
    names: dict[str, object] = {"__name__": "tutorial"}
    for line, code in BLOCKS:
        # Empty lines in front, so that an error shows the line of the page.
        exec(compile("\n" * (line - 1) + code, "docs/tutorial.md", "exec"), names)


def test_it_shows_the_commands():
    commands = set(re.findall(r"(?:ssd-ops|-m ssd_ops) (\w[\w-]*)", TEXT))
    assert {"train", "evaluate", "detect", "anchors"} <= commands


def test_its_settings_are_there():
    from ssd_ops.tinyssd.settings import Settings

    known = {"transforms", *vars(Settings()), *vars(Settings().loss)}
    assert set(re.findall(r"`(\w+)=\S+?`", TEXT)) <= known
