"""The training step: eager, clipped, compiled, and as a CUDA graph."""

import contextlib
import copy
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from ssd_ops.tinyssd.graph import WARM_UP
from ssd_ops.tinyssd.model import TinySSD
from ssd_ops.tinyssd.optimizer import make_optimizer
from ssd_ops.tinyssd.settings import PRESETS, Settings
from ssd_ops.tinyssd.step import TrainStep

QUICK = replace(PRESETS["paper"], precision="float32", device="cpu", channels=(4, 4, 8, 8, 8, 8))
CHANNELS = QUICK.channels
NO_GPU = not torch.cuda.is_available()


def batch(number, count=4):
    g = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=g)
    corner = torch.rand(count, 2, 2, generator=g) * 0.5
    boxes = torch.cat((corner, corner + 0.2 + 0.3 * torch.rand(count, 2, 2, generator=g)), dim=2)
    labels = torch.cat((torch.zeros(count, 2, 1), boxes), dim=2)
    labels[0, 1, 0] = -1
    return images, labels


def make(settings, device="cpu"):
    torch.manual_seed(0)
    model = TinySSD(1, channels=CHANNELS).to(device).train()
    return TrainStep(settings, model, make_optimizer(settings, model))


def set_rate(step, lr):
    """As a scheduler does."""
    for group in step.optimizer.param_groups:
        assert isinstance(group["lr"], float), "a scheduler would have to read it from the device"
        group["lr"] = lr


def run(step, count=8):
    """Sums of each step; the last batch is smaller, as at the end of an epoch."""
    sizes = [4] * (count - 1) + [2]
    rows = []
    for number, size in enumerate(sizes):
        set_rate(step, 0.01 / (1 + number))
        rows.append(step(*batch(number, size)))
    return torch.stack(rows).cpu(), {k: v.cpu() for k, v in step.model.state_dict().items()}


def test_clipping_scales_gradients_to_the_norm():
    settings = Settings(precision="float32", lr=1.0, weight_decay=0.0, clip_norm=0.01)
    step = make(settings)
    before = copy.deepcopy(step.model.state_dict())
    step(*batch(0))
    moved = [p - before[name] for name, p in step.model.named_parameters()]
    norm = torch.stack([change.norm() for change in moved]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-3)
    free = make(replace(settings, clip_norm=None))
    free(*batch(0))
    assert not torch.equal(free.model.cls_0.weight, step.model.cls_0.weight)


def test_anchors_in_a_crowd_are_not_trained_on():
    """A crowd over all of an image leaves only what is matched: no other label, no other gradient."""
    settings = Settings(precision="float32", device="cpu")
    images, labels = batch(0, 1)
    labels[0, 1] = torch.tensor([-2.0, 0, 0, 1, 1])
    seen = []

    def run(labels):
        step = make(settings)
        forward = step.criterion.forward
        step.criterion.forward = lambda *args, **more: (
            seen.append(args[1]) or forward(*args, **more)
        )
        return step(images, labels)

    _, right, _ = run(labels)
    with_crowd = seen[0]
    labels[0, 1, 0] = -1
    _, plain_right, _ = run(labels)
    plain = seen[1]
    assert torch.equal(with_crowd > 0, plain > 0) and (plain > 0).any() and not (plain < 0).any()
    inside = with_crowd == -1
    # Anchors reach over the border; what lies half inside is ignored.
    assert 0.9 < inside.float().mean() < 1 and not (inside & (plain > 0)).any()
    assert right > plain_right and right >= inside.sum()


def test_the_rate_is_that_of_the_optimizer():
    step = make(replace(QUICK, optimizer="sgd", weight_decay=0.0))
    before = copy.deepcopy(step.model.state_dict())
    set_rate(step, 0.0)
    step(*batch(0))
    assert torch.equal(step.model.cls_0.weight, before["cls_0.weight"])


