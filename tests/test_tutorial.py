"""The tutorial: each of its Python blocks runs, one after another, and its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ssd_ops.tinyssd import cli

pytest.importorskip("PIL")
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
        # Errors then show the line of the page.
        exec(compile("\n" * (line - 1) + code, "docs/tutorial.md", "exec"), names)


def test_its_commands_are_there():
    commands = set(re.findall(r"(?:ssd-ops|-m ssd_ops) (\w[\w-]*)", TEXT))
    assert {"train", "evaluate", "detect", "anchors", "figures"} <= commands
    known = cli._parser()
    for command in commands:
        with pytest.raises(SystemExit) as stop:
            known.parse_args([command, "--help"])
        assert stop.value.code == 0, command


def test_its_settings_are_there():
    from ssd_ops.tinyssd.settings import Settings

    known = {"transforms", *vars(Settings()), *vars(Settings().loss)}
    assert set(re.findall(r"`(\w+)=\S+?`", TEXT)) <= known
