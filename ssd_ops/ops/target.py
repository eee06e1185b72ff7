"""Assignment of anchors to ground truths, and training targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor

from ssd_ops.ops._arguments import (
    CODING,
    SEMANTICS,
    as_choice,
    as_fraction,
    as_integer,
    as_min_negatives,
    as_positives,
    as_ratio,
    as_tuple_of,
    as_variances,
    check_tensors,
    real_dtype,
)

__all__ = ["assign_anchors", "multibox_target", "pack_targets"]


_FORCE_MATCH = {"none": 0, "bipartite": 1, "argmax": 2, "low_quality": 3}


def assign_anchors(
    anchors: Tensor,
    gt_boxes: Tensor | Sequence[Tensor],
    gt_counts: Tensor | None = None,
    *,
    iou_threshold: float = 0.5,
    background_threshold: float | None = None,
    force_match: str = "bipartite",
    ignore_boxes: Tensor | Sequence[Tensor] | None = None,
    ignore_threshold: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Assigns each anchor to a ground truth (gt) or to the background, for a batch of images.

    An anchor is matched to the gt with the highest IoU (the first on ties) if that IoU is at least
    `iou_threshold`. Below `background_threshold` the anchor is background. Between the two thresholds it
    is neither. After that, `force_match` gives anchors to ground truths that would otherwise have none.
    A forced match replaces an earlier one:

    - ``"bipartite"``: Of all pairs of an anchor and a gt that are not yet forced, the pair with the highest
      IoU is matched, even if that IoU is 0 (ties: lowest anchor, then lowest gt). This repeats until no gt
      or no anchor is left.
    - ``"argmax"``: Each gt takes the anchor with the highest IoU (the first on ties), even if that IoU is
      0. If two gts take the same anchor, the later gt gets it. This is torchvision's `SSDMatcher`.
    - ``"low_quality"``: An anchor whose IoU with some gt is the highest of all anchors (ties included) and
      above 0 is matched to its own best gt. This is `Matcher` of torchvision and detectron2 with
      `allow_low_quality_matches`. There, a gt that overlaps no anchor takes all anchors.
    - ``"none"``: Only the thresholds count.

    Last, an anchor without a match is ignored if it overlaps one of the `ignore_boxes` of its image, and at
    least `ignore_threshold` of its own area lies in that box. An anchor with a match keeps it.

    Args:
        anchors: ``[1, A, 4]`` or ``[A, 4]`` xyxy, in any unit.
        gt_boxes: The ground truth boxes, in the same unit, in one of three forms: ``[B, G, 4]``, padded at
            the end of each image; a list of B tensors ``[G_i, 4]``; or ``[N, 4]``, the boxes of all images
            one after another.
        gt_counts: int64. For ``[B, G, 4]``: ``[B]``, the number of real boxes of each image; None, the
            default, means all G. For ``[N, 4]``: ``[B + 1]``, where the boxes of image i are the rows from
            ``gt_counts[i]`` to ``gt_counts[i + 1]``. For a list: None. The host does not read the values.
            A value outside the range of the boxes is clipped to it.
        iou_threshold: 0..1, rounded to the dtype of the arithmetic.
        background_threshold: 0..`iou_threshold`, rounded in the same way. Default: None, which means
            `iou_threshold`: no anchor is between the two.
        force_match: ``"bipartite"``, the default, ``"argmax"``, ``"low_quality"`` or ``"none"``; see above.
        ignore_boxes: Regions that are neither a gt nor background, such as the crowds of COCO, in the unit of
            the anchors: ``[B, K, 4]``, or a list of B tensors ``[K_i, 4]``. A box without area, or with a NaN
            or infinite corner, is padding and may stand anywhere. Default: None: no anchor is ignored.
        ignore_threshold: 0..1, rounded in the same way. 0 ignores every anchor that overlaps a region.

    Returns:
        ``(matched_idxs [B, A] int64, matched_ious [B, A])``. `matched_idxs` holds the row of the gt among
        the boxes of its image, -1 for background, or -2 between the two thresholds and for an ignored
        anchor. `matched_ious` holds the IoU with that gt; for an anchor without a match it is the highest
        IoU with any gt. A gt or an anchor without area, or with a NaN or infinite corner, matches nothing;
        such an anchor has -1 and IoU 0. In an image without ground truths all anchors have -1, or -2 where
        they are ignored, and IoU 0. Memory grows linearly with anchors, ground truths and ignore boxes.

    Raises:
        TypeError, ValueError: a threshold or `force_match` is not valid, `gt_counts` is given for a list, or
            a list does not hold tensors of boxes.
        RuntimeError: a tensor has a wrong shape, dtype or device.

    Source:
        SSD (arXiv:1512.02325), section 2.2. ``"bipartite"`` is the book's `assign_anchor_to_bbox`.
        `ignore_boxes` is the rule of mmdet's `MaxIoUAssigner` with `ignore_wrt_candidates`. There, the share
        must be more than `ignore_iof_thr`, and an ignored anchor is not matched to a gt either.

    Example:
        >>> anchors = torch.tensor([[0., 0., 4., 4.], [4., 0., 8., 4.], [0., 4., 4., 8.]])
        >>> gt_boxes = torch.tensor([[[0., 0., 4., 3.], [5., 5., 8., 8.]]])
        >>> assign_anchors(anchors, gt_boxes)
        (tensor([[ 0,  1, -1]]), tensor([[0.7500, 0.0000, 0.0000]]))
        >>> assign_anchors(anchors, gt_boxes, torch.tensor([1]))[0]
        tensor([[ 0, -1, -1]])
        >>> crowd = torch.tensor([[[4., 0., 8., 3.]]])
        >>> assign_anchors(anchors, gt_boxes, torch.tensor([1]), ignore_boxes=crowd)[0]
        tensor([[ 0, -2, -1]])
    """
    op = "assign_anchors"
    check_tensors(op, anchors=anchors)
    if not isinstance(gt_boxes, Tensor):
        gt_boxes, gt_counts = _concatenate(op, anchors, gt_boxes, gt_counts)
    if gt_counts is not None:
        check_tensors(op, gt_counts=gt_counts)
    threshold = as_fraction(op, "iou_threshold", iou_threshold)
    background = (
        threshold
        if background_threshold is None
        else as_fraction(op, "background_threshold", background_threshold)
    )
    if background > threshold:
        raise ValueError(
            f"{op}: background_threshold must be at most iou_threshold, {threshold}, got {background}"
        )
    force = as_choice(op, "force_match", force_match, _FORCE_MATCH)
    regions = _as_regions(op, anchors, ignore_boxes)
    share = as_fraction(op, "ignore_threshold", ignore_threshold)
    return torch.ops.ssd_ops.assign_anchors.default(
        anchors, gt_boxes, gt_counts, threshold, background, force, regions, share
    )


