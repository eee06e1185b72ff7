"""The command line: each command does its work, and every mistake is one sentence and exit code 2."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("PIL", reason="the commands read and write images with Pillow")
pytest.importorskip("tyro", reason="the command line is made by tyro")

from PIL import Image

import ssd_ops
from ssd_ops.tinyssd import checkpoint, cli
from ssd_ops.tinyssd.data.draw_bananas import make_bananas
from ssd_ops.tinyssd.measure import evaluate, metrics
from ssd_ops.tinyssd.predict import SHOW_THRESHOLD
from ssd_ops.tinyssd.settings import PRESETS, Settings
from ssd_ops.tinyssd.show import plot

ROOT = Path(__file__).parents[2]
COMMANDS = [
    *("demo", "make-data", "train", "evaluate", "detect", "export", "anchors", "curves", "info"),
]


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
    shown = capsys.readouterr()
    assert f"example: ssd-ops {command}" in shown.out
    assert shown.err == ""


def test_every_command_is_named_without_one_and_without_an_error(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        assert call(*arguments) == 0
        shown = capsys.readouterr()
        assert re.findall(r"^  (\w\S+) +[A-Z]\w", shown.out, re.MULTILINE) == COMMANDS
        assert shown.err == ""


def test_version(capsys):
    assert call("--version") == 0
    assert capsys.readouterr().out == f"ssd-ops {ssd_ops.__version__}\n"


def names_of(record, prefix=""):
    """The names of all settings, those of a record within as `record.name`."""
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if dataclasses.is_dataclass(value):
            yield from names_of(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name


@pytest.mark.parametrize("command", ["train", "anchors"])
def test_every_setting_is_an_option(command, capsys):
    assert call(command, "--help") == 0
    text = capsys.readouterr().out
    names = list(names_of(Settings()))
    assert len(names) > 20
    for name in names:
        option = re.escape(name.replace("_", "-"))
        assert re.search(rf"^[│ ]+--{option}[ ,.]", text, re.MULTILINE), name


def test_help_shows_the_defaults_of_the_preset(capsys):
    shown = []
    for preset in ("chapter", "photos"):
        assert call("train", "--preset", preset, "--help") == 0
        shown.append(
            re.search(r"--nms-threshold .*?default:\W+([\d.]+)\)", capsys.readouterr().out, re.S)[1]
        )
    assert shown == ["0.5", "0.45"]


def options(*words):
    """The settings that the arguments of `train` ask for."""
    return cli.parse("train", ["DATA", *map(str, words)]).keywords["options"]


def test_options_are_stronger_than_the_file_and_that_than_the_preset(tmp_path):
    own = tmp_path / "own.toml"
    own.write_text('preset = "paper"\nepochs = 5\nlr = 0.3\n')
    assert options() == Settings()
    assert options("--preset", "photos") == PRESETS["photos"]
    assert options("--settings", own) == dataclasses.replace(PRESETS["paper"], epochs=5, lr=0.3)
    given = options("--lr", 1e-3, "--settings", own, "--preset=photos", "--no-channels-last")
    wanted = dataclasses.replace(PRESETS["photos"], epochs=5, lr=1e-3, channels_last=False)
    assert given == wanted
    assert options("--preset", "photos", "--input-size", "None").input_size is None


def test_options_take_lists():
    given = options("--channels", 4, 4, 8, 8, 8, 8, "--sizes.0", 0.1, 0.15, "--lr-drops", 3, 5)
    assert given.channels == (4, 4, 8, 8, 8, 8)
    assert given.sizes == ((0.1, 0.15), *Settings().sizes[1:])
    assert given.lr_drops == (3, 5)


def test_options_reach_a_record_within():
    assert options("--preset", "paper", "--loss.sigma", 2).loss.sigma == 2
    assert options("--loss.normalize=positives").loss.normalize == "positives"
    assert options().loss == Settings().loss


def test_a_set_is_drawn_as_the_function_draws_it_and_the_book_has_it():
    def defaults(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.name in ("train", "val", "seed")}

    book = {"train": 1000, "val": 100, "seed": 0}
    assert defaults(cli.make_data) == defaults(make_bananas) == book


def test_one_score_decides_what_is_shown_and_counted():
    def default(function, name):
        return inspect.signature(function).parameters[name].default

    shown = [default(cli.detect, "threshold")]
    shown += [default(function, "threshold") for function in (plot.draw_detections, plot.draw_grid)]
    counting = (evaluate.measure, metrics.count_found)
    shown += [default(function, "score_threshold") for function in counting]
    assert set(shown) == {SHOW_THRESHOLD}


def test_train_leaves_checkpoint_history_and_curves(run):
    assert (run / "checkpoint.safetensors").stat().st_size > 100_000
    assert [
        row["epoch"] for row in map(json.loads, (run / "log.jsonl").read_text().splitlines())
    ] == [1]
    with Image.open(run / "curves.png") as curves:
        assert curves.width > 600


def test_train_resumes(run, bananas, capsys):
    arguments = ["--preset", "paper", "--epochs", 1, "--batch-size", 4]
    assert call("train", bananas, "--out", run, *arguments, "--resume") == 0
    assert "found" in capsys.readouterr().out


def test_train_begins_anew_where_told_to(run, bananas, tmp_path):
    kept = tmp_path / "run"
    shutil.copytree(run, kept)
    arguments = ["train", bananas, "--out", kept, "--preset", "paper", "--epochs", 1]
    assert call(*arguments, "--batch-size", 8) == 2, "a run is not lost"
    assert (kept / "log.jsonl").read_text() == (run / "log.jsonl").read_text()
    assert call(*arguments, "--batch-size", 8, "--overwrite") == 0
    assert (kept / "log.jsonl").read_text() != (run / "log.jsonl").read_text()


def test_evaluate_prints_measures(run, bananas, capsys):
    assert call("evaluate", run, bananas) == 0
    text = capsys.readouterr().out
    assert re.search(
        r"found \d+ of 4 ground truths .* \d+ false boxes\nclass error \S+, offset error \S+", text
    )
    assert call("evaluate", run, bananas, "--json") == 0
    measures = json.loads(capsys.readouterr().out)
    assert measures["gts"] == 4
    assert {"found", "false_boxes", "class_error", "offset_error", "ap", "ap50"} <= set(measures)


def test_evaluate_leaves_measures_curves_and_a_sheet(run, bananas, tmp_path, capsys):
    assert call("evaluate", run, bananas, "--out", tmp_path / "a" / "b", "--worst", 2) == 0
    text = capsys.readouterr().out
    for words in ("COCO AP", "ap50", "ap_small", "COCO AR", "ar100"):
        assert words in text
    out = tmp_path / "a" / "b"
    measures = json.loads((out / "measures.json").read_text())
    assert {"ap75", "ar100", "per_class"} <= set(measures)
    (banana,) = measures["per_class"]
    assert banana == {
        "name": "banana", "gts": 4, "ap": pytest.approx(measures["ap"]),
        "ap50": pytest.approx(measures["ap50"]),
    }  # fmt: skip
    with Image.open(out / "worst.png") as sheet:
        assert 2 * 256 < sheet.width < 3 * 256
    assert Image.open(out / "precision_recall.png").width > 300


def test_evaluate_without_faster_coco_eval(run, bananas, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    assert call("evaluate", run, bananas, "--out", tmp_path) == 0
    said = capsys.readouterr()
    assert re.search(r"found \d+ of 4 ground truths", said.out) and re.search("ap50 +-", said.out)
    assert "No precision-recall curves" in said.err and "pip install 'ssd_ops[train]'" in said.err
    assert json.loads((tmp_path / "measures.json").read_text())["ap"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["measures.json", "worst.png"]


def test_curves_are_drawn_from_the_log(run, capsys):
    (run / "curves.png").unlink()
    assert call("curves", run) == 0
    assert Image.open(run / "curves.png").width > 600


def test_anchors_reports_draws_and_suggests(bananas, tmp_path, capsys):
    (tmp_path / "own.toml").write_text(
        "sizes = [[0.9, 0.95], [0.9, 0.95], [0.9, 0.95], [0.9], [0.9]]"
    )
    out = tmp_path / "anchors.png"
    assert call("anchors", bananas, "--settings", tmp_path / "own.toml", "--out", out) == 0
    text = capsys.readouterr().out
    found = re.search(
        r"8 ground truths, \d+ anchors .* 64 x 64: (\d+) ground truths that no anchor covers", text
    )
    assert int(found[1]) > 0 and "banana  " in text
    better = re.search(
        r"Better anchors, .*: (\d+) ground truths .*\n(sizes = .*\nratios = .*)\n", text
    )
    assert int(better[1]) < int(found[1])
    # What is suggested can be used as it stands.
    (tmp_path / "better.toml").write_text(better[2])
    assert call("anchors", bananas, "--settings", tmp_path / "better.toml", "--out", out) == 0
    again = re.search(r"(\d+) ground truths that no anchor covers", capsys.readouterr().out)
    assert again[1] == better[1]
    assert Image.open(out).width > 5 * 320


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A COCO set of two classes: images of several sizes, several ground truths, crowd and slivers."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        (folder / split).mkdir()
        images, boxes = [], []
        for number in range(count):
            size = int(rng.integers(60, 120)), int(rng.integers(60, 120))
            image = Image.new("RGB", size, (30, 60, 30))
            for place, colour in ((0, "red"), (1, "blue")):
                x, y = 5 + 25 * place, 8 + 20 * place
                image.paste(colour, (x, y, x + 20, y + 25))
                boxes.append({"image_id": number, "category_id": place + 1, "bbox": [x, y, 20, 25]})
            boxes.append({"image_id": number, "category_id": 1, "bbox": [1, 1, 9, 9], "iscrowd": 1})
            boxes.append({"image_id": number, "category_id": 1, "bbox": [1, 1, 0, 9]})
            image.save(folder / split / f"{number}.png")
            images.append({"id": number, "file_name": f"{number}.png"})
        names = [{"id": 1, "name": "stop sign"}, {"id": 2, "name": "mailbox"}]
        text = json.dumps({"images": images, "annotations": boxes, "categories": names})
        (folder / f"{split}.json").write_text(text)
    return folder


def test_coco_sets_train_evaluate_and_detect(photos, tmp_path, capsys):
    own = tmp_path / "own.toml"
    own.write_text('preset = "paper"\nepochs = 5\nbatch_size = 4\n')
    settings = ["--settings", own, "--schedule", "cosine", "--channels", 4, 4, 8, 8, 8, 8]
    run = tmp_path / "run"
    size = ["--epochs", 1, "--input-size", 96, "--letterbox"]
    assert call("train", photos, "--out", run, *settings, *size) == 0
    text = capsys.readouterr().out
    assert "Boxes left out of the training set: 6 degenerate\n" in text
    from ssd_ops.tinyssd.checkpoint import load

    model, saved, meta = load(run)
    assert meta["class_names"] == ["stop sign", "mailbox"]
    assert (saved.epochs, saved.schedule, saved.letterbox) == (1, "cosine", True)
    assert model.preprocess.size == (96, 96)

    assert call("evaluate", run, photos / "val.json") == 0
    text = capsys.readouterr().out
    assert re.search(r"class +gts +ap +ap50\nstop sign +3 .*\nmailbox +3 ", text)
    assert (run / "evaluation" / "worst.png").exists()

    (photos / "val" / "broken.png").write_text("not an image")
    (photos / "val" / "notes.txt").write_text("not an image either")
    out = tmp_path / "found"
    assert call("detect", run, photos / "val", "--out", out, "--threshold", 0.05) == 0
    captured = capsys.readouterr()
    assert "broken.png is left out" in captured.err and "notes.txt" not in captured.err
    report = json.loads((out / "detections.json").read_text())
    assert [Path(row["image"]).name for row in report] == ["0.png", "1.png", "2.png"]
    assert all(Path(row["drawn"]).exists() for row in report)
    for row in report:
        for found in row["detections"]:
            assert found["class"] in meta["class_names"] and 0.05 <= found["score"] <= 1
            assert len(found["box"]) == 4
    (photos / "val" / "broken.png").unlink()


def test_json_files_by_name(photos, tmp_path, capsys):
    run = tmp_path / "run"
    data = [photos / "train.json", "--val", photos / "val.json"]
    small = ["--input-size", 64, "--channels", 4, 4, 8, 8, 8, 8]
    assert call("train", *data, "--out", run, "--epochs", 1, *small) == 0
    assert call("train", data[0], "--out", run, "--epochs", 1, *small) == 2
    assert "--val must name the validation set" in capsys.readouterr().err


def test_detect_draws_each_picture_at_its_own_size(run, bananas, tmp_path, capsys):
    wide = tmp_path / "wide.png"
    Image.new("RGB", (150, 70), "green").save(wide)
    source = bananas / "bananas_val" / "images" / "0.png"
    before = source.read_bytes()
    out = source.parent  # the worst place to write to: an image of this name is there already
    assert call("detect", run, source, wide, "--out", out) == 0
    assert source.read_bytes() == before
    assert Image.open(out / "0-2.png").size == (64, 64)
    assert Image.open(out / "wide.png").size == (150, 70)
    assert len(re.findall(r"\d+ found, drawn in", capsys.readouterr().out)) == 2
    report = json.loads((out / "detections.json").read_text())
    assert all(row["score"] >= SHOW_THRESHOLD for image in report for row in image["detections"])
    (out / "detections.json").unlink()
    (out / "0-2.png").unlink()
    (out / "wide.png").unlink()


@pytest.mark.parametrize("threshold", [0, 1])
def test_a_threshold_may_be_an_end_of_its_range(threshold, run, bananas, tmp_path):
    image = bananas / "bananas_val" / "images" / "0.png"
    assert call("detect", run, image, "--out", tmp_path / "out", "--threshold", threshold) == 0


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
    from ssd_ops.tinyssd.data import draw_bananas as maker

    def few(folder, *, seed, **options):
        return make_bananas(folder, train=32, val=12, size=64, seed=seed)

    monkeypatch.setattr(maker, "make_bananas", few)
    out = tmp_path / "demo"
    with monkeypatch.context() as patch:
        # The trainer returns the model: nothing is read back.
        patch.delattr(checkpoint, "load")
        assert call("demo", "--out", out, "--epochs", 1, "--seed", 2) == 0
    text = capsys.readouterr().out
    steps = ("Drawing 1,100 banana images into", "Training TinySSD", "Drawing what it finds")
    said = [line for line in text.splitlines() if line.startswith(steps)]
    assert [line.startswith(step) for line, step in zip(said, steps, strict=True)] == [True] * 3
    assert re.search(r"found \d+ of 12 ground truths", text)
    with Image.open(out / "detections.png") as sheet:
        assert sheet.width > 4 * 64
    assert (out / "curves.png").exists()
    stamp = (out / "bananas-2" / "bananas_train" / "label.csv").stat().st_mtime_ns
    assert call("demo", "--out", out, "--epochs", 1, "--seed", 2) == 0
    assert "epoch 1/1" not in capsys.readouterr().err, "a finished training is not repeated"
    assert (out / "bananas-2" / "bananas_train" / "label.csv").stat().st_mtime_ns == stamp
    assert call("demo", "--out", out, "--epochs", 2, "--seed", 2) == 0, "its own run makes way"
    assert call("train", out / "bananas-2", "--out", out / "run", "--epochs", 1, "--overwrite") == 0
    assert call("demo", "--out", out, "--epochs", 2, "--seed", 2) == 2, "another run does not"


MISTAKES = {
    "unknown command": ["paint"],
    "no set": ["train", "nowhere"],
    "unknown preset": ["train", "SET", "--preset", "fast"],
    "epochs": ["train", "SET", "--epochs", "0"],
    "epochs no number": ["train", "SET", "--epochs", "many"],
    "learning rate": ["train", "SET", "--lr", "-1"],
    "learning rate nan": ["train", "SET", "--lr", "nan"],
    "device": ["train", "SET", "--device", "toaster"],
    "precision": ["train", "SET", "--precision", "int3"],
    "a run is there": ["train", "SET", "--out", "RUN"],
    "resume and overwrite": ["train", "SET", "--out", "RUN", "--resume", "--overwrite"],
    "nothing to resume": ["train", "SET", "--out", "TMP/new", "--resume"],
    "settings file": ["train", "SET", "--settings", "nowhere.toml"],
    "setting": ["train", "SET", "--learning", "1"],
    "setting before the set": ["train", "--learning", "1", "SET"],
    "setting without a value": ["train", "SET", "--lr"],
    "setting of another kind": ["train", "SET", "--lr", "fast"],
    "setting of neither kind": ["train", "SET", "--clip-norm", "little"],
    "list of another kind": ["train", "SET", "--channels", "many", "more"],
    "flag with a value": ["train", "SET", "--compile", "yes"],
    "train without a set": ["train"],
    "two sets": ["train", "SET", "SET"],
    "info on something": ["info", "SET"],
    "detect without images": ["detect", "RUN"],
    "a file alone": ["train", "SET/bananas_train/label.csv"],
    "no JSON": ["train", "SET/bananas_train/label.csv", "--val", "SET"],
    "anchors of nothing": ["anchors", "nowhere"],
    "curves of nothing": ["curves", "nowhere"],
    "empty folder": ["detect", "RUN", "SET/bananas_val", "--out", "TMP"],
    "no checkpoint": ["evaluate", "nowhere", "SET"],
    "checkpoint is an image": ["evaluate", "SET/bananas_val/images/0.png", "SET"],
    "evaluate without a set": ["evaluate", "RUN", "nowhere"],
    "no image": ["detect", "RUN", "nowhere.png", "--out", "TMP"],
    "image is a table": ["detect", "RUN", "SET/bananas_val/label.csv", "--out", "TMP"],
    "threshold": ["detect", "RUN", "SET/bananas_val/images/0.png", "--threshold", "2"],
    "folder holds a set": ["make-data", "SET"],
    "no images": ["make-data", "TMP/set", "--train", "0"],
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
    assert errors[0].startswith(
        f"ssd-ops {arguments[0]}: " if arguments[0] in COMMANDS else "ssd-ops: "
    )
    assert "Traceback" not in errors[0] and not re.search("[│╭─]", errors[0])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["paint"], f"the command must be one of {', '.join(COMMANDS)}, got 'paint'"),
        (["detect", "run"], "IMAGES must be given"),
        (["train"], "Missing from ssd-ops train: DATA folder of .*"),
        (["train", "a", "--lr", "x"], "Error parsing --lr: could not convert string to float: 'x'"),
        (["train", "a", "--epochs"], "Missing value for argument '--epochs'. Expected 1 values"),
        (
            ["train", "a", "--clip-norm", "x"],
            r"Error parsing --clip-norm: no type matching {None}\|FLOAT could be instantiated .*",
        ),
        (
            ["train", "a", "--channels", "x"],
            r"Error parsing --channels: Could not find valid parse for arguments: \['x'\]",
        ),
        (["train", "a", "--learning", "1"], "Unrecognized options: --learning, 1"),
        (
            ["train", "a", "--loss.sigma", "-2"],
            "Error parsing options.loss: MultiBoxLoss: sigma must be positive, got -2.0",
        ),
        (
            ["make-data", "a", "--val", "x"],
            r"Error parsing --val: invalid literal for int\(\) with base 10: 'x'",
        ),
    ],
)
def test_the_parser_speaks_plainly(words, sentence, capsys):
    assert call(*words) == 2
    help = f"(; `ssd-ops {words[0]} --help` shows all arguments)?"
    assert re.fullmatch(rf"ssd-ops( {words[0]})?: {sentence}{help}\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    "arguments", [["--traceback", "curves", "x"], ["curves", "x", "--traceback"]]
)
def test_traceback_shows_where_an_error_arose(arguments):
    with pytest.raises(FileNotFoundError):
        cli.main(arguments)


def test_ctrl_c_is_one_line_and_code_130(monkeypatch, capsys):
    def stop():
        raise KeyboardInterrupt("train: stopped")

    monkeypatch.setattr(cli, "info", stop)
    assert call("info") == 130
    assert capsys.readouterr().err == "ssd-ops info: train: stopped\n"


def test_a_reader_that_has_gone_is_no_error_to_speak_of():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as gone:
        result = subprocess.run(
            [sys.executable, "-m", "ssd_ops", "info"],
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": ""},
            timeout=120,
        )
    assert (result.returncode, result.stderr) == (1, "")


WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Missing(PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return None

sys.meta_path.insert(0, Missing)
from ssd_ops.tinyssd.cli import main
main(sys.argv[1:])
"""
EXTRA = ["tyro", "PIL", "matplotlib", "tqdm", "safetensors", "faster_coco_eval", "pooch"]


