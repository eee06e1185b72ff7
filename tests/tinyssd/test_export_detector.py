"""The exported module finds what `predict` finds; as ONNX too. tests/test_deploy.py runs it in C++."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ssd_ops.tinyssd import cli, export
from ssd_ops.tinyssd.export import Detector
from ssd_ops.tinyssd.model import TinySSD
from ssd_ops.tinyssd.predict import predict_batch
from ssd_ops.tinyssd.preprocess import Preprocess

SCALED = {"mean": (120.0, 125.0, 130.0), "std": (64.0, 60.0, 55.0)}


def untrained(num_classes=3, **preprocess) -> TinySSD:
    """With batch norms that do something, and anchors of many scores."""
    model = TinySSD(num_classes, preprocess=Preprocess(size=(64, 96), **SCALED, **preprocess))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    for scale in range(model.num_scales):
        torch.nn.init.normal_(getattr(model, f"cls_{scale}").weight, std=0.1)
        torch.nn.init.normal_(getattr(model, f"bbox_{scale}").weight, std=0.02)
    return model.eval()


def noise(images: int, height: int, width: int) -> torch.Tensor:
    return torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("size", "preprocess"),
    [(None, {}), ((64, 96), {}), ((90, 40), {}), ((90, 40), {"letterbox": True})],
    ids=["own size", "the same", "resized", "letterbox"],
)
def test_it_finds_what_predict_finds(size, preprocess):
    model = untrained(**preprocess)
    detector = Detector(model, size, score_threshold=0.5, max_detections=600)
    images = noise(3, *(size or (64, 96)))
    boxes, scores, labels, indices, counts = detector(images)
    expected = predict_batch(model, images, score_threshold=0.5)
    assert min(len(one.scores) for one in expected) > 20
    assert counts.tolist() == [len(one.scores) for one in expected]
    for i, (one, count) in enumerate(zip(expected, counts, strict=True)):
        torch.testing.assert_close(scores[i, :count], one.scores, rtol=1e-4, atol=1e-5)
        assert sorted(labels[i, :count].tolist()) == sorted(one.labels.tolist())
        # Two scores may be so close that the other rounding orders them anew.
        apart = (boxes[i, :count, None] - one.boxes).abs().amax(dim=2)
        nearest = apart.min(dim=1)
        assert nearest.values.max() < 0.05 and nearest.indices.unique().numel() == count
        assert boxes[i, count:].eq(0).all() and scores[i, count:].eq(0).all()
        assert labels[i, count:].eq(-1).all() and indices[i, count:].eq(-1).all()


def test_the_model_stays_as_it_is():
    model = untrained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    Detector(model)(noise(1, 64, 96))
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score_threshold": 1.5}, "score_threshold must be in 0..1, got 1.5"),
        ({"image_size": (0, 9)}, r"image_size must be at least 1, got \(0, 9\)"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=f"^export: {message}"):
        Detector(untrained(), **options)


@pytest.mark.parametrize("write", [export.write_package, export.write_onnx])
def test_a_wrong_ending(write, tmp_path):
    ending = r"\.pt2" if write is export.write_package else r"\.onnx"
    with pytest.raises(
        ValueError, match=f"^export: the file must end in {ending}, got .*model.bin"
    ):
        write(Detector(untrained()), tmp_path / "model.bin")
    assert not list(tmp_path.iterdir())


def test_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match=r"^export: no-such-compiler, .* is not on the PATH$"):
        export.write_package(Detector(untrained()), tmp_path / "model.pt2")


def test_what_torch_cannot_compile_is_one_sentence(tmp_path, monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("no registers left\nand pages more")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fail)
    path = tmp_path / "model.pt2"
    with pytest.raises(RuntimeError) as caught:
        export.write_package(Detector(untrained()), path)
    assert str(caught.value) == "export: AOTInductor cannot write this detector: no registers left"
    assert not path.exists()


@pytest.fixture(scope="module")
def onnx_model(tmp_path_factory):
    """A detector, and its ONNX; the images are resized on the way."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra: export)")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: export)")
    torch.manual_seed(0)
    model, path = untrained(), tmp_path_factory.mktemp("onnx") / "model.onnx"
    detector = Detector(model, (90, 40), score_threshold=0.7, max_detections=50)
    export.write_onnx(detector, path)
    return detector, path


def test_onnx_finds_what_pytorch_finds(onnx_model):
    import onnxruntime

    detector, path = onnx_model
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [one.name for one in session.get_inputs()] == ["images"]
    assert [one.name for one in session.get_outputs()] == list(export.OUTPUTS)
    for count in (1, 4):
        images = noise(count, 90, 40)
        got = dict(zip(export.OUTPUTS, session.run(None, {"images": images.numpy()}), strict=True))
        expected = dict(zip(export.OUTPUTS, detector(images), strict=True))
        assert expected["counts"].gt(3).all()
        for name in ("labels", "indices", "counts"):
            assert np.array_equal(got[name], expected[name].numpy())
        for name in ("boxes", "scores"):
            np.testing.assert_allclose(got[name], expected[name].numpy(), rtol=1e-4, atol=1e-2)


def test_onnx_that_finds_other_boxes_is_not_written(onnx_model):
    detector, path = onnx_model
    other = Detector(detector.model, (90, 40), score_threshold=0.6, max_detections=50)
    with pytest.raises(RuntimeError, match=r"^export: onnxruntime finds other boxes than PyTorch"):
        export._check_onnx(other, path.read_bytes())


def test_what_was_exported_still_predicts(onnx_model):
    """torch.export leaves no constants without values in what predictions share."""
    detector, _ = onnx_model
    assert predict_batch(detector.model, noise(1, 64, 96))[0].boxes.isfinite().all()


def test_the_command_says_mistakes_in_a_line(tmp_path, capsys):
    pytest.importorskip("tyro", reason="the command line is made by tyro")
    for words, message in (
        (["export", str(tmp_path)], "load: checkpoint must be a file"),
        (["export", str(tmp_path), "--image-size", "9"], "--image-size"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 2
        said = capsys.readouterr()
        assert said.out == "" and message in said.err and len(said.err.splitlines()) == 1
    assert not Path("model.pt2").exists()
