"""Times of the ops and their rivals on a GPU. Prints a line of JSON with one entry for each case.

eager    one call from Python, until the GPU has finished (median)
graph    one call in a CUDA graph of twenty; each writes to its own memory, so large shapes do not stay in L2
kernels  the sum of the kernels' times (profiler), and the number of kernels
floor    the time to read all inputs and write all results once, at the speed of a copy on this GPU

Rivals run eagerly. For some cases torch.compile of the PyTorch rival runs too. Before the clock starts, the
results are compared with ours.
"""

from __future__ import annotations

import json
import statistics
import sys
import time

import baselines
import cases
import torch

import ssd_ops

CALLS = 20


def to_cuda(value):
    if isinstance(value, torch.Tensor):
        return value.cuda()
    return [to_cuda(item) for item in value] if isinstance(value, list) else value


def eager(function, args, seconds: float = 0.3) -> float:
    """Microseconds of a call, until the GPU has finished."""
    for _ in range(3):
        function(*args)
        torch.cuda.synchronize()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        function(*args)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        if times[-1] > 2:
            break
    return statistics.median(times) * 1e6


def in_graph(function, args) -> float:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            function(*args)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [
            function(*args) for _ in range(CALLS)
        ]  # all are alive, so each has its own memory
    times = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / CALLS)
    del results
    return statistics.median(times)


