"""The command line: each command does its work, and every mistake is one sentence and exit code 2."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="the commands read and write pictures with Pillow")

from PIL import Image

from ssd_ops import cli
from ssd_ops.bananas import make_bananas

COMMANDS = ["demo", "make-data", "train", "evaluate", "detect", "info"]


def call(*args):
    """The exit code of a command run in this process."""
    try:
        cli.main([str(arg) for arg in args])
    except SystemExit as stop:
        return 0 if stop.code is None else stop.code
    return 0


@pytest.fixture(scope="module")
def bananas(tmp_path_factory):
    return make_bananas(tmp_path_factory.mktemp("data") / "set", train=8, val=4, size=64)


@pytest.fixture(scope="module")
def run(bananas, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert (
        call("train", bananas, "--out", out, "--preset", "paper", "--epochs", 1, "--batch-size", 4)
        == 0
    )
    return out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command, capsys):
    assert call(command, "--help") == 0
    assert f"example: ssd-ops {command}" in capsys.readouterr().out


def test_train_leaves_checkpoint_history_and_curves(run):
    assert (run / "checkpoint.safetensors").stat().st_size > 100_000
    assert [row["epoch"] for row in json.loads((run / "history.json").read_text())] == [1]
    with Image.open(run / "curves.png") as curves:
        assert curves.width > 600


def test_train_resumes(run, bananas, capsys):
    arguments = ["--preset", "paper", "--epochs", 1, "--batch-size", 4]
    assert call("train", bananas, "--out", run, *arguments, "--resume") == 0
    assert "found" in capsys.readouterr().out


def test_evaluate_prints_measures(run, bananas, capsys):
    assert call("evaluate", run, bananas) == 0
    text = capsys.readouterr().out
    assert re.search(
        r"found \d+ of 4 objects .* \d+ false boxes\nclass error \S+, offset error \S+", text
    )
    assert call("evaluate", run, bananas, "--json") == 0
    measures = json.loads(capsys.readouterr().out)
    assert measures["truths"] == 4
    assert {"found", "false_boxes", "class_error", "offset_error", "ap", "ap50"} <= set(measures)


def test_detect_draws_each_picture_at_its_own_size(run, bananas, tmp_path, capsys):
    wide = tmp_path / "wide.png"
    Image.new("RGB", (150, 70), "green").save(wide)
    source = bananas / "bananas_val" / "images" / "0.png"
    before = source.read_bytes()
    out = source.parent  # the worst place to write to: a picture of this name is there already
    assert call("detect", run, source, wide, "--out", out, "--threshold", 0.9) == 0
    assert source.read_bytes() == before
    assert Image.open(out / "0-2.png").size == (64, 64)
    assert Image.open(out / "wide.png").size == (150, 70)
    assert len(re.findall(r"\d+ found, drawn in", capsys.readouterr().out)) == 2
    (out / "0-2.png").unlink()
    (out / "wide.png").unlink()


def test_make_data_writes_a_set(tmp_path, capsys):
    assert call("make-data", tmp_path / "set", "--train", 2, "--val", 1, "--seed", 3) == 0
    assert len(list((tmp_path / "set" / "bananas_train" / "images").iterdir())) == 2
    assert str(tmp_path / "set") in capsys.readouterr().out


def test_info_says_what_is_compiled(capsys):
    assert call("info") == 0
    text = capsys.readouterr().out
    for word in ("ssd_ops:", "torch:", "compiler", "devices:", "cpu"):
        assert word in text


def test_demo_goes_from_nothing_to_pictures_and_is_quick_again(tmp_path, monkeypatch, capsys):
    from ssd_ops import bananas as maker

    def few(folder, *, seed, **options):
        return make_bananas(folder, train=32, val=12, size=64, seed=seed)

    monkeypatch.setattr(maker, "make_bananas", few)
    out = tmp_path / "demo"
    assert call("demo", "--out", out, "--epochs", 1, "--seed", 2) == 0
    text = capsys.readouterr().out
    assert re.search(r"found \d+ of 12 objects", text)
    with Image.open(out / "detections.png") as sheet:
        assert sheet.width > 4 * 64
    assert (out / "curves.png").exists()
    assert len(list((out / "found").glob("*.png"))) == 12
    stamp = (out / "bananas-2" / "bananas_train" / "label.csv").stat().st_mtime_ns
    assert call("demo", "--out", out, "--epochs", 1, "--seed", 2) == 0
    assert "epoch 1/1" not in capsys.readouterr().err, "a finished training is not repeated"
    assert (out / "bananas-2" / "bananas_train" / "label.csv").stat().st_mtime_ns == stamp


MISTAKES = {
    "no command": [],
    "unknown command": ["paint"],
    "no set": ["train", "nowhere"],
    "unknown preset": ["train", "SET", "--preset", "fast"],
    "epochs": ["train", "SET", "--epochs", "0"],
    "epochs no number": ["train", "SET", "--epochs", "many"],
    "learning rate": ["train", "SET", "--lr", "-1"],
    "learning rate nan": ["train", "SET", "--lr", "nan"],
    "device": ["train", "SET", "--device", "toaster"],
    "precision": ["train", "SET", "--precision", "int3"],
    "nothing to resume": ["train", "SET", "--out", "TMP/new", "--resume"],
    "no checkpoint": ["evaluate", "nowhere", "SET"],
    "checkpoint is a picture": ["evaluate", "SET/bananas_val/images/0.png", "SET"],
    "evaluate without a set": ["evaluate", "RUN", "nowhere"],
    "no picture": ["detect", "RUN", "nowhere.png", "--out", "TMP"],
    "picture is a table": ["detect", "RUN", "SET/bananas_val/label.csv", "--out", "TMP"],
    "threshold": ["detect", "RUN", "SET/bananas_val/images/0.png", "--threshold", "2"],
    "folder holds a set": ["make-data", "SET"],
    "no pictures": ["make-data", "TMP/set", "--train", "0"],
    "seed": ["make-data", "TMP/set", "--seed", "-1"],
}


@pytest.mark.parametrize("arguments", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence(arguments, run, bananas, tmp_path, capsys):
    places = {"SET": bananas, "RUN": run, "TMP": tmp_path}
    words = []
    for word in arguments:
        for name, path in places.items():
            word = re.sub(rf"\b{name}\b", str(path), word)
        words.append(word)
    assert call(*words) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1, errors
    assert errors[0].startswith("ssd-ops")
    assert "Traceback" not in errors[0]


def test_runs_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "ssd_ops", "evaluate", "nowhere", "nowhere"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        timeout=120,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("ssd-ops evaluate: ")
    assert len(result.stderr.splitlines()) == 1
