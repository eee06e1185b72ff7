"""The trainer of TinySSD: one loop, a checkpoint after each epoch, and the same result resumed.

Everything random is drawn from the seed and the number of the epoch, so a run that was stopped and
resumed sees the same images in the same order as one that was not, and on one machine ends with
the same bits. Started by `torchrun`, its processes share each batch.
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

from ssd_ops.tinyssd import checkpoint, distributed
from ssd_ops.tinyssd.data.augment import augment
from ssd_ops.tinyssd.data.loader import Loader, check_set
from ssd_ops.tinyssd.measure.evaluate import evaluate
from ssd_ops.tinyssd.model import TinySSD
from ssd_ops.tinyssd.preprocess import Preprocess
from ssd_ops.tinyssd.progress import progress_bar
from ssd_ops.tinyssd.settings import (
    Settings,
    learning_rate,
    pick_device,
)
from ssd_ops.tinyssd.step import TrainStep, make_optimizer

LOG_NAME = "log.jsonl"
READ_EVERY = 16  # steps on a GPU between two looks at their numbers, each of which waits for it
# Settings that say where and how fast a run is made, not what comes of it.
FREE = {"device", "workers", "cache_gb"}

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
    overwrite: bool = False,
    progress: bool = True,
) -> tuple[TinySSD, History]:
    """Train a TinySSD, and measure it on the validation set after each epoch.

    Args:
        settings: how; see `Settings` and `PRESETS`.
        train_set: ``images`` uint8 ``[N, 3, H, W]`` and ``labels`` float32 ``[N, G, 5]`` rows (class,
            x1, y1, x2, y2) in fractions of the image, class -1 padding; or a set indexed by number,
            with images of any size. And ``class_names``. A `BananaDetection` is one,
            and a `CocoDetection`.
        val_set: the same, to measure on.
        out_dir: folder for ``checkpoint.safetensors`` and ``log.jsonl``, made if need be. The
            checkpoint is written before the first epoch and after each one; both are always whole.
        resume: go on from the checkpoint in `out_dir`. The settings must be those it was made
            with, except for device, workers and cache, and for more epochs where the schedule does
            not depend on their number.
        overwrite: begin anew where `out_dir` holds a checkpoint of finished epochs, which is lost.
            By default that is an error. Not used by `resume`.
        progress: a progress bar for each epoch (this needs tqdm), with the class error, the offset
            error and the examples per second so far.

    Returns:
        The model in evaluation mode, and the history, which is also in the log, a line an epoch: a
        dict with "epoch" from 1, "loss", "class_error", "offset_error" (over the epoch's training
        batches, as the chapter counts them), "val_class_error", "val_offset_error", the rest of
        `Measures` but for "per_class", "lr" of the last step, and "examples_per_second".

    Raises:
        ValueError: sets or a checkpoint that do not fit.
        DataError: a picture that cannot be read.
        FileNotFoundError: `resume` without a checkpoint.
        FileExistsError: a checkpoint of finished epochs, and neither `resume` nor `overwrite`.
        FloatingPointError: the loss, a weight or a prediction became infinite or NaN. The checkpoint
            is that of the last epoch before.
        RuntimeError: a process that shares the run, or one that loads pictures, has died.
        Interrupted: Ctrl-C. The checkpoint of the last finished epoch is left; resume from it.
        ImportError: safetensors, or for `progress` tqdm, is not installed.
    """
    for name, dataset in (("train_set", train_set), ("val_set", val_set)):
        check_set(name, dataset)
    if len(getattr(val_set, "class_names", ())) > len(train_set.class_names):
        raise ValueError(
            f"train: val_set must have no other classes than train_set, got {val_set.class_names} "
            f"and {train_set.class_names}"
        )
    with distributed.joined(pick_device(settings.device)) as device:
        path = Path(out_dir) / checkpoint.FILE_NAME
        if not resume and not overwrite and distributed.rank() == 0:
            checkpoint.refuse_to_lose(path)
        return _train(settings, train_set, val_set, path, device, resume, progress)


def _train(
    settings: Settings,
    train_set: Any,
    val_set: Any,
    path: Path,
    device: torch.device,
    resume: bool,
    progress: bool,
) -> tuple[TinySSD, History]:
    model, optimizer, history = _start(settings, train_set, path, device, resume)
    first = distributed.rank() == 0
    options: dict[str, Any] = {"workers": settings.workers, "cache_gb": settings.cache_gb}
    options |= {"device": device, "seed": settings.seed}
    loader = Loader(train_set, model.preprocess, **options)
    val_loader = Loader(val_set, model.preprocess, **options)
    step = TrainStep(settings, model, optimizer)

    def store() -> None:
        if not first:
            return
        meta = {"epoch": len(history), "class_names": names, "history": history}
        checkpoint.save(path, model, optimizer, settings, meta)
        text = "".join(json.dumps(row) + "\n" for row in history)
        checkpoint.write_aside(path.with_name(LOG_NAME), text.encode())

    names = list(train_set.class_names)
    if first:
        path.parent.mkdir(parents=True, exist_ok=True)
    store()
    try:
        for epoch in range(len(history), settings.epochs):
            row = _run_epoch(settings, step, loader, epoch, progress and first)
            measures = asdict(evaluate(model, val_loader, batch_size=settings.batch_size))
            _check_finite(model, measures["offset_error"], settings, epoch)
            del measures["per_class"]
            for name in ("class_error", "offset_error"):
                measures[f"val_{name}"] = measures.pop(name)
            history.append({"epoch": epoch + 1, **row, **measures})
            store()
            if progress and first:
                print(_summary(history[-1]), flush=True)
    except KeyboardInterrupt:
        raise Interrupted(
            f"train: stopped in epoch {len(history) + 1}; {path} holds the {len(history)} finished "
            "epochs and can be used, or resumed from"
        ) from None
    return model.eval(), history


def _start(
    settings: Settings, train_set: Any, path: Path, device: torch.device, resume: bool
) -> tuple[TinySSD, torch.optim.Optimizer, History]:
    """Model, optimizer and history of a new run, or of the run whose checkpoint is resumed."""
    names = list(train_set.class_names)
    tensors: dict[str, Tensor] = {}
    history: History = []
    if resume:
        # Other machines need not have the file.
        read = checkpoint.read(path) if distributed.rank() == 0 else None
        content, tensors = distributed.from_first(read)
        model, saved = checkpoint.build(path, content, tensors)
        _check_resume(settings, saved, content["epoch"])
        preprocess = _preprocess(settings, train_set)
        if content["class_names"] != names or model.preprocess != preprocess:
            raise ValueError(
                f"train: train_set must have the classes and the image size of {path}, "
                f"got {names} and {list(preprocess.size)}"
            )
        history = content["history"]
    else:
        model = untrained(settings, train_set)
    checkpoint.place(model, settings, device)
    distributed.synchronise(model)
    optimizer = make_optimizer(settings, model)
    checkpoint.restore_optimizer(model, optimizer, tensors)
    return model, optimizer, history


def untrained(settings: Settings, train_set: Any) -> TinySSD:
    """The model that a run on this set starts from.

    Args:
        settings: as for `train`.
        train_set: as for `train`.
    """
    # The caller's own random numbers stay as they were.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return TinySSD(
            len(train_set.class_names),
            settings.sizes,
            settings.ratios,
            settings.channels,
            preprocess=_preprocess(settings, train_set),
            nms_threshold=settings.nms_threshold,
        )


def _preprocess(settings: Settings, train_set: Any) -> Preprocess:
    size = (settings.input_size,) * 2 if settings.input_size else Preprocess.size
    if not settings.input_size and hasattr(train_set, "images"):
        size = tuple(train_set.images.shape[2:])
    mean, std = (settings.input_mean,) * 3, (settings.input_std,) * 3
    return Preprocess(size, mean, std, settings.letterbox)


def _check_resume(settings: Settings, saved: Settings, finished: int) -> None:
    ours, theirs = asdict(settings), asdict(saved)
    for name in ours:
        if name in FREE or ours[name] == theirs[name]:
            continue
        # The steps already made do not depend on how many are to come.
        steady = settings.schedule in ("constant", "step")
        if name == "epochs" and steady and settings.epochs >= finished:
            continue
        raise ValueError(
            f"train: to resume, {name} must be {theirs[name]!r} as in the checkpoint, "
            f"got {ours[name]!r}"
        )


def _run_epoch(
    settings: Settings, step: TrainStep, loader: Loader, epoch: int, progress: bool
) -> dict[str, float]:
    """One pass over the training set; `epoch` counts from 0. Returns its part of the history."""
    rng = np.random.default_rng((settings.seed, epoch))
    batches = torch.from_numpy(rng.permutation(len(loader))).split(settings.batch_size)
    part = slice(distributed.rank(), None, distributed.size())
    total_steps = settings.epochs * len(batches)
    sums = torch.zeros(3, dtype=torch.float64)  # loss, right classes, offset errors
    seen, waiting, read_every = 0, [], READ_EVERY if step.device.type == "cuda" else 1
    began = time.perf_counter()
    step.model.train()
    images = loader.batches([batch[part] for batch in batches], epoch)
    with progress_bar(len(loader), f"epoch {epoch + 1}/{settings.epochs}", progress) as bar:
        for number, (batch, (X, Y, _)) in enumerate(zip(batches, images, strict=True)):
            X, Y = augment(X, Y, settings, rng, part=part, in_all=len(batch))
            lr = learning_rate(settings, epoch * len(batches) + number, total_steps)
            waiting.append((number, step(X, Y, lr, in_all=len(batch))))
            if len(waiting) < read_every and number + 1 < len(batches):
                continue
            rows = torch.stack([row for _, row in waiting]).cpu().double()
            for (at, _), (loss, _, _) in zip(waiting, rows.tolist(), strict=True):
                if not math.isfinite(loss):
                    raise _not_finite(loss, settings, loader, epoch, at, batches)
            waiting, sums, done = [], sums + rows.sum(dim=0), seen
            seen = sum(len(batch) for batch in batches[: number + 1])
            bar.update(seen - done)
            rate = seen / (time.perf_counter() - began)
            # Those of this process alone, while the bar runs.
            anchors = max(1, seen * step.num_anchors // distributed.size())
            bar.set_postfix_str(
                f"class error {1 - float(sums[1]) / anchors:.2e}, "
                f"offset error {float(sums[2]) / (4 * anchors):.2e}, {rate:.1f} examples/s"
            )
    loss, right, errors = distributed.all_sum(sums).tolist()
    return {
        "loss": loss / seen,
        "class_error": 1 - right / (seen * step.num_anchors),
        "offset_error": errors / (4 * seen * step.num_anchors),
        "lr": lr,
        "examples_per_second": rate,
    }


def _check_finite(model: TinySSD, offset_error: float, settings: Settings, epoch: int) -> None:
    """The last step of an epoch may spoil the weights, and no loss would tell before they are stored."""
    tensors = model.state_dict().values()
    if not math.isfinite(offset_error) or not all(bool(t.isfinite().all()) for t in tensors):
        raise FloatingPointError(
            f"train: weights and predictions must be finite, got others after epoch {epoch + 1}; a "
            f"lower lr may help (it is {settings.lr})"
        )


def _not_finite(
    loss: float,
    settings: Settings,
    loader: Loader,
    epoch: int,
    number: int,
    batches: tuple[Tensor, ...],
) -> FloatingPointError:
    names = getattr(loader.examples.dataset, "names", None)
    images = batches[number].tolist()
    listed = [str(image) if names is None else str(names[image]) for image in images]
    more = f" and {len(listed) - 8} more" if len(listed) > 8 else ""
    return FloatingPointError(
        f"train: the loss must be finite, got {loss} at step {epoch * len(batches) + number + 1}, in "
        f"epoch {epoch + 1}, of the batch of images {', '.join(listed[:8])}{more}; a lower lr may help "
        f"(it is {settings.lr})"
    )


def _summary(row: dict[str, Any]) -> str:
    return (
        f"  validation: {row['found']} of {row['gts']} found, {row['false_boxes']} false boxes, "
        f"class error {row['val_class_error']:.2e}, offset error {row['val_offset_error']:.2e}"
    )
