"""The public ops in plain, slow, readable PyTorch: the definition of the right answer.

Every kernel is tested against these functions. They expect valid arguments, check nothing, and use as
much memory as is convenient. Read them to learn what an op computes. To compute it, call `ssd_ops`.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

VARIANCES = (0.1, 0.1, 0.2, 0.2)
D2L_EPS = 1e-6  # the book's `offset_boxes` adds it inside the logarithm
END_OF_CLASSES = 2.0**60  # a class from here on is padding, as a negative one is
MXNET_MIN_IOU = 1e-6  # MXNet forces only matches with an IoU above it


def _real(*tensors: Tensor) -> torch.dtype:
    """The dtype of the arithmetic: float64 where an input is float64, float32 otherwise."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def multibox_priors(
    feature_maps, sizes, ratios, *, image_size=None, steps=None, offsets=(0.5, 0.5), clip=False
):
    """Anchors of all levels, [1, A, 4] xyxy in fractions of the image: `ssd_ops.multibox_priors`."""
    if image_size is not None:
        shapes = []
        for size, ratio in zip(sizes, ratios, strict=True):
            pairs = [(s, ratio[0]) for s in size] + [(size[0], r) for r in ratio[1:]]
            shapes.append([(s * math.sqrt(r), s / math.sqrt(r)) for s, r in pairs])
        options = {"image_size": image_size, "steps": steps, "offsets": offsets, "clip": clip}
        return grid_anchors(feature_maps, shapes, **options)
    real = _real(*feature_maps)
    levels = []
    for level, feature_map in enumerate(feature_maps):
        height, width = feature_map.shape[-2:]
        size = torch.tensor(sizes[level], dtype=real)
        # math.sqrt rounds correctly, as the kernels do. torch's vectorised sqrt is sometimes off by one ulp.
        ratio = torch.tensor(ratios[level], dtype=real)
        root = torch.tensor([math.sqrt(r) for r in ratio.tolist()], dtype=real)
        # Every size with the first ratio, then the first size with every other ratio.
        w = torch.cat((size * root[0], size[0] * root[1:])) * height / width
        # torch computes the book's `sizes[0] / torch.sqrt(ratio)` with the reciprocal.
        h = torch.cat((size / root[0], size[0] * (1 / root[1:])))
        step = (1 / height, 1 / width) if steps is None else steps[level]
        levels.append(_cells(height, width, torch.stack((w, h), dim=1), step, offsets))
    anchors = torch.cat(levels)[None].to(feature_maps[0].device)
    return anchors.clamp(0, 1) if clip else anchors


def _cells(height: int, width: int, shapes: Tensor, step, offsets) -> Tensor:
    """The boxes [H*W*K, 4] of K shapes (width, height) in each cell, row by row."""
    y = (torch.arange(height, dtype=shapes.dtype) + offsets[0]) * step[0]
    x = (torch.arange(width, dtype=shapes.dtype) + offsets[1]) * step[1]
    center = torch.stack((x.repeat(height), y.repeat_interleave(width)), dim=1)
    corners = torch.cat((center[:, None] - shapes / 2, center[:, None] + shapes / 2), dim=2)
    return corners.reshape(-1, 4)


def multibox_prior(
    feature_map, sizes, ratios, *, image_size=None, steps=None, offsets=(0.5, 0.5), clip=False
):
    """Anchors of one level, [1, H*W*(S+R-1), 4]; see `ssd_ops.multibox_prior`."""
    options = {"image_size": image_size, "offsets": offsets, "clip": clip}
    steps = None if steps is None else [steps]
    return multibox_priors([feature_map], [sizes], [ratios], steps=steps, **options)


def grid_anchors(
    feature_maps, shapes, *, image_size=None, steps=None, offsets=(0.5, 0.5), clip=False
):
    """Anchors of all levels, [1, A, 4] xyxy, level by level, cell by cell: `ssd_ops.grid_anchors`."""
    real = _real(*feature_maps)
    image_height, image_width = (1, 1) if image_size is None else image_size
    levels = []
    for level, feature_map in enumerate(feature_maps):
        height, width = feature_map.shape[-2:]
        step = (1 / height, 1 / width)
        if steps is not None:
            step = (steps[level][0] / image_height, steps[level][1] / image_width)
        # Divided in double, as Python does, and then rounded.
        fractions = [(w / image_width, h / image_height) for w, h in shapes[level]]
        levels.append(_cells(height, width, torch.tensor(fractions, dtype=real), step, offsets))
    anchors = torch.cat(levels)[None].to(feature_maps[0].device)
    return anchors.clamp(0, 1) if clip else anchors


