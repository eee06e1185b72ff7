"""The trainer on rectangles: it learns, resumes to the same bits, and survives what goes wrong."""

import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssd_ops import ops
from ssd_ops.tinyssd import checkpoint
from ssd_ops.tinyssd import train as trainer
from ssd_ops.tinyssd.checkpoint import load
from ssd_ops.tinyssd.data.images import DataError
from ssd_ops.tinyssd.data.transforms import apply_transforms, augment
from ssd_ops.tinyssd.files import replace_file
from ssd_ops.tinyssd.loss import LossOptions, MultiBoxLoss
from ssd_ops.tinyssd.model import TinySSD
from ssd_ops.tinyssd.optimizer import make_scheduler
from ssd_ops.tinyssd.predict import predict
from ssd_ops.tinyssd.preprocess import Preprocess
from ssd_ops.tinyssd.settings import (
    PRESETS,
    Settings,
    pick_device,
    pick_dtype,
    read_settings,
)
from ssd_ops.tinyssd.train import train

safetensors_torch = pytest.importorskip("safetensors.torch")

QUICK = replace(PRESETS["paper"], epochs=3, batch_size=4, input_size=None, device="cpu")


def rectangles(count, seed, size=64):
    """A bright rectangle on dark noise in every image."""
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 60, (count, 3, size, size), dtype=torch.uint8, generator=g)
    labels = torch.zeros(count, 1, 5)
    for image, row in zip(images, labels, strict=True):
        sides = torch.randint(size // 4, size // 2, (2,), generator=g)
        x1, y1 = (int(torch.randint(0, size - int(s), (1,), generator=g)) for s in sides)
        x2, y2 = x1 + int(sides[0]), y1 + int(sides[1])
        image[:, y1:y2, x1:x2] = 230
        row[0, 1:] = torch.tensor([x1, y1, x2, y2]) / size
    return SimpleNamespace(images=images, labels=labels, class_names=["rectangle"])


@pytest.fixture(scope="module")
def sets():
    return rectangles(10, seed=1), rectangles(6, seed=2)


@pytest.fixture(scope="module")
def unbroken(sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unbroken")
    model, history = train(QUICK, *sets, folder, progress=False)
    return folder, model, history


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def stop_in_epoch(monkeypatch, epoch, error, after_steps=1):
    """Make the given epoch (from 0) end in an error after some of its steps."""
    real = trainer.augment
    calls = []

    def broken(images, labels, settings, rng, **which):
        calls.append(len(images))
        if sum(calls) > 10 * epoch and len(calls) > 3 * epoch + after_steps:
            raise error
        return real(images, labels, settings, rng, **which)

    monkeypatch.setattr(trainer, "augment", broken)


def test_learns_to_find_rectangles(tmp_path):
    settings = replace(QUICK, epochs=8, lr=0.03)
    _, history = train(
        settings, rectangles(120, seed=1), rectangles(20, seed=2), tmp_path, progress=False
    )
    assert history[-1]["loss"] < history[0]["loss"] / 2
    assert history[-1]["found"] >= 10 and history[-1]["gts"] == 20


def test_history_and_files(unbroken):
    folder, model, history = unbroken
    assert [row["epoch"] for row in history] == [1, 2, 3]
    assert set(history[0]) == {
        "epoch", "loss", "class_error", "offset_error", "lr", "examples_per_second",
        "val_class_error", "val_offset_error", "found", "gts", "false_boxes", "ap", "ap50", "ap75",
    }  # fmt: skip
    lines = (folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == history
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoint.safetensors",
        "log.jsonl",
    ]
    assert not model.training


def test_first_step_is_the_loop_written_plainly(sets, tmp_path):
    """One epoch of one batch: the weights are those of a plain step of gradient descent."""
    settings = replace(QUICK, epochs=1, batch_size=10, flip=0.0, flip_vertical=0.0)
    settings = replace(settings, match_iou=0.5, optimizer="sgd", precision="float32")
    settings = replace(settings, lr=4e-5, schedule="constant")
    model, history = train(settings, *sets, tmp_path, progress=False)
    torch.manual_seed(settings.seed)
    plain = TinySSD(1, preprocess=Preprocess((64, 64), (127.5,) * 3, (64.0,) * 3))
    plain.to(memory_format=torch.channels_last)
    order = torch.from_numpy(np.random.default_rng((settings.seed, 0)).permutation(10))
    images, labels = sets[0].images[order], sets[0].labels[order]
    anchors, cls_preds, bbox_preds = plain((images.float() - 127.5) / 64.0)
    bbox_labels, bbox_masks, cls_labels = ops.multibox_target(anchors, labels)
    loss = MultiBoxLoss(**vars(settings.loss))(
        cls_preds, cls_labels, bbox_preds, bbox_labels, bbox_masks
    ).mean()
    loss.backward()
    assert history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    with torch.no_grad():
        for parameter in plain.parameters():
            step = parameter.grad + settings.weight_decay * parameter
            parameter -= settings.lr * step
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-6, rtol=1e-4)


def test_same_seed_same_bits(unbroken, sets, tmp_path):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    model, _ = train(QUICK, *sets, tmp_path, progress=False)
    assert_same_bits(state(model), state(unbroken[1]))
    assert torch.equal(torch.get_rng_state(), before), "the caller's random state was touched"
    other, _ = train(replace(QUICK, seed=1), *sets, tmp_path, overwrite=True, progress=False)
    assert not torch.equal(other.cls_0.weight, model.cls_0.weight)


def test_every_epoch_shows_each_image_once_in_an_order_of_its_own(sets, tmp_path, monkeypatch):
    real, seen = trainer.augment, []

    def look(images, *args, **which):
        seen.extend(image.sum().item() for image in images)
        return real(images, *args, **which)

    monkeypatch.setattr(trainer, "augment", look)
    train(replace(QUICK, epochs=2), *sets, tmp_path, progress=False)
    first, second = seen[:10], seen[10:]
    assert sorted(first) == sorted(second) == sorted(image.sum().item() for image in sets[0].images)
    assert first != second


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_interrupted_and_resumed_ends_with_the_same_bits(
    unbroken, sets, tmp_path, monkeypatch, epoch
):
    _, whole, history = unbroken
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, epoch, KeyboardInterrupt)
        with pytest.raises(
            KeyboardInterrupt, match=rf"stopped in epoch {epoch + 1}; .* the {epoch} fin"
        ):
            train(QUICK, *sets, tmp_path, progress=False)
    left, settings, meta = load(tmp_path)
    assert meta["epoch"] == epoch == len(meta["history"]) and settings == QUICK
    assert len(predict(left, sets[1].images[0]).scores) > 0
    model, resumed = train(QUICK, *sets, tmp_path, resume=True, progress=False)
    assert_same_bits(state(model), state(whole))
    assert_same_bits(*(safetensors_torch.load_file(f / checkpoint.FILE_NAME)
                       for f in (tmp_path, unbroken[0])))  # fmt: skip
    for row, expected in zip(resumed, history, strict=True):
        row, expected = dict(row), dict(expected)
        row.pop("examples_per_second"), expected.pop("examples_per_second")
        assert row == expected


