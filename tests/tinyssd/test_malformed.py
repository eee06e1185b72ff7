"""Files that are broken, or made to do harm: each is one named error, writes nothing and runs nothing."""

import copy
import io
import json
import pickle
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_bananas import png

from ssd_ops.tinyssd import checkpoint
from ssd_ops.tinyssd.checkpoint import load
from ssd_ops.tinyssd.cli import main
from ssd_ops.tinyssd.data.coco import CocoDetection
from ssd_ops.tinyssd.data.images import DataError, read_image
from ssd_ops.tinyssd.optimizer import make_optimizer
from ssd_ops.tinyssd.settings import PRESETS, make_model, read_settings

safetensors_torch = pytest.importorskip("safetensors.torch")
Image = pytest.importorskip("PIL.Image")

SETTINGS = replace(PRESETS["paper"], channels=(2, 2, 2, 2, 2, 2), device="cpu", epochs=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A good checkpoint, with what an optimizer remembers: its content, its tensors and its bytes."""
    model = make_model(SETTINGS, 2, (64, 64))
    optimizer = make_optimizer(SETTINGS, model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    path = tmp_path_factory.mktemp("whole") / checkpoint.FILE_NAME
    checkpoint.save(path, model, optimizer, SETTINGS, ["a", "b"], [])
    assert load(path)[2]["class_names"] == ["a", "b"]
    return *checkpoint.read(path), path.read_bytes()


def without(name):
    return lambda content, tensors: content.pop(name)


def with_(name, value):
    return lambda content, tensors: content.update({name: value})


def setting(name, value):
    return lambda content, tensors: content["settings"].update({name: value})


def tensor(name, value):
    return lambda content, tensors: tensors.update({name: value})


CHECKPOINTS = {
    **{f"no {name}": without(name) for name in ("settings", "size", "class_names", "history")},
    "settings as a list": with_("settings", [["lr", 0.1]]),
    "settings as a text": with_("settings", "paper"),
    "no settings": with_("settings", None),
    "one size": with_("size", [64]),
    "three sizes": with_("size", [64, 64, 3]),
    "size as texts": with_("size", ["64", "64"]),
    "size as fractions": with_("size", [64.5, 64.0]),
    "size as truths": with_("size", [True, True]),
    "no pixels": with_("size", [0, 64]),
    "negative size": with_("size", [64, -64]),
    "classes as a number": with_("class_names", 2),
    "classes as an object": with_("class_names", {"a": 0, "b": 1}),
    "classes as numbers": with_("class_names", [0, 1]),
    "no classes": with_("class_names", []),
    "another count of classes": with_("class_names", ["a"]),
    "history as a number": with_("history", 3),
    "history as texts": with_("history", ["epoch 1"]),
    "an unknown setting": setting("speed", 3),
    "a negative rate": setting("lr", -1),
    "a rate as a text": setting("lr", "fast"),
    "an unknown optimizer": setting("optimizer", "sgd; import os"),
    "an unknown device": setting("device", "toaster"),
    "too few channels": setting("channels", [2, 2]),
    "no channels": setting("channels", None),
    "a network of terabytes": setting("channels", [2, 2, 2, 2, 2, 100_000_000]),
    "other anchors": setting("ratios", [[1]] * 5),
    "an unknown loss": setting("loss", {"cls_loss": "none"}),
    "the loss as a list": setting("loss", [1]),
    "a weight of another shape": tensor("model.blk_0.0.0.weight", torch.zeros(2, 3, 3)),
    "a weight too many": tensor("model.blk_9.weight", torch.zeros(1)),
    "an optimizer of another network": tensor("optimizer.exp_avg.blk_9.weight", torch.zeros(1)),
    "an optimizer of another shape": tensor("optimizer.exp_avg.blk_0.0.0.weight", torch.zeros(1)),
    "a weight too few": lambda content, tensors: tensors.pop("model.blk_0.0.0.weight"),
    "no weights": lambda content, tensors: tensors.clear(),
}


def assert_refused(path, match="load: checkpoint must"):
    with pytest.raises(ValueError, match=match) as caught:
        load(path, device="cpu")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500 + len(str(path))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_of_another_form(whole, tmp_path, name):
    content, tensors = copy.deepcopy(whole[0]), dict(whole[1])
    CHECKPOINTS[name](content, tensors)
    path = tmp_path / checkpoint.FILE_NAME
    metadata = {"format": checkpoint.FORMAT, "ssd_ops": json.dumps(content)}
    safetensors_torch.save_file(tensors, path, metadata)
    assert_refused(path)


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {},
        {"format": "pt"},
        {"format": checkpoint.FORMAT},
        *(
            {"format": checkpoint.FORMAT, "ssd_ops": text}
            for text in ("", "{", "[]", "null", "3", '"x"', "[" * 100_000, "{}", "\0")
        ),
    ],
    ids=lambda metadata: str(metadata)[:60],
)
def test_a_checkpoint_that_says_nothing_of_its_run(whole, tmp_path, metadata):
    path = tmp_path / checkpoint.FILE_NAME
    safetensors_torch.save_file(whole[1], path, metadata)
    assert_refused(path, "load: checkpoint must be one that `train` of this version wrote")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.3, 0.9, 0.999])
def test_a_checkpoint_that_is_cut_off(whole, tmp_path, share):
    path = tmp_path / checkpoint.FILE_NAME
    path.write_bytes(whole[2][: int(share * len(whole[2]))])
    assert_refused(path, "load: checkpoint must be a whole safetensors file")


@pytest.mark.parametrize("size", [0, 7, 2**40, 2**63, 2**64 - 1])
def test_a_checkpoint_with_a_head_of_another_size(whole, tmp_path, size):
    path = tmp_path / checkpoint.FILE_NAME
    path.write_bytes(struct.pack("<Q", size) + whole[2][8:])
    assert_refused(path, "load: checkpoint must be a whole safetensors file")


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "run")


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_no_pickle_is_run(tmp_path, kind):
    path, trace = tmp_path / checkpoint.FILE_NAME, tmp_path / "trace"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Harm(trace)))
    else:
        torch.save({"model": Harm(trace)}, path)
    assert_refused(path, "load: checkpoint must be a whole safetensors file")
    assert not trace.exists()


# Images

FORMATS = ("png", "jpeg", "webp", "tiff", "gif", "bmp", "ppm")


def encoded(kind, size=(40, 30)):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


IMAGES = {
    "nothing": b"",
    "a text": b"no image",
    "zeros": bytes(1000),
    "a page": b"<html><body>404</body></html>",
    "a drawing": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "a program": b"\x7fELF" + bytes(100),
    "a pickle": pickle.dumps([1]),
    "no pixels": png(0, 10, zlib.compress(b"")),
    "more pixels than the limit": png(100_000, 100_000, zlib.compress(b"")),
    "pixels that are no zlib": png(10, 10, b"junk"),
    **{f"{kind}, cut at its head": encoded(kind)[:12] for kind in FORMATS},
    **{f"{kind}, cut in the middle": encoded(kind)[: len(encoded(kind)) // 2] for kind in FORMATS},
}


@pytest.mark.parametrize("name", IMAGES)
def test_a_broken_image(tmp_path, name):
    path = tmp_path / "image"
    path.write_bytes(IMAGES[name])
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert str(caught.value) and "\n" not in str(caught.value)
    document = {
        "images": [{"id": 1, "file_name": "image"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"image\b.*must be a readable image"):
        CocoDetection(tmp_path / "train.json")[0]


# COCO files, with one good image

DEEP = {"a": None}
for _ in range(400):
    DEEP = {"a": DEEP}
ENTRIES = [None, 3, "x", [], {}, [[]], True, 1e400, DEEP]


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("number", range(len(ENTRIES)))
def test_a_coco_file_with_an_entry_of_another_kind(tmp_path, key, number):
    (tmp_path / "image.png").write_bytes(encoded("png"))
    document = {
        "images": [{"id": 1, "file_name": "image.png"}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    document[key].append(ENTRIES[number])
    (tmp_path / "train.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=rf"train\.json, {key}\[1\]: "):
        CocoDetection(tmp_path / "train.json")


# Settings, and what the command line says

TOMLS = {
    "no TOML": "epochs",
    "bytes": b"\xff\xfe",
    "an unknown setting": "speed = 3",
    "an unknown table": "[data]\nx = 1",
    "a text for a number": 'epochs = "many"',
    "infinity": "lr = inf",
    "NaN": "lr = nan",
    "a date": "epochs = 2026-01-01",
    "an unknown preset": 'preset = "best"',
    "a preset that is no text": "preset = [1]",
    "a loss that is no table": "loss = 3",
    "an unknown option": "[loss]\npower = 1",
    "a deep list": f"sizes = {'[' * 50}{']' * 50}",
}


@pytest.mark.parametrize("name", TOMLS)
def test_settings_of_another_form(tmp_path, capsys, name):
    content, path = TOMLS[name], tmp_path / "settings.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="settings: "):
        read_settings(path)
    with pytest.raises(SystemExit) as caught:
        main(["train", str(tmp_path), "--out", str(tmp_path / "out"), "--settings", str(path)])
    assert caught.value.code not in (0, None)
    said = capsys.readouterr().err + str(caught.value.code)
    assert "settings: " in said and "Traceback" not in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["settings.toml"]