def _exp(x: Tensor) -> Tensor:
    """torch's exp. The kernels have their own, which can differ by one ulp; tests put it here."""
    return torch.exp(x)


def _log(x: Tensor) -> Tensor:
    """torch's log; of it the same is true."""
    return torch.log(x)


def _round(threshold: float, real: torch.dtype) -> float:
    """The nearest number of a dtype: what a comparison with a tensor does to a Python number."""
    return torch.tensor(threshold, dtype=real).item()


def box_iou(boxes1: Tensor, boxes2: Tensor, *, metric: str = "iou") -> Tensor:
    """IoU or IoS of every pair, [..., N, 4] x [..., M, 4] -> [..., N, M]; see `ssd_ops.box_iou`."""
    real = _real(boxes1, boxes2)
    a, b = boxes1.to(real)[..., :, None, :], boxes2.to(real)[..., None, :, :]
    w = torch.minimum(a[..., 2], b[..., 2]) - torch.maximum(a[..., 0], b[..., 0])
    h = torch.minimum(a[..., 3], b[..., 3]) - torch.maximum(a[..., 1], b[..., 1])
    area1 = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area2 = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    inter = w * h
    both = area1 + area2
    base = both - inter
    if metric == "ios":
        base = torch.minimum(area1, area2).where(both.isfinite(), torch.nan)
    overlap = inter / base
    # A NaN corner makes w, h or base NaN, an infinite one can make the union NaN. NaN compares as false.
    valid = (w > 0) & (h > 0) & (inter > 0) & (overlap >= 0)
    return torch.where(valid, overlap, torch.zeros_like(overlap))


def _centers(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]


def _variances(variances, coding: str, like: Tensor) -> Tensor:
    if variances is None:
        variances = VARIANCES if coding == "center" else (1.0,) * 4
    return torch.tensor(variances, dtype=like.dtype, device=like.device)


def encode_boxes(boxes, anchors, *, variances=None, eps=0.0, coding="center"):
    """Offsets of `boxes` to `anchors`; see `ssd_ops.encode_boxes`."""
    real = _real(boxes, anchors)
    boxes = boxes.to(real)
    box_xy, box_wh = _centers(boxes)
    anchor_xy, anchor_wh = _centers(anchors.to(real))
    v = _variances(variances, coding, boxes)
    if coding == "distance":
        low, high = (
            (anchor_xy - boxes[..., :2]) / anchor_wh,
            (boxes[..., 2:] - anchor_xy) / anchor_wh,
        )
        return torch.cat((low / v[:2], high / v[2:]), dim=-1)
    xy = (box_xy - anchor_xy) / anchor_wh / v[:2]
    ratio = box_wh / anchor_wh
    wh = (ratio if coding == "linear" else _log(eps + ratio)) / v[2:]
    return torch.cat((xy, wh), dim=-1)


def decode_boxes(
    offsets, anchors, *, variances=None, clip=False, coding="center", max_log_size=None
):
    """The boxes that `offsets` to `anchors` encode; see `ssd_ops.decode_boxes`."""
    real = _real(offsets, anchors)
    offsets = offsets.to(real)
    anchor_xy, anchor_wh = _centers(anchors.to(real))
    v = _variances(variances, coding, offsets)
    first, last = offsets[..., :2] * v[:2], offsets[..., 2:] * v[2:]
    if coding == "distance":
        boxes = torch.cat((anchor_xy - first * anchor_wh, anchor_xy + last * anchor_wh), dim=-1)
    else:
        if max_log_size is not None:
            last = last.clamp(max=max_log_size)
        xy = first * anchor_wh + anchor_xy
        wh = (last if coding == "linear" else _exp(last)) * anchor_wh
        boxes = torch.cat((xy - wh / 2, xy + wh / 2), dim=-1)
    if clip is False:
        return boxes
    height, width = (1, 1) if clip is True else clip
    return boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))


def _has_extent(boxes: Tensor) -> Tensor:
    return boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)


