"""The public ops: typed Python functions over `torch.ops.ssd_ops`, each followed by its fake kernel.

All of them: take float16, bfloat16, float32 and float64 tensors in any mix, contiguous or not; compute
and return float32, or float64 where an input is float64; give the same bits on every run and for any
number of threads; carry no gradient (outputs are detached); can be compiled with `fullgraph=True` and
exported; and are the same under autocast: half-precision inputs are computed with in float32 anyway.

Tensors that do not fit (rank, dtype, device, sizes) raise `RuntimeError`, whatever Python can see by
itself `TypeError` or `ValueError`, always as `op: argument must be X, got Y`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssd_ops import _ext  # loading registers the ops

VARIANCES = (0.1, 0.1, 0.2, 0.2)
# The numbers that stand for the names in the schemas.
_SEMANTICS = {"d2l": 0, "mxnet": 1, "torchvision": 2}
_FORCE_MATCH = {"none": 0, "bipartite": 1, "argmax": 2, "low_quality": 3}
_ACTIVATION = {"none": 0, "softmax": 1, "sigmoid": 2}
_LISTS = (list, tuple, Sequence, Tensor)  # the common ones first: the abstract one is slow to ask


class Detections(NamedTuple):
    """What `detect` and `multiclass_nms` find in B images, K places each, best first.

    Image b has found ``counts[b]``; the places after them hold 0, 0, -1 and -1.
    """

    boxes: Tensor  # [B, K, 4] xyxy
    scores: Tensor  # [B, K]
    labels: Tensor  # [B, K] int64, the class from 0
    indices: Tensor  # [B, K] int64, which anchor or box it was
    counts: Tensor  # [B] int64


def _check_tensors(op: str, **tensors: object) -> None:
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")


def _number(op: str, name: str, value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(f"{op}: {name} must be a number, got {value!r}") from None


def _fraction(op: str, name: str, value: object) -> float:
    number = _number(op, name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{op}: {name} must be in 0..1, got {number}")
    return number


def _numbers(op: str, name: str, values: Sequence[object] | Tensor) -> list[float]:
    try:
        return list(map(float, values))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return [_number(op, name, value) for value in values]  # says which one


def _positives(op: str, name: str, values: object) -> list[float]:
    """A non-empty list of positive, finite numbers."""
    if isinstance(values, str) or not isinstance(values, _LISTS):
        raise TypeError(f"{op}: {name} must be a list of numbers, got {type(values).__name__}")
    numbers = _numbers(op, name, values)
    if not numbers:
        raise ValueError(f"{op}: {name} must be at least one number, got none")
    for number in numbers:
        if not 0 < number < math.inf:
            raise ValueError(f"{op}: {name} must be positive and finite, got {number}")
    return numbers


def _tuple_of(op: str, name: str, values: object, count: int) -> list[float]:
    if isinstance(values, str) or not isinstance(values, _LISTS) or len(values) != count:
        raise ValueError(f"{op}: {name} must be {count} numbers, got {values!r}")
    return _numbers(op, name, values)


def _variances(op: str, values: object) -> list[float]:
    return _positives(op, "variances", _tuple_of(op, "variances", values, 4))


def _choice(op: str, name: str, value: object, numbers: Mapping[str, int]) -> int:
    if not isinstance(value, str) or value not in numbers:
        *names, last = map(repr, numbers)
        raise ValueError(f"{op}: {name} must be {', '.join(names)} or {last}, got {value!r}")
    return numbers[value]


def _integer(op: str, name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{op}: {name} must be an int, got {value!r}")
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{op}: {name} must be an int of 64 bits, got {value}")
    return value


def _ratio(op: str, name: str, value: object) -> float:
    ratio = _number(op, name, value)
    if not 0 <= ratio < math.inf:
        raise ValueError(f"{op}: {name} must be 0 or more and finite, got {ratio}")
    return ratio


def _topk(op: str, value: object) -> int:
    topk = _integer(op, "topk", value)
    if topk < 1 and topk != -1:
        raise ValueError(f"{op}: topk must be 1 or more, or -1 for all, got {topk}")
    return topk


def _negatives(op: str, value: object) -> int:
    count = _integer(op, "min_negatives", value)
    if count < 0:
        raise ValueError(f"{op}: min_negatives must be 0 or more, got {count}")
    return count


def _real(*tensors: Tensor) -> torch.dtype:
    """The dtype of the arithmetic, and of floating results."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def multibox_prior(
    feature_map: Tensor,
    sizes: Sequence[float],
    ratios: Sequence[float],
    *,
    steps: Sequence[float] | None = None,
    offsets: Sequence[float] = (0.5, 0.5),
    clip: bool = False,
) -> Tensor:
    """Anchors of one feature map: one box per cell, size and ratio.

    Args:
        feature_map: ``[..., H, W]`` floating; only its shape, dtype and device are used.
        sizes: S scales, as fractions of the image's height, greater than 0.
        ratios: R aspect ratios, width to height in pixels of a square image, greater than 0.
        steps: (y, x) distance of neighbouring cells, in fractions of the image. None (the default)
            means (1 / H, 1 / W): the cells fill the image.
        offsets: (y, x) place of the center in its cell, in cells, 0..1. Default: the middle.
        clip: Cut the boxes to 0..1. Off by default, as in the book and in MXNet.

    Returns:
        ``[1, H * W * (S + R - 1), 4]`` xyxy in fractions of the image, float32 (float64 for a float64
        feature map). Cells row by row; in a cell every size with the first ratio, then the first size
        with each other ratio. A box is ``s * sqrt(r) * H / W`` wide and ``s / sqrt(r)`` high.

    Raises:
        TypeError, ValueError: a list is empty, or a number is not positive.
        RuntimeError: the feature map has fewer than two dimensions or is not floating.

    Source:
        Drop-in for the function of this name in "Dive into Deep Learning" (14.4); `steps`, `offsets`
        and `clip` are those of MXNet's MultiBoxPrior. Bit-equal to the book's in float32, but for
        ratios whose square root torch rounds to the neighbouring number.

    Example:
        >>> multibox_prior(torch.zeros(1, 3, 2, 4), [0.75, 0.5], [1, 2, 0.5])[0, 0]
        tensor([-0.0625, -0.1250,  0.3125,  0.6250])
    """
    _check_tensors("multibox_prior", feature_map=feature_map)
    return _priors(
        "multibox_prior",
        [feature_map],
        [sizes],
        [ratios],
        None if steps is None else [steps],
        offsets,
        clip,
    )


