"""The cells of the measurement: an op, a scene or a shape, a number of boxes or images, and its rivals.

What the GPU benchmarks measure too comes from their shapes (benchmarks/gpu/shapes.py), with the same rivals.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [
    str(ROOT / folder) for folder in ("benchmarks/gpu", "benchmarks", "tests", ".")
]  # shapes.py; baselines.py; cases.py
import cases  # noqa: E402
import rivals  # noqa: E402
import shapes  # noqa: E402
import torch  # noqa: E402
from adapters import ADAPTERS, Adapter  # noqa: E402
from shapes import Shape  # noqa: E402
from torch import Tensor  # noqa: E402

import ssd_ops  # noqa: E402

SMALL = "small"
SIZES = (10, 30, 100, 300, 1000, 10_000, 100_000, 1_000_000)


class Cell(NamedTuple):
    """`count`: what grows from cell to cell of a case. `reads`: which arguments must be read; None: all."""

    op: str
    case: str
    count: int
    make: Callable[[], Shape]
    reads: tuple[int, ...] | None = None

    @property
    def name(self) -> str:
        return f"{self.op} {self.case} {self.count:,}"

    def shape(self) -> Shape:
        """The same numbers in any order and in any process."""
        torch.manual_seed(zlib.crc32(self.name.encode()))
        return self.make()

    def adapters(self) -> dict[str, Adapter]:
        return {} if self.case == SMALL else ADAPTERS.get(self.op, {})


def tiled(count: int) -> Tensor:
    """Sliced inference: objects of an image that grows with their number, each found by every tile that sees
    its center. Tiles have 640 pixels and share a fifth with the next."""
    side = 40 * count**0.5
    found: list[Tensor] = []
    while sum(map(len, found)) < count:
        center = torch.rand(count, 2) * side
        half = 8 * 8 ** torch.rand(count, 2)
        boxes = torch.cat((center - half, center + half), dim=1)
        phase = (center % 512 < 128) & (
            center > 512
        )  # in the strip that two tiles share, by x and y
        times = 2 ** phase.sum(dim=1)
        boxes = boxes.repeat_interleave(times, dim=0)
        size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        found.append(boxes + 0.03 * size * torch.randn(len(boxes), 4))
    return torch.cat(found)[:count]


def few_kept(count: int) -> Tensor:
    """One pile of nearly equal boxes, of which few survive."""
    center, half = torch.rand(count, 2) * 2, (100 + 2 * torch.rand(count, 2)) / 2
    return torch.cat((center - half, center + half), dim=1)


def chain(count: int) -> Tensor:
    return 1000 * cases.boxes(count, kind="chain")


SCENES: dict[str, Callable[[int], Tensor]] = {
    "uniform": partial(shapes.pixel_boxes, kind="uniform"),
    "clustered": partial(shapes.pixel_boxes, kind="clustered"),
    "tiled": tiled,
    "few kept": few_kept,
    "chain": chain,
}


def scores(count: int, scene: str) -> Tensor:
    """In (0, 1), no two equal: sorts are not stable, and some rivals drop 0. They fall along a chain."""
    order = torch.arange(count, 0, -1) if scene == "chain" else torch.randperm(count) + 1
    return order / (count + 1)


def nms(scene: str, count: int) -> Shape:
    return shapes.nms(SCENES[scene](count), scores=scores(count, scene))


def batched_nms(scene: str, count: int) -> Shape:
    classes = torch.randint(0, 80 if count >= 10_000 else 20, (count,))
    shape = shapes.batched(SCENES[scene](count), classes)
    box, _, ids, threshold = shape.args
    return shape._replace(args=(box, scores(count, scene), ids, threshold))


def nms_padded(scene: str, images: int) -> Shape:
    return shapes.padded(images, 1000, scene)


def box_iou(anchors: int, gts: int) -> Shape:
    shape = shapes.box_iou(1)
    boxes = cases.boxes(anchors) if anchors == gts else cases.prior_anchors(anchors)[0]
    return shape._replace(args=(boxes, cases.boxes(gts)))


def coded(op: str, count: int) -> Shape:
    """Encoding or decoding, of `count` images over SSD300's anchors or, from 100 on, of `count` boxes."""
    make = {"encode_boxes": shapes.encode, "decode_boxes": shapes.decode}[op]
    shape = make(count if count < 100 else 1, tiny=count >= 100)
    if count >= 100:
        theirs = cases.boxes(count) if op == "encode_boxes" else torch.randn(count, 4)
        shape = shape._replace(args=(theirs, cases.boxes(count)))
    others = shape.rivals | {"torchvision": rivals.torchvision_coder(op)}
    return shape._replace(rivals=others)


def one_level(cells: int) -> Shape:
    return shapes.priors([(cells, cells)], [[0.2, 0.272]], [[1, 2, 0.5]], tiny=False)


