"""TinySSD against the chapter's facts and against a plain second writing of its class."""

import copy
import pickle
import threading

import pytest
import torch
from torch import nn

from ssd_ops import reference
from ssd_ops.tinyssd import model as m


class PlainTinySSD(nn.Module):
    """The chapter's network, written out: five scales, four anchors a cell, no options."""

    def __init__(self, num_classes):
        super().__init__()
        self.num_classes = num_classes

        def block(inside, outside):
            pool = nn.MaxPool2d(2)
            return nn.Sequential(*conv(inside, outside), *conv(outside, outside), pool)

        def conv(inside, outside):
            return nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside), nn.ReLU()

        self.blk_0 = nn.Sequential(block(3, 16), block(16, 32), block(32, 64))
        self.blk_1, self.blk_2, self.blk_3 = block(64, 128), block(128, 128), block(128, 128)
        self.blk_4 = nn.AdaptiveMaxPool2d((1, 1))
        for i, width in enumerate((64, 128, 128, 128, 128)):
            setattr(self, f"cls_{i}", nn.Conv2d(width, 4 * (num_classes + 1), 3, padding=1))
            setattr(self, f"bbox_{i}", nn.Conv2d(width, 16, 3, padding=1))

    def forward(self, X):
        anchors, classes, offsets = [], [], []
        for i in range(5):
            X = getattr(self, f"blk_{i}")(X)
            anchors.append(reference.multibox_prior(X, m.SIZES[i], m.RATIOS[i]))
            for out, head in ((classes, "cls"), (offsets, "bbox")):
                out.append(getattr(self, f"{head}_{i}")(X).permute(0, 2, 3, 1).flatten(1))
        classes = torch.cat(classes, 1).reshape(len(X), -1, self.num_classes + 1)
        return torch.cat(anchors, 1), classes, torch.cat(offsets, 1)


@pytest.fixture(scope="module")
def small():
    """A model with narrow layers, so that tests are quick."""
    torch.manual_seed(0)
    return m.TinySSD(2, channels=(4, 4, 8, 8, 8, 8)).eval()


def test_shapes_of_the_chapter():
    with torch.no_grad():
        anchors, cls_preds, bbox_preds = m.TinySSD(num_classes=1)(torch.zeros(32, 3, 256, 256))
    assert anchors.shape == (1, 5444, 4)
    assert cls_preds.shape == (32, 5444, 2)
    assert bbox_preds.shape == (32, 21776)


def test_pieces_of_the_chapter():
    fmap = torch.zeros(2, 8, 20, 20)
    assert m.cls_predictor(8, 5, 10)(fmap).shape == (2, 55, 20, 20)
    assert m.bbox_predictor(8, 5)(fmap).shape == (2, 20, 20, 20)
    assert m.down_sample_blk(8, 10)(fmap).shape == (2, 10, 10, 10)
    assert m.base_net()(torch.zeros(2, 3, 256, 256)).shape == (2, 64, 32, 32)
    y1, y2 = torch.zeros(2, 55, 20, 20), torch.zeros(2, 33, 10, 10)
    assert m.concat_preds([y1, y2]).shape == (2, 25300)


