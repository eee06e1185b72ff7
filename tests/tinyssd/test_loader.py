"""Batches from memory and from workers, the same; letterboxed images and their boxes."""

import multiprocessing
import os
import signal
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import ssd_ops
from ssd_ops.tinyssd.data import loader as loaders
from ssd_ops.tinyssd.data.images import DataError
from ssd_ops.tinyssd.data.loader import Loader
from ssd_ops.tinyssd.preprocess import PAD, Preprocess

ORDER = [[3, 0], [2], [1, 4, 0]]


class Sizes:
    """Images of five sizes; number i has i boxes, and every pixel the value 40 i."""

    class_names = ("a", "b")
    names = tuple("vwxyz")

    def __init__(self, transforms=None, broken=None):
        self.transforms = transforms
        self.broken = broken
        self.read = []

    def __len__(self):
        return 5

    def __getitem__(self, index):
        if index == self.broken:
            raise DataError(f"data: {self.names[index]}: must be a readable image, got none")
        if index >= len(self):
            raise IndexError(index)
        self.read.append(index)
        image = torch.full((3, 20 + 4 * index, 50 - 6 * index), 40 * index, dtype=torch.uint8)
        corner = torch.arange(index)[:, None] / 10
        rows = torch.cat((torch.ones(index, 1), corner, corner, corner + 0.5, corner + 0.25), 1)
        if self.transforms is not None:
            return self.transforms(image, rows)
        return image, rows


def jitter(image, rows):
    """Draws from torch alone; on the reading side it uses an op, as a crop by IoU would."""
    shift = torch.rand(1) / 10
    rows = rows.clone()
    rows[:, 1:] += shift
    if len(rows):
        assert ssd_ops.box_iou(rows[:, 1:], rows[:, 1:]).diagonal().min() > 0.99
        many = torch.rand(3000, 2).repeat(1, 2) + torch.tensor([0.0, 0.0, 0.1, 0.1])
        ssd_ops.nms(many, torch.rand(3000), 0.5)
    return image, rows


def assert_same(one, other):
    one, other = list(one), list(other)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert all(map(torch.equal, a, b))


@pytest.mark.parametrize("letterbox", [False, True])
def test_memory_and_workers_give_the_same(letterbox):
    preprocess = Preprocess((32, 48), letterbox=letterbox)
    kept = Loader(Sizes(), preprocess)
    assert sorted(kept.examples.dataset.read) == list(range(5))
    first = list(kept.batches(ORDER))
    assert [tuple(batch.images.shape) for batch in first] == [
        (2, 3, 32, 48), (1, 3, 32, 48), (3, 3, 32, 48)
    ]  # fmt: skip
    assert all(batch.images.dtype == torch.uint8 for batch in first)
    assert first[0].sizes.tolist() == [[32, 32], [20, 50]]
    assert (first[0].labels[0, :3, 0] == 1).all() and (first[0].labels[1] == -1).all()
    assert len(kept.examples.dataset.read) == 5, "read again"
    for workers in (0, 2):
        lazy = Loader(Sizes(), preprocess, workers=workers, cache_gb=0)
        assert lazy.kept is None
        for batch, expected in zip(lazy.batches(ORDER), first, strict=True):
            count = batch.labels.shape[1]
            assert torch.equal(batch.images, expected.images)
            assert torch.equal(batch.labels, expected.labels[:, :count])
            assert (expected.labels[:, count:] == -1).all()


def test_a_letterbox_is_grey_around_the_middle():
    """1.2 times as large: 24 of the 32 rows, with 4 above and 4 below. And 32 of the 48 columns."""
    preprocess = Preprocess((32, 48), letterbox=True)
    wide = preprocess.fit(torch.full((1, 3, 20, 40), 200, dtype=torch.uint8))
    assert (wide[..., 4:28, :] == 200).all()
    assert (wide[..., :4, :] == 127).all() and (wide[..., 28:, :] == 127).all()
    square = preprocess.fit(torch.full((1, 3, 20, 20), 200, dtype=torch.uint8))
    assert (square[..., 8:40] == 200).all()
    assert (square[..., :8] == 127).all() and (square[..., 40:] == 127).all()
    corners = torch.tensor([0, 4 / 32, 1, 28 / 32])
    assert preprocess.to_pixels(corners, 20, 40).tolist() == [0, 0, 40, 20]
    torch.testing.assert_close(preprocess.to_input(torch.tensor([0.0, 0, 1, 1]), 20, 40), corners)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache_gb", [0, 1])
def test_an_empty_batch_has_the_form_of_the_others(workers, cache_gb):
    """That of a process which has no share of the last batch."""
    loader = Loader(Sizes(), Preprocess((32, 48)), workers=workers, cache_gb=cache_gb)
    full, empty = loader.batches([torch.tensor([1]), torch.tensor([], dtype=torch.int64)])
    assert empty.images.shape == (0, 3, 32, 48) and empty.sizes.shape == (0, 2)
    assert empty.labels.shape[0] == 0 and empty.labels.shape[2] == 5
    assert [part.dtype for part in empty] == [part.dtype for part in full]