def _concatenate(
    op: str, anchors: Tensor, gt_boxes: Tensor | Sequence[Tensor], gt_counts: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Turns a list of boxes into boxes [N, 4] and gt_counts [B + 1]."""
    _check_list(op, "gt_boxes", gt_boxes, "G", 4)
    if gt_counts is not None:
        raise ValueError(f"{op}: gt_counts must be None for a list of gt_boxes")
    offsets = [0]
    for boxes in gt_boxes:
        offsets.append(offsets[-1] + boxes.shape[0])
    together = torch.cat(list(gt_boxes)) if gt_boxes else anchors.new_zeros((0, 4))
    return together, torch.tensor(offsets, dtype=torch.int64, device=together.device)


def _check_list(op: str, name: str, images: object, count: str, width: int) -> None:
    """That it is a list of tensors [G_i, width]; `count` is the letter that messages have for G."""
    if isinstance(images, str) or not isinstance(images, Sequence):
        raise TypeError(
            f"{op}: {name} must be a tensor or a list of tensors, got {type(images).__name__}"
        )
    for rows in images:
        check_tensors(op, **{name: rows})
        if rows.ndim != 2 or rows.shape[1] != width:
            wanted = f"[{count}, {width}] each"
            raise ValueError(f"{op}: {name} must be {wanted}, got {list(rows.shape)}")


def _padded(images: Sequence[Tensor], fill: float, empty: Tensor) -> Tensor:
    """[B, G, N] of a list of [G_i, N], filled up at the end; `empty` [0, 0, N] of no image.

    One call puts all of it together: `pad_sequence` makes a copy for each image, and the offsets of
    images one after another would have to be sent to the device.
    """
    if not images:
        return empty
    longest = max(rows.shape[0] for rows in images)
    padding = images[0].new_full((longest, images[0].shape[1]), fill)
    parts = []
    for rows in images:
        parts += [rows, padding[rows.shape[0] :]]
    return torch.cat(parts).unflatten(0, (len(images), longest))


def _as_regions(
    op: str, anchors: Tensor, ignore_boxes: Tensor | Sequence[Tensor] | None
) -> Tensor | None:
    if ignore_boxes is None or isinstance(ignore_boxes, Tensor):
        return ignore_boxes
    _check_list(op, "ignore_boxes", ignore_boxes, "K", 4)
    return _padded(ignore_boxes, 0.0, anchors.new_zeros((0, 0, 4)))


@torch.library.register_fake("ssd_ops::assign_anchors")
def _(
    anchors: Tensor,
    gt_boxes: Tensor,
    gt_counts: Tensor,
    _threshold: float,
    _background: float,
    _force: int,
    ignore_boxes: Tensor | None,
    _share: float,
) -> tuple[Tensor, Tensor]:
    num_images = gt_boxes.shape[0] if gt_boxes.ndim == 3 else gt_counts.shape[0] - 1
    shape = (num_images, anchors.shape[-2])
    regions = () if ignore_boxes is None else (ignore_boxes,)
    return (
        anchors.new_empty(shape, dtype=torch.int64),
        anchors.new_empty(shape, dtype=real_dtype(anchors, gt_boxes, *regions)),
    )


def multibox_target(
    anchors: Tensor,
    labels: Tensor | Sequence[Tensor],
    cls_preds: Tensor | None = None,
    *,
    iou_threshold: float = 0.5,
    variances: Sequence[float] | None = None,
    negative_mining_ratio: float | None = None,
    negative_mining_threshold: float = 0.5,
    min_negatives: int = 0,
    ignore_label: int = -1,
    semantics: str = "d2l",
    coding: str = "center",
    ignore_boxes: Tensor | Sequence[Tensor] | None = None,
    ignore_threshold: float = 0.5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Makes the training targets of each anchor: its offsets to a ground truth (gt), and its class.

    With ``semantics="d2l"`` an anchor is matched to the gt with the highest IoU (the first on ties) if that
    IoU is at least `iou_threshold`. After that each gt is forced on one anchor: of all free pairs of an
    anchor and a gt, the pair with the highest IoU is matched, even if that IoU is 0 (ties: lowest anchor,
    then lowest gt). This repeats until no gt or no anchor is left. docs/semantics.md compares the other
    two semantics.

    Args:
        anchors: ``[1, A, 4]`` or ``[A, 4]`` xyxy, in fractions of the image.
        labels: The ground truths: ``[B, G, 5]`` rows (class, x1, y1, x2, y2), class from 0, or a list of B
            tensors ``[G_i, 5]``. A row with a negative class is padding and may stand anywhere. So is a row
            with a NaN or infinite number, with x2 < x1 or y2 < y1, or with a class of 2^60 or more. bfloat16
            rounds a class above 256, and float16 one above 2,048. `pack_targets` makes labels of those of
            torchvision.
        cls_preds: ``[B, C + 1, A]`` logits, background first. Needed only with `negative_mining_ratio`.
        iou_threshold: 0..1, rounded to the dtype of the arithmetic.
        variances: The four offsets are divided by these numbers. Default: None, which means those of SSD,
            (0.1, 0.1, 0.2, 0.2), with ``coding="center"``, and 1 with the other codings.
        negative_mining_ratio: Negatives for each positive, 0 or more. Default: None: every anchor without
            a match is a negative.
        negative_mining_threshold: 0..1. An anchor that has this IoU or more with a gt is never mined as a
            negative.
        min_negatives: The least number of negatives that are mined in each image, also without gts.
        ignore_label: The class label of an anchor that is neither matched nor mined, and of one that
            `ignore_boxes` ignore. Default: -1.
        semantics: The rules for matching and encoding:

            - ``"d2l"``: the rules of "Dive into Deep Learning", described above. The logarithm of the
              offsets is taken of the size ratio + 1e-6, in the other two of the ratio itself.
            - ``"mxnet"``: A forced match needs an IoU above 1e-6, every other match an IoU above the
              threshold. In an image without gts every anchor has `ignore_label`.
            - ``"torchvision"``: Each gt is forced on its best anchor, and a later gt replaces an earlier
              one. A gt without area is padding.
        coding: What the offsets are: ``"center"``, the default, ``"linear"`` or ``"distance"``, see
            `encode_boxes`. The 1e-6 of ``"d2l"`` is only in ``"center"``.
        ignore_boxes: Regions that are neither a gt nor background, such as the crowds of COCO, in the unit of
            the anchors: ``[B, K, 4]``, or a list of B tensors ``[K_i, 4]``. An anchor without a match is
            ignored if it overlaps such a box of its image, and at least `ignore_threshold` of its own area
            lies there: its class label is `ignore_label`, and it is never mined. A box without area, or with
            a NaN or infinite corner, is padding and may stand anywhere. Default: None: no anchor is ignored.
        ignore_threshold: 0..1, rounded like `iou_threshold`. 0 ignores every anchor that overlaps a region.

    Returns:
        ``(bbox_offsets [B, 4A], bbox_masks [B, 4A], cls_labels [B, A] int64)``. Offsets are encoded boxes,
        and 0 for an anchor without a match. Masks are 1 for the four numbers of a matched anchor, else 0.
        Labels are class + 1, or 0 for background. In an image without gts all anchors are background. If
        there are more gts than anchors, the gts that are left when no anchor is free have no match. An
        anchor without area or with a NaN or infinite corner matches nothing. The mined negatives are
        those with the lowest probability of background; if there are too few candidates, all are taken.

    Raises:
        TypeError, ValueError: a threshold, variance, number or the semantics is not valid, `cls_preds` is
            missing, or a list does not hold tensors of rows.
        RuntimeError: a tensor has a wrong shape, dtype or device.

    Source:
        Drop-in for the book's `multibox_target` (14.4). There, padding rows take anchors from real gts,
        and an image without gts is an error. ``"mxnet"``: MultiBoxTarget of MXNet 1.9 on the CPU. It stops
        at the first padding row, and aborts if there are fewer candidates than negatives to mine.
        ``"torchvision"``: its SSD. No semantics makes a matrix of anchors x gts. `ignore_boxes`: see
        `assign_anchors`.

    Example:
        >>> anchors = torch.tensor([[[0., 0., 0.5, 0.5], [0.5, 0.5, 1., 1.]]])
        >>> labels = torch.tensor([[[2, 0.5, 0.5, 1., 1.], [-1, 0, 0, 0, 0]]])
        >>> offsets, masks, cls_labels = multibox_target(anchors, labels)
        >>> masks, cls_labels
        (tensor([[0., 0., 0., 0., 1., 1., 1., 1.]]), tensor([[0, 3]]))
        >>> crowd = torch.tensor([[0., 0., 1., 0.3]])
        >>> multibox_target(anchors, [labels[0, :1]], ignore_boxes=[crowd])[2]
        tensor([[-1,  3]])
    """
    op = "multibox_target"
    check_tensors(op, anchors=anchors)
    if not isinstance(labels, Tensor):
        _check_list(op, "labels", labels, "G", 5)
        labels = _padded(labels, -1.0, anchors.new_zeros((0, 0, 5)))
    if cls_preds is not None:
        check_tensors(op, cls_preds=cls_preds)
    ratio = -1.0
    if negative_mining_ratio is not None:
        ratio = as_ratio(op, "negative_mining_ratio", negative_mining_ratio)
        if cls_preds is None:
            raise ValueError(f"{op}: cls_preds must be given for negative_mining_ratio, got None")
    number = as_choice(op, "coding", coding, CODING)
    return torch.ops.ssd_ops.multibox_target.default(
        anchors,
        labels,
        cls_preds,
        as_fraction(op, "iou_threshold", iou_threshold),
        as_variances(op, variances, number),
        ratio,
        as_fraction(op, "negative_mining_threshold", negative_mining_threshold),
        as_min_negatives(op, min_negatives),
        as_integer(op, "ignore_label", ignore_label),
        as_choice(op, "semantics", semantics, SEMANTICS),
        number,
        _as_regions(op, anchors, ignore_boxes),
        as_fraction(op, "ignore_threshold", ignore_threshold),
    )


@torch.library.register_fake("ssd_ops::multibox_target")
def _(
    anchors: Tensor, labels: Tensor, cls_preds: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    *_, ignore_boxes, _share = settings
    num_images, num_anchors = labels.shape[0], anchors.shape[-2]
    optional = (tensor for tensor in (cls_preds, ignore_boxes) if tensor is not None)
    real = real_dtype(anchors, labels, *optional)
    return (
        anchors.new_empty((num_images, 4 * num_anchors), dtype=real),
        anchors.new_empty((num_images, 4 * num_anchors), dtype=real),
        anchors.new_empty((num_images, num_anchors), dtype=torch.int64),
    )


@overload
def pack_targets(
    targets: Sequence[Mapping[str, Tensor]],
    image_sizes: Sequence[Sequence[float]] | Tensor | None,
    *,
    padded: Literal[True] = True,
    first_class: int = 1,
) -> Tensor: ...
@overload
def pack_targets(
    targets: Sequence[Mapping[str, Tensor]],
    image_sizes: Sequence[Sequence[float]] | Tensor | None,
    *,
    padded: Literal[False],
    first_class: int = 1,
) -> list[Tensor]: ...
def pack_targets(
    targets: Sequence[Mapping[str, Tensor]],
    image_sizes: Sequence[Sequence[float]] | Tensor | None,
    *,
    padded: bool = True,
    first_class: int = 1,
) -> Tensor | list[Tensor]:
    """Makes the labels of `multibox_target` from targets as torchvision's detectors take them.

    Nothing reads the values of the targets, so no device is waited for.

    Args:
        targets: For each of the B images a dict with ``"boxes"`` ``[G_i, 4]`` xyxy and ``"labels"``
            ``[G_i]``, integers. ``"iscrowd"`` ``[G_i]``, as COCO's targets have it, may be there too. Other
            keys are not read.
        image_sizes: (height, width) of each image, in the unit of its boxes: a list, or ``[B, 2]``. The boxes
            are divided by it, as the anchors of this library are fractions of the image. None leaves the
            boxes as they are, for anchors in the same unit.
        padded: True, the default: one tensor, filled up with rows of -1. False: a list.
        first_class: The label of the first class. Default: 1, as for torchvision, where 0 is the background.
            A row of a smaller label becomes padding. Give 0 for labels that count from 0.

    Returns:
        Rows (class, x1, y1, x2, y2), class from 0: ``[B, G, 5]`` with the largest G_i as G, or a list of
        tensors ``[G_i, 5]``. They are float32, or float64 where the boxes are. A crowd of class c is a row
        with the class -2 - c, which `multibox_target` takes for padding. The boxes of the crowds are
        ``labels[..., 1:] * (labels[..., :1] < -1)``: pass them as its `ignore_boxes`.

    Raises:
        TypeError, ValueError: targets, sizes or the first class are not of the form above.

    Source:
        The targets of torchvision.models.detection and of its references for COCO.

    Example:
        >>> boxes = torch.tensor([[30., 20., 60., 80.], [0., 0., 120., 50.]])
        >>> target = {"boxes": boxes, "labels": torch.tensor([3, 1]), "iscrowd": torch.tensor([0, 1])}
        >>> labels = pack_targets([target], [(100, 120)])
        >>> labels
        tensor([[[ 2.0000,  0.2500,  0.2000,  0.5000,  0.8000],
                 [-2.0000,  0.0000,  0.0000,  1.0000,  0.5000]]])
        >>> labels[..., 1:] * (labels[..., :1] < -1)
        tensor([[[0.0000, 0.0000, 0.0000, 0.0000],
                 [0.0000, 0.0000, 1.0000, 0.5000]]])
    """
    op = "pack_targets"
    first_class = as_integer(op, "first_class", first_class)
    if isinstance(targets, str) or not isinstance(targets, Sequence):
        raise TypeError(f"{op}: targets must be a list of dicts, got {type(targets).__name__}")
    for number, target in enumerate(targets):
        _check_target(op, number, target)
    sizes = None if image_sizes is None else _as_sizes(op, image_sizes, len(targets))
    if not targets:
        return torch.zeros((0, 0, 5)) if padded else []

    # Of all images at once, cut into images again at the end.
    boxes = torch.cat([target["boxes"] for target in targets]).detach()
    boxes = boxes.to(real_dtype(boxes))
    counts = [target["boxes"].shape[0] for target in targets]
    if sizes is not None:
        # A list of numbers is copied to a GPU without waiting for it.
        sizes = sizes.to(boxes.device, boxes.dtype, non_blocking=True).flip(1).repeat(1, 2)
        boxes = boxes / torch.cat([w.expand(n, 4) for w, n in zip(sizes, counts, strict=True)])
    classes = torch.cat([target["labels"] for target in targets]).long()
    classes = (classes - first_class).clamp(min=-1)
    if any("iscrowd" in target for target in targets):
        marks = [target.get("iscrowd", torch.zeros_like(target["labels"])) for target in targets]
        classes = torch.where(torch.cat(marks) != 0, -2 - classes, classes)  # padding stays -1
    rows = torch.cat((classes[:, None].to(boxes.dtype), boxes), dim=1).split(counts)
    return _padded(rows, -1.0, boxes) if padded else list(rows)


def _check_target(op: str, number: int, target: object) -> None:
    if not isinstance(target, Mapping):
        kind = type(target).__name__
        raise TypeError(f"{op}: targets[{number}] must be a dict, got {kind}")
    for key in ("boxes", "labels", "iscrowd"):
        if key not in target:
            if key == "iscrowd":
                continue
            raise ValueError(f"{op}: targets[{number}] must have {key!r}, got {list(target)}")
        if not isinstance(target[key], Tensor):
            check_tensors(op, **{f"targets[{number}][{key!r}]": target[key]})
    boxes = target["boxes"]
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        shape = list(boxes.shape)
        raise ValueError(f"{op}: targets[{number}]['boxes'] must be [G, 4], got {shape}")
    for key in ("labels", "iscrowd"):
        column = target.get(key, target["labels"])
        if column.ndim != 1 or column.shape[0] != boxes.shape[0] or column.is_floating_point():
            wanted = f"integers [{boxes.shape[0]}], one for each box"
            got = f"{column.dtype} {list(column.shape)}"
            raise ValueError(f"{op}: targets[{number}][{key!r}] must be {wanted}, got {got}")


def _as_sizes(op: str, sizes: Sequence[Sequence[float]] | Tensor, count: int) -> Tensor:
    """The (height, width) [B, 2] of B images; of a tensor only the shape is looked at."""
    wanted = f"{op}: image_sizes must be [{count}, 2], (height, width) of each image"
    if isinstance(sizes, Tensor):
        if sizes.shape != (count, 2):
            raise ValueError(f"{wanted}, got {list(sizes.shape)}")
        return sizes
    if isinstance(sizes, str) or not isinstance(sizes, Sequence) or len(sizes) != count:
        raise ValueError(f"{wanted}, got {sizes!r}")
    pairs = [as_positives(op, "image_sizes", as_tuple_of(op, "image_sizes", s, 2)) for s in sizes]
    return torch.tensor(pairs, dtype=torch.float64).reshape(count, 2)
