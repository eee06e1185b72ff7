"""Images and charts: what is drawn, where, at which size, and that a file at its path is whole."""

import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ssd_ops.tinyssd.show import plot
from ssd_ops.tinyssd.show.plot import (
    draw_curves,
    draw_detections,
    draw_grid,
    draw_precision_recall,
)

Image = pytest.importorskip("PIL.Image")
getrgb = pytest.importorskip("PIL.ImageColor").getrgb

RED, DARK = getrgb(plot.COLOURS[0]), getrgb(plot.DARK)


def read(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def grey(height=100, width=140):
    return np.full((height, width, 3), 128, np.uint8)


def has(pixels, colour):
    return (pixels == colour).all(-1)


def letters(pixels):
    """Pixels that are mostly of a letter: the grey, the red and the dark have less green."""
    return pixels[..., 1] > 130


def found(boxes=(), scores=(), labels=()):
    return SimpleNamespace(
        boxes=torch.tensor(boxes).reshape(-1, 4),
        scores=torch.tensor(scores),
        labels=torch.tensor(labels, dtype=torch.int64),
    )


def test_a_box_is_drawn_on_its_first_and_last_pixels(tmp_path):
    path = draw_detections(grey(), [[30, 40, 90, 80]], path=tmp_path / "one.png")
    assert path == tmp_path / "one.png"
    pixels = read(path)
    assert pixels.shape == (100, 140, 3)
    red = has(pixels, RED)
    expected = np.zeros((100, 140), bool)
    expected[40:80, 30:90] = True
    expected[42:78, 32:88] = False
    assert np.array_equal(red, expected)
    # A thin dark line on either side, and nothing beyond.
    changed = (pixels != 128).any(-1)
    assert changed[39:81, 29:91].sum() == changed.sum()
    assert not changed[43:77, 33:87].any()
    dark = has(pixels, DARK)
    for row, column in ((39, 29), (80, 29), (42, 32), (77, 32)):
        assert dark[row, column : 120 - column].all()
    for row, column in ((39, 29), (39, 90), (42, 32), (42, 87)):
        assert dark[row : 120 - row, column].all()


def test_an_image_comes_as_path_array_or_tensor(tmp_path):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)
    kept = image.copy()
    Image.fromarray(image).save(tmp_path / "image.png")
    kinds = {
        "path": tmp_path / "image.png",
        "string": str(tmp_path / "image.png"),
        "array": image,
        "tensor": torch.from_numpy(image).permute(2, 0, 1),
        "float": torch.from_numpy(image).permute(2, 0, 1).float(),
    }
    boxes, scores = torch.tensor([[10.2, 20.7, 50.1, 40.4]]), torch.tensor([0.95])
    drawn = [
        read(draw_detections(kind, boxes, scores, path=tmp_path / f"{name}.png"))
        for name, kind in kinds.items()
    ]
    assert all(np.array_equal(pixels, drawn[0]) for pixels in drawn)
    assert not np.array_equal(drawn[0], image)
    assert np.array_equal(image, kept)


def test_boxes_below_the_threshold_are_left_out(tmp_path):
    boxes = [[10, 30, 40, 60], [60, 30, 90, 60], [100, 30, 130, 60], [20, 70, 60, 90]]
    scores = [0.9, 0.8999, 0.97, float("nan")]
    high = draw_detections(grey(), boxes, scores, threshold=0.9, path=tmp_path / "a.png")
    red = has(read(high), RED)
    corners = [red[box[3] - 1, box[2] - 1] for box in boxes]
    assert corners == [True, False, True, False]
    low = draw_detections(grey(), boxes, scores, path=tmp_path / "b.png")
    assert has(read(low), RED)[59, 89]
    none = draw_detections(grey(), [], [], [], path=tmp_path / "c.png")
    assert np.array_equal(read(none), grey())


