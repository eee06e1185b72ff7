"""Checks on a GPU: CPU and CUDA give the same bits, and ops of fixed output shape never wait for the host.

Each such op is also captured in a CUDA graph and run on two streams. The script prints one line of JSON: the
number of batches and replays, and for each op how many results were different.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from functools import partial

import cases
import torch

import ssd_ops

OPS = [name for name in ssd_ops.__all__ if name[0].islower()]


def draw(number: int) -> dict[str, tuple[partial, tuple]]:
    """Random calls of every op of fixed output shape: name -> (function with its options, arguments)."""
    torch.manual_seed(number)

    def choose(*options):
        return options[int(torch.randint(0, len(options), ()))]

    def pick(low, high):
        return int(torch.randint(low, high + 1, ()))

    kind, dtype = choose(*cases.KINDS), choose(*cases.DTYPES)
    images, anchors = choose(1, 2, 3, 17), choose(pick(1, 40), pick(200, 1100))
    gts, classes = choose(0, 1, pick(2, 40), 150), pick(1, 4)
    boxes = cases.boxes(1, anchors, kind=kind, dtype=dtype)
    rows = cases.boxes(images, anchors, kind=choose(*cases.KINDS), dtype=choose(*cases.DTYPES))
    scores = cases.scores(images, anchors, kind=choose("uniform", "ties", "odd"))
    labels = cases.labels(images, gts, kind=choose(kind, "uniform"))
    threshold = choose(0.0, 0.3, 0.5, 0.9)
    probs = scores.nan_to_num().clamp(0, 1)[:, None].repeat(1, classes + 1, 1).roll(1, 2)
    offsets = torch.randn(images, 4 * anchors).to(dtype)
    logits = torch.randn(images, anchors, classes + 1).to(choose(*cases.DTYPES))
    mining = {"negative_mining_ratio": choose(0.0, 1.5, 3.0), "negative_mining_threshold": 0.3}
    calls = {
        "multibox_priors": (
            [torch.zeros(pick(1, 9), pick(1, 9))] * 2,
            [[0.1, 0.3]] * 2,
            [[1, 2]] * 2,
        ),
        "box_iou": (boxes.expand(images, -1, -1), labels[..., 1:]),
        "encode_boxes": (rows, boxes),
        "decode_boxes": (torch.randn(images, anchors, 4).to(dtype), boxes),
        "assign_anchors": (boxes, labels[..., 1:]),
        "multibox_target": (boxes, labels, logits.mT),
        "hard_negative_mining": (scores, torch.randint(-1, 2, (images, anchors))),
        "nms_padded": (rows, scores, threshold),
        "multiclass_nms": (rows, scores[..., None].repeat(1, 1, classes)),
        "multibox_detection": (probs, offsets, boxes, threshold),
        "detect": (logits, offsets, boxes),
    }
    options = {
        "assign_anchors": {
            "force_match": choose("bipartite", "argmax", "low_quality", "none"),
            "background_threshold": choose(None, 0.0, 0.4),
        },
        "multibox_target": {
            "semantics": choose("d2l", "mxnet", "torchvision"),
            **choose({}, mining),
        },
        "multiclass_nms": {
            "topk": choose(-1, pick(1, 300)),
            "max_detections": pick(1, 200),
            "class_agnostic": choose(True, False),
        },
        "multibox_detection": {
            "semantics": choose("d2l", "mxnet"),
            "topk": choose(-1, pick(1, 300)),
            "clip": choose(True, False),
            "class_agnostic": choose(True, False),
        },
        "detect": {
            "activation": choose("softmax", "sigmoid", "none"),
            "topk": choose(-1, pick(1, 300)),
            "class_agnostic": choose(True, False),
        },
    }
    for name in OPS:  # an op that has no richer case above
        if name not in calls and cases.has_fixed_shape(name):
            calls[name] = cases.inputs(name, images, dtype, anchors)
    return {
        name: (partial(getattr(ssd_ops, name), **options.get(name, {})), args)
        for name, args in calls.items()
    }


def to_cuda(value):
    if isinstance(value, torch.Tensor):
        return value.cuda()
    return [to_cuda(item) for item in value] if isinstance(value, list) else value


def results_of(value) -> list[torch.Tensor]:
    return [value] if isinstance(value, torch.Tensor) else list(value)


def same(got, expected) -> bool:
    pairs = zip(results_of(got), results_of(expected), strict=True)
    return all(
        torch.equal(a.cpu().nan_to_num(), b.nan_to_num())
        and torch.equal(a.cpu().isnan(), b.isnan())
        for a, b in pairs
    )


def compare(batches: int) -> Counter:
    wrong: Counter = Counter()
    for number in range(batches):
        for name, (op, args) in draw(number).items():
            expected = op(*args)
            on_gpu = [to_cuda(arg) for arg in args]
            torch.cuda.set_sync_debug_mode("error")
            got = op(*on_gpu)
            torch.cuda.set_sync_debug_mode("default")
            wrong[name] += not same(got, expected)
        if number % 4 == 0:  # the ops that wait for the host
            boxes, scores, threshold = draw(number)["nms_padded"][1]
            args, idxs = (boxes[0], scores[0]), torch.randint(0, 3, scores[0].shape)
            got = ssd_ops.nms(*map(to_cuda, args), threshold)
            wrong["nms"] += not same(got, ssd_ops.nms(*args, threshold))
            got = ssd_ops.batched_nms(*map(to_cuda, (*args, idxs)), threshold)
            wrong["batched_nms"] += not same(got, ssd_ops.batched_nms(*args, idxs, threshold))
    return wrong


def replay(replays: int) -> Counter:
    """Captures each op once, then replays it with new values in the same memory."""
    wrong: Counter = Counter()
    for name, (op, args) in draw(1).items():
        static = [to_cuda(arg) for arg in args]
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            op(*static)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = op(*static)
        for number in range(replays):
            fresh = [
                arg.roll(number, dims=min(1, arg.ndim - 1))
                if isinstance(arg, torch.Tensor)
                else arg
                for arg in args
            ]
            for place, value in zip(static, fresh, strict=True):
                if isinstance(place, torch.Tensor):
                    place.copy_(value)
            graph.replay()
            if number % 20 == 0 or number == replays - 1:
                wrong[f"{name} in a graph"] += not same(out, op(*fresh))
        torch.cuda.synchronize()
    return wrong


def two_streams(rounds: int) -> Counter:
    """Runs the same ops on two streams at the same time."""
    wrong: Counter = Counter()
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    for number in range(rounds):
        for name, (op, args) in draw(number).items():
            on_gpu = [to_cuda(arg) for arg in args]
            torch.cuda.synchronize()
            results = []
            for stream in streams:
                with torch.cuda.stream(stream):
                    results.append(op(*on_gpu))
            torch.cuda.synchronize()
            expected = op(*args)
            wrong[f"{name} on two streams"] += not all(same(got, expected) for got in results)
    return wrong


def large() -> Counter:
    """Real shapes. Some of them use other kernels than the small ones."""
    wrong: Counter = Counter()
    for count in (5444, 8732, 24564):
        anchors, labels = cases.prior_anchors(count), cases.labels(4, 64)
        probs, offsets = cases.detection(4, 3, count)
        for name, args in (
            ("multibox_target", (anchors, labels)),
            ("multibox_detection", (probs, offsets, anchors)),
            ("hard_negative_mining", (probs[:, 0], torch.randint(-1, 2, (4, count)))),
            ("assign_anchors", (anchors, labels[..., 1:])),
            ("detect", (probs.mT.contiguous(), offsets, anchors)),
        ):
            op = getattr(ssd_ops, name)
            wrong[f"{name}, large"] += not same(op(*map(to_cuda, args)), op(*args))
    for count in (1000, 10_000, 100_000, 300_000):
        for kind in ("uniform", "small", "copies", "chain"):
            boxes, scores = cases.boxes(count, kind=kind), torch.rand(count)
            got = ssd_ops.nms(boxes.cuda(), scores.cuda(), 0.5)
            wrong["nms, large"] += not same(got, ssd_ops.nms(boxes, scores, 0.5))
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--replays", type=int, default=1000)
    options = parser.parse_args()
    wrong = compare(options.batches)
    if options.replays:
        wrong += replay(options.replays) + two_streams(50) + large()
    torch.cuda.synchronize()
    bad = {name: count for name, count in wrong.items() if count}
    print(json.dumps({"batches": options.batches, "replays": options.replays, "different": bad}))
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main())
