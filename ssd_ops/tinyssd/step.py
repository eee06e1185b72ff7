"""One step of training, from images to new weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ssd_ops import ops
from ssd_ops.tinyssd import distributed
from ssd_ops.tinyssd.data.rows import crowd_boxes
from ssd_ops.tinyssd.graph import Graphed
from ssd_ops.tinyssd.loss import MultiBoxLoss, offset_errors
from ssd_ops.tinyssd.model import TinySSD
from ssd_ops.tinyssd.settings import Settings, pick_dtype


class TrainStep:
    """Called with a batch, makes a step of gradient descent; what it measures comes back.

    The model is trained in place, on its own device, by an optimizer of `make_optimizer`. Nothing in
    it waits for the device. With ``settings.cuda_graph`` on a GPU, the step is recorded and replayed,
    see `Graphed`; a ValueError where processes share a run.
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
            raise ValueError("settings: cuda_graph must be false in a shared run, got true")
        self.graph = Graphed(self._step)
        self.rate = torch.zeros((), device=self.device)  # where a graph finds its learning rate

    def __call__(self, images: Tensor, labels: Tensor, *, in_all: int | None = None) -> Tensor:
        """Make a step.

        Args:
            images: uint8 or float ``[B, 3, H, W]`` at the input size, not yet scaled.
            labels: ``[B, G, 5]`` rows in fractions of the input, as of `Batch`. An anchor that lies half or
                more in a crowd and has no match is not trained on.
            in_all: images of the batch in all processes; None, the default: these are all.

        Returns:
            Three float32 sums over the images, on the device: the loss, the anchors whose class is
            not wrong (of what is not trained on, no class is), and the absolute offset errors.
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
            anchors,
            labels,
            iou_threshold=self.settings.match_iou,
            ignore_boxes=crowd_boxes(labels),
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
            right = ((cls_preds.argmax(dim=2) == cls_labels) | (cls_labels < 0)).sum()
            errors = offset_errors(bbox_preds, bbox_labels, bbox_masks).abs().sum()
            return torch.stack((losses.sum(), right, errors))
