"""The trainer of TinySSD: one loop, and a checkpoint after each epoch.

Everything random is drawn from the seed and the number of the epoch, so a run that was stopped and
resumed ends, on one machine, with the same bits as one that was not. Started by `torchrun`, its
processes share each batch.
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ssd_ops.tinyssd import checkpoint, distributed
from ssd_ops.tinyssd.data.loader import Loader, check_set, of_workers, tensors_of
from ssd_ops.tinyssd.data.transforms import augment
from ssd_ops.tinyssd.files import replace_file
from ssd_ops.tinyssd.measure.evaluate import evaluate
from ssd_ops.tinyssd.model import TinySSD
from ssd_ops.tinyssd.optimizer import make_optimizer, make_scheduler
from ssd_ops.tinyssd.preprocess import Preprocess
from ssd_ops.tinyssd.progress import progress_bar
from ssd_ops.tinyssd.settings import Settings, make_model, pick_device
from ssd_ops.tinyssd.step import TrainStep

LOG_NAME = "log.jsonl"
READ_EVERY = 16  # steps on a GPU between two looks at their numbers, each of which waits for it
# What of `Measures` is in the history, and under which name.
MEASURES = {"val_class_error": "class_error", "val_offset_error": "offset_error"}
MEASURES |= {name: name for name in ("found", "gts", "false_boxes", "ap", "ap50", "ap75")}

History = list[dict[str, Any]]


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
        train_set: a `BananaDetection`, a `CocoDetection`, or what has ``class_names`` and either
            ``images`` uint8 ``[N, 3, H, W]`` and ``labels`` float32 ``[N, G, 5]`` rows (class, x1,
            y1, x2, y2) in fractions of the image, class -1 padding and below -1 crowds (see
            `ssd_ops.tinyssd.data.rows`), or their items by number.
        val_set: the same, to measure on; its classes are the first ones of `train_set`, or all.
        out_dir: folder for ``checkpoint.safetensors`` and ``log.jsonl``, written after each epoch.
        resume: go on from the checkpoint in `out_dir`. The settings must be those it was made
            with, but for device, workers, cache, and more epochs of a constant or step schedule.
        overwrite: begin anew where `out_dir` holds a checkpoint of finished epochs, which is lost.
        progress: a progress bar for each epoch, with its errors and examples per second so far.

    Returns:
        The model in evaluation mode, and the history, which is also in the log, a line an epoch: a
        dict with "epoch" from 1, "loss", "class_error", "offset_error" (of the training batches),
        "lr" of the last step, "examples_per_second", and what `MEASURES` names.

    Raises:
        ValueError, DataError: sets, labels, images or a checkpoint that do not fit.
        FileNotFoundError, FileExistsError: no checkpoint to resume from, or one that would be lost.
        FloatingPointError: the loss, a weight or a prediction became infinite or NaN.
        KeyboardInterrupt: Ctrl-C; as after all others, the last finished epoch's checkpoint is left.
    """
    check_set("train_set", train_set)
    check_set("val_set", val_set)
    names, others = list(train_set.class_names), list(val_set.class_names)
    if others != names[: len(others)]:
        wanted = "no other classes than train_set, in its order"
        raise ValueError(f"train: val_set must have {wanted}, got {others} and {names}")
    with distributed.joined(pick_device(settings.device)) as device:
        path, first = Path(out_dir) / checkpoint.FILE_NAME, distributed.rank() == 0
        if first and not resume and not overwrite:
            checkpoint.refuse_to_lose(path)
        model = untrained(settings, train_set)
        tensors: dict[str, torch.Tensor] = {}
        history: History = []
        if resume:
            model, tensors, history = checkpoint.resume(path, settings, model, names)
        distributed.synchronise(model.to(device))
        optimizer = make_optimizer(settings, model)
        checkpoint.restore_optimizer(model, optimizer, tensors)
        options = {name: getattr(settings, name) for name in ("workers", "cache_gb", "seed")}
        loader = Loader(train_set, model.preprocess, device=device, **options)
        val_loader = Loader(val_set, model.preprocess, device=device, **options)
        step = TrainStep(settings, model, optimizer)
        steps_per_epoch = math.ceil(len(loader) / settings.batch_size)
        scheduler = make_scheduler(settings, optimizer, steps_per_epoch, len(history))

        def store(history: History) -> None:
            if first:
                path.parent.mkdir(parents=True, exist_ok=True)
                checkpoint.save(path, model, optimizer, settings, names, history)
                log = "".join(json.dumps(row) + "\n" for row in history)
                replace_file(path.with_name(LOG_NAME), log.encode())

        store(history)
        try:
            for epoch in range(len(history), settings.epochs):
                row = _run_epoch(settings, step, scheduler, loader, epoch, progress and first)
                row |= _validate(settings, model, val_loader, epoch)
                store([*history, row])
                history.append(row)
                if progress and first:
                    found = f"{row['found']} of {row['gts']} found"
                    print(f"  validation: {found}, {row['false_boxes']} false boxes", flush=True)
        except KeyboardInterrupt:
            done = len(history)
            stopped = f"stopped in epoch {done + 1}; {path} holds the {done} finished epochs"
            raise KeyboardInterrupt(f"train: {stopped}, to be used or resumed from") from None
        except RuntimeError as error:  # torch tells of a dead worker at any time, from a signal
            raise of_workers(error) from error.__cause__
        return model.eval(), history