def test_classes_have_colours_and_names(tmp_path):
    boxes, scores, labels = [[5, 30, 60, 90], [70, 30, 130, 90]], [0.95, 0.96], [0, 1]
    plain = read(draw_detections(grey(), boxes, scores, labels, path=tmp_path / "a.png"))
    for colour, box in zip(plot.COLOURS[:2], boxes, strict=True):
        assert has(plain, getrgb(colour))[box[3] - 1, box[0] : box[2]].all()
    named = read(
        draw_detections(
            grey(), boxes, scores, labels, class_names=["pear", "fig"], path=tmp_path / "b.png"
        )
    )
    # A name makes the label wider, and changes nothing else.
    assert has(named, RED).sum() > has(plain, RED).sum()
    assert np.array_equal(named[35:], plain[35:])
    assert has(plain, (255, 255, 255)).any()


@pytest.mark.parametrize("corner", [(0, 0), (90, 0), (0, 60), (90, 60), (-30, -30), (120, 80)])
def test_a_label_stays_inside_the_image(tmp_path, corner):
    x, y = corner
    box, name = [x, y, x + 50, y + 40], "something"
    options = {"class_names": [name], "path": tmp_path / "a.png"}
    pixels = read(draw_detections(grey(), [box], [0.99], **options))
    away = read(draw_detections(grey(400, 140), [[5, 200, 55, 240]], [0.99], **options))
    # As many as where there is room: none is cut off.
    assert letters(pixels).sum() == letters(away).sum() > 100


