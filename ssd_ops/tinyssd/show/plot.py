"""Boxes drawn on images, grids of images, the curves of a run, precision-recall curves."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from io import BytesIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssd_ops.tinyssd.data.images import as_image, pillow
from ssd_ops.tinyssd.files import replace_file
from ssd_ops.tinyssd.predict import SHOW_THRESHOLD

Image = str | os.PathLike[str] | np.ndarray | Tensor
Boxes = Tensor | np.ndarray | Sequence[Sequence[float]]

# By class, in turn: strong enough for a line two pixels wide, and none is like the next.
COLOURS = ("#e6194b", "#006eff", "#911eb4", "#00965a", "#f58230", "#00a0b9", "#c81ea0", "#785028")
GT, DARK = "#ffffff", "#141414"
GAP, LINE = 4, 18  # pixels between the images of a grid, and of a line of text in it


def draw_detections(
    image: Image,
    boxes: Boxes,
    scores: Tensor | np.ndarray | Sequence[float] | None = None,
    labels: Tensor | np.ndarray | Sequence[int] | None = None,
    *,
    class_names: Sequence[str] | None = None,
    threshold: float = SHOW_THRESHOLD,
    path: str | os.PathLike[str],
) -> Path:
    """Write an image, at its own size, with boxes and their scores; the file's path comes back.

    Lines and letters grow with the image. Of overlapping labels that of the highest score is on top.

    Args:
        image: a path, an array or a tensor, as for `as_image`.
        boxes: ``[K, 4]``, xyxy in pixels, cut at the border; one outside, or with NaN, is left out.
        scores: ``[K]``; None (the default) draws every box, without a number.
        labels: ``[K]``, 0-based classes, which choose the colour; None is class 0 for all.
        class_names: names to write before the scores; None (the default) writes none.
        threshold: boxes whose score is below it are left out; 0.9 is the book's.
        path: the file to write, replaced whole, whose ending names the format (``.png``, ...).

    Raises:
        ValueError: a shape, dtype, count, class or ending that does not fit, or no readable image.
        FileNotFoundError: the image, or the folder of `path`, does not exist.
        ImportError: Pillow is not installed; matplotlib, for curves.

    Example:
        >>> import tempfile
        >>> image, path = np.zeros((60, 80, 3), np.uint8), Path(tempfile.mkdtemp()) / "found.png"
        >>> draw_detections(image, [[20, 30, 70, 50]], [0.97], path=path).name
        'found.png'
    """
    canvas = _open(image)
    _draw_detections(canvas, _boxes(boxes), scores, labels, class_names, threshold)
    return _write(path, canvas.save)


def draw_grid(
    images: Iterable[Image],
    detections: Iterable[Any],
    gt_boxes: Iterable[Boxes] | None = None,
    *,
    columns: int = 4,
    tile: int | None = None,
    titles: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    threshold: float = SHOW_THRESHOLD,
    legend: str | None = None,
    path: str | os.PathLike[str],
) -> Path:
    """Write images with their detections in rows, from left to right; the file's path comes back.

    What is not listed, and errors, are as for `draw_detections`.

    Args:
        images: at least one; a tensor ``[N, 3, H, W]`` will do.
        detections: for each image its ``boxes``, ``scores`` and ``labels``, as a `Prediction` has.
        gt_boxes: for each image its ground truths, ``[G, 4]``, xyxy in pixels: thin and white, with
            a legend below the images. None (the default) draws neither.
        columns: images in a row.
        tile: pixels of the longer side of every image; None (the default) keeps their sizes.
        titles: a line below each image, cut where it is too long; None (the default) writes none.
        legend: what it calls the detections; None (the default): "found", and the threshold.
    """
    tiles, found = [_open(image) for image in images], list(detections)
    gts = [()] * len(tiles) if gt_boxes is None else list(gt_boxes)
    lines = [""] * len(tiles) if titles is None else list(titles)
    if not tiles or columns < 1:
        raise ValueError(f"plot: a grid must have images and columns, got {len(tiles)}, {columns}")
    for name, items in (("detections", found), ("gt_boxes", gts), ("titles", lines)):
        if len(items) != len(tiles):
            raise ValueError(f"plot: {name} must be for {len(tiles)} images, got {len(items)}")
    for index, (image, detection) in enumerate(zip(tiles, found, strict=True)):
        scale = tile / max(image.size) if tile else 1.0
        tiles[index] = image = image.resize([max(1, round(side * scale)) for side in image.size])
        for box in _boxes(gts[index]) * scale:
            _draw_box(image, box, GT, 1)
        boxes, given = _boxes(detection.boxes) * scale, (detection.scores, detection.labels)
        _draw_detections(image, boxes, *given, class_names, threshold)
    width, line = max(image.width for image in tiles), 0 if titles is None else LINE
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(image.height for image in row) + line + GAP for row in rows]
    tops = list(accumulate(heights, initial=GAP))
    size = GAP + len(rows[0]) * (width + GAP), tops[-1] + (0 if gt_boxes is None else LINE + GAP)
    sheet = pillow().new("RGB", size, "white")
    for index, image in enumerate(tiles):
        left, top = GAP + index % columns * (width + GAP), tops[index // columns]
        sheet.paste(image, (left, top))
        if titles is not None:
            # In an image of its own, which cuts a title that is too long.
            title = pillow().new("RGB", (width, line), "white")
            _draw_text(title, lines[index], (0, line - 1), 12, "white", DARK)
            sheet.paste(title, (left, top + image.height))
    if gt_boxes is not None:
        called, bottom = legend or f"found, score >= {threshold:g}", tops[-1] + LINE
        right = _draw_text(sheet, called, (GAP, bottom), 12, COLOURS[0])
        _draw_text(sheet, "ground truth", (right + GAP, bottom), 12, DARK)
    return _write(path, sheet.save)


def draw_curves(history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Write the curves of a training run; the file's path comes back.

    The loss is on the left; the class error and the mean absolute error of the offsets are on the
    right, on a logarithmic scale: solid of the validation set, dashed of the training set.

    Args:
        history: a dict for each epoch, at least one, as `train` returns them. What an epoch lacks, or
            has as infinite or NaN, is left out; "epoch" defaults to the place in the list, from 1.
        path: as for `draw_detections`, like the errors; also ``.svg`` or ``.pdf``.
    """
    if not history:
        raise ValueError("plot: history must have an epoch at least, got none")
    figure, (losses, errors) = _figure(10, 4, "Loss", "Errors")
    for axes, name, label, style in (
        (losses, "loss", "training", "C0-"),
        (errors, "val_class_error", "class error, validation", "C0-"),
        (errors, "class_error", "class error, training", "C0--"),
        (errors, "val_offset_error", "offset error (MAE), validation", "C1-"),
        (errors, "offset_error", "offset error (MAE), training", "C1--"),
    ):
        rows = [(row.get("epoch", at), row.get(name)) for at, row in enumerate(history, start=1)]
        points = [(x, y) for x, y in rows if y is not None and math.isfinite(y)]
        if points:
            axes.plot(*zip(*points, strict=True), style, marker=".", label=label)
    losses.set(ylabel="loss", ylim=(0, None))
    errors.set(ylabel="error")
    if any(max(line.get_ydata()) > 0 for line in errors.lines):
        errors.set_yscale("log")
    for axes in (losses, errors):
        axes.set_xlabel("epoch")
        axes.locator_params(axis="x", integer=True, min_n_ticks=1)
        if axes.lines:
            axes.legend(frameon=False)
    return _write(path, figure.savefig)


