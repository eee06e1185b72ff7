"""Pictures: boxes drawn on images, sheets of images, and the curves of a training run.

Every file is written aside and renamed, so that a picture at its path is whole.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssd_ops.tinyssd.data.images import DataError, pillow, read_image
from ssd_ops.tinyssd.predict import SHOW_THRESHOLD

Image = str | os.PathLike[str] | np.ndarray | Tensor
Boxes = Tensor | np.ndarray | Sequence[Sequence[float]]
Colour = tuple[int, int, int]

# By class, in turn: strong enough for a line two pixels wide, and none is like the next.
COLOURS: tuple[Colour, ...] = (
    (230, 25, 75),
    (0, 110, 255),
    (145, 30, 180),
    (0, 150, 90),
    (245, 130, 48),
    (0, 160, 185),
    (200, 30, 160),
    (120, 80, 40),
)
TRUTH: Colour = (255, 255, 255)
DARK: Colour = (20, 20, 20)
GAP = 4  # pixels between the images of a sheet


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

    Lines and letters grow with the image. A label stands on the upper left corner of its box, or
    within the box where there is no room above, and never leaves the image. Of overlapping labels
    that of the highest score is on top.

    Args:
        image: the path of a picture, or uint8 ``[3, H, W]`` or ``[H, W, 3]``, RGB.
        boxes: ``[K, 4]``, xyxy in pixels of the image. What reaches over the border is drawn along
            it; a box outside of the image, or with NaN, is left out.
        scores: ``[K]``; None (the default) draws every box, without a number.
        labels: ``[K]``, 0-based classes, which choose the colour; None is class 0 for all.
        class_names: names to write before the scores; None (the default) writes none.
        threshold: boxes whose score is below it are left out; 0.9 is the book's.
        path: the file to write, whose ending names the format (``.png``, ``.jpg``, ...).

    Raises:
        ValueError: a shape, dtype or count does not fit, a class has no name, the picture cannot be
            read, or the ending names no format.
        FileNotFoundError: the picture, or the folder of `path`, does not exist.
        ImportError: Pillow is not installed.

    Source: the pictures of Dive into Deep Learning, section 14.7.3.

    Example:
        >>> import tempfile
        >>> image = torch.zeros(3, 120, 160, dtype=torch.uint8)
        >>> path = draw_detections(
        ...     image, [[20, 30, 90, 80]], [0.97], path=Path(tempfile.mkdtemp()) / "found.png"
        ... )
        >>> path.name
        'found.png'
    """
    picture = _picture(image)
    _draw_boxes(picture, boxes, scores, labels, class_names, threshold)
    return write(path, picture.save)


