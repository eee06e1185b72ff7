"""Two gloo processes train as one does; a dead one ends the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from ssd_ops.tinyssd import checkpoint
from ssd_ops.tinyssd.distributed import SyncBatchNorm
from ssd_ops.tinyssd.settings import PRESETS, Settings
from ssd_ops.tinyssd.train import train

pytest.importorskip("safetensors.torch")

# Everything that draws or normalises over a batch is on; 9 images in batches of 4 leave a last
# batch of one, of which the second process has nothing.
SETTINGS = replace(
    PRESETS["paper"], epochs=2, batch_size=4, input_size=None, device="cpu", precision="float32",
    channels=(4, 4, 8, 8, 8, 8), optimizer="sgd", lr=0.002, jitter=0.1, clip_norm=5.0,
    loss=replace(PRESETS["paper"].loss, min_negatives=3),
)  # fmt: skip

WORKER = """
import json, os, signal, sys, torch
sys.path.insert(0, {tests!r})
torch.set_num_threads(1)
from test_distributed import Settings, sets
from ssd_ops.tinyssd import distributed
from ssd_ops.tinyssd import step
from ssd_ops.tinyssd import train as trainer

rank, dies = int(os.environ["RANK"]), {dies!r}
if dies and rank == 1:
    real, calls = step.TrainStep._step, []
    def die(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, *args, **kwargs)
    step.TrainStep._step = die