def multibox_priors(
    feature_maps: Sequence[Tensor],
    sizes: Sequence[Sequence[float]],
    ratios: Sequence[Sequence[float]],
    *,
    steps: Sequence[Sequence[float]] | None = None,
    offsets: Sequence[float] = (0.5, 0.5),
    clip: bool = False,
) -> Tensor:
    """Anchors of all levels of a detector in one call.

    Args:
        feature_maps: L tensors ``[..., H_l, W_l]``, on one device.
        sizes: For each level its list of sizes, as in `multibox_prior`.
        ratios: For each level its list of ratios.
        steps: For each level (y, x), or None (the default) for (1 / H, 1 / W).
        offsets: (y, x) place of the center in its cell, for all levels.
        clip: Cut the boxes to 0..1.

    Returns:
        ``[1, A, 4]``: what `multibox_prior` returns for each level, one after another.

    Raises:
        TypeError, ValueError, RuntimeError: as `multibox_prior`, or the lists differ in length.

    Example:
        >>> maps = [torch.zeros(1, 1, n, n) for n in (32, 16, 8, 4, 1)]
        >>> multibox_priors(maps, [[0.2, 0.272]] * 5, [[1, 2, 0.5]] * 5).shape
        torch.Size([1, 5444, 4])
    """
    op = "multibox_priors"
    if isinstance(feature_maps, Tensor) or not isinstance(feature_maps, Sequence):
        raise TypeError(
            f"{op}: feature_maps must be a list of tensors, got {type(feature_maps).__name__}"
        )
    if not feature_maps:
        raise ValueError(f"{op}: feature_maps must be at least one tensor, got none")
    for feature_map in feature_maps:
        _check_tensors(op, feature_maps=feature_map)
    for name, values in (("sizes", sizes), ("ratios", ratios), ("steps", steps)):
        if values is not None and len(values) != len(feature_maps):
            raise ValueError(
                f"{op}: {name} must be {len(feature_maps)} lists, one a level, got {len(values)}"
            )
    return _priors(op, feature_maps, sizes, ratios, steps, offsets, clip)


def _priors(op, feature_maps, sizes, ratios, steps, offsets, clip) -> Tensor:
    all_sizes = [_positives(op, "sizes", level) for level in sizes]
    all_ratios = [_positives(op, "ratios", level) for level in ratios]
    all_steps = [_positives(op, "steps", _tuple_of(op, "steps", level, 2)) for level in steps or ()]
    return torch.ops.ssd_ops.multibox_priors(
        list(feature_maps),
        [size for level in all_sizes for size in level],
        [len(level) for level in all_sizes],
        [ratio for level in all_ratios for ratio in level],
        [len(level) for level in all_ratios],
        [step for level in all_steps for step in level],
        [_fraction(op, "offsets", offset) for offset in _tuple_of(op, "offsets", offsets, 2)],
        bool(clip),
    )


@torch.library.register_fake("ssd_ops::multibox_priors")
def _(feature_maps, sizes, size_counts, ratios, ratio_counts, steps, offsets, clip):
    count = 0
    for feature_map, num_sizes, num_ratios in zip(
        feature_maps, size_counts, ratio_counts, strict=True
    ):
        count += feature_map.shape[-2] * feature_map.shape[-1] * (num_sizes + num_ratios - 1)
    return feature_maps[0].new_empty((1, count, 4), dtype=_real(*feature_maps))