def draw_grid(
    images: Iterable[Image],
    detections: Iterable[Any],
    truths: Iterable[Boxes] | None = None,
    *,
    columns: int = 4,
    tile: int | None = None,
    titles: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
    threshold: float = SHOW_THRESHOLD,
    legend: str | None = None,
    path: str | os.PathLike[str],
) -> Path:
    """Write a sheet of images with their detections; the file's path comes back.

    Images stand in rows from left to right. With `truths`, those boxes are thin and white, and a
    line below the images says so.

    Args:
        images: each as for `draw_detections`; a tensor ``[N, 3, H, W]`` will do.
        detections: for each image, something with ``boxes``, ``scores`` and ``labels``, as
            `ssd_ops.tinyssd.measure.evaluate.predict` returns it.
        truths: for each image the boxes that are there, ``[G, 4]``, xyxy in pixels; None (the
            default) draws none.
        columns: images in a row.
        tile: pixels that the longer side of every image is brought to; None (the default) keeps
            their sizes.
        titles: a line to write below each image, cut where it is too long; None writes none.
        class_names: as for `draw_detections`.
        threshold: detections whose score is below it are left out; 0.5, by which found objects are
            counted too.
        legend: what the line below the images calls the detections; None: "found", and the
            threshold.
        path: the file to write.

    Raises:
        ValueError, FileNotFoundError, ImportError: as for `draw_detections`; also no image at all,
            or not as many detections or truths as images.

    Example:
        >>> import tempfile
        >>> from types import SimpleNamespace
        >>> images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
        >>> nothing = SimpleNamespace(boxes=torch.zeros(0, 4), scores=[], labels=[])
        >>> path = draw_grid(
        ...     images, [nothing] * 2, columns=2, path=Path(tempfile.mkdtemp()) / "sheet.png"
        ... )
    """
    pictures, found = [_picture(image) for image in images], list(detections)
    given = None if truths is None else list(truths)
    if not pictures or columns < 1:
        raise ValueError(
            f"plot: a sheet must have images and columns, got {len(pictures)}, {columns}"
        )
    for name, items in (("detections", found), ("truths", given), ("titles", titles)):
        if items is not None and len(items) != len(pictures):
            raise ValueError(f"plot: {name} must be for {len(pictures)} images, got {len(items)}")

    scales = [tile / max(picture.size) if tile else 1.0 for picture in pictures]
    if tile:
        pictures = [
            picture.resize([max(1, round(side * scale)) for side in picture.size])
            for picture, scale in zip(pictures, scales, strict=True)
        ]
    width = max(picture.width for picture in pictures)
    strip = 0 if titles is None else 18
    columns = min(columns, len(pictures))
    # Where each row begins: a row is as high as its highest image.
    tops = [GAP]
    for start in range(0, len(pictures), columns):
        highest = max(picture.height for picture in pictures[start : start + columns])
        tops.append(tops[-1] + highest + strip + GAP)
    size = (columns * (width + GAP) + GAP, tops[-1])
    line = 0 if given is None else 26
    from PIL import ImageDraw

    sheet = pillow().new("RGB", (size[0], size[1] + line), "white")
    draw = ImageDraw.Draw(sheet)
    for index, (picture, detection) in enumerate(zip(pictures, found, strict=True)):
        if given is not None:
            for box in _boxes(given[index]) * scales[index]:
                _outline(picture, box, TRUTH, 1)
        boxes = _boxes(detection.boxes) * scales[index]
        _draw_boxes(picture, boxes, detection.scores, detection.labels, class_names, threshold)
        row, column = divmod(index, columns)
        corner = (column * (width + GAP) + GAP, tops[row])
        sheet.paste(picture, corner)
        if titles is not None:
            below = (corner[0], corner[1] + picture.height + 1)
            draw.text(below, _cut(draw, titles[index], width), DARK, _font(12))
    if line:
        middle, left = size[1] + line // 2 - GAP // 2, GAP
        called = f"found, score >= {threshold:g}" if legend is None else legend
        for text, colour in ((called, COLOURS[0]), ("truth", TRUTH)):
            sample = (left, middle - 6, left + 20, middle + 6)
            draw.rectangle(sample, fill=(128, 128, 128), outline=DARK)
            _outline(sheet, (left + 4, middle - 3, left + 17, middle + 4), colour, 1)
            draw.text((left + 27, middle), text, DARK, _font(13), anchor="lm")
            left += 27 + int(draw.textlength(text, _font(13))) + 24
    return write(path, sheet.save)


def _cut(draw: Any, text: str, width: int) -> str:
    """As much of a line as fits."""
    while text and draw.textlength(text, _font(12)) > width:
        text = text[:-2] + "…" if len(text) > 2 else ""
    return text


