"""Every op equals the reference where most boxes overlap, scores and overlaps tie, and some numbers are odd.

Arguments are drawn as bytes, a few bits for each thing: that is fast, and shrinks to few and small numbers.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import cases
import fuzz
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import ssd_ops
from ssd_ops import reference

pytestmark = [pytest.mark.usefixtures("backend", "library_math"), pytest.mark.long]

ODD = np.array([np.nan, np.inf, -np.inf, 1e31, -1e31, 1e-40, 0, -0.125])
DTYPES = [torch.float32] * 3 + [torch.float64, torch.float16, torch.bfloat16]
THRESHOLDS = [0.5, 1 / 3, 0.25, 0.0, 0.2, 1 / 7, 3 / 7, 0.1, 0.3, 0.75, 0.5, 1.0]
METRICS = ["iou", "ios"]
CODINGS = ["center", "linear", "distance"]
BYTES = 320  # of the largest call

Drawn = tuple[tuple, dict[str, Any]]  # arguments, options


class Draw:
    """Reads the parts of one call from bytes, of which there are as many as it asks for: zeros at the end."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0
        self.dtype = self.one_of(DTYPES)
        self.mask = self.one_of([1, 3, 1])  # two numbers for each side and each score, or four

    def bytes(self, *shape: int) -> np.ndarray:
        size = math.prod(shape)
        part = self.content[self.at : self.at + size]
        self.at += size
        return np.frombuffer(part.ljust(size, b"\0"), dtype=np.uint8).reshape(shape)

    def one_of(self, options: Sequence[Any]) -> Any:
        return options[int(self.bytes(1)[0]) % len(options)]

    def count(self, least: int = 1, most: int = 12) -> int:
        return self.one_of(range(least, most + 1))

    def images(self) -> int:
        return self.one_of([1, 2, 1, 2, 3, 1, 2, 1, 2, 3, 1, 2, 1, 2, 3, 0])

    def some(self) -> int:
        """How many boxes."""
        return self.one_of([12, 9, 5, 8, 10, 2, 12, 7, 11, 12, 6, 1])

    def flag(self) -> bool:
        return self.one_of([False, True])

    def fraction(self) -> float:
        return int(self.bytes(4).view(np.uint32)[0]) / (2**32 - 1)

    def threshold(self) -> float:
        """Most often a number that is the IoU of some boxes."""
        return self.fraction() if self.count(0, 3) == 3 else self.one_of(THRESHOLDS)

    def boxes(self, *shape: int) -> Tensor:
        """Corners on a grid of eighths, seven wide at most; some an ulp beside it, a few odd."""
        raw = self.bytes(*shape, 4)
        number = (raw & self.mask).astype(np.float32)
        number[..., 2:] += number[..., :2] + 1
        number /= 8
        if self.dtype == torch.float32:
            step = raw >> 2 & 7
            number = np.where(step == 6, np.nextafter(number, np.float32(9)), number)
            number = np.where(step == 7, np.nextafter(number, np.float32(-9)), number)
        return self._with_odd(number, raw)

    def numbers(self, *shape: int, least: int = 0) -> Tensor:
        """Of two or four numbers, so that most tie; a few are odd."""
        raw = self.bytes(*shape)
        return self._with_odd(((raw & self.mask) + least) / 4, raw)

    def _with_odd(self, number: np.ndarray, raw: np.ndarray) -> Tensor:
        number = np.where(raw >= 248, ODD[raw & 7], number)
        return torch.from_numpy(number).to(self.dtype)

    def classes(self, *shape: int, least: int = 0, kinds: int = 4) -> Tensor:
        return torch.from_numpy((self.bytes(*shape) % kinds).astype(np.int64) + least)

    def best(self, count: int) -> dict[str, Any]:
        """Options of an op that chooses from the scores of classes."""
        options = {
            "score_threshold": self.one_of([0.0, 0.0, 0.0, 0.1, 0.0, 0.25]),
            "iou_threshold": self.threshold(),
            "topk": self.one_of([-1, -1, -1, -1, -1, 10, 8, 3, 1]),
            "max_detections": self.one_of([40, 40, 40, 40, 20, 5, 1]),
            "metric": self.one_of(METRICS),
            "class_agnostic": self.flag(),
            "best_class_only": self.one_of([False, False, False, True]),
        }
        if self.count(0, 3) == 3:
            cut = self.count(0, count)
            options |= {"level_counts": [cut, count - cut], "topk_per_level": self.count(1, 4)}
        return options


def nms(draw: Draw) -> Drawn:
    count = draw.some()
    args = draw.boxes(count), draw.numbers(count), draw.threshold()
    return args, {"metric": draw.one_of(METRICS)}


def nms_padded(draw: Draw) -> Drawn:
    images, count = draw.images(), draw.some()
    args = draw.boxes(images, count), draw.numbers(images, count), draw.threshold()
    return args, {"metric": draw.one_of(METRICS)}


def nms_groups(draw: Draw) -> Drawn:
    args, options = nms_padded(draw)
    if draw.flag():
        options["idxs"] = draw.classes(*args[1].shape, least=-1)
    return args, options


