"""Rivals that only the GPU benchmarks have; the others are in benchmarks/baselines.py."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import baselines
import torch
from torch import Tensor

import ssd_ops


class Rival(NamedTuple):
    """`function` takes our arguments, or is the text why it cannot run; `same(theirs, ours)` compares.

    `against`: ours by the rival's rules, where they are not those of the case itself.
    """

    function: Callable | str
    same: Callable
    against: Callable | None = None


MISSING = baselines.torchvision_nms if isinstance(baselines.torchvision_nms, str) else ""
if not MISSING:
    from torchvision.models.detection import _utils as matching
    from torchvision.ops import boxes as box_ops


def torchvision_target() -> Rival:
    """Its IoU, `SSDMatcher` and `BoxCoder`, image by image, as its SSD makes the targets of its loss."""

    def target(anchors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        matcher, coder = matching.SSDMatcher(0.5), matching.BoxCoder((10.0, 10.0, 5.0, 5.0))
        offsets, masks, classes = [], [], []
        for rows in labels:
            matched = matcher(box_ops.box_iou(rows[:, 1:], anchors[0]))
            positive = (matched >= 0).to(rows.dtype)
            own = rows[matched.clamp(min=0)]
            offsets.append(coder.encode_single(own[:, 1:], anchors[0]) * positive[:, None])
            masks.append(positive[:, None].expand(-1, 4))
            classes.append((own[:, 0] + 1) * positive)
        return (
            torch.stack(offsets).flatten(1),
            torch.stack(masks).flatten(1),
            torch.stack(classes).long(),
        )

    ours = partial(ssd_ops.multibox_target, semantics="torchvision")
    return Rival(MISSING or target, baselines.same_targets, ours)


def torchvision_coder(op: str) -> Rival:
    """`encode_boxes` or `decode_boxes` by its `BoxCoder`, all images of a batch at once."""

    def run(boxes: Tensor, anchors: Tensor) -> Tensor:
        coder = matching.BoxCoder((10.0, 10.0, 5.0, 5.0))
        code = coder.encode_single if op == "encode_boxes" else coder.decode_single
        return code(boxes.view(-1, 4), anchors.expand(boxes.shape).reshape(-1, 4)).view(boxes.shape)

    return Rival(MISSING or run, baselines.close)


def torchvision_sigmoid_detect(
    *, score_threshold: float, iou_threshold: float, topk: int, max_detections: int
) -> Rival:
    """Detections by `torchvision.ops.batched_nms`, image by image, as its RetinaNet makes them, but with
    `topk` candidates for each class in place of so many for each level."""

    def detect(cls_scores: Tensor, offset_preds: Tensor, anchors: Tensor) -> list[dict]:
        found = []
        for logits, offsets in zip(cls_scores.float(), offset_preds.float(), strict=True):
            boxes = baselines.eager_decode_boxes(offsets, anchors).clamp_(0, 1)
            value, row = logits.sigmoid().T.topk(min(topk, len(boxes)), dim=1)
            label = torch.arange(len(value), device=value.device)[:, None].expand_as(row)
            over = value > score_threshold
            value, row, label = value[over], row[over], label[over]
            kept = box_ops.batched_nms(boxes[row], value, label, iou_threshold)[:max_detections]
            found.append(
                {"boxes": boxes[row[kept]], "scores": value[kept], "labels": label[kept] + 1}
            )
        return found

    return Rival(MISSING or detect, baselines.same_found)


def torchvision_batched_modes() -> dict[str, Rival]:
    """Both ways of torchvision's `batched_nms`, which it chooses between by the number of boxes."""
    if MISSING:
        return {}
    return {
        "torchvision, loop": Rival(box_ops._batched_nms_vanilla, torch.equal),
        "torchvision, shifted": Rival(box_ops._batched_nms_coordinate_trick, torch.equal),
    }


def image_by_image(nms: Callable | str) -> Rival:
    """The padded form of a batch by an `nms` of one image."""

    def padded(boxes: Tensor, scores: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
        indices = torch.full(scores.shape, -1, device=boxes.device)
        counts = torch.zeros(len(scores), dtype=torch.int64, device=boxes.device)
        for image, row in enumerate(indices):
            kept = nms(boxes[image], scores[image], iou_threshold)
            row[: len(kept)] = kept
            counts[image] = len(kept)
        return indices, counts

    return Rival(nms if isinstance(nms, str) else padded, lambda a, b: all(map(torch.equal, a, b)))
