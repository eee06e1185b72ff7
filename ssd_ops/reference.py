"""The public ops in plain, slow, readable PyTorch: the definition of right.

Every kernel is tested against these functions. They take valid arguments, check nothing, and use
whatever memory is convenient. Read them to learn what an op computes; call `ssd_ops` to compute it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

VARIANCES = (0.1, 0.1, 0.2, 0.2)
D2L_EPS = 1e-6  # the book adds it inside the logarithm of `offset_boxes`


def _real(*tensors: Tensor) -> torch.dtype:
    """The dtype of the arithmetic: float64 where an input is float64, float32 otherwise."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def multibox_priors(feature_maps, sizes, ratios, *, steps=None, offsets=(0.5, 0.5), clip=False):
    """Anchors of all levels, [1, A, 4] xyxy in fractions of the image; see `ssd_ops.multibox_priors`."""
    real = _real(*feature_maps)
    levels = []
    for level, feature_map in enumerate(feature_maps):
        height, width = feature_map.shape[-2:]
        step_y, step_x = (1 / height, 1 / width) if steps is None else steps[level]
        size = torch.tensor(sizes[level], dtype=real)
        # math.sqrt rounds correctly, as the kernels do; torch's vectorised sqrt is an ulp off at times.
        ratio = torch.tensor(ratios[level], dtype=real)
        root = torch.tensor([math.sqrt(r) for r in ratio.tolist()], dtype=real)
        # Every size with the first ratio, then the first size with every other ratio.
        w = torch.cat((size * root[0], size[0] * root[1:])) * height / width
        # The reciprocal is what torch makes of the book's `sizes[0] / torch.sqrt(ratio)`.
        h = torch.cat((size / root[0], size[0] * (1 / root[1:])))
        y = (torch.arange(height, dtype=real) + offsets[0]) * step_y
        x = (torch.arange(width, dtype=real) + offsets[1]) * step_x
        center = torch.stack((x.repeat(height), y.repeat_interleave(width)), dim=1)
        half = torch.stack((w, h), dim=1) / 2
        corners = torch.cat((center[:, None] - half, center[:, None] + half), dim=2)
        levels.append(corners.reshape(-1, 4))
    anchors = torch.cat(levels)[None].to(feature_maps[0].device)
    return anchors.clamp(0, 1) if clip else anchors


def multibox_prior(feature_map, sizes, ratios, *, steps=None, offsets=(0.5, 0.5), clip=False):
    """Anchors of one level, [1, H*W*(S+R-1), 4]; see `ssd_ops.multibox_prior`."""
    steps = None if steps is None else [steps]
    return multibox_priors(
        [feature_map], [sizes], [ratios], steps=steps, offsets=offsets, clip=clip
    )


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of every pair, [..., N, 4] x [..., M, 4] -> [..., N, M]; see `ssd_ops.box_iou`."""
    real = _real(boxes1, boxes2)
    a, b = boxes1.to(real)[..., :, None, :], boxes2.to(real)[..., None, :, :]
    w = torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])
    h = torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])
    area1 = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area2 = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    inter = w * h
    iou = inter / ((area1 + area2) - inter)
    # A NaN corner makes w, h or iou NaN; an infinite one can make the union NaN: both compare false.
    return torch.where((w > 0) & (h > 0) & (inter > 0) & (iou >= 0), iou, torch.zeros_like(iou))


def _centers(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def encode_boxes(boxes, anchors, *, variances=VARIANCES, eps=0.0):
    """Offsets of `boxes` to `anchors`; see `ssd_ops.encode_boxes`."""
    real = _real(boxes, anchors)
    box_xy, box_wh = _centers(boxes.to(real))
    anchor_xy, anchor_wh = _centers(anchors.to(real))
    v = torch.tensor(variances, dtype=real, device=boxes.device)
    xy = (box_xy - anchor_xy) / anchor_wh / v[:2]
    wh = torch.log(eps + box_wh / anchor_wh) / v[2:]
    return torch.cat((xy, wh), dim=-1)


def decode_boxes(offsets, anchors, *, variances=VARIANCES, clip=False):
    """Boxes that `offsets` to `anchors` stand for; see `ssd_ops.decode_boxes`."""
    real = _real(offsets, anchors)
    offsets = offsets.to(real)
    anchor_xy, anchor_wh = _centers(anchors.to(real))
    v = torch.tensor(variances, dtype=real, device=offsets.device)
    xy = offsets[..., :2] * v[:2] * anchor_wh + anchor_xy
    wh = torch.exp(offsets[..., 2:] * v[2:]) * anchor_wh
    boxes = torch.cat((xy - wh / 2, xy + wh / 2), dim=-1)
    return boxes.clamp(0, 1) if clip else boxes


def _match_d2l(anchors: Tensor, gt_boxes: Tensor, iou_threshold: float) -> Tensor:
    """The ground truth of each anchor, or -1: the book's `assign_anchor_to_bbox`."""
    matched_idxs = torch.full((len(anchors),), -1, dtype=torch.int64)
    if len(gt_boxes) == 0 or len(anchors) == 0:
        return matched_idxs
    usable = anchors.isfinite().all(1) & (anchors[:, 2:] > anchors[:, :2]).all(1)
    iou = box_iou(anchors, gt_boxes)
    best = iou.argmax(dim=1)  # the first ground truth on ties
    over = usable & (iou.max(dim=1).values >= iou_threshold)
    matched_idxs[over] = best[over]
    free = torch.where(usable[:, None], iou, -torch.ones_like(iou))
    for _ in range(min(len(gt_boxes), int(usable.sum()))):
        # The flat argmax: the lowest anchor on ties, then the lowest ground truth.
        anchor, gt = divmod(int(free.argmax()), len(gt_boxes))
        matched_idxs[anchor] = gt
        free[anchor, :] = -1
        free[:, gt] = -1
    return matched_idxs