def _greedy_match(iou: Tensor, usable: Tensor, least: float) -> list[tuple[int, int]]:
    """Pairs (anchor, gt): again and again the free pair with the highest IoU, while that is above `least`."""
    free = torch.where(usable[:, None], iou, torch.full_like(iou, -1))
    pairs: list[tuple[int, int]] = []
    while True:
        # On ties argmax of the flattened matrix takes the lowest anchor, then the lowest gt.
        anchor, gt = divmod(int(free.argmax()), iou.shape[1])
        if not free[anchor, gt] > least:
            return pairs
        pairs.append((anchor, gt))
        free[anchor, :] = -1
        free[:, gt] = -1


def assign_anchors(
    anchors,
    gt_boxes,
    gt_counts=None,
    *,
    iou_threshold=0.5,
    background_threshold=None,
    force_match="bipartite",
    ignore_boxes=None,
    ignore_threshold=0.5,
):
    """The gt of each anchor, and the IoU of the two; see `ssd_ops.assign_anchors`."""
    if not isinstance(gt_boxes, Tensor):
        images = list(gt_boxes)
    elif gt_boxes.ndim == 2:
        cuts = gt_counts.clamp(0, len(gt_boxes)).cummax(0).values.tolist()
        images = [gt_boxes[begin:end] for begin, end in itertools.pairwise(cuts)]
    elif gt_counts is None:
        images = list(gt_boxes)
    else:
        images = [
            boxes[: max(count, 0)]
            for boxes, count in zip(gt_boxes, gt_counts.tolist(), strict=True)
        ]
    real = _real(anchors, *_tensors(gt_boxes), *_tensors(ignore_boxes))
    anchors = anchors.reshape(-1, 4).to(real)
    high = _round(iou_threshold, real)
    low = high if background_threshold is None else _round(background_threshold, real)
    matched_idxs = torch.full((len(images), len(anchors)), -1, dtype=torch.int64)
    matched_ious = torch.zeros((len(images), len(anchors)), dtype=real)
    for image, boxes in enumerate(images):
        rows = _has_extent(boxes.to(real)).nonzero().flatten()  # the gts that can match
        if len(rows) and len(anchors):
            gt, iou = _assign(anchors, boxes[rows].to(real), high, low, force_match)
            matched_idxs[image] = torch.where(gt >= 0, rows[gt.clamp(min=0)], gt)
            matched_ious[image] = iou
        if ignore_boxes is not None:
            ignored = _ignored(anchors, ignore_boxes[image].to(real), ignore_threshold).cpu()
            matched_idxs[image, ignored & (matched_idxs[image] < 0)] = -2
    return matched_idxs.to(anchors.device), matched_ious.to(anchors.device)


def _tensors(value) -> list[Tensor]:
    """Of an optional argument that is a tensor or a list of them."""
    return [value] if isinstance(value, Tensor) else list(value or ())


def _ignored(anchors: Tensor, regions: Tensor, threshold: float) -> Tensor:
    """The anchors of one image of which at least `threshold` of the area lies in some region."""
    regions = regions[_has_extent(regions)]
    size = torch.minimum(anchors[:, None, 2:], regions[:, 2:])
    size = size - torch.maximum(anchors[:, None, :2], regions[:, :2])
    overlap = torch.where((size > 0).all(2), size.prod(2), 0)
    area = (anchors[:, 2:] - anchors[:, :2]).prod(1)
    inside = (overlap > 0) & (overlap / area[:, None] >= _round(threshold, anchors.dtype))
    return inside.any(1) & _has_extent(anchors)


def _assign(anchors, gt_boxes, high: float, low: float, force_match: str) -> tuple[Tensor, Tensor]:
    """For one image: the gt of each anchor (or -1, -2), and the IoU with it, or else the highest IoU."""
    usable = _has_extent(anchors)
    iou = torch.where(usable[:, None], box_iou(anchors, gt_boxes), 0)
    best_iou, best = iou.max(dim=1).values, iou.argmax(dim=1)  # the first gt on ties
    matched = torch.where(best_iou >= high, best, torch.where(best_iou < low, -1, -2))
    matched[~usable] = -1
    if force_match == "bipartite":
        for anchor, gt in _greedy_match(iou, usable, -1):
            matched[anchor] = gt
    elif force_match == "argmax" and usable.any():
        for gt, anchor in enumerate(torch.where(usable[:, None], iou, -1).argmax(dim=0).tolist()):
            matched[anchor] = gt
    elif force_match == "low_quality":
        tied = ((iou == iou.max(dim=0).values) & (iou > 0)).any(dim=1)
        matched[tied] = best[tied]
    of_match = iou.gather(1, matched.clamp(min=0)[:, None])[:, 0]
    return matched, torch.where(matched >= 0, of_match, best_iou)


