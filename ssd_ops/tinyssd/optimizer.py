"""The optimizer of a training run, and the schedule of its learning rate."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from ssd_ops.tinyssd.settings import Settings


def make_optimizer(settings: Settings, model: nn.Module) -> Optimizer:
    """The optimizer of the settings, for the parameters of a model on its device already."""
    parameters = list(model.parameters())
    on_gpu = parameters[0].device.type == "cuda"
    options: dict[str, Any] = {"weight_decay": settings.weight_decay, "fused": on_gpu}
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, settings.lr, settings.momentum, **options)
    # Recorded, a step has to count the steps on the device.
    options["capturable"] = settings.cuda_graph and on_gpu
    return torch.optim.AdamW(parameters, settings.lr, (settings.momentum, 0.99), **options)


def make_scheduler(
    settings: Settings, optimizer: Optimizer, steps_per_epoch: int, finished: int = 0
) -> lr_scheduler.LRScheduler:
    """torch's scheduler of the learning rate, after `finished` epochs; ``step()`` it after each step.

    Source: one-cycle, arXiv:1708.07120, with cosines for both ways; cosine, arXiv:1608.03983.
    """
    total, rise = settings.epochs * steps_per_epoch, settings.warmup_steps
    scheduler: lr_scheduler.LRScheduler
    if settings.schedule == "one_cycle":
        # Where the rise takes one step exactly, torch divides by zero.
        share = settings.warmup + 1e-6 * (settings.warmup * total == 1)
        scheduler = lr_scheduler.OneCycleLR(
            optimizer, settings.lr, total, pct_start=share, cycle_momentum=False
        )
    elif settings.schedule == "cosine":
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, max(total - rise, 1))
    else:
        drops = settings.lr_drops if settings.schedule == "step" else ()  # else constant
        steps = [max(epoch * steps_per_epoch - rise, 0) for epoch in drops]
        scheduler = lr_scheduler.MultiStepLR(optimizer, steps, settings.lr_drop)
    if rise and settings.schedule != "one_cycle":
        linear = lr_scheduler.LinearLR(optimizer, 1 / rise, total_iters=rise - 1)
        scheduler = lr_scheduler.SequentialLR(optimizer, [linear, scheduler], [rise])
    with warnings.catch_warnings():
        # torch warns that the optimizer has made no step: it made these before it was stopped.
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(finished * steps_per_epoch):
            scheduler.step()
    return scheduler
