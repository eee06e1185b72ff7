"""One training run in several processes, started by `torchrun`: ranks, sums, and a batch norm over all.

Without it all of this does nothing: there is one process, and its own numbers are those of all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

TIMEOUT = timedelta(minutes=10)  # for a process that hangs; one that has died is noticed at once


def is_first() -> bool:
    """Whether this process is the one that writes and prints; also where none has joined yet."""
    return int(os.environ.get("RANK", "0")) == 0


def rank() -> int:
    """The number of this process, 0 where there is one."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes share the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined(device: torch.device) -> Iterator[torch.device]:
    """Join the other processes of the run until its end; yields this one's device.

    That is `device`, but for a GPU without a number, which becomes that of the local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
        yield device
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        rest = "the checkpoint of the last finished epoch is whole, to be resumed from"
        raise RuntimeError(
            f"train: every process must live to the end, got one that is gone; {rest}"
        ) from error
    # Not after an error: leaving would wait for processes that wait for this one, which is to end.
    dist.destroy_process_group()


def _is_lost(error: RuntimeError) -> bool:
    """Whether torch reports a process that does not answer; of gloo it has only the path of a source."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def all_sum(numbers: Tensor) -> Tensor:
    """The sum over the processes, written into `numbers`; without a gradient."""
    if size() > 1:
        dist.all_reduce(numbers)
    return numbers


def gather(thing: Any) -> list[Any]:
    """A picklable thing of every process, by rank."""
    things = [thing] * size()
    if size() > 1:
        dist.all_gather_object(things, thing)
    return things


def synchronise(model: nn.Module) -> None:
    """Make the batch norms of a model, on its device already, see the images of all processes."""
    for module in model.modules():
        if size() > 1 and type(module) is nn.BatchNorm2d:
            module.__class__ = SyncBatchNorm


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm over the images of all processes; on any device, where torch's own wants a GPU."""

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same; B may differ between processes, and be 0."""
        if not self.training or size() == 1:
            return super().forward(x)
        wide = x.float()
        count = wide.new_tensor([x.numel() // self.num_features])
        sums = _Sum.apply(torch.cat((wide.sum((0, 2, 3)), count)))
        total = sums[-1].detach()
        mean = sums[:-1] / total
        centered = wide - mean[:, None, None]
        var = _Sum.apply(centered.square().sum((0, 2, 3))) / total
        with torch.no_grad():
            # The variance that is kept is the unbiased one, as in nn.BatchNorm2d.
            state: Any = self
            state.num_batches_tracked += 1
            state.running_mean.lerp_(mean, self.momentum)
            state.running_var.lerp_(var * total / (total - 1), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return (centered * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _Sum(torch.autograd.Function):
    """A sum over the processes; so is the gradient, as each holds a part of the loss."""

    @staticmethod
    def forward(ctx: Any, numbers: Tensor) -> Tensor:
        return all_sum(numbers.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return all_sum(gradient.clone())
