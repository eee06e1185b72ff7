"""The ONNX of nms, batched_nms and detect, run by onnxruntime on the CPU."""

from __future__ import annotations

import itertools

import cases
import pytest
import torch

import ssd_ops
from ssd_ops.integrations.onnx import translations

pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra: export)")
runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: export)")


class Call(torch.nn.Module):
    def __init__(self, op, **options):
        super().__init__()
        self.op, self.options = op, options

    def forward(self, *args):
        return self.op(*args, **self.options)


def exported(op, args, dynamic, path, **options):
    """A function that runs the op's ONNX; `dynamic` names the free sizes of each argument."""
    program = torch.onnx.export(
        Call(op, **options),
        args,
        dynamo=True,
        dynamic_shapes=(dynamic,),
        custom_translation_table=translations(),
        verbose=False,
    )
    program.save(path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert {node.domain for node in program.model.graph} <= {""}
    names = [tensor.name for tensor in session.get_inputs()]

    def run(*args):
        feed = {name: arg.numpy() for name, arg in zip(names, args, strict=True)}
        return [torch.from_numpy(out) for out in session.run(None, feed)]

    return run


COUNT = torch.export.Dim("count", min=2)


def test_nms(tmp_path):
    args = cases.boxes(50), torch.rand(50)
    run = exported(
        ssd_ops.nms, args, ({0: COUNT}, {0: COUNT}), tmp_path / "nms.onnx", iou_threshold=0.4
    )
    for kind, count in itertools.product(("uniform", "small", "grid"), (2, 50, 700)):
        boxes, scores = cases.boxes(count, kind=kind), cases.scores(count, kind=kind)
        assert torch.equal(run(boxes, scores)[0], ssd_ops.nms(boxes, scores, 0.4))


def test_batched_nms(tmp_path):
    args = cases.boxes(50), torch.rand(50), torch.randint(0, 4, (50,))
    run = exported(
        ssd_ops.batched_nms,
        args,
        ({0: COUNT},) * 3,
        tmp_path / "batched_nms.onnx",
        iou_threshold=0.4,
    )
    for kind, count in itertools.product(("uniform", "small", "grid"), (2, 50, 700)):
        boxes, scores = cases.boxes(count, kind=kind), cases.scores(count, kind=kind)
        idxs = torch.randint(-3, 6, (count,)) * 1000
        expected = ssd_ops.batched_nms(boxes, scores, idxs, 0.4)
        assert torch.equal(run(boxes, scores, idxs)[0], expected)


@pytest.mark.parametrize("op", ["nms", "batched_nms", "detect"])
def test_only_iou(op, tmp_path):
    """ONNX has no NMS by IoS: the export fails, and its causes say why."""
    args = (torch.rand(2, 9, 3), torch.rand(2, 9, 4), cases.boxes(9)) if op == "detect" else None
    args = args or (cases.boxes(9), torch.rand(9), torch.zeros(9).long())[: 3 if "_" in op else 2]
    options = {"metric": "ios"} if op == "detect" else {"metric": "ios", "iou_threshold": 0.5}
    dynamic = tuple({} for _ in args)
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        exported(getattr(ssd_ops, op), args, dynamic, tmp_path / "x.onnx", **options)
    errors = [caught.value]
    while errors[-1].__cause__ is not None:
        errors.append(errors[-1].__cause__)
    assert f"{op}: metric must be 'iou' for ONNX" in str(errors[-1])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "sigmoid", "topk": 5, "max_detections": 300, "clip": False},
        {"activation": "none", "topk": -1, "class_agnostic": True, "score_threshold": 0.5},
        {"coding": "linear", "variances": (0.5, 0.4, 0.3, 0.2), "best_class_only": True},
        {
            "coding": "distance",
            "clip": (0.8, 0.5),
            "level_counts": [30, 0, 29, 1],
            "topk_per_level": 7,
        },
        {
            "activation": "sigmoid",
            "max_log_size": 0.1,
            "level_counts": [60],
            "topk_per_level": 9,
            "best_class_only": True,
            "topk": 4,
        },
    ],
    ids=str,
)
def test_detect(tmp_path, options):
    batch, anchors = torch.export.Dim("batch", min=1), cases.boxes(60)

    def heads(images):
        scores = torch.rand(images, 60, 4) * (1 if options.get("activation") == "none" else 4)
        offsets = torch.randn(images, 60, 4)
        # ONNX puts corners that are out of order in order; `detect` lets such a box overlap nothing.
        return scores, offsets if options.get("coding") is None else offsets.abs(), anchors

    run = exported(
        ssd_ops.detect, heads(2), ({0: batch}, {0: batch}, {}), tmp_path / "detect.onnx", **options
    )
    for images in (1, 4):
        args = heads(images)
        expected = ssd_ops.detect(*args, **options)
        got = run(*args)
        assert expected.counts.gt(0).all()
        for a, b in zip(got[2:], expected[2:], strict=True):  # labels, indices, counts
            assert torch.equal(a, b)
        for a, b in zip(got[:2], expected[:2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