def _match_mxnet(anchors, gt_boxes, iou_threshold: float) -> Tensor:
    """The gt of each anchor, or -1: forced matches first, then anchors with an IoU above the threshold."""
    usable = _has_extent(anchors)
    iou = torch.where(usable[:, None], box_iou(anchors, gt_boxes), 0)
    best_iou, best = iou.max(dim=1).values, iou.argmax(dim=1)
    over = best_iou > iou_threshold if iou_threshold > 0 else torch.zeros_like(usable)
    matched = torch.where(over, best, -1)
    for anchor, gt in _greedy_match(iou, usable, _round(MXNET_MIN_IOU, anchors.dtype)):
        matched[anchor] = gt
    return matched


def softmax(logits: Tensor, dim: int) -> Tensor:
    """torch's softmax, with the sum over the classes in the order of the classes."""
    powers = _exp(logits - logits.amax(dim=dim, keepdim=True))
    total = sum(power for power in powers.unbind(dim))
    return powers / total.unsqueeze(dim)  # type: ignore[union-attr]


def _mine(matched, best_iou, background, ratio, threshold: float, least: int) -> Tensor:
    """The negatives of one image to train on: those with the lowest probability of background."""
    candidates = ((matched == -1) & (best_iou < threshold)).nonzero().flatten()
    positives = int((matched >= 0).sum())
    by_ratio = float(torch.tensor(float(positives)) * torch.tensor(ratio, dtype=torch.float32))
    wanted = max(math.floor(min(by_ratio, float(len(matched)))), least)
    # torch sorts NaN as the greatest number. The stable sort keeps equal ones in the order of the anchors.
    order = (-background[candidates]).sort(descending=True, stable=True).indices
    return candidates[order[:wanted]]


def multibox_target(
    anchors,
    labels,
    cls_preds=None,
    *,
    iou_threshold=0.5,
    variances=None,
    negative_mining_ratio=None,
    negative_mining_threshold=0.5,
    min_negatives=0,
    ignore_label=-1,
    semantics="d2l",
    coding="center",
    ignore_boxes=None,
    ignore_threshold=0.5,
):
    """Offsets, masks and class labels of every anchor; see `ssd_ops.multibox_target`."""
    real = _real(anchors, *_tensors(labels), *_tensors(cls_preds), *_tensors(ignore_boxes))
    device = anchors.device
    anchors, labels = anchors.reshape(-1, 4).to(real).cpu(), [x.to(real).cpu() for x in labels]
    num_images, num_anchors = len(labels), len(anchors)
    threshold = _round(iou_threshold, real)
    offsets = torch.zeros((num_images, num_anchors, 4), dtype=real)
    masks = torch.zeros((num_images, num_anchors, 4), dtype=real)
    cls_labels = torch.zeros((num_images, num_anchors), dtype=torch.int64)
    for image, rows in enumerate(labels):
        boxes = rows[:, 1:]
        valid = (
            (rows[:, 0] >= 0)
            & (rows[:, 0] < END_OF_CLASSES)
            & boxes.isfinite().all(1)
            & (boxes[:, 2:] >= boxes[:, :2]).all(1)
        )
        if semantics == "torchvision":
            valid &= _has_extent(boxes)
        rows = rows[valid]
        matched = torch.full((num_anchors,), -1)
        if len(rows) and num_anchors:
            if semantics == "mxnet":
                matched = _match_mxnet(anchors, rows[:, 1:], threshold)
            else:
                force = "bipartite" if semantics == "d2l" else "argmax"
                matched, _ = _assign(anchors, rows[:, 1:], threshold, threshold, force)
        if ignore_boxes is not None:
            ignored = _ignored(anchors, ignore_boxes[image].to(real).cpu(), ignore_threshold)
            matched[ignored & (matched < 0)] = -2
        if negative_mining_ratio is not None:
            background = softmax(cls_preds[image].to(real), 0)[0].cpu()
            limit = _round(negative_mining_threshold, real)
            best_iou = torch.zeros(num_anchors, dtype=real)
            if len(rows) and num_anchors:
                iou = box_iou(anchors, rows[:, 1:]).max(dim=1).values
                best_iou = torch.where(_has_extent(anchors), iou, 0)
            cls_labels[image] = ignore_label
            cls_labels[
                image,
                _mine(matched, best_iou, background, negative_mining_ratio, limit, min_negatives),
            ] = 0
        elif semantics == "mxnet" and len(rows) == 0:
            cls_labels[image] = ignore_label
        cls_labels[image, matched == -2] = ignore_label
        positive = matched >= 0
        gt = rows[matched[positive]]
        eps = D2L_EPS if semantics == "d2l" else 0.0
        offsets[image, positive] = encode_boxes(
            gt[:, 1:], anchors[positive], variances=variances, eps=eps, coding=coding
        )
        masks[image, positive] = 1
        cls_labels[image, positive] = gt[:, 0].long() + 1
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
        # torch sorts NaN as the greatest number. So a NaN loss is selected, and the user sees it.
        order = losses[image][negatives].sort(descending=True, stable=True).indices
        selected[image, negatives[order[:wanted]]] = True
    return selected