def untrained(settings: Settings, train_set: Any) -> TinySSD:
    """The model that a run with these settings starts from; arguments as for `train`."""
    tensors = tensors_of(train_set)
    size: Any = tensors[0].shape[2:] if tensors else Preprocess.size
    if settings.input_size:
        size = (settings.input_size, settings.input_size)
    return make_model(settings, len(train_set.class_names), size)


def _run_epoch(
    settings: Settings, step: TrainStep, scheduler: Any, loader: Loader, epoch: int, progress: bool
) -> dict[str, Any]:
    """One pass over the training set; `epoch` counts from 0. Returns its part of the history."""
    rng = np.random.default_rng((settings.seed, epoch))
    batches = torch.from_numpy(rng.permutation(len(loader))).split(settings.batch_size)
    part = slice(distributed.rank(), None, distributed.size())
    sums = torch.zeros(3, dtype=torch.float64)  # loss, right classes, offset errors
    seen, waiting, read_every = 0, [], READ_EVERY if step.device.type == "cuda" else 1
    began = time.perf_counter()
    step.model.train()
    images = loader.batches([batch[part] for batch in batches], epoch)
    with progress_bar(len(loader), f"epoch {epoch + 1}/{settings.epochs}", progress) as bar:
        for number, (batch, (X, Y, _)) in enumerate(zip(batches, images, strict=True), start=1):
            X, Y = augment(X, Y, settings, rng, part=part, in_all=len(batch))
            (lr,) = scheduler.get_last_lr()
            waiting.append(step(X, Y, in_all=len(batch)))
            scheduler.step()
            seen += len(batch)
            bar.update(len(batch))
            if len(waiting) < read_every and number < len(batches):
                continue
            rows = torch.stack(waiting).cpu().double()
            for at, loss in enumerate(rows[:, 0].tolist(), start=number - len(waiting)):
                if not math.isfinite(loss):
                    where = f"step {epoch * len(batches) + at + 1}, in epoch {epoch + 1}"
                    names = [loader.examples.names[number] for number in batches[at][:8].tolist()]
                    listed = ", ".join(str(name).removeprefix("image ") for name in names)
                    listed += " ..." if len(batches[at]) > 8 else ""
                    got = f"{loss} at {where}, of the batch of images {listed}"
                    raise _not_finite("the loss", got, settings)
            waiting, sums = [], sums + rows.sum(dim=0)
            rate = seen / (time.perf_counter() - began)
            # Those of this process alone, while the bar runs.
            anchors = max(1, seen * step.num_anchors // distributed.size())
            bar.set_postfix_str(
                f"class error {1 - float(sums[1]) / anchors:.2e}, "
                f"offset error {float(sums[2]) / (4 * anchors):.2e}, {rate:.1f} examples/s"
            )
    loss, right, errors = distributed.all_sum(sums).tolist()
    return {
        "epoch": epoch + 1,
        "loss": loss / seen,
        "class_error": 1 - right / (seen * step.num_anchors),
        "offset_error": errors / (4 * seen * step.num_anchors),
        "lr": lr,
        "examples_per_second": rate,
    }


def _validate(settings: Settings, model: TinySSD, loader: Loader, epoch: int) -> dict[str, Any]:
    """The model's measures on the validation set, as the history holds them."""
    measures = vars(evaluate(model, loader, batch_size=settings.batch_size))
    # The last step of an epoch may spoil the weights, and no loss tells before they are stored.
    finite = all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())
    if not finite or not math.isfinite(measures["offset_error"]):
        raise _not_finite("weights and predictions", f"others after epoch {epoch + 1}", settings)
    return {key: measures[name] for key, name in MEASURES.items()}


def _not_finite(what: str, got: str, settings: Settings) -> FloatingPointError:
    return FloatingPointError(
        f"train: {what} must be finite, got {got}; a lower lr may help (it is {settings.lr})"
    )