def test_class_channel_order():
    """Channel i(q+1)+j of a cell is class j of anchor i, and cells go row by row."""
    classes, anchors, side = 3, 4, 2
    pred = torch.arange(anchors * classes * side * side).reshape(1, -1, side, side)
    rows = m.flatten_pred(pred).reshape(1, -1, classes)
    for cell, anchor, cls in ((0, 0, 1), (1, 2, 0), (3, 3, 2)):
        expected = pred[0, anchor * classes + cls, cell // side, cell % side]
        assert rows[0, cell * anchors + anchor, cls] == expected


@pytest.mark.parametrize("num_classes", [1, 3])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("size", [(64, 64), (97, 131)], ids=str)
def test_state_dict_of_the_chapters_class(num_classes, training, size):
    torch.manual_seed(1)
    theirs, ours = PlainTinySSD(num_classes), m.TinySSD(num_classes)
    assert list(theirs.state_dict()) and set(theirs.state_dict()) == set(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    theirs.train(training), ours.train(training)
    X = torch.rand(2, 3, *size) * 255
    for got, expected in zip(ours(X), theirs(X), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("size", [(1, 1), (17, 200), (63, 64), (300, 40)], ids=str)
def test_any_input_size(small, size):
    anchors, cls_preds, bbox_preds = small(torch.rand(2, 3, *size))
    assert cls_preds.shape == (2, anchors.shape[1], 3)
    assert bbox_preds.shape == (2, 4 * anchors.shape[1])
    assert cls_preds.isfinite().all()


def test_sizes_ratios_and_channels_are_arguments():
    sizes, ratios = [[0.1], [0.2, 0.3, 0.4], [0.9, 0.95]], [[1], [1, 2], [1, 3, 0.3]]
    net = m.TinySSD(2, sizes, ratios, channels=(4, 6, 8, 10)).eval()
    anchors, cls_preds, _ = net(torch.rand(1, 3, 32, 48))
    # Maps of 4 x 6, 2 x 3 and 1 x 1 cells with 1, 4 and 4 anchors each.
    assert anchors.shape[1] == 24 * 1 + 6 * 4 + 4 and cls_preds.shape == (1, 52, 3)
    maps = [torch.zeros(1, 1, *side) for side in ((4, 6), (2, 3), (1, 1))]
    torch.testing.assert_close(anchors, reference.multibox_priors(maps, sizes, ratios))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
        ({"channels": (8, 8)}, "channels must have 3 entries or more, got 2"),
        ({"sizes": [[0.1]] * 4}, "sizes must be 5 lists"),
        ({"ratios": [[1], [1], [1], [1], []]}, "ratios must be 5 lists that are not empty"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        m.TinySSD(**arguments)


def test_channels_last_gives_the_same_outputs(small):
    X = torch.rand(2, 3, 64, 80)
    last = copy.deepcopy(small).to(memory_format=torch.channels_last)
    outputs = last(X.to(memory_format=torch.channels_last))
    for got, expected in zip(outputs, small(X), strict=True):
        torch.testing.assert_close(got, expected)


def test_autocast_keeps_anchors_in_float32(small):
    X = torch.rand(2, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        anchors, cls_preds, bbox_preds = small(X)
    assert anchors.dtype == torch.float32
    assert cls_preds.dtype == bbox_preds.dtype == torch.bfloat16
    plain = small(X)
    assert torch.equal(anchors, plain[0])
    torch.testing.assert_close(cls_preds.float(), plain[1], atol=0.05, rtol=0.05)


def test_float64_stays_float64(small):
    net = copy.deepcopy(small).double()
    assert {tensor.dtype for tensor in net(torch.rand(1, 3, 64, 64).double())} == {torch.float64}


def test_copies_and_pickles_give_the_same_outputs(small):
    X = torch.rand(1, 3, 64, 64)
    expected = small(X)
    for twin in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
        for got, want in zip(twin(X), expected, strict=True):
            assert torch.equal(got, want)


def test_inference_mode_does_not_spoil_later_training(small):
    net = copy.deepcopy(small)
    with torch.inference_mode():
        net(torch.rand(1, 3, 64, 64))
    anchors, cls_preds, _ = net(torch.rand(1, 3, 64, 64))
    # An inference tensor could not be saved for this backward pass.
    (cls_preds.sum(2) * anchors.sum(2)).sum().backward()
    assert net.cls_0.weight.grad is not None


def test_threads_agree(small):
    net = copy.deepcopy(small)
    images = [torch.rand(1, 3, 64 + 8 * (i % 4), 64) for i in range(12)]
    expected = [small(X) for X in images]
    wrong = []

    def run(i):
        for got, want in zip(net(images[i]), expected[i], strict=True):
            if not torch.allclose(got, want, atol=1e-5):
                wrong.append(i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(images))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_compiles_whole(small):
    """The `eager` backend: tracing is what could break here, not code generation."""
    compiled = torch.compile(small, fullgraph=True, backend="eager")
    for batch in (1, 3):
        X = torch.rand(batch, 3, 64, 64)
        for got, want in zip(compiled(X), small(X), strict=True):
            torch.testing.assert_close(got, want)
    exported = torch.export.export(small, (torch.rand(1, 3, 64, 64),)).module()
    X = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(exported(X)[0], small(X)[0])


def test_fake_tensors_leave_nothing_behind(small):
    from torch._subclasses.fake_tensor import FakeTensorMode

    net = copy.deepcopy(small)
    with FakeTensorMode(allow_non_fake_inputs=True):
        net(torch.empty(1, 3, 64, 64))
    assert type(net(torch.rand(1, 3, 64, 64))[0]) is torch.Tensor


def test_preprocess_resizes_and_scales():
    images = torch.randint(0, 256, (2, 3, 40, 60), dtype=torch.uint8)
    assert torch.equal(m.Preprocess(size=(40, 60))(images), images.float())
    scaled = m.Preprocess(size=(40, 60), mean=(1, 2, 3), std=(2, 4, 8))(images)
    torch.testing.assert_close(scaled[:, 2], (images[:, 2].float() - 3) / 8)
    grey = torch.full((1, 3, 9, 500), 77, dtype=torch.uint8)
    torch.testing.assert_close(m.Preprocess()(grey), torch.full((1, 3, 256, 256), 77.0))


def test_letterboxed_boxes_by_hand():
    """An image of 40 x 80 in the middle rows of an input of 64 x 64: 16 rows of grey above it."""
    preprocess = m.Preprocess(size=(64, 64), letterbox=True)
    box = torch.tensor([[0.25, 0.5, 0.75, 1.0]])
    inside = torch.tensor([[0.25, 32 / 64, 0.75, 48 / 64]])
    torch.testing.assert_close(preprocess.to_input(box, 40, 80), inside)
    torch.testing.assert_close(
        preprocess.to_pixels(inside, 40, 80), torch.tensor([[20.0, 20.0, 60.0, 40.0]])
    )
    image = preprocess.fit(torch.full((1, 3, 40, 80), 9, dtype=torch.uint8))
    assert (image[:, :, 16:48] == 9).all() and (image[:, :, :16] == 127).all()
    assert (image[:, :, 48:] == 127).all() and image.dtype == torch.uint8
    assert torch.equal(m.Preprocess(size=(64, 64)).to_input(box, 40, 80), box)
