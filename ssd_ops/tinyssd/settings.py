"""How a training run is made: one frozen record of every setting, and the named presets."""

from __future__ import annotations

import math
import os
import tomllib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ssd_ops.tinyssd.loss import MultiBoxLoss
from ssd_ops.tinyssd.model import CHANNELS, RATIOS, SIZES

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
        schedule: "constant"; "cosine" from `lr` down to nothing over the epochs of the run; "step":
            lowered at the epochs of `lr_drops`; or "one_cycle": a warm-up and a cosine.
        warmup: share of the steps in which one_cycle rises; not used by the others.
        warmup_steps: steps in which the other schedules rise from nothing to `lr`; 0 in the chapter.
        lr_drops: with the schedule "step", the numbers of finished epochs after which the learning
            rate is multiplied by `lr_drop`.
        lr_drop: see `lr_drops`.
        clip_norm: gradients of a greater norm, over all parameters, are scaled down to it; None, the
            chapter's, leaves them.
        cls_loss: "cross_entropy" or "focal", as for `MultiBoxLoss`.
        focal_gamma: as for `MultiBoxLoss`.
        focal_alpha: as for `MultiBoxLoss`.
        offset_loss: "l1" or "smooth_l1", as for `MultiBoxLoss`.
        sigma: where smooth L1 turns linear, as for `MultiBoxLoss`.
        negative_mining_ratio: negatives for each positive, or None, as for `MultiBoxLoss`.
        min_negatives: as for `MultiBoxLoss`.
        normalize: "mean" or "positives", as for `MultiBoxLoss`.
        match_iou: least IoU of an anchor with an object that makes it a positive.
        cls_weight: factor of the class loss, as for `MultiBoxLoss`.
        offset_weight: factor of the offset loss, as for `MultiBoxLoss`.
        sizes: for each scale the anchor sizes, as for `TinySSD`; `ssd-ops anchors` suggests some.
        ratios: for each scale the anchor aspect ratios, as for `TinySSD`.
        channels: of the network's blocks, as for `TinySSD`.
        input_size: height and width in pixels that images are resized to before the network sees
            them, in training and wherever the model is used; None for the training images' own, or
            the chapter's 256 where these differ. Small objects need more, such as 512.
        letterbox: keep the shape of images, between grey bars; the default stretches them.
        input_mean: subtracted from images in 0..255; the chapter feeds them as they are.
        input_std: images are divided by it afterwards.
        flip: probability of mirroring an image left to right.
        flip_vertical: probability of mirroring it top to bottom; not for pictures with an upside.
        jitter: images are multiplied by a factor of 1 - jitter to 1 + jitter, another for each
            channel, and shifted by as much of the range; 0 changes nothing.
        nms_threshold: what the trained model suppresses at, as for `predict_batch`.
        seed: of the initial weights, of the order of the images and of the augmentation.
        device: "auto" takes a GPU if there is one; or "cpu", "cuda", "cuda:1", ...
        precision: "float32", "bfloat16" autocast, or "auto": bfloat16 where the processor or the
            GPU has instructions for it. It trains to the same measures there, in less time.
        channels_last: the memory layout that convolutions are fastest in.
        compile: run the network through `torch.compile`; the first steps take long.
        cuda_graph: on a GPU, record the whole step once and replay it. Results are those of the
            step itself.
        workers: processes that decode pictures, where these are not kept in memory.
        cache_gb: pictures are kept in memory, decoded and at the input size, if they take no more.

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
    warmup_steps: int = 0
    lr_drops: tuple[int, ...] = ()
    lr_drop: float = 0.1
    clip_norm: float | None = None
    cls_loss: str = "cross_entropy"
    focal_gamma: float = 2.0
    focal_alpha: float = 1.0
    offset_loss: str = "l1"
    sigma: float = 1.0
    negative_mining_ratio: float | None = None
    min_negatives: int = 0
    normalize: str = "mean"
    match_iou: float = 0.5
    cls_weight: float = 1.0
    offset_weight: float = 1.0
    sizes: tuple[tuple[float, ...], ...] = SIZES
    ratios: tuple[tuple[float, ...], ...] = RATIOS
    channels: tuple[int, ...] = CHANNELS
    input_size: int | None = None
    letterbox: bool = False
    input_mean: float = 0.0
    input_std: float = 1.0
    flip: float = 0.0
    flip_vertical: float = 0.0
    jitter: float = 0.0
    nms_threshold: float = 0.5
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    channels_last: bool = True
    compile: bool = False
    cuda_graph: bool = False
    workers: int = 2
    cache_gb: float = 4.0

    def __post_init__(self) -> None:
        # From JSON and TOML come lists; equal settings must compare equal.
        for name in ("lr_drops", "sizes", "ratios", "channels"):
            object.__setattr__(self, name, _tuple(getattr(self, name)))
        for field in fields(self):
            value, kind = getattr(self, field.name), str(field.type)
            if kind.endswith("| None") and value is None:
                continue
            if kind.startswith("int"):
                whole = isinstance(value, int) and not isinstance(value, bool)
                self._check(field.name, whole, "a whole number")
            elif kind.startswith("float"):
                self._check(field.name, _is_real(value), "a finite number")
            elif kind == "bool":
                self._check(field.name, isinstance(value, bool), "true or false")
        for name in ("epochs", "batch_size", "input_size"):
            self._check(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        for name in ("seed", "weight_decay", "warmup_steps", "workers", "cache_gb"):
            self._check(name, getattr(self, name) >= 0, "0 or more")
        for name in ("lr", "lr_drop", "input_std", "clip_norm"):
            value = getattr(self, name)
            self._check(name, value is None or value > 0, "positive")
        for name in ("flip", "flip_vertical", "jitter", "match_iou", "nms_threshold"):
            self._check(name, 0 <= getattr(self, name) <= 1, "in 0..1")
        self._check("optimizer", self.optimizer in ("sgd", "adamw"), "sgd or adamw")
        self._check("momentum", 0 <= self.momentum < 1, "in 0..1, 1 left out")
        schedules = ("constant", "cosine", "step", "one_cycle")
        self._check("schedule", self.schedule in schedules, "one of " + ", ".join(schedules))
        self._check("warmup", 0 < self.warmup < 1, "between 0 and 1")
        epochs = isinstance(self.lr_drops, tuple) and all(type(n) is int for n in self.lr_drops)
        self._check("lr_drops", epochs, "a list of epochs")
        for name in ("sizes", "ratios"):
            self._check(name, _are_positive(getattr(self, name)), "lists of positive numbers")
        whole = _are_positive((self.channels,)) and all(type(n) is int for n in self.channels)
        self._check("channels", whole, "a list of whole numbers from 1")
        precisions = ("auto", "float32", "bfloat16")
        self._check("precision", self.precision in precisions, "auto, float32 or bfloat16")
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
        names = (
            "cls_loss", "focal_gamma", "focal_alpha", "offset_loss", "sigma", "cls_weight",
            "offset_weight", "negative_mining_ratio", "min_negatives", "normalize",
        )  # fmt: skip
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        return MultiBoxLoss(**options)


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list | tuple) else value