def test_compiled_step_is_the_eager_one(monkeypatch):
    """Traced and split as for the compiler, which itself would take a minute."""
    compile_ = torch.compile
    asked = []

    def quickly(network):
        asked.append(network)
        return compile_(network, fullgraph=True, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", quickly)
    settings = replace(QUICK, optimizer="sgd")
    rows, state = run(make(settings), 3)
    compiled, same = run(make(replace(settings, compile=True)), 3)
    assert len(asked) == 1
    torch.testing.assert_close(compiled, rows, atol=1e-3, rtol=1e-4)
    for name in state:
        torch.testing.assert_close(same[name], state[name], atol=1e-4, rtol=1e-3)


class Recorded:
    """Stands in for a CUDA graph: recording runs nothing that lasts, replaying runs it all."""

    def __init__(self):
        self.replays = 0

    def replay(self):
        self.replays += 1
        self.body()


def on_cpu(monkeypatch, step):
    """Have a step take its graphed path without a GPU, and keep the graphs it makes."""
    graphs = []

    @contextlib.contextmanager
    def record(graph):
        graphs.append(graph)
        state = copy.deepcopy((step.model.state_dict(), step.optimizer.state_dict()))
        groups = step.optimizer.param_groups
        yield
        step.model.load_state_dict(state[0])
        step.optimizer.load_state_dict(state[1])
        step.optimizer.param_groups = groups

        def body():
            owner = next(found for found in step.graph.graphs.values() if found[0] is graph)
            assert step.optimizer.param_groups[0]["lr"] is step.rate
            owner[2].copy_(step._step(*owner[1], in_all=len(owner[1][0])))

        graph.body = body

    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    step.graphed = True
    step.rate = step.rate.double()  # so that the results are those of a number, to the bit
    return graphs


def test_graphed_steps_are_each_made_once_and_from_their_own_batch(monkeypatch):
    """The order of warming up, recording and replaying, with a stand-in for the graph itself."""
    rows, state = run(make(QUICK), 10)
    step = make(QUICK)
    graphs = on_cpu(monkeypatch, step)
    got, same = run(step, 10)
    assert torch.equal(got, rows)
    for name in state:
        assert torch.equal(same[name], state[name]), name
    assert [graph.replays for graph in graphs] == [9 - WARM_UP]


def test_without_a_gpu_the_flag_changes_nothing():
    rows, _ = run(make(QUICK), 2)
    got, _ = run(make(replace(QUICK, cuda_graph=True)), 2)
    assert torch.equal(got, rows)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("offset_loss", ["l1", "smooth_l1"])
@pytest.mark.parametrize("normalize", ["mean", "positives"])
def test_a_step_reads_no_value(optimizer, precision, offset_loss, normalize):
    """Of tensors that have none: what reads one, as `float` does, would make a GPU wait, and could
    not be recorded."""
    loss = replace(QUICK.loss, offset_loss=offset_loss, normalize=normalize, cls_loss="focal")
    settings = replace(QUICK, optimizer=optimizer, precision=precision, loss=loss, clip_norm=0.5)
    with FakeTensorMode():
        model = TinySSD(1, channels=CHANNELS).train()
        step = TrainStep(settings, model, make_optimizer(settings, model))
        sums = [step(torch.zeros(4, 3, 64, 64, dtype=torch.uint8), torch.zeros(4, 2, 5))
                for _ in range(2)][-1]  # fmt: skip
        assert sums.shape == (3,)
        with pytest.raises(DataDependentOutputException):
            float(sums[0])


@pytest.mark.skipif(NO_GPU, reason="torch sees no CUDA device")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cuda_graph_on_a_gpu_is_the_eager_step(optimizer, clip_norm, precision):
    settings = replace(QUICK, optimizer=optimizer, clip_norm=clip_norm, precision=precision)
    rows, state = run(make(settings, "cuda"), 12)
    step = make(replace(settings, cuda_graph=True), "cuda")
    got, same = run(step, 12)
    assert step.graph.graphs
    torch.testing.assert_close(got, rows, atol=1e-3, rtol=1e-3)
    for name in state:
        torch.testing.assert_close(same[name], state[name], atol=1e-3, rtol=1e-3)


@pytest.mark.skipif(NO_GPU, reason="torch sees no CUDA device")
def test_a_step_on_a_gpu_waits_for_nothing():
    step = make(QUICK, "cuda")
    images, labels = (tensor.cuda() for tensor in batch(0))
    for _ in range(3):
        step(images, labels)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(images, labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")
