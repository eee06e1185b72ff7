"""torch.export, AOTInductor and vmap."""

from __future__ import annotations

import cases
import pytest
import torch

import ssd_ops

ANCHORS = cases.prior_anchors(5444)


class Detector(torch.nn.Module):
    """The ops of an SSD in one module: what it is trained on, and what it finds."""

    def __init__(self):
        super().__init__()
        self.register_buffer("anchors", ANCHORS)

    def forward(self, logits, offset_preds, labels):
        offsets, masks, classes = ssd_ops.multibox_target(
            self.anchors, labels, logits.mT, negative_mining_ratio=3.0, semantics="mxnet"
        )
        matched, _ = ssd_ops.assign_anchors(self.anchors, labels[..., 1:], force_match="argmax")
        losses = torch.nn.functional.cross_entropy(
            logits.mT, classes, ignore_index=-1, reduction="none"
        )
        chosen = ssd_ops.hard_negative_mining(losses, classes)
        boxes = ssd_ops.decode_boxes(offset_preds.unflatten(1, (-1, 4)), self.anchors)
        found = ssd_ops.multiclass_nms(boxes[:, :300], logits[:, :300].softmax(2))
        found += ssd_ops.detect(logits, offset_preds, self.anchors, max_detections=20)
        kept = ssd_ops.batched_nms(boxes[0], losses[0], classes[0], 0.5)
        return offsets, masks, classes, matched, losses * chosen, kept, *found


def heads(images: int, gts: int):
    logits, offsets = torch.randn(images, 5444, 4), 0.3 * torch.randn(images, 4 * 5444)
    return logits, offsets, cases.labels(images, gts, classes=3)


def same(got, expected, close: bool):
    for a, b in zip(got, expected, strict=True):
        if close and a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(a, b)


@pytest.fixture(scope="module")
def program():
    batch, gts = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("gts", min=1, max=64)
    shapes = ({0: batch}, {0: batch}, {0: batch, 1: gts})
    return torch.export.export(Detector(), heads(2, 3), dynamic_shapes=shapes)


def test_exported_and_loaded_again(program, tmp_path):
    torch.export.save(program, tmp_path / "detector.pt2")
    loaded = torch.export.load(tmp_path / "detector.pt2").module()
    for images, gts in ((1, 1), (2, 3), (7, 20)):
        args = heads(images, gts)
        same(loaded(*args), Detector()(*args), close=False)


def test_ahead_of_time_compiled(program, tmp_path):
    path = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "detector_aoti.pt2")
    )
    loaded = torch._inductor.aoti_load_package(path)
    torch.manual_seed(0)
    for images, gts in ((1, 1), (5, 12)):
        args = heads(images, gts)
        got, expected = loaded(*args), Detector()(*args)
        # Inductor's own softmax and cross entropy may differ in a bit, which orders those next to it anew.
        same(got[:4], expected[:4], close=False)
        same(got[-5:], expected[-5:], close=False)


def test_vmap_of_rows():
    rows, one, anchors = cases.boxes(3, 5, 9), cases.boxes(5, 9), cases.boxes(9)
    more = cases.boxes(3, 9)
    for op in (ssd_ops.encode_boxes, ssd_ops.decode_boxes):
        for args, dims in (
            ((rows, anchors), (0, None)),
            ((rows, anchors[None]), (0, None)),
            ((rows, more), (0, 0)),
            ((one, more), (None, 0)),
            ((rows, more[:, None]), (0, 0)),
            ((rows.movedim(0, 2), more.movedim(0, 1)), (2, 1)),
            ((rows[:, 0], more[:, None]), (0, 0)),
            ((rows, rows), (0, 0)),
        ):
            got = torch.vmap(op, in_dims=dims)(*args)
            each = [
                op(*(t if d is None else t.select(d, i) for t, d in zip(args, dims, strict=True)))
                for i in range(3)
            ]
            assert torch.equal(got, torch.stack(each))


def test_vmap_of_box_iou():
    first, second = cases.boxes(3, 2, 5), cases.boxes(3, 2, 7)
    expected = ssd_ops.box_iou(first, second)
    assert torch.equal(torch.vmap(ssd_ops.box_iou)(first, second), expected)
    assert torch.equal(torch.vmap(torch.vmap(ssd_ops.box_iou))(first, second), expected)
    got = torch.vmap(ssd_ops.box_iou, in_dims=(None, 1))(first[0], second.transpose(0, 1))
    assert torch.equal(got, torch.stack([ssd_ops.box_iou(first[0], b) for b in second]))


def test_vmap_of_padded_nms():
    boxes, scores = cases.boxes(4, 2, 30), torch.rand(4, 2, 30, 3)
    expected = [ssd_ops.multiclass_nms(*pair) for pair in zip(boxes, scores, strict=True)]
    got = torch.vmap(ssd_ops.multiclass_nms)(boxes, scores)
    assert isinstance(got, ssd_ops.Detections)
    for a, b in zip(got, zip(*expected, strict=True), strict=True):
        assert torch.equal(a, torch.stack(b))
    shared = torch.vmap(ssd_ops.multiclass_nms, in_dims=(None, 0))(boxes[0], scores)
    assert torch.equal(shared.indices[1], ssd_ops.multiclass_nms(boxes[0], scores[1]).indices)

    def padded(boxes, scores):
        return ssd_ops.nms_padded(boxes, scores, 0.5)

    for b, s in ((boxes, scores[..., 0]), (boxes[:, 0], scores[:, 0, :, 0])):
        got, each = torch.vmap(padded)(b, s), [padded(*pair) for pair in zip(b, s, strict=True)]
        assert torch.equal(got[0], torch.stack([indices for indices, _ in each]))
        assert torch.equal(got[1], torch.stack([counts for _, counts in each]))