def box_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Intersection over union of every pair of boxes.

    Args:
        boxes1: ``[..., N, 4]`` xyxy, any unit.
        boxes2: ``[..., M, 4]`` in the same unit; leading dimensions are broadcast.

    Returns:
        ``[..., N, M]`` in 0..1; 0, never NaN, where boxes do not overlap, one has no area, or a corner
        is NaN.

    Raises:
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        Drop-in for `torchvision.ops.box_iou` (which gives NaN for two boxes without area, and subtracts
        half-precision corners in half precision: there the IoU of a box with itself may be 1.0009).

    Example:
        >>> box_iou(torch.tensor([[0., 0., 2., 2.]]), torch.tensor([[1., 0., 3., 2.], [5., 5., 6., 6.]]))
        tensor([[0.3333, 0.0000]])
    """
    _check_tensors("box_iou", boxes1=boxes1, boxes2=boxes2)
    lead1, lead2 = boxes1.shape[:-2], boxes2.shape[:-2]
    if lead1 != lead2 and boxes1.ndim > 1 and boxes2.ndim > 1:
        try:
            lead = torch.broadcast_shapes(lead1, lead2)
        except RuntimeError:
            raise ValueError(
                f"box_iou: boxes2 must have leading dimensions that broadcast with {list(boxes1.shape)}, "
                f"got {list(boxes2.shape)}"
            ) from None
        boxes1 = boxes1.expand(*lead, *boxes1.shape[-2:])
        boxes2 = boxes2.expand(*lead, *boxes2.shape[-2:])
    return torch.ops.ssd_ops.box_iou(boxes1, boxes2)


@torch.library.register_fake("ssd_ops::box_iou")
def _(boxes1, boxes2):
    return boxes1.new_empty((*boxes1.shape[:-1], boxes2.shape[-2]), dtype=_real(boxes1, boxes2))


def encode_boxes(
    boxes: Tensor, anchors: Tensor, *, variances: Sequence[float] = VARIANCES, eps: float = 0.0
) -> Tensor:
    """Offsets of boxes to anchors: distance of the centers in anchor sizes, and log size ratio.

    Args:
        boxes: ``[..., A, 4]`` xyxy.
        anchors: ``[A, 4]``, ``[1, A, 4]`` or the shape of `boxes`; xyxy in the same unit.
        variances: What the four offsets are divided by, greater than 0.
        eps: Added inside the logarithm. 0 by default; "Dive into Deep Learning" uses 1e-6.

    Returns:
        The shape of `boxes`: ``(dx / w / v0, dy / h / v1, log(eps + bw / w) / v2, log(eps + bh / h) / v3)``,
        with w, h of the anchor. A box or anchor without area gives infinities or NaN.

    Raises:
        ValueError: a variance is not positive, or `eps` is negative.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        SSD (arXiv:1512.02325), equation 2; the book's `offset_boxes` (other argument order).

    Example:
        >>> encode_boxes(torch.tensor([[0., 0., 2., 2.]]), torch.tensor([[1., 1., 3., 3.]]))
        tensor([[-5., -5.,  0.,  0.]])
    """
    op = "encode_boxes"
    _check_tensors(op, boxes=boxes, anchors=anchors)
    eps = _number(op, "eps", eps)
    if not 0 <= eps < math.inf:
        raise ValueError(f"{op}: eps must be 0 or more and finite, got {eps}")
    return torch.ops.ssd_ops.encode_boxes(boxes, anchors, _variances(op, variances), eps)


@torch.library.register_fake("ssd_ops::encode_boxes")
def _(boxes, anchors, variances, eps):
    return boxes.new_empty(boxes.shape, dtype=_real(boxes, anchors))


def decode_boxes(
    offsets: Tensor, anchors: Tensor, *, variances: Sequence[float] = VARIANCES, clip: bool = False
) -> Tensor:
    """The boxes that offsets to anchors stand for: the inverse of `encode_boxes` with `eps` 0.

    Args:
        offsets: ``[..., A, 4]``.
        anchors: ``[A, 4]``, ``[1, A, 4]`` or the shape of `offsets`; xyxy.
        variances: What the offsets were divided by, greater than 0.
        clip: Cut the boxes to 0..1. Off by default.

    Returns:
        Boxes xyxy, of the shape of `offsets`, in the unit of `anchors`. An offset too large for exp
        gives an infinite box.

    Raises:
        ValueError: a variance is not positive.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        The book's `offset_inverse` (other argument order); exp is within 1 ulp of libm's, and the same
        bits on every device.

    Example:
        >>> decode_boxes(torch.tensor([[-5., -5., 0., 0.]]), torch.tensor([[1., 1., 3., 3.]]))
        tensor([[0., 0., 2., 2.]])
    """
    op = "decode_boxes"
    _check_tensors(op, offsets=offsets, anchors=anchors)
    return torch.ops.ssd_ops.decode_boxes(offsets, anchors, _variances(op, variances), bool(clip))


@torch.library.register_fake("ssd_ops::decode_boxes")
def _(offsets, anchors, variances, clip):
    return offsets.new_empty(offsets.shape, dtype=_real(offsets, anchors))


def assign_anchors(
    anchors: Tensor,
    gt_boxes: Tensor | Sequence[Tensor],
    gt_counts: Tensor | None = None,
    *,
    iou_threshold: float = 0.5,
    background_threshold: float | None = None,
    force_match: str = "bipartite",
) -> tuple[Tensor, Tensor]:
    """Which ground truth each anchor stands for, for a batch of images of any number of objects.

    An anchor takes its best ground truth (the first on ties) if their IoU is at least `iou_threshold`;
    with an IoU from `background_threshold` on it is left out, below it is background. `force_match`
    then sees to it that ground truths are not left without an anchor, and overwrites:

    - ``"bipartite"``: of all free pairs the one with the highest IoU is matched, whatever that is
      (ties: lowest anchor, then lowest ground truth), until ground truths or anchors are used up.
    - ``"argmax"``: each ground truth takes its best anchor (the first on ties), whatever the IoU; of
      two that want one anchor the later gets it. torchvision's `SSDMatcher`.
    - ``"low_quality"``: every anchor that is a ground truth's best, or ties with it, and overlaps it,
      keeps its own best ground truth. `Matcher` of torchvision and detectron2 with low-quality
      matches, where a ground truth that overlaps nothing would claim every anchor.
    - ``"none"``: the thresholds alone.

    Args:
        anchors: ``[1, A, 4]`` or ``[A, 4]`` xyxy, any unit.
        gt_boxes: Boxes of the ground truths: ``[B, G, 4]``, padded at the end of each image; or a list
            of B tensors ``[G_i, 4]``; or ``[N, 4]``, those of all images one after another.
        gt_counts: int64. For padded boxes ``[B]``, how many of each image are real (None: all G), for
            ``[N, 4]`` the offsets ``[B + 1]``: image i has the rows from ``gt_counts[i]`` to
            ``gt_counts[i + 1]``. Not for a list. The values are never read on the host; one outside
            the boxes is cut to them.
        iou_threshold: 0..1, rounded like the next to the dtype of the arithmetic.
        background_threshold: 0..`iou_threshold`. None, the default: the same, nothing in between.
        force_match: See above.

    Returns:
        ``(matched_idxs [B, A] int64, matched_ious [B, A])``: the row of the ground truth in its image,
        or -1 for background and -2 between the thresholds; the IoU with it, or with the best one where
        none is matched. A ground truth without area, or with a NaN or infinite corner, matches nothing,
        and neither does such an anchor, which is -1 with IoU 0, as all are in an image without ground
        truths. Memory is linear in anchors and ground truths.

    Raises:
        TypeError, ValueError: a threshold or a name is none.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        SSD (arXiv:1512.02325) 2.2; the book's `assign_anchor_to_bbox` (``"bipartite"``); torchvision.

    Example:
        >>> anchors = torch.tensor([[0., 0., 4., 4.], [4., 0., 8., 4.], [0., 4., 4., 8.]])
        >>> gt_boxes = torch.tensor([[[0., 0., 4., 3.], [5., 5., 8., 8.]]])
        >>> assign_anchors(anchors, gt_boxes)
        (tensor([[ 0,  1, -1]]), tensor([[0.7500, 0.0000, 0.0000]]))
        >>> assign_anchors(anchors, gt_boxes, torch.tensor([1]))[0]
        tensor([[ 0, -1, -1]])
    """
    op = "assign_anchors"
    _check_tensors(op, anchors=anchors)
    if not isinstance(gt_boxes, Tensor):
        gt_boxes, gt_counts = _concatenate(op, anchors, gt_boxes, gt_counts)
    if gt_counts is not None:
        _check_tensors(op, gt_counts=gt_counts)
    threshold = _fraction(op, "iou_threshold", iou_threshold)
    background = (
        threshold
        if background_threshold is None
        else _fraction(op, "background_threshold", background_threshold)
    )
    if background > threshold:
        raise ValueError(
            f"{op}: background_threshold must be at most iou_threshold, {threshold}, got {background}"
        )
    force = _choice(op, "force_match", force_match, _FORCE_MATCH)
    return torch.ops.ssd_ops.assign_anchors(
        anchors, gt_boxes, gt_counts, threshold, background, force
    )


def _concatenate(op, anchors, gt_boxes, gt_counts) -> tuple[Tensor, Tensor]:
    """The boxes [N, 4] of a list, and the offsets [B + 1] of its images."""
    if isinstance(gt_boxes, str) or not isinstance(gt_boxes, Sequence):
        raise TypeError(
            f"{op}: gt_boxes must be a tensor or a list of tensors, got {type(gt_boxes).__name__}"
        )
    if gt_counts is not None:
        raise ValueError(f"{op}: gt_counts must be None for a list of gt_boxes")
    offsets = [0]
    for boxes in gt_boxes:
        _check_tensors(op, gt_boxes=boxes)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{op}: gt_boxes must be [G, 4] each, got {list(boxes.shape)}")
        offsets.append(offsets[-1] + boxes.shape[0])
    together = torch.cat(list(gt_boxes)) if gt_boxes else anchors.new_zeros((0, 4))
    return together, torch.tensor(offsets, dtype=torch.int64, device=together.device)


@torch.library.register_fake("ssd_ops::assign_anchors")
def _(anchors, gt_boxes, gt_counts, iou_threshold, background_threshold, force_match):
    num_images = gt_boxes.shape[0] if gt_boxes.ndim == 3 else gt_counts.shape[0] - 1
    shape = (num_images, anchors.shape[-2])
    return (
        anchors.new_empty(shape, dtype=torch.int64),
        anchors.new_empty(shape, dtype=_real(anchors, gt_boxes)),
    )


def multibox_target(
    anchors: Tensor,
    labels: Tensor,
    cls_preds: Tensor | None = None,
    *,
    iou_threshold: float = 0.5,
    variances: Sequence[float] = VARIANCES,
    negative_mining_ratio: float | None = None,
    negative_mining_threshold: float = 0.5,
    min_negatives: int = 0,
    ignore_label: int = -1,
    semantics: str = "d2l",
) -> tuple[Tensor, Tensor, Tensor]:
    """What each anchor should predict: its offsets to a ground truth, and its class.

    An anchor takes its best ground truth (the first on ties) if their IoU is at least `iou_threshold`.
    Then each ground truth is forced on one anchor: of all free pairs the one with the highest IoU,
    whatever it is (ties: lowest anchor, then lowest ground truth), again and again. So it is with
    ``semantics="d2l"``; the others are told apart in docs/semantics.md.

    Args:
        anchors: ``[1, A, 4]`` or ``[A, 4]`` xyxy in fractions of the image.
        labels: ``[B, G, 5]`` rows (class, x1, y1, x2, y2), class from 0. A row with a negative class is
            padding, wherever it stands; so is one with a NaN, an infinity, or corners out of order.
        cls_preds: ``[B, C + 1, A]`` logits, the background first; needed where negatives are mined.
        iou_threshold: 0..1, rounded to the dtype of the arithmetic.
        variances: What the four offsets are divided by.
        negative_mining_ratio: Negatives per positive, 0 or more. None, the default: every anchor that
            is not matched is a negative.
        negative_mining_threshold: 0..1: anchors of this IoU with a ground truth, or more, are never
            mined as negatives.
        min_negatives: Mine at least so many in each image, also in one without ground truths.
        ignore_label: The class of anchors that are neither matched nor mined.
        semantics: ``"d2l"``, the rules of "Dive into Deep Learning"; ``"mxnet"``: forced matches only
            above an IoU of 1e-6, all others only above the threshold, and no class but `ignore_label`
            in an image without ground truths; ``"torchvision"``: each ground truth forced on its best
            anchor, the later one winning, and ground truths without area are padding. These two
            take the logarithm of the ratio itself, d2l adds 1e-6.

    Returns:
        ``(bbox_offsets [B, 4A], bbox_masks [B, 4A], cls_labels [B, A] int64)``: encoded boxes (0 where
        unmatched), 1 for the four numbers of each matched anchor, and class + 1 or 0 for background.
        An image without ground truths is all background. With more ground truths than anchors the
        last in the order above stay unmatched. An anchor without area, or not finite, matches nothing.
        Mined are the negatives with the lowest probability of background, or all there are.

    Raises:
        ValueError: a threshold, variance, number or the semantics is none.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        Drop-in for the book's `multibox_target` (14.4), whose padding rows take anchors from real
        objects, and which fails without ground truths. MXNet 1.9's MultiBoxTarget on the CPU, which
        stops at the first padding row, and aborts with fewer candidates than negatives to mine.
        torchvision's SSD. Never makes an anchors x ground truths matrix.

    Example:
        >>> anchors = torch.tensor([[[0., 0., 0.5, 0.5], [0.5, 0.5, 1., 1.]]])
        >>> labels = torch.tensor([[[2, 0.5, 0.5, 1., 1.], [-1, 0, 0, 0, 0]]])
        >>> offsets, masks, cls_labels = multibox_target(anchors, labels)
        >>> masks, cls_labels
        (tensor([[0., 0., 0., 0., 1., 1., 1., 1.]]), tensor([[0, 3]]))
    """
    op = "multibox_target"
    _check_tensors(op, anchors=anchors, labels=labels)
    if cls_preds is not None:
        _check_tensors(op, cls_preds=cls_preds)
    ratio = -1.0
    if negative_mining_ratio is not None:
        ratio = _ratio(op, "negative_mining_ratio", negative_mining_ratio)
        if cls_preds is None:
            raise ValueError(f"{op}: cls_preds must be given for negative_mining_ratio, got None")
    return torch.ops.ssd_ops.multibox_target(
        anchors,
        labels,
        cls_preds,
        _fraction(op, "iou_threshold", iou_threshold),
        _variances(op, variances),
        ratio,
        _fraction(op, "negative_mining_threshold", negative_mining_threshold),
        _negatives(op, min_negatives),
        _integer(op, "ignore_label", ignore_label),
        _choice(op, "semantics", semantics, _SEMANTICS),
    )


@torch.library.register_fake("ssd_ops::multibox_target")
def _(anchors, labels, cls_preds, *_settings):
    num_images, num_anchors = labels.shape[0], anchors.shape[-2]
    real = _real(anchors, labels, *(() if cls_preds is None else (cls_preds,)))
    return (
        anchors.new_empty((num_images, 4 * num_anchors), dtype=real),
        anchors.new_empty((num_images, 4 * num_anchors), dtype=real),
        anchors.new_empty((num_images, num_anchors), dtype=torch.int64),
    )


def hard_negative_mining(
    losses: Tensor, cls_labels: Tensor, *, ratio: float = 3.0, min_negatives: int = 0
) -> Tensor:
    """Which anchors the class loss should count: the positives and the hardest negatives of each image.

    Args:
        losses: ``[B, A]`` class loss of each anchor; NaN counts as the highest.
        cls_labels: ``[B, A]`` int64: above 0 positive, 0 negative, below 0 ignored.
        ratio: Negatives per positive, 0 or more. 3 as in the SSD paper.
        min_negatives: At least so many negatives in each image, also in one without positives.

    Returns:
        ``[B, A]`` bool. An image with P positives selects ``max(floor(ratio * P), min_negatives)``
        negatives, or all it has; equal losses go to the lower anchor. A positive is selected once,
        an ignored anchor never. A batch without positives and with `min_negatives` 0 selects nothing.

    Raises:
        ValueError: `ratio` or `min_negatives` is negative.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        SSD (arXiv:1512.02325), section 2.2 "Hard negative mining".

    Example:
        >>> losses = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.3]])
        >>> hard_negative_mining(losses, torch.tensor([[1, 0, 0, 0, 0]]), ratio=2)
        tensor([[ True,  True, False,  True, False]])
    """
    op = "hard_negative_mining"
    _check_tensors(op, losses=losses, cls_labels=cls_labels)
    return torch.ops.ssd_ops.hard_negative_mining(
        losses, cls_labels, _ratio(op, "ratio", ratio), _negatives(op, min_negatives)
    )


@torch.library.register_fake("ssd_ops::hard_negative_mining")
def _(losses, cls_labels, ratio, min_negatives):
    return losses.new_empty(losses.shape, dtype=torch.bool)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that greedy non-maximum suppression keeps.

    Args:
        boxes: ``[N, 4]`` xyxy, any unit.
        scores: ``[N]``.
        iou_threshold: 0..1. A box is dropped if its IoU with a kept box of higher score is greater.

    Returns:
        ``[K]`` int64, by score descending; equal scores by index. A NaN score is dropped; a box without
        area, or with a NaN corner, overlaps nothing and is kept. Memory is linear in N.

    Raises:
        ValueError: the threshold is outside 0..1.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        Drop-in for `torchvision.ops.nms`.

    Example:
        >>> boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9], [5., 5., 6., 6.]])
        >>> nms(boxes, torch.tensor([0.8, 0.9, 0.1]), 0.5)
        tensor([1, 2])
    """
    _check_tensors("nms", boxes=boxes, scores=scores)
    return torch.ops.ssd_ops.nms(boxes, scores, _fraction("nms", "iou_threshold", iou_threshold))


