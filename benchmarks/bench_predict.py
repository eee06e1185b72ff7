"""Prediction for one image: the chapter's `predict` and ours."""

import baselines
import pytest
import torch

from ssd_ops.tinyssd.data.bananas import BananaDetection
from ssd_ops.tinyssd.data.draw_bananas import make_bananas
from ssd_ops.tinyssd.data.loader import Loader
from ssd_ops.tinyssd.model import TinySSD
from ssd_ops.tinyssd.optimizer import make_optimizer
from ssd_ops.tinyssd.predict import predict
from ssd_ops.tinyssd.settings import Settings
from ssd_ops.tinyssd.step import TrainStep

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, request):
    """The network after some training steps, as our model and as the chapter's, and a validation image."""
    quick = request.config.getoption("--benchmark-disable")
    folder = tmp_path_factory.mktemp("data") / "set"
    make_bananas(folder, train=64, val=1)
    torch.manual_seed(0)
    model = TinySSD().to(DEVICE, memory_format=torch.channels_last).train()
    settings = Settings(precision="auto", device=DEVICE)
    step = TrainStep(settings, model, make_optimizer(settings, model))
    loader = Loader(BananaDetection(folder), model.preprocess)
    g = torch.Generator().manual_seed(0)
    order = [torch.randperm(64, generator=g)[:16].tolist() for _ in range(2 if quick else 40)]
    for X, Y, _ in loader.batches(order):
        step(X, Y)
    net = baselines.ChapterSSD().to(DEVICE)
    net.load_state_dict(model.state_dict())
    return model, net, BananaDetection(folder, "val").images[0]


@pytest.mark.parametrize("impl", ["ssd_ops", "d2l"])
def bench_predict(benchmark, trained, full_precision, impl):
    model, net, image = trained
    with torch.no_grad(), full_precision():
        rows = baselines.d2l_predict(net, image, DEVICE).cpu()
        found = predict(model, image)
    # One bit of exp can move a box across the threshold of NMS.
    assert len(rows) > 0 and abs(len(found.scores) - len(rows)) <= max(1, len(rows) // 50)
    assert torch.allclose(found.scores[:5], rows[:5, 1], atol=1e-3)
    assert torch.allclose(found.boxes[0], rows[0, 2:] * 256, atol=0.1)
    benchmark.group = f"predict, one image of 256 x 256 on {DEVICE}"
    benchmark.extra_info["impl"] = impl
    benchmark.extra_info["note"] = f"{len(found.scores if impl == 'ssd_ops' else rows)} boxes"
    with torch.no_grad():
        if impl == "ssd_ops":
            benchmark(predict, model, image)
        else:
            benchmark(baselines.d2l_predict, net, image, DEVICE)
