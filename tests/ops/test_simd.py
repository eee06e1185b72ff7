"""The versions of the vector loops for other instruction sets give the same bits, with 1 to 8 threads."""

from __future__ import annotations

import os
import subprocess
import sys

import cases
import pytest

CODE = """
import hashlib, itertools, torch, ssd_ops

def results_of(size, dtype):
    # Of every op with a vector loop, or with work for threads, on the same boxes in each call.
    torch.manual_seed(size)
    half = (size + 1) // 2
    corner = torch.rand(half, 2, dtype=dtype)
    boxes = torch.cat((corner, corner + 0.3 * torch.rand(half, 2, dtype=dtype)), dim=1)
    # Images enough for each thread; equal scores, and boxes that are there twice.
    boxes = boxes.repeat(2, 1)[:size]
    gts = boxes[torch.arange(9 * 9) % size].reshape(9, 9, 4)
    labels = torch.cat((torch.zeros(9, 9, 1, dtype=dtype), gts), dim=2)
    offsets = torch.randn(9, size, 4, dtype=dtype)
    probs = torch.randint(0, 50, (9, 3, size)).to(dtype) / 50
    images = boxes.expand(9, size, 4)
    return [
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
        ssd_ops.hard_negative_mining(probs[:, 0], torch.arange(9 * size).view(9, size) % 3),
        ssd_ops.multibox_detection(probs, offsets.flatten(1), boxes),
        *(ssd_ops.nms(boxes, probs[0, 0], threshold) for threshold in (0.0, 0.3, 0.7)),
        ssd_ops.box_iou(boxes[:200], boxes, metric="ios"),
        *ssd_ops.multiclass_nms(images, probs.mT, metric="ios"),
        *ssd_ops.detect(probs.mT, offsets, boxes),
        *ssd_ops.nms_padded(images, probs[:, 0], 0.5),
        *ssd_ops.assign_anchors(boxes, labels[..., 1:], force_match="low_quality"),
        ssd_ops.batched_nms(boxes, probs[0, 0], torch.arange(size) % 5, 0.5),
        *(
            ssd_ops.nms_groups(boxes, probs[0, 0], threshold, metric=metric)
            for threshold in (0.0, 0.3, 0.7) for metric in ("iou", "ios")
        ),
    ]

def digest_of(results):
    digest = hashlib.sha256()
    for result in results:
        digest.update(result.numpy().tobytes())
    return digest.hexdigest()

for size, dtype in itertools.product({sizes}, (torch.float32, torch.float64)):
    found = set()
    for threads in range(1, 9):
        torch.set_num_threads(threads)
        found |= {{digest_of(results_of(size, dtype)) for _ in range({repeats})}}
    print(size, dtype, *found)
"""
SIZES = (1, 17, 64, 301, 1501)


def digests_at(width):
    """A line for each size and dtype: the digests of all results, of which there must be one."""
    code = CODE.format(sizes=SIZES, repeats=repeats())
    env = {**os.environ, "SSD_OPS_SIMD": width}
    result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def repeats():
    """100 in the profile `long`."""
    return max(1, len(cases.rounds(2)) // 10)


@pytest.fixture(scope="module")
def widest():
    return digests_at("512")


@pytest.mark.long
@pytest.mark.parametrize("width", ["128", "256"])
def test_every_width_and_number_of_threads_gives_the_same_bits(width, widest, note):
    assert [len(line.split()) for line in widest] == [3] * 2 * len(SIZES), (
        "threads or repeats differ"
    )
    assert digests_at(width) == widest
    note("repeats", width, sizes=len(SIZES), threads=8, repeats=repeats())
