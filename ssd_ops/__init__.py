"""Detection ops for PyTorch: anchors, assignment, hard-negative mining, decoding and NMS."""

from ssd_ops.ops import (
    Detections,
    assign_anchors,
    batched_nms,
    box_iou,
    decode_boxes,
    detect,
    encode_boxes,
    hard_negative_mining,
    multibox_detection,
    multibox_prior,
    multibox_priors,
    multibox_target,
    multiclass_nms,
    nms,
    nms_padded,
)
from ssd_ops.version import __version__

__all__ = [
    "Detections",
    "__version__",
    "assign_anchors",
    "batched_nms",
    "box_iou",
    "decode_boxes",
    "detect",
    "encode_boxes",
    "hard_negative_mining",
    "multibox_detection",
    "multibox_prior",
    "multibox_priors",
    "multibox_target",
    "multiclass_nms",
    "nms",
    "nms_padded",
]
