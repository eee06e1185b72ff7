"""The drawn sets: their format, their boxes, and that a seed says all."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ssd_ops.tinyssd.data import draw_bananas as bananas
from ssd_ops.tinyssd.data.bananas import BananaDetection
from ssd_ops.tinyssd.data.draw_bananas import draw_image, make_bananas

Image = pytest.importorskip("PIL.Image")


def files(folder):
    """The content of every file below a folder, by its path there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def read_rows(folder, split):
    with open(folder / split / "label.csv", newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_bananas(tmp_path_factory.mktemp("bananas") / "set", train=4, val=2, size=64, seed=3)


def test_the_format_is_that_of_the_published_set(small):
    assert sorted(path.name for path in small.iterdir()) == ["bananas_train", "bananas_val"]
    for split, count in (("bananas_train", 4), ("bananas_val", 2)):
        header, *rows = read_rows(small, split)
        assert header == ["img_name", "label", "xmin", "ymin", "xmax", "ymax"]
        assert [row[:2] for row in rows] == [[f"{number}.png", "0"] for number in range(count)]
        names = {path.name for path in (small / split / "images").iterdir()}
        assert names == {row[0] for row in rows}
        for number, row in enumerate(rows):
            drawn = draw_image(3, split, number, 64)
            assert row[2:] == [str(corner) for corner in drawn.box]
            with Image.open(small / split / "images" / row[0]) as image:
                assert (image.format, image.mode, image.size) == ("PNG", "RGB", (64, 64))
                assert np.array_equal(np.asarray(image), drawn.image)


def test_the_reader_takes_it(small):
    dataset = BananaDetection(small, "val")
    for number, name in enumerate(dataset.names):
        drawn = draw_image(3, "bananas_val", int(name.removesuffix(".png")), 64)
        image = torch.from_numpy(drawn.image).permute(2, 0, 1)
        assert torch.equal(dataset.images[number], image)
        assert torch.equal(dataset.labels[number, 0, 1:] * 64, torch.tensor(drawn.box).float())


def test_a_seed_says_all(small, tmp_path):
    settings = {"val": 2, "size": 64}
    again = make_bananas(tmp_path / "again", train=4, seed=3, **settings)
    assert files(again) == files(small)
    # An image does not depend on how many there are.
    more = files(make_bananas(tmp_path / "more", train=6, seed=3, **settings))
    images = {name: content for name, content in files(small).items() if name.endswith("png")}
    assert images.items() <= more.items()
    other = files(make_bananas(tmp_path / "other", train=4, seed=4, **settings))
    assert not any(other[name] == content for name, content in images.items())
    assert len(set(images.values())) == 6


def cells(image):
    """The mean colour of each of 4 x 4 parts of an image, as 48 bytes."""
    size = len(image) // 4
    means = image.reshape(4, size, 4, size, 3).mean((1, 3))
    return np.rint(means).astype(np.uint8).tobytes()


# Of the images 0..15 of seed 5, at 64 pixels.
CELLS = """
534132605a3063503960523e4a3e3685a326747039755f3c6355386f65337d68347e64467057437e634d7e634c80654d
a35947a47282a88780cf889a884d44ba9b4cbd9076ad996d95726ca87d87bb7e7e92b24f78444e4d97555f945ed68988
4c3c2467632648361f3c321c4e3a2254482159461b392b19513c234d3a2247351f564128514a2d483b233f2f1c41311c
95766781665870594e634e449d7c6c8f795177604f594b4f9474668375577c71416c564b9f7e6e886e5d7d6356735b4f
5f592a3e2d654f42508b853a5f6a3e564d38696734897f3b636838706c317e8445877c41626a3a71743c7d834787783d
6a483b704d3b785143744d4168473b634936754f42742545694f334b59207551367b54376e5130644838714c426d4a37
6e4f4d55402668502d463826543a255238246e581d543a255c4c3d563c275239244c34214c35254d3522543a25533924
5945294f633176503382593a4f4e264a6628927825796e334b34225f3f296b492f7551344932205337245e40296f4b31
c2f1f1b1b698a1d0c89cc7bb9fd9e6bbdeaaa2d0c16a9d80a1cad6a5d3ce77a49d577e5292c6cb86acb78eaabd6c9283
6056397568356c504571304556632c5d523a5c513c62583f4e4833584e385f5432645a415149354e46325b51375e553d
936c5b8665577f5e406d52468e6659715062987c396b64718b685a795446745c416a59449a754479674a755342654d45
918851877d4c637343696c408a804c837a49746c416e663d7d7545857d3d6d653c676039857b3d78703a45893c57512f
8d967f919982a0a58eb5b49e8e908098a16c849279989f878e9672918c7890988073866a67667c8e897f94837caa808f
7b48366c40296858275a403b874f3c6c40287a4a3479473693564187503c824c398a4e4e96584293564198654477444b
70573f755c3f745b3e744c3e6b543e70583f775e3f6d563a735b3e735b3d755c3e766137755c3e72593d755c3e7c6a2f
522f2e6a2e34412b1e463120634d2c422e1f493322473221513b244c3623513b23543f1f4d36244c36234530204f342b"""


def test_images_are_those_of_before():
    """A set of a seed is the same from version to version, but for the last bit of a colour."""
    for number, line in enumerate(CELLS.split()):
        drawn = cells(draw_image(5, "bananas_train", number, 64).image)
        before = bytes.fromhex(line)
        distance = np.abs(
            np.frombuffer(drawn, np.uint8) - np.frombuffer(before, np.uint8).astype(int)
        )
        assert distance.max() <= 1, number


@pytest.mark.parametrize("size", [64, 100, 256])
def test_boxes_are_those_of_the_pixels_that_the_banana_covers(monkeypatch, size):
    """Two images, of a black and a white banana, differ by how much of a pixel it covers."""
    banana = bananas._banana
    monkeypatch.setattr(bananas, "_photograph", lambda rng, image: image)

    def drawn(number, paint):
        def painted(rng, size):
            alpha, colours = banana(rng, size)
            return alpha, np.full_like(colours, paint)

        monkeypatch.setattr(bananas, "_banana", painted)
        return draw_image(7, "bananas_train", number, size)

    for number in range(12):
        black, white = drawn(number, 0.0), drawn(number, 1.0)
        cover = (white.image - black.image).mean(2) > 0.5
        rows, columns = np.flatnonzero(cover.any(1)), np.flatnonzero(cover.any(0))
        box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
        assert black.box == white.box == box
        assert np.array_equal(cover, black.mask)
        assert 0 <= box[0] < box[2] <= size and 0 <= box[1] < box[3] <= size


def test_bananas_vary_and_can_be_told_by_their_colour():
    images = [draw_image(1, "bananas_train", number, 96) for number in range(40)]
    boxes = np.array([drawn.box for drawn in images])
    longer = (boxes[:, 2:] - boxes[:, :2]).max(1) / 96
    assert 0.1 < longer.min() < 0.3 and 0.5 < longer.max() < 0.75
    wide = (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])
    assert wide.min() < 0.6 and wide.max() > 1.6
    centers = (boxes[:, :2] + boxes[:, 2:]) / 192
    assert (centers.min(0) < 0.3).all() and (centers.max(0) > 0.7).all()
    red, green, blue = np.array([p.image[p.mask].mean(0) for p in images]).T
    assert (np.minimum(red, green) > 1.4 * blue).mean() >= 0.95
    # Around them there is something to see.
    assert min(drawn.image[~drawn.mask].std() for drawn in images) > 4


