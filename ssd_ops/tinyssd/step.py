"""One step of training: forward, targets, mining, loss, backward, optimizer; and its CUDA graph."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd_ops import ops
from ssd_ops.tinyssd import distributed
from ssd_ops.tinyssd.loss import count_right, sum_offset_errors
from ssd_ops.tinyssd.model import TinySSD
from ssd_ops.tinyssd.settings import Settings, pick_dtype

WARM_UP = (
    3  # steps made as they are before a graph is recorded: libraries set themselves up in them
)


class TrainStep:
    """Called with a batch, makes a step of gradient descent; what it measures comes back.

    Nothing in it waits for the device. With ``settings.cuda_graph`` on a GPU, the first steps of
    each shape of batch are made as they are; then the step is recorded, and replayed from then on.

    Args:
        settings: how.
        model: trained in place, on its own device.
        optimizer: of the model's parameters, by `make_optimizer`.

    Example:
        >>> model, settings = TinySSD(), Settings(precision="float32")
        >>> step = TrainStep(settings, model, make_optimizer(settings, model))
        >>> images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
        >>> sums = step(images, torch.tensor([[[0, 0.1, 0.1, 0.6, 0.6]]] * 2), lr=0.1)
        >>> sums.shape
        torch.Size([3])
    """

    def __init__(
        self, settings: Settings, model: TinySSD, optimizer: torch.optim.Optimizer
    ) -> None:
        self.settings = settings
        self.model = model
        self.optimizer = optimizer
        self.criterion = settings.criterion()
        self.device = next(model.parameters()).device
        self.dtype = pick_dtype(settings.precision, self.device)
        self.network: nn.Module = model
        self.num_anchors = 0  # of an image, once there was a step
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
        self.graphs: dict[tuple[int, ...], _Graph] = {}

    def __call__(
        self, images: Tensor, labels: Tensor, lr: float, *, in_all: int | None = None
    ) -> Tensor:
        """Make a step.

        Args:
            images: uint8 or float ``[B, 3, H, W]`` at the input size, not yet scaled.
            labels: ``[B, G, 5]`` rows in fractions of the input, class -1 padding.
            lr: learning rate of this step.
            in_all: images of the batch in all processes; None, the default: these are all.

        Returns:
            Three float32 sums over the images, on the device: the loss, the anchors whose class is
            right, and the absolute offset errors.
        """
        for group in self.optimizer.param_groups:
            # A graph reads the rate from memory: written there, not replaced.
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        in_all = len(images) if in_all is None else in_all
        if not self.graphed:
            return self._step(images, labels, in_all)
        # In eights, so that there are few shapes to record; padding changes no target.
        labels = F.pad(labels, (0, 0, 0, -labels.shape[1] % 8), value=-1.0)
        key = (*images.shape, *labels.shape, in_all)
        if key not in self.graphs:
            self.graphs[key] = _Graph(self, in_all)
        return self.graphs[key](images, labels)

    def _step(self, images: Tensor, labels: Tensor, in_all: int) -> Tensor:
        X = self.model.preprocess(images)
        autocast = self.dtype != torch.float32
        # Without its cache of weights, which a recorded step must not share with another.
        with torch.autocast(
            self.device.type, self.dtype, enabled=autocast, cache_enabled=not self.graphed
        ):
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
        self.optimizer.zero_grad()
        with torch.no_grad():
            self.num_anchors = cls_labels.shape[1]
            right = count_right(cls_preds, cls_labels)
            errors = sum_offset_errors(bbox_preds, bbox_labels, bbox_masks)
            return torch.stack((losses.sum(), right, errors))


class _Graph:
    """The step of one shape of batch: made as it is at first, then recorded and replayed."""

    def __init__(self, step: TrainStep, in_all: int) -> None:
        self.step = step
        self.in_all = in_all
        self.calls = 0
        self.graph: Any = None

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        if self.calls <= WARM_UP:
            # On a stream of its own, as recording will be: these are real steps, and no waste.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                sums = self.step._step(images, labels, self.in_all)
            torch.cuda.current_stream().wait_stream(stream)
            return sums
        if self.graph is None:
            self.images, self.labels = images.clone(), labels.clone()
            self.graph = torch.cuda.CUDAGraph()
            # Recording runs nothing. Gradients are None here, so that backward writes them anew.
            with torch.cuda.graph(self.graph):
                self.sums = self.step._step(self.images, self.labels, self.in_all)
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.graph.replay()
        # The next replay writes to the same place.
        return self.sums.clone()


def make_optimizer(settings: Settings, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of the settings.

    Args:
        settings: its `optimizer`, `momentum`, `weight_decay` and `cuda_graph`.
        model: whose parameters it changes, on their device already.
    """
    parameters = list(model.parameters())
    device = parameters[0].device
    options: dict[str, Any] = {"weight_decay": settings.weight_decay}
    options["fused"] = device.type == "cuda"
    lr: Any = settings.lr
    if settings.cuda_graph and device.type == "cuda":
        # Recorded, a step has to find its learning rate and its count of steps on the device.
        lr = torch.tensor(lr, device=device)
        if settings.optimizer == "adamw":
            options["capturable"] = True
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr, (settings.momentum, 0.99), **options)
    return torch.optim.SGD(parameters, lr, settings.momentum, **options)
