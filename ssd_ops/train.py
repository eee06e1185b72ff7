"""The trainer of TinySSD: one loop, a checkpoint after each epoch, and the same result resumed.

Everything random is drawn from the seed and the number of the epoch, so a run that was stopped and
resumed sees the same images in the same order as one that was not, and on one machine ends with
the same bits.
"""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssd_ops import checkpoint, ops
from ssd_ops.augment import augment
from ssd_ops.checkpoint import load
from ssd_ops.evaluate import evaluate
from ssd_ops.loss import bbox_eval, cls_eval
from ssd_ops.model import Preprocess, TinySSD
from ssd_ops.settings import (
    DEMO_EPOCHS,
    PRESETS,
    Settings,
    learning_rate,
    pick_device,
    pick_dtype,
)

__all__ = ["DEMO_EPOCHS", "PRESETS", "Interrupted", "Settings", "load", "train"]

History = list[dict[str, Any]]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while training; its text says which checkpoint is left and how to go on."""


def train(
    settings: Settings,
    train_set: Any,
    val_set: Any,
    out_dir: str | os.PathLike[str],
    *,
    resume: bool = False,
    progress: bool = True,
) -> tuple[TinySSD, History]:
    """Train a TinySSD, and measure it on the validation set after each epoch.

    Args:
        settings: how; see `Settings` and `PRESETS`.
        train_set: ``images`` uint8 ``[N, 3, H, W]``, ``labels`` float32 ``[N, G, 5]`` rows (class,
            x1, y1, x2, y2) in fractions of the image, class -1 padding, and ``class_names``; a
            `ssd_ops.data.BananaDetection` is one.
        val_set: the same, to measure on.
        out_dir: folder for ``checkpoint.safetensors`` and ``history.json``, made if need be. The
            checkpoint is written before the first epoch and after each one, and is always whole.
        resume: go on from the checkpoint in `out_dir`. The settings must be those it was made
            with, except for the device, and for more epochs where the schedule is constant.
        progress: a progress bar for each epoch (this needs tqdm), with the class error, the offset
            error and the examples per second so far.

    Returns:
        The model in evaluation mode, and the history: a dict for each epoch, with "epoch" from 1,
        "loss", "class_error", "offset_error" (over the epoch's training batches, as the chapter
        counts them), "val_class_error", "val_offset_error", "found", "truths", "false_boxes",
        "ap", "ap50" (see `Measures`), "lr" of the last step, and "examples_per_second".

    Raises:
        ValueError: sets or a checkpoint that do not fit.
        FileNotFoundError: `resume` without a checkpoint.
        FloatingPointError: the loss became infinite or NaN.
        Interrupted: Ctrl-C. The checkpoint of the last finished epoch is left; resume from it.
        ImportError: safetensors, or for `progress` tqdm, is not installed.
    """
    _check_set("train_set", train_set)
    _check_set("val_set", val_set)
    path = Path(out_dir) / checkpoint.FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    device = pick_device(settings.device)
    model, optimizer, history = _start(settings, train_set, path, device, resume)

    def store() -> None:
        meta = {"epoch": len(history), "class_names": names, "history": history}
        checkpoint.save(path, model, optimizer, settings, meta)
        text = json.dumps(history, indent=1) + "\n"
        checkpoint.write_aside(path.with_name("history.json"), text.encode())

    names = list(train_set.class_names)
    store()
    try:
        for epoch in range(len(history), settings.epochs):
            row = _run_epoch(settings, model, optimizer, train_set, epoch, progress)
            measures = asdict(evaluate(model, val_set, batch_size=settings.batch_size))
            for name in ("class_error", "offset_error"):
                measures[f"val_{name}"] = measures.pop(name)
            history.append({"epoch": epoch + 1, **row, **measures})
            store()
            if progress:
                print(_summary(history[-1]))
    except KeyboardInterrupt:
        raise Interrupted(
            f"train: stopped in epoch {len(history) + 1}; {path} holds the {len(history)} finished "
            "epochs and can be used, or resumed from"
        ) from None
    return model.eval(), history


def _check_set(name: str, dataset: Any) -> None:
    images, labels = dataset.images, dataset.labels
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(
            f"train: {name}.images must be uint8 [N, 3, H, W] with N > 0, got {images.dtype} "
            f"{list(images.shape)}"
        )
    if labels.ndim != 3 or labels.shape[2] != 5 or len(labels) != len(images):
        raise ValueError(
            f"train: {name}.labels must be [{len(images)}, G, 5], got {list(labels.shape)}"
        )


def _start(
    settings: Settings, train_set: Any, path: Path, device: torch.device, resume: bool
) -> tuple[TinySSD, torch.optim.Optimizer, History]:
    """Model, optimizer and history of a new run, or of the run whose checkpoint is resumed."""
    names = list(train_set.class_names)
    size = (settings.input_size,) * 2 if settings.input_size else train_set.images.shape[2:]
    preprocess = Preprocess(tuple(size), (settings.input_mean,) * 3, (settings.input_std,) * 3)
    tensors: dict[str, Tensor] = {}
    history: History = []
    if resume:
        content, tensors = checkpoint.read(path)
        model, saved = checkpoint.build(path, content, tensors)
        _check_resume(settings, saved, content["epoch"])
        if content["class_names"] != names or model.preprocess != preprocess:
            raise ValueError(
                f"train: train_set must have the classes and the image size of {path}, "
                f"got {names} and {list(preprocess.size)}"
            )
        history = content["history"]
    else:
        # The caller's own random numbers stay as they were.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            model = TinySSD(len(names), preprocess=preprocess, nms_threshold=settings.nms_threshold)
    checkpoint.place(model, settings, device)
    optimizer = _optimizer(settings, model)
    checkpoint.restore_optimizer(model, optimizer, tensors)
    return model, optimizer, history


def _optimizer(settings: Settings, model: TinySSD) -> torch.optim.Optimizer:
    decay = settings.weight_decay
    if settings.optimizer == "adamw":
        betas = (settings.momentum, 0.99)
        return torch.optim.AdamW(model.parameters(), settings.lr, betas, weight_decay=decay)
    return torch.optim.SGD(model.parameters(), settings.lr, settings.momentum, weight_decay=decay)


def _check_resume(settings: Settings, saved: Settings, finished: int) -> None:
    ours, theirs = asdict(settings), asdict(saved)
    for name in ours:
        if name == "device" or ours[name] == theirs[name]:
            continue
        # The steps already made do not depend on how many are to come.
        if name == "epochs" and settings.schedule == "constant" and settings.epochs >= finished:
            continue
        raise ValueError(
            f"train: to resume, {name} must be {theirs[name]!r} as in the checkpoint, "
            f"got {ours[name]!r}"
        )


def _run_epoch(
    settings: Settings,
    model: TinySSD,
    optimizer: torch.optim.Optimizer,
    train_set: Any,
    epoch: int,
    progress: bool,
) -> dict[str, float]:
    """One pass over the training set; `epoch` counts from 0. Returns its part of the history."""
    criterion = settings.criterion()
    device = next(model.parameters()).device
    dtype = pick_dtype(settings.precision, device)
    rng = np.random.default_rng((settings.seed, epoch))
    order = torch.from_numpy(rng.permutation(len(train_set.images)))
    batches = order.split(settings.batch_size)
    total_steps = settings.epochs * len(batches)
    seen = loss_sum = correct = anchors_seen = offset_sum = offsets_seen = 0.0
    began = time.perf_counter()
    model.train()
    with _bar(len(order), f"epoch {epoch + 1}/{settings.epochs}", progress) as bar:
        for step, index in enumerate(batches, start=epoch * len(batches)):
            images, labels = augment(
                train_set.images[index], train_set.labels[index], settings, rng
            )
            X, Y = model.preprocess(images.to(device)), labels.to(device)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
                anchors, cls_preds, bbox_preds = model(X)
            bbox_labels, bbox_masks, cls_labels = ops.multibox_target(
                anchors, Y, iou_threshold=settings.match_iou
            )
            loss = criterion(cls_preds, cls_labels, bbox_preds, bbox_labels, bbox_masks).mean()
            if not math.isfinite(loss.item()):
                raise FloatingPointError(
                    f"train: the loss must be finite, got {loss.item()} at step {step + 1}, in "
                    f"epoch {epoch + 1}; a lower lr may help (it is {settings.lr})"
                )
            lr = learning_rate(settings, step, total_steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            with torch.no_grad():
                correct += cls_eval(cls_preds, cls_labels)
                offset_sum += bbox_eval(bbox_preds, bbox_labels, bbox_masks)
            anchors_seen += cls_labels.numel()
            offsets_seen += bbox_labels.numel()
            loss_sum += loss.item() * len(index)
            seen += len(index)
            rate = seen / (time.perf_counter() - began)
            bar.update(len(index))
            bar.set_postfix_str(
                f"class error {1 - correct / anchors_seen:.2e}, "
                f"offset error {offset_sum / offsets_seen:.2e}, {rate:.1f} examples/s"
            )
    return {
        "loss": loss_sum / seen,
        "class_error": 1 - correct / anchors_seen,
        "offset_error": offset_sum / offsets_seen,
        "lr": lr,
        "examples_per_second": rate,
    }


class _NoBar:
    """What stands in for a progress bar where none is wanted."""

    def update(self, _: int) -> None: ...

    def set_postfix_str(self, _: str) -> None: ...

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None: ...


def _bar(total: int, title: str, wanted: bool) -> Any:
    if not wanted:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            "train: the progress bar needs tqdm: pip install ssd_ops[train]"
        ) from error
    return tqdm(total=total, desc=title, unit="image", bar_format="{l_bar}{bar:20}|{postfix}")


def _summary(row: dict[str, Any]) -> str:
    return (
        f"  validation: {row['found']} of {row['truths']} found, {row['false_boxes']} false boxes, "
        f"class error {row['val_class_error']:.2e}, offset error {row['val_offset_error']:.2e}"
    )