def kernels(function, args) -> tuple[float, int]:
    """The sum of the times of the kernels of one call in microseconds, and the number of kernels."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(CALLS):
            function(*args)
        torch.cuda.synchronize()
    events = [event for event in profile.events() if event.device_type.name == "CUDA"]
    return sum(event.device_time for event in events) / CALLS, round(len(events) / CALLS)


def copy_speed() -> float:
    """The speed of a large copy in bytes read plus bytes written per microsecond."""
    source = torch.empty(2**28, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() * 4 / in_graph(lambda: target.copy_(source), ())


def bytes_of(value) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    return sum(map(bytes_of, value)) if isinstance(value, list | tuple) else 0


def nms_boxes(count: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    center = torch.rand(count, 2) * torch.tensor([1333.0, 800.0])
    half = 16 * 16 ** torch.rand(count, 2) / 2
    boxes = torch.cat((center - half, center + half), dim=1)
    if kind == "clustered":
        boxes = boxes[torch.arange(count) // 100]
        size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        boxes = boxes + 0.06 * size * torch.randn(count, 4)
    elif kind == "all overlapping":
        boxes = torch.tensor([0.0, 0, 100, 100]) + 2 * torch.rand(count, 4)
    elif kind == "chain":
        boxes = cases.boxes(count, kind="chain") * 1000
    order = torch.arange(count, 0, -1) if kind == "chain" else torch.randperm(count)
    return boxes, order / count


def retina_anchors() -> torch.Tensor:
    """200,700 anchors of a RetinaNet for 800 x 1333 pixels: nine per cell on strides 8 to 128."""
    maps = [(100, 167), (50, 84), (25, 42), (13, 21), (7, 11)]
    sizes = [[0.04 * 2**level * 2 ** (i / 3) for i in range(3)] for level in range(5)]
    levels = [
        torch.cat(
            [
                ssd_ops.multibox_prior(torch.zeros(shape), [size], [1, 2, 0.5]).view(1, -1, 3, 4)
                for size in size_of_level
            ],
            dim=2,
        ).view(1, -1, 4)
        for shape, size_of_level in zip(maps, sizes, strict=True)
    ]
    return torch.cat(levels, dim=1)[:, :200_700]


def on_device(function):
    """Wraps a rival written for the CPU, so that the tensors it creates are on the GPU."""
    if isinstance(function, str):
        return function

    def run(*args):
        with torch.device("cuda"):
            return function(*args)

    return run


def all_cases():
    """(name, our function, arguments, rivals, comparison of the results or None)."""
    tiny = cases.prior_anchors(5444)
    maps, sizes, ratios = cases.TINY_SSD
    level_args = ([torch.zeros(n, n) for n in maps], sizes, ratios)
    priors = {"d2l": baselines.d2l_multibox_priors, "eager": baselines.eager_multibox_priors}
    yield "multibox_priors TinySSD", ssd_ops.multibox_priors, level_args, priors, None
    targets = {"d2l": baselines.d2l_multibox_target, "eager": baselines.eager_multibox_target}
    for name, anchors, images, gts in (
        ("TinySSD B32 G1", tiny, 32, 1),
        ("SSD300 B32 G8", cases.prior_anchors(8732), 32, 8),
        ("SSD300 B32 G64", cases.prior_anchors(8732), 32, 64),
        ("SSD512 B32 G64", cases.prior_anchors(24564), 32, 64),
        ("RetinaNet B8 G64", retina_anchors(), 8, 64),
    ):
        args = anchors, cases.labels(images, gts, padding=0)
        rivals = targets if images * gts <= 256 else {"eager": targets["eager"]}
        yield (
            f"multibox_target {name}",
            ssd_ops.multibox_target,
            args,
            rivals,
            baselines.same_targets,
        )
    losses, labels = torch.rand(32, 8732), (torch.rand(32, 8732) < 0.005).long()
    mining = {
        "eager": baselines.eager_hard_negative_mining,
        "two sorts": baselines.two_sorts_hard_negative_mining,
    }
    yield (
        "hard_negative_mining SSD300 B32",
        ssd_ops.hard_negative_mining,
        (losses, labels),
        mining,
        torch.equal,
    )
    detections = {
        "d2l": baselines.d2l_multibox_detection,
        "eager": baselines.eager_multibox_detection,
    }
    for name, anchors, images, classes in (
        ("TinySSD B1", tiny, 1, 1),
        ("TinySSD B32", tiny, 32, 1),
        ("SSD300 C20 B32", cases.prior_anchors(8732), 32, 20),
    ):
        args = (*cases.detection(images, classes, anchors.shape[1]), anchors)
        rivals = detections if images * classes <= 32 else {}
        same = baselines.same_detections
        yield f"multibox_detection {name}", ssd_ops.multibox_detection, args, rivals, same
    images, classes, anchors = 8, 20, cases.prior_anchors(8732)
    scores = torch.randn(images, 8732, classes + 1)
    args = scores, 0.3 * torch.randn(images, 8732, 4), anchors[0]
    rivals = {"torchvision": baselines.torchvision_detect, "eager": baselines.eager_detect}
    yield "detect SSD300 C20 B8", ssd_ops.detect, args, rivals, None
    boxes, box_scores = nms_boxes(10_000, "uniform")
    args = boxes, box_scores, torch.randint(0, 80, (10_000,)), 0.5
    rivals = {"torchvision": baselines.torchvision_batched_nms}
    yield "batched_nms 10,000 of 80 classes", ssd_ops.batched_nms, args, rivals, torch.equal
    for count in (1000, 10_000, 100_000):
        for kind in ("uniform", "clustered", "all overlapping", "chain"):
            args = (*nms_boxes(count, kind), 0.5)
            rivals = {"torchvision": baselines.torchvision_nms}
            if count == 1000:
                rivals["eager"] = baselines.eager_nms
            yield f"nms {count:,} {kind}", ssd_ops.nms, args, rivals, torch.equal


# Cases in which torch.compile of the PyTorch rival is timed too. Compiling takes minutes, so they are few.
COMPILED = {
    "multibox_priors TinySSD",
    "multibox_target TinySSD B32 G1",
    "hard_negative_mining SSD300 B32",
}


def other_cases(known: set[str]):
    """A case without rivals for each op that `all_cases` leaves out: a batch of 8, 1,000 boxes an image."""
    for op in ssd_ops.__all__:
        if op[0].islower() and op not in known and cases.has_fixed_shape(op):
            yield op, getattr(ssd_ops, op), cases.inputs(op, 8, size=1000), {}, None


def main() -> None:
    torch.manual_seed(0)
    speed = copy_speed()
    rows = []
    listed = list(all_cases())
    listed += other_cases({ours.__name__ for _, ours, *_ in listed})
    for name, ours, args, rivals, same in listed:
        args = [to_cuda(arg) for arg in args]
        # nms waits for the size of its result. nms_padded does the same work and can be captured.
        capturable = ssd_ops.nms_padded if ours is ssd_ops.nms else ours
        captured = ours is not ssd_ops.batched_nms
        result = ours(*args)
        kernel_time, launches = kernels(capturable, args)
        moved = bytes_of(args) + bytes_of(result)
        row = {
            "case": name,
            "eager": eager(ours, args),
            "graph": in_graph(capturable, args) if captured else "waits",
            "kernels": kernel_time,
            "launches": launches,
            "floor": moved / speed,
            "rivals": {},
        }
        for rival, function in rivals.items():
            try:
                function = on_device(function)
                if isinstance(function, str):
                    row["rivals"][rival] = function
                    continue
                theirs = function(*args)
                if same and not same(theirs, result):
                    rival += " (others)"  # other ties or a last bit; the times are still comparable
                row["rivals"][rival] = eager(function, args)
                if rival == "eager" and name in COMPILED:
                    row["rivals"]["compiled"] = eager(torch.compile(function, dynamic=False), args)
            except Exception as error:
                row["rivals"][rival] = f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
