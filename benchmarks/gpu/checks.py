"""The device's answers are the CPU's, bit for bit; padded ops never wait for the host and can be captured.

checks.py calls          random batches of every op of the library: on the stream, replayed in a graph, on
                         two streams at once
checks.py large          the shapes of the benchmarks, and NMS of up to 300,000 boxes
checks.py agreement      random batches of all ops until a deadline, with progress printed every second

What is printed: stream.py. "different" counts what was not the CPU's answer.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import backends
import cases
import shapes
import stream
import torch
from device import Gpu, StandIn, open_device, tensors
from stream import Case

import ssd_ops

# They return as many rows as there are, so they have to wait for their number.
WAITING = {"nms", "batched_nms"}


def draw(number: int) -> dict[str, tuple[Callable, tuple]]:
    """A call of every op, of random kinds, sizes, dtypes and options: the function and its arguments."""
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
    regions = choose(None, cases.boxes(images, choose(0, 1, 9), kind=kind))
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
        "grid_anchors": (
            [torch.zeros(pick(1, 9), pick(1, 9))] * 2,
            [[(0.1, 0.3), (0.2, 0.4)], [(0.5, 0.2)]],
        ),
        "box_iou": (boxes.expand(images, -1, -1), labels[..., 1:]),
        "encode_boxes": (rows, boxes),
        "decode_boxes": (torch.randn(images, anchors, 4).to(dtype), boxes),
        "assign_anchors": (boxes, labels[..., 1:], regions),
        "multibox_target": (boxes, labels, logits.mT, regions),
        "hard_negative_mining": (scores, torch.randint(-1, 2, (images, anchors))),
        "nms": (rows[0], scores[0], threshold),
        "batched_nms": (rows[0], scores[0], torch.randint(0, 3, (anchors,)), threshold),
        "nms_padded": (rows, scores, threshold),
        "nms_groups": (rows, scores, threshold),
        "multiclass_nms": (rows, scores[..., None].repeat(1, 1, classes)),
        "multibox_detection": (probs, offsets, boxes, threshold),
        "detect": (logits, offsets, boxes),
    }
    metric = {"metric": choose("iou", "ios")}
    options = {
        "box_iou": metric,
        "nms": metric,
        "batched_nms": metric,
        "nms_padded": metric,
        "nms_groups": metric,
        "grid_anchors": {"image_size": choose(None, (0.7, 1.3)), "clip": choose(True, False)},
        "assign_anchors": {
            "force_match": choose("bipartite", "argmax", "low_quality", "none"),
            "background_threshold": choose(None, 0.0, 0.4),
            "ignore_threshold": choose(0.0, 0.5, 1.0),
        },
        "multibox_target": {
            "semantics": choose("d2l", "mxnet", "torchvision"),
            **choose({}, mining),
        },
        "multiclass_nms": {
            "topk": choose(-1, pick(1, 300)),
            "max_detections": pick(1, 200),
            "class_agnostic": choose(True, False),
            **metric,
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
            **metric,
        },
    }
    functions = {name: getattr(ssd_ops, name) for name in calls}
    for name in ("assign_anchors", "multibox_target"):
        functions[name] = partial(ignoring, functions[name])
    return {
        name: (partial(functions[name], **options.get(name, {})), args)
        for name, args in calls.items()
    }


def ignoring(op: Callable, *args, **options):
    """Calls an op whose last argument here is its option `ignore_boxes`: tensors have to be arguments."""
    return op(*args[:-1], ignore_boxes=args[-1], **options)


def call_of(op: str, number: int) -> tuple[Callable, tuple]:
    """The call of one op in a draw; LookupError for an op that `draw` does not know."""
    calls = draw(number)
    if op not in calls:
        raise LookupError(f"there is no call of {op}: add one to draw() in checks.py")
    return calls[op]


def every_op() -> list[str]:
    """The names of all ops that the library registers."""
    return sorted(schema.name.removeprefix("ssd_ops::") for schema in backends.schemas())


def same(got, expected) -> bool:
    """Whether all tensors have the same shapes, dtypes and bits; NaN is NaN."""
    got, expected = tensors(got), tensors(expected)
    return len(got) == len(expected) and all(
        a.shape == b.shape
        and a.dtype == b.dtype
        and torch.equal(a.cpu().nan_to_num(), b.nan_to_num())
        and torch.equal(a.cpu().isnan(), b.isnan())
        for a, b in zip(got, expected, strict=True)
    )


def agrees(op: str, call: Callable, args: tuple, device: Gpu | StandIn) -> bool:
    """Whether one call gives the CPU's answer; a padded op that waits for the device is an error."""
    expected = call(*args)
    moved = device.put(args)
    with device.kernels(), nullcontext() if op in WAITING else device.no_waiting():
        got = call(*moved)
    return same(got, expected)


