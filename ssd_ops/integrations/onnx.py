"""ONNX export of `nms`, `batched_nms` and `detect`, with the standard operators of opset 18.

Any ONNX runtime can run the result. The extra `ssd_ops[export]` installs onnx, onnxscript and onnxruntime.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ssd_ops.ops._arguments import CODING, METRIC
from ssd_ops.ops.detection import ACTIVATION

_ALL = torch.iinfo(torch.int64).max  # larger than any number of boxes
_LOWEST = torch.finfo(torch.float32).min
_CENTER, _DISTANCE = CODING["center"], CODING["distance"]
_SOFTMAX, _SIGMOID = ACTIVATION["softmax"], ACTIVATION["sigmoid"]


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translations of the ops for the argument `custom_translation_table` of `torch.onnx.export`.

    Returns:
        A dict with one function for each of `nms`, `batched_nms` and `detect`. The function writes the op
        in ONNX, for any number of boxes and images. Scores and boxes are float32 there. exp, softmax and
        IoU of a runtime may differ from ours in the last bit. ONNX swaps corners that are out of order,
        where our ops let such a box overlap nothing.

    Raises:
        ImportError: onnxscript is not installed.

    Example:
        >>> program = torch.onnx.export(  # doctest: +SKIP
        ...     detector, images, dynamo=True, custom_translation_table=translations())
        >>> program.save("detector.onnx")  # doctest: +SKIP
    """
    op: Any  # onnxscript's types do not fit functions that take any dtype
    try:
        from onnxscript import opset18

        op = opset18
    except ImportError as error:
        raise ImportError(
            f"ssd_ops.integrations.onnx: onnxscript does not import ({error}); "
            "install it with `pip install 'ssd_ops[export]'`"
        ) from None

    def ints(*values: int) -> Any:
        return op.Constant(value_ints=list(values))

    def number(value: float) -> Any:
        return op.Constant(value_float=float(value))

    def over(threshold: float) -> Any:
        """The greatest float32 that is not above the threshold.

        A float32 is above this number exactly if it is above the threshold.
        """
        nearest = torch.tensor(threshold, dtype=torch.float32)
        if nearest.item() > threshold:
            nearest = nearest.nextafter(torch.tensor(-1.0))
        return number(nearest.item())

    def floats(value: Any) -> Any:
        return op.Cast(value, to=1)

    def best_first(indices: Any, scores: Any) -> Any:
        """Indices by score, highest first, then by index: TopK keeps equal values in their order."""
        count = op.Shape(indices)
        ascending, _ = op.TopK(indices, count, axis=0, largest=0)
        _, order = op.TopK(op.Gather(scores, ascending, axis=0), count, axis=0)
        return op.Gather(ascending, order, axis=0)

    def select(boxes: Any, scores: Any, iou_threshold: float, score_threshold: float) -> Any:
        """Rows (image, class, box) of the kept boxes, from boxes [B, N, 4] and scores [B, C, N]."""
        return op.NonMaxSuppression(
            boxes, scores, ints(_ALL), over(iou_threshold), number(score_threshold)
        )

    def only_iou(name: str, metric: int) -> None:
        if metric != METRIC["iou"]:
            raise ValueError(f"{name}: metric must be 'iou' for ONNX, whose NMS has no other")

    def nms(boxes: Any, scores: Any, iou_threshold: float, metric: int) -> Any:
        only_iou("nms", metric)
        scores = floats(scores)
        rows = op.Unsqueeze(scores, ints(0, 1))
        kept = select(op.Unsqueeze(floats(boxes), ints(0)), rows, iou_threshold, _LOWEST)
        return best_first(op.Gather(kept, op.Constant(value_int=2), axis=1), scores)

    def batched_nms(boxes: Any, scores: Any, idxs: Any, iou_threshold: float, metric: int) -> Any:
        only_iou("batched_nms", metric)
        scores = floats(scores)
        classes, _, dense, _ = op.Unique(idxs, sorted=1)
        number_of_classes = op.Squeeze(op.Shape(classes))
        zero, one = op.Constant(value_int=0), op.Constant(value_int=1)
        each = op.Unsqueeze(op.Range(zero, number_of_classes, one), ints(1))
        mine = op.Equal(each, op.Unsqueeze(dense, ints(0)))  # [C, N]
        by_class = op.Where(mine, op.Unsqueeze(scores, ints(0)), number(float("-inf")))
        boxes = op.Unsqueeze(floats(boxes), ints(0))
        kept = select(boxes, op.Unsqueeze(by_class, ints(0)), iou_threshold, _LOWEST)
        return best_first(op.Gather(kept, op.Constant(value_int=2), axis=1), scores)

    def decode(
        offsets: Any,
        anchors: Any,
        variances: list[float],
        clip: list[float],
        coding: int,
        max_log_size: float,
    ) -> Any:
        x1, y1, x2, y2 = op.Split(anchors, num_outputs=4, axis=-1)
        numbers = op.Split(offsets, num_outputs=4, axis=-1)
        lows, highs = [], []
        for axis, (low, high) in enumerate(((x1, x2), (y1, y2))):
            side = op.Sub(high, low)
            middle = op.Div(op.Add(low, high), number(2))
            first = op.Mul(numbers[axis], number(variances[axis]))
            last = op.Mul(numbers[axis + 2], number(variances[axis + 2]))
            if coding == _DISTANCE:
                begin = op.Sub(middle, op.Mul(first, side))
                end = op.Add(middle, op.Mul(last, side))
            else:
                if max_log_size > 0:
                    last = op.Min(last, number(max_log_size))
                if coding == _CENTER:
                    last = op.Exp(last)
                center = op.Add(op.Mul(first, side), middle)
                half = op.Div(op.Mul(last, side), number(2))
                begin, end = op.Sub(center, half), op.Add(center, half)
            if clip[0] > 0:
                limits = number(0), number(clip[1 - axis])
                begin, end = op.Clip(begin, *limits), op.Clip(end, *limits)
            lows.append(begin)
            highs.append(end)
        return op.Concat(*lows, *highs, axis=-1)

    def best_class(scores: Any) -> Any:
        """Scores [B, C, A] with -1 in all places but that of the best class, the first on ties."""
        count = op.Squeeze(op.Shape(scores, start=1, end=2))
        classes = op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1))
        best = op.ArgMax(scores, axis=1, keepdims=1)
        return op.Where(op.Equal(best, op.Unsqueeze(classes, ints(0, 2))), scores, number(-1))

    def best_of_levels(scores: Any, level_counts: list[int], wanted: int) -> Any:
        """Scores [B, C, A] with -1 in all places but those of the best of each level."""
        levels, first = [], 0
        for count in filter(None, level_counts):
            level = op.Slice(scores, ints(first), ints(first + count), ints(2))
            pairs = op.Flatten(level, axis=1)
            most = op.Min(op.Shape(pairs, start=1, end=2), ints(wanted))
            values, places = op.TopK(pairs, most, axis=1)
            nothing = op.Expand(number(-1), op.Shape(pairs))
            kept = op.ScatterElements(nothing, places, values, axis=1)
            levels.append(op.Reshape(kept, op.Shape(level)))
            first += count
        return op.Concat(*levels, axis=2) if levels else scores

    def detect(
        cls_scores: Any,
        offset_preds: Any,
        anchors: Any,
        activation: int,
        score_threshold: float,
        iou_threshold: float,
        topk: int,
        max_detections: int,
        variances: list[float],
        clip: list[float],
        class_agnostic: bool,
        metric: int,
        coding: int,
        max_log_size: float,
        best_class_only: bool,
        level_counts: list[int],
        topk_per_level: int,
    ) -> Any:
        only_iou("detect", metric)
        logits, anchors = floats(cls_scores), op.Reshape(floats(anchors), ints(-1, 4))
        images, num_anchors = (op.Shape(logits, start=i, end=i + 1) for i in (0, 1))
        if activation == _SOFTMAX:
            scores = op.Slice(op.Softmax(logits, axis=2), ints(1), ints(_ALL), ints(2))
        else:
            scores = op.Sigmoid(logits) if activation == _SIGMOID else logits
        scores = op.Transpose(scores, perm=[0, 2, 1])  # [B, C, A]
        if best_class_only:
            scores = best_class(scores)
        if topk_per_level != -1:
            scores = best_of_levels(scores, level_counts, topk_per_level)
        if topk != -1:  # the others get -1, which is below every threshold
            values, rows = op.TopK(scores, op.Min(num_anchors, ints(topk)), axis=2)
            nothing = op.Expand(number(-1), op.Shape(scores))
            scores = op.ScatterElements(nothing, rows, values, axis=2)
        rows_of_four = op.Concat(images, ints(-1, 4), axis=0)
        offsets = op.Reshape(floats(offset_preds), rows_of_four)
        boxes = decode(offsets, anchors, variances, clip, coding, max_log_size)

        classes = op.Shape(scores, start=1, end=2)
        pairs = op.Mul(classes, num_anchors)
        flat = op.Concat(images, pairs, axis=0)
        if class_agnostic:  # all pairs of a class and an anchor become one class
            repeat = op.Concat(ints(1), classes, ints(1), axis=0)
            one_class = op.Unsqueeze(op.Reshape(scores, flat), ints(1))
            kept = select(op.Tile(boxes, repeat), one_class, iou_threshold, score_threshold)
        else:
            kept = select(boxes, scores, iou_threshold, score_threshold)
        image, category, box = op.Split(kept, num_outputs=3, axis=1)
        pair = op.Squeeze(op.Add(op.Mul(category, num_anchors), box), ints(1))
        place = op.Add(op.Mul(op.Squeeze(image, ints(1)), pairs), pair)

        # Kept scores stay at their place among all pairs, the others are -1, as is the padding for
        # max_detections. TopK then takes the best.
        every = op.Reshape(scores, ints(-1))
        nothing = op.Expand(number(-1), op.Shape(every))
        kept_scores = op.ScatterElements(nothing, place, op.Gather(every, place, axis=0), axis=0)
        room = op.Expand(number(-1), op.Concat(images, ints(max_detections), axis=0))
        candidates = op.Concat(op.Reshape(kept_scores, flat), room, axis=1)
        values, best = op.TopK(candidates, ints(max_detections), axis=1)
        found = op.Greater(values, number(0))
        none = op.Constant(value_int=-1)
        indices = op.Where(found, op.Mod(best, num_anchors), op.Constant(value_int=0))
        chosen = op.GatherND(boxes, op.Unsqueeze(indices, ints(2)), batch_dims=1)
        return (
            op.Where(op.Unsqueeze(found, ints(2)), chosen, number(0)),
            op.Where(found, values, number(0)),
            op.Where(found, op.Div(best, num_anchors), none),
            op.Where(found, indices, none),
            op.ReduceSum(op.Cast(found, to=7), ints(1), keepdims=0),
        )

    table = torch.ops.ssd_ops
    return {
        table.nms.default: nms,
        table.batched_nms.default: batched_nms,
        table.detect.default: detect,
    }
