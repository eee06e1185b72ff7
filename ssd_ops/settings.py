"""How a training run is made: one frozen record of every setting, and the named presets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from ssd_ops.loss import MultiBoxLoss

DEMO_EPOCHS = 12


@dataclass(frozen=True)
class Settings:
    """Every setting of a training run; the defaults are those of the chapter.

    Args:
        epochs: passes over the training set.
        batch_size: images in a step.
        optimizer: "sgd", or "adamw", which takes fewer steps to the same loss.
        lr: learning rate, the highest one of a schedule.
        momentum: of the gradient descent, or the first beta of AdamW; the chapter has none.
        weight_decay: of all parameters; decoupled from the gradient in AdamW.
        schedule: "constant", or "one_cycle": a warm-up to `lr` and a cosine down to nothing, laid
            over the epochs of the run.
        warmup: share of the steps in which one_cycle rises.
        offset_loss: "l1" or "smooth_l1", as for `MultiBoxLoss`.
        beta: where smooth L1 turns linear, as for `MultiBoxLoss`.
        negative_mining_ratio: negatives for each positive, or None, as for `MultiBoxLoss`.
        min_negatives: as for `MultiBoxLoss`.
        normalize: "mean" or "positives", as for `MultiBoxLoss`.
        match_iou: least IoU of an anchor with an object that makes it a positive.
        offset_weight: factor of the offset loss, as for `MultiBoxLoss`.
        input_size: height and width in pixels that images are resized to before the network sees
            them, in training and wherever the model is used; None for the training images' own.
        input_mean: subtracted from images in 0..255; the chapter feeds them as they are.
        input_std: images are divided by it afterwards.
        flip: probability of mirroring an image left to right, and again of mirroring it top to
            bottom.
        jitter: images are multiplied by a factor of 1 - jitter to 1 + jitter, another for each
            channel, and shifted by as much of the range; 0 changes nothing.
        nms_threshold: what the trained model suppresses at, as for `predict_batch`.
        seed: of the initial weights, of the order of the images and of the augmentation.
        device: "auto" takes a GPU if there is one; or "cpu", "cuda", "cuda:1", ...
        precision: "float32", "bfloat16" autocast, or "auto": bfloat16 where the processor or the
            GPU has instructions for it. It trains to the same measures there, in less time.
        channels_last: the memory layout that convolutions are fastest in.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> from dataclasses import replace
        >>> replace(PRESETS["paper"], epochs=3).schedule
        'one_cycle'
        >>> Settings(lr=-1)
        Traceback (most recent call last):
        ValueError: settings: lr must be positive, got -1
    """

    epochs: int = 20
    batch_size: int = 32
    optimizer: str = "sgd"
    lr: float = 0.2
    momentum: float = 0.0
    weight_decay: float = 5e-4
    schedule: str = "constant"
    warmup: float = 0.25
    offset_loss: str = "l1"
    beta: float = 1.0
    negative_mining_ratio: float | None = None
    min_negatives: int = 0
    normalize: str = "mean"
    match_iou: float = 0.5
    offset_weight: float = 1.0
    input_size: int | None = None
    input_mean: float = 0.0
    input_std: float = 1.0
    flip: float = 0.0
    jitter: float = 0.0
    nms_threshold: float = 0.5
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    channels_last: bool = True

    def __post_init__(self) -> None:
        whole = "a whole number"
        for name in ("epochs", "batch_size", "min_negatives", "seed"):
            value = getattr(self, name)
            self._check(name, isinstance(value, int) and not isinstance(value, bool), whole)
        for name in (
            "lr", "momentum", "weight_decay", "warmup", "beta", "match_iou",
            "offset_weight", "input_mean", "input_std", "flip", "jitter", "nms_threshold",
        ):  # fmt: skip
            value = getattr(self, name)
            real = isinstance(value, int | float) and math.isfinite(value)
            self._check(name, real, "a finite number")
        self._check("epochs", self.epochs >= 1, "at least 1")
        self._check("batch_size", self.batch_size >= 1, "at least 1")
        self._check("seed", self.seed >= 0, "0 or more")
        size = self.input_size
        self._check(
            "input_size", size is None or (type(size) is int and size >= 1), "pixels or None"
        )
        for name in ("lr", "input_std"):
            self._check(name, getattr(self, name) > 0, "positive")
        self._check("optimizer", self.optimizer in ("sgd", "adamw"), "sgd or adamw")
        self._check("momentum", 0 <= self.momentum < 1, "in 0..1, 1 left out")
        self._check("weight_decay", self.weight_decay >= 0, "0 or more")
        self._check("schedule", self.schedule in ("constant", "one_cycle"), "constant or one_cycle")
        self._check("warmup", 0 < self.warmup < 1, "between 0 and 1")
        for name in ("flip", "jitter", "match_iou", "nms_threshold"):
            self._check(name, 0 <= getattr(self, name) <= 1, "in 0..1")
        self._check(
            "precision",
            self.precision in ("auto", "float32", "bfloat16"),
            "auto, float32 or bfloat16",
        )
        self._check("device", _is_device(self.device), "auto or a device of torch")
        try:
            self.criterion()
        except ValueError as error:
            raise ValueError(str(error).replace("MultiBoxLoss", "settings", 1)) from None

    def _check(self, name: str, good: bool, wanted: str) -> None:
        if not good:
            raise ValueError(f"settings: {name} must be {wanted}, got {getattr(self, name)!r}")

    def criterion(self) -> MultiBoxLoss:
        """The loss of these settings."""
        options: dict[str, Any] = {
            name: getattr(self, name)
            for name in (
                "offset_loss",
                "beta",
                "negative_mining_ratio",
                "min_negatives",
                "normalize",
                "offset_weight",
            )
        }
        return MultiBoxLoss(**options)


def _is_device(name: str) -> bool:
    if name == "auto":
        return True
    try:
        torch.device(name)
    except (RuntimeError, TypeError):
        return False
    return True


def pick_device(name: str) -> torch.device:
    """The device that "auto" or a name stands for.

    Raises:
        ValueError: a GPU that this machine, or this build of torch, does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"settings: device must be one this machine has, got {name!r} "
            f"with {torch.cuda.device_count()} CUDA devices"
        )
    return device


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the network's arithmetic that "auto", "float32" or "bfloat16" stands for."""
    if precision != "auto":
        return torch.float32 if precision == "float32" else torch.bfloat16
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        # Without such instructions bfloat16 is emulated, and several times slower than float32.
        fast = device.type == "cpu" and (
            torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )
    return torch.bfloat16 if fast else torch.float32


