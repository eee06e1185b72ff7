"""Detection ops for PyTorch: anchors, assignment, hard-negative mining, decoding and NMS."""

from ssd_ops.ops import (
    box_iou,
    decode_boxes,
    encode_boxes,
    hard_negative_mining,
    multibox_detection,
    multibox_prior,
    multibox_priors,
    multibox_target,
    nms,
    nms_padded,
)
from ssd_ops.version import __version__

__all__ = [
    "__version__",
    "box_iou",
    "decode_boxes",
    "encode_boxes",
    "hard_negative_mining",
    "multibox_detection",
    "multibox_prior",
    "multibox_priors",
    "multibox_target",
    "nms",
    "nms_padded",
]