def _by_score(scores: Tensor) -> list[int]:
    """The indices of the scores that are numbers, highest first, equal ones in their order."""
    order = scores.to(_real(scores)).sort(descending=True, stable=True).indices.tolist()
    return [index for index in order if not scores[index].isnan()]


def _suppressor(boxes: Tensor, index: int, kept: list[int], limit: float, metric: str) -> int:
    """The first of the kept boxes that overlaps box `index` above the limit; `index` if there is none."""
    # In float64, so that a float32 overlap is compared with the exact threshold.
    overlaps = box_iou(boxes[index, None], boxes[kept], metric=metric)[0].double()
    over = (overlaps > limit).nonzero().flatten()
    return kept[int(over[0])] if len(over) else index


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, *, metric: str = "iou") -> Tensor:
    """Indices of the kept boxes, highest score first; see `ssd_ops.nms`."""
    kept: list[int] = []
    for index in _by_score(scores):
        if _suppressor(boxes, index, kept, iou_threshold, metric) == index:
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def nms_groups(boxes, scores, iou_threshold, *, idxs=None, metric="iou") -> Tensor:
    """The kept box that suppressed each box, its own index if kept; see `ssd_ops.nms_groups`."""
    groups = torch.full(scores.shape, -1, dtype=torch.int64, device=boxes.device)
    if scores.ndim > 1:
        for image in range(len(scores)):
            classes = None if idxs is None else idxs[image]
            groups[image] = nms_groups(
                boxes[image], scores[image], iou_threshold, idxs=classes, metric=metric
            )
        return groups
    kept: dict[int, list[int]] = {}  # of each class
    for index in _by_score(scores):
        rivals = kept.setdefault(0 if idxs is None else int(idxs[index]), [])
        groups[index] = _suppressor(boxes, index, rivals, iou_threshold, metric)
        if groups[index] == index:
            rivals.append(index)
    return groups


def nms_padded(
    boxes: Tensor, scores: Tensor, iou_threshold: float, *, metric: str = "iou"
) -> tuple[Tensor, Tensor]:
    """Kept indices, padded with -1, and their number; see `ssd_ops.nms_padded`."""
    if boxes.ndim == 2:
        indices, counts = nms_padded(boxes[None], scores[None], iou_threshold, metric=metric)
        return indices[0], counts[0]
    indices = torch.full(scores.shape, -1, dtype=torch.int64, device=boxes.device)
    counts = torch.zeros(len(scores), dtype=torch.int64, device=boxes.device)
    for image in range(len(scores)):
        kept = nms(boxes[image], scores[image], iou_threshold, metric=metric)
        indices[image, : len(kept)] = kept
        counts[image] = len(kept)
    return indices, counts


def batched_nms(
    boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float, *, metric: str = "iou"
) -> Tensor:
    """Indices of the kept boxes of all classes, highest score first; see `ssd_ops.batched_nms`."""
    kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for category in idxs.unique():
        members = (idxs == category).nonzero().flatten()
        kept[members[nms(boxes[members], scores[members], iou_threshold, metric=metric)]] = True
    kept_idxs = kept.nonzero().flatten()
    return kept_idxs[scores[kept_idxs].sort(descending=True, stable=True).indices]