def test_lines_and_letters_grow_with_the_image(tmp_path):
    small = read(draw_detections(grey(256, 256), [[64, 64, 192, 192]], path=tmp_path / "a.png"))
    large = read(draw_detections(grey(1000, 1000), [[250, 250, 750, 750]], path=tmp_path / "b.png"))
    assert has(small, RED)[128, :128].sum() == 2
    assert has(large, RED)[500, :500].sum() == 6
    heights = []
    for side in (256, 1000):
        box = [side // 4, side // 4, side // 2, side // 2]
        path = draw_detections(grey(side, side), [box], [0.95], path=tmp_path / "c.png")
        heights.append(letters(read(path)).any(1).sum())
    assert 7 <= heights[0] < heights[1] / 2


def test_boxes_over_the_border_and_beyond(tmp_path):
    infinite = float("inf")
    pixels = read(draw_detections(grey(), [[-20, 50, 30, 130]], path=tmp_path / "a.png"))
    red = has(pixels, RED)
    assert red[50, :30].all() and red[99, :30].all() and red[50:, 0].all() and red[50:, 29].all()
    every = read(draw_detections(grey(), [[-infinite, -5, infinite, 1e9]], path=tmp_path / "b.png"))
    assert has(every, RED)[0].all() and has(every, RED)[:, -1].all()
    unseen = [
        [200, 20, 300, 60],
        [10, -90, 50, -10],
        [50, 20, 40, 60],
        [50, 20, 50, 60],
        [float("nan"), 20, 60, 60],
    ]
    for box in unseen:
        assert np.array_equal(read(draw_detections(grey(), [box], path=tmp_path / "c.png")), grey())
    tiny = read(draw_detections(grey(), [[139.8, 99.8, 140, 100]], path=tmp_path / "d.png"))
    assert has(tiny, RED)[99, 139]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((grey().astype(float), []), r"image must be a uint8 array .* got float64 \[100, 140, 3\]"),
        ((grey()[..., 0], []), r"got uint8 \[100, 140\]"),
        ((grey()[:0], []), r"got uint8 \[0, 140, 3\]"),
        ((grey().transpose(2, 0, 1), []), r"got uint8 \[3, 100, 140\]"),
        ((torch.from_numpy(grey()), []), r"got uint8 \[100, 140, 3\]"),
        ((grey(), [[1, 2, 3]]), r"boxes must be \[K, 4\], got \[1, 3\]"),
        ((grey(), [1, 2, 3, 4]), r"boxes must be \[K, 4\], got \[4\]"),
        ((grey(), [[1, 2, 3, 4]], [0.9, 0.9]), r"scores must be \[1\] like the boxes, got \[2\]"),
        ((grey(), [[1, 2, 3, 4]], [0.9], []), r"labels must be \[1\] like the boxes, got \[0\]"),
    ],
)
def test_what_does_not_fit(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        draw_detections(*arguments, path=tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_a_class_without_a_name(tmp_path):
    with pytest.raises(ValueError, match=r"labels must be classes of \['pear'\], got 1"):
        draw_detections(
            grey(), [[1, 2, 3, 4]], [0.9], [1], class_names=["pear"], path=tmp_path / "a.png"
        )


def test_paths_that_do_not_work(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(FileNotFoundError, match=r"image must be a readable file, got .*none\.png"):
        draw_detections(tmp_path / "none.png", [], path=tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"image must be a readable file, got .*text\.png"):
        draw_detections(tmp_path / "text.png", [], path=tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match="the folder of path must exist"):
        draw_detections(grey(), [], path=tmp_path / "none" / "a.png")
    for name in ("image", "image.banana"):
        with pytest.raises(ValueError, match=r"path must end in a format such as \.png"):
            draw_detections(grey(), [], path=tmp_path / name)
        with pytest.raises(ValueError, match=r"path must end in a format such as \.png"):
            draw_curves([{"loss": 1.0}], tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["text.png"]


@pytest.mark.parametrize("place", ["encoding", "writing"])
def test_a_failure_leaves_the_image_before(tmp_path, monkeypatch, place):
    path = tmp_path / "a.png"
    draw_detections(grey(), [], path=path)
    before = path.read_bytes()

    def fill_the_disk(*args, **options):
        raise OSError(28, "No space left on device")

    if place == "encoding":
        monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    else:
        monkeypatch.setattr(os, "replace", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        draw_detections(grey(), [[10, 10, 50, 50]], path=path)
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("ending", ["png", "PNG", "jpg", "jpeg", "bmp", "webp"])
def test_the_ending_names_the_format(tmp_path, ending):
    path = draw_detections(grey(), [[10, 10, 50, 50]], path=tmp_path / f"a.{ending}")
    with Image.open(path) as image:
        assert image.format == {"jpg": "JPEG"}.get(ending.lower(), ending.upper())
        assert image.size == (140, 100)


def test_a_grid_has_a_cell_for_each_image(tmp_path):
    values = (50, 100, 150, 200, 250)
    images = torch.stack([torch.full((3, 40, 60), value, dtype=torch.uint8) for value in values])
    pixels = read(draw_grid(images, [found()] * 5, columns=2, path=tmp_path / "a.png"))
    gap = plot.GAP
    assert pixels.shape == (3 * (40 + gap) + gap, 2 * (60 + gap) + gap, 3)
    for index, value in enumerate(values):
        top, left = gap + index // 2 * (40 + gap), gap + index % 2 * (60 + gap)
        assert (pixels[top : top + 40, left : left + 60] == value).all()
        assert (pixels[top - 1, left : left + 60] == 255).all()
    narrow = read(draw_grid(images[:1], [found()], columns=6, path=tmp_path / "b.png"))
    assert narrow.shape == (40 + 2 * gap, 60 + 2 * gap, 3)
    mixed = [grey(20, 30), grey(50, 10)]
    pixels = read(draw_grid(mixed, [found()] * 2, columns=2, path=tmp_path / "c.png"))
    assert pixels.shape == (50 + 2 * gap, 2 * (30 + gap) + gap, 3)
    mixed = [grey(20, 30), grey(10, 30), grey(50, 30)]
    pixels = read(draw_grid(mixed, [found()] * 3, columns=2, path=tmp_path / "d.png"))
    assert pixels.shape[0] == 20 + 50 + 3 * gap, "a row is as high as its highest image"
    assert (pixels[20 + 2 * gap : 70 + 2 * gap, gap : gap + 30] == 128).all()


def test_a_grid_shows_what_was_found_and_what_is_there(tmp_path):
    detections = [found([[20, 30, 60, 70], [70, 30, 95, 70]], [0.8, 0.3], [0, 0]), found()]
    gt_boxes = [torch.tensor([[24.0, 34.0, 64.0, 74.0]]), torch.zeros(0, 4)]
    images = [grey(), grey()]
    pixels = read(draw_grid(images, detections, gt_boxes, columns=2, path=tmp_path / "a.png"))
    gap = plot.GAP
    first = pixels[gap : gap + 100, gap : gap + 140]
    assert has(first, RED)[69, 20:60].all() and not has(first, RED)[69, 70:95].any()
    assert has(first, (255, 255, 255))[73, 24:64].all()
    second = pixels[gap : gap + 100, 2 * gap + 140 : 2 * gap + 280]
    assert (second == 128).all()
    without = read(draw_grid(images, detections, columns=2, path=tmp_path / "b.png"))
    legend = pixels[without.shape[0] :]
    assert has(legend, RED).any() and has(legend, DARK).any()
    higher = read(draw_grid(images, detections, columns=2, threshold=0.9, path=tmp_path / "c.png"))
    assert not has(higher, RED).any()


def test_a_grid_that_does_not_fit(tmp_path):
    path = tmp_path / "a.png"
    with pytest.raises(ValueError, match="a grid must have images and columns, got 0, 4"):
        draw_grid([], [], path=path)
    with pytest.raises(ValueError, match="a grid must have images and columns, got 1, 0"):
        draw_grid([grey()], [found()], columns=0, path=path)
    with pytest.raises(ValueError, match="detections must be for 2 images, got 1"):
        draw_grid([grey()] * 2, [found()], path=path)
    with pytest.raises(ValueError, match="gt_boxes must be for 1 images, got 2"):
        draw_grid([grey()], [found()], [[], []], path=path)
    assert list(tmp_path.iterdir()) == []


TEXTS = {
    "loss": "training",
    "class_error": "class error, training",
    "offset_error": "offset error (MAE), training",
    "val_class_error": "class error, validation",
    "val_offset_error": "offset error (MAE), validation",
}
NAMES = tuple(TEXTS)


def history(*names, epochs=5):
    return [
        {"epoch": epoch, "examples_per_second": 41.0, **dict.fromkeys(names, 1 / epoch)}
        for epoch in range(1, epochs + 1)
    ]


@pytest.fixture
def matplotlib():
    return pytest.importorskip("matplotlib")


def test_curves_are_an_image(tmp_path, matplotlib):
    path = draw_curves(history(*NAMES), tmp_path / "curves.png")
    pixels = read(path)
    assert pixels.shape == (480, 1200, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
    again = draw_curves(history(*NAMES, epochs=4), tmp_path / "other.png")
    assert not np.array_equal(read(again), pixels)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["curves.png", "other.png"]


@pytest.mark.parametrize("names", [(), *((name,) for name in TEXTS), NAMES])
def test_each_curve_has_its_label(tmp_path, matplotlib, names):
    # matplotlib notes each text of an SVG in a comment.
    text = draw_curves(history(*names), tmp_path / "curves.svg").read_text()
    for name in ("epoch", "Loss", "Errors", "loss", "error"):
        assert f"<!-- {name} -->" in text
    for name, label in TEXTS.items():
        assert (f"<!-- {label} -->" in text) == (name in names), name


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), 0.0])
def test_epochs_without_a_number(tmp_path, matplotlib, bad):
    rows = history(*NAMES)
    rows[2] = dict.fromkeys(NAMES, bad)
    draw_curves(rows, tmp_path / "some.png")
    none = draw_curves([dict.fromkeys(NAMES, bad)], tmp_path / "none.svg").read_text()
    assert ("<!-- training -->" in none) == (bad == 0), "a curve without points has no name"
    draw_curves(history("loss", epochs=1), tmp_path / "one.png")


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_epochs_are_whole_numbers(tmp_path, matplotlib, epochs):
    text = draw_curves(history("loss", epochs=epochs), tmp_path / "curves.svg").read_text()
    below = text[: text.index("<!-- epoch -->")]
    numbers = re.findall(r"<!-- ([\d.]+) -->", below)
    assert numbers == [str(epoch) for epoch in range(1, epochs + 1)]


def test_an_empty_history(tmp_path, matplotlib):
    with pytest.raises(ValueError, match="history must have an epoch at least, got none"):
        draw_curves([], tmp_path / "curves.png")


def test_curves_leave_pyplot_alone(tmp_path, matplotlib, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    draw_curves(history(*NAMES), tmp_path / "curves.png")


def test_without_the_extras(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for call in (
        lambda: draw_detections(grey(), [], path=tmp_path / "a.png"),
        lambda: draw_grid([grey()], [found()], path=tmp_path / "a.png"),
        lambda: draw_curves(history("loss"), tmp_path / "a.png"),
        lambda: draw_precision_recall(np.ones((101, 1)), ["a"], tmp_path / "a.png"),
    ):
        with pytest.raises(ImportError, match=r"pip install ssd_ops\[train\]"):
            call()


def test_a_grid_of_tiles_with_titles(tmp_path):
    """Images of two shapes are brought to one tile, and their boxes with them."""
    images = [
        torch.zeros(3, 100, 200, dtype=torch.uint8),
        torch.zeros(3, 50, 25, dtype=torch.uint8),
    ]
    found = [
        SimpleNamespace(boxes=torch.tensor([[20.0, 20, 120, 80]]), scores=None, labels=None),
        SimpleNamespace(boxes=torch.zeros(0, 4), scores=None, labels=None),
    ]
    options = {"columns": 2, "tile": 100, "titles": ["first", "a title too long for a tile" * 9]}
    path = draw_grid(images, found, path=tmp_path / "grid.png", **options)
    sheet = read(path)
    assert sheet.shape[:2] == (100 + 18 + 2 * plot.GAP, 200 + 3 * plot.GAP)
    # The box's left side, at half its place, between rows 10 and 40 of the image.
    column = sheet[plot.GAP + 15 : plot.GAP + 35, plot.GAP + 10]
    assert (column == RED).all()
    assert (sheet[plot.GAP + 50 + 3 : plot.GAP + 50 + 14, plot.GAP : plot.GAP + 30] < 128).any()
    with pytest.raises(ValueError, match="titles must be for 2 images, got 1"):
        draw_grid(images, found, titles=["one"], path=tmp_path / "grid.png")
    # A title ends within its tile.
    strip = sheet[-18:, -plot.GAP - 100 :]
    assert (strip[:, : -plot.GAP] < 128).any() and (strip[:, -plot.GAP :] == 255).all()


def test_precision_recall_has_a_line_and_a_name_for_each_class(tmp_path, matplotlib, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    curves = np.full((101, 3), -1.0)
    curves[:, 0] = np.linspace(1, 0, 101) > 0.5
    curves[:, 2] = 0
    path = draw_precision_recall(curves, ["cup", "cat", "cow"], tmp_path / "curves.svg")
    text = path.read_text()
    for words in ("cup  AP 0.495", "cow  AP 0.000", "recall", "precision"):
        assert f"<!-- {words} -->" in text
    assert "<!-- cat" not in text, "a class without ground truth has no curve"
    many = draw_precision_recall(np.ones((101, 25)), ["name"] * 25, tmp_path / "many.svg")
    assert "<!-- name" not in many.read_text(), "more names than there is room for"
    with pytest.raises(ValueError, match="zip"):
        draw_precision_recall(curves, ["cup"], tmp_path / "curves.svg")


def test_a_precision_recall_curve_goes_as_far_as_its_recall(tmp_path, matplotlib, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.step", lambda self, x, y, *args, **options: drawn.append((x, y))
    )
    curve = np.array([1.0] * 41 + [0.5] * 20 + [0.0] * 40)
    draw_precision_recall(curve[:, None], ["cup"], tmp_path / "curves.png")
    ((recall, precision),) = drawn
    np.testing.assert_allclose(recall, np.arange(61) / 100)
    np.testing.assert_allclose(precision, curve[:61])