def test_crowds_pass_and_padding_does_not():
    rows = torch.tensor([[-1.0] * 5, [-3, 0.0, 0.0, 1.0, 0.5], [0, 0.5, 0.5, 1, 1]])
    rows = torch.cat((rows, torch.full((1, 5), float("nan"))))
    dataset = SimpleNamespace(
        images=torch.zeros(1, 3, 20, 40, dtype=torch.uint8), labels=rows[None], class_names=["a"]
    )
    (batch,) = Loader(dataset, Preprocess((16, 16), letterbox=True)).batches([[0]])
    assert batch.labels[0, :, 0].tolist() == [-3, 0]
    torch.testing.assert_close(batch.labels[0, 0, 1:], torch.tensor([0.0, 0.25, 1, 0.5]))


def test_ops_in_forked_workers_after_ops_here_do_not_hang(threads):
    """The parent's threads are running when the workers are forked, and are not there in them."""
    threads(2)
    boxes = torch.rand(20_000, 2).repeat(1, 2) + torch.tensor([0.0, 0.0, 0.1, 0.1])
    ssd_ops.nms(boxes, torch.rand(20_000), 0.5)
    torch.nn.functional.conv2d(torch.zeros(4, 3, 64, 64), torch.zeros(8, 3, 3, 3))
    lazy = Loader(Sizes(transforms=jitter), Preprocess((16, 16)), workers=2)
    assert len(list(lazy.batches(ORDER * 5))) == 15


def test_transforms_draw_the_same_for_any_number_of_workers():
    runs = [
        Loader(Sizes(transforms=jitter), Preprocess((16, 16)), workers=n, seed=3) for n in (0, 1, 2)
    ]
    state = torch.get_rng_state()
    first = list(runs[0].batches(ORDER, epoch=1))
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state was touched"
    for other in runs[1:]:
        assert_same(other.batches(ORDER, epoch=1), first)
    again = list(runs[0].batches(ORDER, epoch=2))
    assert not torch.equal(again[0].labels, first[0].labels)
    other = Loader(Sizes(transforms=jitter), Preprocess((16, 16)), seed=4)
    assert not torch.equal(next(iter(other.batches(ORDER, epoch=1))).labels, first[0].labels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_labels_that_cannot_hold_every_class_are_refused(dtype):
    """In bfloat16, class 257 would be 256."""
    image, rows = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.tensor([[257, 0, 0, 1, 1.0]])
    names = [str(number) for number in range(300)]
    tensors = SimpleNamespace(images=image[None], labels=rows[None].to(dtype), class_names=names)
    read = Own(image, rows.to(dtype))
    read.class_names = names
    for dataset in (tensors, read):
        with pytest.raises(DataError, match=r"^data: labels must be float32 or float64, got "):
            Loader(dataset, Preprocess((8, 8)))
    read.example = image, rows
    (batch,) = Loader(read, Preprocess((8, 8))).batches([[0]])
    assert batch.labels[0, 0, 0] == 257


class Drawn:
    """A set of a user's own that draws its only image at random, and says so by no attribute."""

    class_names = ("a",)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8)
        return image, torch.tensor([[0, *torch.rand(2), 1, 1]])


def test_what_a_set_of_ones_own_draws_is_new_in_every_epoch():
    """And the same for one seed, whatever was drawn before."""
    loader = Loader(Drawn(), Preprocess((8, 8)), seed=3)
    first, second = (next(loader.batches([[0]], epoch=epoch)) for epoch in (0, 1))
    assert not torch.equal(first.images, second.images)
    assert not torch.equal(first.labels, second.labels)
    assert_same(loader.batches([[0]], epoch=0), [first])
    shown = Drawn()
    shown.images, shown.labels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 5)
    assert_same(Loader(shown, Preprocess((8, 8)), seed=3).batches([[0]], epoch=1), [second])
    # One that says it has no transforms is kept.
    shown = Drawn()
    shown.transforms = None
    loader = Loader(shown, Preprocess((8, 8)))
    assert_same(loader.batches([[0]], epoch=1), loader.batches([[0]], epoch=0))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_one_sentence_wherever_it_is_read(workers):
    lazy = Loader(Sizes(broken=4), Preprocess((16, 16)), workers=workers, cache_gb=0)
    with pytest.raises(DataError, match=r"^data: z: must be a readable image, got none$"):
        list(lazy.batches(ORDER))
    with pytest.raises(DataError, match=r"^data: z: must be"):
        Loader(Sizes(broken=4), Preprocess((16, 16)))


class Own:
    """A set of a user's own: one example, read whenever it is taken."""

    class_names = ("a",)
    transforms = None

    def __init__(self, image, rows):
        self.example = image, rows

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.example


