"""Batches of a detection set at the input size of a model, from memory or from workers."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from ssd_ops.tinyssd.data.images import DataError
from ssd_ops.tinyssd.data.rows import check_rows, is_row
from ssd_ops.tinyssd.data.transforms import seeded
from ssd_ops.tinyssd.preprocess import Preprocess

TIMEOUT = 300.0  # seconds that workers may take for a batch before the run ends with an error


class Batch(NamedTuple):
    """``images`` uint8 ``[B, 3, H, W]`` at the input size of a model, not yet scaled; ``labels``
    float32 ``[B, G, 5]`` rows (class, x1, y1, x2, y2) in fractions of the input, class -1 padding and
    below -1 crowds (`ssd_ops.tinyssd.data.rows`); ``sizes`` int64 ``[B, 2]``, (height, width) of the
    images before they were resized."""

    images: Tensor
    labels: Tensor
    sizes: Tensor


class Loader:
    """Batches of a set. Images are decoded once and kept, as uint8, where they fit in memory.

    Where they do not, or where the set may change its examples, workers read them in every epoch. What
    is drawn at random there depends on the seed, the epoch and the image alone.

    Args:
        dataset: indexed by number, gives (image, rows) as `CocoDetection` does; or has
            ``images`` and ``labels`` tensors, as `BananaDetection` has. One that is indexed may change its
            examples unless it has an attribute ``transforms`` that is None. Empty, it is a ValueError. A row
            that `check_rows` refuses is a DataError: in tensors at once, else where it is read.
        preprocess: of the model; its size is that of the batches.
        workers: processes, where images are not kept; 0 decodes in this one.
        cache_gb: the most that kept images may take.
        device: where kept images go.
        seed: of what is drawn at random.
    """

    def __init__(
        self,
        dataset: Any,
        preprocess: Preprocess,
        *,
        workers: int = 0,
        cache_gb: float = 4.0,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> None:
        self.examples, self.workers = _Examples(dataset, preprocess, seed), workers
        if not len(self.examples):
            raise ValueError("data: a set must hold an image at least, got none")
        self.kept: Batch | None = None
        bytes_needed = 3 * math.prod(preprocess.size) * len(self.examples)
        if bytes_needed <= cache_gb * 1e9 and not self.examples.varies:
            images, labels, sizes = self._keep(preprocess.size)
            self.kept = Batch(images.to(device), labels.to(device), sizes)

    def __len__(self) -> int:
        return len(self.examples)

    def _keep(self, size: tuple[int, int]) -> Batch:
        dataset = self.examples.dataset
        if (tensors := tensors_of(dataset)) and tensors[0].shape[2:] == size:
            return Batch(*tensors, torch.tensor([size]).expand(len(self), -1))
        images = torch.empty((len(self), 3, *size), dtype=torch.uint8)
        rows, sizes = [], []
        # Pillow decodes without the interpreter's lock.
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            examples = pool.map(self.examples.example, range(len(self)))
            for number, (image, boxes, shape) in enumerate(examples):
                images[number] = image
                rows.append(boxes)
                sizes.append(shape)
        return Batch(images, pad_sequence(rows, True, -1.0), torch.tensor(sizes))

    def batches(self, order: Sequence[Sequence[int]], epoch: int = 0) -> Iterator[Batch]:
        """The batches of these image numbers; in another epoch, others are drawn.

        Raises:
            DataError: an image cannot be read, or is not as it must be, or a transform fails.
            RuntimeError: a worker died, or takes minutes for a batch.
        """
        if self.kept is not None:
            for numbers in order:
                index = torch.as_tensor(numbers, dtype=torch.int64)
                yield Batch(*(part[index.to(part.device)] for part in self.kept))
            return
        self.examples.epoch = epoch
        workers = min(self.workers, len(order))
        loading: Any = DataLoader(
            self.examples,
            batch_size=None,
            sampler=[list(map(int, numbers)) for numbers in order],
            num_workers=workers,
            timeout=TIMEOUT if workers else 0,
            # Forked, a worker shares what its parent has read. torch gives it one thread, so it
            # never waits for the parent's threads, which it does not have.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            # For seeds that nobody uses: without it, torch draws them from the caller's generator.
            generator=torch.Generator(),
        )
        try:
            for batch in loading:
                if isinstance(batch, DataError):
                    raise batch
                yield batch
        except RuntimeError as error:
            raise of_workers(error) from error.__cause__


def of_workers(error: RuntimeError) -> RuntimeError:
    """The error as it is, or what torch means where it says that a worker has died."""
    if not str(error).startswith("DataLoader worker"):
        return error
    why = "that the system ended, for want of memory perhaps; with workers=0 there are none"
    return RuntimeError(f"data: workers must live, got one {why} ({str(error).strip()})")


def check_set(name: str, dataset: Any) -> None:
    """A ValueError, which names the set, if it has no image, no class names, or tensors of a wrong shape or
    dtype. Their rows, and what is read one by one, a `Loader` checks."""
    if not hasattr(dataset, "class_names"):
        got = f"{type(dataset).__name__} without them"
        raise ValueError(f"train: {name} must have class_names, a list of names, got {got}")
    tensors = tensors_of(dataset)
    if tensors is None:
        if not hasattr(dataset, "__getitem__"):
            wanted = "images and labels tensors, or be indexed by number"
            raise ValueError(f"train: {name} must have {wanted}, got {type(dataset).__name__}")
        if not len(dataset):
            raise ValueError(f"train: {name} must hold an image at least, got none")
        return
    images, labels = tensors
    got = f"{images.dtype} {list(images.shape)}"
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise ValueError(f"train: {name}.images must be uint8 [N, 3, H, W] with N > 0, got {got}")
    if labels.ndim != 3 or labels.shape[2] != 5 or len(labels) != len(images):
        wanted = f"[{len(images)}, G, 5]"
        raise ValueError(f"train: {name}.labels must be {wanted}, got {list(labels.shape)}")


def tensors_of(dataset: Any) -> tuple[Tensor, Tensor] | None:
    """The images and labels of a set that has all as tensors; others may have lists of files, say."""
    images, labels = getattr(dataset, "images", None), getattr(dataset, "labels", None)
    return (images, labels) if isinstance(images, Tensor) and isinstance(labels, Tensor) else None


class _Examples(Dataset):
    """A set at the input size of a model."""

    def __init__(self, dataset: Any, preprocess: Preprocess, seed: int) -> None:
        self.dataset, self.preprocess, self.seed, self.epoch = dataset, preprocess, seed, 0
        self.items: Any = dataset
        indexed = hasattr(dataset, "__getitem__")
        # A set of a user's own may draw at random, by whatever name: only None says that it does not.
        self.varies = indexed and getattr(dataset, "transforms", self) is not None
        if not indexed:
            self.items = list(zip(dataset.images, dataset.labels, strict=True))
        names = getattr(dataset, "names", ())
        every = len(names) == len(self)  # else they name something else
        self.names = names if every else [f"image {number}" for number in range(len(self))]
        known = hasattr(dataset, "class_names")  # without names, any class is good
        self.num_classes = len(dataset.class_names) if known else math.inf
        if tensors := tensors_of(dataset):
            check_rows(tensors[1], self.num_classes, self.names)

    def __len__(self) -> int:
        return len(self.items)

    def example(self, index: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
        with seeded(self.seed, self.epoch, index) if self.varies else nullcontext():
            image, rows = self.items[index]
        self._check(image, rows, self.names[index])
        height, width = image.shape[1:]
        rows = rows[is_row(rows)]
        boxes = self.preprocess.to_input(rows[:, 1:], height, width)
        image = self.preprocess.fit(image[None])[0]
        return image, torch.cat((rows[:, :1], boxes), dim=1), (height, width)

    def _check(self, image: Tensor, rows: Tensor, name: object) -> None:
        """A DataError where an example is not as `Batch` has it; a float image would lose its fractions."""
        good = isinstance(image, Tensor) and image.dtype == torch.uint8
        if not good or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise DataError(f"data: {name}: the image must be uint8 [3, H, W], got {_said(image)}")
        if not isinstance(rows, Tensor) or rows.ndim != 2 or rows.shape[1] != 5:
            raise DataError(f"data: {name}: its rows must be a tensor [G, 5], got {_said(rows)}")
        check_rows(rows[None], self.num_classes, [name])

    def __getitem__(self, numbers: list[int]) -> Batch | DataError:
        if not numbers:  # as of a process that has no share of the last batch
            none = torch.empty((0, 3, *self.preprocess.size), dtype=torch.uint8)
            return Batch(none, torch.empty(0, 0, 5), torch.empty((0, 2), dtype=torch.int64))
        try:
            images, rows, sizes = zip(*map(self.example, numbers), strict=True)
        except DataError as error:
            return error  # raised in a worker, it would arrive with a traceback in its message
        return Batch(torch.stack(images), pad_sequence(list(rows), True, -1.0), torch.tensor(sizes))


def _said(thing: Any) -> str:
    """Dtype and shape of a tensor, the type of anything else."""
    if not isinstance(thing, Tensor):
        return type(thing).__name__
    return f"{str(thing.dtype).removeprefix('torch.')} {list(thing.shape)}"