def draw_curves(history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """Write the curves of a training run; the file's path comes back.

    The losses are on the left; the class error and the mean absolute error of the offsets, on a
    logarithmic scale, on the right. Solid lines are the validation set, dashed ones the training
    set where the right panel has both.

    Args:
        history: a dict for each epoch. ``loss`` (or ``train_loss``), ``val_loss``, ``class_error``,
            ``offset_error``, ``val_class_error`` and ``val_offset_error`` are drawn where they are
            there and finite; ``epoch`` defaults to the place in the list, from 1; the rest is not
            looked at.
        path: the file to write, whose ending names the format (``.png``, ``.svg``, ``.pdf``, ...).

    Raises:
        ValueError: an empty history, or an unknown format.
        FileNotFoundError: the folder of `path` does not exist.
        ImportError: matplotlib is not installed.

    Source: the two panels show what the animated plot of Dive into Deep Learning, section 14.7.2,
    and its losses do.

    Example:
        >>> import tempfile
        >>> path = draw_curves(
        ...     [{"loss": 1.2, "class_error": 0.1}, {"loss": 0.7, "class_error": 0.02}],
        ...     Path(tempfile.mkdtemp()) / "curves.png",
        ... )
    """
    if not history:
        raise ValueError("plot: history must have an epoch at least, got none")
    figure = new_figure(10, 4)
    from matplotlib.ticker import MaxNLocator

    losses, errors = figure.subplots(1, 2)
    _curve(losses, history, ("loss", "train_loss"), "training", "tab:blue", "-")
    _curve(losses, history, ("val_loss",), "validation", "tab:red", "-")
    for name, text, colour in (
        ("class_error", "class error", "tab:blue"),
        ("offset_error", "offset error (MAE)", "tab:orange"),
    ):
        _curve(errors, history, (f"val_{name}",), f"{text}, validation", colour, "-")
        _curve(errors, history, (name,), f"{text}, training", colour, "--")
    losses.set(title="Loss", ylabel="loss", ylim=(0, None))
    errors.set(title="Errors", ylabel="error")
    if any(max(line.get_ydata()) > 0 for line in errors.lines):
        errors.set_yscale("log")
    for axes in (losses, errors):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(which="both", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False)
    return write(path, figure.savefig)


def new_figure(width: float, height: float) -> Any:
    """An empty figure of matplotlib, in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plot: curves need matplotlib: pip install ssd_ops[train]") from None
    # Not pyplot: it keeps figures, and a choice of window system, for the whole process.
    return Figure(figsize=(width, height), dpi=120, layout="constrained")


def _curve(
    axes: Any,
    history: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    text: str,
    colour: str,
    style: str,
) -> None:
    """The first of `names` that an epoch has, over the epochs that have one."""
    points = []
    for place, row in enumerate(history, start=1):
        value = next((row[name] for name in names if row.get(name) is not None), None)
        if value is not None and np.isfinite(value):
            points.append((row.get("epoch", place), value))
    if points:
        marker = "o" if len(points) <= 30 else None
        axes.plot(
            *zip(*points, strict=True), style, color=colour, label=text, marker=marker, markersize=3
        )


def _picture(image: Image) -> Any:
    """A Pillow image of its own, RGB."""
    image_module = pillow()
    if isinstance(image, str | os.PathLike):
        try:
            return image_module.fromarray(read_image(image))
        except DataError as error:
            if not os.path.exists(image):
                raise FileNotFoundError(f"plot: image must be a file, got {image}") from None
            raise ValueError(f"plot: image must be a picture, got {image} ({error})") from None
    # A tensor has its channels first and an array last, unless its shape says otherwise.
    last = isinstance(image, np.ndarray)
    array: np.ndarray = np.asarray(image if last else torch.as_tensor(image).cpu())
    if array.ndim == 3 and 3 in (array.shape[0], array.shape[2]) and 0 not in array.shape:
        first = array.shape[2] != 3 if last else array.shape[0] == 3
        if first:
            array = array.transpose(1, 2, 0)
        if array.dtype == np.uint8:
            return image_module.fromarray(np.array(array, order="C"))
    raise ValueError(
        f"plot: image must be uint8 [3, H, W] or [H, W, 3], got {array.dtype} {list(array.shape)}"
    )


def _boxes(boxes: Boxes) -> np.ndarray:
    array = torch.as_tensor(boxes).detach().cpu().double().numpy()
    if array.size == 0:
        return array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"plot: boxes must be [K, 4], got {list(array.shape)}")
    return array


def _draw_boxes(
    picture: Any, boxes: Boxes, scores: Any, labels: Any, class_names: Any, threshold: float
) -> None:
    corners = _boxes(boxes)
    count = len(corners)
    values = torch.ones(count) if scores is None else _column("scores", scores, count)
    numbers = torch.zeros(count) if labels is None else _column("labels", labels, count)
    classes = numbers.int().tolist()
    if class_names is not None:
        for label in classes:
            if not 0 <= label < len(class_names):
                raise ValueError(
                    f"plot: labels must be classes of {list(class_names)}, got {label}"
                )
    # In the dtype of the scores, where 0.9 is 0.9; in another, a float32 of 0.9 is less.
    shown = torch.ones(count) > 0 if scores is None else values >= threshold
    order = [index for index in values.argsort(stable=True).tolist() if shown[index]]
    width = max(2, round(max(picture.size) / 160))
    placed = []
    for index in order:
        colour = COLOURS[classes[index] % len(COLOURS)]
        inner = _outline(picture, corners[index], colour, width)
        if inner is not None:
            parts = [] if class_names is None else [str(class_names[classes[index]])]
            parts += [] if scores is None else [f"{values[index]:.2f}"]
            placed.append((" ".join(parts), inner, colour))
    for text, inner, colour in placed:
        if text:
            _label(picture, text, inner, colour)


def _column(name: str, values: Any, count: int) -> Tensor:
    column = torch.as_tensor(values).detach().cpu()
    if column.shape != (count,):
        raise ValueError(f"plot: {name} must be [{count}] like the boxes, got {list(column.shape)}")
    return column


def _outline(
    picture: Any, box: Any, colour: Colour, width: int
) -> tuple[int, int, int, int] | None:
    """Draw a box between thin dark lines; its first and last pixels, or None if none is seen."""
    from PIL import ImageDraw

    x1, y1, x2, y2 = box
    if not (
        x1 < x2 and y1 < y2 and x1 < picture.width and y1 < picture.height and x2 > 0 and y2 > 0
    ):
        return None
    left = min(round(max(0.0, x1)), picture.width - 1)
    top = min(round(max(0.0, y1)), picture.height - 1)
    right = max(left, round(min(float(picture.width), x2)) - 1)
    bottom = max(top, round(min(float(picture.height), y2)) - 1)
    draw = ImageDraw.Draw(picture)
    for grow, paint, thick in ((1, DARK, 1), (0, colour, width), (-width, DARK, 1)):
        corners = (left - grow, top - grow, right + grow, bottom + grow)
        if corners[0] <= corners[2] and corners[1] <= corners[3]:
            draw.rectangle(corners, outline=paint, width=thick)
    return left, top, right, bottom


def _label(picture: Any, text: str, box: tuple[int, int, int, int], colour: Colour) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(picture)
    font = _font(max(12, round(max(picture.size) / 36)))
    x1, y1, x2, y2 = draw.textbbox((0, 0), text, font)
    margin = max(2, round((y2 - y1) / 4))
    width, height = x2 - x1 + 2 * margin, y2 - y1 + 2 * margin
    left = max(0, min(box[0], picture.width - width))
    top = box[1] - height + 1 if box[1] - height + 1 >= 0 else box[1]
    top = max(0, min(top, picture.height - height))
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)
    draw.text((left + margin - x1, top + margin - y1), text, "white", font)


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def write(path: str | os.PathLike[str], save: Callable[[Path], Any]) -> Path:
    """Have `save` write a picture aside, and rename it to `path`, which comes back."""
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"plot: the folder of path must exist, got {path}")
    # The ending stays last, for it names the format; matplotlib would add one where there is none.
    if not path.suffix:
        raise ValueError(f"plot: path must end in a picture format such as .png, got {path}")
    aside = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        save(aside)
        os.replace(aside, path)
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"plot: path must end in a picture format such as .png, got {path} ({error})"
        ) from None
    finally:
        aside.unlink(missing_ok=True)
    return path
