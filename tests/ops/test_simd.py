"""The versions of the vector loops for other instruction sets give the same bits."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

CODE = """
import hashlib, torch, ssd_ops
torch.manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float64):
    corner = torch.rand(3000, 2, dtype=dtype)
    boxes = torch.cat((corner, corner + 0.3 * torch.rand(3000, 2, dtype=dtype)), dim=1)
    labels = torch.cat((torch.zeros(2, 9, 1, dtype=dtype), boxes[:18].reshape(2, 9, 4)), dim=2)
    offsets = torch.randn(2, 3000, 4, dtype=dtype)
    probs = torch.rand(2, 3, 3000, dtype=dtype)
    results = [
        ssd_ops.box_iou(boxes[:200], boxes),
        ssd_ops.decode_boxes(offsets, boxes),
        ssd_ops.encode_boxes(boxes.flip(0), boxes, eps=1e-6),
        ssd_ops.decode_boxes(offsets, boxes, clip=(0.5, 0.3), max_log_size=0.2),
        *(ssd_ops.encode_boxes(boxes.flip(0), boxes, coding=c) for c in ("linear", "distance")),
        *(ssd_ops.decode_boxes(offsets, boxes, coding=c) for c in ("linear", "distance")),
        *ssd_ops.multiclass_nms(offsets, probs.mT, best_class_only=True)[1:],
        *ssd_ops.multibox_target(boxes, labels),
        *ssd_ops.multibox_target(boxes, labels, ignore_boxes=labels[..., 1:].flip(0)),
        *ssd_ops.multibox_target(boxes, labels, probs, negative_mining_ratio=3.0),
        ssd_ops.hard_negative_mining(probs[:, 0], torch.arange(-1, 5999).view(2, 3000) % 3),
        ssd_ops.multibox_detection(probs, offsets.flatten(1), boxes),
        *(ssd_ops.nms(boxes, probs[0, 0], threshold) for threshold in (0.0, 0.3, 0.7)),
        ssd_ops.box_iou(boxes[:200], boxes, metric="ios"),
        *ssd_ops.multiclass_nms(boxes.expand(2, -1, 4), probs.mT, metric="ios"),
        *(
            ssd_ops.nms_groups(boxes, probs[0, 0], threshold, metric=metric)
            for threshold in (0.0, 0.3, 0.7) for metric in ("iou", "ios")
        ),
    ]
    for result in results:
        digest.update(result.numpy().tobytes())
print(digest.hexdigest())
"""


def digest_at(width):
    env = {**os.environ, "SSD_OPS_SIMD": width}
    result = subprocess.run(
        [sys.executable, "-c", CODE], env=env, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.fixture(scope="module")
def widest():
    return digest_at("512")


@pytest.mark.parametrize("width", ["128", "256"])
def test_every_width_gives_the_same_bits(width, widest):
    assert len(widest) == hashlib.sha256().digest_size * 2
    assert digest_at(width) == widest
