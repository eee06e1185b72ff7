"""Draws banana detection sets in the format of "Dive into Deep Learning", without a download.

Every image follows from (seed, split, number) alone: one banana of any size, bend, colour and
rotation on a busy background, among things that are round, yellow or bent, but no bananas.
"""

from __future__ import annotations

import colorsys
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ssd_ops.tinyssd.data.bananas import HEADER
from ssd_ops.tinyssd.data.images import pillow
from ssd_ops.tinyssd.files import new_folder
from ssd_ops.tinyssd.progress import progress_bar

Random = np.random.Generator
Array = np.ndarray
Range = tuple[float, float]
Thing = tuple[Array, Array]  # how much of each pixel it covers; colours [K, 3] of those K pixels


class DrawnImage(NamedTuple):
    """An image ``[H, W, 3]`` uint8, the mask ``[H, W]`` bool of its banana's pixels, and their tight
    box (xmin, ymin, xmax, ymax); xmax and ymax are one past the last column and row."""

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
    """Write a banana detection set, whole or not at all; the folder it lies in comes back.

    Args:
        folder: gets ``bananas_train`` and ``bananas_val``. It must not exist, or be empty.
        train, val: how many images; the defaults are those of the published set.
        size: height and width in pixels, at least 64.
        seed: the same seed, the same pixels.
        progress: show a progress bar (this needs tqdm).

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
    least = ("train", train, 1), ("val", val, 1), ("size", size, 64), ("seed", seed, 0)
    for name, value, low in least:
        if type(value) is not int or value < low:
            wanted = f"a whole number of at least {low}"
            raise ValueError(f"make_bananas: {name} must be {wanted}, got {value!r}")
    image_module = pillow()
    with new_folder(folder) as aside, progress_bar(train + val, "drawing", progress) as bar:
        for split, count in (("bananas_train", train), ("bananas_val", val)):
            images, table = aside / split / "images", [",".join(HEADER)]
            images.mkdir(parents=True)
            for number in range(count):
                image, box, _ = draw_image(seed, split, number, size)
                # Higher levels take much longer and save little: the noise does not compress.
                image_module.fromarray(image).save(images / f"{number}.png", compress_level=1)
                table.append(f"{number}.png,0,{','.join(map(str, box))}")
                bar.update(1)
            (aside / split / "label.csv").write_text("\n".join([*table, ""]), newline="\n")
    return Path(folder)


def draw_image(seed: int, split: str, number: int, size: int = 256) -> DrawnImage:
    """One image of a set, of `size` x `size` pixels; `split` is the name of its folder."""
    rng = np.random.default_rng([seed, *split.encode(), number])
    image = np.rot90(_pick(rng, (_cloth, _wood))(rng, size), int(rng.integers(4)))
    across = _axes(rng, size)[0] / size
    image = (image * (1 + rng.uniform(0, 0.6) * across)[..., None]).astype(np.float32)  # a lamp
    for _ in range(rng.integers(0, 9)):
        _paste(rng, image, *_distractor(rng, size))
    alpha, colours = _banana(rng, size)
    x1, y1, x2, y2 = _tight_box(alpha > 0)
    shift = rng.integers(1 - y1, size - y2), rng.integers(1 - x1, size - x2)
    alpha = np.roll(alpha, shift, (0, 1))
    _paste(rng, image, alpha, colours)
    mask = alpha > 0.5
    return DrawnImage(_photograph(rng, image), _tight_box(mask), mask)


def _tight_box(mask: Array) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _pick(rng: Random, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _axes(rng: Random, size: int, x: float = 0.5, y: float = 0.5) -> tuple[Array, Array]:
    """Coordinates in pixels from a point of the image (in parts of it), turned by any angle."""
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
    angle = rng.uniform(0, 2 * np.pi)
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    across, down = columns - np.float32(x * size), rows - np.float32(y * size)
    return c * across + s * down, c * down - s * across


def _smooth(edge: Array) -> Array:
    """0 below 0, 1 above 1, smooth between."""
    t = edge.clip(0, 1)
    return t * t * (3 - 2 * t)


def _blur(image: Array, radius: float, shift: tuple[int, int] = (0, 0)) -> Array:
    """Values in 0..1, moved by `shift` pixels (right, down), with a Gaussian blur."""
    from PIL import Image, ImageFilter

    photo = Image.fromarray((image.clip(0, 1) * 255).astype(np.uint8)).rotate(0, translate=shift)
    return np.asarray(photo.filter(ImageFilter.GaussianBlur(float(radius))), np.float32) / 255


def _noise(
    rng: Random, size: int, cells: float, octaves: int = 1, decay: float = 0.55, stretch: float = 1
) -> Array:
    """Smooth noise in 0..1 with `cells` points a side; each octave is twice as fine, and weaker."""
    image, total = pillow(), np.zeros((size, size), np.float32)
    for octave in range(octaves):
        points = round(cells * 2**octave), round(cells * 2**octave * stretch)
        grid = image.fromarray(rng.random(points, np.float32))
        total += decay**octave * np.asarray(grid.resize((size, size), image.Resampling.BICUBIC))
    return (total - total.min()) / np.ptp(total)


def _colour(
    rng: Random, hue: Range = (0, 1), saturation: Range = (0, 0.7), value: Range = (0.15, 0.95)
) -> Array:
    """A colour, RGB in 0..1, with hue in turns."""
    h, s, v = (rng.uniform(*bounds) for bounds in (hue, saturation, value))
    return np.array(colorsys.hsv_to_rgb(h % 1, s, v), np.float32)


def _ramp(values: Array, colours: list[Array]) -> Array:
    """Values in 0..1 as colours, linear between the given ones."""
    stops = np.linspace(0, 1, len(colours))
    channels = [np.interp(values, stops, channel) for channel in zip(*colours, strict=True)]
    return np.stack(channels, -1).astype(np.float32)


def _cloth(rng: Random, size: int) -> Array:
    colours = [_colour(rng) for _ in range(rng.integers(2, 5))]
    return _ramp(_noise(rng, size, rng.uniform(2, 6), 6, rng.uniform(0.5, 0.8)), colours)


def _wood(rng: Random, size: int) -> Array:
    light = _colour(rng, (0.05, 0.11), (0.3, 0.65), (0.5, 0.85))
    x = np.linspace(0, 1, size, dtype=np.float32)
    bend = rng.uniform(0.5, 1.5) * _noise(rng, size, 3, stretch=2)
    rings = np.sin(2 * np.pi * (x * rng.uniform(4, 9) + bend)) * 0.5 + 0.5
    grain = 0.55 * rings + 0.45 * _noise(rng, size, 6, stretch=14)
    grain[:, (x * rng.integers(2, 6)) % 1 < 0.02] *= 0.2  # the gaps between the boards
    return _ramp(grain, [light * rng.uniform(0.25, 0.7), light])


def _shade(rng: Random, colour: Array, nx: Array, ny: Array, gloss: float) -> Array:
    """Colours of a surface with the given normals, under a lamp above: Lambert's law, a highlight."""
    lamp = rng.uniform((-0.8, -1, 0.6), (0.8, 0.1, 1.2))
    nz = np.sqrt((1 - nx * nx - ny * ny).clip(0, 1))
    lambert = np.stack((nx, ny, nz), axis=-1) @ (lamp / np.linalg.norm(lamp))
    lambert = lambert.clip(0, 1)[..., None]
    return colour * (0.38 + 0.72 * lambert) + gloss * lambert**24


