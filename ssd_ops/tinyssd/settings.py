"""How a training run is made: one frozen record of every setting, and the named presets."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ssd_ops.tinyssd import checks
from ssd_ops.tinyssd.loss import LossOptions
from ssd_ops.tinyssd.model import CHANNELS, RATIOS, SIZES, TinySSD
from ssd_ops.tinyssd.preprocess import Preprocess

DEMO_EPOCHS = 12


def _tuple_of(good: Callable[[Any], bool], least: int = 1) -> Callable[[Any], bool]:
    return lambda v: isinstance(v, tuple) and len(v) >= least and all(map(good, v))


def _is_device(name: Any) -> bool:
    try:
        return name == "auto" or bool(torch.device(name).type)
    except (RuntimeError, TypeError):
        return False


_NOT_NEGATIVE = ("seed", "weight_decay", "warmup_steps", "workers", "cache_gb")
_SHARES = ("flip", "flip_vertical", "jitter", "match_iou", "nms_threshold")
_ROWS = _tuple_of(_tuple_of(lambda v: checks.is_number(v) and v > 0)), "lists of positive numbers"
RULES: dict[str, checks.Rule] = {
    **dict.fromkeys(("epochs", "batch_size", "input_size"), checks.AT_LEAST_1),
    **dict.fromkeys(_NOT_NEGATIVE, checks.NOT_NEGATIVE),
    **dict.fromkeys(("lr", "lr_drop", "input_std", "clip_norm"), checks.POSITIVE),
    **dict.fromkeys(_SHARES, checks.FRACTION),
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
    """Every setting of a training run; the defaults are the chapter's. A bad value is a ValueError."""

    epochs: int = 20  # passes over the training set
    batch_size: int = 32  # images in a step
    optimizer: str = "sgd"  # "sgd", or "adamw", which takes fewer steps to the same loss
    lr: float = 0.2  # learning rate, the highest one of a schedule
    momentum: float = 0.0  # of SGD, or the first beta of AdamW; the chapter has none
    weight_decay: float = 5e-4  # of all parameters; decoupled from the gradient in AdamW
    schedule: str = "constant"  # "cosine" from lr to 0, "step", "one_cycle" or this
    warmup: float = 0.25  # share of the steps in which one_cycle rises; not used by the others
    warmup_steps: int = 0  # steps in which the other schedules rise from 0 to lr
    lr_drops: tuple[int, ...] = ()  # with "step": after these epochs lr is multiplied by lr_drop
    lr_drop: float = 0.1  # the factor of the rate at each of lr_drops
    clip_norm: float | None = None  # a greater norm of the whole gradient is scaled down to it
    loss: LossOptions = field(default_factory=LossOptions)  # or a dict of some options
    match_iou: float = 0.5  # least IoU of a positive with its ground truth; evaluation takes it too
    sizes: tuple[tuple[float, ...], ...] = SIZES  # of the anchors of each scale, as for TinySSD
    ratios: tuple[tuple[float, ...], ...] = RATIOS  # the aspect ratios, as for TinySSD
    channels: tuple[int, ...] = CHANNELS  # of the network's blocks, as for TinySSD
    input_size: int | None = None  # height and width in pixels; None: the images' own, or 256
    letterbox: bool = False  # keep the shape of images, between grey bars; else they are stretched
    input_mean: float = 0.0  # subtracted from images in 0..255; the chapter feeds them as they are
    input_std: float = 1.0  # images are divided by it afterwards
    flip: float = 0.0  # probability of mirroring an image left to right
    flip_vertical: float = 0.0  # the same top to bottom; not for images with an upside
    jitter: float = 0.0  # contrast and brightness of each channel change by up to this share
    nms_threshold: float = 0.5  # what the trained model suppresses at, as for predict_batch
    seed: int = 0  # of the initial weights, of the order of the images and of the augmentation
    device: str = "auto"  # a GPU if there is one; "cpu", "cuda", "cuda:1", ...
    precision: str = "auto"  # "float32", "bfloat16", or "auto": bfloat16 where it is fast
    channels_last: bool = True  # the memory layout that convolutions are fastest in
    compile: bool = False  # run the network through torch.compile; the first steps take long
    cuda_graph: bool = False  # on a GPU, record the whole step once and replay it: same results
    workers: int = 2  # processes that decode images, where these are not kept in memory
    cache_gb: float = 4.0  # images are kept in memory, at the input size, if they take no more

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
        path: a TOML file of settings, those of the loss in a table ``[loss]``; None: no file.
        preset: one of `PRESETS`; None: the ``preset`` that the file names, or else "chapter".
        changes: settings that are stronger than the file's; ``loss`` a dict of options.
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
    if base not in [*PRESETS]:  # a list, as a file may name anything
        raise ValueError(f"settings: preset must be one of {', '.join(PRESETS)}, got {base!r}")
    result = PRESETS[base]
    known = {*vars(result), *(f"loss.{name}" for name in vars(result.loss))}
    for table, place in ((given, f" in {path}"), (changes, "")):
        loss = table.get("loss", {})
        options = loss if isinstance(loss, dict) else {}
        for name in sorted({*table, *(f"loss.{option}" for option in options)} - known):
            wanted = f"one of {', '.join(sorted(known))}"
            raise ValueError(f"settings: a setting must be {wanted}, got {name!r}{place}")
        merged = vars(result.loss) | options if options is loss else loss
        result = replace(result, **{**table, "loss": merged})
    return result


def make_model(settings: Settings, num_classes: int, size: Sequence[int]) -> TinySSD:
    """The model that a run with these settings starts from; `size` is its input (height, width)."""
    mean, std = (settings.input_mean,) * 3, (settings.input_std,) * 3
    height, width = size
    preprocess = Preprocess((height, width), mean, std, settings.letterbox)
    with torch.random.fork_rng(devices=[]):  # the caller's own random numbers stay as they were
        torch.manual_seed(settings.seed)
        shape = (settings.sizes, settings.ratios, settings.channels)
        thresholds = settings.nms_threshold, settings.match_iou
        model = TinySSD(num_classes, *shape, preprocess, *thresholds)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    return model.to(memory_format=layout)  # type: ignore[call-overload]


def pick_device(name: str) -> torch.device:
    """The device that "auto" or a name stands for; ValueError for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        got = f"{name!r} with {torch.cuda.device_count()} CUDA devices"
        raise ValueError(f"settings: device must be one this machine has, got {got}")
    return device


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the network's arithmetic that "auto", "float32" or "bfloat16" stands for."""
    if precision != "auto":
        return torch.float32 if precision == "float32" else torch.bfloat16
    # Without instructions for it bfloat16 is emulated, and several times slower than float32.
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if fast and device.type in ("cpu", "cuda") else torch.float32


# The SSD paper's loss, and what a run of a few epochs needs: small batches, and AdamW, which needs
# fewer steps than SGD. At 128 pixels the field of view of the base network covers a whole banana. At
# the paper's match_iou of 0.5 small ground truths have few positives, at 0.4 there are more false
# boxes. NMS at 0.2 removes second boxes on one ground truth; raise it where ground truths overlap.
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

# For photographs: ground truths that are smaller, may overlap, and have an upside. Large ones are left
# to the coarse maps, whose field of view holds them.
PHOTOS = replace(
    PAPER,
    sizes=((0.08, 0.12), (0.18, 0.25), (0.35, 0.43), (0.53, 0.62), (0.75, 0.87)),
    input_size=256,
    flip_vertical=0.0,
    nms_threshold=0.45,
)

PRESETS = {"chapter": Settings(), "paper": PAPER, "photos": PHOTOS}
