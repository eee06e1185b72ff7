"""The reference against numbers from print, from MXNet's public tests, and worked by hand."""

from __future__ import annotations

import golden
import pytest
import torch

from ssd_ops import reference

nan, inf = float("nan"), float("inf")


def close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("shape, sizes, ratios, cell, box", golden.PRIOR_BOXES)
def test_prior_boxes(shape, sizes, ratios, cell, box):
    anchors = reference.multibox_prior(torch.zeros(1, 3, *shape), sizes, ratios)
    height, width = shape
    per_cell = len(sizes) + len(ratios) - 1
    assert anchors.shape == (1, height * width * per_cell, 4)
    assert anchors.dtype == torch.float32
    first = anchors.reshape(height, width, per_cell, 4)[(*cell, 0)]
    close(first, torch.tensor(box), atol=2e-6)


def test_prior_order_in_a_cell():
    # Sizes with the first ratio, then the first size with the others. Map 1 x 1: w = s * sqrt(r).
    anchors = reference.multibox_prior(torch.zeros(1, 1), [0.4, 0.2], [1, 4])[0]
    close(anchors[:, 2:] - anchors[:, :2], torch.tensor([[0.4, 0.4], [0.2, 0.2], [0.8, 0.2]]))


def test_prior_steps_offsets_clip():
    # Center of cell (y 1, x 0) at y = (1 + .25) * .5, x = (0 + .75) * .3.
    anchors = reference.multibox_prior(
        torch.zeros(2, 2), [0.2], [1], steps=(0.5, 0.3), offsets=(0.25, 0.75)
    )
    close(anchors[0, 2], torch.tensor([0.125, 0.525, 0.325, 0.725]))
    clipped = reference.multibox_prior(torch.zeros(1, 1), [2.0], [1], clip=True)
    close(clipped[0, 0], torch.tensor([0.0, 0, 1, 1]))


@pytest.mark.parametrize("first, second, iou", golden.IOU_PAIRS)
def test_iou_pairs(first, second, iou):
    pair = torch.tensor([first], dtype=torch.float32), torch.tensor([second], dtype=torch.float32)
    close(reference.box_iou(*pair), torch.tensor([[iou]]))
    close(reference.box_iou(*pair[::-1]), torch.tensor([[iou]]))


def test_iou_dtypes():
    half, double = torch.rand(2, 4).half(), torch.rand(3, 4).double()
    assert reference.box_iou(half, half).dtype == torch.float32
    assert reference.box_iou(half, double).dtype == torch.float64


def test_encode_and_decode_the_book_box():
    anchor, dog = golden.BOOK_ANCHORS[0, 1:2], golden.BOOK_LABELS[0, :1, 1:]
    offsets = reference.encode_boxes(dog, anchor)
    close(offsets[0], golden.BOOK_OFFSETS_1, atol=2e-4)
    close(reference.decode_boxes(offsets, anchor), dog)


def test_decode_clip():
    box = reference.decode_boxes(
        torch.zeros(1, 4), torch.tensor([[-0.5, 0.5, 0.5, 1.5]]), clip=True
    )
    close(box, torch.tensor([[0, 0.5, 0.5, 1]]))


def test_target_of_the_book():
    offsets, masks, classes = reference.multibox_target(golden.BOOK_ANCHORS, golden.BOOK_LABELS)
    assert torch.equal(classes, golden.BOOK_CLASSES)
    assert torch.equal(masks.reshape(1, 5, 4).amax(2).bool(), golden.BOOK_CLASSES > 0)
    matched = offsets.reshape(5, 4)[[1, 2, 4]]
    torch.testing.assert_close(matched, golden.BOOK_OFFSETS, rtol=5e-3, atol=5e-6)
    assert offsets.reshape(5, 4)[[0, 3]].eq(0).all()


def test_target_of_mxnet():
    offsets, masks, classes = reference.multibox_target(golden.MXNET_ANCHORS, golden.MXNET_LABELS)
    close(offsets, golden.MXNET_OFFSETS, atol=2e-5)
    assert torch.equal(masks, golden.MXNET_MASKS)
    assert torch.equal(classes, golden.MXNET_CLASSES)


def test_target_ignores_padding_rows():
    pad = torch.tensor([[[-1.0, 0, 0, 0, 0], [-1, 0.1, 0.08, 0.52, 0.92]]])
    expected = reference.multibox_target(golden.BOOK_ANCHORS, golden.BOOK_LABELS)
    dog, cat = golden.BOOK_LABELS[:, :1], golden.BOOK_LABELS[:, 1:]
    for rows in ((dog, cat, pad), (pad, dog, cat), (dog, pad, cat)):
        got = reference.multibox_target(golden.BOOK_ANCHORS, torch.cat(rows, dim=1))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_target_forced_match_is_globally_greedy():
    # Both gts want anchor 0. Gt 1 has more of it, so gt 0 gets anchor 1, which it does not touch.
    anchors = torch.tensor([[[0.0, 0, 4, 1], [3, 0, 7, 1]]]) / 8
    gts = torch.tensor([[[5.0, 0, 0, 2, 1], [6, 1, 0, 5, 1]]]) / torch.tensor([1.0, 8, 8, 8, 8])
    iou = reference.box_iou(anchors[0], gts[0, :, 1:])
    close(iou, torch.tensor([[1 / 2, 3 / 5], [0, 1 / 3]]))
    assert reference.multibox_target(anchors, gts)[2].tolist() == [[7, 6]]