def replays_agree(call: Callable, args: tuple, count: int, device: Gpu | StandIn) -> int:
    """How many replays of one graph, each on other numbers in the same memory, give others than the CPU."""
    fresh = [
        [arg.roll(number, dims=min(1, arg.dim() - 1)) for arg in tensors(args)]
        for number in range(count)
    ]
    static = device.put(args)
    with device.kernels():
        result, replay = device.capture(lambda: call(*static))
    wrong = 0
    for values in fresh:
        for place, value in zip(tensors(static), values, strict=True):
            place.copy_(value)
        with device.kernels():
            replay()
        expected = call(*refilled(args, values))
        wrong += not same(result, expected)
    return wrong


def refilled(args: tuple, values: list[torch.Tensor]) -> tuple:
    """`args` with these tensors in place of its own, in order."""
    left = iter(values)

    def fill(value):
        if isinstance(value, torch.Tensor):
            return next(left)
        return (
            type(value)(fill(item) for item in value) if isinstance(value, list | tuple) else value
        )

    return fill(args)


def calls(options, device: Gpu | StandIn) -> Iterator[Case]:
    def run(op, say):
        different: Counter = Counter()
        for number in range(options.draws):
            call, args = call_of(op, number)
            different["calls"] += not agrees(op, call, args, device)
        if options.replays and op not in WAITING:
            call, args = call_of(op, 1)
            different["replays"] = replays_agree(call, args, options.replays, device)
            moved, expected = device.put(args), call(*args)
            with device.kernels():
                results = device.at_once(partial(call, *moved), 2)
            different["on two streams"] = sum(not same(result, expected) for result in results)
        say(draws=options.draws, replays=options.replays, different=dict(+different))

    for op in every_op():
        yield Case(op, 15, partial(run, op))


def large(options, device: Gpu | StandIn) -> Iterator[Case]:
    def run(make, say):
        shape = make()
        start = time.perf_counter()
        expected = shape.ours(*shape.args)
        cpu = time.perf_counter() - start
        moved = device.put(shape.args)
        with device.kernels():
            got = shape.ours(*moved)
        say(cpu_seconds=round(cpu, 3), different={} if same(got, expected) else {"calls": 1})

    for name, make in shapes.all_shapes(options.tiny).items():
        yield Case(name, 12, partial(run, make))
    for count in (1000, 10_000, 100_000, 300_000):
        for kind in ("uniform", "small", "copies", "grid", "chain", "pile"):
            if (count, kind) == (300_000, "uniform"):
                continue  # the CPU takes ten seconds
            make = partial(shapes.nms_of_kind, 12 if options.tiny else count, kind)
            yield Case(f"nms {count:,} {kind}, unit square", 12, partial(run, make))


def agreement(options, device: Gpu | StandIn) -> Iterator[Case]:
    end = time.monotonic() + options.seconds

    def run(say):
        row: dict = {"batches": 0, "op": "", "different": {}, "first different": []}
        finished = threading.Event()

        def progress():
            # From a thread of its own, so that a kernel that hangs leaves behind what was being called.
            while not finished.wait(1.0):
                say(**row)

        thread = threading.Thread(target=progress, daemon=True)
        thread.start()
        ops = every_op()
        try:
            while time.monotonic() < end:
                batch = options.first + row["batches"]
                drawn = draw(batch)
                for op in ops:
                    row["op"] = op
                    if not agrees(op, *drawn[op], device):
                        # New ones: the other thread may be printing the old.
                        row["different"] = {**row["different"], op: row["different"].get(op, 0) + 1}
                        row["first different"] = [*row["first different"], f"{op} of {batch}"][:10]
                row["batches"] += 1
        finally:
            finished.set()
            thread.join()
            say(**row)

    yield Case("agreement", options.seconds + 15, run)


def main() -> int:
    parser = stream.parser(__doc__)
    parser.add_argument("what", choices=("calls", "large", "agreement"))
    parser.add_argument("--draws", type=int, default=8, help="batches of each op in `calls`")
    parser.add_argument("--replays", type=int, default=20, help="of each graph in `calls`; 0: none")
    parser.add_argument("--seconds", type=float, default=30, help="how long `agreement` goes on")
    parser.add_argument("--first", type=int, default=0, help="number of the first of its batches")
    options = parser.parse_args()
    device = open_device(options.device)
    lists = {"calls": calls, "large": large, "agreement": agreement}
    return stream.run(lists[options.what](options, device), device, options.after)


if __name__ == "__main__":
    sys.exit(main())
