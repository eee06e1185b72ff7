"""The COCO reader on sets good and bad, finding sets in folders, and transforms of examples."""

import json
import os
import random
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from ssd_ops.tinyssd.data import images
from ssd_ops.tinyssd.data.bananas import BananaDetection
from ssd_ops.tinyssd.data.coco import CocoDetection
from ssd_ops.tinyssd.data.images import DataError
from ssd_ops.tinyssd.data.sets import open_set
from ssd_ops.tinyssd.data.transforms import apply_transforms, augment, seeded
from ssd_ops.tinyssd.settings import Settings

Image = pytest.importorskip("PIL.Image")


def content():
    """Two images of different sizes, three categories of odd ids, a crowd, degenerate boxes."""
    return {
        "info": {"year": 2024},
        "images": [
            {"id": 9, "file_name": "wide.png", "width": 40, "height": 20},
            {"id": 4, "file_name": "sub/tall.jpg", "width": 10, "height": 30},
            {"id": 5, "file_name": "empty.png", "width": 8, "height": 8},
        ],
        "annotations": [
            {"id": 1, "image_id": 4, "category_id": 7, "bbox": [1, 3, 4, 6], "iscrowd": 0},
            {"id": 2, "image_id": 9, "category_id": 2, "bbox": [30, 10, 20, 20]},
            {"id": 3, "image_id": 9, "category_id": 90, "bbox": [0, 0, 10.5, 20.0]},
            {"id": 4, "image_id": 9, "category_id": 2, "bbox": [0, 0, 9, 9], "iscrowd": 1},
            {"id": 5, "image_id": 9, "category_id": 2, "bbox": [5, 5, 0, 4]},
            {"id": 6, "image_id": 9, "category_id": 2, "bbox": [50, 5, 5, 5]},
            {"id": 7, "image_id": 9, "category_id": 2, "bbox": [5, 5, -3, 5]},
        ],
        "categories": [
            {"id": 90, "name": "toothbrush"},
            {"id": 2, "name": "bicycle"},
            {"id": 7, "name": "train"},
        ],
    }


def write(folder, what=None, name="set.json"):
    what = content() if what is None else what
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    for file, size in (("wide.png", (40, 20)), ("sub/tall.jpg", (10, 30)), ("empty.png", (8, 8))):
        Image.new("RGB", size, "teal").save(folder / file)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(what))
    return path


def test_images_boxes_and_classes_are_those_of_the_file(tmp_path):
    dataset = CocoDetection(write(tmp_path))
    assert len(dataset) == 3 and dataset.names == ["wide.png", "sub/tall.jpg", "empty.png"]
    assert dataset.class_names == ["bicycle", "train", "toothbrush"]
    assert dataset.dropped == {"degenerate": 3}
    image, rows = dataset[0]
    assert image.shape == (3, 20, 40) and image.dtype == torch.uint8
    # The third is a crowd of class 0.
    expected = [[0, 0.75, 0.5, 1, 1], [2, 0, 0, 10.5 / 40, 1], [-2, 0, 0, 9 / 40, 9 / 20]]
    torch.testing.assert_close(rows, torch.tensor(expected))
    image, rows = dataset[1]
    assert image.shape == (3, 30, 10)
    torch.testing.assert_close(rows, torch.tensor([[1, 0.1, 0.1, 0.5, 0.3]]))
    assert dataset[2][1].shape == (0, 5)
    with pytest.raises(IndexError):
        dataset[3]


def test_a_sliver_without_width_in_single_precision_is_left_out(tmp_path):
    what = content()
    what["annotations"].append({"id": 8, "image_id": 9, "category_id": 2, "bbox": [20, 5, 1e-7, 5]})
    dataset = CocoDetection(write(tmp_path, what))
    assert dataset.dropped["degenerate"] == 4
    assert (dataset[0][1][:, 1] < dataset[0][1][:, 3]).all() and len(dataset[0][1]) == 3


def test_a_validation_set_takes_the_classes_of_its_training_set(tmp_path):
    path = write(tmp_path)
    names = ["train", "zebra", "toothbrush", "bicycle"]
    dataset = CocoDetection(path, class_names=names)
    assert dataset.class_names == names
    assert dataset[0][1][:, 0].tolist() == [3, 2, -5]
    with pytest.raises(DataError, match=r"categories\[0\]: name must be a class of the training"):
        CocoDetection(path, class_names=["train", "bicycle"])


