"""The rivals of the ops, each in the fastest form of its kind that we know.

- `d2l`: the algorithms of "Dive into Deep Learning" (section 14.4). They work image by image, with a Python
  loop over ground truths or over kept boxes.
- `eager`: the same results with PyTorch operations on the whole batch.
- `torchvision`: its own operators, matchers and post-processing, if it is installed.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ssd_ops.tinyssd.model import (
    base_net,
    bbox_predictor,
    cls_predictor,
    concat_preds,
    down_sample_blk,
)

EPS = 1e-6  # the book's, inside the logarithm

try:
    from torchvision import ops as _torchvision
    from torchvision.extension import _assert_has_ops
    from torchvision.models.detection import _utils as _matching
    from torchvision.models.detection.anchor_utils import AnchorGenerator as _AnchorGenerator
    from torchvision.models.detection.ssd import SSD as _SSD

    _assert_has_ops()
except (
    Exception
) as error:  # RuntimeError, not ImportError, if its library does not fit the installed torch
    _reason = str(error).strip().splitlines() or [type(error).__name__]
    _missing = f"torchvision does not import ({_reason[0]})"
    torchvision_nms = torchvision_batched_nms = torchvision_box_iou = _missing
    torchvision_assign_anchors = torchvision_detect = torchvision_grid_anchors = _missing
else:
    torchvision_nms, torchvision_box_iou = _torchvision.nms, _torchvision.box_iou
    torchvision_batched_nms = _torchvision.batched_nms

    def torchvision_grid_anchors(feature_maps, shapes, *, steps, offsets=(0.5, 0.5)) -> Tensor:
        """The grid of torchvision's `AnchorGenerator`, with the anchors of a cell in place of its own."""
        generator = _AnchorGenerator(shapes, shapes)
        generator.cell_anchors = []
        for level, (step_y, step_x) in zip(shapes, steps, strict=True):
            half = torch.tensor(level, device=feature_maps[0].device) / 2
            center = half.new_tensor([offsets[1] * step_x, offsets[0] * step_y])
            generator.cell_anchors.append(torch.cat((center - half, center + half), dim=1))
        grids = [feature_map.shape[-2:] for feature_map in feature_maps]
        return torch.cat(generator.grid_anchors(grids, steps))[None]

    def torchvision_assign_anchors(anchors: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
        """torchvision's IoU and `SSDMatcher`, image by image."""
        ious = [_torchvision.box_iou(boxes, anchors) for boxes in gt_boxes]
        matcher = _matching.SSDMatcher(0.5)
        return torch.stack(list(map(matcher, ious))), torch.stack([iou.amax(0) for iou in ious])

    def torchvision_detect(cls_scores: Tensor, offset_preds: Tensor, anchors: Tensor):
        """The post-processing of torchvision's SSD with the settings of SSD300, as a list of images."""
        settings = SimpleNamespace(
            box_coder=_matching.BoxCoder((10.0, 10.0, 5.0, 5.0)),
            score_thresh=0.01,
            topk_candidates=400,
            nms_thresh=0.45,
            detections_per_img=200,
        )
        images = len(cls_scores)
        return _SSD.postprocess_detections(
            settings,
            {"cls_logits": cls_scores, "bbox_regression": offset_preds},
            [anchors] * images,
            [(1, 1)] * images,
        )


# The book's algorithms.


def _to_center(boxes: Tensor) -> Tensor:
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), dim=1)


def _to_corners(boxes: Tensor) -> Tensor:
    cx, cy, w, h = boxes.unbind(1)
    return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=1)


def d2l_multibox_prior(feature_map: Tensor, sizes, ratios) -> Tensor:
    height, width = feature_map.shape[-2:]
    device = feature_map.device
    size, ratio = torch.tensor(sizes, device=device), torch.tensor(ratios, device=device)
    y = (torch.arange(height, device=device) + 0.5) / height
    x = (torch.arange(width, device=device) + 0.5) / width
    y, x = (grid.reshape(-1) for grid in torch.meshgrid(y, x, indexing="ij"))
    w = torch.cat((size * ratio[0].sqrt(), size[0] * ratio[1:].sqrt())) * height / width
    h = torch.cat((size / ratio[0].sqrt(), size[0] / ratio[1:].sqrt()))
    shapes = torch.stack((-w, -h, w, h)).T.repeat(height * width, 1) / 2
    centers = torch.stack((x, y, x, y), dim=1).repeat_interleave(len(w), dim=0)
    return (centers + shapes)[None]