def test_a_set_that_was_interrupted_leaves_nothing(tmp_path, monkeypatch):
    draw = bananas.draw_image

    def stop(seed, split, number, size):
        if number == 2:
            raise KeyboardInterrupt
        return draw(seed, split, number, size)

    monkeypatch.setattr(bananas, "draw_image", stop)
    with pytest.raises(KeyboardInterrupt):
        make_bananas(tmp_path / "in" / "set", train=4, val=1, size=64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("owner, name", [(Image.Image, "save"), (Path, "write_text")])
def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch, owner, name):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, name, full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        make_bananas(tmp_path / "set", train=3, val=1, size=64)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(small, tmp_path):
    before = files(small)
    for target in (small, small / "bananas_val" / "label.csv"):
        with pytest.raises(FileExistsError, match="folder must not exist or be empty, got "):
            make_bananas(target, train=1, val=1, size=64)
    assert files(small) == before
    (tmp_path / "empty").mkdir()
    make_bananas(tmp_path / "empty", train=1, val=1, size=64)
    assert len(files(tmp_path / "empty")) == 4


@pytest.mark.parametrize(
    "name, value, least",
    [("train", 0, 1), ("val", -1, 1), ("size", 63, 64), ("size", 256.0, 64), ("seed", -1, 0)],
)
def test_numbers_out_of_range(tmp_path, name, value, least):
    message = f"make_bananas: {name} must be a whole number of at least {least}, got {value}"
    with pytest.raises(ValueError, match=message):
        make_bananas(tmp_path / "set", **{name: value})
    assert list(tmp_path.iterdir()) == []


def test_progress_is_shown_when_asked_for(tmp_path, capfd):
    pytest.importorskip("tqdm")
    make_bananas(tmp_path / "quiet", train=2, val=1, size=64)
    assert capfd.readouterr() == ("", "")
    make_bananas(tmp_path / "shown", train=2, val=1, size=64, progress=True)
    assert "drawing: 100%" in capfd.readouterr().err


@pytest.mark.parametrize("missing", ["PIL", "tqdm"])
def test_without_the_extras(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install ssd_ops\[train\]"):
        make_bananas(tmp_path / "set", train=2, val=1, size=64, progress=True)
    assert list(tmp_path.iterdir()) == []