@torch.library.register_fake("ssd_ops::nms")
def _(boxes, scores, iou_threshold):
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.int64)


def nms_padded(boxes: Tensor, scores: Tensor, iou_threshold: float) -> tuple[Tensor, Tensor]:
    """`nms` in a shape that does not depend on the boxes, for one image or a batch.

    On a GPU nothing waits for the host, so it can be captured in a CUDA graph; `nms` has to wait once, for
    the size of its result.

    Args:
        boxes: ``[N, 4]`` or ``[B, N, 4]`` xyxy, any unit.
        scores: ``[N]`` or ``[B, N]``.
        iou_threshold: 0..1, as in `nms`.

    Returns:
        ``(indices, counts)``: ``[N]`` and ``[]``, or ``[B, N]`` and ``[B]``, int64. What `nms` returns for
        image b is ``indices[b, :counts[b]]``, and -1 follows.

    Raises:
        ValueError: the threshold is outside 0..1.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        The padded form of TensorRT's EfficientNMS; the rules are `nms`'s.

    Example:
        >>> boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9], [5., 5., 6., 6.]])
        >>> nms_padded(boxes, torch.tensor([0.8, 0.9, 0.1]), 0.5)
        (tensor([ 1,  2, -1]), tensor(2))
    """
    _check_tensors("nms_padded", boxes=boxes, scores=scores)
    threshold = _fraction("nms_padded", "iou_threshold", iou_threshold)
    if boxes.ndim != 2 or scores.ndim != 1:
        return torch.ops.ssd_ops.nms_padded(boxes, scores, threshold)
    indices, counts = torch.ops.ssd_ops.nms_padded(boxes[None], scores[None], threshold)
    return indices[0], counts[0]