settings = Settings(**json.loads({settings!r}))
model, history = trainer.train(settings, *sets(), {out!r}, resume={resume!r}, progress=False)
torch.save((model.state_dict(), history), {out!r} + f"/rank{{rank}}.pt")
"""


def sets():
    """A bright rectangle on dark noise in every image, noise itself: in a flat one, rounding would
    decide which of the equal pixels the pooling takes."""
    made = []
    for seed, count in ((1, 9), (2, 5)):
        g = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 60, (count, 3, 64, 64), dtype=torch.uint8, generator=g)
        corner = torch.randint(2, 30, (count, 2), generator=g)
        for image, (x, y) in zip(images, corner.tolist(), strict=True):
            image[:, y : y + 24, x : x + 28] += 160
        boxes = torch.cat((corner, corner + torch.tensor([28, 24])), dim=1) / 64
        labels = torch.cat((torch.zeros(count, 1), boxes), dim=1)[:, None]
        made.append(SimpleNamespace(images=images, labels=labels, class_names=["rectangle"]))
    return made


def launch(folder, settings, *, resume=False, dies=False):
    """Train in two processes; how torchrun ended."""
    folder.mkdir(exist_ok=True)
    script = folder / "worker.py"
    text = {"tests": os.path.dirname(__file__), "out": str(folder), "resume": resume, "dies": dies}
    script.write_text(WORKER.format(**text, settings=json.dumps(asdict(settings))))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*command, "--nproc-per-node", "2", str(script)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def numbers(history):
    """All that does not depend on the clock, and is there."""
    return [
        {k: v for k, v in row.items() if k != "examples_per_second" and v is not None}
        for row in history
    ]


@pytest.mark.parametrize("normalize", ["positives", "mean"])
def test_two_processes_are_one(tmp_path, normalize):
    settings = replace(SETTINGS, loss=replace(SETTINGS.loss, normalize=normalize))
    model, history = train(settings, *sets(), tmp_path / "one", progress=False)
    result = launch(tmp_path / "two", settings)
    assert result.returncode == 0, result.stderr
    (state, theirs), (other, same) = (
        torch.load(tmp_path / "two" / f"rank{rank}.pt") for rank in (0, 1)
    )
    assert numbers(same) == numbers(theirs), "the ranks disagree on what they measured"
    for name, tensor in model.state_dict().items():
        assert torch.equal(state[name], other[name]), name
        torch.testing.assert_close(state[name], tensor, atol=2e-4, rtol=2e-3)
    for row, expected in zip(numbers(theirs), numbers(history), strict=True):
        assert row == pytest.approx(expected, rel=2e-3, abs=2e-4)
    log = [json.loads(line) for line in (tmp_path / "two" / "log.jsonl").read_text().splitlines()]
    assert numbers(log) == numbers(theirs) and checkpoint.load(tmp_path / "two")[2]["epoch"] == 2


def test_two_processes_that_keep_no_images_are_the_same_two(tmp_path):
    """The second reads nothing of the last batch; what the others read is what they would keep."""
    settings, states = replace(SETTINGS, epochs=1), []
    for name, cache_gb in (("kept", 4.0), ("read", 0.0)):
        result = launch(tmp_path / name, replace(settings, cache_gb=cache_gb, workers=0))
        assert result.returncode == 0, result.stderr
        states.append(torch.load(tmp_path / name / "rank1.pt")[0])
    kept, read = states
    for name, tensor in kept.items():
        assert torch.equal(read[name], tensor), name


def test_a_run_of_two_processes_resumes_to_the_same_bits(tmp_path):
    settings = replace(SETTINGS, schedule="constant")
    for name, steps in (("whole", [2]), ("broken", [1, 2])):
        for epochs in steps:
            result = launch(
                tmp_path / name,
                replace(settings, epochs=epochs),
                resume=epochs == 2 and len(steps) > 1,
            )
            assert result.returncode == 0, result.stderr
    (one, _), (other, _) = (
        torch.load(tmp_path / name / "rank0.pt") for name in ("whole", "broken")
    )
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_a_dead_process_ends_the_run_with_an_error(tmp_path):
    result = launch(tmp_path / "dead", replace(SETTINGS, epochs=50), dies=True)
    assert result.returncode != 0
    assert "Signal 9" in result.stderr or "SIGKILL" in result.stderr
    assert checkpoint.load(tmp_path / "dead")[2]["epoch"] < 50, "the checkpoint is whole"


def test_sync_batch_norm_of_one_process_is_batch_norm():
    x = torch.randn(4, 3, 5, 5)
    plain, ours = torch.nn.BatchNorm2d(3), SyncBatchNorm(3)
    torch.testing.assert_close(ours(x), plain(x))
    torch.testing.assert_close(ours.running_var, plain.running_var)


def test_sync_batch_norm_is_batch_norm_in_values_and_gradients(monkeypatch):
    """With a stand-in for the other process, which has the same images."""
    from ssd_ops.tinyssd import distributed

    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda numbers: numbers.mul_(2))
    half = torch.randn(3, 2, 4, 4).requires_grad_()
    whole = torch.cat((half.detach(), half.detach())).requires_grad_()
    plain, ours = torch.nn.BatchNorm2d(2), SyncBatchNorm(2)
    weight = torch.randn(3, 2, 4, 4)
    expected = plain(whole)
    got = ours(half)
    torch.testing.assert_close(got, expected[:3])
    (expected * torch.cat((weight, weight))).sum().backward()
    (got * weight).sum().backward()
    torch.testing.assert_close(half.grad, whole.grad[:3])
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(getattr(ours, name), getattr(plain, name))


@pytest.mark.parametrize(
    "error, message",
    [
        (
            RuntimeError("[/x/gloo/tcp/pair.cc:5] Connection closed"),
            "^train: every process must live",
        ),
        (torch.distributed.DistNetworkError("timed out"), "^train: every process must live"),
        (RuntimeError("nms: boxes must be"), "^nms: boxes must be"),
    ],
)
def test_a_process_that_is_gone_is_one_sentence(monkeypatch, error, message):
    """By hand: two processes without torchrun, which else ends the others, and `kill -9` of one."""
    from ssd_ops.tinyssd import distributed

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(distributed.dist, "init_process_group", lambda *_, **__: None)
    with pytest.raises(RuntimeError, match=message), distributed.joined(torch.device("cpu")):
        raise error


def test_settings_travel_as_json():
    assert Settings(**json.loads(json.dumps(asdict(SETTINGS)))) == SETTINGS
