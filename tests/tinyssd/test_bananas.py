"""The reader on sets good and bad, and the download against a server on this machine."""

import hashlib
import http.server
import io
import stat
import struct
import sys
import threading
import zipfile
import zlib

import numpy as np
import pytest
import torch

from ssd_ops.tinyssd.data import download
from ssd_ops.tinyssd.data.bananas import BananaDetection
from ssd_ops.tinyssd.data.download import download_bananas
from ssd_ops.tinyssd.data.images import DataError
from ssd_ops.tinyssd.data.sets import open_set

Image = pytest.importorskip("PIL.Image")

HEADER = "img_name,label,xmin,ymin,xmax,ymax\n"


def pixels(number, height=32, width=48):
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_set(folder, text, split="train", count=3, **size):
    """`label.csv` with `text` and the images 0.png, 1.png, ..."""
    root = folder / f"bananas_{split}"
    (root / "images").mkdir(parents=True)
    for number in range(count):
        Image.fromarray(pixels(number, **size)).save(root / "images" / f"{number}.png")
    encoding = {"newline": "", "encoding": "utf-8"}
    (root / "label.csv").write_text(text, **encoding)
    return folder


def test_images_and_labels_are_those_of_the_files(tmp_path):
    rows = "2.png,0,12,8,36,24\n0.png,0,0,0,48,32\n1.png,0,6,4,47,31\n"
    dataset = BananaDetection(write_set(tmp_path, HEADER + rows))
    assert len(dataset) == 3
    assert dataset.names == ["2.png", "0.png", "1.png"]
    assert dataset.class_names == ["banana"]
    assert dataset.images.dtype == torch.uint8 and dataset.images.shape == (3, 3, 32, 48)
    for index, number in enumerate((2, 0, 1)):
        expected = torch.from_numpy(pixels(number)).permute(2, 0, 1)
        assert torch.equal(dataset.images[index], expected)
    assert dataset.labels.dtype == torch.float32
    # Each side by its own length: the width is 48, the height 32.
    boxes = [[0.25, 0.25, 0.75, 0.75], [0, 0, 1, 1], [6 / 48, 4 / 32, 47 / 48, 31 / 32]]
    assert torch.equal(dataset.labels, torch.tensor([[[0, *box]] for box in boxes]))
    image, labels = dataset[1]
    assert torch.equal(image, dataset.images[1]) and torch.equal(labels, dataset.labels[1])
    assert torch.equal(dataset[-1][0], dataset.images[2])
    with pytest.raises(IndexError):
        dataset[3]


def test_several_rows_of_an_image_keep_their_order_and_are_padded(tmp_path):
    rows = (
        "1.png,0,12,8,36,24\n"
        "0.png,1,0,0,48,32\n"
        "1.png,1,0,0,24,16\n"
        "2.png,0,0,16,12,32\n"
        "1.png,0,24,0,48,8\n"
    )
    dataset = BananaDetection(write_set(tmp_path, HEADER + rows))
    assert dataset.names == ["1.png", "0.png", "2.png"]
    padding = [-1.0] * 5
    expected = [
        [[0, 0.25, 0.25, 0.75, 0.75], [1, 0, 0, 0.5, 0.5], [0, 0.5, 0, 1, 0.25]],
        [[1, 0, 0, 1, 1], padding, padding],
        [[0, 0, 0.5, 0.25, 1], padding, padding],
    ]
    assert torch.equal(dataset.labels, torch.tensor(expected))
    assert len(dataset.class_names) == 2


def test_batches_of_a_loader(tmp_path):
    rows = "".join(f"{number}.png,0,0,0,24,16\n" for number in range(3))
    dataset = BananaDetection(write_set(tmp_path, HEADER + rows, split="val"), "val")
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=2))
    assert [images.shape for images, _ in batches] == [(2, 3, 32, 48), (1, 3, 32, 48)]
    assert [labels.shape for _, labels in batches] == [(2, 1, 5), (1, 1, 5)]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeff" + HEADER + "0.png,0,1,2,3,4\n",
        (HEADER + "0.png,0,1,2,3,4\n").replace("\n", "\r\n"),
        HEADER + "\n0.png,0,1.0,2,3,4\n\n",
        HEADER + '"0.png",0,1,2,3,4',
    ],
    ids=["byte order mark", "CRLF", "blank lines", "quotes, no line end"],
)
def test_what_spreadsheets_write_is_read(tmp_path, text):
    labels = BananaDetection(write_set(tmp_path, text)).labels
    assert torch.equal(labels, torch.tensor([[[0, 1 / 48, 2 / 32, 3 / 48, 4 / 32]]]))


