"""Draws banana detection sets in the format of "Dive into Deep Learning", for machines that cannot
download the published one.

Every picture is drawn from (seed, split, number) alone: shaded bananas of many sizes, bends,
colours and rotations, one a picture, on busy backgrounds and among things that are round, yellow or
bent, but no bananas. The box is that of the banana's own mask.
"""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HEADER = ["img_name", "label", "xmin", "ymin", "xmax", "ymax"]
SCALE = 2  # bananas and distractors are drawn this much larger, then averaged down

Random = np.random.Generator
Array = np.ndarray
Job = tuple[str, int]  # the name of the split's folder, the number of the picture


class Picture(NamedTuple):
    """One drawn picture.

    Attributes:
        image: ``[H, W, 3]`` uint8.
        box: ``(xmin, ymin, xmax, ymax)`` in pixels; the last row and column of the banana lie just
            before ymax and xmax.
        mask: ``[H, W]`` bool, the banana's own pixels, of which `box` is the tight box.
    """

    image: Array
    box: tuple[int, int, int, int]
    mask: Array


def make_bananas(
    folder: str | os.PathLike[str],
    *,
    train: int = 1000,
    val: int = 100,
    size: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Write a banana detection set; the folder it lies in comes back.

    Args:
        folder: Where it goes: ``bananas_train/label.csv``, ``bananas_train/images/*.png``, and the
            same for ``bananas_val``. It must not exist, or be empty; the set appears in it
            whole, or not at all.
        train: Training pictures; 1000 as in the published set.
        val: Validation pictures; 100 likewise.
        size: Height and width in pixels, at least 64.
        seed: Another seed, other pictures; the same seed, the same pixels.
        progress: A progress bar (this needs tqdm).

    Raises:
        ValueError: a number is out of range.
        FileExistsError: the folder is there, and is not empty.
        ImportError: Pillow is not installed, or tqdm for the progress bar.

    Example:
        >>> import tempfile
        >>> folder = make_bananas(Path(tempfile.mkdtemp()) / "set", train=2, val=1, size=64)
        >>> sorted(path.name for path in folder.iterdir())
        ['bananas_train', 'bananas_val']
    """
    for name, value, least in (
        ("train", train, 1),
        ("val", val, 1),
        ("size", size, 64),
        ("seed", seed, 0),
    ):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(
                f"make_bananas: {name} must be a whole number of at least {least}, got {value!r}"
            )
    _pillow()
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"make_bananas: folder must not exist or be empty, got {folder}")
    jobs = _jobs(train, val)
    # Drawn beside the folder or above it, and renamed, so that a set that is there is whole.
    above = next(parent for parent in folder.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=".bananas-", dir=above) as temporary:
        aside = Path(temporary) / "set"
        rows: dict[str, list[list[Any]]] = {}
        for split, _ in jobs:
            (aside / split / "images").mkdir(parents=True, exist_ok=True)
            rows[split] = [HEADER]
        # Closed before the temporary folder is, so that no process still writes there.
        with closing(_draw_all(aside, seed, size, train, val)) as drawn:
            for (split, number), box in zip(jobs, _bar(drawn, len(jobs), progress), strict=True):
                rows[split].append([f"{number}.png", 0, *box])
        for split, lines in rows.items():
            with open(aside / split / "label.csv", "w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(lines)
        folder.mkdir(parents=True, exist_ok=True)
        folder.rmdir()
        os.replace(aside, folder)
    return folder


def _bar(results: Iterable[Any], total: int, progress: bool) -> Iterable[Any]:
    if not progress:
        return results
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError(
            "make_bananas: a progress bar needs tqdm: pip install ssd_ops[train]"
        ) from None
    return tqdm(results, total=total, desc="drawing", unit="picture")


def _jobs(train: int, val: int) -> list[Job]:
    counts = {"bananas_train": train, "bananas_val": val}
    return [(split, number) for split, count in counts.items() for number in range(count)]


def _processors() -> int:
    """How many processors this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _draw_all(
    folder: Path, seed: int, size: int, train: int, val: int
) -> Generator[list[int], None, None]:
    """Draws every picture; their boxes in order, from as many processes as there are processors.

    The processes run this file alone. multiprocessing would run the caller's script again in each,
    which goes wrong without a main guard, and would have each load torch.
    """
    count = train + val
    workers = min(count // 16, _processors())
    if workers < 2 or not sys.executable:
        yield from _draw_share(folder, seed, size, train, val, 0, 1)
        return
    children: list[subprocess.Popen[str]] = []
    try:
        for worker in range(workers):
            words = [folder, seed, size, train, val, worker, workers]
            children.append(
                subprocess.Popen(
                    # -P: the modules beside this file are none to be imported by bare name.
                    [sys.executable, "-P", __file__, *map(str, words)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        for index in range(count):
            child = children[index % workers]
            assert child.stdout
            line = child.stdout.readline()
            if not line:
                reason = (child.communicate()[1].strip().splitlines() or ["no reason"])[-1]
                raise OSError(f"make_bananas: drawing must go to the end, got {reason}")
            yield [int(value) for value in line.split()]
    finally:
        for child in children:
            child.kill()
            child.communicate()


def _draw_share(
    folder: Path, seed: int, size: int, train: int, val: int, first: int, step: int
) -> Iterator[list[int]]:
    for job in _jobs(train, val)[first::step]:
        yield _draw_file(folder, seed, size, job)


def _draw_file(folder: Path, seed: int, size: int, job: Job) -> list[int]:
    split, number = job
    picture = draw_picture(seed, split, number, size)
    path = folder / split / "images" / f"{number}.png"
    # Higher levels take much longer and save little: the noise does not compress.
    _pillow().fromarray(picture.image).save(path, compress_level=1)
    return list(picture.box)


def draw_picture(seed: int, split: str, number: int, size: int = 256) -> Picture:
    """One picture of a set, with the box and the mask of its banana.

    Args:
        seed, split, number: What it is drawn from; `split` is the name of its folder.
        size: Height and width in pixels.

    Example:
        >>> draw_picture(0, "bananas_val", 0, 64).image.shape
        (64, 64, 3)
    """
    rng = np.random.default_rng([seed, *split.encode(), number])
    image = _background(rng, size)
    for _ in range(rng.integers(0, 6)):
        layer = _pick(rng, DISTRACTORS)(rng, size)
        x, y = rng.uniform(-0.1, 0.9, 2) * size
        _paste(image, layer, int(x), int(y), _shadow(rng))
    layer = _banana(rng, size)
    height, width = (side // SCALE for side in layer.shape[:2])
    x = int(rng.integers(1, size - width))
    y = int(rng.integers(1, size - height))
    mask = _paste(image, layer, x, y, _shadow(rng)) > 0.5
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return Picture(_develop(rng, image), box, mask)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(
            "make_bananas: drawing needs Pillow; `pip install ssd_ops[train]`"
        ) from None
    return Image


def _pick(rng: Random, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _blur(array: Array, radius: float) -> Array:
    """Gaussian blur of ``[H, W]`` in 0..1."""
    from PIL import Image, ImageFilter

    image = Image.fromarray((array.clip(0, 1) * 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def _noise(rng: Random, shape: tuple[int, ...], cells: float, stretch: float = 1.0) -> Array:
    """Smooth noise in 0..1: random values at `cells` grid points a side, bicubic between them."""
    image = _pillow()
    points = (max(2, round(cells)), max(2, round(cells * stretch)))
    grid = image.fromarray(rng.random(points, np.float32))
    return np.asarray(grid.resize(shape[::-1], image.Resampling.BICUBIC)).clip(0, 1)


def _octaves(
    rng: Random, size: int, start: float, decay: float = 0.55, stretch: float = 1.0
) -> Array:
    """Noise of several scales, normalised to 0..1."""
    total, weight = np.zeros((size, size), np.float32), 1.0
    for octave in range(6):
        total += weight * _noise(rng, (size, size), start * 2**octave, stretch)
        weight *= decay
    low, high = total.min(), total.max()
    return (total - low) / max(high - low, 1e-6)


def _smooth(edge: Array) -> Array:
    """0 below 0, 1 above 1, smooth between."""
    t = edge.clip(0, 1)
    return t * t * (3 - 2 * t)


def _colour(
    rng: Random,
    hue: tuple[float, float],
    saturation: tuple[float, float],
    value: tuple[float, float],
) -> Array:
    """A colour, RGB in 0..1, with hue in turns."""
    h, s, v = (rng.uniform(*bounds) for bounds in (hue, saturation, value))
    channel = (np.array([5.0, 3.0, 1.0]) + 6 * h) % 6
    return (v - v * s * np.clip(np.minimum(channel, 4 - channel), 0, 1)).astype(np.float32)


def _any_colour(rng: Random) -> Array:
    return _colour(rng, (0, 1), (0.0, 0.7), (0.15, 0.95))


def _ramp(values: Array, colours: list[Array]) -> Array:
    """``values`` in 0..1 as colours, linear between the given ones."""
    stops = np.linspace(0, 1, len(colours))
    return np.stack(
        [np.interp(values, stops, [c[k] for c in colours]) for k in range(3)], -1
    ).astype(np.float32)


# Backgrounds: (rng, size) -> [H, W, 3] in 0..1.


def _cloth(rng: Random, size: int) -> Array:
    colours = [_any_colour(rng) for _ in range(rng.integers(2, 5))]
    return _ramp(_octaves(rng, size, rng.uniform(2, 6), rng.uniform(0.5, 0.8)), colours)


def _wood(rng: Random, size: int) -> Array:
    light = _colour(rng, (0.05, 0.11), (0.3, 0.65), (0.5, 0.85))
    dark = light * rng.uniform(0.35, 0.7)
    x = np.linspace(0, 1, size, dtype=np.float32)[None, :]
    bend = 0.25 * _noise(rng, (size, size), 3, 2)
    rings = np.sin((x * rng.uniform(4, 9) + bend * rng.uniform(2, 6)) * 6.28) * 0.5 + 0.5
    grain = _noise(rng, (size, size), 6, 14)
    planks = (x * rng.integers(2, 6)) % 1.0
    image = _ramp(0.55 * rings + 0.45 * grain, [dark, light])
    image = image * (1 - 0.6 * (planks < 0.02))[..., None]
    return image if rng.random() < 0.5 else image.transpose(1, 0, 2)


def _tiles(rng: Random, size: int) -> Array:
    angle, count = rng.uniform(0, np.pi), rng.uniform(3, 9)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    u = (x * np.cos(angle) + y * np.sin(angle)) * count + 100
    v = (y * np.cos(angle) - x * np.sin(angle)) * count * rng.uniform(0.5, 1.5) + 100
    first, second, grout = (_any_colour(rng) for _ in range(3))
    odd = ((np.floor(u) + np.floor(v)) % 2)[..., None]
    image = first * odd + second * (1 - odd)
    if rng.random() < 0.6:
        line = (np.minimum(u % 1, v % 1) < 0.06)[..., None]
        image = np.where(line, grout, image)
    return image * (0.75 + 0.5 * _octaves(rng, size, 4))[..., None]


def _stones(rng: Random, size: int) -> Array:
    count = int(rng.integers(15, 60))
    points = rng.random((count, 2)).astype(np.float32)
    half = size // 2
    y, x = np.mgrid[0:half, 0:half].astype(np.float32) / half
    distance = (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2
    nearest = distance.argmin(-1)
    two = np.sqrt(np.partition(distance, 1, axis=-1)[..., :2])
    edge = _smooth((two[..., 1] - two[..., 0]) * rng.uniform(10, 30))
    base = _colour(rng, (0, 1), (0, 0.35), (0.4, 0.8))
    shade = rng.uniform(0.6, 1.2, (count, 3)).astype(np.float32) * base
    image = shade[nearest] * (0.25 + 0.75 * edge)[..., None]
    image = image.repeat(2, 0).repeat(2, 1)
    image = np.pad(image, ((0, size - 2 * half), (0, size - 2 * half), (0, 0)), mode="edge")
    return image * (0.7 + 0.6 * _octaves(rng, size, 6))[..., None]


def _clutter(rng: Random, size: int) -> Array:
    from PIL import Image, ImageDraw, ImageFilter

    image = Image.fromarray((_cloth(rng, size) * 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(10, 50)):
        colour = tuple(int(255 * c) for c in _any_colour(rng))
        x, y = rng.uniform(-0.1, 1.0, 2) * size
        w, h = rng.uniform(0.03, 0.35, 2) * size
        kind = rng.integers(4)
        if kind == 0:
            draw.ellipse((x, y, x + w, y + h), fill=colour)
        elif kind == 1:
            draw.rectangle((x, y, x + w, y + h), fill=colour)
        elif kind == 2:
            draw.line((x, y, x + w, y + h), fill=colour, width=int(rng.integers(1, 8)))
        else:
            corners = [(x + w * dx, y + h * dy) for dx, dy in rng.uniform(-0.5, 1, (4, 2))]
            draw.polygon(corners, fill=colour)
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 2.0)))
    return np.asarray(image, np.float32) / 255 * (0.8 + 0.4 * _octaves(rng, size, 8))[..., None]


def _foliage(rng: Random, size: int) -> Array:
    from PIL import Image, ImageDraw

    dark = _colour(rng, (0.2, 0.42), (0.4, 0.8), (0.1, 0.3))
    image = Image.new("RGB", (size, size), tuple(int(255 * c) for c in dark))
    draw = ImageDraw.Draw(image)
    count = int(rng.integers(120, 300))
    for step in range(count):
        light = 0.4 + 0.6 * step / count
        colour = _colour(rng, (0.2, 0.42), (0.35, 0.8), (0.25 * light, 0.75 * light))
        x, y = rng.uniform(-0.05, 1.0, 2) * size
        length, angle = rng.uniform(0.03, 0.12) * size, rng.uniform(0, 6.28)
        along = np.array([np.cos(angle), np.sin(angle)]) * length
        across = np.array([-along[1], along[0]]) * rng.uniform(0.15, 0.4)
        corners = [
            (x, y) + along * a + across * b
            for a, b in ((-1, 0), (-0.3, 1), (0.4, 0.8), (1, 0), (0.4, -0.8), (-0.3, -1))
        ]
        draw.polygon([tuple(c) for c in corners], fill=tuple(int(255 * c) for c in colour))
    return np.asarray(image, np.float32) / 255 * (0.7 + 0.6 * _octaves(rng, size, 5))[..., None]


def _table(rng: Random, size: int) -> Array:
    """A wall and a table top that meet at a line."""
    wall = _any_colour(rng) * (0.8 + 0.4 * _octaves(rng, size, 3))[..., None]
    top = (_wood if rng.random() < 0.5 else _cloth)(rng, size)
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    line = rng.uniform(0.15, 0.6) + (x - 0.5) * rng.uniform(-0.2, 0.2)
    return np.where((y > line)[..., None], top, wall)


BACKGROUNDS = (_cloth, _wood, _tiles, _stones, _clutter, _clutter, _foliage, _table)


def _background(rng: Random, size: int) -> Array:
    image = _pick(rng, BACKGROUNDS)(rng, size)
    # A lamp somewhere: one corner brighter than the other.
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    angle = rng.uniform(0, 6.28)
    lamp = 1 + rng.uniform(0, 0.6) * (x * np.cos(angle) + y * np.sin(angle))
    return (image * lamp[..., None]).clip(0, 1).astype(np.float32)


# Things: (rng, size) -> [h, w, 4] RGBA in 0..1, at SCALE times the size of the picture.


def _canvas(side: float) -> tuple[Array, Array]:
    """Coordinates x, y of a square of `side` picture pixels, from its middle, in picture pixels."""
    count = max(4, int(side * SCALE) // SCALE * SCALE)
    axis = (np.arange(count, dtype=np.float32) + 0.5) / SCALE - count / SCALE / 2
    return np.broadcast_to(axis[None, :], (count, count)), np.broadcast_to(
        axis[:, None], (count, count)
    )


def _rotate(x: Array, y: Array, angle: float) -> tuple[Array, Array]:
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return c * x + s * y, c * y - s * x


def _light(rng: Random) -> Array:
    """Where the light comes from: above, more or less, and towards the viewer."""
    vector = np.array(
        [rng.uniform(-0.8, 0.8), rng.uniform(-1.0, 0.1), rng.uniform(0.6, 1.2)], np.float32
    )
    return vector / np.linalg.norm(vector)


def _shade(colour: Array, nx: Array, ny: Array, light: Array, gloss: float) -> Array:
    """Lambert's law and a highlight on a surface with the given normals."""
    nz = np.sqrt((1 - nx * nx - ny * ny).clip(0.0, 1))
    lambert = (nx * light[0] + ny * light[1] + nz * light[2]).clip(0, 1)
    half = light + np.array([0, 0, 1], np.float32)
    half = half / np.linalg.norm(half)
    shine = (nx * half[0] + ny * half[1] + nz * half[2]).clip(0, 1) ** 24
    return (colour * (0.38 + 0.72 * lambert)[..., None] + gloss * shine[..., None]).clip(0, 1)


def _rgba(colour: Array, alpha: Array) -> Array:
    return np.concatenate((colour, alpha[..., None]), -1).astype(np.float32)


def _ball(
    rng: Random, size: int, hues: Any = ((0.0, 0.1), (0.2, 0.4), (0.55, 0.7), (0.85, 1.0))
) -> Array:
    radius = rng.uniform(0.04, 0.16) * size
    x, y = _canvas(2.2 * radius)
    u, v = x / radius, y / (radius * rng.uniform(0.85, 1.0))
    d = np.sqrt(u * u + v * v)
    bright = 0.9 + 0.2 * _noise(rng, x.shape, 12)
    colour = _colour(rng, _pick(rng, hues), (0.5, 0.95), (0.4, 0.95)) * bright[..., None]
    return _rgba(
        _shade(colour, u.clip(-1, 1), v.clip(-1, 1), _light(rng), 0.3),
        _smooth((1 - d) * radius + 0.5),
    )


def _lemon(rng: Random, size: int) -> Array:
    """Yellow as a banana, but short and straight, with a nub at both ends."""
    length = rng.uniform(0.05, 0.13) * size
    x, y = _rotate(*_canvas(2.6 * length), rng.uniform(0, 6.28))
    u, v = x / length, y / (length * rng.uniform(0.62, 0.8))
    d = np.sqrt(u * u + v * v) - 0.15 * np.exp(-((np.abs(u) - 1.05) ** 2) * 60 - v * v * 25)
    colour = (
        _colour(rng, (0.13, 0.18), (0.6, 0.9), (0.75, 0.98))
        * (0.9 + 0.2 * _noise(rng, x.shape, 20))[..., None]
    )
    return _rgba(
        _shade(colour, u.clip(-1, 1), v.clip(-1, 1), _light(rng), 0.25),
        _smooth((1 - d) * length + 0.5),
    )


def _leaf(rng: Random, size: int) -> Array:
    length = rng.uniform(0.08, 0.22) * size
    x, y = _rotate(*_canvas(2.1 * length), rng.uniform(0, 6.28))
    u = x / length
    wide = rng.uniform(0.25, 0.5) * np.cos(u.clip(-1, 1) * np.pi / 2).clip(0) ** 0.8
    v = y / length
    colour = (
        _colour(rng, (0.08, 0.4), (0.4, 0.8), (0.2, 0.6))
        * (0.8 + 0.4 * _noise(rng, x.shape, 10))[..., None]
    )
    veins = np.abs(((u + np.abs(v) * 0.8) * 7) % 1 - 0.5) < 0.06
    colour = colour * np.where(veins | (np.abs(v) < 0.015), 1.3, 1.0)[..., None]
    alpha = _smooth((wide - np.abs(v)) * length + 0.5) * (np.abs(u) < 1)
    return _rgba(colour.clip(0, 1), alpha)


def _stick(rng: Random, size: int) -> Array:
    length, thick = rng.uniform(0.1, 0.3) * size, rng.uniform(0.01, 0.03) * size
    x, y = _rotate(*_canvas(2 * length + 4 * thick), rng.uniform(0, 6.28))
    bend = 0.06 * length * np.sin(x / length * rng.uniform(1, 4))
    v = (y - bend) / thick
    colour = (
        _colour(rng, (0.04, 0.12), (0.2, 0.6), (0.2, 0.6))
        * (0.7 + 0.6 * _noise(rng, x.shape, 14))[..., None]
    )
    alpha = _smooth((1 - np.abs(v)) * thick + 0.5) * _smooth(length - np.abs(x) + 0.5)
    return _rgba(_shade(colour, 0 * v, v.clip(-1, 1), _light(rng), 0.05), alpha)


def _book(rng: Random, size: int) -> Array:
    """A rectangle, yellow every other time."""
    w, h = rng.uniform(0.06, 0.2, 2) * size
    x, y = _rotate(*_canvas(2.9 * max(w, h)), rng.uniform(0, 6.28))
    yellow = _colour(rng, (0.12, 0.17), (0.5, 0.9), (0.6, 0.95))
    colour = yellow if rng.random() < 0.5 else _any_colour(rng)
    inside = (np.abs(x) < 0.8 * w) & (np.abs(y) < 0.8 * h)
    paint = (
        np.where(inside[..., None], colour, 0.75 * colour)
        * (0.9 + 0.2 * _noise(rng, x.shape, 8))[..., None]
    )
    return _rgba(paint.clip(0, 1), _smooth(w - np.abs(x) + 0.5) * _smooth(h - np.abs(y) + 0.5))


def _crescent(rng: Random, size: int) -> Array:
    """Bent as a banana, but flat, sharp at both ends, and never yellow."""
    radius = rng.uniform(0.06, 0.16) * size
    x, y = _rotate(*_canvas(2.2 * radius), rng.uniform(0, 6.28))
    shift = rng.uniform(0.25, 0.6) * radius
    outer, inner = np.hypot(x, y), np.hypot(x - shift, y)
    colour = _colour(rng, (0.5, 1.05), (0.0, 0.7), (0.3, 0.95))
    return _rgba(
        np.broadcast_to(colour, (*x.shape, 3)),
        _smooth(radius - outer + 0.5) * _smooth(inner - 0.95 * radius + 0.5),
    )


DISTRACTORS = (_ball, _ball, _lemon, _leaf, _stick, _book, _crescent)

# Half the thickness of a banana along its length, from stem to tip, in parts of the thickest.
PROFILE_AT = (0.0, 0.02, 0.09, 0.13, 0.2, 0.32, 0.5, 0.7, 0.85, 0.93, 0.965, 0.985, 1.0)
PROFILE = (0.2, 0.23, 0.22, 0.3, 0.62, 0.9, 1.0, 0.94, 0.72, 0.42, 0.25, 0.2, 0.12)
STEM_END, TIP_START = 0.12, 0.962
EDGES = np.array([-1.0, -0.52, 0.1, 0.66, 1.0], np.float32)  # the ridges, across the visible side


def _profile() -> tuple[Array, Array]:
    """The thickness as a smooth curve."""
    at = np.linspace(0, 1, 401, dtype=np.float32)
    wide = np.interp(at, PROFILE_AT, PROFILE)
    kernel = np.hanning(23)
    smooth = np.convolve(np.pad(wide, 11, mode="edge"), kernel / kernel.sum(), mode="valid")
    return at, smooth.astype(np.float32)


def _banana(rng: Random, size: int) -> Array:
    """A banana, cut to the pixels that it covers."""
    length = rng.uniform(0.3, 0.68) * size
    thick = length * rng.uniform(0.095, 0.13)
    bend = rng.uniform(0.9, 2.0)  # the angle, in radians, that the spine turns through
    radius = length / bend
    x, y = _canvas(length + 4 * thick)
    x, y = _rotate(x, y, rng.uniform(0, 6.28))
    y = y / np.float32(rng.uniform(0.82, 1.0))  # seen from a little aside
    if rng.random() < 0.5:
        x = -x
    # The spine is an arc around (0, -middle); t runs along it from 0 to 1, u across from -1 to 1,
    # and d is the distance from it, outwards.
    middle = radius * (1 + np.cos(bend / 2)) / 2
    y = y + middle
    d = np.hypot(x, y) - radius
    alpha, along, across = (np.zeros_like(d) for _ in range(3))
    near = np.abs(d) < thick + 1  # the rest, most of the canvas, is far from the banana
    t = np.arctan2(x[near], y[near]) / bend + 0.5
    half = thick * np.interp(t, *_profile())
    half = half * np.where(d[near] < 0, 0.88, 1.0)  # flatter inside the bend
    ends = _smooth(t * length + 0.5) * _smooth((1 - t) * length + 0.5)
    alpha[near] = _smooth(half - np.abs(d[near]) + 0.5) * ends
    along[near] = t
    across[near] = (d[near] / half).clip(-1, 1)
    rows, columns = np.flatnonzero(alpha.max(1) > 0), np.flatnonzero(alpha.max(0) > 0)
    box = (_whole_pixels(rows), _whole_pixels(columns))
    t, u, d, alpha = along[box], across[box], d[box], alpha[box]
    # The direction away from the bend's middle, in the picture, is the one in which d grows.
    gy, gx = np.gradient(d)
    seen = alpha > 0  # nothing else is worth the paint
    shape, t, u, gx, gy = alpha.shape, t[seen], u[seen], gx[seen], gy[seen]
    norm = np.hypot(gx, gy) + 1e-6

    # Flat sides: within each, the surface turns less than a round one would.
    shift = rng.uniform(-0.2, 0.2)
    edges = EDGES + np.float32(shift) * (1 - EDGES**2)
    side = np.searchsorted(edges[1:-1], u)
    center = ((edges[:-1] + edges[1:]) / 2)[side]
    flat = 0.95 * (center + 0.45 * (u - center))
    ridge = np.exp(-((np.abs(u[:, None] - edges[1:-1]).min(-1) / 0.055) ** 2))

    colour = _peel(rng, t, u, _noise(rng, shape, 9)[seen], thick / length)
    body = _shade(colour, flat * gx / norm, flat * gy / norm, _light(rng), rng.uniform(0.05, 0.3))
    strength = (
        rng.uniform(0.08, 0.22) * _smooth((t - STEM_END) / 0.1) * _smooth((TIP_START - t) / 0.08)
    )
    layer = np.zeros((*shape, 4), np.float32)
    layer[seen, :3] = body * (1 - strength * ridge)[:, None]
    layer[..., 3] = alpha
    return layer


def _whole_pixels(indices: Array) -> slice:
    """From the first index to the last, widened to whole pixels of the picture."""
    return slice(indices[0] // SCALE * SCALE, -(-(indices[-1] + 1) // SCALE) * SCALE)


def _peel(rng: Random, t: Array, u: Array, mottle: Array, slim: float) -> Array:
    """Colours of the peel: green or ripe, spots, a green neck, a brown stem end and a dark tip."""
    ripe = rng.random()
    base = _colour(
        rng, (0.125 + 0.035 * (1 - ripe), 0.145 + 0.05 * (1 - ripe)), (0.7, 0.95), (0.82, 1.0)
    )
    green = _colour(rng, (0.19, 0.25), (0.5, 0.8), (0.5, 0.75))
    neck = np.exp(-(((t - 0.08) / rng.uniform(0.08, 0.16)) ** 2)) * rng.uniform(0.3, 0.9)
    foot = np.exp(-(((t - 0.97) / 0.06) ** 2)) * rng.uniform(0.2, 0.7)
    amount = np.maximum(neck, foot)[..., None]
    colour = base * (1 - amount) + green * amount
    colour = colour * (0.93 + 0.14 * mottle)[..., None]
    brown = _colour(rng, (0.05, 0.09), (0.5, 0.8), (0.2, 0.4))
    if rng.random() < 0.65:
        spots = np.zeros(t.shape, np.float32)
        for _ in range(int(rng.integers(2, 8 + int(30 * ripe)))):
            ct, cu, r = rng.uniform(0.16, 0.94), rng.uniform(-0.9, 0.9), rng.uniform(0.004, 0.022)
            reach = ((t - ct) / (r * rng.uniform(1, 2.5))) ** 2 + ((u - cu) * slim / r) ** 2
            spots = np.maximum(spots, _smooth(1.3 - reach))
        colour = colour + (brown - colour) * (rng.uniform(0.4, 0.85) * spots)[..., None]
    ends = np.maximum(_smooth((0.035 - t) / 0.03), _smooth((t - TIP_START) / 0.02))
    return colour + (brown * 0.7 - colour) * (0.9 * ends)[..., None]


def _shadow(rng: Random) -> tuple[float, float, float, float]:
    """Offset to the right and down, blur, all in parts of the thing's size; and darkness."""
    return (
        rng.uniform(-0.06, 0.08),
        rng.uniform(0.02, 0.1),
        rng.uniform(0.02, 0.06),
        rng.uniform(0.2, 0.65),
    )


def _paste(image: Array, layer: Array, left: int, top: int, shadow: Any) -> Array:
    """Put `layer` on `image`, its corner at (left, top); the layer's alpha in the picture."""
    pixels = [layer[i::SCALE, j::SCALE] for i in range(SCALE) for j in range(SCALE)]
    alpha = np.mean([pixel[..., 3] for pixel in pixels], 0)
    # Weighted by alpha, so that the emptiness around a thing does not darken its rim.
    colour = np.mean([pixel[..., :3] * pixel[..., 3:] for pixel in pixels], 0)
    colour = colour / np.maximum(alpha, 1e-6)[..., None]

    right, down, blur, dark = shadow
    reach = max(alpha.shape)
    radius = max(0.6, blur * reach)
    margin = round(3 * radius)
    cast = _blur(np.pad(alpha, margin), radius)
    corner = (left + round(right * reach) - margin, top + round(down * reach) - margin)
    inside, part = _overlap(image, cast, *corner)
    image[inside] *= 1 - dark * cast[part][..., None]

    inside, part = _overlap(image, alpha, left, top)
    cover = alpha[part][..., None]
    image[inside] += (colour[part] - image[inside]) * cover
    whole = np.zeros(image.shape[:2], np.float32)
    whole[inside] = alpha[part]
    return whole


def _overlap(image: Array, layer: Array, left: int, top: int) -> tuple[Any, Any]:
    """Where in `image` a layer at (left, top) lies, and which part of the layer lies there."""
    inside, part = [], []
    for start, length, side in zip((top, left), layer.shape, image.shape, strict=False):
        low, high = min(max(start, 0), side), max(min(start + length, side), 0)
        inside.append(slice(low, high))
        part.append(slice(low - start, max(high - start, 0)))
    return tuple(inside), tuple(part)


def _develop(rng: Random, image: Array) -> Array:
    """What a camera adds: exposure, a tint, blur or none, and noise."""
    from PIL import Image, ImageFilter

    image = image * rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3).astype(np.float32)
    if rng.random() < 0.4:
        photo = Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8))
        image = (
            np.asarray(photo.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8))), np.float32)
            / 255
        )
    noise = rng.standard_normal(image.shape, np.float32)
    image = image + np.float32(rng.uniform(0.0, 0.025)) * noise
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)


if __name__ == "__main__":
    for line in _draw_share(Path(sys.argv[1]), *map(int, sys.argv[2:])):
        print(*line, flush=True)
