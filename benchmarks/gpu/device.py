"""Where the ops run: on a GPU, or, in a rehearsal without one, on what stands in for it.

`open_device("cuda")` is the GPU. "cpu" and "emulated" are stand-ins that do the same with CPU tensors, so
that every line of the checks and benchmarks but torch.cuda's own has run before a GPU is there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property

import backends
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

L2_BYTES = 2**28  # more than twice the L2 cache of any GPU there is


def move(value, to: Callable[[Tensor], Tensor]):
    """`value` with every tensor in it moved by `to`; the lists and tuples stay what they are."""
    if isinstance(value, Tensor):
        return to(value)
    if isinstance(value, list | tuple):
        return type(value)(move(item, to) for item in value)
    return value


def tensors(value) -> list[Tensor]:
    """All tensors in a result or in arguments, in order."""
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in tensors(item)] if isinstance(value, list | tuple) else []


class Gpu:
    """torch's current CUDA device."""

    name = "cuda"

    def put(self, value):
        return move(value, lambda tensor: tensor.cuda())

    def kernels(self) -> AbstractContextManager:
        """Inside, the ops of this library run on the device."""
        return nullcontext()

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        """Inside, a call that makes the host wait for the GPU raises RuntimeError."""
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def capture(self, call: Callable, count: int = 1) -> tuple[object, Callable[[], None]]:
        """A CUDA graph of `count` calls: the result of the last, which each replay writes again, and the
        replay."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(count):
                result = call()
        return result, graph.replay

    def at_once(self, call: Callable, count: int) -> list:
        """Results of `count` calls on as many streams."""
        streams = [torch.cuda.Stream() for _ in range(count)]
        torch.cuda.synchronize()
        results = []
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(call())
        torch.cuda.synchronize()
        return results

    def elapsed(self, call: Callable) -> float:
        """Microseconds from the GPU's beginning of `call` to its end."""
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e3

    @cached_property
    def _filler(self) -> Tensor:
        return torch.empty(L2_BYTES, dtype=torch.int8, device="cuda")

    def flush(self) -> None:
        """Other data takes the place of what the L2 cache holds."""
        self._filler.zero_()

    def kernel_times(self, call: Callable, calls: int) -> tuple[float, float]:
        """Of one call: the sum of its kernels' times in microseconds, and how many kernels there are."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            for _ in range(calls):
                call()
            torch.cuda.synchronize()
        events = [event for event in profile.events() if event.device_type.name == "CUDA"]
        return sum(event.device_time for event in events) / calls, len(events) / calls

    def compiled(self, function: Callable) -> Callable:
        return torch.compile(function, dynamic=False)

    def broken(self) -> bool:
        """Whether the process can do nothing more with the GPU, as after an access out of bounds."""
        try:
            torch.cuda.synchronize()
            return int(torch.ones(1, device="cuda")) != 1
        except RuntimeError:
            return True


class _Apart(TorchFunctionMode):
    """Tensors that were `put` on the stand-in do not mix with others: a GPU would not take them together.

    A result belongs to the stand-in if an argument does, or if it was created with a `device`.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        inputs = tensors([list(args), list(kwargs.values())])
        there = [hasattr(tensor, "on_stand_in") for tensor in inputs]
        if any(there) and function not in (Tensor.copy_, Tensor.to):
            for tensor, known in zip(inputs, there, strict=True):
                if tensor.dim() and not known:
                    raise RuntimeError(f"{function}: tensors of the CPU and of the device together")
        result = function(*args, **kwargs)
        if function is Tensor.__iter__:
            result = list(result)
        if any(there) or kwargs.get("device") is not None:
            for tensor in tensors(result):
                tensor.on_stand_in = True
        return iter(result) if function is Tensor.__iter__ else result


class StandIn:
    """CPU tensors in place of a GPU: the CPU kernels ("cpu"), or the emulated ones ("emulated")."""

    def __init__(self, name: str):
        self.name = name

    def put(self, value):
        def copy(tensor):
            result = tensor.clone()
            result.on_stand_in = True
            return result

        return move(value, copy)

    def kernels(self) -> AbstractContextManager:
        return _Apart() if self.name == "cpu" else backends.active(self.name)

    def no_waiting(self) -> AbstractContextManager:
        return nullcontext()

    def synchronize(self) -> None:
        pass

    def capture(self, call: Callable, count: int = 1) -> tuple[object, Callable[[], None]]:
        result = call()

        def replay():
            for _ in range(count):
                for place, fresh in zip(tensors(result), tensors(call()), strict=True):
                    place.copy_(fresh)

        return result, replay

    def at_once(self, call: Callable, count: int) -> list:
        return [call() for _ in range(count)]

    def elapsed(self, call: Callable) -> float:
        start = time.perf_counter()
        call()
        return (time.perf_counter() - start) * 1e6

    def flush(self) -> None:
        pass

    def kernel_times(self, call: Callable, calls: int) -> tuple[float, float]:
        return self.elapsed(call), 1

    def compiled(self, function: Callable) -> Callable:
        # Dynamo alone: the compiler behind it would take minutes.
        return torch.compile(function, dynamic=False, backend="eager")

    def broken(self) -> bool:
        return False


def open_device(name: str) -> Gpu | StandIn:
    """The device of that name; without one, the program ends with a line that says why."""
    why_not = backends.why_not(name)
    if why_not:
        sys.exit(f"no device {name}: {why_not}")
    return Gpu() if name == "cuda" else StandIn(name)