def multibox_target(anchors, labels, *, iou_threshold=0.5, variances=VARIANCES, semantics="d2l"):
    """Offsets, masks and class labels of every anchor; see `ssd_ops.multibox_target`."""
    assert semantics == "d2l"
    real = _real(anchors, labels)
    anchors, labels = anchors.reshape(-1, 4).to(real).cpu(), labels.to(real)
    num_images, num_anchors = len(labels), len(anchors)
    offsets = torch.zeros((num_images, num_anchors, 4), dtype=real)
    masks = torch.zeros((num_images, num_anchors, 4), dtype=real)
    cls_labels = torch.zeros((num_images, num_anchors), dtype=torch.int64)
    for image, rows in enumerate(labels.cpu()):
        boxes = rows[:, 1:]
        valid = (rows[:, 0] >= 0) & boxes.isfinite().all(1) & (boxes[:, 2:] >= boxes[:, :2]).all(1)
        rows = rows[valid]
        matched_idxs = _match_d2l(anchors, rows[:, 1:], iou_threshold)
        positive = matched_idxs >= 0
        gt = rows[matched_idxs[positive]]
        offsets[image, positive] = encode_boxes(
            gt[:, 1:], anchors[positive], variances=variances, eps=D2L_EPS
        )
        masks[image, positive] = 1
        cls_labels[image, positive] = gt[:, 0].long() + 1
    device = labels.device
    return (
        offsets.flatten(1).to(device),
        masks.flatten(1).to(device),
        cls_labels.to(device),
    )


def hard_negative_mining(losses, cls_labels, *, ratio=3.0, min_negatives=0):
    """The positives and the hardest negatives, [B, A] bool; see `ssd_ops.hard_negative_mining`."""
    selected = cls_labels > 0
    for image in range(len(losses)):
        negatives = (cls_labels[image] == 0).nonzero().flatten()
        wanted = max(int(ratio * int(selected[image].sum())), min_negatives)
        # torch sorts NaN as the greatest, and so do we: a NaN loss must show, not hide.
        order = losses[image][negatives].sort(descending=True, stable=True).indices
        selected[image, negatives[order[:wanted]]] = True
    return selected


def _greedy_nms(boxes: Tensor, order: list[int], iou_threshold: float) -> list[int]:
    """The indices of `order` that no earlier kept box overlaps by more than the threshold."""
    kept: list[int] = []
    for index in order:
        # In float64, so that a float32 IoU is compared with the very threshold that was asked for.
        if not kept or box_iou(boxes[index, None], boxes[kept]).double().max() <= iou_threshold:
            kept.append(index)
    return kept


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the kept boxes, by score; see `ssd_ops.nms`."""
    order = scores.to(_real(scores)).sort(descending=True, stable=True).indices.tolist()
    order = [index for index in order if not scores[index].isnan()]
    kept = _greedy_nms(boxes, order, iou_threshold)
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def nms_padded(boxes: Tensor, scores: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """Kept indices, then -1, and their number, for one image or a batch; see `ssd_ops.nms_padded`."""
    if boxes.ndim == 2:
        indices, counts = nms_padded(boxes[None], scores[None], iou_threshold)
        return indices[0], counts[0]
    indices = torch.full(scores.shape, -1, dtype=torch.int64, device=boxes.device)
    counts = torch.zeros(len(scores), dtype=torch.int64, device=boxes.device)
    for image in range(len(scores)):
        kept = nms(boxes[image], scores[image], iou_threshold)
        indices[image, : len(kept)] = kept
        counts[image] = len(kept)
    return indices, counts


def multibox_detection(
    cls_probs,
    offset_preds,
    anchors,
    nms_threshold=0.5,
    pos_threshold=0.009999999,
    *,
    variances=VARIANCES,
    semantics="d2l",
):
    """Rows (class, score, x1, y1, x2, y2), [B, A, 6]; see `ssd_ops.multibox_detection`."""
    assert semantics == "d2l"
    real = _real(cls_probs, offset_preds, anchors)
    num_images, _, num_anchors = cls_probs.shape
    anchors = anchors.reshape(-1, 4).to(real)
    threshold = torch.tensor(nms_threshold, dtype=real).item()  # the book compares in the dtype
    out = torch.zeros((num_images, num_anchors, 6), dtype=real, device=cls_probs.device)
    for image in range(num_images if num_anchors else 0):
        probs = cls_probs[image, 1:].to(real)
        probs = torch.where(probs.isnan(), torch.zeros_like(probs), probs)
        class_id = probs.argmax(dim=0)  # the first class on ties
        scores = probs.gather(0, class_id[None])[0]
        offsets = offset_preds[image].reshape(-1, 4).to(real)
        boxes = decode_boxes(offsets, anchors, variances=variances)
        order = scores.sort(descending=True, stable=True).indices.tolist()
        kept = _greedy_nms(boxes, order, threshold)
        others = sorted(set(range(num_anchors)) - set(kept))
        class_id[others] = -1
        below = scores < pos_threshold
        class_id[below] = -1
        scores = torch.where(below, 1 - scores, scores)
        rows = torch.cat((class_id[:, None].to(real), scores[:, None], boxes), dim=1)
        out[image] = rows[kept + others]
    return out