def test_resume_of_a_finished_run_changes_nothing(unbroken, sets):
    folder, whole, history = unbroken
    model, again = train(QUICK, *sets, folder, resume=True, progress=False)
    assert again == history
    assert_same_bits(state(model), state(whole))


def test_a_run_is_not_lost_to_a_new_one(sets, tmp_path):
    """Unless that is asked for."""
    train(QUICK, *sets, tmp_path, progress=False)
    path = tmp_path / checkpoint.FILE_NAME
    before = path.read_bytes()
    with pytest.raises(
        FileExistsError, match=r"out_dir must hold no run, got .* 3 finished epochs"
    ):
        train(replace(QUICK, seed=1), *sets, tmp_path, progress=False)
    assert path.read_bytes() == before
    train(replace(QUICK, seed=1, epochs=1), *sets, tmp_path, overwrite=True, progress=False)
    assert load(tmp_path)[2]["epoch"] == 1
    path.write_bytes(b"someone's own")
    with pytest.raises(FileExistsError, match="with another file; resume or overwrite it"):
        train(QUICK, *sets, tmp_path, progress=False)
    assert path.read_bytes() == b"someone's own"


def test_a_run_stopped_in_its_first_epoch_may_be_begun_again(unbroken, sets, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_in_epoch(patch, 0, KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            train(replace(QUICK, seed=1), *sets, tmp_path, progress=False)
    model, _ = train(QUICK, *sets, tmp_path, progress=False)
    assert_same_bits(state(model), state(unbroken[1]))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_constant_schedule_can_be_prolonged(sets, tmp_path, optimizer):
    """And momentum is resumed, of either optimizer."""
    short = Settings(
        epochs=1, batch_size=5, lr=0.01, momentum=0.9, optimizer=optimizer, device="cpu"
    )
    train(short, *sets, tmp_path / "a", progress=False)
    longer = replace(short, epochs=2)
    model, history = train(longer, *sets, tmp_path / "a", resume=True, progress=False)
    whole, _ = train(longer, *sets, tmp_path / "b", progress=False)
    assert len(history) == 2
    assert_same_bits(state(model), state(whole))


def test_resume_refuses_what_does_not_fit(unbroken, sets, tmp_path):
    folder = unbroken[0]
    for change, message in (
        ({"lr": 0.5}, r"lr must be .* as in the checkpoint, got 0\.5"),
        ({"epochs": 5}, "epochs must be 3 as in the checkpoint, got 5"),
        ({"loss": LossOptions()}, r"loss\.offset_loss must be 'smooth_l1' as in the checkpoint"),
    ):
        with pytest.raises(ValueError, match=message):
            train(replace(QUICK, **change), *sets, folder, resume=True, progress=False)
    other = rectangles(4, seed=3, size=32)
    with pytest.raises(ValueError, match="train_set must have the classes and the image size"):
        train(QUICK, other, other, folder, resume=True, progress=False)
    with pytest.raises(FileNotFoundError, match="checkpoint must be a file"):
        train(QUICK, *sets, tmp_path, resume=True, progress=False)


def test_not_finite_loss_names_the_step(sets, tmp_path):
    settings = replace(QUICK, lr=1e30, schedule="constant", precision="float32")
    with pytest.raises(FloatingPointError, match=r"loss must be finite, got .* at step \d+, in ep"):
        train(settings, *sets, tmp_path, progress=False)
    assert load(tmp_path)[2]["epoch"] == 0, "the checkpoint from before is left"


@pytest.mark.parametrize("lr", [1e20, 1e38])
def test_what_the_last_step_of_an_epoch_spoils_is_not_stored(sets, tmp_path, lr):
    """One step an epoch: its loss is finite, what it leaves is not, or predicts nothing finite."""
    settings = replace(
        QUICK, lr=lr, optimizer="sgd", schedule="constant", precision="float32", batch_size=10
    )
    with pytest.raises(FloatingPointError, match=r"weights and predictions must be .* epoch 1;"):
        train(settings, *sets, tmp_path, progress=False)
    left, _, meta = load(tmp_path)
    assert meta["epoch"] == 0 and all(t.isfinite().all() for t in left.state_dict().values())


def test_weights_that_are_not_finite_are_not_stored_where_predictions_are(
    sets, tmp_path, monkeypatch
):
    """An infinite variance makes a channel zero, and no prediction tells."""
    real = trainer.evaluate

    def spoil(model, *args, **options):
        model.blk_0[0][1].running_var[0] = math.inf
        return real(model, *args, **options)

    monkeypatch.setattr(trainer, "evaluate", spoil)
    with pytest.raises(FloatingPointError, match="weights and predictions must be finite"):
        train(QUICK, *sets, tmp_path, progress=False)
    assert load(tmp_path)[2]["epoch"] == 0


def test_not_finite_loss_names_the_batch(sets, tmp_path):
    named = SimpleNamespace(**vars(sets[0]), names=[f"{n}.png" for n in range(10)])
    settings = replace(QUICK, lr=1e30, schedule="constant", precision="float32", batch_size=3)
    with pytest.raises(FloatingPointError, match=r"of the batch of images \d\.png, \d\.png, \d"):
        train(settings, named, sets[1], tmp_path, progress=False)


KILLED = """
import json, os, signal, sys, torch
sys.path.insert(0, {tests!r})
from test_train import QUICK, rectangles
from ssd_ops.tinyssd import train as trainer
real, calls = trainer.augment, []
def die(*args, **kwargs):
    calls.append(1)
    if len(calls) == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
trainer.augment = die
trainer.train(QUICK, rectangles(10, seed=1), rectangles(6, seed=2), {out!r}, progress=False)
"""


@pytest.mark.parametrize("step", [2, 8])
def test_killed_in_mid_epoch_loses_that_epoch_at_most(unbroken, sets, tmp_path, step):
    """kill -9 in the first and in the third epoch, each of three steps."""
    code = KILLED.format(tests=os.path.dirname(__file__), out=str(tmp_path), step=step)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=240)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert load(tmp_path)[2]["epoch"] == (step - 1) // 3
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == list(range(1, 1 + (step - 1) // 3))
    model, _ = train(QUICK, *sets, tmp_path, resume=True, progress=False)
    assert_same_bits(state(model), state(unbroken[1]))


class Images:
    """Images of two shapes, one of them without a ground truth, read one by one."""

    class_names = ("rectangle",)
    names = tuple("abcdefgh")

    def __init__(self, transforms=None):
        self.made = rectangles(8, seed=5), rectangles(8, seed=6, size=40)
        self.transforms = transforms

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index >= 8:
            raise IndexError(index)
        made = self.made[index % 2]
        image, rows = made.images[index], made.labels[index][: int(index > 0)]
        if self.transforms is None:
            return image, rows
        return apply_transforms(self.transforms, image, rows, self.names[index])


def noisy(image, boxes, labels):
    return image ^ torch.randint(0, 8, image.shape, dtype=torch.uint8), boxes, labels


@pytest.mark.parametrize("letterbox", [False, True])
def test_pictures_of_any_size_from_workers_resume_to_the_same_bits(tmp_path, letterbox):
    settings = replace(QUICK, epochs=2, input_size=48, letterbox=letterbox, workers=2)
    settings = replace(settings, channels=(4, 4, 8, 8, 8, 8))
    own = Images(), Images()
    moving = Images(noisy), Images()
    model, history = train(settings, *moving, tmp_path / "a", progress=False)
    assert history[-1]["gts"] == 7 and model.preprocess.letterbox == letterbox
    steady, _ = train(replace(settings, epochs=1, schedule="constant"), *own, tmp_path / "s",
                      progress=False)  # fmt: skip
    assert not torch.equal(steady.cls_0.weight, model.cls_0.weight)
    constant = replace(settings, schedule="constant")
    whole, _ = train(constant, *moving, tmp_path / "b", progress=False)
    train(replace(constant, epochs=1), *moving, tmp_path / "c", progress=False)
    # Where images are kept and how many workers there are is free; the result is not.
    resumed, _ = train(
        replace(constant, workers=0, cache_gb=0),
        *moving,
        tmp_path / "c",
        resume=True,
        progress=False,
    )
    assert_same_bits(state(resumed), state(whole))


def test_sizes_ratios_and_channels_are_the_models(sets, tmp_path):
    settings = replace(
        QUICK,
        epochs=1,
        channels=[4, 8, 8, 8],
        sizes=[[0.2], [0.4, 0.5], [0.9]],
        ratios=[[1, 2]] * 3,
    )
    model, _ = train(settings, *sets, tmp_path, progress=False)
    assert model.channels == (4, 8, 8, 8) and model.ratios == [[1.0, 2.0]] * 3
    assert load(tmp_path)[1] == settings and settings.channels == (4, 8, 8, 8)
    with pytest.raises(ValueError, match="TinySSD: sizes must be 5 lists"):
        train(replace(settings, channels=QUICK.channels), *sets, tmp_path / "x", progress=False)


def test_load_gives_the_trained_model(unbroken, sets):
    folder, model, history = unbroken
    for path in (folder, str(folder / checkpoint.FILE_NAME)):
        loaded, settings, meta = load(path, device="cpu")
        assert settings == QUICK and meta["class_names"] == ["rectangle"]
        assert meta["epoch"] == 3 and meta["history"] == history
        assert loaded.preprocess == Preprocess((64, 64), (127.5,) * 3, (64.0,) * 3)
        assert loaded.match_iou == model.match_iou == QUICK.match_iou != 0.5
        assert loaded.nms_threshold == model.nms_threshold == QUICK.nms_threshold != 0.5
        assert_same_bits(state(loaded), state(model))
        for got, expected in zip(
            predict(loaded, sets[1].images[0]), predict(model, sets[1].images[0]), strict=True
        ):
            assert torch.equal(got, expected)


def test_load_refuses_foreign_and_damaged_files(unbroken, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint must be a file, got .*nothing"):
        load(tmp_path / "nothing")
    whole = (unbroken[0] / checkpoint.FILE_NAME).read_bytes()
    for name, content in {
        "empty": b"",
        "text": b"not a checkpoint",
        "cut": whole[: len(whole) // 2],
        "head cut": whole[100:],
    }.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match="load: checkpoint must be a whole safetensors file"):
            load(path)
    foreign = tmp_path / "foreign"
    safetensors_torch.save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match="load: checkpoint must be one that `train`"):
        load(foreign)
    for key, value in {"settings": {"lr": -1}, "class_names": ["a"] * 9}.items():
        content, tensors = checkpoint.read(unbroken[0] / checkpoint.FILE_NAME)
        content[key] = {**content[key], **value} if isinstance(value, dict) else value
        metadata = {"format": checkpoint.FORMAT, "ssd_ops": json.dumps(content)}
        safetensors_torch.save_file(tensors, foreign, metadata)
        with pytest.raises(ValueError, match="load: checkpoint must fit this version") as caught:
            load(foreign)
        assert "\n" not in str(caught.value)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    replace_file(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    replace_file(path, b"new")
    assert path.read_bytes() == b"new" and len(list(tmp_path.iterdir())) == 1


def test_interrupt_while_a_checkpoint_is_written(sets, tmp_path, monkeypatch):
    real, calls = os.replace, []

    def interrupt(*paths):
        calls.append(paths)
        # The third file: the checkpoint of the first finished epoch.
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt, match=r"stopped in epoch 1; .* holds the 0 finished"):
            train(QUICK, *sets, tmp_path, progress=False)
    assert load(tmp_path)[2]["epoch"] == 0


def test_progress_bar_shows_errors_and_speed(sets, tmp_path, capfd):
    pytest.importorskip("tqdm")
    train(replace(QUICK, epochs=1), *sets, tmp_path, progress=True)
    out, err = capfd.readouterr()
    for word in ("epoch 1/1", "class error", "offset error", "examples/s"):
        assert word in err
    assert "of 6 found" in out


def test_missing_extras_are_named(sets, tmp_path, monkeypatch):
    for module, progress in (("tqdm", True), ("safetensors.torch", False)):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(ImportError, match=r"pip install ssd_ops\[train\]"):
                train(QUICK, *sets, tmp_path, progress=progress)


def test_a_validation_set_of_more_classes(sets, tmp_path):
    more = SimpleNamespace(**{**vars(sets[1]), "class_names": ["rectangle", "circle"]})
    with pytest.raises(ValueError, match="val_set must have no other classes than train_set"):
        train(QUICK, sets[0], more, tmp_path, progress=False)


def test_a_validation_set_of_other_names(sets, tmp_path):
    two = SimpleNamespace(**{**vars(sets[0]), "class_names": ["circle", "rectangle"]})
    with pytest.raises(
        ValueError, match=r"no other classes than train_set, in its order, got \['r"
    ):
        train(QUICK, two, sets[1], tmp_path, progress=False)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"images": torch.zeros(2, 3, 8, 8)}, r"train_set.images must be uint8 \[N, 3, H, W\]"),
        ({"labels": torch.zeros(2, 1, 5)}, r"train_set.labels must be \[10, G, 5\], got \[2, 1,"),
    ],
)
def test_sets_that_do_not_fit(sets, tmp_path, change, message):
    bad = SimpleNamespace(**{**vars(sets[0]), **change})
    with pytest.raises(ValueError, match=message):
        train(QUICK, bad, sets[1], tmp_path, progress=False)