def _best_class_only(scores: Tensor) -> Tensor:
    """Scores [..., C] with NaN in all places but that of the best class."""
    if scores.shape[-1] == 0:
        return scores
    best = scores.where(~scores.isnan(), -math.inf).argmax(dim=-1, keepdim=True)
    return torch.full_like(scores, math.nan).scatter(-1, best, scores.gather(-1, best))


def _best_of_level(scores: Tensor, threshold: float, topk: int) -> Tensor:
    """Scores [N, C] of a level with NaN in all places but those of the first `topk` over the threshold."""
    by_class = scores.mT.flatten()
    order = by_class.sort(descending=True, stable=True).indices
    chosen = order[by_class[order] > threshold][:topk]
    kept = torch.full_like(by_class, math.nan)
    kept[chosen] = by_class[chosen]
    return kept.view(scores.shape[1], scores.shape[0]).mT


def multiclass_nms(
    boxes,
    scores,
    *,
    score_threshold=0.05,
    iou_threshold=0.5,
    topk=400,
    max_detections=100,
    class_agnostic=False,
    metric="iou",
    best_class_only=False,
    level_counts=None,
    topk_per_level=None,
):
    """The best boxes of each image, padded; see `ssd_ops.multiclass_nms`."""
    real = _real(boxes, scores)
    boxes, scores = boxes.to(real), scores.to(real)
    threshold = _round(score_threshold, real)
    if best_class_only:
        scores = _best_class_only(scores)
    if level_counts is not None:
        images = [
            [_best_of_level(of_level, threshold, topk_per_level) for of_level in of_image]
            for of_image in (image.split(level_counts) for image in scores)
        ]
        scores = torch.stack([torch.cat(levels) for levels in images]) if images else scores
    num_images, device = len(boxes), boxes.device
    out_boxes = torch.zeros((num_images, max_detections, 4), dtype=real, device=device)
    out_scores = torch.zeros((num_images, max_detections), dtype=real, device=device)
    labels = torch.full((num_images, max_detections), -1, device=device)
    indices = torch.full((num_images, max_detections), -1, device=device)
    counts = torch.zeros(num_images, dtype=torch.int64, device=device)
    for image in range(num_images):
        chosen: list[
            tuple[int, int]
        ] = []  # (class, box), ordered by class, then by score, then by box
        for category in range(scores.shape[2]):
            of_class = scores[image, :, category]
            order = of_class.sort(descending=True, stable=True).indices
            order = order[of_class[order] > threshold]
            if topk != -1:
                order = order[:topk]
            chosen += [(category, int(box)) for box in order]
        if not chosen:
            continue
        categories, rows = torch.tensor(chosen, device=device).unbind(1)
        found = scores[image, rows, categories]
        groups = torch.zeros_like(categories) if class_agnostic else categories
        # The sort in `batched_nms` is stable: equal scores stay in the order of `chosen`.
        kept = batched_nms(boxes[image, rows], found, groups, iou_threshold, metric=metric)
        kept = kept[:max_detections]
        count = len(kept)
        out_boxes[image, :count] = boxes[image, rows[kept]]
        out_scores[image, :count] = found[kept]
        labels[image, :count] = categories[kept]
        indices[image, :count] = rows[kept]
        counts[image] = count
    return out_boxes, out_scores, labels, indices, counts


def detect(
    cls_scores,
    offset_preds,
    anchors,
    *,
    activation="softmax",
    score_threshold=0.01,
    iou_threshold=0.45,
    topk=400,
    max_detections=200,
    variances=None,
    clip=True,
    class_agnostic=False,
    metric="iou",
    coding="center",
    max_log_size=None,
    best_class_only=False,
    level_counts=None,
    topk_per_level=None,
):
    """The best boxes of each image from the outputs of a detector, padded; see `ssd_ops.detect`."""
    real = _real(cls_scores, offset_preds, anchors)
    logits, anchors = cls_scores.to(real), anchors.reshape(-1, 4).to(real)
    if activation == "softmax":
        scores = softmax(logits, 2)[..., 1:]
    else:
        scores = 1 / (1 + _exp(-logits)) if activation == "sigmoid" else logits
    offsets = offset_preds.to(real).reshape(len(logits), len(anchors), 4)
    return multiclass_nms(
        decode_boxes(
            offsets,
            anchors,
            variances=variances,
            clip=clip,
            coding=coding,
            max_log_size=max_log_size,
        ),
        scores,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
        topk=topk,
        max_detections=max_detections,
        class_agnostic=class_agnostic,
        metric=metric,
        best_class_only=best_class_only,
        level_counts=level_counts,
        topk_per_level=topk_per_level,
    )