def test_target_ties_go_to_the_lowest_anchor_then_gt():
    anchors = torch.tensor([[[0.0, 0, 1, 1]] * 3])
    labels = torch.tensor([[[3.0, 0, 0, 1, 1], [4.0, 0, 0, 1, 1]]])
    # Anchor 0 forced with gt 0, anchor 1 with gt 1; anchor 2 takes its first best, gt 0.
    assert reference.multibox_target(anchors, labels)[2].tolist() == [[4, 5, 4]]


def test_target_threshold_is_inclusive():
    anchors = torch.tensor([[[0.0, 0, 1, 1], [0, 0, 0.5, 1]]])
    labels = torch.tensor([[[0.0, 0, 0, 1, 1]]])
    assert reference.multibox_target(anchors, labels, iou_threshold=0.5)[2].tolist() == [[1, 1]]
    assert reference.multibox_target(anchors, labels, iou_threshold=0.51)[2].tolist() == [[1, 0]]


def test_mining_by_hand():
    losses = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.3, 5.0], [1, 2, 2, 2, 0, 0]])
    labels = torch.tensor([[1, 0, 0, 0, 0, -1], [0, 0, 0, 0, 3, 1]])
    selected = reference.hard_negative_mining(losses, labels, ratio=2)
    assert selected.int().tolist() == [[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]]
    # floor(1.5 * 1) = 1; 1.5 * 2 = 3 of which the three 2s are the highest.
    selected = reference.hard_negative_mining(losses, labels, ratio=1.5)
    assert selected.int().tolist() == [[1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1]]


def test_mining_nan_is_the_highest_loss():
    labels = torch.tensor([[1, 0, 0, 0]])
    selected = reference.hard_negative_mining(torch.tensor([[0, inf, nan, 1.0]]), labels, ratio=1)
    assert selected.int().tolist() == [[1, 0, 1, 0]]


def test_nms_by_hand():
    # IoU of 0 and 1 is 1/3, of 1 and 2 too, of 0 and 2 it is 0.
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [2, 0, 4, 2]])
    scores = torch.tensor([0.5, 0.9, 0.7])
    assert reference.nms(boxes, scores, 0.4).tolist() == [1, 2, 0]
    assert reference.nms(boxes, scores, 0.3).tolist() == [1]
    # A dropped box drops nothing: 0 goes because of 1, so 2, which only 1 and 0 overlap, stays.
    assert reference.nms(boxes, torch.tensor([0.9, 0.7, 0.5]), 0.3).tolist() == [0, 2]


def test_nms_ties_and_nan():
    boxes = torch.tensor([[0.0, 0, 1, 1]]).repeat(4, 1)
    assert reference.nms(boxes, torch.ones(4), 0.5).tolist() == [0]
    assert reference.nms(boxes, torch.ones(4), 1.0).tolist() == [0, 1, 2, 3]
    assert reference.nms(boxes, torch.tensor([nan, 0.1, nan, 0.2]), 1.0).tolist() == [3, 1]


def test_nms_compares_with_the_threshold_itself():
    # The IoU in float32 is fl(1/3) = 0.33333334, more than 1/3 in double.
    boxes = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2]])
    assert reference.nms(boxes, torch.tensor([1.0, 0.5]), 1 / 3).tolist() == [0]
    assert reference.nms(boxes.double(), torch.tensor([1.0, 0.5]), 1 / 3).tolist() == [0, 1]


def test_detection_of_the_book():
    rows = reference.multibox_detection(
        golden.BOOK_PROBS, torch.zeros(1, 16), golden.BOOK_DETECTION_ANCHORS, nms_threshold=0.5
    )
    close(rows, golden.BOOK_DETECTIONS)


def test_detection_below_the_threshold():
    anchors = torch.tensor([[0.0, 0, 0.1, 0.1], [0.5, 0.5, 0.6, 0.6]])
    probs = torch.tensor([[[0.8, 0.1], [0.2, 0.9]]])
    rows = reference.multibox_detection(probs, torch.zeros(1, 8), anchors, pos_threshold=0.5)
    close(rows[0, :, :2], torch.tensor([[0, 0.9], [-1, 0.8]]))