def d2l_multibox_priors(feature_maps, sizes, ratios) -> Tensor:
    levels = zip(feature_maps, sizes, ratios, strict=True)
    return torch.cat([d2l_multibox_prior(*level) for level in levels], dim=1)


def d2l_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    area1 = (boxes1[:, 2] - boxes1[:, 0]) * (boxes1[:, 3] - boxes1[:, 1])
    area2 = (boxes2[:, 2] - boxes2[:, 0]) * (boxes2[:, 3] - boxes2[:, 1])
    top_left = torch.max(boxes1[:, None, :2], boxes2[:, :2])
    bottom_right = torch.min(boxes1[:, None, 2:], boxes2[:, 2:])
    side = (bottom_right - top_left).clamp(min=0)
    inter = side[..., 0] * side[..., 1]
    return inter / (area1[:, None] + area2 - inter)


def d2l_encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    box, anchor = _to_center(boxes), _to_center(anchors)
    xy = 10 * (box[:, :2] - anchor[:, :2]) / anchor[:, 2:]
    return torch.cat((xy, 5 * torch.log(EPS + box[:, 2:] / anchor[:, 2:])), dim=1)


def d2l_decode_boxes(offsets: Tensor, anchors: Tensor) -> Tensor:
    anchor = _to_center(anchors)
    xy = offsets[:, :2] * anchor[:, 2:] / 10 + anchor[:, :2]
    wh = torch.exp(offsets[:, 2:] / 5) * anchor[:, 2:]
    return _to_corners(torch.cat((xy, wh), dim=1))


def _d2l_match(gts: Tensor, anchors: Tensor) -> Tensor:
    iou = d2l_box_iou(anchors, gts)
    matched = torch.full((len(anchors),), -1, device=anchors.device)
    best, indices = iou.max(dim=1)
    matched[best >= 0.5] = indices[best >= 0.5]
    for _ in range(len(gts)):
        flat = int(iou.argmax())
        anchor, gt = divmod(flat, len(gts))
        matched[anchor] = gt
        iou[:, gt] = -1
        iou[anchor, :] = -1
    return matched


