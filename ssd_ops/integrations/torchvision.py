"""torchvision's SSD and RetinaNet with assignment, mining and post-processing by this library."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssd_ops.ops import (
    assign_anchors,
    batched_nms,
    decode_boxes,
    detect,
    encode_boxes,
    hard_negative_mining,
)

try:
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.ssd import SSD
except Exception as error:  # RuntimeError too, where its library does not fit the installed torch
    _reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    raise ImportError(
        f"ssd_ops.integrations.torchvision: torchvision does not import ({_reason})"
    ) from None

# Ground truth or detections, an image each: boxes, labels and scores.
Targets = list[dict[str, Tensor]]
Model = TypeVar("Model", bound=nn.Module)


def accelerate(model: Model) -> Model:
    """Makes a torchvision SSD or RetinaNet use the ops of this library.

    The ops then do its assignment, its hard-negative mining and its post-processing.

    Args:
        model: An `SSD` (SSD300, SSDLite) or a `RetinaNet` of torchvision. A subclass of your own is not
            accepted.

    Returns:
        The same object, changed in place. Its class becomes a subclass of the class it had. Weights,
        settings and `state_dict` do not change. Losses and detections stay the same up to rounding, with
        two exceptions. If an image has fewer negatives than `neg_to_pos_ratio` asks for, torchvision
        counts the loss of its positives twice; here it counts once. If a ground truth of a RetinaNet
        overlaps no anchor, torchvision matches all anchors to it; here none.

    Raises:
        TypeError: the model is not a torchvision SSD or RetinaNet.
        ImportError: when this module is imported and torchvision does not import.

    Example:
        >>> from torchvision.models.detection import ssd300_vgg16
        >>> model = accelerate(ssd300_vgg16(weights=None, weights_backbone=None))
    """
    if isinstance(model, AcceleratedSSD | AcceleratedRetinaNet):
        return model
    for known, faster in ((SSD, AcceleratedSSD), (RetinaNet, AcceleratedRetinaNet)):
        if type(model) is known:
            model.__class__ = faster
            return model
    raise TypeError(
        f"accelerate: model must be an SSD or a RetinaNet of torchvision, got {type(model).__name__}"
    )


def _variances(coder: Any) -> list[float]:
    return [1 / weight for weight in coder.weights]


def _match(model: Any, anchors: Tensor, boxes: list[Tensor], force_match: str) -> Tensor:
    matched, _ = assign_anchors(
        anchors,
        boxes,
        iou_threshold=model.proposal_matcher.high_threshold,
        background_threshold=model.proposal_matcher.low_threshold,
        force_match=force_match,
    )
    return matched


def _mined(losses: Tensor, classes: Tensor, ratio: float) -> Tensor:
    """Which anchors count: as of `hard_negative_mining`, but a broken count of negatives is rounded up."""
    if ratio == round(ratio):
        return hard_negative_mining(losses, classes, ratio=ratio)
    is_positive = classes > 0
    losses = losses.masked_fill(is_positive, -torch.inf)
    ranks = losses.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return is_positive | (ranks < ratio * is_positive.sum(dim=1, keepdim=True))


class AcceleratedSSD(SSD):
    """A torchvision SSD that uses the ops of this library; `accelerate` makes it."""

    def forward(self, images: list[Tensor], targets: Targets | None = None) -> Any:
        if not self.training or targets is None:
            return super().forward(images, targets)
        for index, target in enumerate(targets):
            boxes = target["boxes"]
            if boxes.ndim != 2 or boxes.shape[1] != 4 or bool((boxes[:, 2:] <= boxes[:, :2]).any()):
                raise ValueError(
                    f"SSD: boxes of target {index} must be [N, 4] with x1 < x2 and y1 < y2"
                )
        batch, targets = self.transform(images, targets)
        features = self.backbone(batch.tensors)
        features = [features] if isinstance(features, Tensor) else list(features.values())
        # SSD resizes all images to one size, so they share one set of anchors.
        anchors = self.anchor_generator(batch, features)[0]
        matched = _match(self, anchors, [target["boxes"] for target in targets], "argmax")
        return self._losses(targets, self.head(features), anchors, matched)

    def _losses(
        self, targets: Targets, outputs: dict[str, Tensor], anchors: Tensor, matched: Tensor
    ) -> dict[str, Tensor]:
        logits, offsets = outputs["cls_logits"], outputs["bbox_regression"]
        image, anchor = (matched >= 0).nonzero().unbind(1)
        counts = torch.tensor([0] + [len(target["boxes"]) for target in targets[:-1]])
        row = matched[image, anchor] + counts.cumsum(0).to(matched.device)[image]
        boxes = torch.cat([target["boxes"] for target in targets])[row]
        labels = torch.cat([target["labels"] for target in targets])[row]

        wanted = encode_boxes(boxes, anchors[anchor], variances=_variances(self.box_coder))
        box_loss = F.smooth_l1_loss(offsets[image, anchor], wanted, reduction="sum")
        classes = torch.zeros_like(matched)
        classes[image, anchor] = labels
        cls_loss = F.cross_entropy(logits.flatten(0, 1), classes.flatten(), reduction="none")
        cls_loss = cls_loss.view_as(classes)
        chosen = _mined(cls_loss.detach(), classes, self.neg_to_pos_ratio)
        count = max(1, len(row))
        return {
            "bbox_regression": box_loss / count,
            "classification": cls_loss[chosen].sum() / count,
        }

    def postprocess_detections(
        self,
        head_outputs: dict[str, Tensor],
        image_anchors: list[Tensor],
        image_shapes: list[tuple[int, int]],
    ) -> Targets:
        height, width = image_shapes[0]  # of all images: SSD resizes them to one
        size = image_anchors[0].new_tensor([width, height, width, height])
        found = detect(
            head_outputs["cls_logits"],
            head_outputs["bbox_regression"],
            image_anchors[0] / size,
            score_threshold=self.score_thresh,
            iou_threshold=self.nms_thresh,
            topk=self.topk_candidates,
            max_detections=self.detections_per_img,
            variances=_variances(self.box_coder),
            max_log_size=self.box_coder.bbox_xform_clip,
        )
        return [
            {
                "boxes": found.boxes[image, :count] * size,
                "scores": found.scores[image, :count],
                "labels": found.labels[image, :count] + 1,
            }
            for image, count in enumerate(found.counts.tolist())
        ]


class AcceleratedRetinaNet(RetinaNet):
    """A torchvision RetinaNet that uses the ops of this library; `accelerate` makes it."""

    def compute_loss(
        self, targets: Targets, head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        force = "low_quality" if self.proposal_matcher.allow_low_quality_matches else "none"
        # RetinaNet pads the batch to one size, so all images share one set of anchors.
        matched = _match(self, anchors[0], [target["boxes"] for target in targets], force)
        return self.head.compute_loss(targets, head_outputs, anchors, list(matched))

    def postprocess_detections(
        self,
        head_outputs: dict[str, list[Tensor]],
        anchors: list[list[Tensor]],
        image_shapes: list[tuple[int, int]],
    ) -> Targets:
        num_classes = head_outputs["cls_logits"][0].shape[-1]
        boxes, scores, labels = [], [], []
        for logits, offsets, level in zip(
            head_outputs["cls_logits"], head_outputs["bbox_regression"], anchors[0], strict=True
        ):
            # The best pairs of an anchor and a class of this level, for all images at once.
            pairs = logits.flatten(1).sigmoid()
            score, pair = pairs.topk(min(self.topk_candidates, pairs.shape[1]), dim=1)
            anchor = pair // num_classes
            chosen = offsets.gather(1, anchor[..., None].expand(-1, -1, 4))
            box = decode_boxes(
                chosen,
                level[anchor],
                variances=_variances(self.box_coder),
                max_log_size=self.box_coder.bbox_xform_clip,
            )
            boxes.append(box)
            # A NaN score keeps a pair out of NMS.
            scores.append(score.where(score > self.score_thresh, float("nan")))
            labels.append(pair % num_classes)
        box, score, label = torch.cat(boxes, 1), torch.cat(scores, 1), torch.cat(labels, 1)
        size = box.new_tensor([[width, height, width, height] for height, width in image_shapes])
        box = box.clamp(min=0).minimum(size[:, None])
        image = torch.arange(len(box), device=box.device)[:, None].expand_as(label)
        groups = (image * num_classes + label).flatten()
        kept = batched_nms(box.flatten(0, 1), score.flatten(), groups, self.nms_thresh)
        found = []
        for index in range(len(box)):
            mine = kept[image.flatten()[kept] == index][: self.detections_per_img]
            found.append(
                {
                    "boxes": box.flatten(0, 1)[mine],
                    "scores": score.flatten()[mine],
                    "labels": label.flatten()[mine],
                }
            )
        return found
