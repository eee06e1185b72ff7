"""How a training run is made: one frozen record of every setting, and the named presets."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ssd_ops.tinyssd import checks
from ssd_ops.tinyssd.loss import LossOptions
from ssd_ops.tinyssd.model import CHANNELS, RATIOS, SIZES

DEMO_EPOCHS = 12


def _tuple_of(good: Callable[[Any], bool], least: int = 1) -> Callable[[Any], bool]:
    """Whether a value is a tuple of good ones, `least` or more of them."""
    return lambda v: isinstance(v, tuple) and len(v) >= least and all(map(good, v))


def _is_device(name: Any) -> bool:
    try:
        return name == "auto" or bool(torch.device(name).type)
    except (RuntimeError, TypeError):
        return False


_ROWS = _tuple_of(_tuple_of(lambda v: checks.is_number(v) and v > 0)), "lists of positive numbers"
_FRACTIONS = ("flip", "flip_vertical", "jitter", "match_iou", "nms_threshold")
_NOT_NEGATIVE = ("seed", "weight_decay", "warmup_steps", "workers", "cache_gb")
RULES: dict[str, checks.Rule] = {
    **dict.fromkeys(("epochs", "batch_size", "input_size"), checks.AT_LEAST_1),
    **dict.fromkeys(_NOT_NEGATIVE, checks.NOT_NEGATIVE),
    **dict.fromkeys(("lr", "lr_drop", "input_std", "clip_norm"), checks.POSITIVE),
    **dict.fromkeys(_FRACTIONS, checks.FRACTION),
    **dict.fromkeys(("sizes", "ratios"), _ROWS),
    "channels": (_tuple_of(lambda v: type(v) is int and v > 0), "a list of whole numbers from 1"),
    "lr_drops": (_tuple_of(lambda v: type(v) is int, least=0), "a list of epochs"),
    "optimizer": checks.choice("sgd", "adamw"),
    "schedule": checks.choice("constant", "cosine", "step", "one_cycle"),
    "precision": checks.choice("auto", "float32", "bfloat16"),
    "momentum": (lambda v: 0 <= v < 1, "in 0..1, 1 left out"),
    "warmup": (lambda v: 0 < v < 1, "between 0 and 1"),
    "device": (_is_device, "auto or a device of torch"),
    "loss": (lambda v: isinstance(v, LossOptions), "a table of the options of MultiBoxLoss"),
}


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
        schedule: "constant"; "cosine" from `lr` down to 0 over the epochs of the run; "step":
            lowered at the epochs of `lr_drops`; or "one_cycle": a warm-up and a cosine.
        warmup: share of the steps in which one_cycle rises; not used by the others.
        warmup_steps: steps in which the other schedules rise from 0 to `lr`; 0 in the chapter.
        lr_drops: with "step", after how many epochs the rate is multiplied by `lr_drop`, each time.
        lr_drop: see `lr_drops`.
        clip_norm: gradients of a greater norm, over all parameters, are scaled down to it; None, the
            chapter's, leaves them.
        loss: the options of `MultiBoxLoss`; a dict of some of them changes the defaults.
        match_iou: least IoU of an anchor with a ground truth that makes it a positive.
        sizes: for each scale the anchor sizes, as for `TinySSD`; `ssd-ops anchors` suggests some.
        ratios: for each scale the anchor aspect ratios, as for `TinySSD`.
        channels: of the network's blocks, as for `TinySSD`.
        input_size: height and width in pixels that images are resized to, in training and wherever
            the model is used; None for the training images' own, or the chapter's 256 where these
            differ. Small ground truths need more, such as 512.
        letterbox: keep the shape of images, between grey bars; the default stretches them.
        input_mean: subtracted from images in 0..255; the chapter feeds them as they are.
        input_std: images are divided by it afterwards.
        flip: probability of mirroring an image left to right.
        flip_vertical: probability of mirroring it top to bottom; not for images with an upside.
        jitter: images are multiplied by a factor of 1 - jitter to 1 + jitter, another for each
            channel, and shifted by as much of the range; 0 changes nothing.
        nms_threshold: what the trained model suppresses at, as for `predict_batch`.
        seed: of the initial weights, of the order of the images and of the augmentation.
        device: "auto" takes a GPU if there is one; or "cpu", "cuda", "cuda:1", ...
        precision: "float32", "bfloat16" autocast, or "auto": bfloat16 where the processor or the
            GPU has instructions for it. It trains to the same measures there, in less time.
        channels_last: the memory layout that convolutions are fastest in.
        compile: run the network through `torch.compile`; the first steps take long.
        cuda_graph: on a GPU, record the whole step once and replay it; the results are the same.
        workers: processes that decode images, where these are not kept in memory.
        cache_gb: images are kept in memory, decoded and at the input size, if they take no more.

    Raises:
        ValueError: a value out of range.

    Example:
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
    loss: LossOptions = field(default_factory=LossOptions)
    match_iou: float = 0.5
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
        # From JSON and TOML come lists and dicts; equal settings must compare equal.
        for name in ("lr_drops", "sizes", "ratios", "channels"):
            object.__setattr__(self, name, _tuple(getattr(self, name)))
        if isinstance(self.loss, dict):
            try:
                object.__setattr__(self, "loss", LossOptions(**self.loss))
            except ValueError as error:
                message = str(error).replace("MultiBoxLoss: ", "settings: loss.", 1)
                raise ValueError(message) from None
        checks.check_fields("settings", self, RULES)


def _tuple(value: Any) -> Any:
    return tuple(map(_tuple, value)) if isinstance(value, list | tuple) else value


def read_settings(
    path: str | os.PathLike[str] | None = None, preset: str | None = None, /, **changes: Any
) -> Settings:
    """The settings of a preset, with what a TOML file and the caller change of them.

    Args:
        path: a TOML file of settings, such as ``lr = 0.1``, with those of the loss in a table
            ``[loss]``; its ``preset`` names one of `PRESETS`. None (the default): no file.
        preset: one of `PRESETS`, whatever the file says; None, and none in the file: "chapter".
        changes: settings that are stronger than the file's; ``loss`` a dict of options.

    Raises:
        ValueError: no such preset or setting, a value out of range, or a file that is not TOML.
        FileNotFoundError: no such file.

    Example:
        >>> read_settings(None, "paper", epochs=3, loss={"sigma": 1.0}).loss.offset_loss
        'smooth_l1'
    """
    given: dict[str, Any] = {}
    if path is not None:
        try:
            given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(f"settings: {path} must be a file, got none") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ValueError(f"settings: {path} must be TOML, got {error}") from None
    named = given.pop("preset", "chapter")
    base = named if preset is None else preset
    if base not in PRESETS:
        raise ValueError(f"settings: preset must be one of {', '.join(PRESETS)}, got {base!r}")
    known = {*vars(PRESETS[base]), *(f"loss.{name}" for name in vars(PRESETS[base].loss))}
    loss = dict(vars(PRESETS[base].loss))
    for table, place in ((given, f" in {path}"), (changes, "")):
        options = table.get("loss", {})
        if not isinstance(options, dict):
            raise ValueError(f"settings: loss must be {RULES['loss'][1]}, got {options!r}{place}")
        for name in (*table, *(f"loss.{option}" for option in options)):
            if name not in known:
                raise ValueError(
                    f"settings: a setting must be one of {', '.join(sorted(known))}, "
                    f"got {name!r}{place}"
                )
        loss |= options
    return replace(PRESETS[base], **{**given, **changes, "loss": loss})


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


# The SSD paper's loss, with what a run of a few epochs needs. At 128 pixels the base network's field
# of view covers a whole banana, as it does not at 256: that finds more, and closer, in a quarter of the
# time. A step takes eight images, as so short a run has few steps; AdamW needs fewer of them than SGD
# with momentum. Anchors match from IoU 0.45 on: at the paper's 0.5 small and thin ground truths have so
# few positives that many score below 0.5, and at 0.4 there are more false boxes. With the paper's three
# negatives for a positive scores are higher than with six, and false boxes as few. Most of these are
# second boxes on one ground truth; NMS at 0.2 removes them. Raise that where ground truths overlap.
PAPER = Settings(
    batch_size=8,
    optimizer="adamw",
    lr=0.001,
    momentum=0.9,
    weight_decay=0.01,
    schedule="one_cycle",
    warmup=0.15,
    loss=LossOptions(
        offset_loss="smooth_l1", sigma=5**0.5, negative_mining_ratio=3.0, normalize="positives"
    ),
    match_iou=0.45,
    input_size=128,
    input_mean=127.5,
    input_std=64.0,
    flip=0.5,
    flip_vertical=0.5,
    nms_threshold=0.2,
)

# The same for photographs: several ground truths, smaller ones, with an upside, which may overlap. Anchor
# sizes begin where the smallest of them are, and leave large ones to the coarse maps, whose field of view
# holds them: on cut-outs of four classes pasted into photographs, and on bananas, that found far more than
# the chapter's sizes did.
PHOTOS = replace(
    PAPER,
    sizes=((0.08, 0.12), (0.18, 0.25), (0.35, 0.43), (0.53, 0.62), (0.75, 0.87)),
    input_size=256,
    flip_vertical=0.0,
    nms_threshold=0.45,
)

PRESETS = {"chapter": Settings(), "paper": PAPER, "photos": PHOTOS}
