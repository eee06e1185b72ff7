"""Rivals outside PyTorch, one adapter each, in the form that each likes best.

An adapter gets our tensors once and returns a call without arguments. What that call needs, an array in
float64 or a list of tuples, is made before, so that no rival is timed for a conversion. `answer` makes of its
result what ours returns; that is not timed either.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


def _indices(result) -> Tensor:
    return torch.as_tensor(np.asarray(result, dtype=np.int64).reshape(-1))


class Adapter(NamedTuple):
    """`prepare(*arguments of ours)` gives the call, or a pair of it and its own `answer`.

    `differs`: what its definition does otherwise.
    """

    package: str
    prepare: Callable
    differs: str = ""
    answer: Callable = _indices

    def start(self, args: tuple) -> tuple[Callable, Callable]:
        """The call, and the function that makes of its result what ours returns."""
        prepared = self.prepare(*args)
        return prepared if isinstance(prepared, tuple) else (prepared, self.answer)

    def missing(self) -> str:
        """Why it cannot run here, or an empty string."""
        try:
            importlib.import_module(self.package)
        except Exception as error:
            return f"{self.package} does not import ({str(error).splitlines()[0]})"
        return ""


def _doubles(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.double().numpy() for tensor in tensors]


# nms(boxes [N, 4], scores [N], iou_threshold)


def powerboxes_nms(boxes, scores, threshold):
    import powerboxes

    box, score = _doubles(boxes, scores)  # its scores are always float64
    return lambda: powerboxes.nms(box, score, threshold, 0.0)


def powerboxes_rtree_nms(boxes, scores, threshold):
    import powerboxes

    box, score = _doubles(boxes, scores)
    return lambda: powerboxes.rtree_nms(box, score, threshold, 0.0)


def lsnms_nms(boxes, scores, threshold, idxs=None):
    import lsnms

    box, score = _doubles(boxes, scores)
    classes = None if idxs is None else idxs.numpy()
    return lambda: lsnms.nms(box, score, threshold, 0.0, classes)


def _onnx_session(threshold: float, most: int):
    import onnxruntime
    from onnx import TensorProto, helper

    inputs = {"boxes": [1, None, 4], "scores": [1, None, None]}
    graph = helper.make_graph(
        [
            helper.make_node(
                "NonMaxSuppression", ["boxes", "scores", "most", "iou", "low"], ["kept"]
            )
        ],
        "nms",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in inputs.items()],
        [helper.make_tensor_value_info("kept", TensorProto.INT64, [None, 3])],
        [
            helper.make_tensor("most", TensorProto.INT64, [1], [most]),
            helper.make_tensor("iou", TensorProto.FLOAT, [1], [threshold]),
            helper.make_tensor("low", TensorProto.FLOAT, [1], [0.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, ["CPUExecutionProvider"]
    )


def onnxruntime_nms(boxes, scores, threshold):
    session = _onnx_session(threshold, len(boxes))
    feed = {"boxes": boxes[None].numpy(), "scores": scores[None, None].numpy()}
    return lambda: session.run(None, feed)[0][:, 2]


def _corner_and_size(boxes: Tensor) -> list[tuple[float, ...]]:
    """A list is what OpenCV reads fastest: an array is unpacked row by row."""
    box = boxes.double()
    return [tuple(row) for row in torch.cat((box[:, :2], box[:, 2:] - box[:, :2]), 1).tolist()]


def opencv_nms(boxes, scores, threshold):
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    box, score = _corner_and_size(boxes), scores.tolist()
    return lambda: cv2.dnn.NMSBoxes(box, score, 0.0, threshold)


def sahi_nms(boxes, scores, threshold):
    from sahi.postprocess._numba_backend import nms_numba

    rows = np.column_stack((*_doubles(boxes, scores), np.zeros(len(boxes))))
    return lambda: nms_numba(rows, "IOU", threshold)


def ensemble_boxes_nms(boxes, scores, threshold):
    """Its inner function: it needs no boxes in 0..1, and returns indices."""
    from ensemble_boxes.ensemble_boxes_nms import nms_float_fast

    box, score = _doubles(boxes, scores)
    return lambda: nms_float_fast(box, score, threshold)


DROPS_EQUAL = "drops a box at an IoU equal to the threshold, in float64"
DOUBLE = "computes in float64"
NMS = {
    "powerboxes": Adapter("powerboxes", powerboxes_nms, DOUBLE),
    "powerboxes, R-tree": Adapter("powerboxes", powerboxes_rtree_nms, DOUBLE),
    "lsnms": Adapter("lsnms", lsnms_nms, f"{DROPS_EQUAL}; drops boxes of score 0"),
    "onnxruntime": Adapter("onnxruntime", onnxruntime_nms),
    "opencv": Adapter("cv2", opencv_nms, f"{DOUBLE}; drops boxes of score 0"),
    "sahi": Adapter("sahi.postprocess._numba_backend", sahi_nms, DROPS_EQUAL),
    "ensemble-boxes": Adapter("ensemble_boxes", ensemble_boxes_nms, DOUBLE),
}


# batched_nms(boxes [N, 4], scores [N], idxs [N], iou_threshold)


def powerboxes_batched_nms(boxes, scores, idxs, threshold):
    """It knows no classes: the boxes of each are moved away from the others, inside the clock."""
    import powerboxes

    box, score = _doubles(boxes, scores)
    classes = idxs.numpy()

    def run():
        shift = classes * (box.max() - box.min() + 1)
        return powerboxes.nms(box + shift[:, None], score, threshold, 0.0)

    return run


def lsnms_batched_nms(boxes, scores, idxs, threshold):
    return lsnms_nms(boxes, scores, threshold, idxs)


def onnxruntime_batched_nms(boxes, scores, idxs, threshold):
    """Each box has a score above 0 for its own class alone; the others are skipped by the op."""
    session = _onnx_session(threshold, len(boxes))
    table = torch.zeros(1, int(idxs.max()) + 1, len(boxes))
    table[0, idxs, torch.arange(len(boxes))] = scores
    feed = {"boxes": boxes[None].numpy(), "scores": table.numpy()}
    return lambda: session.run(None, feed)[0][:, 2]


def opencv_batched_nms(boxes, scores, idxs, threshold):
    import cv2

    cv2.setNumThreads(torch.get_num_threads())
    box, score, classes = _corner_and_size(boxes), scores.tolist(), idxs.tolist()
    return lambda: cv2.dnn.NMSBoxesBatched(box, score, classes, 0.0, threshold)


def sahi_batched_nms(boxes, scores, idxs, threshold):
    from sahi.postprocess.backends import set_postprocess_backend
    from sahi.postprocess.combine import batched_nms

    set_postprocess_backend("numba")
    rows = np.column_stack(_doubles(boxes, scores, idxs))
    return lambda: batched_nms(rows, "IOU", threshold)


def ensemble_boxes_batched_nms(boxes, scores, idxs, threshold):
    """It wants boxes in 0..1, and returns boxes and scores: indices are found by the scores, which differ."""
    from ensemble_boxes import nms

    low = boxes.min()
    box = ((boxes - low) / (boxes.max() - low)).double().numpy()
    score = scores.double().numpy()
    args = [box], [score], [idxs.numpy()]
    order = score.argsort()
    return (
        lambda: nms(*args, iou_thr=threshold)[1],
        lambda kept: _indices(order[np.searchsorted(score[order], kept)]),
    )


NO_ORDER = "its result is sorted class by class"
SHIFTS = "classes by moved boxes"
BATCHED_NMS = {
    "powerboxes": Adapter("powerboxes", powerboxes_batched_nms, f"{DOUBLE}; {SHIFTS}"),
    "lsnms": Adapter("lsnms", lsnms_batched_nms, f"{NMS['lsnms'].differs}; {SHIFTS}"),
    "onnxruntime": Adapter("onnxruntime", onnxruntime_batched_nms, NO_ORDER),
    "opencv": Adapter("cv2", opencv_batched_nms, f"{DOUBLE}; {SHIFTS}"),
    "sahi": Adapter("sahi.postprocess._numba_backend", sahi_batched_nms, DROPS_EQUAL),
    "ensemble-boxes": Adapter(
        "ensemble_boxes", ensemble_boxes_batched_nms, f"boxes are scaled to 0..1 first; {NO_ORDER}"
    ),
}


# box_iou(boxes1 [N, 4], boxes2 [M, 4])


def powerboxes_box_iou(boxes1, boxes2):
    import powerboxes

    one, other = _doubles(boxes1, boxes2)
    return lambda: powerboxes.iou_distance(one, other)


def powerboxes_parallel_box_iou(boxes1, boxes2):
    import powerboxes

    one, other = _doubles(boxes1, boxes2)
    return lambda: powerboxes.parallel_iou_distance(one, other)


def _from_distance(result) -> Tensor:
    return 1 - torch.from_numpy(result).float()


DISTANCE = "returns 1 - IoU, in float64"
BOX_IOU = {
    "powerboxes": Adapter("powerboxes", powerboxes_box_iou, DISTANCE, _from_distance),
    "powerboxes, threads": Adapter(
        "powerboxes", powerboxes_parallel_box_iou, DISTANCE, _from_distance
    ),
}

ADAPTERS = {"nms": NMS, "batched_nms": BATCHED_NMS, "box_iou": BOX_IOU}
