"""One step of training, from images to new weights; its optimizer and learning rates."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from ssd_ops import ops
from ssd_ops.tinyssd import distributed
from ssd_ops.tinyssd.graph import Graphed
from ssd_ops.tinyssd.loss import MultiBoxLoss, offset_errors
from ssd_ops.tinyssd.model import TinySSD
from ssd_ops.tinyssd.settings import Settings, pick_dtype


class TrainStep:
    """Called with a batch, makes a step of gradient descent; what it measures comes back.

    Nothing in it waits for the device. With ``settings.cuda_graph`` on a GPU, the first steps of
    each shape of batch are made as they are; then the step is recorded, and replayed from then on.

    Args:
        settings: how.
        model: trained in place, on its own device.
        optimizer: of the model's parameters, by `make_optimizer`; its rate is that of the step.

    Raises:
        ValueError: a CUDA graph where processes share a run.

    Example:
        >>> model, settings = TinySSD(), Settings(precision="float32")
        >>> step = TrainStep(settings, model, make_optimizer(settings, model))
        >>> images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
        >>> step(images, torch.tensor([[[0, 0.1, 0.1, 0.6, 0.6]]] * 2)).shape
        torch.Size([3])
    """

    def __init__(self, settings: Settings, model: TinySSD, optimizer: Optimizer) -> None:
        self.settings = settings
        self.model = model
        self.optimizer = optimizer
        self.criterion = MultiBoxLoss(**vars(settings.loss))
        self.device = next(model.parameters()).device
        self.dtype = pick_dtype(settings.precision, self.device)
        self.num_anchors = 0  # of an image, once there was a step
        self.network: nn.Module = model
        if distributed.size() > 1:
            ids = [self.device] if self.device.type == "cuda" else None
            self.network = nn.parallel.DistributedDataParallel(model, device_ids=ids)
        if settings.compile:
            self.network = torch.compile(self.network)  # type: ignore[assignment]
        self.graphed = settings.cuda_graph and self.device.type == "cuda"
        if self.graphed and distributed.size() > 1:
            raise ValueError(
                "settings: cuda_graph must be false where processes share a run, got true"
            )
        self.graph = Graphed(self._step)
        self.rate = torch.zeros((), device=self.device)  # where a graph finds its learning rate

    def __call__(self, images: Tensor, labels: Tensor, *, in_all: int | None = None) -> Tensor:
        """Make a step.

        Args:
            images: uint8 or float ``[B, 3, H, W]`` at the input size, not yet scaled.
            labels: ``[B, G, 5]`` rows in fractions of the input, class -1 padding.
            in_all: images of the batch in all processes; None, the default: these are all.

        Returns:
            Three float32 sums over the images, on the device: the loss, the anchors whose class is
            right, and the absolute offset errors.
        """
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        in_all = len(images) if in_all is None else in_all
        if not self.graphed:
            return self._step(images, labels, in_all=in_all)
        # In eights, so that there are few shapes to record; padding changes no target.
        labels = F.pad(labels, (0, 0, 0, -labels.shape[1] % 8), value=-1.0)
        (group,) = self.optimizer.param_groups
        lr, group["lr"] = group["lr"], self.rate.fill_(group["lr"])
        try:
            return self.graph(images, labels, in_all=in_all)
        finally:
            group["lr"] = lr  # a number again: a scheduler would wait to read it from the device

    def _step(self, images: Tensor, labels: Tensor, in_all: int) -> Tensor:
        X = self.model.preprocess(images)
        half = self.dtype != torch.float32
        # Without its cache of weights, which a recorded step must not share with another.
        with torch.autocast(self.device.type, self.dtype, half, cache_enabled=not self.graphed):
            anchors, cls_preds, bbox_preds = self.network(X)
        bbox_labels, bbox_masks, cls_labels = ops.multibox_target(
            anchors, labels, iou_threshold=self.settings.match_iou
        )
        positives = distributed.all_sum((cls_labels > 0).sum())
        losses = self.criterion(
            cls_preds, cls_labels, bbox_preds, bbox_labels, bbox_masks, whole=(in_all, positives)
        )
        # Gradients are averaged over the processes; the loss is the mean over all images.
        (losses.sum() * (distributed.size() / in_all)).backward()
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()  # to None, so that a recorded backward writes them anew
        with torch.no_grad():
            self.num_anchors = cls_labels.shape[1]
            right = (cls_preds.argmax(dim=2) == cls_labels).sum()
            errors = offset_errors(bbox_preds, bbox_labels, bbox_masks).abs().sum()
            return torch.stack((losses.sum(), right, errors))


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
    """torch's scheduler of the learning rate; ``step()`` it after each step.

    Args:
        settings: its `lr`, `schedule` and what belongs to that.
        optimizer: whose rate it sets, at once and with each step.
        steps_per_epoch: batches of the training set.
        finished: epochs that are behind a resumed run.

    Source: one-cycle, arXiv:1708.07120, with cosines for both ways; cosine, arXiv:1608.03983.

    Example:
        >>> settings = Settings(lr=1.0, epochs=2, schedule="step", lr_drops=(1,))
        >>> make_scheduler(settings, make_optimizer(settings, TinySSD()), 10, 1).get_last_lr()
        [0.1]
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
