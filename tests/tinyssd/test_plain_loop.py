"""The trainer beside a plain loop: the chapter's way, image by image, with every setting of a preset written
out here, the reference ops, and torch's own optimisers and schedulers. After two epochs all weights agree."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssd_ops import reference
from ssd_ops.tinyssd import train as trainer
from ssd_ops.tinyssd.model import TinySSD
from ssd_ops.tinyssd.preprocess import Preprocess
from ssd_ops.tinyssd.settings import PRESETS

EPOCHS = 2
RATIOS = [[1, 2, 0.5]] * 5
CHAPTER_SIZES = [[0.2, 0.272], [0.37, 0.447], [0.54, 0.619], [0.71, 0.79], [0.88, 0.961]]
PHOTO_SIZES = [[0.08, 0.12], [0.18, 0.25], [0.35, 0.43], [0.53, 0.62], [0.75, 0.87]]


def sgd(parameters, steps):
    optimizer = torch.optim.SGD(parameters, lr=0.2, weight_decay=5e-4)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


def adamw(parameters, steps):
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.01)
    one_cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-3, total_steps=steps, pct_start=0.15, cycle_momentum=False
    )
    return optimizer, one_cycle


def chapter_loss(cls_preds, cls_labels, bbox_preds, bbox_labels, bbox_masks):
    """Section 14.7.2: both losses are means over the image, and the batch is a mean of images."""
    total = 0.0
    for image in range(len(cls_preds)):
        total = total + F.cross_entropy(cls_preds[image], cls_labels[image])
        total = total + F.l1_loss(bbox_preds[image] * bbox_masks[image], bbox_labels[image])
    return total / len(cls_preds)


def paper_loss(cls_preds, cls_labels, bbox_preds, bbox_labels, bbox_masks):
    """Section 2.2 of the paper: three negatives for each positive, a sum over the positives of the batch."""
    total, positives = 0.0, 0
    for image in range(len(cls_preds)):
        losses = F.cross_entropy(cls_preds[image], cls_labels[image], reduction="none")
        is_positive = cls_labels[image] > 0
        hardest = (
            losses.detach().masked_fill(is_positive, -math.inf).sort(descending=True, stable=True)
        )
        chosen = is_positive.clone()
        chosen[hardest.indices[: 3 * int(is_positive.sum())]] = True
        errors = (bbox_preds[image] - bbox_labels[image])[bbox_masks[image] > 0].abs()
        # Smooth L1 with sigma squared = 5.
        smooth = torch.where(errors < 0.2, 2.5 * errors**2, errors - 0.1)
        total = total + losses[chosen].sum() + smooth.sum()
        positives += int(is_positive.sum())
    return total / positives


PLAIN = {
    "chapter": SimpleNamespace(
        **{"batch_size": 32, "optimizer": sgd, "loss": chapter_loss, "match_iou": 0.5},
        **{"sizes": CHAPTER_SIZES, "pixels": None, "mean": 0.0, "std": 1.0, "flip": 0, "upside": 0},
    ),
    "paper": SimpleNamespace(
        **{"batch_size": 8, "optimizer": adamw, "loss": paper_loss, "match_iou": 0.45},
        **{"sizes": CHAPTER_SIZES, "pixels": 128, "mean": 127.5, "std": 64.0},
        **{"flip": 0.5, "upside": 0.5},
    ),
    "photos": SimpleNamespace(
        **{"batch_size": 8, "optimizer": adamw, "loss": paper_loss, "match_iou": 0.45},
        **{"sizes": PHOTO_SIZES, "pixels": 256, "mean": 127.5, "std": 64.0},
        **{"flip": 0.5, "upside": 0},
    ),
}


def mirrored(image, rows, across):
    """An image as a mirror shows it, left to right or top to bottom, and its rows; class -1 is padding."""
    rows = rows.clone()
    low, high = (1, 3) if across else (2, 4)
    for row in rows:
        if row[0] >= 0:
            row[low], row[high] = 1 - row[high].item(), 1 - row[low].item()
    return image.flip(2 if across else 1), rows


def plain_loop(plain, images, labels):
    """The weights after EPOCHS, and of each epoch the loss of a mean image, the errors and the last rate."""
    torch.manual_seed(0)
    model = TinySSD(2, plain.sizes, RATIOS).double()
    steps_of_epoch = math.ceil(len(images) / plain.batch_size)
    optimizer, scheduler = plain.optimizer(model.parameters(), EPOCHS * steps_of_epoch)
    rows = []
    for epoch in range(EPOCHS):
        rng = np.random.default_rng((0, epoch))  # the trainer's draws
        order = rng.permutation(len(images))
        losses, errors = [], []
        for first in range(0, len(images), plain.batch_size):
            batch = [(images[i], labels[i]) for i in order[first : first + plain.batch_size]]
            for chance, across in ((plain.flip, True), (plain.upside, False)):
                if chance:
                    draws = rng.random(len(batch))
                    batch = [
                        mirrored(*example, across) if draw < chance else example
                        for example, draw in zip(batch, draws, strict=True)
                    ]
            X = torch.stack([image for image, _ in batch]).double()
            if plain.pixels:
                size = (plain.pixels, plain.pixels)
                X = F.interpolate(X.float(), size, mode="bilinear", antialias=True).round().double()
            anchors, cls_preds, bbox_preds = model((X - plain.mean) / plain.std)
            bbox_labels, bbox_masks, cls_labels = reference.multibox_target(
                anchors, torch.stack([rows for _, rows in batch]), iou_threshold=plain.match_iou
            )
            loss = plain.loss(cls_preds, cls_labels, bbox_preds, bbox_labels, bbox_masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate = optimizer.param_groups[0]["lr"]
            scheduler.step()
            losses.append(loss.item() * len(batch))
            of_class = (cls_preds.argmax(dim=2) != cls_labels).double().mean()
            of_offset = (
                ((bbox_labels - bbox_preds.reshape_as(bbox_labels)) * bbox_masks).abs().mean()
            )
            errors.append(torch.stack((of_class, of_offset)).detach() * len(batch))
        rows.append((sum(losses) / len(images), *(sum(errors) / len(images)).tolist(), rate))
    return model, rows


def scenes(count):
    """Noise with bright boxes of two classes, one or two in an image."""
    g = torch.Generator().manual_seed(3)
    images = torch.randint(0, 90, (count, 3, 64, 64), dtype=torch.uint8, generator=g)
    labels = torch.full((count, 2, 5), -1.0)
    for number, (image, rows) in enumerate(zip(images, labels, strict=True)):
        for row in rows[: 1 + number % 2]:
            sides = torch.randint(10, 40, (2,), generator=g)
            x1, y1 = (int(torch.randint(0, 64 - int(side), (1,), generator=g)) for side in sides)
            kind = int(torch.randint(0, 2, (1,), generator=g))
            image[2 * kind, y1 : y1 + int(sides[1]), x1 : x1 + int(sides[0])] = 240
            row[:] = torch.tensor(
                [kind, x1 / 64, y1 / 64, (x1 + sides[0]) / 64, (y1 + sides[1]) / 64]
            )
    return images, labels


@pytest.fixture
def in_double(monkeypatch):
    """The trainer in float64, so that no noise of rounding hides a difference."""
    call, untrained = Preprocess.__call__, trainer.untrained
    monkeypatch.setattr(Preprocess, "__call__", lambda *args: call(*args).double())
    monkeypatch.setattr(trainer, "untrained", lambda *args: untrained(*args).double())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_as_the_plain_loop(name, in_double, tmp_path):
    plain = PLAIN[name]
    images, labels = scenes(plain.batch_size + 3)  # the last batch is smaller
    settings = replace(PRESETS[name], epochs=EPOCHS, precision="float32", device="cpu")
    train_set = SimpleNamespace(images=images, labels=labels, class_names=["red", "blue"])
    val_set = SimpleNamespace(images=images[:1], labels=labels[:1], class_names=["red", "blue"])
    model, history = trainer.train(settings, train_set, val_set, tmp_path, progress=False)
    expected, rows = plain_loop(plain, images, labels)
    for row, (loss, of_class, of_offset, rate) in zip(history, rows, strict=True):
        assert row["loss"] == pytest.approx(loss, rel=1e-6)
        assert row["class_error"] == pytest.approx(of_class, rel=1e-6)
        assert row["offset_error"] == pytest.approx(of_offset, rel=1e-6)
        assert row["lr"] == pytest.approx(rate, rel=1e-9)
    # The bias of a convolution before a batch norm has no gradient but noise, which AdamW makes larger.
    torch.testing.assert_close(
        dict(model.state_dict()), dict(expected.state_dict()), atol=2e-7, rtol=1e-7
    )