def _d2l_rows(probs, boxes, nms_threshold, pos_threshold, class_agnostic, topk) -> Tensor:
    """The rows [A, 6] of one image by the rules of the book; probs [C, A]."""
    probs = torch.where(probs.isnan(), torch.zeros_like(probs), probs)
    class_id = probs.argmax(dim=0)  # the first class on ties
    scores = probs.gather(0, class_id[None])[0]
    order = scores.sort(descending=True, stable=True).indices[: None if topk == -1 else topk]
    groups = torch.zeros_like(class_id) if class_agnostic else class_id
    kept = order[batched_nms(boxes[order], scores[order], groups[order], nms_threshold)].tolist()
    others = sorted(set(range(len(boxes))) - set(kept))
    class_id[others] = -1
    below = scores < pos_threshold
    class_id[below] = -1
    scores = torch.where(below, 1 - scores, scores)
    return torch.cat((class_id[:, None].to(boxes), scores[:, None], boxes), dim=1)[kept + others]


def _mxnet_rows(probs, boxes, nms_threshold, pos_threshold, class_agnostic, topk) -> Tensor:
    """The rows [A, 6] of one image by the rules of MXNet; probs [C, A]."""
    probs = torch.where(probs > -1, probs, -torch.ones_like(probs))  # NaN is never the best
    class_id = probs.argmax(dim=0)
    scores = probs.gather(0, class_id[None])[0]
    survivors = (scores > -1) & ~(scores < pos_threshold)
    rows = torch.cat((class_id[:, None].to(boxes), scores[:, None], boxes), dim=1)[survivors]
    if nms_threshold > 0:
        order = rows[:, 1].sort(descending=True, stable=True).indices
        if topk != -1 and topk < len(rows):
            order = torch.cat((order[:topk], torch.arange(topk, len(rows), device=order.device)))
        in_nms = len(rows) if topk == -1 else min(topk, len(rows))
        rows = rows[order]
        rows[in_nms:, 0] = -1
        for i in range(in_nms):
            if rows[i, 0] >= 0:
                iou = box_iou(rows[i, None, 2:], rows[i + 1 : in_nms, 2:])[0]
                rivals = rows[i + 1 : in_nms, 0]
                rivals[(iou >= nms_threshold) & (class_agnostic | (rivals == rows[i, 0]))] = -1
    return torch.cat((rows, rows.new_full((len(boxes) - len(rows), 6), -1)))


def multibox_detection(
    cls_probs,
    offset_preds,
    anchors,
    nms_threshold=0.5,
    pos_threshold=0.009999999,
    *,
    variances=VARIANCES,
    clip=None,
    class_agnostic=None,
    topk=-1,
    semantics="d2l",
):
    """Rows (class, score, x1, y1, x2, y2), [B, A, 6]; see `ssd_ops.multibox_detection`."""
    real = _real(cls_probs, offset_preds, anchors)
    clip = semantics == "mxnet" if clip is None else clip
    class_agnostic = semantics == "d2l" if class_agnostic is None else class_agnostic
    num_images, _, num_anchors = cls_probs.shape
    anchors = anchors.reshape(-1, 4).to(real)
    rows_of = _d2l_rows if semantics == "d2l" else _mxnet_rows
    out = torch.zeros((num_images, num_anchors, 6), dtype=real, device=cls_probs.device)
    for image in range(num_images if num_anchors else 0):
        offsets = offset_preds[image].reshape(-1, 4).to(real)
        boxes = decode_boxes(offsets, anchors, variances=variances, clip=clip)
        out[image] = rows_of(
            cls_probs[image, 1:].to(real),
            boxes,
            _round(nms_threshold, real),
            _round(pos_threshold, real),
            class_agnostic,
            topk,
        )
    return out