@pytest.mark.parametrize("cache_gb", [0, 1])
@pytest.mark.parametrize(
    "change, message",
    [
        ({"rows": [[0, 2, 2, 6, 6.0]]}, r"the box must be .* not in pixels, got the row \(0, 2, 2"),
        ({"rows": [[1, 0, 0, 1, 1.0]]}, "the class must be a whole number below 1"),
        ({"rows": []}, r"its rows must be a tensor \[G, 5\], got float32 \[0\]"),
        ({"image": np.zeros((3, 8, 8), np.uint8)}, r"uint8 \[3, H, W\], got ndarray"),
        ({"image": torch.rand(3, 8, 8)}, r"the image must be .* got float32 \[3, 8, 8\]"),
        ({"image": torch.zeros(8, 8, 3, dtype=torch.uint8)}, r"must be .* got uint8 \[8, 8, 3\]"),
    ],
)
def test_what_a_set_reads_is_checked(change, message, cache_gb):
    image = change.get("image", torch.zeros(3, 8, 8, dtype=torch.uint8))
    rows = torch.tensor(change.get("rows", [[0, 0, 0, 1, 1.0]]))
    with pytest.raises(DataError, match=f"^data: image 0: .*{message}"):
        list(Loader(Own(image, rows), Preprocess((8, 8)), cache_gb=cache_gb).batches([[0]]))


def die(image, rows):
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return image, rows


def sleep(image, rows):
    signal.pause()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(
    "transforms, message",
    [
        (
            die,
            r"^data: workers must live, got one that the system ended.*workers=0.*DataLoader worker",
        ),
        (sleep, "DataLoader timed out"),
    ],
)
def test_a_dead_or_stuck_worker_is_an_error_and_no_hang(transforms, message, monkeypatch):
    monkeypatch.setattr(loaders, "TIMEOUT", 2.0 if transforms is sleep else 60.0)
    lazy = Loader(Sizes(transforms=transforms), Preprocess((16, 16)), workers=1)
    with pytest.raises(RuntimeError, match=message):
        list(lazy.batches(ORDER))


def test_tensors_of_one_size_are_a_set_too():
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([[[0, 0.1, 0.2, 0.3, 0.4], [-1.0] * 5]]).repeat(3, 1, 1)
    data = SimpleNamespace(images=images, labels=labels)
    (batch,) = Loader(data, Preprocess((8, 8))).batches([[2, 1]])
    assert torch.equal(batch.images, images[[2, 1]]) and torch.equal(batch.labels, labels[:2])
    (batch,) = Loader(data, Preprocess((4, 4))).batches([[2, 1]])
    assert batch.images.shape == (2, 3, 4, 4) and torch.equal(batch.labels, labels[:2, :1])
    assert batch.sizes.tolist() == [[8, 8]] * 2
    with pytest.raises(ValueError, match="data: a set must hold an image"):
        Loader(SimpleNamespace(images=images[:0], labels=labels[:0]), Preprocess())


def test_letterbox_keeps_the_shape_between_grey_bars():
    preprocess = Preprocess((40, 40), letterbox=True)
    image = torch.full((1, 3, 10, 20), 200, dtype=torch.uint8)
    fitted = preprocess.fit(image)
    assert (fitted[:, :, 10:30] == 200).all()
    assert (fitted[:, :, :10] == PAD).all() and (fitted[:, :, 30:] == PAD).all()
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 0.75, 1.0]])
    inside = preprocess.to_input(boxes, 10, 20)
    torch.testing.assert_close(inside, torch.tensor([[0, 0.25, 1, 0.75], [0.5, 0.5, 0.75, 0.75]]))
    pixels = preprocess.to_pixels(inside, 10, 20)
    torch.testing.assert_close(pixels, boxes * torch.tensor([20.0, 10.0, 20.0, 10.0]))


@pytest.mark.parametrize("letterbox", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (37, 91), (64, 64)])
def test_boxes_come_back_from_any_shape(letterbox, size):
    preprocess = Preprocess((48, 64), letterbox=letterbox)
    boxes = torch.rand(5, 4)
    back = preprocess.to_pixels(preprocess.to_input(boxes, *size), *size)
    torch.testing.assert_close(back, boxes * torch.tensor([*size[::-1]] * 2))
    assert preprocess.fit(torch.zeros(1, 3, *size, dtype=torch.uint8)).shape == (1, 3, 48, 64)


def test_kept_pixels_are_those_that_the_model_makes_itself():
    for letterbox in (False, True):
        preprocess = Preprocess((24, 40), (10.0, 20.0, 30.0), (2.0, 3.0, 4.0), letterbox)
        image = torch.randint(0, 256, (2, 3, 33, 47), dtype=torch.uint8)
        kept = preprocess(preprocess.fit(image))
        assert torch.equal(preprocess(image), kept)
        assert torch.equal(preprocess(image.float()), kept)