def draw_precision_recall(
    precision: np.ndarray, class_names: Sequence[str], path: str | os.PathLike[str]
) -> Path:
    """Write the precision-recall curve of each class at IoU 0.5; the file's path comes back.

    A curve ends at the highest recall that is reached. Classes without ground truth are left out.

    Args:
        precision: ``[101, C]`` at recall 0, 0.01, ... 1; ``metrics.coco(...)[1][0]``.
        class_names: C names, written with the average precisions if there is room, for 24 classes.
        path: as for `draw_curves`, like the errors; ValueError for not as many names as curves.
    """
    figure, (axes,) = _figure(8, 5, "Precision and recall at IoU 0.5")
    for name, curve in zip(class_names, precision.T, strict=True):
        if curve[0] >= 0:
            reached, label = curve[curve > 0], f"{name}  AP {curve.mean():.3f}"
            style = ("-", "--", ":")[len(axes.lines) // 10 % 3]  # there are ten colours
            axes.step(np.arange(len(reached)) / 100, reached, style, label=label)
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    if 0 < len(axes.lines) <= 24:
        figure.legend(loc="outside right upper", frameon=False, fontsize="small")
    return _write(path, figure.savefig)


def _figure(width: float, height: float, *titles: str) -> Any:
    """A figure of matplotlib, in inches, and its panels."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plot: curves need matplotlib: pip install ssd_ops[train]") from None
    # Not pyplot: it keeps figures, and a choice of window system, for the whole process.
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(titles), squeeze=False)[0]
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
        axes.grid(which="both", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _write(path: str | os.PathLike[str], save: Callable[..., Any]) -> Path:
    """Write `path` whole, by a method of Pillow or matplotlib that takes a file and a ``format``."""
    path, file = Path(path), BytesIO()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"plot: the folder of path must exist, got {path}")
    ending = path.suffix[1:].lower()
    try:
        save(file, format={"jpg": "jpeg", "tif": "tiff"}.get(ending, ending))
    except (ValueError, KeyError):
        raise ValueError(f"plot: path must end in a format such as .png, got {path}") from None
    replace_file(path, file.getvalue())
    return path


def _open(image: Image) -> Any:
    """A Pillow image of its own, RGB."""
    tensor = as_image("plot", image).detach().cpu().round().clamp(0, 255).byte()
    return pillow().fromarray(tensor.permute(1, 2, 0).contiguous().numpy())


def _boxes(boxes: Boxes) -> np.ndarray:
    array = torch.as_tensor(boxes).detach().cpu().double().numpy()
    if array.size and (array.ndim != 2 or array.shape[1] != 4):
        raise ValueError(f"plot: boxes must be [K, 4], got {list(array.shape)}")
    return array.reshape(-1, 4)


def _draw_detections(
    image: Any, boxes: np.ndarray, scores: Any, labels: Any, class_names: Any, threshold: float
) -> None:
    count = len(boxes)
    values = torch.ones(count) if scores is None else torch.as_tensor(scores).cpu()
    classes = torch.zeros(count) if labels is None else torch.as_tensor(labels).cpu()
    for name, given in (("scores", values), ("labels", classes)):
        if given.shape != (count,):
            raise ValueError(f"plot: {name} must be [{count}] like the boxes, got {[*given.shape]}")
    for label in classes.int().tolist() if class_names is not None else []:
        if not 0 <= label < len(class_names):
            raise ValueError(f"plot: labels must be classes of {list(class_names)}, got {label}")
    line, size = max(2, round(max(image.size) / 160)), max(12, round(max(image.size) / 36))
    texts = []
    for index in values.argsort(stable=True).tolist():
        label, score = int(classes[index]), values[index]
        # Compared as a tensor, in the dtype of the scores, where 0.9 is 0.9.
        if score >= threshold:
            colour = COLOURS[label % len(COLOURS)]
            corner = _draw_box(image, boxes[index], colour, line)
            words = [] if class_names is None else [str(class_names[label])]
            words += [] if scores is None else [f"{score:.2f}"]
            if corner and words:
                texts.append((" ".join(words), corner, size, colour))
    # After all boxes, so that no line goes through a text.
    for text in texts:
        _draw_text(image, *text)


def _draw_box(image: Any, box: Any, colour: str, width: int) -> tuple[int, int] | None:
    """Draw a box between thin dark lines; its first pixel, or None where it is not in the image."""
    from PIL import ImageDraw

    left, top, right, bottom = np.clip(box, 0, [*image.size, *image.size]).tolist()
    if not (left < right and top < bottom):  # NaN too
        return None
    left, top = min(round(left), image.width - 1), min(round(top), image.height - 1)
    right, bottom = max(left, round(right) - 1), max(top, round(bottom) - 1)
    draw = ImageDraw.Draw(image)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline=DARK, width=width + 2)
    draw.rectangle((left, top, right, bottom), outline=colour, width=width)
    return left, top


def _draw_text(
    image: Any, text: str, corner: tuple[int, int], size: int, fill: str, ink: str = "white"
) -> int:
    """Write on a filled rectangle that stands on `corner`, moved into the image; its right end."""
    from PIL import ImageDraw, ImageFont

    font: Any = ImageFont.load_default(size)
    draw = ImageDraw.Draw(image)
    margin, height = size // 5, sum(font.getmetrics())
    width = math.ceil(draw.textlength(text, font)) + 2 * margin
    left = max(0, min(corner[0], image.width - width))
    top = max(0, min(corner[1] - height + 1, image.height - height))
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=fill)
    draw.text((left + margin, top), text, ink, font)
    return left + width
