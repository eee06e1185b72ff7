"""A function of tensors recorded as CUDA graphs, one for each set of shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Calls made as they are before a graph is recorded: libraries set themselves up in them.
WARM_UP = 3


class Graphed:
    """Called like the function itself; after the first calls with some shapes, it is replayed.

    The function takes tensors on one GPU and then numbers, returns a tensor, and does not wait for
    the GPU. What else it reads and writes must stay where it is in memory.
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.calls: Counter[tuple[Any, ...]] = Counter()
        self.graphs: dict[tuple[Any, ...], tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}

    def __call__(self, *inputs: Tensor, **numbers: int) -> Tensor:
        """The function's result, in memory of its own."""
        key = (*(tensor.shape for tensor in inputs), *numbers.values())
        self.calls[key] += 1
        if self.calls[key] <= WARM_UP:
            # On a stream of its own, as recording will be: these are real calls, and no waste.
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                result = self.function(*inputs, **numbers)
            torch.cuda.current_stream().wait_stream(stream)
            return result
        if key not in self.graphs:
            graph, own = torch.cuda.CUDAGraph(), [tensor.clone() for tensor in inputs]
            with torch.cuda.graph(graph):  # recording runs nothing
                result = self.function(*own, **numbers)
            self.graphs[key] = graph, own, result
        graph, own, result = self.graphs[key]
        for place, tensor in zip(own, inputs, strict=True):
            place.copy_(tensor)
        graph.replay()
        return result.clone()  # the next replay writes to the same place