def small(op: str) -> Shape:
    """One image with ten boxes or anchors, where an op has them: what a call costs."""
    return Shape(getattr(ssd_ops, op), cases.inputs(op, images=1, size=10), {}, None)


IMAGES = (1, 8, 32)


def all_cells() -> list[Cell]:
    found: list[Cell] = []

    def add(op, case, counts, make, reads=None):
        found.extend(Cell(op, case, count, partial(make, count), reads) for count in counts)

    for scene in SCENES:
        add("nms", scene, SIZES, partial(nms, scene))
    for scene in SCENES:
        add("batched_nms", scene, (100, 1000, 10_000, 100_000), partial(batched_nms, scene))
    for scene in ("uniform", "clustered"):
        add("nms_padded", f"1,000 boxes, {scene}", IMAGES, partial(nms_padded, scene))
    add(
        "nms_groups",
        "clustered",
        (1000, 10_000, 100_000),
        lambda n: shapes.groups_of(shapes.pixel_boxes(n, "clustered"), "iou"),
    )
    add("box_iou", "N x N", (10, 100, 1000), lambda n: box_iou(n, n))
    for gts in (8, 64):
        add("box_iou", f"anchors x {gts}", (8732, 24_564), partial(box_iou, gts=gts))
    for gts in (1, 8, 64):
        add(
            "multibox_target",
            f"SSD300, {gts} gt{'s' * (gts > 1)}",
            IMAGES,
            partial(shapes.target, gts=gts, count=8732, tiny=False),
        )
    add(
        "multibox_target",
        "RetinaNet, 8 gts",
        (1, 8),
        partial(shapes.target, gts=8, count=200_700, tiny=False),
    )
    for gts in (8, 64):
        add(
            "assign_anchors",
            f"SSD300, {gts} gts",
            IMAGES,
            partial(shapes.assign, gts=gts, tiny=False, force_match="argmax"),
        )
    for name, count in (("SSD300", 8732), ("RetinaNet", 200_700)):
        add(
            "hard_negative_mining",
            name,
            IMAGES if count == 8732 else (1, 8),
            partial(shapes.mining, count=count, tiny=False),
        )
    for op in ("encode_boxes", "decode_boxes"):
        add(op, "boxes", (100, 200_700), partial(coded, op))
        add(op, "SSD300", IMAGES, partial(coded, op))
    # Of feature maps only the sizes are read.
    add("multibox_priors", "one level", (5776,), lambda _: one_level(38), ())
    add(
        "multibox_priors",
        "SSD's levels",
        (8732, 24_564),
        partial(shapes.ssd_priors, tiny=False),
        (),
    )
    add(
        "multibox_priors",
        "RetinaNet's levels",
        (111_500,),
        lambda _: shapes.retina_priors(False),
        (),
    )
    add("grid_anchors", "RetinaNet's levels", (200_700,), lambda _: shapes.retina_grid(False), ())
    add(
        "multibox_detection",
        "SSD300, 20 classes",
        IMAGES,
        partial(shapes.detection, classes=20, count=8732, tiny=False),
    )
    for kind in ("noise", "trained"):
        # All scores have to be read, but of the offsets only those of candidates.
        add(
            "detect",
            f"SSD300, 20 classes, {kind}",
            IMAGES,
            partial(shapes.detect, classes=20, count=8732, tiny=False, kind=kind),
            (0,),
        )
    add("detect", "RetinaNet, 80 classes", (1,), partial(shapes.retina_detect, tiny=False), (0,))
    add(
        "multiclass_nms",
        "1,000 boxes, 80 classes",
        (1, 8),
        partial(shapes.second_stage, count=1000, classes=80),
        (1,),
    )
    for op in sorted(set(_names()) - cases.PLAIN):
        add(op, SMALL, (1,), lambda _, op=op: small(op))
    return found


def _names() -> list[str]:
    return [name for name in ssd_ops.__all__ if name[0].islower()]


# Two cells of each op, of which the second has more candidates: what memory is measured on.
MEMORY = [
    *(("nms", scene, 10_000, 100_000) for scene in SCENES),
    *(("batched_nms", scene, 10_000, 100_000) for scene in ("uniform", "few kept")),
    ("nms_padded", "1,000 boxes, uniform", 8, 32),
    ("nms_groups", "clustered", 10_000, 100_000),
    ("box_iou", "N x N", 100, 1000),
    ("multibox_target", "SSD300, 8 gts", 8, 32),
    ("assign_anchors", "SSD300, 8 gts", 8, 32),
    ("hard_negative_mining", "SSD300", 8, 32),
    ("encode_boxes", "SSD300", 8, 32),
    ("decode_boxes", "SSD300", 8, 32),
    ("multibox_priors", "SSD's levels", 8732, 24_564),
    ("multibox_detection", "SSD300, 20 classes", 8, 32),
    ("detect", "SSD300, 20 classes, noise", 8, 32),
    ("multiclass_nms", "1,000 boxes, 80 classes", 1, 8),
]