@torch.library.register_fake("ssd_ops::nms_padded")
def _(boxes, scores, iou_threshold):
    return (
        boxes.new_empty(scores.shape, dtype=torch.int64),
        boxes.new_empty(scores.shape[:1], dtype=torch.int64),
    )


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that greedy non-maximum suppression within each class keeps.

    Args:
        boxes: ``[N, 4]`` xyxy, any unit.
        scores: ``[N]``.
        idxs: ``[N]`` integers, the class of each box (or level, or image).
        iou_threshold: 0..1. A box is dropped if its IoU with a kept box of its class and of higher score
            is greater.

    Returns:
        ``[K]`` int64, by score descending; equal scores by index. NaN as in `nms`. Classes are compared
        and coordinates never shifted: any range of either gives exactly what `nms` gives class by class.

    Raises:
        ValueError: the threshold is outside 0..1.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        Drop-in for `torchvision.ops.batched_nms`.

    Example:
        >>> boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9], [0., 0., 2., 2.]])
        >>> batched_nms(boxes, torch.tensor([0.8, 0.9, 0.1]), torch.tensor([0, 0, 1]), 0.5)
        tensor([1, 2])
    """
    op = "batched_nms"
    _check_tensors(op, boxes=boxes, scores=scores, idxs=idxs)
    if idxs.dtype in (torch.int8, torch.uint8, torch.int16, torch.int32):
        idxs = idxs.long()
    threshold = _fraction(op, "iou_threshold", iou_threshold)
    return torch.ops.ssd_ops.batched_nms(boxes, scores, idxs, threshold)


@torch.library.register_fake("ssd_ops::batched_nms")
def _(boxes, scores, idxs, iou_threshold):
    return boxes.new_empty((torch.library.get_ctx().new_dynamic_size(),), dtype=torch.int64)


def multiclass_nms(
    boxes: Tensor,
    scores: Tensor,
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    topk: int = 400,
    max_detections: int = 100,
    class_agnostic: bool = False,
) -> Detections:
    """The best boxes of each image after NMS within each class, with sizes that no value changes.

    Args:
        boxes: ``[B, N, 4]`` xyxy, any unit, shared by all classes.
        scores: ``[B, N, C]``, without background.
        score_threshold: 0..1, rounded to the dtype of the arithmetic. Every pair of box and class with
            a higher score is a candidate.
        iou_threshold: 0..1. A candidate is dropped if its IoU with a kept one before it is greater.
        topk: So many candidates of each class, the highest scores, go into NMS; -1: all.
        max_detections: K: so many of an image are returned.
        class_agnostic: Compare boxes of all classes in NMS, not of one class only.

    Returns:
        `Detections` of K places for each image, by score; equal scores by class, then by box. A NaN score
        is never a candidate; a box without area, or with a NaN corner, overlaps nothing. Nothing is
        read on the host.

    Raises:
        TypeError, ValueError: a threshold or a number is none.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        The post-processing of torchvision's SSD and Faster R-CNN.

    Example:
        >>> boxes = torch.tensor([[[0., 0., 2., 2.], [0., 0., 2., 1.9], [5., 5., 6., 6.]]])
        >>> scores = torch.tensor([[[0.8, 0.1], [0.9, 0.0], [0.0, 0.7]]])
        >>> found = multiclass_nms(boxes, scores, max_detections=4)
        >>> found.indices, found.labels, found.counts
        (tensor([[ 1,  2,  0, -1]]), tensor([[ 0,  1,  1, -1]]), tensor([3]))
    """
    op = "multiclass_nms"
    _check_tensors(op, boxes=boxes, scores=scores)
    return Detections(
        *torch.ops.ssd_ops.multiclass_nms(
            boxes,
            scores,
            _fraction(op, "score_threshold", score_threshold),
            _fraction(op, "iou_threshold", iou_threshold),
            _topk(op, topk),
            _max_detections(op, max_detections),
            bool(class_agnostic),
        )
    )


def _max_detections(op: str, value: object) -> int:
    count = _integer(op, "max_detections", value)
    if count < 1:
        raise ValueError(f"{op}: max_detections must be 1 or more, got {count}")
    return count


def _fake_detections(like: Tensor, num_images: int, count: int, real: torch.dtype):
    return (
        like.new_empty((num_images, count, 4), dtype=real),
        like.new_empty((num_images, count), dtype=real),
        like.new_empty((num_images, count), dtype=torch.int64),
        like.new_empty((num_images, count), dtype=torch.int64),
        like.new_empty((num_images,), dtype=torch.int64),
    )


@torch.library.register_fake("ssd_ops::multiclass_nms")
def _(boxes, scores, score_threshold, iou_threshold, topk, max_detections, class_agnostic):
    return _fake_detections(boxes, boxes.shape[0], max_detections, _real(boxes, scores))


def multibox_detection(
    cls_probs: Tensor,
    offset_preds: Tensor,
    anchors: Tensor,
    nms_threshold: float = 0.5,
    pos_threshold: float = 0.009999999,
    *,
    variances: Sequence[float] = VARIANCES,
    clip: bool | None = None,
    class_agnostic: bool | None = None,
    topk: int = -1,
    semantics: str = "d2l",
) -> Tensor:
    """Detections of a batch of images, one row for every anchor.

    Each anchor has its best class that is not the background (the first on ties). ``"d2l"``: greedy NMS
    over all anchors of an image, whatever their class, drops a box whose IoU with a kept one is greater
    than `nms_threshold`; then scores are held against `pos_threshold`. ``"mxnet"``: only scores of at
    least `pos_threshold` enter, and NMS within each class drops at `nms_threshold` or more.

    Args:
        cls_probs: ``[B, C + 1, A]`` probabilities, the background first. NaN counts as 0.
        offset_preds: ``[B, 4A]`` as `multibox_target` encodes them.
        anchors: ``[1, A, 4]`` or ``[A, 4]`` xyxy.
        nms_threshold: 0..1, rounded to the dtype of the arithmetic.
        pos_threshold: 0..1: a lower score makes a row background.
        variances: What the offsets were divided by.
        clip: Cut the boxes to 0..1. None, the default: only with ``"mxnet"``.
        class_agnostic: Compare boxes of all classes in NMS. None, the default: only with ``"d2l"``.
        topk: So many of an image, the highest scores, go into NMS; -1, the default: all.
        semantics: ``"d2l"``, the rules of "Dive into Deep Learning", or ``"mxnet"``, those of MXNet. For
            torchvision's there is `detect`.

    Returns:
        ``[B, A, 6]`` rows (class, score, x1, y1, x2, y2); take those of class >= 0. ``"d2l"``: the kept
        ones by score (equal scores by anchor), then the others by anchor with class -1. A kept row with a
        score below `pos_threshold` has class -1 too, and every such row the score ``1 - score``.
        ``"mxnet"``: the anchors that entered NMS by score, those it dropped with class -1 in their
        places; then -1 everywhere. `topk` and an `nms_threshold` of 0 leave what MXNet leaves: see
        csrc/detection/multibox_detection.h.

    Raises:
        TypeError, ValueError: a threshold, variance, number or the semantics is none.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        Drop-in for the book's `multibox_detection` (14.4); MXNet 1.9's MultiBoxDetection on the CPU.

    Example:
        >>> anchors = torch.tensor([[[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.48]]])
        >>> cls_probs = torch.tensor([[[0.1, 0.3], [0.9, 0.7]]])
        >>> multibox_detection(cls_probs, torch.zeros(1, 8), anchors)
        tensor([[[ 0.0000,  0.9000,  0.1000,  0.1000,  0.5000,  0.5000],
                 [-1.0000,  0.7000,  0.1000,  0.1000,  0.5000,  0.4800]]])
    """
    op = "multibox_detection"
    _check_tensors(op, cls_probs=cls_probs, offset_preds=offset_preds, anchors=anchors)
    if semantics == "torchvision":
        raise ValueError(f"{op}: semantics must be 'd2l' or 'mxnet'; for 'torchvision' use detect")
    mode = _choice(op, "semantics", semantics, _SEMANTICS)
    return torch.ops.ssd_ops.multibox_detection(
        cls_probs,
        offset_preds,
        anchors,
        _fraction(op, "nms_threshold", nms_threshold),
        _fraction(op, "pos_threshold", pos_threshold),
        _variances(op, variances),
        semantics == "mxnet" if clip is None else bool(clip),
        semantics == "d2l" if class_agnostic is None else bool(class_agnostic),
        _topk(op, topk),
        mode,
    )


@torch.library.register_fake("ssd_ops::multibox_detection")
def _(cls_probs, offset_preds, anchors, *_settings):
    real = _real(cls_probs, offset_preds, anchors)
    return cls_probs.new_empty((cls_probs.shape[0], cls_probs.shape[2], 6), dtype=real)


def detect(
    cls_scores: Tensor,
    offset_preds: Tensor,
    anchors: Tensor,
    *,
    activation: str = "softmax",
    score_threshold: float = 0.01,
    iou_threshold: float = 0.45,
    topk: int = 400,
    max_detections: int = 200,
    variances: Sequence[float] = VARIANCES,
    clip: bool = True,
    class_agnostic: bool = False,
) -> Detections:
    """From the heads of a detector to its boxes: activation, decoding and NMS of a batch in one call.

    Every class of an anchor whose score is above the threshold is a candidate, only candidates are
    decoded, and NMS runs within each class, as in SSD and RetinaNet. All sizes follow from the shapes
    and `max_detections`; nothing is read on the host.

    Args:
        cls_scores: ``[B, A, C + 1]`` logits, the background first, with ``activation="softmax"``, or
            ``[B, A, C]``.
        offset_preds: ``[B, A, 4]`` or ``[B, 4A]``, as `encode_boxes` makes them.
        anchors: ``[1, A, 4]`` or ``[A, 4]`` xyxy.
        activation: ``"softmax"`` over the classes, ``"sigmoid"`` of each, or ``"none"``.
        score_threshold: 0..1, rounded to the dtype of the arithmetic; a candidate's score is higher.
        iou_threshold: 0..1. A candidate is dropped if its IoU with a kept one before it is greater.
        topk: So many candidates of each class, the highest scores, go into NMS; -1: all.
        max_detections: K: so many of an image are returned.
        variances: What the offsets were divided by.
        clip: Cut the boxes to 0..1, before NMS. On by default.
        class_agnostic: Compare boxes of all classes in NMS, not of one class only.

    Returns:
        `Detections` of K places for each image, by score; equal scores by class, then by anchor. Labels
        count from 0 without the background. An anchor with a NaN score is left out.

    Raises:
        TypeError, ValueError: a threshold, variance, number or the activation is none.
        RuntimeError: a shape, dtype or device does not fit.

    Source:
        SSD (arXiv:1512.02325) 3.1 and the `postprocess_detections` of torchvision's SSD.

    Example:
        >>> anchors = torch.tensor([[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.48]])
        >>> found = detect(torch.tensor([[[0., 3.], [0., 2.]]]), torch.zeros(1, 2, 4), anchors)
        >>> found.counts, found.labels[0, :2], found.scores[0, :2]
        (tensor([1]), tensor([ 0, -1]), tensor([0.9526, 0.0000]))
    """
    op = "detect"
    _check_tensors(op, cls_scores=cls_scores, offset_preds=offset_preds, anchors=anchors)
    return Detections(
        *torch.ops.ssd_ops.detect(
            cls_scores,
            offset_preds,
            anchors,
            _choice(op, "activation", activation, _ACTIVATION),
            _fraction(op, "score_threshold", score_threshold),
            _fraction(op, "iou_threshold", iou_threshold),
            _topk(op, topk),
            _max_detections(op, max_detections),
            _variances(op, variances),
            bool(clip),
            bool(class_agnostic),
        )
    )


@torch.library.register_fake("ssd_ops::detect")
def _(cls_scores, offset_preds, anchors, activation, score, iou, topk, max_detections, *_settings):
    real = _real(cls_scores, offset_preds, anchors)
    return _fake_detections(cls_scores, cls_scores.shape[0], max_detections, real)


def _in_front(info, tensor: Tensor, dim: int | None) -> Tensor:
    """The mapped dimension first, made by repeating where the tensor has none."""
    if dim is None:
        return tensor.expand(info.batch_size, *tensor.shape)
    return tensor.movedim(dim, 0)


@torch.library.register_vmap("ssd_ops::box_iou")
def _(info, in_dims, *boxes):
    both = [_in_front(info, b, dim) for b, dim in zip(boxes, in_dims, strict=True)]
    return torch.ops.ssd_ops.box_iou(*both), 0


def _register_row_vmap(name: str) -> None:
    """For encode_boxes and decode_boxes: rows [..., A, 4], and anchors of their last dimensions."""
    op = getattr(torch.ops.ssd_ops, name)

    def rule(info, in_dims, rows, anchors, *settings):
        rows = _in_front(info, rows, in_dims[0])
        if in_dims[1] is not None:
            anchors = anchors.movedim(in_dims[1], 0)
            while anchors.ndim > rows.ndim and anchors.shape[1] == 1:
                anchors = anchors.squeeze(1)
            missing = rows.ndim - anchors.ndim
            anchors = anchors.reshape(anchors.shape[0], *[1] * missing, *anchors.shape[1:])
            anchors = anchors.expand(rows.shape)
        return op(rows, anchors, *settings), 0

    torch.library.register_vmap(f"ssd_ops::{name}", rule)


def _register_image_vmap(name: str) -> None:
    """For ops of two tensors [B, ...] whose results have B images too: B is the product."""
    op = getattr(torch.ops.ssd_ops, name)

    def rule(info, in_dims, *args):
        pair = [_in_front(info, t, dim) for t, dim in zip(args[:2], in_dims[:2], strict=True)]
        outer = pair[0].shape[:2]
        results = op(*(t.flatten(0, 1) for t in pair), *args[2:])
        return tuple(t.unflatten(0, outer) for t in results), (0,) * len(results)

    torch.library.register_vmap(f"ssd_ops::{name}", rule)


_register_row_vmap("encode_boxes")
_register_row_vmap("decode_boxes")
_register_image_vmap("nms_padded")
_register_image_vmap("multiclass_nms")


# A fallthrough at Autograd leaves the outputs without a gradient, silently; with no registration torch
# would mark them as requiring one and only warn when backward finds nothing.
_autograd = torch.library.Library("ssd_ops", "IMPL")
for _name in _ext.op_names():
    _autograd.impl(_name, torch.library.fallthrough_kernel, "Autograd")
