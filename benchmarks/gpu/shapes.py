"""The cases of the GPU benchmarks: real shapes, the call that is ours, and its rivals.

`all_shapes()` maps the name of a case to a function that makes it; the order is the order of the runs. Tiny
ones have the same code and a handful of boxes, for a rehearsal.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import baselines
import cases
import rivals
import torch
from rivals import Rival
from torch import Tensor

import ssd_ops

CLASSES_VOC, CLASSES_COCO = 20, 80
RETINA_MAPS = [(100, 167), (50, 84), (25, 42), (13, 21), (7, 11)]  # of 800 x 1333 pixels


class Shape(NamedTuple):
    """`ours` is the call as users make it; `captured` its form for a CUDA graph, None if there is none."""

    ours: Callable
    args: tuple
    rivals: dict[str, Rival]
    captured: Callable | None


def shape(ours: Callable, args: tuple, others: dict[str, Rival], waits: bool = False) -> Shape:
    return Shape(ours, args, others, None if waits else ours)


# Anchors, boxes and what heads give.


def anchors(count: int, tiny: bool) -> Tensor:
    """[1, A, 4], those of a real detector; tiny: a dozen of them."""
    if tiny:
        count = min(cases.ANCHOR_COUNTS)
    real = cases.prior_anchors(count)
    return real[:, :: count // 12] if tiny else real


def retina_anchors(tiny: bool) -> Tensor:
    """[1, 200700, 4]: nine a cell on strides 8 to 128, the cells of `RETINA_MAPS`."""
    maps = [(3, 5), (2, 3)] if tiny else RETINA_MAPS
    sizes = [[0.04 * 2**level * 2 ** (i / 3) for i in range(3)] for level in range(len(maps))]
    levels = []
    for feature_map, of_level in zip(maps, sizes, strict=True):
        three = [
            ssd_ops.multibox_prior(torch.zeros(feature_map), [size], [1, 2, 0.5]).view(1, -1, 3, 4)
            for size in of_level
        ]
        levels.append(torch.cat(three, dim=2).view(1, -1, 4))
    return torch.cat(levels, dim=1)


def pixel_boxes(count: int, kind: str) -> Tensor:
    """[count, 4] in an image of 1333 x 800: sides of 16 to 256 pixels, log-uniform; `clustered`: a hundred
    round each object; `aerial`: 20,000 x 20,000 with sides up to 128."""
    extent, sides = ([20_000.0, 20_000.0], 8) if kind == "aerial" else ([1333.0, 800.0], 16)
    center = torch.rand(count, 2) * torch.tensor(extent)
    half = 16 * sides ** torch.rand(count, 2) / 2
    boxes = torch.cat((center - half, center + half), dim=1)
    if kind == "clustered":
        boxes = boxes[torch.arange(count) // 100]
        size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        boxes = boxes + 0.06 * size * torch.randn(count, 4)
    return boxes


def large_boxes(count: int) -> Tensor:
    """[count, 4] between two random corners of the unit square."""
    corners = torch.rand(count, 2, 2).sort(dim=1).values
    return corners.flatten(1)


def small_boxes(count: int) -> Tensor:
    """[count, 4] with sides of 0.01 to 0.1 in the unit square."""
    center, side = torch.rand(count, 2), 0.01 + 0.09 * torch.rand(count, 2)
    return torch.cat((center - side / 2, center + side / 2), dim=1)


def pile(count: int) -> Tensor:
    """[count, 4] of which each overlaps every other, as in torchvision's benchmark (its PR 8925)."""
    return torch.cat((torch.rand(count, 2), torch.rand(count, 2) + 10), dim=1)


def distinct_scores(*size: int) -> Tensor:
    """No two are equal in a row: the rivals' sorts are not stable."""
    rows = [torch.randperm(size[-1]) for _ in range(torch.Size(size[:-1]).numel())]
    return torch.stack(rows).view(size) / size[-1]