def d2l_multibox_target(anchors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    anchors = anchors[0]
    offsets, masks, classes = [], [], []
    for rows in labels:
        matched = _d2l_match(rows[:, 1:], anchors)
        positive = (matched >= 0).nonzero().flatten()
        mask = (matched >= 0).float()[:, None].repeat(1, 4)
        box = torch.zeros_like(anchors)
        box[positive] = rows[matched[positive], 1:]
        label = torch.zeros(len(anchors), dtype=torch.int64, device=anchors.device)
        label[positive] = rows[matched[positive], 0].long() + 1
        offsets.append((d2l_encode_boxes(box, anchors) * mask).flatten())
        masks.append(mask.flatten())
        classes.append(label)
    return torch.stack(offsets), torch.stack(masks), torch.stack(classes)


def d2l_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    order = scores.argsort(descending=True)
    kept = []
    while len(order) > 0:
        best, order = order[0], order[1:]
        kept.append(best)
        if len(order) == 0:
            break
        iou = d2l_box_iou(boxes[best][None], boxes[order])[0]
        order = order[(iou <= iou_threshold).nonzero().flatten()]
    return torch.tensor(kept, dtype=torch.int64, device=boxes.device)


def d2l_multibox_detection(cls_probs: Tensor, offset_preds: Tensor, anchors: Tensor) -> Tensor:
    anchors = anchors[0]
    out = []
    for probs, offsets in zip(cls_probs, offset_preds, strict=True):
        score, label = probs[1:].max(dim=0)
        boxes = d2l_decode_boxes(offsets.reshape(-1, 4), anchors)
        kept = d2l_nms(boxes, score, 0.5)
        both = torch.cat((kept, torch.arange(len(anchors), device=anchors.device)))
        values, counts = both.unique(return_counts=True)
        dropped = values[counts == 1]
        label[dropped] = -1
        order = torch.cat((kept, dropped))
        label, score, boxes = label[order], score[order], boxes[order]
        below = score < 0.009999999
        label[below] = -1
        score[below] = 1 - score[below]
        out.append(torch.cat((label[:, None], score[:, None], boxes), dim=1))
    return torch.stack(out)


class ChapterSSD(nn.Module):
    """The chapter's network in float32 and NCHW. It makes the anchors of each scale in every forward pass.

    Its state dict fits `ssd_ops.tinyssd.model.TinySSD` with one class.
    """

    sizes = ((0.2, 0.272), (0.37, 0.447), (0.54, 0.619), (0.71, 0.79), (0.88, 0.961))
    ratios = ((1, 2, 0.5),) * 5

    def __init__(self) -> None:
        super().__init__()
        widths = (64, 128, 128, 128, 128)
        blocks = [base_net(), down_sample_blk(64, 128), down_sample_blk(128, 128)]
        blocks += [down_sample_blk(128, 128), nn.AdaptiveMaxPool2d((1, 1))]
        for scale, (block, width) in enumerate(zip(blocks, widths, strict=True)):
            setattr(self, f"blk_{scale}", block)
            setattr(self, f"cls_{scale}", cls_predictor(width, 4, 1))
            setattr(self, f"bbox_{scale}", bbox_predictor(width, 4))

    def forward(self, X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        anchors, cls_preds, bbox_preds = [], [], []
        for scale in range(5):
            X = getattr(self, f"blk_{scale}")(X)
            anchors.append(d2l_multibox_prior(X, self.sizes[scale], self.ratios[scale]))
            cls_preds.append(getattr(self, f"cls_{scale}")(X))
            bbox_preds.append(getattr(self, f"bbox_{scale}")(X))
        cls = concat_preds(cls_preds)
        return torch.cat(anchors, dim=1), cls.reshape(len(X), -1, 2), concat_preds(bbox_preds)


def d2l_train(
    net: nn.Module, images: Tensor, labels: Tensor, batches, device="cpu", half: bool = False
) -> list[float]:
    """The chapter's training loop with its settings. Returns the loss of each step.

    Args:
        net: The network. It is trained in place.
        images: uint8 ``[N, 3, H, W]``. As in the chapter, a batch is converted to float when it is used.
        labels: ``[N, G, 5]``.
        batches: For each step the numbers of its images.
        device: The device of `net`.
        half: With autocast to bfloat16 and channels_last, which the chapter does not have.
    """
    layout = torch.channels_last if half else torch.contiguous_format
    net.to(memory_format=layout)
    trainer = torch.optim.SGD(net.parameters(), lr=0.2, weight_decay=5e-4)
    cls_loss = nn.CrossEntropyLoss(reduction="none")
    bbox_loss = nn.L1Loss(reduction="none")
    metric = [0.0] * 4
    losses = []
    net.train()
    for index in batches:
        trainer.zero_grad()
        X = torch.stack([images[i].float() for i in index]).to(device, memory_format=layout)
        Y = torch.stack([labels[i] for i in index]).to(device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, half):
            anchors, cls_preds, bbox_preds = net(X)
        cls_preds, bbox_preds = cls_preds.float(), bbox_preds.float()
        bbox_labels, bbox_masks, cls_labels = d2l_multibox_target(anchors, Y)
        cls = cls_loss(cls_preds.reshape(-1, 2), cls_labels.reshape(-1)).reshape(len(X), -1)
        bbox = bbox_loss(bbox_preds * bbox_masks, bbox_labels * bbox_masks)
        loss = cls.mean(dim=1) + bbox.mean(dim=1)
        loss.mean().backward()
        trainer.step()
        metric[0] += float((cls_preds.argmax(dim=-1) == cls_labels).sum())
        metric[1] += cls_labels.numel()
        metric[2] += float((bbox_labels - bbox_preds.detach()).mul(bbox_masks).abs().sum())
        metric[3] += bbox_labels.numel()
        losses.append(float(loss.mean().detach()))
    return losses


def d2l_predict(net: nn.Module, image: Tensor, device="cpu") -> Tensor:
    """The chapter's prediction for a uint8 image: rows (class, score, box in fractions of the image)."""
    net.eval()
    anchors, cls_preds, bbox_preds = net(image[None].float().to(device))
    cls_probs = torch.softmax(cls_preds, dim=2).permute(0, 2, 1)
    output = d2l_multibox_detection(cls_probs, bbox_preds, anchors)
    kept = [i for i, row in enumerate(output[0]) if row[0] != -1]
    return output[0, kept]


# PyTorch operations on the whole batch.


def eager_multibox_priors(feature_maps, sizes, ratios) -> Tensor:
    shapes = []
    for feature_map, size, ratio in zip(feature_maps, sizes, ratios, strict=True):
        height, width = feature_map.shape[-2:]
        pairs = [(s, ratio[0]) for s in size] + [(size[0], r) for r in ratio[1:]]
        shapes.append([(s * r**0.5 * height / width, s / r**0.5) for s, r in pairs])
    return eager_grid_anchors(feature_maps, shapes)


def eager_grid_anchors(feature_maps, shapes, *, steps=None, offsets=(0.5, 0.5)) -> Tensor:
    levels = []
    for level, feature_map in enumerate(feature_maps):
        height, width = feature_map.shape[-2:]
        step = (1 / height, 1 / width) if steps is None else steps[level]
        on = {"device": feature_map.device}
        w, h = (torch.tensor(shapes[level], **on) / 2).unbind(1)
        x = ((torch.arange(width, **on) + offsets[1]) * step[1])[None, :, None]
        y = ((torch.arange(height, **on) + offsets[0]) * step[0])[:, None, None]
        out = torch.empty(height, width, len(w), 4, **on)
        out[..., 0] = x - w
        out[..., 1] = y - h
        out[..., 2] = x + w
        out[..., 3] = y + h
        levels.append(out.view(-1, 4))
    return torch.cat(levels)[None]


def eager_box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """[..., N, 4] x [..., M, 4] -> [..., N, M]. One coordinate at a time needs less memory traffic."""
    a, b = boxes1[..., :, None, :].unbind(-1), boxes2[..., None, :, :].unbind(-1)
    area1, area2 = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    inter = torch.minimum(a[2], b[2]).sub_(torch.maximum(a[0], b[0])).clamp_(min=0)
    inter.mul_(torch.minimum(a[3], b[3]).sub_(torch.maximum(a[1], b[1])).clamp_(min=0))
    return inter / (area1 + area2).sub_(inter)


def eager_encode_boxes(boxes: Tensor, anchors: Tensor, eps: float = EPS) -> Tensor:
    size = anchors[..., 2:] - anchors[..., :2]
    out = torch.empty_like(boxes)
    center = boxes[..., :2] + boxes[..., 2:] - (anchors[..., :2] + anchors[..., 2:])
    out[..., :2] = center.mul_(5).div_(size)
    out[..., 2:] = ((boxes[..., 2:] - boxes[..., :2]) / size).add_(eps).log_().mul_(5)
    return out


def eager_decode_boxes(offsets: Tensor, anchors: Tensor) -> Tensor:
    size = anchors[..., 2:] - anchors[..., :2]
    center = (offsets[..., :2] * (size / 10)).add_((anchors[..., :2] + anchors[..., 2:]) / 2)
    half = (offsets[..., 2:] / 5).exp_().mul_(size / 2)
    return torch.cat((center - half, center + half), dim=-1)


def eager_multibox_target(anchors: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All images at once. A round searches again only for a gt that lost its best anchor."""
    anchors = anchors[0]
    images, count, num_anchors = len(labels), labels.shape[1], len(anchors)
    valid = labels[..., 0] >= 0
    iou = eager_box_iou(labels[..., 1:], anchors)  # [B, G, A]: the row of a gt is contiguous
    iou.masked_fill_(~valid[..., None], -1)
    best, matched = iou.max(dim=1)
    matched.masked_fill_(best < 0.5, -1)
    row_best, row_anchor = iou.max(dim=2)
    batch = torch.arange(images, device=labels.device)
    for _ in range(count):
        value, gt = row_best.max(dim=1)
        live = value >= 0
        anchor = row_anchor[batch, gt]
        matched[batch[live], anchor[live]] = gt[live]
        row_best[batch, gt] = -1
        iou[batch, gt] = -1
        iou[batch[live], :, anchor[live]] = -1
        image, row = ((row_anchor == anchor[:, None]) & (row_best >= 0)).nonzero().unbind(1)
        if len(image):
            row_best[image, row], row_anchor[image, row] = iou[image, row].max(dim=1)
    positive = matched >= 0
    image, anchor = positive.nonzero().unbind(1)
    gts = labels[image, matched[positive]]
    offsets = torch.zeros(images, num_anchors, 4, device=labels.device)
    offsets[image, anchor] = eager_encode_boxes(gts[:, 1:], anchors[anchor])
    classes = torch.zeros(images, num_anchors, dtype=torch.int64, device=labels.device)
    classes[image, anchor] = gts[:, 0].long() + 1
    masks = positive.float()[..., None].expand(-1, -1, 4).reshape(images, -1)
    return offsets.flatten(1), masks, classes


def eager_hard_negative_mining(losses: Tensor, cls_labels: Tensor) -> Tensor:
    selected = cls_labels > 0
    negative = cls_labels == 0
    wanted = torch.minimum(3 * selected.sum(dim=1), negative.sum(dim=1))
    most = int(wanted.max())
    hardest = losses.masked_fill(~negative, float("-inf")).topk(most, dim=1).indices
    chosen = torch.arange(most, device=losses.device) < wanted[:, None]
    return selected.scatter(1, hardest, selected.gather(1, hardest) | chosen)


def two_sorts_hard_negative_mining(losses: Tensor, cls_labels: Tensor) -> Tensor:
    """Ranks the losses with two sorts, as many SSD implementations in PyTorch do."""
    selected = cls_labels > 0
    negative_loss = losses.masked_fill(cls_labels != 0, float("-inf"))
    rank = negative_loss.sort(dim=1, descending=True).indices.sort(dim=1).indices
    wanted = torch.minimum(3 * selected.sum(dim=1), (cls_labels == 0).sum(dim=1))
    return selected | (rank < wanted[:, None])


def _eager_keep(boxes: Tensor, iou_threshold: float, block: int = 512) -> Tensor:
    """Mask of the boxes, sorted by score, that greedy NMS keeps.

    Each block of boxes is compared with the boxes kept before, then with itself.
    """
    kept = boxes[:0]
    keep = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    for start in range(0, len(boxes), block):
        rows = boxes[start : start + block]
        alive = ~(eager_box_iou(rows, kept) > iou_threshold).any(dim=1)
        over = (eager_box_iou(rows, rows) > iou_threshold).triu_(1) & alive[:, None]
        now = alive
        while True:  # reaches a fixed point after at most as many rounds as the longest chain
            then = alive & ~(over & now[:, None]).any(dim=0)
            if torch.equal(then, now):
                break
            now = then
        keep[start : start + block] = now
        kept = torch.cat((kept, rows[now]))
    return keep


def eager_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    order = scores.argsort(descending=True, stable=True)
    return order[_eager_keep(boxes[order], iou_threshold)]


def loop_nms_groups(
    boxes: Tensor, scores: Tensor, iou_threshold: float, *, metric: str = "iou"
) -> Tensor:
    """Takes the best box with all that it overlaps, then the best of those that are left, and so on."""
    order = scores.argsort(descending=True, stable=True)
    groups = torch.full_like(order, -1)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while len(order):
        best, order = order[0], order[1:]
        groups[best] = best
        others = boxes[order]
        sides = torch.minimum(others[:, 2:], boxes[best, 2:]) - torch.maximum(
            others[:, :2], boxes[best, :2]
        )
        inter = sides.clamp(min=0).prod(dim=1)
        both = area[order] + area[best]
        base = torch.minimum(area[order], area[best]) if metric == "ios" else both - inter
        over = inter / base > iou_threshold
        groups[order[over]] = best
        order = order[~over]
    return groups


def loop_merge_boxes(boxes: Tensor, scores: Tensor, groups: Tensor, *, how: str) -> Tensor:
    """Group by group, each in the row of its kept box."""
    merged = torch.zeros_like(boxes)
    for kept in groups.unique().tolist():
        members = groups == kept
        rows, weights = boxes[members], scores[members, None]
        if how == "union":
            merged[kept] = torch.cat((rows.amin(dim=0)[:2], rows.amax(dim=0)[2:]))
        else:
            merged[kept] = (rows * weights).sum(dim=0) / weights.sum()
    return merged


def loop_batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Class by class, as torchvision does with many boxes, and each class by blocks."""
    keep = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    for category in idxs.unique():
        members = (idxs == category).nonzero().flatten()
        keep[members[eager_nms(boxes[members], scores[members], iou_threshold)]] = True
    kept = keep.nonzero().flatten()
    return kept[scores[kept].argsort(descending=True, stable=True)]


def eager_assign_anchors(anchors: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """All images at once. Each gt is forced on its best anchor."""
    iou = eager_box_iou(gt_boxes, anchors)  # [B, G, A]
    best, matched = iou.max(dim=1)
    matched.masked_fill_(best < 0.5, -1)
    of_gt = iou.argmax(dim=2)
    batch = torch.arange(len(gt_boxes), device=gt_boxes.device)
    for gt in range(gt_boxes.shape[1]):  # in order: the later one wins
        matched[batch, of_gt[:, gt]] = gt
    return matched, best


def eager_multiclass_nms(boxes: Tensor, scores: Tensor):
    """The top 400 of each class, `loop_batched_nms` for each image, then its best 100."""
    found = []
    for box, score in zip(boxes, scores, strict=True):
        value, row = score.T.topk(min(400, len(box)), dim=1)
        label = torch.arange(len(value), device=value.device)[:, None].expand_as(row)
        over = value > 0.05
        value, row, label = value[over], row[over], label[over]
        keep = loop_batched_nms(box[row], value, label, 0.5)[:100]
        found.append({"boxes": box[row[keep]], "scores": value[keep], "labels": label[keep] + 1})
    return found


def eager_detect(cls_scores: Tensor, offset_preds: Tensor, anchors: Tensor):
    """Softmax and decoding of all anchors, then as `eager_multiclass_nms` with the settings of SSD300."""
    found = []
    boxes = eager_decode_boxes(offset_preds, anchors).clamp_(0, 1)
    for box, score in zip(boxes, cls_scores.softmax(2)[..., 1:], strict=True):
        value, row = score.T.topk(min(400, len(box)), dim=1)
        label = torch.arange(len(value), device=value.device)[:, None].expand_as(row)
        over = value > 0.01
        value, row, label = value[over], row[over], label[over]
        keep = loop_batched_nms(box[row], value, label, 0.45)[:200]
        found.append({"boxes": box[row[keep]], "scores": value[keep], "labels": label[keep] + 1})
    return found


def eager_multibox_detection(cls_probs: Tensor, offset_preds: Tensor, anchors: Tensor) -> Tensor:
    scores, labels = cls_probs[:, 1:].max(dim=1)
    boxes = eager_decode_boxes(offset_preds.unflatten(1, (-1, 4)), anchors)
    order = scores.argsort(dim=1, descending=True, stable=True)
    ordered = boxes.gather(1, order[..., None].expand_as(boxes))
    kept = torch.stack([_eager_keep(image, 0.5) for image in ordered])
    # Kept ones first, by score; then the others by anchor.
    place = torch.arange(order.shape[1], device=order.device)
    key = torch.where(kept, place, order.shape[1] + order)
    order = order.gather(1, key.argsort(dim=1))
    dropped = place >= kept.sum(dim=1, keepdim=True)
    scores = scores.gather(1, order)
    below = scores < 0.009999999
    labels = labels.gather(1, order).masked_fill_(dropped | below, -1)
    scores = torch.where(below, 1 - scores, scores)
    boxes = boxes.gather(1, order[..., None].expand_as(boxes))
    return torch.cat((labels[..., None].float(), scores[..., None], boxes), dim=2)


# Comparisons of two implementations. Ours has its own exp and log, so values are close, not equal.


def close(actual: Tensor, expected: Tensor) -> bool:
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-4, atol=1e-5)


def same_targets(actual, expected) -> bool:
    """Masks and classes equal, offsets close."""
    return close(actual[0], expected[0]) and all(map(torch.equal, actual[1:], expected[1:]))


def same_detections(actual: Tensor, expected: Tensor) -> bool:
    """Equal rows in nine of ten images: one bit of exp can move a box across the threshold."""
    far = (actual - expected).abs().amax(dim=(1, 2)) > 1e-4
    return int(far.sum()) <= len(far) // 10


def same_matches(actual, expected) -> bool:
    """Equal matches. The IoU is not compared: for a forced anchor torchvision returns its highest IoU."""
    return torch.equal(actual[0], expected[0])


def same_found(actual, expected) -> bool:
    """Our `Detections` and a rival's list of images (labels from 1) agree.

    Scores are close. One detection in a hundred may be missing and one in fifty may have another label or
    box, because one bit of exp can move a box across the threshold.
    """
    if isinstance(actual, list):
        actual, expected = expected, actual
    if isinstance(expected, tuple):  # ours compared with itself
        return all(map(torch.equal, actual, expected))
    for image, other in enumerate(expected):
        count = int(actual.counts[image])
        if abs(count - len(other["scores"])) > count // 100:
            return False
        count = min(count, len(other["scores"]))
        same = (actual.labels[image, :count] + 1 == other["labels"][:count]) & (
            (actual.boxes[image, :count] - other["boxes"][:count]).abs().amax(1) < 1e-4
        )
        if int((~same).sum()) > count // 50 or not close(
            actual.scores[image, :count], other["scores"][:count]
        ):
            return False
    return True