def batched_nms(draw: Draw) -> Drawn:
    (boxes, scores, threshold), options = nms(draw)
    return (boxes, scores, draw.classes(len(boxes), least=-1), threshold), options


def multiclass_nms(draw: Draw) -> Drawn:
    images, count, classes = draw.images(), draw.some(), draw.one_of([1, 2, 3, 1, 2, 3, 1, 2, 3, 0])
    args = draw.boxes(images, count), draw.numbers(images, count, classes, least=1)
    return args, draw.best(count)


def detect(draw: Draw) -> Drawn:
    images, count = draw.images(), draw.some()
    activation = draw.one_of(["softmax", "sigmoid", "none"])
    classes = draw.count(2, 3) if activation == "softmax" else draw.count(1, 3)
    args = draw.numbers(images, count, classes), draw.numbers(images, count, 4), draw.boxes(count)
    return args, {
        "activation": activation,
        "clip": draw.one_of([False, (2.0, 1.0), True]),
        **draw.best(count),
    }


def multibox_detection(draw: Draw) -> Drawn:
    images, count, classes = draw.images(), draw.some(), draw.count(2, 4)
    args = (
        draw.numbers(images, classes, count),
        draw.numbers(images, 4 * count),
        draw.boxes(count),
    )
    return args, {
        "nms_threshold": draw.threshold(),
        "pos_threshold": draw.one_of([0.0, 0.25, 0.3]),
        "topk": draw.one_of([-1, -1, 3]),
        "semantics": draw.one_of(["d2l", "mxnet"]),
        "clip": draw.flag(),
        "class_agnostic": draw.flag(),
    }


def assign_anchors(draw: Draw) -> Drawn:
    images, gts = draw.images(), draw.one_of([4, 3, 2, 5, 6, 1])
    args: tuple = draw.boxes(draw.some()), draw.boxes(images, gts)
    if draw.flag():
        args = (*args, draw.classes(images, least=-1).clamp(max=gts))
    high = draw.threshold()
    options = {
        "iou_threshold": high,
        "background_threshold": draw.one_of([None, high, high * draw.fraction()]),
        "force_match": draw.one_of(["bipartite", "argmax", "low_quality", "none"]),
    }
    return args, options | ignored(draw, images)


def ignored(draw: Draw, images: int) -> dict[str, Any]:
    if not draw.flag():
        return {}
    regions = draw.boxes(images, draw.count(0, 3))
    return {"ignore_boxes": regions, "ignore_threshold": draw.threshold()}


def multibox_target(draw: Draw) -> Drawn:
    images, gts, anchors = draw.images(), draw.one_of([4, 3, 2, 5, 6, 1]), draw.some()
    classes = draw.classes(images, gts, 1, least=-1).to(draw.dtype)
    args: tuple = draw.boxes(anchors), torch.cat((classes, draw.boxes(images, gts)), dim=2)
    options = {
        "iou_threshold": draw.threshold(),
        "semantics": draw.one_of(["d2l", "mxnet", "torchvision"]),
        "coding": draw.one_of(CODINGS),
    }
    if draw.flag():
        args = (*args, draw.numbers(images, draw.count(2, 3), anchors))
        options["negative_mining_ratio"] = draw.one_of([3.0, 0.5, 0.0])
        options["negative_mining_threshold"] = draw.threshold()
        options["min_negatives"] = draw.count(0, 3)
    return args, options | ignored(draw, images)


def hard_negative_mining(draw: Draw) -> Drawn:
    images, count = draw.images(), draw.some()
    args = (
        draw.numbers(images, count),
        torch.tensor([0, 0, 0, 0, 0, 1, 1, -1])[draw.classes(images, count, kinds=8)],
    )
    ratio = draw.one_of([1.0, 0.5, 0.0, 3.0])
    return args, {"ratio": ratio, "min_negatives": draw.one_of([1, 2, 3, 0])}


def box_iou(draw: Draw) -> Drawn:
    args = draw.boxes(draw.count(0)), draw.boxes(draw.count(0))
    return args, {"metric": draw.one_of(METRICS)}


def encode_boxes(draw: Draw) -> Drawn:
    count, coding = draw.count(0), draw.one_of(CODINGS)
    eps = draw.one_of([0.0, 1e-6]) if coding == "center" else 0.0
    return (draw.boxes(count), draw.boxes(count)), {"coding": coding, "eps": eps}


def decode_boxes(draw: Draw) -> Drawn:
    count, coding = draw.count(0), draw.one_of(CODINGS)
    options = {"coding": coding, "clip": draw.one_of([False, True, (0.5, 0.25)])}
    if coding == "center":
        options["max_log_size"] = draw.one_of([None, 0.1, 4.0])
    return (draw.numbers(count, 4), draw.boxes(count)), options


def multibox_priors(draw: Draw) -> Drawn:
    maps, options = _maps(draw)
    sizes, ratios = ([_positives(draw) for _ in maps] for _ in range(2))
    return (maps, sizes, ratios), options