@pytest.mark.parametrize(
    ("words", "code", "out", "err"),
    [
        (["info"], 0, "devices:", ""),
        ([], 0, "All commands but info need tyro: pip install 'ssd_ops[train]'", ""),
        (["train", "x"], 2, "", "ssd-ops train: tyro is needed: pip install 'ssd_ops[train]'"),
    ],
)
def test_without_the_extra_train(words, code, out, err):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(missing=EXTRA), *words],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert (result.returncode, result.stderr.strip()) == (code, err)
    assert out in result.stdout


def test_runs_as_a_module():
    result = subprocess.run(
        [sys.executable, "-m", "ssd_ops", "evaluate", "nowhere", "nowhere"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("ssd-ops evaluate: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture
def file_size():
    """file_size(limit): no file of this process can be larger, as on a disk with that much room."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, ignored)


def train_on(run, bananas, epochs):
    options = ("--preset", "paper", "--schedule", "constant", "--batch-size", 4, "--epochs", epochs)
    return call(
        "train", bananas, "--out", run, *options, "--resume" if epochs > 1 else "--overwrite"
    )


def test_a_full_disk_while_a_checkpoint_is_written(bananas, tmp_path, file_size, capsys):
    out = tmp_path / "run"
    assert train_on(out, bananas, 1) == 0
    path = out / checkpoint.FILE_NAME
    before = path.read_bytes()
    capsys.readouterr()
    file_size(len(before) // 2)
    assert train_on(out, bananas, 2) == 2
    file_size(resource.RLIM_INFINITY)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        f"ssd-ops train: {path}: File too large; it cannot be written, and what was there before is whole"
    )
    assert path.read_bytes() == before
    assert sorted(os.listdir(out)) == [path.name, "curves.png", "log.jsonl"]
    assert train_on(out, bananas, 2) == 0
    assert checkpoint.load(out)[2]["epoch"] == 2


def test_a_folder_that_cannot_be_written(bananas, tmp_path, monkeypatch, capsys):
    """Root may write where the mode forbids it, so the system is told to refuse."""
    real = os.mkdir

    def refuse(path, *args, **options):
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **options)

    monkeypatch.setattr(os, "mkdir", refuse)
    for command in (("train", bananas, "--out"), ("make-data",)):
        assert call(*command, tmp_path / "new") == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(f"ssd-ops {command[0]}: {tmp_path / 'new'}: Permission denied"), said
    assert os.listdir(tmp_path) == []
