"""Times of the ops on a GPU, each beside its rivals, in microseconds: median, 10th and 90th percentile.

eager        one call from Python and a wait for the GPU, as users feel it, over the same buffers
eager, cold  the same after other data have taken the L2 cache
graph        one of 20 calls in a CUDA graph, over the same buffers
graph, cold  a CUDA graph of one call, its own launch included, after other data have taken the L2 cache
kernels      the sum of the kernels' own times (profiler), and how many there are
bytes        that have to be read and written once: arguments and results

Repetitions are bounded by time. A rival's result is compared with ours before the clock starts; "same" tells.

bench.py              ours and the rivals
bench.py --compiled   what torch.compile makes of the vectorised tensor operations
bench.py --only nms   cases whose name has this in it
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial

import shapes
import stream
import torch
from device import Gpu, StandIn, open_device, tensors
from stream import Case

CALLS = 20  # in a graph
LONG = 5000.0  # microseconds; a call that takes longer is not put into a graph 20 times
ENDLESS = 1e6  # microseconds; of a call that takes longer one time is enough


class Clock:
    """Times calls on a device: each measure repeats for `seconds`, but at least three times."""

    def __init__(self, device: Gpu | StandIn, seconds: float):
        self.device, self.seconds = device, seconds

    def once(self, call: Callable) -> float:
        """Microseconds of a call and a wait."""
        self.device.synchronize()
        start = time.perf_counter()
        call()
        self.device.synchronize()
        return (time.perf_counter() - start) * 1e6

    def repeat(self, measure: Callable[[], float]) -> dict:
        times: list[float] = []
        least = 3 if self.seconds else 1
        end = time.perf_counter() + self.seconds
        while len(times) < least or (time.perf_counter() < end and len(times) < 10_000):
            times.append(measure())
            if times[-1] > ENDLESS:
                break
        return summary(times)

    def eager(self, call: Callable, cold: bool = False) -> dict:
        first = self.once(call)
        if first > ENDLESS:
            return summary([first])

        def measure():
            if cold:
                self.device.flush()
            return self.once(call)

        return self.repeat(measure)

    def graph(self, call: Callable, cold: bool = False, count: int = CALLS) -> dict:
        result, replay = self.device.capture(call, 1 if cold else count)
        replay()

        def measure():
            if cold:
                self.device.flush()
            return self.device.elapsed(replay) / (1 if cold else count)

        times = self.repeat(measure)
        del result  # it lives in the graph's memory
        return times


def summary(times: list[float]) -> dict:
    ordered = sorted(times)

    def quantile(part: float) -> float:
        return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 2)

    return {
        "p10": quantile(0.1),
        "median": quantile(0.5),
        "p90": quantile(0.9),
        "times": len(ordered),
    }


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in Python code that takes longer; a kernel that hangs is left to the driver."""

    def stop(*_):
        raise TimeoutError(f"takes more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def waits(device: Gpu | StandIn, call: Callable) -> bool:
    """Whether a call makes the host wait for the device: then no graph can hold it."""
    try:
        with device.no_waiting():
            call()
    except RuntimeError:
        return True
    return False


def time_ours(shape: shapes.Shape, args: tuple, clock: Clock, say: Callable) -> None:
    """The times of ours, printed one by one."""
    device, ours = clock.device, partial(shape.ours, *args)
    first = clock.once(ours)
    say(eager=clock.eager(ours) if first < ENDLESS else summary([first]))
    if first > ENDLESS:
        return
    say(**{"eager, cold": clock.eager(ours, cold=True)})
    count = CALLS if first < LONG else 1
    if shape.captured is None:
        say(graph="waits")
    else:
        captured = partial(shape.captured, *args)
        say(graph=clock.graph(captured, count=count))
        say(**{"graph, cold": clock.graph(captured, cold=True)})
    kernels, launches = device.kernel_times(ours if shape.captured is None else captured, count)
    say(kernels=round(kernels, 2), launches=round(launches, 1))


def time_rival(rival: shapes.Rival, result, args: tuple, clock: Clock, row: dict) -> None:
    """Fills the row of one rival; `result` is ours."""
    clock = Clock(clock.device, clock.seconds / 2)
    if rival.against is not None:
        result = rival.against(*args)
    call = partial(rival.function, *args)
    found = []
    first = clock.once(lambda: found.append(call()))
    row["same"] = bool(rival.same(found.pop(), result))
    if first > ENDLESS:
        row["eager"] = summary([first])
        return
    row["eager"] = clock.eager(call)
    row["eager, cold"] = clock.eager(call, cold=True)
    row["graph"] = "waits" if waits(clock.device, call) else clock.graph(call)


def benchmark(make: Callable[[], shapes.Shape], options, clock: Clock, say: Callable) -> None:
    shape = make()
    args = clock.device.put(shape.args)
    with clock.device.kernels():
        result = shape.ours(*args)
        clock.device.synchronize()
        say(bytes=sum(t.numel() * t.element_size() for t in tensors([list(args), result])))
        try:
            time_ours(shape, args, clock, say)
        except Exception as error:
            traceback.print_exc()
            say(error=stream.one_line(error))
            clock.device.synchronize()  # raises where the GPU itself is in error: the case is over
        for name, rival in shape.rivals.items():
            row: dict = {}
            try:
                if isinstance(rival.function, str):
                    raise RuntimeError(rival.function)
                with time_limit(options.rival_seconds):
                    time_rival(rival, result, args, clock, row)
            except Exception as error:
                row["error"] = stream.one_line(error)
            say(rivals={name: row})
            clock.device.synchronize()


def benchmark_compiled(make: Callable[[], shapes.Shape], clock: Clock, say: Callable) -> None:
    """torch.compile of the vectorised form."""
    shape = make()
    if "eager" not in shape.rivals:
        return
    args = clock.device.put(shape.args)
    torch.compiler.reset()
    eager = shape.rivals["eager"]
    compiled = eager._replace(function=clock.device.compiled(eager.function))
    row: dict = {}
    start = time.perf_counter()
    with clock.device.kernels(), time_limit(30):
        compiled.function(*args)
        clock.device.synchronize()
        row["seconds to compile"] = round(time.perf_counter() - start, 1)
        time_rival(compiled, shape.ours(*args), args, clock, row)
    say(rivals={"compiled": row})


def speeds(clock: Clock, say: Callable) -> None:
    """What the machine itself needs: a launch, and bytes a microsecond of a large copy."""
    device = clock.device
    one = device.put(torch.zeros(1))
    step = partial(one.add_, 1)
    say(eager=clock.eager(step), graph=clock.graph(step))
    say(**{"graph, cold": clock.graph(step, cold=True)})
    source = device.put(torch.zeros(2**28 if device.name == "cuda" else 64))
    target = torch.empty_like(source)
    copy = clock.graph(lambda: target.copy_(source), count=4)
    say(**{"bytes a microsecond": 2 * source.numel() * 4 / copy["median"]})


MACHINE = "one launch, and the speed of a copy"


def all_cases(options, device: Gpu | StandIn) -> Iterator[Case]:
    clock = Clock(device, options.seconds)
    if not options.compiled:
        yield Case(MACHINE, 20, partial(speeds, clock))
    for name, make in shapes.all_shapes(options.tiny).items():
        if options.only not in name:
            continue
        if options.compiled:
            yield Case(name, 40, partial(benchmark_compiled, make, clock))
        else:
            yield Case(name, 40, partial(benchmark, make, options, clock))


def main() -> int:
    parser = stream.parser(__doc__)
    parser.add_argument("--compiled", action="store_true", help="time torch.compile's forms only")
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    parser.add_argument("--seconds", type=float, default=0.12, help="of each measure")
    parser.add_argument(
        "--rival-seconds", type=float, default=8, help="that a rival may take in all"
    )
    options = parser.parse_args()
    device = open_device(options.device)
    return stream.run(all_cases(options, device), device, options.after)


if __name__ == "__main__":
    sys.exit(main())
