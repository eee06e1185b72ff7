"""One safetensors file that holds a training run: weights, optimizer, settings and history."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssd_ops.tinyssd import distributed
from ssd_ops.tinyssd.checks import extra
from ssd_ops.tinyssd.files import replace_file
from ssd_ops.tinyssd.model import TinySSD
from ssd_ops.tinyssd.settings import Settings, make_model, pick_device

FILE_NAME = "checkpoint.safetensors"
FORMAT = "ssd_ops checkpoint 4"
# Settings that say where and how fast a run is made, not what comes of it.
FREE = {"device", "workers", "cache_gb"}


def save(
    path: Path,
    model: TinySSD,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    class_names: Sequence[str],
    history: Sequence[dict[str, Any]],
) -> None:
    """Write a checkpoint: all that `load` and `resume` return, the optimizer's tensors by parameter.

    Random states and learning rates are not in it: they follow from the settings and the epoch.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        state = optimizer.state.get(parameter, {}).items()
        tensors |= {f"optimizer.{key}.{name}": v for key, v in state if isinstance(v, Tensor)}
    content = {
        "settings": asdict(settings),
        "size": list(model.preprocess.size),
        "class_names": list(class_names),
        "history": list(history),
    }
    # Storage order is not part of the format: a channels_last tensor is stored plain.
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, "ssd_ops": json.dumps(content)}
    replace_file(path, extra("safetensors.torch").save(plain, metadata))


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What a checkpoint says as JSON, and its tensors; raises what `load` raises."""
    if not path.is_file():
        raise FileNotFoundError(f"load: checkpoint must be a file, got {path}, which is not there")
    safetensors = extra("safetensors")
    wanted = "a whole safetensors file"
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            wanted = "one that `train` of this version wrote"
            if metadata.get("format") != FORMAT:
                raise ValueError(f"format {metadata.get('format')}")
            content = json.loads(metadata.get("ssd_ops", ""))
            _check(content)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"load: checkpoint must be {wanted}, got {path} ({error})") from None
    return content, tensors


def _check(content: Any) -> None:
    """A ValueError if this is not of the form that `save` writes; `Settings` checks its own."""
    kinds: dict[str, tuple[Any, type, str]] = {
        "settings": (dict, str, "an object"),
        "size": (list, int, "a list of whole numbers"),
        "class_names": (list, str, "a list of texts"),
        "history": (list, dict, "a list of objects"),
    }
    for name, (kind, of, wanted) in kinds.items():
        value: Any = content.get(name) if isinstance(content, dict) else None
        if not isinstance(value, kind) or not all(type(entry) is of for entry in value):
            raise ValueError(f"{name} must be {wanted}, got {str(value)[:80]}")
    if len(content["size"]) != 2 or min(content["size"]) < 1:
        raise ValueError(f"size must be two numbers above 0, got {content['size']}")


def _build(content: dict[str, Any], tensors: dict[str, Tensor]) -> tuple[TinySSD, Settings]:
    """The model and the settings of a checkpoint that was read."""
    try:
        settings = Settings(**content["settings"])
        weights, shape = _part(tensors, "model."), (len(content["class_names"]), content["size"])
        with torch.device("meta"):  # no memory is taken for a network that the file does not hold
            make_model(settings, *shape).load_state_dict(weights, assign=True)
        model = make_model(settings, *shape)
        model.load_state_dict(weights)
        for entry, value in _part(tensors, "optimizer.").items():
            parameter = model.get_parameter(entry.partition(".")[2])
            if value.ndim and value.shape != parameter.shape:
                raise ValueError(f"optimizer.{entry} of shape {list(value.shape)}")
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        got = str(error).splitlines()[0]
        raise ValueError(f"load: checkpoint must fit this version, got {got}") from None
    return model, settings


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def load(
    path: str | os.PathLike[str], device: str = "auto"
) -> tuple[TinySSD, Settings, dict[str, Any]]:
    """The model of a checkpoint, ready to predict.

    Args:
        path: the file, or the folder that `train` wrote it to; a ValueError if it is damaged.
        device: where the model goes; "auto" takes a GPU if there is one.

    Returns:
        The model in evaluation mode, the settings it was trained with, and a dict of "epoch" (how
        many are finished), "class_names" and "history" (see `train`).
    """
    path = Path(path)
    content, tensors = read(path / FILE_NAME if path.is_dir() else path)
    model, settings = _build(content, tensors)
    history = content["history"]
    meta = {"epoch": len(history), "class_names": content["class_names"], "history": history}
    return model.to(pick_device(device)).eval(), settings, meta


def refuse_to_lose(path: Path) -> None:
    """Raise FileExistsError where a new run would lose finished epochs or a file of another kind."""
    try:
        finished = len(read(path)[0]["history"])
        holds = f"{finished} finished epoch{'s' * (finished > 1)}"
    except FileNotFoundError:
        return
    except ValueError:
        finished, holds = -1, "another file"
    if finished:
        advice = "resume or overwrite it, or name another folder"
        raise FileExistsError(f"train: out_dir must hold no run, got {path} with {holds}; {advice}")


def resume(
    path: Path, settings: Settings, fresh: TinySSD, class_names: Sequence[str]
) -> tuple[TinySSD, dict[str, Tensor], list[dict[str, Any]]]:
    """Model, tensors and history of a run that is to go on, read by the first process for all.

    A ValueError says what is not the checkpoint's: a setting, the classes, or the image size of `fresh`.
    """
    # Other machines need not have the file.
    content, tensors = distributed.gather(read(path) if distributed.rank() == 0 else None)[0]
    model, saved = _build(content, tensors)
    history, free = content["history"], set(FREE)
    # With these schedules the steps already made do not depend on how many are to come.
    if settings.schedule in ("constant", "step") and settings.epochs >= len(history):
        free.add("epochs")
    ours, theirs = _flat(settings), _flat(saved)
    wrong = [name for name in ours if name not in free and ours[name] != theirs[name]]
    if wrong:
        wanted = f"{wrong[0]} must be {theirs[wrong[0]]!r} as in the checkpoint"
        raise ValueError(f"train: to resume, {wanted}, got {ours[wrong[0]]!r}")
    given = list(class_names), list(fresh.preprocess.size)
    if given != (content["class_names"], content["size"]):
        wanted = f"the classes and the image size of {path}"
        raise ValueError(f"train: train_set must have {wanted}, got {given[0]} and {given[1]}")
    return model, tensors, history


def _flat(settings: Settings) -> dict[str, Any]:
    # The options first: of a loss that differs, they say where.
    loss = {f"loss.{name}": value for name, value in vars(settings.loss).items()}
    return loss | vars(settings)


def restore_optimizer(
    model: TinySSD, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> None:
    """Put the state of a checkpoint into an optimizer of the model's parameters."""
    for entry, value in _part(tensors, "optimizer.").items():
        key, name = entry.split(".", 1)
        parameter = model.get_parameter(name)
        # In the layout of the parameter; the count of steps on the CPU but for a fused optimizer.
        count = parameter.device if optimizer.defaults.get("fused") else "cpu"
        own = torch.empty_like(parameter) if value.ndim else value.to(count)
        optimizer.state[parameter][key] = own.detach().copy_(value)