def heads(images: int, classes: int, boxes: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """(logits [B, A, C + 1] with background first, offsets [B, A, 4]): noise, or with 8 objects an image the
    classes of the anchors near one (`trained`)."""
    count = boxes.shape[-2]
    offsets = 0.3 * torch.randn(images, count, 4)
    logits = torch.randn(images, count, classes + 1)
    if kind == "trained":
        gts = cases.boxes(images, 8)
        best, gt = ssd_ops.box_iou(boxes.view(1, -1, 4).expand(images, -1, -1), gts).max(2)
        label = torch.randint(1, classes + 1, (images, 8)).gather(1, gt)
        logits[..., 0] += 7
        likely = torch.where(best > 0.3, 14 * best, 0).clamp(max=11)
        logits.scatter_add_(2, label[..., None], likely[..., None])
    return logits, offsets


# One function an op: from sizes to a case.


def priors(maps, sizes, ratios, tiny: bool) -> Shape:
    maps = [torch.zeros(min(h, 3) if tiny else h, min(w, 3) if tiny else w) for h, w in maps]
    others = {
        "d2l": Rival(baselines.d2l_multibox_priors, baselines.close),
        "eager": Rival(baselines.eager_multibox_priors, baselines.close),
    }
    return shape(ssd_ops.multibox_priors, (maps, sizes, ratios), others)


def ssd_priors(count: int, tiny: bool) -> Shape:
    maps, sizes, ratios = cases.ANCHOR_COUNTS[count]
    return priors([(n, n) for n in maps], sizes, ratios, tiny)


def retina_priors(tiny: bool) -> Shape:
    sizes = [[0.04 * 2**level * 2 ** (i / 3) for i in range(3)] for level in range(5)]
    return priors(RETINA_MAPS, sizes, [[1, 2, 0.5]] * 5, tiny)


def retina_grid(tiny: bool) -> Shape:
    """Those of torchvision's RetinaNet, in pixels."""
    maps = [torch.zeros(3, 3) if tiny else torch.zeros(size) for size in RETINA_MAPS]
    steps = [(step, step) for step in (8, 16, 32, 64, 128)]
    sizes = [[4 * step * 2 ** (i / 3) for i in range(3)] for step, _ in steps]
    shapes = [[(s / r**0.5, s * r**0.5) for r in (0.5, 1, 2) for s in level] for level in sizes]
    others = {
        name: Rival(
            function if isinstance(function, str) else partial(function, steps=steps),
            baselines.close,
        )
        for name, function in (
            ("torchvision", baselines.torchvision_grid_anchors),
            ("eager", baselines.eager_grid_anchors),
        )
    }
    return shape(partial(ssd_ops.grid_anchors, steps=steps), (maps, shapes), others)


def target(images: int, gts: int, count: int, tiny: bool, ragged: bool = False) -> Shape:
    boxes = retina_anchors(tiny) if count == 200_700 else anchors(count, tiny)
    if tiny:
        images, gts = min(images, 2), min(gts, 3)
    labels = cases.labels(images, gts, padding=0)
    if ragged:
        labels[torch.arange(gts) >= torch.randint(1, gts + 1, (images, 1)), 0] = -1
    same = baselines.same_targets
    others = {"eager": Rival(baselines.eager_multibox_target, same)}
    if not ragged:  # the book's and torchvision's know no padded rows
        others["torchvision"] = rivals.torchvision_target()
        others["d2l"] = Rival(baselines.d2l_multibox_target, same)
    return shape(ssd_ops.multibox_target, (boxes, labels), others)


def assign(images: int, gts: int, tiny: bool, force_match: str = "bipartite") -> Shape:
    boxes = anchors(8732, tiny)[0]
    if tiny:
        images, gts = min(images, 2), min(gts, 3)
    # The rivals' rule is "argmax", by which ours is compared with them.
    argmax = partial(ssd_ops.assign_anchors, force_match="argmax")
    same = baselines.same_matches
    others = {
        "torchvision": Rival(baselines.torchvision_assign_anchors, same, argmax),
        "eager": Rival(baselines.eager_assign_anchors, same, argmax),
    }
    ours = partial(ssd_ops.assign_anchors, force_match=force_match)
    return shape(ours, (boxes, cases.boxes(images, gts)), others)


def mining(images: int, count: int, tiny: bool) -> Shape:
    if tiny:
        images, count = min(images, 2), 12
    labels = (torch.rand(images, count) < 0.02).long()
    others = {
        "eager": Rival(baselines.eager_hard_negative_mining, torch.equal),
        "two sorts": Rival(baselines.two_sorts_hard_negative_mining, torch.equal),
    }
    return shape(ssd_ops.hard_negative_mining, (distinct_scores(images, count), labels), others)


def detection(images: int, classes: int, count: int, tiny: bool, kind: str = "noise") -> Shape:
    boxes = anchors(count, tiny)
    if tiny:
        images, classes = min(images, 2), min(classes, 3)
    logits, offsets = heads(images, classes, boxes, kind)
    args = logits.softmax(2).mT.contiguous(), offsets.flatten(1), boxes
    same = baselines.same_detections
    others = {
        "eager": Rival(baselines.eager_multibox_detection, same),
        "d2l": Rival(baselines.d2l_multibox_detection, same),
    }
    return shape(ssd_ops.multibox_detection, args, others)


def detect(images: int, classes: int, count: int, tiny: bool, kind: str = "noise") -> Shape:
    boxes = anchors(count, tiny)
    if tiny:
        images, classes = min(images, 2), min(classes, 3)
    args = (*heads(images, classes, boxes, kind), boxes[0])
    same = baselines.same_found
    others = {"torchvision": Rival(baselines.torchvision_detect, same)}
    if images * classes <= 160:
        others["eager"] = Rival(baselines.eager_detect, same)
    return shape(ssd_ops.detect, args, others)


def retina_detect(images: int, tiny: bool, dtype: torch.dtype = torch.float32) -> Shape:
    """RetinaNet's heads: a sigmoid for each class, scores above 0.05, 1,000 candidates a class, 300 kept."""
    boxes = retina_anchors(tiny)
    classes = 3 if tiny else CLASSES_COCO
    images = min(images, 2) if tiny else images
    # A trained head: one score in a thousand is above the threshold.
    logits = torch.randn(images, boxes.shape[1], classes).mul_(1.4).sub_(7).to(dtype)
    offsets = (0.3 * torch.randn(images, boxes.shape[1], 4)).to(dtype)
    options = {"score_threshold": 0.05, "iou_threshold": 0.5, "topk": 1000, "max_detections": 300}
    ours = partial(ssd_ops.detect, activation="sigmoid", **options)
    others = {"torchvision": rivals.torchvision_sigmoid_detect(**options)}
    return shape(ours, (logits, offsets, boxes[0]), others)


def nms(boxes: Tensor, most_eager: int = 10_000, scores: Tensor | None = None) -> Shape:
    count = len(boxes)
    scores = distinct_scores(count) if scores is None else scores
    others = {"torchvision": Rival(baselines.torchvision_nms, torch.equal)}
    if count <= most_eager:
        others["eager"] = Rival(baselines.eager_nms, torch.equal)
    if count <= 1000:
        others["d2l"] = Rival(baselines.d2l_nms, torch.equal)
    # `nms` waits for the number of its rows; the form that can be captured does the same work.
    return Shape(ssd_ops.nms, (boxes, scores, 0.5), others, ssd_ops.nms_padded)


def nms_of_kind(count: int, kind: str) -> Shape:
    """Boxes of tests/cases.py, where those of some kinds have equal scores; or a `pile`."""
    boxes = pile(count) if kind == "pile" else cases.boxes(count, kind=kind)
    args = boxes, cases.scores(count, kind=kind), 0.5
    return Shape(ssd_ops.nms, args, {}, ssd_ops.nms_padded)


def nms_chain(count: int) -> Shape:
    """Each box overlaps the next, scores fall: every other is kept, each decided by the one before."""
    scores = torch.arange(count, 0, -1) / count
    return nms(cases.boxes(count, kind="chain") * 1000, most_eager=1000, scores=scores)


def batched(boxes: Tensor, idxs: Tensor) -> Shape:
    args = boxes, distinct_scores(len(boxes)), idxs, 0.5
    others = {"torchvision": Rival(baselines.torchvision_batched_nms, torch.equal)}
    others |= rivals.torchvision_batched_modes()
    if len(idxs.unique()) <= 80:
        others["eager"] = Rival(baselines.loop_batched_nms, torch.equal)
    return shape(ssd_ops.batched_nms, args, others, waits=True)


def padded(images: int, count: int, kind: str) -> Shape:
    boxes = torch.stack([pixel_boxes(count, kind) for _ in range(images)])
    others = {"torchvision": rivals.image_by_image(baselines.torchvision_nms)}
    return shape(ssd_ops.nms_padded, (boxes, distinct_scores(images, count), 0.5), others)


def groups_of(boxes: Tensor, metric: str) -> Shape:
    ours, loop = (
        partial(f, metric=metric) for f in (ssd_ops.nms_groups, baselines.loop_nms_groups)
    )
    others = {"loop": Rival(loop, torch.equal)} if len(boxes) <= 10_000 else {}
    return shape(ours, (boxes, distinct_scores(len(boxes)), 0.5), others)


def box_iou(count: int) -> Shape:
    others = {
        "torchvision": Rival(baselines.torchvision_box_iou, baselines.close),
        "eager": Rival(baselines.eager_box_iou, baselines.close),
    }
    return shape(ssd_ops.box_iou, (cases.boxes(count), cases.boxes(count)), others)


def encode(images: int, tiny: bool) -> Shape:
    boxes = anchors(8732, tiny)[0]
    others = {"eager": Rival(baselines.eager_encode_boxes, baselines.close)}
    ours = partial(ssd_ops.encode_boxes, eps=baselines.EPS)
    return shape(ours, (cases.boxes(images, len(boxes)), boxes), others)


def decode(images: int, tiny: bool) -> Shape:
    boxes = anchors(8732, tiny)[0]
    others = {"eager": Rival(baselines.eager_decode_boxes, baselines.close)}
    return shape(ssd_ops.decode_boxes, (torch.randn(images, len(boxes), 4), boxes), others)


def second_stage(images: int, count: int, classes: int) -> Shape:
    """Of a Faster R-CNN: proposals with a score for each class, few of them likely."""
    scores = (2 * torch.randn(images, count, classes)).softmax(2)
    others = {"eager": Rival(baselines.eager_multiclass_nms, baselines.same_found)}
    return shape(ssd_ops.multiclass_nms, (cases.boxes(images, count), scores), others)


def all_shapes(tiny: bool = False) -> dict[str, Callable[[], Shape]]:
    """The makers of all cases by name. Each draws the same numbers in any order and in any process."""

    def n(count):
        return min(count, 12) if tiny else count

    def c(count):
        return min(count, 3) if tiny else count

    found: dict[str, Callable[[], Shape]] = {}

    def add(name, function, *args, **options):
        def make():
            torch.manual_seed(zlib.crc32(name.encode()))
            return function(*args, **options)

        assert name not in found, name
        found[name] = make

    # First what predicted.json speaks of.
    add("multibox_target B32 A5,444 G1", target, 32, 1, 5444, tiny)
    add("multibox_target B32 A5,444 G8", target, 32, 8, 5444, tiny)
    add("multibox_target B8 A5,444 G64", target, 8, 64, 5444, tiny)
    add("assign_anchors B32 A8,732 G8", assign, 32, 8, tiny)
    add("assign_anchors B32 A8,732 G64", assign, 32, 64, tiny)
    add("hard_negative_mining B32 A8,732", mining, 32, 8732, tiny)
    add("nms 1,000 large boxes", lambda: nms(large_boxes(n(1000))))
    add("nms 10,000 large boxes", lambda: nms(large_boxes(n(10_000))))
    add("nms 10,000 small boxes", lambda: nms(small_boxes(n(10_000))))
    add("batched_nms 10,000, 80 classes", lambda: batched(large_boxes(n(10_000)), ids(n, c, 80)))
    add("batched_nms 10,000, 80 piles", lambda: batched(pile(n(10_000)), ids(n, c, 80)))
    add("multibox_detection B1 A5,444", detection, 1, 1, 5444, tiny)
    add("multibox_detection B32 A5,444", detection, 32, 1, 5444, tiny)
    add("detect SSD300 B1 C20", detect, 1, CLASSES_VOC, 8732, tiny)
    add("detect SSD300 B8 C20", detect, 8, CLASSES_VOC, 8732, tiny)
    add("detect SSD300 B8 C80", detect, 8, CLASSES_COCO, 8732, tiny)
    for count in (10_000, 100_000):
        add(f"nms {count:,} all overlapping", lambda k=count: nms(pile(n(k)), most_eager=0))
        add(
            f"nms {count:,} clustered",
            lambda k=count: nms(pixel_boxes(n(k), "clustered"), most_eager=0),
        )
    add("nms 10,000 chain", lambda: nms_chain(n(10_000)))

    # Then the others of the plan, row by row.
    add("multibox_priors TinySSD", ssd_priors, 5444, tiny)
    add("multibox_priors SSD300", ssd_priors, 8732, tiny)
    add("multibox_priors RetinaNet", retina_priors, tiny)
    add("grid_anchors RetinaNet", retina_grid, tiny)
    add("multibox_target B32 A8,732 G8", target, 32, 8, 8732, tiny)
    add("multibox_target B32 A8,732 G64", target, 32, 64, 8732, tiny)
    add("multibox_target B32 A24,564 G64", target, 32, 64, 24_564, tiny)
    add("multibox_target B8 A200,700 G64", target, 8, 64, 200_700, tiny)
    add("multibox_target B32 A8,732 G1 to 64", target, 32, 64, 8732, tiny, ragged=True)
    add("assign_anchors argmax B32 A8,732 G8", assign, 32, 8, tiny, "argmax")
    add("assign_anchors argmax B32 A8,732 G64", assign, 32, 64, tiny, "argmax")
    add("hard_negative_mining B32 A5,444", mining, 32, 5444, tiny)
    add("hard_negative_mining B128 A8,732", mining, 128, 8732, tiny)
    add("multibox_detection B32 A5,444 trained", detection, 32, 1, 5444, tiny, "trained")
    add("detect SSD300 B8 C20 trained", detect, 8, CLASSES_VOC, 8732, tiny, "trained")
    add("detect SSD300 B32 C20", detect, 32, CLASSES_VOC, 8732, tiny)
    add("detect SSD300 B128 C20", detect, 128, CLASSES_VOC, 8732, tiny)
    add("detect SSD300 B64 C80", detect, 64, CLASSES_COCO, 8732, tiny)
    add("detect SSD512 B32 C20", detect, 32, CLASSES_VOC, 24_564, tiny)
    add("detect RetinaNet B8 C80", retina_detect, 8, tiny)
    add("detect RetinaNet B8 C80 float16", retina_detect, 8, tiny, torch.float16)
    for count in (1000, 10_000, 100_000):
        for kind in ("uniform", "aerial"):
            add(f"nms {count:,} {kind}", lambda k=count, kind=kind: nms(pixel_boxes(n(k), kind)))
    add("nms 1,000 clustered", lambda: nms(pixel_boxes(n(1000), "clustered")))
    add("nms 1,000 all overlapping", lambda: nms(pile(n(1000))))
    add("nms 1,000 chain", lambda: nms_chain(n(1000)))
    add("nms 100,000 chain", lambda: nms_chain(n(100_000)))
    add("nms_padded B32 1,000", lambda: padded(c(32), n(1000), "uniform"))
    add("nms_padded B128 1,000 clustered", lambda: padded(c(128), n(1000), "clustered"))
    add(
        "batched_nms 32 x 1,000, 20 classes",
        lambda: batched(pixel_boxes(n(32_000), "uniform"), ids(n, c, 640, 32_000)),
    )
    add(
        "batched_nms 100,000, 80 classes, clustered",
        lambda: batched(pixel_boxes(n(100_000), "clustered"), ids(n, c, 80, 100_000)),
    )
    for count, metric in ((10_000, "iou"), (70_000, "iou"), (70_000, "ios")):
        add(
            f"nms_groups {count:,} clustered, {metric}",
            lambda k=count, metric=metric: groups_of(pixel_boxes(n(k), "clustered"), metric),
        )
    add("box_iou 1,000 x 1,000", lambda: box_iou(n(1000)))
    add("encode_boxes B8 A8,732", encode, c(8), tiny)
    add("decode_boxes B8 A8,732", decode, c(8), tiny)
    add("multiclass_nms B8 1,000 C80", lambda: second_stage(c(8), n(1000), c(80)))
    return found


def ids(n: Callable, c: Callable, classes: int, count: int = 10_000) -> Tensor:
    return torch.randint(0, c(classes), (n(count),))