# Bounds of a thing's half length (in parts of the image), width (in parts of the length), bend and
# hue; and the powers of its outline |u|^p + |v|^q = 1.
DISTRACTORS = (
    ((0.04, 0.16), (0.85, 1), (0, 0), (0.2, 1.1), (2, 2)),  # a ball
    ((0.05, 0.13), (0.6, 0.8), (0, 0), (0.12, 0.17), (1.8, 1.8)),  # a lemon
    ((0.08, 0.25), (0.08, 0.5), (0, 0.3), (0.05, 0.4), (2, 1)),  # a leaf
    ((0.06, 0.2), (0.4, 1), (0, 0), (0, 1), (14, 14)),  # a book
    ((0.06, 0.16), (0.2, 0.4), (0.5, 1.1), (0.5, 1.05), (2, 1)),  # a crescent
)


def _distractor(rng: Random, size: int) -> Thing:
    lengths, widths, bends, hues, (p, q) = _pick(rng, DISTRACTORS)
    x, y = _axes(rng, size, *rng.uniform(-0.05, 1.05, 2))
    length = rng.uniform(*lengths) * size
    u = x / length
    v = (y / length + rng.uniform(*bends) * (u * u - 0.5)) / rng.uniform(*widths)
    outline = np.abs(u).clip(0, 4) ** p + np.abs(v).clip(0, 4) ** q
    gy, gx = (np.asarray(slope) for slope in np.gradient(outline))
    steep: Array = np.hypot(gx, gy) + 1e-6
    alpha = _smooth(0.5 + (1 - outline) / steep)
    seen = alpha > 0
    turned = np.sqrt(outline[seen].clip(0, 1)) / steep[seen]  # flat in the middle, less so outwards
    colour = _colour(rng, hues, (0.4, 0.95), (0.4, 0.97))
    colours = colour * (0.8 + 0.4 * _noise(rng, size, size / length, 2)[seen])[:, None]
    return alpha, _shade(rng, colours, gx[seen] * turned, gy[seen] * turned, rng.uniform(0, 0.3))


# Half the thickness at even steps from stem to tip, in parts of the thickest.
PROFILE = [0.21, 0.23, 0.24, 0.39, 0.61, 0.74, 0.85, 0.92, 0.94, 0.97, 1.0]
PROFILE += [0.99, 0.97, 0.95, 0.94, 0.87, 0.79, 0.71, 0.53, 0.32, 0.14]
EDGES = np.array([-1.0, -0.52, 0.1, 0.66, 1.0], np.float32)  # the ridges, across the visible side