def with_row(dataset, row, number=3):
    """The set with another row for one image."""
    labels = dataset.labels.clone()
    labels[number, 0] = torch.tensor(row)
    return SimpleNamespace(**{**vars(dataset), "labels": labels})


@pytest.mark.parametrize(
    "row, message",
    [
        ([0, 10.0, 12.0, 40.0, 50.0], r"fractions of the image, not in pixels, got the row \(0, 1"),
        ([0, 0.1, 0.1, 0.5, 2.5], "not in pixels"),
        ([0, 0.1, -1.5, 0.5, 0.5], "not in pixels"),
        ([0, math.nan, 0.1, 0.5, 0.5], "not in pixels"),
        ([0, 0.5, 0.1, 0.2, 0.5], "with x1 <= x2 and y1 <= y2"),
        ([0, 0.1, 0.5, 0.5, 0.2], "with x1 <= x2 and y1 <= y2"),
        ([1, 0.1, 0.1, 0.5, 0.5], r"class must be a whole number below 1, .* got the row \(1, 0"),
        ([-2.5, 0.1, 0.1, 0.5, 0.5], "class must be a whole number below 1, the count of class_n"),
        ([0.5, 0.1, 0.1, 0.5, 0.5], "class must be a whole number"),
        ([-2, 10.0, 12.0, 40.0, 50.0], "not in pixels"),
    ],
)
def test_labels_are_checked_before_training(sets, tmp_path, row, message):
    bad = with_row(sets[0], row)
    with pytest.raises(DataError, match=f"^data: image 3: the .*{message}"):
        train(QUICK, bad, sets[1], tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists(), "it is seen before anything is written"
    with pytest.raises(DataError, match=r"^data: d\.png: the "):
        named = SimpleNamespace(**vars(bad), names=[f"{letter}.png" for letter in "abcdefghij"])
        train(QUICK, sets[0], named, tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    "row", [[-2, 0, 0, 1, 1], [-1, 10, 10, 50, 50], [0, -0.1, 0, 1.1, 1], [0, 0.2, 0.2, 0.2, 0.5]]
)
def test_crowds_padding_and_boxes_over_the_border_are_legal(sets, tmp_path, row):
    settings = replace(QUICK, epochs=1, channels=(4, 4, 8, 8, 8, 8))
    train(settings, with_row(sets[0], row), with_row(sets[1], row), tmp_path, progress=False)


class Files(Images):
    """With lists of its own under the names that tensors have elsewhere, and names of something else."""

    images, labels, names = [f"{letter}.png" for letter in "abcdefgh"], [None] * 8, ("rectangle",)


def test_a_set_may_have_lists_of_its_own(tmp_path):
    settings = replace(QUICK, epochs=1, input_size=48, channels=(4, 4, 8, 8, 8, 8))
    _, history = train(settings, Files(), Files(), tmp_path, progress=False)
    assert history[0]["gts"] == 7
    with pytest.raises(
        ValueError, match=r"train_set must have images and labels tensors, or be in"
    ):
        neither = SimpleNamespace(images=Files.images, labels=Files.labels, class_names=["a"])
        train(settings, neither, Files(), tmp_path, overwrite=True, progress=False)


def test_class_names_are_needed(sets, tmp_path):
    nameless = SimpleNamespace(images=sets[0].images, labels=sets[0].labels)
    for name, pair in (("train_set", (nameless, sets[1])), ("val_set", (sets[0], nameless))):
        with pytest.raises(ValueError, match=f"{name} must have class_names, a list of names, got"):
            train(QUICK, *pair, tmp_path, progress=False)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epochs": 2.5}, "epochs must be a whole number, got 2.5"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": math.nan}, "lr must be a finite number, got nan"),
        ({"lr": "fast"}, "lr must be a finite number, got 'fast'"),
        ({"lr": 0}, "lr must be positive, got 0"),
        ({"optimizer": "lion"}, "optimizer must be sgd or adamw, got 'lion'"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"weight_decay": -1}, "weight_decay must be 0 or more"),
        ({"schedule": "linear"}, "schedule must be constant, .* or one_cycle, got 'linear'"),
        ({"warmup": 0}, "warmup must be between 0 and 1"),
        ({"loss": {"offset_loss": "l2"}}, r"loss\.offset_loss must be l1 or smooth_l1, got 'l2'"),
        ({"loss": {"sigma": "x"}}, r"loss\.sigma must be a finite number, got 'x'"),
        ({"loss": 3}, "loss must be a table of the options of MultiBoxLoss, got 3"),
        ({"flip": 2}, "flip must be in 0..1"),
        ({"match_iou": 1.5}, "match_iou must be in 0..1"),
        ({"precision": "int8"}, "precision must be auto, float32 or bfloat16"),
        ({"device": "toaster"}, "device must be auto or a device of torch"),
        ({"seed": -1}, "seed must be 0 or more"),
        ({"input_size": 0}, "input_size must be at least 1, got 0"),
        ({"input_size": 1.5}, "input_size must be a whole number, got 1.5"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(ValueError, match=f"settings: {message}"):
        Settings(**change)


def test_defaults_are_the_chapters():
    s = PRESETS["chapter"]
    assert s == Settings()
    assert (s.epochs, s.batch_size, s.lr, s.weight_decay, s.momentum) == (20, 32, 0.2, 5e-4, 0.0)
    assert s.schedule == "constant" and s.input_mean == 0 and s.input_std == 1
    loss = s.loss
    assert loss == LossOptions() and loss.offset_loss == "l1" and loss.negative_mining_ratio is None
    assert loss.normalize == "mean"


def test_paper_preset():
    loss = PRESETS["paper"].loss
    assert loss.offset_loss == "smooth_l1" and loss.negative_mining_ratio == 3.0
    assert loss.normalize == "positives"


def rates_of(settings, steps_per_epoch, finished=0):
    """The rate of every step of a run that is to come."""
    weights = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(weights, settings.lr)
    scheduler = make_scheduler(settings, optimizer, steps_per_epoch, finished)
    rates = []
    for _ in range((settings.epochs - finished) * steps_per_epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        assert scheduler.get_last_lr() == rates[-1:]
        optimizer.step()
        scheduler.step()
    return rates


def test_one_cycle_by_hand():
    """As torch defines it: from lr / 25 at step 0 to lr at step warmup * N - 1, and from there to
    lr / 250,000 at step N - 1, both along half a cosine."""
    s = Settings(lr=0.4, schedule="one_cycle", warmup=0.25, epochs=4)
    rates = rates_of(s, 9)  # 36 steps, the highest is step 8
    assert rates[0] == pytest.approx(0.4 / 25) and rates[8] == pytest.approx(0.4) == max(rates)
    assert rates[4] == pytest.approx((0.4 / 25 + 0.4) / 2)  # half way up
    assert rates[2] == pytest.approx(0.4 / 25 + (0.4 - 0.4 / 25) * (1 - math.cos(math.pi / 4)) / 2)
    assert rates[-1] == pytest.approx(0.4 / 25 / 1e4)
    assert rates[17] == pytest.approx(1.6e-6 + (0.4 - 1.6e-6) * (1 + math.cos(math.pi / 3)) / 2)
    assert np.diff(rates[:9]).min() > 0 > np.diff(rates[8:]).max()


@pytest.mark.parametrize("steps_per_epoch", [1, 10, 1000])
def test_one_cycle_fits_any_number_of_steps(steps_per_epoch):
    """Also one of which the rise takes one step, where torch itself divides by zero."""
    s = Settings(lr=0.4, schedule="one_cycle", warmup=0.25, epochs=4)
    rates = rates_of(s, steps_per_epoch)
    assert rates[0] == pytest.approx(0.4 / 25) and rates[-1] == pytest.approx(1.6e-6)
    assert np.argmax(rates) == max(steps_per_epoch - 1, 1)
    assert steps_per_epoch == 1 or max(rates) == pytest.approx(0.4)


def test_schedules_by_hand():
    step = Settings(lr=1.0, epochs=4, schedule="step", lr_drops=[1, 3], lr_drop=0.5)
    assert rates_of(step, 10) == [1.0] * 10 + [0.5] * 20 + [0.25] * 10
    late = replace(step, warmup_steps=4)
    assert rates_of(late, 10) == [0.25, 0.5, 0.75, 1.0] + [1.0] * 6 + [0.5] * 20 + [0.25] * 10
    cosine = Settings(lr=1.0, epochs=4, schedule="cosine", warmup_steps=4)
    rates = rates_of(cosine, 10)
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[22] == pytest.approx(0.5) and rates[-1] == pytest.approx(0, abs=0.01)
    assert np.diff(rates[4:]).max() < 0
    warm = Settings(lr=0.2, warmup_steps=2, epochs=4)
    assert rates_of(warm, 10)[:4] == [0.1, 0.2, 0.2, 0.2]
    assert rates_of(replace(warm, warmup_steps=1), 10) == [0.2] * 40
    assert rates_of(Settings(epochs=3), 3) == [0.2] * 9


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one_cycle"])
@pytest.mark.parametrize("warmup_steps", [0, 5])
def test_a_resumed_schedule_goes_on_with_the_same_bits(schedule, warmup_steps, recwarn):
    s = Settings(lr=0.3, epochs=4, schedule=schedule, lr_drops=[1, 3], warmup_steps=warmup_steps)
    whole = rates_of(s, 7)
    for finished in range(5):
        assert rates_of(s, 7, finished) == whole[7 * finished :]
    assert not recwarn.list, "torch warns of a schedule wound on"


def test_settings_from_a_file(tmp_path):
    path = tmp_path / "own.toml"
    path.write_text('preset = "paper"\nlr = 1\nsizes = [[0.1, 0.2], [0.5]]\nclip_norm = 5.0\n')
    got = read_settings(path, epochs=3)
    assert got == replace(
        PRESETS["paper"], lr=1, sizes=((0.1, 0.2), (0.5,)), clip_norm=5.0, epochs=3
    )
    assert read_settings(path, "chapter").optimizer == "sgd"
    path.write_text('preset = "paper"\n[loss]\nsigma = 2.0\nnormalize = "mean"\n')
    got = read_settings(path, loss={"normalize": "positives", "cls_weight": 3})
    paper = PRESETS["paper"]
    assert got == replace(paper, loss=replace(paper.loss, sigma=2.0, cls_weight=3))
    assert read_settings() == Settings()
    for text, message in {
        "lr = ": r"own\.toml must be TOML, got ",
        "learning = 1": r"a setting must be one of batch_size, .*, got 'learning' in .*own\.toml",
        'preset = "fast"': "preset must be one of chapter, paper, photos, got 'fast'",
        'lr = "fast"': "lr must be a finite number, got 'fast'",
        "sizes = [[]]": "sizes must be lists of positive numbers",
        "sizes = 3": "sizes must be lists of positive numbers, got 3",
        "channels = [8.5]": "channels must be a list of whole numbers",
        "compile = 1": "compile must be true or false, got 1",
        'clip_norm = "x"': "clip_norm must be a finite number",
        "loss = 3": "loss must be a table of the options of MultiBoxLoss, got 3",
        "[loss]\nsigmas = 3": r"a setting must be one of .*, got 'loss\.sigmas' in .*own\.toml",
        "[loss]\nsigma = 0": r"loss\.sigma must be positive, got 0",
    }.items():
        path.write_text(text)
        with pytest.raises(ValueError, match=f"settings: {message}|settings: .*{message}"):
            read_settings(path)
    with pytest.raises(FileNotFoundError, match="must be a file, got none"):
        read_settings(tmp_path / "none.toml")


def test_flip_mirrors_images_and_boxes_alike():
    images = torch.zeros(40, 3, 16, 16, dtype=torch.uint8)
    images[:, :, 2:6, 4:12] = 255
    labels = torch.tensor([[0, 0.25, 0.125, 0.75, 0.375], [-1.0] * 5]).repeat(40, 1, 1)
    kept = images.clone(), labels.clone()
    both = Settings(flip=0.5, flip_vertical=0.5)
    got, rows = augment(images, labels, both, np.random.default_rng(0))
    assert torch.equal(images, kept[0]) and torch.equal(labels, kept[1])
    assert (rows[:, 1] == -1).all() and got.dtype == torch.uint8
    for image, row in zip(got, rows[:, 0], strict=True):
        x1, y1, x2, y2 = (row[1:] * 16).round().int().tolist()
        assert (image[:, y1:y2, x1:x2] == 255).all() and image.sum(dtype=torch.int64) == 96 * 255
    assert 5 < (rows[:, 0, 2] > 0.5).sum() < 35
    _, level = augment(images, labels, Settings(flip=1.0), np.random.default_rng(0))
    torch.testing.assert_close(level[:, 0, 2], labels[:, 0, 2])
    part = augment(
        images[1::2],
        labels[1::2],
        both,
        np.random.default_rng(0),
        part=slice(1, None, 2),
        in_all=40,
    )
    assert torch.equal(part[0], got[1::2]) and torch.equal(part[1], rows[1::2])
    same, untouched = augment(images, labels, Settings(), np.random.default_rng(0))
    assert torch.equal(same, images) and torch.equal(untouched, labels)


def test_jitter_stays_in_range():
    images = torch.randint(0, 256, (8, 3, 6, 6), dtype=torch.uint8)
    got, _ = augment(images, torch.zeros(8, 1, 5), Settings(jitter=0.2), np.random.default_rng(0))
    assert got.min() >= 0 and got.max() <= 255 and not torch.equal(got, images.float())
    assert (got - images).abs().max() <= 0.4 * 255


def test_input_size_is_the_models_from_then_on(sets, tmp_path):
    settings = replace(QUICK, epochs=1, input_size=32)
    model, _ = train(settings, *sets, tmp_path, progress=False)
    assert model.preprocess.size == (32, 32)
    loaded, saved, _ = load(tmp_path)
    assert loaded.preprocess == model.preprocess and saved.input_size == 32
    # Images of any size go in, and boxes come out in their pixels.
    big = torch.nn.functional.interpolate(sets[1].images.float(), scale_factor=3)[0]
    assert predict(loaded, big.byte(), score_threshold=0.0).boxes.abs().max() > 64
    with pytest.raises(ValueError, match="input_size must be 32"):
        train(replace(settings, input_size=None), *sets, tmp_path, resume=True, progress=False)


def test_device_and_precision():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="device must be one this machine has, got 'cuda:99'"):
        pick_device("cuda:99")
    assert pick_dtype("float32", torch.device("cpu")) == torch.float32
    assert pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert pick_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_every_variant_trains(sets, tmp_path, precision, channels_last):
    settings = replace(QUICK, epochs=1, precision=precision, channels_last=channels_last)
    model, history = train(settings, *sets, tmp_path, progress=False)
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in model.parameters())
    assert math.isfinite(history[0]["loss"])
    loaded = load(tmp_path)[0]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert loaded.blk_0[1][0].weight.is_contiguous(memory_format=layout)


def test_precisions_agree_on_the_loss(sets, tmp_path):
    losses = [
        train(replace(QUICK, precision=p), *sets, tmp_path / p, progress=False)[1][0]["loss"]
        for p in ("float32", "bfloat16")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