def test_images_of_other_modes_become_rgb(tmp_path):
    folder = write_set(tmp_path, HEADER + "0.png,0,1,2,3,4\n1.png,0,1,2,3,4\n")
    images = folder / "bananas_train" / "images"
    Image.fromarray(pixels(0)[..., 0]).save(images / "0.png")
    Image.fromarray(pixels(1)).convert("RGBA").save(images / "1.png")
    dataset = BananaDetection(folder)
    grey = torch.from_numpy(pixels(0)[..., 0])
    assert torch.equal(dataset.images[0], grey.expand(3, -1, -1))
    assert torch.equal(dataset.images[1], torch.from_numpy(pixels(1)).permute(2, 0, 1))


GOOD = "0.png,0,1,2,30,20\n"
MALFORMED = {
    "empty file": ("", 1, "must be 'img_name,label,xmin,ymin,xmax,ymax', got an empty file"),
    "wrong header": ("name,label,x,y,w,h\n" + GOOD, 1, "must be 'img_name.*, got 'name,label"),
    "no header": (GOOD, 1, "got '0.png,0,1,2,30,20'"),
    "no rows": (HEADER, 2, "must be an image's row, got the end"),
    "too few columns": (HEADER + GOOD + "1.png,0,1,2,30\n", 3, "must have 6 columns, got 5"),
    "too many columns": (HEADER + "0.png,0,1,2,30,20,9\n", 2, "must have 6 columns, got 7"),
    "words": (HEADER + GOOD + "1.png,0,1,two,30,20\n", 3, "ymin must be a number, got 'two'"),
    "nothing": (HEADER + "0.png,0,,2,30,20\n", 2, "xmin must be a number, got ''"),
    "NaN": (HEADER + "0.png,0,1,2,nan,20\n", 2, "xmax must be a number, got 'nan'"),
    "infinity": (HEADER + "0.png,0,1,2,30,inf\n", 2, "ymax must be a number, got 'inf'"),
    "label of words": (HEADER + "0.png,banana,1,2,3,4\n", 2, "label must be a number"),
    "negative label": (HEADER + "0.png,-1,1,2,30,20\n", 2, "label must be a class.*got '-1'"),
    "broken label": (HEADER + "0.png,0.5,1,2,30,20\n", 2, "label must be a class.*got '0.5'"),
    "huge label": (HEADER + "0.png,1e9,1,2,30,20\n", 2, "label must be a class.*got '1e9'"),
    "missing image": (HEADER + GOOD + "9.png,0,1,2,30,20\n", 3, "9.png must be .*no such file"),
    "no image name": (HEADER + ",0,1,2,30,20\n", 2, "img_name must be a file name, got ''"),
    "the folder": (HEADER + ".,0,1,2,30,20\n", 2, "img_name must be a file name, got '.'"),
    "outside": (HEADER + "../images/0.png,0,1,2,30,20\n", 2, "img_name must be a file name"),
    "absolute": (HEADER + "/etc/0.png,0,1,2,30,20\n", 2, "img_name must be a file name"),
    "backslashes": (HEADER + "..\\0.png,0,1,2,30,20\n", 2, "img_name must be a file name"),
    "left of the image": (HEADER + "0.png,0,-1,2,30,20\n", 2, "48 x 32 .*got -1, 2, 30, 20"),
    "above the image": (HEADER + "0.png,0,1,-2,30,20\n", 2, "the box must lie in"),
    "right of the image": (HEADER + GOOD + "1.png,0,1,2,49,20\n", 3, "the box must lie in"),
    "below the image": (HEADER + "0.png,0,1,2,30,33\n", 2, "the box must lie in"),
    "no width": (HEADER + "0.png,0,30,2,30,20\n", 2, "xmin < xmax"),
    "turned over": (HEADER + "0.png,0,1,20,30,2\n", 2, "ymin < ymax"),
    "line of its own": (HEADER + GOOD + "\n\n1.png,0,1,2\n", 5, "must have 6 columns, got 4"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_row_is_told_with_its_file_and_line(tmp_path, name):
    text, line, message = MALFORMED[name]
    folder = write_set(tmp_path, text)
    path = folder / "bananas_train" / "label.csv"
    with pytest.raises(DataError, match=message) as error:
        BananaDetection(folder)
    assert str(error.value).startswith(f"data: {path}, line {line}: ")
    assert "\n" not in str(error.value)


def test_missing_folders_and_files(tmp_path):
    with pytest.raises(DataError, match=r"bananas_train.label\.csv must be a readable file"):
        BananaDetection(tmp_path / "nowhere")
    with pytest.raises(DataError, match="split must be 'train' or 'val', got 'test'"):
        BananaDetection(tmp_path, "test")
    (tmp_path / "bananas_val" / "label.csv").mkdir(parents=True)
    with pytest.raises(DataError, match=r"label\.csv must be a readable file"):
        BananaDetection(tmp_path, "val")


@pytest.mark.parametrize("more, less", [("train", "val"), ("val", "train")])
def test_both_splits_have_the_same_class_names(tmp_path, more, less):
    """Also where one of them lacks the last class."""
    write_set(tmp_path, HEADER + "0.png,0,1,2,30,20\n1.png,2,1,2,30,20\n", split=more)
    write_set(tmp_path, HEADER + "0.png,0,1,2,30,20\n", split=less)
    for split in ("train", "val"):
        assert BananaDetection(tmp_path, split).class_names == ["class 0", "class 1", "class 2"]
        given = open_set(tmp_path, split, class_names=("a", "b", "c")).class_names
        assert given == ["a", "b", "c"]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00label", b'"0.png,0,1'], ids=["bytes", "quote"])
def test_text_that_cannot_be_read(tmp_path, content):
    folder = write_set(tmp_path, "")
    (folder / "bananas_train" / "label.csv").write_bytes(HEADER.encode() + content)
    with pytest.raises(DataError, match=r"label\.csv must be CSV in UTF-8, got"):
        BananaDetection(folder)


def test_images_of_two_sizes(tmp_path):
    folder = write_set(tmp_path, HEADER + "0.png,0,1,2,3,4\n1.png,0,1,2,3,4\n")
    Image.fromarray(pixels(1, 32, 40)).save(folder / "bananas_train" / "images" / "1.png")
    message = r"line 3: 1\.png must be 48 x 32 pixels like 0\.png, got 40 x 32"
    with pytest.raises(DataError, match=message):
        BananaDetection(folder)


def chunk(kind, content):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(width, height, content):
    """A PNG that says it has this size, whatever its compressed content is."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", content), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def bomb(side):
    return png(side, side, zlib.compress(bytes(64)))


# Of the last two, our limit refuses one, and Pillow's own the other as well.
UNREADABLE = {
    "no image": (lambda whole: b"no image", "cannot identify"),
    "cut off": (lambda whole: whole[: len(whole) // 2], ""),
    "bytes changed": (lambda whole: whole[:2000] + bytes(64) + whole[2064:], ""),
    "large": (lambda whole: bomb(8_500), "8500 x 8500 pixels"),
    "huge": (lambda whole: bomb(100_000), "pixels"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_images_that_cannot_be_read(tmp_path, name):
    change, reason = UNREADABLE[name]
    folder = write_set(tmp_path, HEADER + "0.png,0,1,2,3,4\n1.png,0,1,2,3,4\n")
    path = folder / "bananas_train" / "images" / "1.png"
    path.write_bytes(change(path.read_bytes()))
    message = rf"line 3: .*1\.png must be a readable image, got .*{reason}"
    with pytest.raises(DataError, match=message):
        BananaDetection(folder)


def test_without_pillow(tmp_path, monkeypatch):
    folder = write_set(tmp_path, HEADER + GOOD)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install ssd_ops\[train\]"):
        BananaDetection(folder)


# Downloads, from a server on this machine.


@pytest.fixture
def server(monkeypatch):
    """Serves the bytes put into its `files` by path; a pair is (bytes, length to announce)."""
    files = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in files:
                self.send_error(404)
                return
            content = files[self.path]
            content, length = content if isinstance(content, tuple) else (content, len(content))
            self.send_response(200)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        running.files = files
        running.url = f"http://127.0.0.1:{running.server_address[1]}"
        yield running
        running.shutdown()
        thread.join()


def image_bytes(number):
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, "png")
    return file.getvalue()


def members(top="banana-detection/"):
    """The files of a whole set, by their names in the archive."""
    files = {}
    for split in ("bananas_train", "bananas_val"):
        files[f"{top}{split}/label.csv"] = HEADER + "0.png,0,12,8,36,24\n"
        files[f"{top}{split}/images/0.png"] = image_bytes(0)
    return files


def archive(files, links=()):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            kind = stat.S_IFLNK if name in links else stat.S_IFREG
            info.external_attr = (kind | 0o644) << 16
            file.writestr(info, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def sha1(content):
    return hashlib.sha1(content).hexdigest()


@pytest.mark.parametrize("top", ["banana-detection/", ""], ids=["a folder down", "at the top"])
@pytest.mark.parametrize("there", ["missing", "empty"])
def test_a_downloaded_set_can_be_read(tmp_path, server, top, there):
    content = archive({**members(top), f"{top}about.txt": "extra"})
    server.files["/set.zip"] = content
    target = tmp_path / "some" / "where"
    if there == "empty":
        target.mkdir(parents=True)
    got = download_bananas(target, url=f"{server.url}/set.zip", sha1=sha1(content).upper())
    assert got == target
    for split in ("train", "val"):
        dataset = BananaDetection(target, split)
        assert torch.equal(dataset.images[0], torch.from_numpy(pixels(0)).permute(2, 0, 1))
        assert torch.equal(dataset.labels, torch.tensor([[[0, 0.25, 0.25, 0.75, 0.75]]]))
    assert [path.name for path in target.parent.iterdir()] == ["where"]


def test_a_server_may_leave_the_length_out(tmp_path, server):
    content = archive(members())
    server.files["/set.zip"] = (content, None)
    download_bananas(tmp_path / "set", url=f"{server.url}/set.zip", sha1=sha1(content))
    assert len(BananaDetection(tmp_path / "set")) == 1


def encrypted(content):
    """The archive with the flag of encryption on its first member."""
    local, central = content.index(b"PK\x03\x04") + 6, content.index(b"PK\x01\x02") + 8
    content = bytearray(content)
    content[local] |= 1
    content[central] |= 1
    return bytes(content)


def damaged(content):
    at = content.index(b"label.csv") + len("label.csv")
    return content[:at] + b"\xff" * 20 + content[at + 20 :]


REFUSED = {
    "no zip": (b"no zip", "must be a zip archive"),
    "cut off": (archive(members())[:-200], "must be a zip archive"),
    "damaged": (damaged(archive(members())), "must be a zip archive"),
    "encrypted": (encrypted(archive(members())), "must be a zip archive"),
    "another set": (archive({"readme.txt": "x"}), "must hold bananas_train and bananas_val"),
    "half a set": (archive(dict(list(members().items())[:2])), "must hold bananas_train and"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_archive_is_refused_and_leaves_nothing(tmp_path, server, name):
    content, message = REFUSED[name]
    server.files["/set.zip"] = content
    with pytest.raises(DataError, match=message) as error:
        download_bananas(tmp_path / "in" / "set", url=f"{server.url}/set.zip", sha1=sha1(content))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_unpacked_outside_of_the_folder(tmp_path, server):
    odd = {name: "x" for name in ("../evil.txt", "a/../../evil.txt", "/evil.txt", "..\\evil.txt")}
    content = archive({**members(), **odd, "link": "/etc"}, links=["link"])
    server.files["/set.zip"] = content
    target = tmp_path / "in" / "set"
    download_bananas(target, url=f"{server.url}/set.zip", sha1=sha1(content))
    assert sorted(path.name for path in target.iterdir()) == ["bananas_train", "bananas_val"]
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["set"]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_the_checksum_comes_before_the_unpacking(tmp_path, server, monkeypatch):
    server.files["/set.zip"] = archive(members())
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(DataError, match=f"with the SHA-1 {download.BANANAS_SHA1}, got SHA1 hash"):
        download_bananas(tmp_path / "set", url=f"{server.url}/set.zip")
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_breaks_off(tmp_path, server):
    content = archive(members())
    server.files["/set.zip"] = content[:-100], len(content)
    message = f"IncompleteRead.{len(content) - 100} bytes read, 100 more expected"
    with pytest.raises(DataError, match=message):
        download_bananas(tmp_path / "set", url=f"{server.url}/set.zip", sha1=sha1(content))
    assert list(tmp_path.iterdir()) == []


def test_servers_that_fail(tmp_path, server):
    with pytest.raises(DataError, match=r"must be an archive to download .*, got 404"):
        download_bananas(tmp_path / "set", url=f"{server.url}/other.zip")
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match="must be an archive to download"):
        download_bananas(tmp_path / "set", url=f"{url}/set.zip")
    for url in ("file:///etc/hosts", "set.zip", "http://", "http://127.0.0.1:x/"):
        with pytest.raises(DataError, match="must be an archive to download") as error:
            download_bananas(tmp_path / "set", url=url)
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_holds_something_is_left_alone(tmp_path, server):
    (tmp_path / "note.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "note.txt"):
        with pytest.raises(FileExistsError, match="must not exist or be empty"):
            download_bananas(target, url=f"{server.url}/set.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_a_place_that_cannot_be_written(tmp_path, server):
    content = archive(members())
    server.files["/set.zip"] = content
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="must be writable"):
        download_bananas(tmp_path / "file" / "set", url=f"{server.url}/set.zip", sha1=sha1(content))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
