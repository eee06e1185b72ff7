"""Which ground truths anchors cover, and that what is suggested is never worse."""

from types import SimpleNamespace

import pytest
import torch

import ssd_ops
from ssd_ops.tinyssd.measure import coverage
from ssd_ops.tinyssd.model import RATIOS, SIZES, TinySSD
from ssd_ops.tinyssd.preprocess import Preprocess


def test_best_ious_are_those_of_the_whole_matrix():
    boxes = torch.rand(700, 2).repeat(1, 2) + torch.tensor([0.0, 0.0, 0.3, 0.2])
    anchors = torch.rand(1, 90, 2).repeat(1, 1, 2) + torch.tensor([0.0, 0.0, 0.2, 0.3])
    expected = ssd_ops.box_iou(boxes, anchors[0]).amax(dim=1)
    assert torch.equal(coverage.best_ious(boxes, anchors), expected)
    assert coverage.best_ious(boxes[:0], anchors).shape == (0,)


def test_maps_are_those_of_the_forward():
    model = TinySSD(preprocess=Preprocess((96, 160)))
    maps = coverage.feature_maps(model)
    anchors = ssd_ops.multibox_priors(maps, SIZES, RATIOS)
    assert torch.equal(anchors, model.eval()(torch.zeros(1, 3, 96, 160))[0])


def test_boxes_of_both_kinds_of_sets():
    rows = torch.tensor([[1, 0.0, 0.0, 0.5, 0.5], [-1.0] * 5])
    tensors = SimpleNamespace(labels=rows[None], images=torch.zeros(1, 3, 10, 20))
    listed = SimpleNamespace(rows=[rows[:1]], sizes=[(10, 20)])
    for letterbox, expected in ((False, [0, 0, 0.5, 0.5]), (True, [0, 0.25, 0.5, 0.5])):
        for dataset in (tensors, listed):
            boxes, labels = coverage.boxes_of(dataset, Preprocess((32, 32), letterbox=letterbox))
            torch.testing.assert_close(boxes, torch.tensor([expected], dtype=torch.float32))
            assert labels.tolist() == [1]
    with pytest.raises(ValueError, match="the set must hold a ground truth at least, got none"):
        coverage.boxes_of(SimpleNamespace(rows=[rows[1:]], sizes=[(1, 1)]), Preprocess())


@pytest.mark.parametrize("shape", [(0.05, 0.4), (0.6, 0.1), (0.1, 0.1)])
def test_suggested_anchors_cover_more(shape):
    corner = torch.rand(60, 2) * 0.4
    boxes = torch.cat((corner, corner + torch.tensor(shape) * (0.8 + 0.4 * torch.rand(60, 2))), 1)
    maps = [torch.zeros(1, 1, n, n) for n in (16, 4, 1)]
    sizes, ratios = ((0.3, 0.35), (0.5, 0.6), (0.9, 0.95)), ((1.0, 2.0, 0.5),) * 3
    before = coverage.best_ious(boxes, ssd_ops.multibox_priors(maps, sizes, ratios))
    found = coverage.suggest(boxes, maps, sizes, ratios)
    assert (found.ious >= 0.5).sum() > (before >= 0.5).sum() and found.ious.mean() > before.mean()
    assert [len(row) for row in found.sizes] == [2, 2, 2]
    assert [len(row) for row in found.ratios] == [3, 3, 3]
    again = coverage.suggest(boxes, maps, found.sizes, found.ratios)
    assert (again.ious >= 0.5).sum() >= (found.ious >= 0.5).sum()


def test_suggested_anchors_cover_boxes_of_any_shape():
    """Small and thin ones too, far from where the search begins."""
    g = torch.Generator().manual_seed(0)
    area = torch.empty(200).uniform_(-5.5, -1.0, generator=g).exp()  # sides of 0.06 to 0.6
    ratio = torch.empty(200).uniform_(-1.5, 1.5, generator=g).exp()
    side = torch.stack((area * ratio, area / ratio), dim=1).sqrt().clamp(max=1)
    corner = (1 - side) * torch.rand(200, 2, generator=g)
    boxes = torch.cat((corner, corner + side), dim=1)
    maps = [torch.zeros(1, 1, n, n) for n in (32, 16, 8, 4, 1)]
    before = coverage.best_ious(boxes, ssd_ops.multibox_priors(maps, SIZES, RATIOS))
    found = coverage.suggest(boxes, maps, SIZES, RATIOS)
    assert (before < 0.5).sum() > 70 and (found.ious < 0.5).sum() < 25
    anchors = ssd_ops.multibox_priors(maps, found.sizes, found.ratios)
    assert torch.equal(found.ious, coverage.best_ious(boxes, anchors))