def _banana(rng: Random, size: int) -> Thing:
    """A banana in the middle of the image; it lies inside, however it is turned."""
    length = rng.uniform(0.3, 0.68) * size
    thick = length * rng.uniform(0.095, 0.13)
    bend = rng.uniform(0.9, 2.0)  # the angle, in radians, that the spine turns through
    radius = length / bend
    x, y = _axes(rng, size)
    x = x * rng.choice((-1, 1))
    y = y / rng.uniform(0.82, 1.0)  # seen from a little aside
    # The spine is an arc: t runs along it in 0..1, u across in -1..1; d is the distance outwards.
    y = y + radius * (1 + np.cos(bend / 2)) / 2
    d, t = np.hypot(x, y) - radius, np.arctan2(x, y) / bend + 0.5
    half = thick * np.interp(t, np.linspace(0, 1, len(PROFILE)), PROFILE).astype(np.float32)
    half[d < 0] *= 0.88  # flatter inside the bend
    ends = _smooth(t * length + 0.5) * _smooth((1 - t) * length + 0.5)
    alpha = _smooth(half - np.abs(d) + 0.5) * ends
    seen = alpha > 0
    gy, gx = (part[seen] for part in np.gradient(d))
    t, u = t[seen], (d[seen] / half[seen]).clip(-1, 1)

    # Flat sides: within each, the surface turns less than a round one would.
    edges = EDGES + rng.uniform(-0.2, 0.2) * (1 - EDGES**2)
    side = np.searchsorted(edges[1:-1], u)
    center = ((edges[:-1] + edges[1:]) / 2)[side]
    flat = 0.95 * (center + 0.45 * (u - center)) / (np.hypot(gx, gy) + 1e-6)
    ridge = np.exp(-((np.abs(u[:, None] - edges[1:-1]).min(-1) / 0.055) ** 2))
    ridge *= _smooth((t - 0.12) / 0.1) * _smooth((0.962 - t) / 0.08)

    mottle, freckles = (_noise(rng, size, cells * size / length)[seen] for cells in (9, 20))
    peel = _peel(rng, t, mottle, freckles) * (1 - rng.uniform(0.08, 0.22) * ridge)[:, None]
    return alpha, _shade(rng, peel, flat * gx, flat * gy, rng.uniform(0.05, 0.3))


def _peel(rng: Random, t: Array, mottle: Array, freckles: Array) -> Array:
    """Colours of the peel: green or ripe, spots, a green neck, a brown stem end and a dark tip."""
    ripe = rng.random()
    hues = (0.125 + 0.035 * (1 - ripe), 0.145 + 0.05 * (1 - ripe))
    colour = _colour(rng, hues, (0.7, 0.95), (0.82, 1.0)) * (0.93 + 0.14 * mottle)[:, None]
    green = _colour(rng, (0.19, 0.25), (0.5, 0.8), (0.5, 0.75))
    brown = _colour(rng, (0.05, 0.09), (0.5, 0.8), (0.2, 0.4))
    neck = np.exp(-(((t - 0.08) / rng.uniform(0.08, 0.16)) ** 2)) * rng.uniform(0.3, 0.9)
    spots = _smooth((freckles - rng.uniform(0.75, 1.05) + 0.2 * ripe) * 8) * rng.uniform(0.4, 0.85)
    ends = 0.9 * np.maximum(_smooth((0.035 - t) / 0.03), _smooth((t - 0.962) / 0.02))
    for cover, paint in ((neck, green), (spots, brown), (ends, 0.7 * brown)):
        colour = colour + (paint - colour) * cover[:, None]
    return colour


def _paste(rng: Random, image: Array, alpha: Array, colours: Array) -> None:
    """Lay a thing and its shadow, which grows with it, on the image in place."""
    reach = np.sqrt(alpha.sum())
    right, down = (reach * rng.uniform((-0.1, 0.04), (0.15, 0.2))).round().astype(int).tolist()
    shadow = _blur(alpha, max(0.6, reach * rng.uniform(0.04, 0.1)), (right, down))
    image *= 1 - rng.uniform(0.2, 0.65) * shadow[..., None]
    seen = alpha > 0
    image[seen] += (colours - image[seen]) * alpha[seen, None]


def _photograph(rng: Random, image: Array) -> Array:
    """What a camera adds: exposure, a tint, blur or none, and noise."""
    image = image * rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3).astype(np.float32)
    if rng.random() < 0.4:
        image = _blur(image, rng.uniform(0.3, 0.8))
    image = image + rng.uniform(0.0, 0.025) * rng.standard_normal(image.shape, np.float32)
    return (image.clip(0, 1) * 255 + 0.5).astype(np.uint8)