def grid_anchors(draw: Draw) -> Drawn:
    maps, options = _maps(draw)
    shapes = [list(zip(_positives(draw), _positives(draw), strict=False)) for _ in maps]
    return (maps, shapes), options


def _positives(draw: Draw) -> list[float]:
    odd = [0.5, 0.2, 1e-40, 1e-30, 1e30, 10 * draw.fraction() + 1e-3]
    return [draw.one_of(odd) for _ in range(draw.count(1, 3))]


def _maps(draw: Draw) -> tuple[list[Tensor], dict[str, Any]]:
    sides = [(draw.count(1, 4), draw.count(1, 4)) for _ in range(draw.count(1, 3))]
    maps = [torch.zeros(1, 1, *side, dtype=draw.dtype) for side in sides]
    fractions = [0.0, 0.5, 1.0, draw.fraction()]
    options = {"offsets": (draw.one_of(fractions), draw.one_of(fractions)), "clip": draw.flag()}
    if draw.flag():
        options["steps"] = [(0.25, draw.fraction() + 1e-3)] * len(maps)
    return maps, options


DRAWS: dict[str, Callable[[Draw], Drawn]] = {name: globals()[name] for name in fuzz.OPS}


# What a call of an op decides: that a box drops another, or what is chosen of two that tie.


def suppresses(name: str, args: tuple, options: dict[str, Any]) -> bool:
    """Whether the op gives something else than where no box drops another."""
    if name == "multibox_detection":
        free = {**options, "nms_threshold": 1.0}
        # By the rules of MXNet, equal boxes drop each other at 1 too.
        return not same(name, args, options, free) or bool(
            (result(name, args, free)[0] == -1).any()
        )
    if "iou_threshold" in options:
        return not same(name, args, options, {**options, "iou_threshold": 1.0})
    return not all(
        map(fuzz.same, result(name, args, options), result(name, (*args[:-1], 1.0), options))
    )


def same(name: str, args: tuple, options: dict[str, Any], others: dict[str, Any]) -> bool:
    return all(map(fuzz.same, result(name, args, options), result(name, args, others)))


def matches_tie(name: str, args: tuple, options: dict[str, Any]) -> bool:
    """Whether a gt has the same highest IoU with two anchors, or an anchor with two gts."""
    gts = args[1] if name == "assign_anchors" else args[1][..., 1:]
    iou = reference.box_iou(args[0], gts)  # [B, A, G]
    for dim in (1, 2):
        best = iou.amax(dim=dim, keepdim=True) if iou.numel() else iou
        if (((iou == best) & (best > 0)).sum(dim=dim) > 1).any():
            return True
    return False


def losses_tie(name: str, args: tuple, options: dict[str, Any]) -> bool:
    """Whether of two negatives of the same loss one is selected and one is not."""
    losses, labels = args
    (selected,) = result(name, args, options)
    for loss, label, mine in zip(losses, labels, selected, strict=True):
        taken, left = loss[(label == 0) & mine], loss[(label == 0) & ~mine]
        if (taken[:, None] == left).any():
            return True
    return False


def pairs_tie(name: str, args: tuple, options: dict[str, Any]) -> bool:
    """Whether two pairs of boxes overlap, and by the same."""
    (overlaps,) = result(name, args, options)
    overlaps = overlaps[overlaps > 0]
    return len(overlaps.unique()) < len(overlaps)


DECIDES = {
    "assign_anchors": matches_tie,
    "multibox_target": matches_tie,
    "hard_negative_mining": losses_tie,
    "box_iou": pairs_tie,
    **dict.fromkeys([name for name in fuzz.OPS if "nms" in name or "dete" in name], suppresses),
}


def result(
    name: str, args: tuple, options: dict[str, Any], of: Any = ssd_ops
) -> tuple[Tensor, ...]:
    got = getattr(of, name)(*args, **options)
    return (got,) if isinstance(got, Tensor) else tuple(got)


@pytest.mark.parametrize("name", fuzz.OPS)
def test_equals_reference(name, backend, note):
    seen: Counter[str] = Counter()

    @given(content=st.binary(min_size=BYTES, max_size=BYTES))
    def compare(content):
        args, options = DRAWS[name](Draw(content))
        got, expected = (result(name, args, options, of) for of in (ssd_ops, reference))
        assert [t.dtype for t in got] == [t.dtype for t in expected]
        for place, pair in enumerate(zip(got, expected, strict=True)):
            assert fuzz.same(*pair), (place, args, options, *pair)
        seen["examples"] += 1
        if name in DECIDES and seen["examples"] <= len(cases.rounds(100)):
            seen["asked"] += 1
            seen["decided"] += DECIDES[name](name, args, options)

    began = time.perf_counter()
    compare()
    # Boxes that do not meet test little.
    assert seen["decided"] >= 0.3 * seen["asked"]
    if backend == "cpu":
        share = {"decided": round(seen["decided"] / seen["asked"], 2)} if seen["asked"] else {}
        seconds = round(time.perf_counter() - began)
        note("examples", name, examples=seen["examples"], **share, seconds=seconds)