def _is_real(value: object) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and math.isfinite(value)  # type: ignore[arg-type]


def _are_positive(rows: object) -> bool:
    """Whether these are tuples of positive numbers, none of them empty."""
    return isinstance(rows, tuple) and all(
        isinstance(row, tuple) and row and all(_is_real(x) and x > 0 for x in row) for row in rows
    )


def read_settings(
    path: str | os.PathLike[str] | None = None, preset: str | None = None, /, **changes: Any
) -> Settings:
    """The settings of a preset, with what a TOML file and the caller change of them.

    Args:
        path: a TOML file of settings, such as ``lr = 0.1``; its ``preset`` names one of `PRESETS`.
            None (the default): no file.
        preset: one of `PRESETS`, whatever the file says; None, and none in the file: "chapter".
        changes: settings that are stronger than the file's.

    Raises:
        ValueError: no such preset or setting, a value out of range, or a file that is no TOML.
        FileNotFoundError: no such file.

    Example:
        >>> read_settings(None, "paper", epochs=3).epochs
        3
    """
    given: dict[str, Any] = {}
    if path is not None:
        try:
            given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"settings: {path} must be a file, got none") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"settings: {path} must be TOML, got {error}") from None
    base = given.pop("preset", "chapter")
    base = base if preset is None else preset
    if base not in PRESETS:
        raise ValueError(f"settings: preset must be one of {', '.join(PRESETS)}, got {base!r}")
    given |= changes
    known = {field.name for field in fields(Settings)}
    for name in given:
        if name not in known:
            place = "" if path is None or name in changes else f" in {path}"
            raise ValueError(
                f"settings: a setting must be one of {', '.join(sorted(known))}, got {name!r}{place}"
            )
    return replace(PRESETS[base], **given)


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
        settings: its `lr`, `schedule` and what belongs to that.
        step: from 0.
        total_steps: of the whole run.

    Source: one-cycle, arXiv:1708.07120, with cosines for both ways; cosine, arXiv:1608.03983.

    Example:
        >>> one_cycle = Settings(lr=1.0, schedule="one_cycle", warmup=0.5)
        >>> [round(learning_rate(one_cycle, step, 4), 2) for step in range(5)]
        [0.04, 0.52, 1.0, 0.5, 0.0]
    """
    done, lr = step / total_steps, settings.lr
    if settings.schedule == "one_cycle":
        if done < settings.warmup:
            low, share = lr / 25, done / settings.warmup
        else:
            low, share = 0.0, 1 - (done - settings.warmup) / (1 - settings.warmup)
        return low + (lr - low) * (1 - math.cos(math.pi * share)) / 2
    if step < settings.warmup_steps:
        return lr * (step + 1) / settings.warmup_steps
    if settings.schedule == "cosine":
        rest = max(total_steps - settings.warmup_steps, 1)
        return lr * (1 + math.cos(math.pi * (step - settings.warmup_steps) / rest)) / 2
    if settings.schedule == "step":
        finished = step * settings.epochs // total_steps
        lr *= settings.lr_drop ** sum(epoch <= finished for epoch in settings.lr_drops)
    return lr


# The SSD paper's loss, with what a run of a few epochs needs. At 128 pixels the base network's field of
# view covers a whole object, as it does not at 256: that finds more, and closer, in a quarter of the
# time. A step takes eight images, for such a run lacks steps, and smaller ones cost no time; AdamW
# needs fewer of them than plain gradient descent with momentum. Anchors match from IoU 0.45 on: at the
# paper's 0.5 small and thin objects have so few positives that many score below 0.5, and at 0.4 more
# false boxes surround an object. With the paper's three negatives for a positive scores stand higher
# than with six: more objects reach 0.5, and false boxes stay as few. Most that are left are second boxes
# on an object, and suppression at 0.2 removes them. Raise that for pictures in which objects overlap.
PAPER = Settings(
    batch_size=8,
    optimizer="adamw",
    lr=0.001,
    momentum=0.9,
    weight_decay=0.01,
    schedule="one_cycle",
    warmup=0.15,
    offset_loss="smooth_l1",
    sigma=5**0.5,
    negative_mining_ratio=3.0,
    normalize="positives",
    match_iou=0.45,
    input_size=128,
    input_mean=127.5,
    input_std=64.0,
    flip=0.5,
    flip_vertical=0.5,
    nms_threshold=0.2,
)

# The same for photographs: several objects, smaller ones, which have an upside and may overlap. The
# sizes of anchors begin where the smallest of them are, and leave large ones to the coarse maps, whose
# field of view holds them: on cut-outs of four classes pasted into photographs, and on bananas, that found
# far more than the chapter's sizes did.
PHOTOS = replace(
    PAPER,
    sizes=((0.08, 0.12), (0.18, 0.25), (0.35, 0.43), (0.53, 0.62), (0.75, 0.87)),
    input_size=256,
    flip_vertical=0.0,
    nms_threshold=0.45,
)

PRESETS = {"chapter": Settings(), "paper": PAPER, "photos": PHOTOS}
