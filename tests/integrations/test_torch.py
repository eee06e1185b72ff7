"""What torch asks of an op: schemas, fake kernels, compilation, gradients, threads, processes."""

from __future__ import annotations

import itertools
import threading
import warnings

import cases
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

import ssd_ops

OPS = [name for name in ssd_ops.__all__ if name[0].islower()]
RAGGED = [name for name in OPS if not cases.has_fixed_shape(name)]


def tensors_of(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []


def requiring_grad(value):
    if isinstance(value, torch.Tensor):
        return value.requires_grad_() if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: requiring_grad(item) for key, item in value.items()}
    return type(value)(map(requiring_grad, value)) if isinstance(value, list | tuple) else value


def test_every_op_of_the_library_is_public():
    assert set(OPS) >= {
        "multibox_prior",
        "multibox_priors",
        "grid_anchors",
        "box_iou",
        "encode_boxes",
        "decode_boxes",
        "multibox_target",
        "hard_negative_mining",
        "nms",
        "nms_padded",
        "nms_groups",
        "batched_nms",
        "multiclass_nms",
        "multibox_detection",
        "detect",
        "assign_anchors",
    }
    assert {"nms", "batched_nms"} <= set(RAGGED)


@pytest.mark.parametrize("grad", [False, True], ids=["plain", "requires_grad"])
@pytest.mark.parametrize("name", [name for name in OPS if name not in cases.PLAIN])
def test_opcheck(name, grad):
    """All four tests of torch.library.opcheck, on several shapes and dtypes."""
    for images, size in ((1, 1), (3, 20), (0, 5), (2, 0)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            op, args = cases.raw_call(
                getattr(ssd_ops, name), cases.inputs(name, images, dtype, size)
            )
            torch.library.opcheck(op, requiring_grad(args) if grad else args)


@pytest.mark.parametrize("name", OPS)
def test_no_gradient_and_no_warning(name):
    args = requiring_grad(cases.inputs(name))
    leaves = tensors_of(args)
    computed = [
        t * 1 if t.is_floating_point() else t for t in leaves
    ]  # not leaves: a graph hangs on them
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results = tensors_of(getattr(ssd_ops, name)(*args))
        later = tensors_of(getattr(ssd_ops, name)(*_replace(args, iter(computed))))
    for result in results + later:
        assert not result.requires_grad
        assert result.grad_fn is None
    for first, second in zip(results, later, strict=True):
        assert torch.equal(first, second)


def _replace(value, tensors):
    if isinstance(value, torch.Tensor):
        return next(tensors)
    if isinstance(value, dict):
        return {key: _replace(item, tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_replace(item, tensors) for item in value)
    return value


@pytest.mark.parametrize("name", OPS)
def test_inputs_are_not_written(name):
    args = cases.inputs(name)
    before = [t.clone() for t in tensors_of(args)]
    results = tensors_of(getattr(ssd_ops, name)(*args))
    assert all(torch.equal(a, b) for a, b in zip(tensors_of(args), before, strict=True))
    memory = {t.untyped_storage().data_ptr() for t in tensors_of(args) if t.numel()}
    assert not memory & {t.untyped_storage().data_ptr() for t in results if t.numel()}


@pytest.mark.parametrize("name", [name for name in OPS if name not in RAGGED])
def test_meta_shapes(name):
    """On the meta device the shapes and dtypes come out, and nothing is computed."""
    for dtype in cases.DTYPES:
        args = cases.inputs(name, dtype=dtype)
        real = tensors_of(getattr(ssd_ops, name)(*args))
        meta = [t.to("meta") for t in tensors_of(args)]
        fake = tensors_of(getattr(ssd_ops, name)(*_replace(args, iter(meta))))
        assert [(t.shape, t.dtype) for t in fake] == [(t.shape, t.dtype) for t in real]
        assert all(t.device.type == "meta" for t in fake)


@pytest.mark.parametrize("name", OPS)
def test_compiles_as_one_graph_for_any_batch(name):
    torch.compiler.reset()
    op = getattr(ssd_ops, name)
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(op, fullgraph=True, dynamic=True, backend=backend)
    for images in range(2, 22):
        args = cases.inputs(name, images, size=20 + images % 3)
        expected, got = tensors_of(op(*args)), tensors_of(compiled(*args))
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert len(graphs) == 1, "a batch size has been compiled in"


def test_compiles_with_inductor():
    """A training step's and a prediction's ops in one function, with the default compiler."""
    torch.compiler.reset()
    anchors = cases.boxes(1, 20)

    def step(logits, offset_preds, labels):
        offsets, masks, classes = ssd_ops.multibox_target(anchors, labels)
        losses = torch.nn.functional.cross_entropy(logits.mT, classes, reduction="none")
        selected = ssd_ops.hard_negative_mining(losses, classes, ratio=1)
        loss = (losses * selected).sum() + ((offset_preds - offsets) * masks).abs().sum()
        rows = ssd_ops.multibox_detection(logits.softmax(2).mT, offset_preds, anchors)
        kept = ssd_ops.nms(rows[0, :, 2:], rows[0, :, 1], 0.3)
        boxes = ssd_ops.decode_boxes(offset_preds.unflatten(1, (-1, 4)), anchors)
        iou = ssd_ops.box_iou(boxes, labels[..., 1:])
        return loss, rows, kept, iou, ssd_ops.encode_boxes(boxes, anchors)

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for images in (2, 5):
        args = (
            torch.randn(images, 20, 4),
            torch.randn(images, 80),
            cases.labels(images, 7, classes=3),
        )
        for got, expected in zip(compiled(*args), step(*args), strict=True):
            torch.testing.assert_close(got, expected)


def test_gradients_flow_round_the_ops():
    """A loss over the targets trains the predictions, compiled or not."""
    anchors, labels = cases.boxes(1, 20), cases.labels(2, 3)

    def loss(offset_preds):
        offsets, masks, _ = ssd_ops.multibox_target(anchors, labels)
        return ((offset_preds - offsets) * masks).abs().sum()

    grads = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(0)
        predictions = torch.randn(2, 80, requires_grad=True)
        function(predictions).backward()
        grads.append(predictions.grad)
    assert grads[0].abs().sum() > 0
    assert torch.equal(grads[0], grads[1])


def test_in_inference_mode_and_under_autocast():
    for name, dtype in itertools.product(OPS, (torch.float32, torch.bfloat16)):
        args = cases.inputs(name, dtype=dtype)
        expected = tensors_of(getattr(ssd_ops, name)(*args))
        with torch.inference_mode():
            got = tensors_of(getattr(ssd_ops, name)(*args))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got += tensors_of(getattr(ssd_ops, name)(*args))
        assert all(torch.equal(a, b) for a, b in zip(got, expected * 2, strict=True))


def test_python_threads_at_once():
    """Eight threads that call all ops at the same time get the answers of one alone."""
    calls = [(getattr(ssd_ops, name), cases.inputs(name, 4, size=300)) for name in OPS]
    expected = [tensors_of(op(*args)) for op, args in calls]
    wrong: list[str] = []
    start = threading.Barrier(8)

    def work(first: int):
        start.wait()
        for number in range(first, first + 3 * len(calls)):  # not all the same op at once
            (op, args), right = calls[number % len(calls)], expected[number % len(calls)]
            got = tensors_of(op(*args))
            if not all(torch.equal(a, b) for a, b in zip(got, right, strict=True)):
                wrong.append(op.__name__)

    workers = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert not any(worker.is_alive() for worker in workers), "a thread hangs"
    assert not wrong


class TargetsInWorker(Dataset):
    """Computes targets of image i where the loader asks for it."""

    def __init__(self):
        self.anchors, self.labels = cases.prior_anchors(5444), cases.labels(6, 8)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return ssd_ops.multibox_target(self.anchors, self.labels[i : i + 1])


@pytest.mark.long
def test_forked_workers_do_not_hang(threads, note):
    """Children forked after the parent has used several threads, with more than one of their own: four in
    each epoch of a toy set, and 100 epochs in the profile `long`."""
    threads(2)
    data = TargetsInWorker()
    expected = ssd_ops.multibox_target(data.anchors, data.labels)
    loader = DataLoader(
        data,
        batch_size=None,
        num_workers=4,
        multiprocessing_context="fork",
        timeout=60,
        worker_init_fn=_two_threads,
    )
    epochs = min(100, len(cases.rounds(4)))
    for _ in range(epochs):
        for image, parts in enumerate(loader):
            for got, whole in zip(parts, expected, strict=True):
                assert torch.equal(got[0], whole[image])
    note("forks", "multibox_target", epochs=epochs, workers=4)


def _two_threads(_worker: int) -> None:
    torch.set_num_threads(2)


def scripted(boxes: torch.Tensor, scores: torch.Tensor, idxs: torch.Tensor) -> list[torch.Tensor]:
    return [
        torch.ops.ssd_ops.nms(boxes, scores, 0.5, 0),
        torch.ops.ssd_ops.batched_nms(boxes, scores, idxs, 0.5, 0),
    ]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_ops_can_be_called_in_torchscript():
    """As docs/detectors.md says. The functions cannot: they have keyword-only arguments."""
    boxes, scores, idxs = cases.boxes(40), torch.rand(40), torch.randint(3, (40,))
    kept = torch.jit.script(scripted)(boxes, scores, idxs)
    assert torch.equal(kept[0], ssd_ops.nms(boxes, scores, 0.5))
    assert torch.equal(kept[1], ssd_ops.batched_nms(boxes, scores, idxs, 0.5))
    with pytest.raises(torch.jit.frontend.NotSupportedError, match="keyword-only"):
        torch.jit.script(ssd_ops.nms)
