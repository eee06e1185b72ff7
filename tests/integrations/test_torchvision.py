"""torchvision's detectors before and after `accelerate`."""

from __future__ import annotations

import copy
import math
import pickle

import cases
import pytest
import torch

try:
    from torchvision.models import detection
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
    from torchvision.models.detection.image_list import ImageList

    from ssd_ops.integrations import torchvision as integration
except ImportError as error:
    pytest.skip(str(error), allow_module_level=True)


def images(*sizes):
    return [torch.rand(3, *size) for size in sizes]


# What `accelerate` reads of a model, each away from its default.
OTHERS = {"score_thresh": 0.03, "nms_thresh": 0.3, "detections_per_img": 40, "topk_candidates": 70}
OF_SSD = {"iou_thresh": 0.4, "positive_fraction": 0.4}
OF_RETINANET = {"fg_iou_thresh": 0.6, "bg_iou_thresh": 0.3}


def make(name: str, *, changed: bool = False):
    """A model whose scores differ, as far as they can without a training, and its accelerated copy."""
    none = {"weights": None, "weights_backbone": None}
    retinanet = name.startswith("retinanet")
    options = {"min_size": 160, "max_size": 256} if retinanet else {}
    options |= (
        OTHERS | (OF_RETINANET if retinanet else OF_SSD) if changed else {"score_thresh": 0.02}
    )
    model = getattr(detection, name)(**none, **options, num_classes=9)
    if changed:
        coder = BoxCoder((8.0, 9.0, 4.0, 3.0), bbox_xform_clip=0.7)
        model.box_coder = coder
        if retinanet:
            model.head.regression_head.box_coder = coder
    for module in model.modules():  # the statistics that batch norm would have learned
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    model.train()
    with torch.no_grad():
        batch = model.transform(images((180, 200), (200, 160)))[0].tensors
        model.head(list(model.backbone(batch).values()))
        if name.startswith("retinanet"):
            features = list(model.eval().backbone(batch).values())
            logits = model.head(features)["cls_logits"]
            model.head.classification_head.cls_logits.weight.mul_(0.5 / logits.std())
            model.head.regression_head.bbox_reg.weight.mul_(0.1)
    return model, integration.accelerate(copy.deepcopy(model))


NAMES = ("ssd300_vgg16", "ssdlite320_mobilenet_v3_large", "retinanet_resnet50_fpn")


@pytest.fixture(params=[*NAMES, *(f"{name}, changed" for name in NAMES)], scope="module")
def pair(request):
    torch.manual_seed(1)
    name, *changed = request.param.split(", ")
    return make(name, changed=bool(changed))


def targets(*counts):
    found = []
    for count in counts:
        corner = 100 * torch.rand(count, 2)
        boxes = torch.cat((corner, corner + 10 + 60 * torch.rand(count, 2)), dim=1)
        found.append({"boxes": boxes, "labels": torch.randint(1, 9, (count,))})
    return found


def test_detections_are_the_same(pair):
    original, faster = (model.eval() for model in pair)
    batch = images((180, 200), (200, 160))
    with torch.inference_mode():
        for got, expected in zip(faster(batch), original(batch), strict=True):
            assert len(expected["scores"]) > 20
            torch.testing.assert_close(got["scores"], expected["scores"], rtol=1e-5, atol=1e-5)
            # Row by row, wherever it stands: a bit of exp decides which of two like scores is first.
            far = (got["boxes"][:, None] - expected["boxes"]).abs().amax(2)
            same = (far < 1e-3) & (got["labels"][:, None] == expected["labels"])
            same &= (got["scores"][:, None] - expected["scores"]).abs() < 1e-5
            assert same.any(0).all() and same.any(1).all()


def test_losses_and_gradients_are_the_same(pair):
    original, faster = (model.train() for model in pair)
    batch, wanted = images((180, 200), (200, 160), (190, 190)), targets(3, 0, 12)
    losses = []
    for model in (faster, original):
        torch.manual_seed(0)
        model.zero_grad()
        buffers = copy.deepcopy(model.state_dict())  # of batch norm, which every forward moves
        loss = model(batch, copy.deepcopy(wanted))
        sum(loss.values()).backward()
        losses.append(loss)
        model.load_state_dict(buffers)
    assert losses[0].keys() == losses[1].keys()
    for name, expected in losses[1].items():
        torch.testing.assert_close(losses[0][name], expected, rtol=1e-5, atol=1e-5)
    for got, expected in zip(faster.head.parameters(), original.head.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad, rtol=1e-3, atol=1e-4)


def test_it_stays_the_model_it_was(pair):
    original, faster = pair
    assert isinstance(faster, type(original))
    assert faster.state_dict().keys() == original.state_dict().keys()
    assert integration.accelerate(faster) is faster
    assert type(pickle.loads(pickle.dumps(faster))) is type(faster)


def test_wrong_models_and_targets():
    with pytest.raises(TypeError, match="accelerate: model must be an SSD or a RetinaNet"):
        integration.accelerate(torch.nn.Linear(1, 1))
    model = make("ssdlite320_mobilenet_v3_large")[1].train()
    with pytest.raises(ValueError, match="boxes of target 1 must be"):
        wrong = targets(1, 1)
        wrong[1]["boxes"][0, 2] = wrong[1]["boxes"][0, 0]
        model(images((99, 99), (99, 99)), wrong)


def generated(generator, size, steps) -> tuple[list, torch.Tensor]:
    """Feature maps of an image, and the anchors [A, 4] in pixels that a generator makes of them."""
    height, width = size
    maps = [torch.zeros(1, 1, math.ceil(height / s), math.ceil(width / s)) for s in steps]
    return maps, generator(ImageList(torch.zeros(1, 3, *size), [size]), maps)[0]


@pytest.mark.parametrize("size", [(300, 300), (240, 400), (333, 70)])
def test_ssd_anchors_of_the_docs(size):
    ratios, steps = [[2], [2, 3], [2, 3], [2, 3], [2], [2]], [8, 16, 32, 64, 100, 300]
    scales = [0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05]
    generator = DefaultBoxGenerator(ratios, scales=scales, steps=steps)
    maps, expected = generated(generator, size, steps)
    got = cases.recipes()["ssd_anchors"](maps, scales, ratios, steps, size)[0]
    got *= torch.tensor(size[::-1] * 2)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("size", [(800, 1344), (416, 320), (70, 333)])
def test_retinanet_anchors_of_the_docs(size):
    sizes = [[s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))] for s in (32, 64, 128, 256, 512)]
    ratios = [[0.5, 1.0, 2.0]] * 5
    maps, expected = generated(AnchorGenerator(sizes, ratios), size, [8, 16, 32, 64, 128])
    got = cases.recipes()["retinanet_anchors"](maps, sizes, ratios, size)[0]
    assert torch.equal(got, expected)