def test_areas_are_those_of_the_annotations(tmp_path):
    """Of what has none, the part of the box within the image, in whole pixels without rounding."""
    what = content()
    what["annotations"][0]["area"] = 1024.25
    what["annotations"][2]["area"] = 0
    what["annotations"][3]["area"] = None
    dataset = CocoDetection(write(tmp_path, what))
    assert [areas.tolist() for areas in dataset.areas] == [[100, 0, 81], [1024.25], []]
    assert all(areas.dtype == torch.float64 for areas in dataset.areas)


def test_a_degenerate_crowd_is_left_out(tmp_path):
    what = content()
    for entry in what["annotations"]:
        entry["iscrowd"] = 1
    dataset = CocoDetection(write(tmp_path, what))
    assert dataset.dropped == {"degenerate": 3}
    assert [rows[:, 0].tolist() for rows in dataset.rows] == [[-2, -4, -2], [-3], []]


def spoil(what, *keys, value):
    *path, last = keys
    for key in path:
        what = what[key]
    if value is None:
        del what[last]
    else:
        what[last] = value


@pytest.mark.parametrize(
    "keys, value, message",
    [
        (["images"], None, "must hold a list 'images', got NoneType"),
        (["images"], [], "images: must have an entry at least"),
        (["annotations"], {}, "must hold a list 'annotations', got dict"),
        (["categories"], [], "categories: must have an entry at least"),
        (["images", 1, "id"], 9, r"images\[1\]: id must be a number or text of its own, got 9"),
        (["images", 1, "id"], [1], r"images\[1\]: id must be"),
        (["images", 1, "file_name"], "gone.png", r"images\[1\]: .*gone.png must be .*no such file"),
        (["images", 1, "file_name"], "../x.png", r"images\[1\]: file_name must be a file inside"),
        (["images", 1, "file_name"], "/etc/x.png", r"images\[1\]: file_name must be a file inside"),
        (["images", 1, "file_name"], 3, r"images\[1\]: file_name must be a file inside"),
        (["images", 1, "file_name"], "set.json", r"images\[1\]: .* must be a readable image"),
        (["images", 1, "width"], 11, r"images\[1\]: .*must be 10 x 30 as its file is, got 11 x 30"),
        (["images", 1], "text", r"images\[1\]: id must be"),
        (["annotations", 1, "image_id"], 99, r"annotations\[1\]: image_id must be that of an image"),
        (["annotations", 1, "image_id"], [9], r"annotations\[1\]: image_id"),
        (["annotations", 1, "category_id"], 3, r"annotations\[1\]: category_id must be that of a c"),
        (["annotations", 1, "bbox"], [1, 2, 3], r"annotations\[1\]: bbox must be four finite"),
        (["annotations", 1, "bbox", 2], float("nan"), r"annotations\[1\]: bbox must be four fini"),
        (["annotations", 1, "bbox", 2], "3", r"annotations\[1\]: bbox must be four finite"),
        (["annotations", 1, "bbox", 2], 10**400, r"annotations\[1\]: bbox must be four finite"),
        (["annotations", 1, "area"], "9", r"annotations\[1\]: area must be a finite number from 0"),
        (["annotations", 1, "area"], -1, r"annotations\[1\]: area must be a finite number from 0"),
        (["annotations", 1, "area"], float("inf"), r"annotations\[1\]: area must be a finite nu"),
        (["annotations", 1], None, ""),
        (["categories", 1, "id"], 90, r"categories\[1\]: id must be a whole number of its own"),
        (["categories", 1, "name"], "train", r"categories\[2\]: name must be a text of its own"),
        (["categories", 1, "name"], 7, r"categories\[1\]: name must be"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named_with_its_entry(tmp_path, keys, value, message):
    what = content()
    spoil(what, *keys, value=value)
    path = write(tmp_path, what)
    if not message:
        assert len(CocoDetection(path)) == 3
        return
    with pytest.raises(DataError, match=message) as caught:
        CocoDetection(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[1]", b'"x"'])
def test_what_is_no_json_or_no_object(tmp_path, text):
    path = write(tmp_path)
    path.write_bytes(text)
    with pytest.raises(DataError, match=r"set\.json must (be JSON|hold a list)"):
        CocoDetection(path)


def test_sizes_are_limited(tmp_path, monkeypatch):
    path = write(tmp_path)
    monkeypatch.setattr(images, "MAX_PIXELS", 500)
    with pytest.raises(DataError, match=r"images\[0\]: .*wide.png .*40 x 20 pixels, more than 500"):
        CocoDetection(path)


def test_an_image_that_breaks_later_is_named(tmp_path):
    path = write(tmp_path)
    dataset = CocoDetection(path)
    whole = (tmp_path / "wide.png").read_bytes()
    (tmp_path / "wide.png").write_bytes(whole[:-30])
    with pytest.raises(DataError, match=r"set\.json, wide\.png: must be a readable image"):
        dataset[0]
    Image.new("RGB", (41, 20)).save(tmp_path / "wide.png")
    with pytest.raises(DataError, match=r"wide\.png: .*another size than before"):
        dataset[0]


def test_sixteen_bit_grey_is_brought_to_eight(tmp_path):
    values = np.array([[0, 255, 256, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert images.read_image(tmp_path / "deep.png")[0, :, 0].tolist() == [0, 0, 1, 255]


# How an image is shown that is stored as `a` with an orientation, by the definition of EXIF.
SHOWN = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a[::-1].swapaxes(0, 1),  # its first row is at the right
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a[:, ::-1].swapaxes(0, 1),  # its first row is at the left, from below
}


def save_turned(path, pixels, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)


@pytest.mark.parametrize("ending", ["png", "tif", "jpg", "webp"])
@pytest.mark.parametrize("orientation", SHOWN)
def test_photos_are_turned_as_they_are_shown(tmp_path, orientation, ending):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, :16], pixels[:8, 16:], pixels[8:, :16] = 250, 170, 90
    path = tmp_path / f"photo.{ending}"
    save_turned(path, pixels, orientation)
    expected = SHOWN[orientation](pixels)
    for got in (images.read_image(path), images.as_image("x", path).permute(1, 2, 0).numpy()):
        assert got.shape == expected.shape == (*images.image_size(path), 3)
        assert abs(got.astype(int) - expected).max() < 20
    if ending != "tif":  # Pillow turns it, asked or not
        got = images.read_image(path, turned=False)
        assert got.shape == pixels.shape == (*images.image_size(path, turned=False), 3)
        assert abs(got.astype(int) - pixels).max() < 20


@pytest.mark.parametrize("given", ["shown", "stored", "neither"])
def test_annotations_say_whether_an_image_is_turned(tmp_path, given):
    """By their width and height; without, it is."""
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:8, 16:] = 255  # the upper right as stored, the lower right as shown
    save_turned(tmp_path / "photo.png", pixels, 6)
    shown = (16, 32)
    size = {"shown": shown, "stored": (32, 16)}.get(given)
    entry = {"id": 1, "file_name": "photo.png"}
    entry |= dict(zip(("width", "height"), size, strict=True)) if size else {}
    box = [16, 0, 16, 8] if given == "stored" else [8, 16, 8, 16]
    annotation = {"image_id": 1, "category_id": 1, "bbox": box}
    what = {"images": [entry], "annotations": [annotation]}
    (tmp_path / "set.json").write_text(json.dumps(what | {"categories": [{"id": 1, "name": "a"}]}))
    dataset = CocoDetection(tmp_path / "set.json")
    image, rows = dataset[0]
    assert tuple(image.shape[1:]) == dataset.sizes[0] == (size or shown)[::-1]
    left, top, right, bottom = (
        (rows[0, 1:] * torch.tensor([*image.shape[:0:-1]] * 2)).int().tolist()
    )
    assert (image[:, top:bottom, left:right] == 255).all() and image.sum() == 255 * 3 * 8 * 16
    entry |= {"width": 31, "height": 17}
    (tmp_path / "set.json").write_text(json.dumps(what | {"categories": [{"id": 1, "name": "a"}]}))
    with pytest.raises(DataError, match=r"photo\.png must be 32 x 16 as its file is, got 31 x 17"):
        CocoDetection(tmp_path / "set.json")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_orientation_is_none(tmp_path):
    path = tmp_path / "photo.png"
    for exif in (b"Exif\0\0MM", b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abcd", b"x"):
        Image.new("RGB", (30, 20), "teal").save(path, exif=exif)
        assert images.read_image(path).shape == (20, 30, 3) and images.image_size(path) == (20, 30)


@pytest.mark.parametrize(
    "values, ending, expected",
    [
        (np.float32([[0, 0.5, 1, -1, np.nan, np.inf]]), "tif", [0, 128, 255, 0, 0, 0]),
        (np.float32([[0, 100.4, 255]]), "tif", [0, 100, 255]),
        (np.float32([[0, 32767.5, 65535]]), "tif", [0, 128, 255]),
        (np.float32([[0, 5e5, 1e6]]), "tif", [0, 128, 255]),
        (np.float32([[0, 0, 0]]), "tif", [0, 0, 0]),
        (np.float32([[0, 0.5, 1]]), "pfm", [0, 128, 255]),
        (np.int32([[0, 256, 65535]]), "tif", [0, 1, 255]),
        (np.int32([[0, 7, 255]]), "tif", [0, 7, 255]),
        (np.uint16([[0, 255, 256, 65535]]), "tif", [0, 0, 1, 255]),
        (np.uint16([[0, 255, 256, 65535]]), "pgm", [0, 0, 1, 255]),
        (np.uint16([[0, 0, 255, 255]]), "pgm", [0, 0, 0, 0]),
    ],
)
def test_deep_images_are_scaled_and_not_clipped(tmp_path, values, ending, expected):
    path = tmp_path / f"deep.{ending}"
    Image.fromarray(values).save(path)
    got = images.read_image(path)
    assert got.dtype == np.uint8 and got.shape == (1, values.shape[1], 3)
    assert [got[0, :, channel].tolist() for channel in range(3)] == [expected] * 3


def test_the_limit_of_pixels_can_be_raised(tmp_path, monkeypatch):
    """Also beyond that of Pillow."""
    path = write(tmp_path).with_name("wide.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    monkeypatch.setattr(images, "LIMIT", 798)
    monkeypatch.setattr(images, "MAX_PIXELS", 798)
    images.pillow()
    assert Image.MAX_IMAGE_PIXELS == 300, "one's own limit for Pillow is left"
    monkeypatch.setattr(images, "MAX_PIXELS", 799)
    with pytest.raises(DataError, match="more than 799, a limit that SSD_OPS_MAX_PIXELS sets"):
        images.read_image(path)
    monkeypatch.setattr(images, "MAX_PIXELS", 800)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.read_image(path).shape == (20, 40, 3)
    code = "from ssd_ops.tinyssd.data import images; print(images.MAX_PIXELS)"
    for given, expected in (({}, 64_000_000), ({"SSD_OPS_MAX_PIXELS": "200000000"}, 200_000_000)):
        environment = {k: v for k, v in os.environ.items() if k != "SSD_OPS_MAX_PIXELS"} | given
        command = [sys.executable, "-c", code]
        said = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
        assert int(said) == expected


@pytest.mark.parametrize(
    "name, folder",
    [
        ("train.json", "images"),
        ("train.json", "train"),
        ("train.json", "."),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train.json", "images/train"),
        ("annotations/train.json", "images"),
        ("train/_annotations.coco.json", "train"),
    ],
)
def test_sets_are_found_where_they_commonly_lie(tmp_path, name, folder):
    write(tmp_path / folder, name="unused.txt")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(content()))
    assert len(open_set(tmp_path, "train")) == 3
    with pytest.raises(
        DataError, match=r"must hold bananas_val or one of val\.json, .* none of them"
    ):
        open_set(tmp_path, "val")


def test_a_named_file_and_a_named_folder_of_images(tmp_path):
    write(tmp_path / "elsewhere", name="unused.txt")
    (tmp_path / "any.json").write_text(json.dumps(content()))
    assert len(open_set(tmp_path / "any.json", images=tmp_path / "elsewhere")) == 3
    with pytest.raises(DataError, match="no such file"):
        open_set(tmp_path / "any.json")
    (tmp_path / "train.json").write_text("{}")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "train.json").write_text("{}")
    with pytest.raises(DataError, match=r"got train\.json, annotations/train\.json"):
        open_set(tmp_path)
    with pytest.raises(DataError, match="must be a folder or a COCO JSON file, got neither"):
        open_set(tmp_path / "nowhere")


# Transforms.


def crop(image, boxes, labels):
    """The lower right quarter."""
    height, width = image.shape[1] // 2, image.shape[2] // 2
    return image[:, height:, width:], boxes - torch.tensor([width, height] * 2), labels


def test_transforms_change_images_and_boxes(tmp_path):
    dataset = CocoDetection(write(tmp_path), transforms=crop)
    image, rows = dataset[0]
    assert image.shape == (3, 10, 20)
    # The first box lies there whole; of the second nothing is left.
    torch.testing.assert_close(rows, torch.tensor([[0, 0.5, 0.0, 1.0, 1.0]]))


def test_crowds_go_through_transforms():
    """Moved and cut like any box; padding does not."""
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    rows = torch.tensor([[-1.0] * 5, [-4, 0.25, 0.25, 1, 0.75], [1, 0.5, 0.5, 1, 1]])
    got = apply_transforms(crop, image, rows)[1]
    torch.testing.assert_close(got, torch.tensor([[-4.0, 0, 0, 1, 0.5], [1, 0, 0, 1, 1]]))
    assert torch.equal(apply_transforms(None, image, rows)[1], rows)


def test_crowds_are_mirrored_with_their_images():
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    labels = torch.tensor([[[-3.0, 0, 0.25, 0.5, 1], [0, 0, 0, 0.25, 1], [-1] * 5]])
    flip = replace(Settings(), flip=1.0, flip_vertical=1.0, jitter=0.0)
    got = augment(images, labels, flip, np.random.default_rng(0))[1]
    expected = [[[-3.0, 0.5, 0, 1, 0.75], [0, 0.75, 0, 1, 1], [-1] * 5]]
    torch.testing.assert_close(got, torch.tensor(expected))


@pytest.mark.parametrize(
    "transforms, message",
    [
        (lambda i, b, c: (i, b), "must return an image, boxes and labels, got ValueError"),
        (lambda *_: 1 / 0, "ZeroDivisionError for an image: division by zero"),
        (lambda i, b, c: (i.float(), b, c), "must return a uint8 image"),
        (lambda i, b, c: (i[0], b, c), "must return a uint8 image"),
        (lambda i, b, c: (i, b[:0], c), "as many labels as boxes"),
        (lambda i, b, c: (i, b * float("nan"), c), "all finite"),
    ],
)
def test_what_transforms_must_return(transforms, message):
    image, rows = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.tensor([[0, 0.1, 0.1, 0.5, 0.5]])
    with pytest.raises(DataError, match=f"data: transforms .*{message}"):
        apply_transforms(transforms, image, rows)


def test_torchvision_transforms_plug_in(tmp_path):
    v2 = pytest.importorskip("torchvision.transforms.v2", exc_type=(ImportError, RuntimeError))
    flip = v2.Compose([v2.RandomHorizontalFlip(p=1.0), v2.Resize((40, 80))])
    plain, changed = (CocoDetection(write(tmp_path), transforms=t)[0] for t in (None, flip))
    assert changed[0].shape == (3, 40, 80) and type(changed[0]) is torch.Tensor
    expected = plain[1].clone()
    expected[:, 1], expected[:, 3] = 1 - plain[1][:, 3], 1 - plain[1][:, 1]
    torch.testing.assert_close(changed[1], expected)


def test_banana_sets_take_transforms_too(tmp_path):
    from ssd_ops.tinyssd.data.draw_bananas import make_bananas

    folder = make_bananas(tmp_path / "set", train=1, val=1, size=64)
    plain, same = BananaDetection(folder), BananaDetection(folder, transforms=lambda *all: all)
    assert torch.equal(same[0][0], plain[0][0])
    torch.testing.assert_close(same[0][1], plain[0][1])


def test_seeded_draws_the_same_and_puts_the_states_back():
    def draw():
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    with seeded(1, 2):
        one = draw()
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()
    with seeded(1, 2):
        assert draw() == one
    with seeded(1, 3):
        assert not set(draw()) & set(one)