def learning_rate(settings: Settings, step: int, total_steps: int) -> float:
    """The learning rate of a step: a function of nothing else, so there is no state to resume.

    Args:
        settings: its `lr`, `schedule` and `warmup`.
        step: from 0.
        total_steps: of the whole run.

    Source: one-cycle, arXiv:1708.07120, with cosines for both ways.

    Example:
        >>> one_cycle = Settings(lr=1.0, schedule="one_cycle", warmup=0.5)
        >>> [round(learning_rate(one_cycle, step, 4), 2) for step in range(5)]
        [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    if settings.schedule == "constant":
        return settings.lr
    done = step / total_steps
    if done < settings.warmup:
        low, share = settings.lr / 25, done / settings.warmup
    else:
        low, share = 0.0, 1 - (done - settings.warmup) / (1 - settings.warmup)
    return low + (settings.lr - low) * (1 - math.cos(math.pi * share)) / 2


# The SSD paper's loss, with what a run of a few epochs needs. At 128 pixels the base network's field of
# view covers a whole object, as it does not at 256: that finds more, and closer, in a quarter of the
# time. A step takes eight images, for such a run lacks steps, and smaller ones cost no time; AdamW
# needs fewer of them than plain gradient descent with momentum. Anchors match from IoU 0.45 on: at the
# paper's 0.5 small and thin objects have so few positives that many score below 0.5, and at 0.4 more
# false boxes surround an object. False boxes are few with six negatives for a positive, not three; most
# that are left are second boxes on an object, and suppression at 0.2 removes them. Raise that for
# pictures in which objects overlap.
PAPER = Settings(
    batch_size=8,
    optimizer="adamw",
    lr=0.001,
    momentum=0.9,
    weight_decay=0.01,
    schedule="one_cycle",
    warmup=0.15,
    offset_loss="smooth_l1",
    beta=0.2,
    negative_mining_ratio=6.0,
    normalize="positives",
    match_iou=0.45,
    input_size=128,
    input_mean=127.5,
    input_std=64.0,
    flip=0.5,
    nms_threshold=0.2,
)

PRESETS = {"chapter": Settings(), "paper": PAPER}
