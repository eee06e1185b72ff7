"""Training with the chapter's loop and with ours: the same images, weights, batches and steps.

pytest benchmarks/bench_training.py --steps 320 --benchmark-json=out.json    (ten epochs)
"""

from functools import partial

import baselines
import pytest
import torch

from ssd_ops.tinyssd.data.bananas import BananaDetection
from ssd_ops.tinyssd.data.draw_bananas import make_bananas
from ssd_ops.tinyssd.data.loader import Loader
from ssd_ops.tinyssd.measure.evaluate import evaluate
from ssd_ops.tinyssd.model import TinySSD
from ssd_ops.tinyssd.optimizer import make_optimizer
from ssd_ops.tinyssd.settings import Settings
from ssd_ops.tinyssd.step import TrainStep

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BATCH = 32
# The fastest settings that change results only by rounding.
OURS = Settings(precision="auto", channels_last=True, cuda_graph=DEVICE == "cuda", device=DEVICE)
EXACT = Settings(precision="float32", channels_last=False, device=DEVICE)
HALF = Settings(precision="bfloat16", channels_last=True, device=DEVICE)


@pytest.fixture(scope="module")
def sets(tmp_path_factory, request):
    enough = request.config.getoption("--steps") > 40
    count = 1000 if enough else 64
    folder = tmp_path_factory.mktemp("data") / "set"
    make_bananas(folder, train=count, val=100 if enough else 16)
    return BananaDetection(folder, "train"), BananaDetection(folder, "val")


def fresh():
    torch.manual_seed(0)
    return TinySSD()


def ours(model, train_set, batches, settings=OURS):
    """The steps of `ssd_ops.tinyssd.train`, including reading the images."""
    model.to(DEVICE)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)
    loader = Loader(train_set, model.preprocess, device=DEVICE)
    step = TrainStep(settings, model.train(), make_optimizer(settings, model))
    rows = [step(X, Y) for X, Y, _ in loader.batches(batches)]
    return [float(row[0]) / len(batch) for row, batch in zip(rows, batches, strict=True)]


def chapter(model, train_set, batches, half=False):
    net = baselines.ChapterSSD().to(DEVICE)
    net.load_state_dict(model.state_dict())
    losses = baselines.d2l_train(net, train_set.images, train_set.labels, batches, DEVICE, half)
    model.load_state_dict(net.state_dict())
    return losses


# At equal precision and layout, so that only the code around the network differs.
LOOPS = {
    "ssd_ops, float32": partial(ours, settings=EXACT),
    "the chapter's loop, float32": chapter,
    "ssd_ops, bfloat16 + channels_last": partial(ours, settings=HALF),
    "the chapter's loop, bfloat16 + channels_last": partial(chapter, half=True),
}


@pytest.mark.parametrize("impl", ["ssd_ops", "d2l"])
def bench_training(benchmark, request, sets, full_precision, impl):
    """The accuracy is measured on the validation images after the last step."""
    train_set, val_set = sets
    steps = request.config.getoption("--steps")
    g = torch.Generator().manual_seed(0)
    order = [torch.randperm(len(train_set), generator=g) for _ in range(1 + steps * BATCH)]
    whole = [part for one in order for part in one.split(BATCH) if len(part) == BATCH]
    batches = [part.tolist() for part in whole[:steps]]

    few = [batch[:4] for batch in batches[:2]]
    with full_precision():
        one, other = ours(fresh(), train_set, few, EXACT), chapter(fresh(), train_set, few)
    assert one == pytest.approx(other, rel=1e-3), "not the same training"
    benchmark.group = f"training, {steps} steps of {BATCH} images"
    benchmark.extra_info["impl"] = impl
    if not benchmark.enabled:
        benchmark(lambda: None)
        return
    run = {"ssd_ops": ours, "d2l": chapter}[impl]
    models = []

    def setup():
        models.append(fresh())
        return (models[-1], train_set, batches), {}

    run(fresh(), train_set, batches[:2])  # what is set up once in a process
    benchmark.pedantic(run, setup=setup, rounds=3 if steps <= 40 else 1)
    model = models[-1]
    got = evaluate(model, val_set)
    ap50 = "-" if got.ap50 is None else f"{got.ap50:.3f}"  # it needs faster-coco-eval
    rate = steps * BATCH / benchmark.stats.stats.median
    benchmark.extra_info["note"] = note = (
        f"{rate:.1f} examples/s, class error {got.class_error:.2e}, offset error "
        f"{got.offset_error:.2e}, AP50 {ap50}"
    )
    print(f"\n{impl}: {note}")
