"""Wrong calls: the type of the error, and a message that names op and argument."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

import ssd_ops

pytestmark = pytest.mark.usefixtures("backend")

nan, inf = float("nan"), float("inf")


def f(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype)


def i(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.int64)


MAP, LABELS = f(1, 3, 4, 4), f(2, 3, 5)
BOXES, SCORES = f(6, 4), f(6)
PROBS, OFFSETS = f(2, 3, 6), f(2, 24)
SIX = f(2, 6), i(2, 6)  # losses and class labels
HEADS = f(2, 6, 3), OFFSETS, BOXES

# op, arguments, options, error, pattern of the message after "op: "
WRONG = [
    # multibox_prior: what it is called with, under its own name or that of the op below it
    (
        "multibox_prior",
        (None, [0.5], [1]),
        {},
        TypeError,
        "feature_map must be a tensor, got NoneType",
    ),
    (
        "multibox_prior",
        ([[1.0]], [0.5], [1]),
        {},
        TypeError,
        "feature_map must be a tensor, got list",
    ),
    (
        "multibox_prior",
        (f(4), [0.5], [1]),
        {},
        RuntimeError,
        r"feature_maps? must be \[.*got \[4\]",
    ),
    (
        "multibox_prior",
        (i(4, 4), [0.5], [1]),
        {},
        RuntimeError,
        "feature_maps? must be float.*got Long",
    ),
    ("multibox_prior", (MAP, [], [1]), {}, ValueError, "sizes must be at least one"),
    ("multibox_prior", (MAP, [0.5], []), {}, ValueError, "ratios must be at least one"),
    ("multibox_prior", (MAP, [0.0], [1]), {}, ValueError, "sizes must be positive.*got 0"),
    ("multibox_prior", (MAP, [0.5, -0.1], [1]), {}, ValueError, "sizes must be positive.*got -0.1"),
    ("multibox_prior", (MAP, [nan], [1]), {}, ValueError, "sizes must be positive.*got nan"),
    ("multibox_prior", (MAP, [inf], [1]), {}, ValueError, "sizes must be.*finite, got inf"),
    ("multibox_prior", (MAP, [0.5], [0]), {}, ValueError, "ratios must be positive.*got 0"),
    ("multibox_prior", (MAP, [0.5], [1, -2]), {}, ValueError, "ratios must be positive.*got -2"),
    ("multibox_prior", (MAP, [0.5], [nan]), {}, ValueError, "ratios must be positive.*got nan"),
    ("multibox_prior", (MAP, 0.5, [1]), {}, TypeError, "sizes must be a list.*got float"),
    ("multibox_prior", (MAP, "0.5", [1]), {}, TypeError, "sizes must be a list.*got str"),
    ("multibox_prior", (MAP, ["big"], [1]), {}, TypeError, "sizes must be a number, got 'big'"),
    ("multibox_prior", (MAP, [0.5], [None]), {}, TypeError, "ratios must be a number, got None"),
    ("multibox_prior", (MAP, [0.5], [1]), {"steps": (0.1,)}, ValueError, "steps must be 2 numbers"),
    (
        "multibox_prior",
        (MAP, [0.5], [1]),
        {"steps": (0, 0.1)},
        ValueError,
        "steps must be positive",
    ),
    (
        "multibox_prior",
        (MAP, [0.5], [1]),
        {"steps": (nan, 1)},
        ValueError,
        "steps must be positive",
    ),
    (
        "multibox_prior",
        (MAP, [0.5], [1]),
        {"offsets": 0.5},
        ValueError,
        "offsets must be",
    ),
    (
        "multibox_prior",
        (MAP, [0.5], [1]),
        {"offsets": (0, 1.1)},
        ValueError,
        r"offsets must be in 0\.\.1",
    ),
    (
        "multibox_prior",
        (MAP, [0.5], [1]),
        {"offsets": (nan, 0)},
        ValueError,
        r"offsets must be in 0\.\.1",
    ),
    # multibox_priors
    (
        "multibox_priors",
        (MAP, [[0.5]], [[1]]),
        {},
        TypeError,
        "feature_maps must be a list of tensors",
    ),
    ("multibox_priors", ([], [], []), {}, ValueError, "feature_maps must be at least one"),
    (
        "multibox_priors",
        ([1], [[0.5]], [[1]]),
        {},
        TypeError,
        "feature_maps must be a tensor, got int",
    ),
    (
        "multibox_priors",
        ([MAP], [[0.5], [0.4]], [[1]]),
        {},
        ValueError,
        "sizes must be 1 lists.*got 2",
    ),
    (
        "multibox_priors",
        ([MAP] * 2, [[0.5]] * 2, [[1]]),
        {},
        ValueError,
        "ratios must be 2 lists.*got 1",
    ),
    ("multibox_priors", ([MAP], [0.5], [[1]]), {}, TypeError, "sizes must be a list.*got float"),
    ("multibox_priors", ([MAP], [[]], [[1]]), {}, ValueError, "sizes must be at least one"),
    (
        "multibox_priors",
        ([MAP], [[0.5]], [[1]]),
        {"steps": []},
        ValueError,
        "steps must be 1 lists.*got 0",
    ),
    (
        "multibox_priors",
        ([MAP, f(3)], [[1]] * 2, [[1]] * 2),
        {},
        RuntimeError,
        r"feature_maps .*\[3\]",
    ),
    # box_iou
    ("box_iou", ([[0, 0, 1, 1]], BOXES), {}, TypeError, "boxes1 must be a tensor, got list"),
    ("box_iou", (BOXES, None), {}, TypeError, "boxes2 must be a tensor, got NoneType"),
    (
        "box_iou",
        (f(3, 5), BOXES),
        {},
        RuntimeError,
        r"boxes1 must be \[\.\.\., N, 4\], got \[3, 5\]",
    ),
    (
        "box_iou",
        (BOXES, f(6, 3)),
        {},
        RuntimeError,
        r"boxes2 must be \[\.\.\., M, 4\], got \[6, 3\]",
    ),
    ("box_iou", (f(4), BOXES), {}, RuntimeError, r"boxes1 must be .*got \[4\]"),
    ("box_iou", (BOXES, f(4)), {}, RuntimeError, r"boxes2 must be .*got \[4\]"),
    ("box_iou", (f(3, 4).bool(), BOXES), {}, RuntimeError, "boxes1 must be float.*got Bool"),
    ("box_iou", (BOXES, f(3, 4).bool()), {}, RuntimeError, "boxes2 must be float.*got Bool"),
    ("box_iou", (BOXES, f(3, 4).cfloat()), {}, RuntimeError, "boxes2 must be float.*got Complex"),
    ("box_iou", (f(2, 6, 4), f(3, 6, 4)), {}, ValueError, "boxes2 must have"),
    # encode_boxes, decode_boxes
    ("encode_boxes", ((1, 2, 3, 4), BOXES), {}, TypeError, "boxes must be a tensor, got tuple"),
    ("encode_boxes", (BOXES, 3), {}, TypeError, "anchors must be a tensor, got int"),
    (
        "encode_boxes",
        (f(6, 5), BOXES),
        {},
        RuntimeError,
        r"boxes must be \[\.\.\., 4\], got \[6, 5\]",
    ),
    ("encode_boxes", (BOXES, f(6, 2)), {}, RuntimeError, r"anchors must be .*got \[6, 2\]"),
    (
        "encode_boxes",
        (BOXES, f(5, 4)),
        {},
        RuntimeError,
        r"anchors must be .*\[6, 4\], got \[5, 4\]",
    ),
    ("encode_boxes", (BOXES, f(2, 6, 4)), {}, RuntimeError, r"anchors must be .*got \[2, 6, 4\]"),
    ("encode_boxes", (f(), BOXES), {}, RuntimeError, r"boxes must be .*got \[\]"),
    ("encode_boxes", (i(6, 4), BOXES), {}, RuntimeError, "boxes must be float.*got Long"),
    ("encode_boxes", (BOXES, i(6, 4)), {}, RuntimeError, "anchors must be float.*got Long"),
    ("encode_boxes", (BOXES, BOXES), {"variances": (1, 1, 1)}, ValueError, "variances must be 4"),
    (
        "encode_boxes",
        (BOXES, BOXES),
        {"variances": (1, 1, 1, 0)},
        ValueError,
        "variances must be posit",
    ),
    (
        "encode_boxes",
        (BOXES, BOXES),
        {"variances": (1, 1, 1, nan)},
        ValueError,
        "variances must be pos",
    ),
    ("encode_boxes", (BOXES, BOXES), {"eps": -1}, ValueError, "eps must be 0 or more.*got -1"),
    ("encode_boxes", (BOXES, BOXES), {"eps": nan}, ValueError, "eps must be 0 or more.*got nan"),
    (
        "encode_boxes",
        (BOXES, BOXES),
        {"eps": "small"},
        TypeError,
        "eps must be a number, got 'small'",
    ),
    ("decode_boxes", (None, BOXES), {}, TypeError, "offsets must be a tensor, got NoneType"),
    ("decode_boxes", (f(6, 3), BOXES), {}, RuntimeError, r"offsets must be .*got \[6, 3\]"),
    ("decode_boxes", (OFFSETS, BOXES), {}, RuntimeError, r"offsets must be .*got \[2, 24\]"),
    ("decode_boxes", (BOXES, f(7, 4)), {}, RuntimeError, r"anchors must be .*got \[7, 4\]"),
    ("decode_boxes", (i(6, 4), BOXES), {}, RuntimeError, "offsets must be float.*got Long"),
    (
        "decode_boxes",
        (BOXES, BOXES),
        {"variances": 0.1},
        ValueError,
        "variances must be",
    ),
    (
        "decode_boxes",
        (BOXES, BOXES),
        {"variances": (-1, 1, 1, 1)},
        ValueError,
        "variances must be pos",
    ),
    *(
        (
            op,
            (BOXES, BOXES),
            {"coding": coding},
            ValueError,
            "coding must be 'center', 'linear' or 'dis",
        )
        for op in ("encode_boxes", "decode_boxes")
        for coding in ("Center", None, 1)
    ),
    *(
        (
            "encode_boxes",
            (BOXES, BOXES),
            {"coding": coding, "eps": 1e-6},
            ValueError,
            "eps must be 0 with",
        )
        for coding in ("linear", "distance")
    ),
    ("decode_boxes", (BOXES, BOXES), {"clip": (4, 5, 6)}, ValueError, "clip must be 2 numbers"),
    ("decode_boxes", (BOXES, BOXES), {"clip": (0, 5)}, ValueError, "clip must be positive.*got 0"),
    (
        "decode_boxes",
        (BOXES, BOXES),
        {"clip": (5, inf)},
        ValueError,
        "clip must be.*finite, got inf",
    ),
    (
        "decode_boxes",
        (BOXES, BOXES),
        {"clip": (nan, 5)},
        ValueError,
        "clip must be positive.*got nan",
    ),
    (
        "decode_boxes",
        (BOXES, BOXES),
        {"clip": 640},
        TypeError,
        "clip must be True, False or .*got 640",
    ),
    (
        "decode_boxes",
        (BOXES, BOXES),
        {"clip": "no"},
        ValueError,
        "clip must be 2 numbers, got 'no'",
    ),
    (
        "decode_boxes",
        (BOXES, BOXES),
        {"max_log_size": 0},
        ValueError,
        "max_log_size must be.*got 0",
    ),
    (
        "decode_boxes",
        (BOXES, BOXES),
        {"max_log_size": nan},
        ValueError,
        "max_log_size must be.*got nan",
    ),
    (
        "decode_boxes",
        (BOXES, BOXES),
        {"max_log_size": "four"},
        TypeError,
        "max_log_size must be a nu",
    ),
    *(
        (
            "decode_boxes",
            (BOXES, BOXES),
            {"max_log_size": 4, "coding": coding},
            ValueError,
            "max_log_size must be None with a coding other than 'center', got 4",
        )
        for coding in ("linear", "distance")
    ),
    # multibox_target
    ("multibox_target", (BOXES, LABELS), {"coding": "log"}, ValueError, "coding must be"),
    (
        "multibox_target",
        (BOXES.numpy(), LABELS),
        {},
        TypeError,
        "anchors must be a tensor, got ndarray",
    ),
    (
        "multibox_target",
        (BOXES, None),
        {},
        TypeError,
        "labels must be a tensor or a list of tensors, got NoneType",
    ),
    (
        "multibox_target",
        (f(6, 5), LABELS),
        {},
        RuntimeError,
        r"anchors must be \[A, 4\].*got \[6, 5\]",
    ),
    (
        "multibox_target",
        (f(2, 6, 4), LABELS),
        {},
        RuntimeError,
        r"anchors must be .*got \[2, 6, 4\]",
    ),
    ("multibox_target", (f(4), LABELS), {}, RuntimeError, r"anchors must be .*got \[4\]"),
    (
        "multibox_target",
        (BOXES, f(2, 3, 4)),
        {},
        RuntimeError,
        r"labels must be \[B, G, 5\], got \[2, 3, 4\]",
    ),
    (
        "multibox_target",
        (BOXES, f(3, 5)),
        {},
        RuntimeError,
        r"labels must be \[B, G, 5\], got \[3, 5\]",
    ),
    ("multibox_target", (i(6, 4), LABELS), {}, RuntimeError, "anchors must be float.*got Long"),
    ("multibox_target", (BOXES, i(2, 3, 5)), {}, RuntimeError, "labels must be float.*got Long"),
    (
        "multibox_target",
        (BOXES, LABELS),
        {"iou_threshold": 1.1},
        ValueError,
        r"iou_threshold must be in 0\.\.1",
    ),
    (
        "multibox_target",
        (BOXES, LABELS),
        {"iou_threshold": -0.1},
        ValueError,
        "iou_threshold must be in",
    ),
    (
        "multibox_target",
        (BOXES, LABELS),
        {"iou_threshold": nan},
        ValueError,
        "iou_threshold .*got nan",
    ),
    (
        "multibox_target",
        (BOXES, LABELS),
        {"iou_threshold": None},
        TypeError,
        "iou_threshold must be a num",
    ),
    (
        "multibox_target",
        (BOXES, LABELS),
        {"variances": (1, 1, 1, 0)},
        ValueError,
        "variances must be pos",
    ),
    (
        "multibox_target",
        (BOXES, LABELS),
        {"semantics": "d2"},
        ValueError,
        "semantics must be 'd2l'.*'d2'",
    ),
    (
        "multibox_target",
        (BOXES, LABELS),
        {"semantics": 0},
        ValueError,
        "semantics must be 'd2l'.*got 0",
    ),
    (
        "multibox_target",
        (BOXES, LABELS),
        {"semantics": []},
        ValueError,
        "semantics must be",
    ),
    # hard_negative_mining
    ("hard_negative_mining", ([0.1], i(1, 1)), {}, TypeError, "losses must be a tensor, got list"),
    (
        "hard_negative_mining",
        (f(2, 6), [0]),
        {},
        TypeError,
        "cls_labels must be a tensor, got list",
    ),
    ("hard_negative_mining", (f(6), i(6)), {}, RuntimeError, r"losses must be \[B, A\], got \[6\]"),
    (
        "hard_negative_mining",
        (f(2, 6, 1), i(2, 6)),
        {},
        RuntimeError,
        r"losses must be .*got \[2, 6, 1\]",
    ),
    (
        "hard_negative_mining",
        (f(2, 6), i(2, 5)),
        {},
        RuntimeError,
        r"cls_labels must be .*got \[2, 5\]",
    ),
    (
        "hard_negative_mining",
        (f(2, 6), i(12)),
        {},
        RuntimeError,
        r"cls_labels must be .*got \[12\]",
    ),
    (
        "hard_negative_mining",
        (i(2, 6), i(2, 6)),
        {},
        RuntimeError,
        "losses must be float.*got Long",
    ),
    (
        "hard_negative_mining",
        (f(2, 6), f(2, 6)),
        {},
        RuntimeError,
        "cls_labels must be int64, got Float",
    ),
    (
        "hard_negative_mining",
        (f(2, 6), i(2, 6).int()),
        {},
        RuntimeError,
        "cls_labels must be int64, got Int",
    ),
    ("hard_negative_mining", SIX, {"ratio": -1}, ValueError, "ratio must be 0 or more.*got -1"),
    ("hard_negative_mining", SIX, {"ratio": nan}, ValueError, "ratio must be 0 or more.*got nan"),
    ("hard_negative_mining", SIX, {"ratio": inf}, ValueError, "ratio must be .*finite, got inf"),
    ("hard_negative_mining", SIX, {"ratio": "3:1"}, TypeError, "ratio must be a number, got '3:1'"),
    (
        "hard_negative_mining",
        SIX,
        {"min_negatives": -1},
        ValueError,
        "min_negatives must be 0 or more",
    ),
    (
        "hard_negative_mining",
        SIX,
        {"min_negatives": 1.5},
        TypeError,
        "min_negatives must be an int",
    ),
    ("hard_negative_mining", SIX, {"min_negatives": 2**63}, ValueError, "min_negatives must be"),
    # nms
    ("nms", ([[0, 0, 1, 1]], SCORES, 0.5), {}, TypeError, "boxes must be a tensor, got list"),
    ("nms", (BOXES, [0.5], 0.5), {}, TypeError, "scores must be a tensor, got list"),
    ("nms", (f(6, 5), SCORES, 0.5), {}, RuntimeError, r"boxes must be \[N, 4\], got \[6, 5\]"),
    (
        "nms",
        (f(1, 6, 4), SCORES, 0.5),
        {},
        RuntimeError,
        r"boxes must be \[N, 4\], got \[1, 6, 4\]",
    ),
    ("nms", (BOXES, f(5), 0.5), {}, RuntimeError, r"scores must be .*got \[5\]"),
    ("nms", (BOXES, f(6, 1), 0.5), {}, RuntimeError, r"scores must be .*got \[6, 1\]"),
    ("nms", (i(6, 4), SCORES, 0.5), {}, RuntimeError, "boxes must be float.*got Long"),
    ("nms", (BOXES, i(6), 0.5), {}, RuntimeError, "scores must be float.*got Long"),
    ("nms", (BOXES, SCORES, -1.5), {}, ValueError, "iou_threshold must be 0 or more, got -1.5"),
    ("nms", (BOXES, SCORES, -1e-9), {}, ValueError, "iou_threshold must be 0 or more, got -1e-09"),
    ("nms", (BOXES, SCORES, nan), {}, ValueError, "iou_threshold must be 0 or more, got nan"),
    ("nms", (BOXES, SCORES, None), {}, TypeError, "iou_threshold must be a number, got None"),
    ("nms", (BOXES, SCORES, 0.5), {"metric": "giou"}, ValueError, "metric must be 'iou' or 'ios'"),
    ("nms", (BOXES, SCORES, 0.5), {"metric": 1}, ValueError, "metric must be .* got 1"),
    ("box_iou", (BOXES, BOXES), {"metric": "IOU"}, ValueError, "metric must be 'iou' or 'ios'"),
    ("nms_padded", (BOXES, SCORES, 0.5), {"metric": None}, ValueError, "metric must be 'iou'"),
    ("batched_nms", (BOXES, SCORES, i(6), 0.5), {"metric": ""}, ValueError, "metric must be 'iou'"),
    ("multiclass_nms", (f(1, 6, 4), f(1, 6, 2)), {"metric": "x"}, ValueError, "metric must be"),
    ("detect", (f(2, 6, 3), f(2, 24), BOXES), {"metric": "x"}, ValueError, "metric must be"),
    # nms_padded
    ("nms_padded", ([], SCORES, 0.5), {}, TypeError, "boxes must be a tensor, got list"),
    ("nms_padded", (BOXES, [0.5], 0.5), {}, TypeError, "scores must be a tensor, got list"),
    (
        "nms_padded",
        (f(2, 6, 5), f(2, 6), 0.5),
        {},
        RuntimeError,
        r"boxes must be .*got \[2, 6, 5\]",
    ),
    ("nms_padded", (BOXES, f(2, 6), 0.5), {}, RuntimeError, r"boxes must be \[B, N, 4\]"),
    ("nms_padded", (f(2, 6, 4), SCORES, 0.5), {}, RuntimeError, r"scores must be \[B, N\], got"),
    ("nms_padded", (f(2, 6, 4), f(2, 5), 0.5), {}, RuntimeError, r"scores must be .*got \[2, 5\]"),
    ("nms_padded", (f(2, 6, 4), f(3, 6), 0.5), {}, RuntimeError, r"scores must be .*got \[3, 6\]"),
    ("nms_padded", (i(2, 6, 4), f(2, 6), 0.5), {}, RuntimeError, "boxes must be float.*got Long"),
    ("nms_padded", (f(2, 6, 4), i(2, 6), 0.5), {}, RuntimeError, "scores must be float.*got Long"),
    (
        "nms_padded",
        (BOXES, SCORES, -0.5),
        {},
        ValueError,
        "iou_threshold must be 0 or more, got -0.5",
    ),
    # multibox_detection
    (
        "multibox_detection",
        (None, OFFSETS, BOXES),
        {},
        TypeError,
        "cls_probs must be a tensor, got None",
    ),
    (
        "multibox_detection",
        (PROBS, None, BOXES),
        {},
        TypeError,
        "offset_preds must be a tensor, got None",
    ),
    (
        "multibox_detection",
        (PROBS, OFFSETS, None),
        {},
        TypeError,
        "anchors must be a tensor, got None",
    ),
    (
        "multibox_detection",
        (f(3, 6), OFFSETS, BOXES),
        {},
        RuntimeError,
        r"cls_probs must be .*got \[3, 6\]",
    ),
    (
        "multibox_detection",
        (f(2, 1, 6), OFFSETS, BOXES),
        {},
        RuntimeError,
        r"cls_probs must be .*got \[2, 1",
    ),
    (
        "multibox_detection",
        (f(2, 0, 6), OFFSETS, BOXES),
        {},
        RuntimeError,
        r"cls_probs must be .*got \[2, 0",
    ),
    (
        "multibox_detection",
        (PROBS, f(2, 6, 4), BOXES),
        {},
        RuntimeError,
        r"offset_preds must be .*\[2, 6, 4\]",
    ),
    (
        "multibox_detection",
        (PROBS, f(2, 20), BOXES),
        {},
        RuntimeError,
        r"offset_preds must be .*\[2, 20\]",
    ),
    (
        "multibox_detection",
        (PROBS, f(3, 24), BOXES),
        {},
        RuntimeError,
        r"offset_preds must be .*\[3, 24\]",
    ),
    (
        "multibox_detection",
        (PROBS, OFFSETS, f(5, 4)),
        {},
        RuntimeError,
        r"anchors must be .*got \[5, 4\]",
    ),
    (
        "multibox_detection",
        (PROBS, OFFSETS, f(2, 6, 4)),
        {},
        RuntimeError,
        r"anchors must be .*\[2, 6, 4\]",
    ),
    (
        "multibox_detection",
        (i(2, 3, 6), OFFSETS, BOXES),
        {},
        RuntimeError,
        "cls_probs must be float.*Long",
    ),
    (
        "multibox_detection",
        (PROBS, i(2, 24), BOXES),
        {},
        RuntimeError,
        "offset_preds must be float.*Long",
    ),
    (
        "multibox_detection",
        (PROBS, OFFSETS, i(6, 4)),
        {},
        RuntimeError,
        "anchors must be float.*Long",
    ),
    (
        "multibox_detection",
        (PROBS, OFFSETS, BOXES, 2),
        {},
        ValueError,
        r"nms_threshold must be in 0\.\.1",
    ),
    ("multibox_detection", (PROBS, OFFSETS, BOXES, nan), {}, ValueError, "nms_threshold .*got nan"),
    (
        "multibox_detection",
        (PROBS, OFFSETS, BOXES, 0.5, -1),
        {},
        ValueError,
        "pos_threshold must be in",
    ),
    (
        "multibox_detection",
        (PROBS, OFFSETS, BOXES, 0.5, nan),
        {},
        ValueError,
        "pos_threshold .*got nan",
    ),
    (
        "multibox_detection",
        (PROBS, OFFSETS, BOXES),
        {"variances": ()},
        ValueError,
        "variances must be 4",
    ),
    (
        "multibox_detection",
        (PROBS, OFFSETS, BOXES),
        {"semantics": "tv"},
        ValueError,
        "semantics must be",
    ),
    *(
        (op, args, options, error, message)
        for op, args, cases in (
            (
                "multibox_detection",
                (PROBS, OFFSETS, BOXES),
                (
                    ({"semantics": "torchvision"}, ValueError, "semantics must be .*use detect"),
                    ({"topk": 0}, ValueError, "topk must be 1 or more, or -1 for all, got 0"),
                    ({"topk": 1.5}, TypeError, "topk must be an int, got 1.5"),
                ),
            ),
            (
                "multibox_target",
                (BOXES, LABELS, PROBS),
                (
                    ({"negative_mining_ratio": -1}, ValueError, "negative_mining_ratio must be 0"),
                    ({"negative_mining_ratio": nan}, ValueError, "negative_mining_ratio must be 0"),
                    ({"negative_mining_threshold": 2}, ValueError, "negative_mining_threshold"),
                    ({"min_negatives": -1}, ValueError, "min_negatives must be 0 or more, got -1"),
                    ({"min_negatives": 2**63}, ValueError, "min_negatives must be an int of 64"),
                    ({"ignore_label": 0.5}, TypeError, "ignore_label must be an int, got 0.5"),
                ),
            ),
            (
                "detect",
                (f(2, 6, 3), f(2, 6, 4), BOXES),
                (
                    ({"activation": "tanh"}, ValueError, "activation must be 'none'.*got 'tanh'"),
                    ({"score_threshold": -0.1}, ValueError, "score_threshold must be in"),
                    ({"iou_threshold": nan}, ValueError, "iou_threshold must be 0 or more"),
                    ({"topk": -2}, ValueError, "topk must be 1 or more"),
                    ({"max_detections": 0}, ValueError, "max_detections must be 1 or more, got 0"),
                    ({"variances": (1, 1)}, ValueError, "variances must be 4 numbers"),
                ),
            ),
            (
                "multiclass_nms",
                (f(2, 6, 4), f(2, 6, 3)),
                (
                    ({"score_threshold": 1.1}, ValueError, "score_threshold must be in"),
                    ({"iou_threshold": -0.1}, ValueError, "iou_threshold must be 0 or more"),
                    ({"max_detections": True}, TypeError, "max_detections must be an int"),
                ),
            ),
            (
                "assign_anchors",
                (BOXES, f(2, 3, 4)),
                (
                    ({"force_match": "best"}, ValueError, "force_match must be 'none'.*'best'"),
                    ({"iou_threshold": 1.5}, ValueError, "iou_threshold must be in"),
                    (
                        {"background_threshold": 0.6},
                        ValueError,
                        "background_threshold must be at most iou_threshold, 0.5, got 0.6",
                    ),
                ),
            ),
        )
        for options, error, message in cases
    ),
    (
        "multibox_target",
        (BOXES, LABELS),
        {"negative_mining_ratio": 3},
        ValueError,
        "cls_preds must be",
    ),
    ("multibox_target", (BOXES, LABELS, f(2, 3, 5)), {}, RuntimeError, r"cls_preds must be \[2, C"),
    ("multibox_target", (BOXES, LABELS, i(2, 3, 6)), {}, RuntimeError, "cls_preds must be float"),
    ("multibox_target", (BOXES, LABELS, [1]), {}, TypeError, "cls_preds must be a tensor"),
    ("assign_anchors", (f(2, 6, 4), LABELS), {}, RuntimeError, r"anchors must be \[A, 4\]"),
    ("assign_anchors", (BOXES, LABELS), {}, RuntimeError, r"gt_boxes must be \[B, G, 4\]"),
    ("assign_anchors", (BOXES, BOXES), {}, RuntimeError, r"gt_counts must be offsets.*got none"),
    ("assign_anchors", (BOXES, BOXES, i(0)), {}, RuntimeError, r"gt_counts must be offsets"),
    ("assign_anchors", (BOXES, f(2, 3, 4), i(3)), {}, RuntimeError, r"gt_counts must be \[B\]"),
    ("assign_anchors", (BOXES, f(2, 3, 4), f(2)), {}, RuntimeError, "gt_counts must be int64"),
    ("assign_anchors", (BOXES, f(2, 3, 4), [3]), {}, TypeError, "gt_counts must be a tensor"),
    ("assign_anchors", (BOXES, [BOXES], i(1)), {}, ValueError, "gt_counts must be None"),
    ("assign_anchors", (BOXES, [f(3, 5)]), {}, ValueError, r"gt_boxes must be \[G, 4\] each"),
    ("assign_anchors", (BOXES, [None]), {}, TypeError, "gt_boxes must be a tensor"),
    ("assign_anchors", (BOXES, 3), {}, TypeError, "gt_boxes must be a tensor or a list"),
    ("batched_nms", (BOXES, SCORES, i(5), 0.5), {}, RuntimeError, r"idxs must be \[6\]"),
    ("batched_nms", (BOXES, SCORES, i(6, 1), 0.5), {}, RuntimeError, r"idxs must be \[N\]"),
    ("batched_nms", (BOXES, SCORES, SCORES, 0.5), {}, RuntimeError, "idxs must be int64"),
    ("batched_nms", (BOXES, f(5), i(6), 0.5), {}, RuntimeError, r"scores must be \[6\]"),
    ("batched_nms", (BOXES, SCORES, i(6), -1), {}, ValueError, "iou_threshold must be 0 or more"),
    ("multiclass_nms", (BOXES, SCORES), {}, RuntimeError, r"boxes must be \[B, N, 4\]"),
    ("multiclass_nms", (f(2, 6, 4), f(2, 5, 3)), {}, RuntimeError, r"scores must be \[B, N, C\]"),
    ("multiclass_nms", (f(2, 6, 4), i(2, 6, 3)), {}, RuntimeError, "scores must be float"),
    ("detect", (f(2, 6, 1), f(2, 6, 4), BOXES), {}, RuntimeError, r"cls_scores must be \[B, A, C"),
    ("detect", (f(2, 6, 3), f(2, 6, 5), BOXES), {}, RuntimeError, "offset_preds must be"),
    ("detect", (f(2, 6, 3), f(2, 24), f(5, 4)), {}, RuntimeError, r"anchors must be \[6, 4\]"),
    ("detect", (f(2, 6, 3), i(2, 24), BOXES), {}, RuntimeError, "offset_preds must be float"),
    (
        "detect",
        (f(2, 6, 3), OFFSETS, BOXES),
        {"coding": "log"},
        ValueError,
        "coding must be 'center'",
    ),
    ("detect", (f(2, 6, 3), OFFSETS, BOXES), {"clip": (5,)}, ValueError, "clip must be 2 numbers"),
    (
        "detect",
        (f(2, 6, 3), OFFSETS, BOXES),
        {"max_log_size": 4, "coding": "linear"},
        ValueError,
        "max_log_size must be None",
    ),
    *(
        (op, args, levels, error, message)
        for op, args in (
            ("multiclass_nms", (f(2, 6, 4), f(2, 6, 3))),
            ("detect", (f(2, 6, 3), OFFSETS, BOXES)),
        )
        for levels, error, message in (
            ({"topk_per_level": 3}, ValueError, "level_counts must be given with topk_per_level"),
            ({"level_counts": [6]}, ValueError, "topk_per_level must be given with level_counts"),
            (
                {"level_counts": [], "topk_per_level": 3},
                ValueError,
                "level_counts must be at least",
            ),
            ({"level_counts": 6, "topk_per_level": 3}, TypeError, "level_counts must be a list"),
            (
                {"level_counts": [6.0], "topk_per_level": 3},
                TypeError,
                "level_counts must be an int",
            ),
            (
                {"level_counts": [7, -1], "topk_per_level": 3},
                ValueError,
                "level_counts must be 0 or",
            ),
            ({"level_counts": [6], "topk_per_level": 0}, ValueError, "topk_per_level must be 1 or"),
            (
                {"level_counts": [6], "topk_per_level": -1},
                ValueError,
                "topk_per_level must be 1 or",
            ),
            ({"level_counts": [6], "topk_per_level": 1.5}, TypeError, "topk_per_level must be an"),
            (
                {"level_counts": [3, 2], "topk_per_level": 3},
                RuntimeError,
                "level_counts must add up .* 6",
            ),
            ({"level_counts": [7], "topk_per_level": 3}, RuntimeError, "level_counts must add up"),
            (
                {"level_counts": [2**62] * 4 + [6], "topk_per_level": 3},
                RuntimeError,
                "level_counts must add up",
            ),
        )
    ),
]


@pytest.mark.parametrize(
    "op, args, options, error, message", WRONG, ids=[f"{n}-{row[0]}" for n, row in enumerate(WRONG)]
)
def test_wrong_call(op, args, options, error, message):
    # multibox_prior is multibox_priors with one level, so C++ may name the latter.
    name = "multibox_priors?" if op == "multibox_prior" else op
    with pytest.raises(error, match=f"^{name}: {message}") as caught:
        getattr(ssd_ops, op)(*args, **options)
    text = str(caught.value)
    assert "\n" not in text and "csrc" not in text and "/" not in text, "a path or a trace shows"


def test_there_are_200_wrong_calls_and_each_names_an_argument():
    """With those of the ops that have tables of their own there are more."""
    assert len({_told(*row[:3]) for row in WRONG}) == len(WRONG) >= 200
    for op, _, _, error, message in WRONG:
        assert error in (TypeError, ValueError, RuntimeError)
        names = inspect.signature(getattr(ssd_ops, op)).parameters
        assert re.match(r"\w+", message)[0] in {*names, "feature_maps"}, message


def _told(op, args, options):
    """A call as text, with tensors by shape and dtype."""
    tensors = [(tuple(a.shape), a.dtype) if isinstance(a, torch.Tensor) else repr(a) for a in args]
    return f"{op} {tensors} {options}"


# The same checks hold for callers that skip Python: op, arguments, pattern.
RAW = [
    ("nms", (BOXES, SCORES, 1.5, 0), r"iou_threshold must be in 0\.\.1, got 1.5"),
    ("nms", (BOXES, SCORES, nan, 0), r"iou_threshold must be in 0\.\.1, got -?nan"),
    ("encode_boxes", (BOXES, BOXES, [1.0, 1.0], 0.0, 0), "variances must be 4 numbers, got 2"),
    ("encode_boxes", (BOXES, BOXES, [1.0, 1.0, 1.0, -1.0], 0.0, 0), "variances must be positive"),
    ("encode_boxes", (BOXES, BOXES, [1.0] * 4, -1.0, 0), "eps must be 0 or more"),
    (
        "decode_boxes",
        (BOXES, BOXES, [1.0, 1.0, 1.0, nan], [0.0, 0.0], 0, -1.0),
        "variances must be positive",
    ),
    (
        "multibox_target",
        (BOXES, LABELS, None, 2.0, [1.0] * 4, -1.0, 0.5, 0, -1, 0, 0, None, 0.5),
        "iou_threshold must be in",
    ),
    (
        "multibox_target",
        (BOXES, LABELS, None, 0.5, [1.0] * 4, -1.0, 0.5, 0, -1, 99, 0, None, 0.5),
        "semantics must be",
    ),
    (
        "multibox_target",
        (BOXES, LABELS, None, 0.5, [1.0] * 4, 3.0, 0.5, 0, -1, 0, 0, None, 0.5),
        "cls_preds must be given",
    ),
    (
        "multibox_target",
        (BOXES, LABELS, None, 0.5, [1.0] * 4, -1.0, 0.5, 0, -1, 0, 0, None, nan),
        "ignore_threshold must be in",
    ),
    (
        "assign_anchors",
        (BOXES, f(2, 3, 4), None, 0.5, 0.6, 1, None, 0.5),
        "background_threshold must be in",
    ),
    ("assign_anchors", (BOXES, f(2, 3, 4), None, 0.5, 0.5, 4, None, 0.5), "force_match must be 0"),
    (
        "assign_anchors",
        (BOXES, f(2, 3, 4), None, 0.5, 0.5, 1, None, 1.5),
        "ignore_threshold must be in",
    ),
    ("batched_nms", (BOXES, SCORES, i(6), nan, 0), "iou_threshold must be in"),
    ("nms", (BOXES, SCORES, 0.5, 2), r"metric must be 0 \(iou\) or 1 \(ios\), got 2"),
    ("batched_nms", (BOXES, SCORES, i(6), 0.5, -1), "metric must be 0"),
    ("nms_padded", (f(2, 6, 4), f(2, 6), 0.5, 7), "metric must be 0"),
    ("nms_groups", (BOXES, SCORES, None, 0.5, 2), "metric must be 0"),
    ("box_iou", (BOXES, BOXES, 2), "metric must be 0"),
    (
        "multiclass_nms",
        (f(2, 6, 4), f(2, 6, 3), 0.1, 0.5, 1, 5, False, 2, False, [0], -1),
        "metric must be 0",
    ),
    (
        "detect",
        (*HEADS, 1, 0.1, 0.5, 1, 5, [1.0] * 4, [0.0, 0.0], False, 2, 0, -1.0, False, [0], -1),
        "metric must be 0",
    ),
    (
        "multiclass_nms",
        (f(2, 6, 4), f(2, 6, 3), 0.1, 0.5, 0, 5, False, 0, False, [0], -1),
        "topk must be 1 or more",
    ),
    (
        "multiclass_nms",
        (f(2, 6, 4), f(2, 6, 3), 0.1, 0.5, 1, 0, False, 0, False, [0], -1),
        "max_detections must be",
    ),
    (
        "detect",
        (*HEADS, 3, 0.1, 0.5, 1, 5, [1.0] * 4, [0.0, 0.0], False, 0, 0, -1.0, False, [0], -1),
        "activation must be 0",
    ),
    (
        "detect",
        (*HEADS, 1, 0.1, 0.5, 1, 5, [1.0] * 4, [0.0, 0.0], False, 0, 3, -1.0, False, [0], -1),
        "coding must be 0",
    ),
    (
        "detect",
        (*HEADS, 1, 0.1, 0.5, 1, 5, [1.0] * 4, [5.0], False, 0, 0, -1.0, False, [0], -1),
        "clip must be 2 numbers, got 1",
    ),
    (
        "detect",
        (*HEADS, 1, 0.1, 0.5, 1, 5, [1.0] * 4, [0.0, 0.0], False, 0, 1, 4.0, False, [0], -1),
        "max_log_size must be -1",
    ),
    (
        "detect",
        (*HEADS, 1, 0.1, 0.5, 1, 5, [1.0] * 4, [0.0, 0.0], False, 0, 0, -1.0, False, [], 3),
        "level_counts must add up",
    ),
    (
        "detect",
        (*HEADS, 1, 0.1, 0.5, 1, 5, [1.0] * 4, [0.0, 0.0], False, 0, 0, -1.0, False, [6], 0),
        "topk_per_level must be 1 or more",
    ),
    (
        "detect",
        (*HEADS, 1, 0.1, 0.5, 1, 5, [1.0] * 4, [0.0, 0.0], False, 0, 0, -1.0, False, [-1, 7], 2),
        "level_counts must be 0 or more",
    ),
    ("decode_boxes", (BOXES, BOXES, [1.0] * 4, [0.0, 0.0], 3, -1.0), "coding must be 0"),
    ("decode_boxes", (BOXES, BOXES, [1.0] * 4, [1.0, 0.0], 0, -1.0), "clip must be positive"),
    (
        "decode_boxes",
        (BOXES, BOXES, [1.0] * 4, [0.0, 0.0], 0, nan),
        "max_log_size must be positive",
    ),
    (
        "decode_boxes",
        (BOXES, BOXES, [1.0] * 4, [0.0, 0.0], 0, -2.0),
        "max_log_size must be positive",
    ),
    ("encode_boxes", (BOXES, BOXES, [1.0] * 4, 0.1, 1), "eps must be 0"),
    ("encode_boxes", (BOXES, BOXES, [1.0] * 4, 0.0, -1), "coding must be 0"),
    (
        "multibox_target",
        (BOXES, LABELS, None, 0.5, [1.0] * 4, -1.0, 0.5, 0, -1, 0, 3, None, 0.5),
        "coding must",
    ),
    (
        "multibox_detection",
        (PROBS, OFFSETS, BOXES, 0.5, 7.0, [1.0] * 4, False, True, -1, 0),
        "pos_threshold must be in",
    ),
    (
        "multibox_detection",
        (PROBS, OFFSETS, BOXES, 0.5, 0.1, [1.0] * 4, False, True, -1, 2),
        "semantics must be",
    ),
    ("hard_negative_mining", (*SIX, nan, 0), "ratio must be 0 or more"),
    ("hard_negative_mining", (*SIX, 3.0, -1), "min_negatives must be 0 or more"),
    ("multibox_priors", ([MAP], [1.0], [2], [1.0], [1], [], [0.5, 0.5], False), "sizes must"),
    ("multibox_priors", ([MAP], [1.0], [-1], [1.0], [1], [], [0.5, 0.5], False), "sizes must"),
    ("multibox_priors", ([MAP], [1.0], [1], [1.0], [2**62], [], [0.5, 0.5], False), "ratios must"),
    ("multibox_priors", ([MAP], [1.0], [1], [1.0], [1], [0.1], [0.5, 0.5], False), "steps must"),
    ("multibox_priors", ([MAP], [1.0], [1], [1.0], [1], [], [0.5], False), "offsets must"),
    (
        "multibox_priors",
        ([MAP], [0.0], [1], [1.0], [1], [], [0.5, 0.5], False),
        "sizes must be pos",
    ),
]


@pytest.mark.parametrize(
    "op, args, message", RAW, ids=[f"{n}-{row[0]}" for n, row in enumerate(RAW)]
)
def test_wrong_call_of_the_torch_op(op, args, message):
    with pytest.raises(RuntimeError, match=f"^{op}: {message}"):
        getattr(torch.ops.ssd_ops, op)(*args)


def test_unknown_keywords_and_missing_arguments():
    for call in (
        lambda: ssd_ops.nms(BOXES, SCORES),
        lambda: ssd_ops.nms(BOXES, SCORES, 0.5, top_k=3),
        lambda: ssd_ops.multibox_target(BOXES),
        lambda: ssd_ops.encode_boxes(BOXES, BOXES, (1, 1, 1, 1)),
    ):
        with pytest.raises(TypeError, match=r"argument"):
            call()
