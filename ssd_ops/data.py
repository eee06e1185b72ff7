"""Reads the banana detection format of "Dive into Deep Learning", and downloads the published set.

A set is a folder with ``bananas_train`` and ``bananas_val``; each holds ``label.csv`` with the
columns ``img_name,label,xmin,ymin,xmax,ymax`` (pixels) and the pictures in ``images``.
"""

from __future__ import annotations

import csv
import hashlib
import http.client
import os
import stat
import tempfile
import urllib.request
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

HEADER = ["img_name", "label", "xmin", "ymin", "xmax", "ymax"]
BANANAS_URL = "http://d2l-data.s3-accelerate.amazonaws.com/banana-detection.zip"
BANANAS_SHA1 = "5de26c8fce5ccdea9f91267273464dc968d20d72"
MAX_PIXELS = 64_000_000  # of one picture: more is taken for a decompression bomb
MAX_ARCHIVE = 500_000_000  # bytes to download; the published set has about 24 million
MAX_UNPACKED = 2_000_000_000
MAX_CLASSES = 10_000  # a larger class number is taken for a mistake


class DataError(ValueError):
    """A data set that cannot be read or fetched; the message names file and line, or address."""


class BananaDetection(Dataset):
    """Pictures and boxes of one split, decoded once and kept in memory.

    ``dataset[i]`` is ``(images[i], labels[i])``, views and not copies; ``len(dataset)`` counts
    pictures. A set of 1,000 pictures of 256 x 256 pixels takes 200 MB.

    Args:
        folder: Holds ``bananas_train`` and ``bananas_val``.
        split: ``"train"`` (the default) or ``"val"``.

    Attributes:
        images: ``[N, 3, H, W]`` uint8, in the order in which the file first names them.
        labels: ``[N, G, 5]`` float32 rows (class, x1, y1, x2, y2), corners in fractions of the
            picture, in the file's order; rows of -1 fill up to the largest count of a picture.
        names: The N file names.
        class_names: ``["banana"]``, or numbered names where the file has more classes.

    Raises:
        DataError: a file is missing or malformed, a box leaves its picture, or sizes differ; the
            message names file and line, of which the header is the first.
        ImportError: Pillow is not installed.

    Source: Dive into Deep Learning, section 14.6, where every picture has one row.

    Example:
        >>> import tempfile
        >>> from ssd_ops.bananas import make_bananas
        >>> folder = make_bananas(Path(tempfile.mkdtemp()) / "set", train=2, val=1, size=64)
        >>> image, labels = BananaDetection(folder, "val")[0]
        >>> image.shape, labels.shape
        (torch.Size([3, 64, 64]), torch.Size([1, 5]))
    """

    def __init__(self, folder: str | os.PathLike[str], split: str = "train") -> None:
        if split not in ("train", "val"):
            raise DataError(f"data: split must be 'train' or 'val', got {split!r}")
        root = Path(folder) / f"bananas_{split}"
        path = root / "label.csv"
        rows = _read_rows(path)
        first_lines: dict[str, int] = {}
        for line, row in rows:
            first_lines.setdefault(row[0], line)
        self.names = list(first_lines)
        self.images = _read_images(path, first_lines)
        self.labels = _labels(path, rows, self.names, self.images)
        count = int(self.labels[..., 0].max()) + 1
        self.class_names = ["banana"] if count == 1 else [f"class {i}" for i in range(count)]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def _read_rows(path: Path) -> list[tuple[int, list[str]]]:
    """The rows below the header with their line numbers."""
    try:
        # utf-8-sig: spreadsheets put a byte order mark before the header.
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, None)
            if header != HEADER:
                raise DataError(
                    f"data: {path}, line 1: must be {','.join(HEADER)!r}, got {_text(header)}"
                )
            rows = [(reader.line_num, row) for row in reader if row]
    except OSError as error:
        raise DataError(f"data: {path} must be a readable file, got {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"data: {path} must be CSV in UTF-8, got {error}") from None
    if not rows:
        raise DataError(f"data: {path}, line 2: must be a picture's row, got the end of the file")
    for line, row in rows:
        if len(row) != len(HEADER):
            raise DataError(
                f"data: {path}, line {line}: must have {len(HEADER)} columns, got {len(row)}"
            )
    return rows


def _text(row: list[str] | None) -> str:
    return "an empty file" if row is None else repr(",".join(row)[:80])


def _read_images(path: Path, first_lines: dict[str, int]) -> Tensor:
    """The pictures named in a label file, all of one size."""
    pillow = _pillow()
    # Raised at Pillow's own limit; the second where warnings are errors.
    bombs = (pillow.DecompressionBombError, pillow.DecompressionBombWarning)
    folder = path.parent / "images"

    def read(item: tuple[str, int]) -> np.ndarray:
        name, line = item
        # A name is one part of a path, so nothing outside of the folder can be named.
        if not name or name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise DataError(
                f"data: {path}, line {line}: img_name must be a file name, got {name!r}"
            )
        try:
            return _decode(folder / name)
        except (OSError, ValueError, SyntaxError, *bombs) as error:
            raise DataError(
                f"data: {path}, line {line}: {folder / name} must be a readable picture, "
                f"got {_reason(error)}"
            ) from None

    items = list(first_lines.items())
    # Pillow decodes without the interpreter's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        first = read(items[0])
        height, width = first.shape[:2]
        images = np.empty((len(items), 3, height, width), np.uint8)
        images[0] = first.transpose(2, 0, 1)
        for index, image in enumerate(pool.map(read, items[1:]), start=1):
            if image.shape != first.shape:
                name, line = items[index]
                raise DataError(
                    f"data: {path}, line {line}: {name} must be {width} x {height} pixels "
                    f"like {items[0][0]}, got {image.shape[1]} x {image.shape[0]}"
                )
            images[index] = image.transpose(2, 0, 1)
    return torch.from_numpy(images)


def _decode(path: Path) -> np.ndarray:
    """``[H, W, 3]`` uint8 of a picture file."""
    with _pillow().open(path) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width} x {image.height} pixels, more than {MAX_PIXELS}")
        return np.asarray(image.convert("RGB"))


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    return " ".join(str(error).split()) or type(error).__name__


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(
            "data: reading pictures needs Pillow; `pip install ssd_ops[train]`"
        ) from None
    return Image


def _labels(
    path: Path, rows: list[tuple[int, list[str]]], names: list[str], images: Tensor
) -> Tensor:
    height, width = images.shape[2:]
    groups: dict[str, list[list[float]]] = {name: [] for name in names}
    for line, row in rows:
        label, *corners = (
            _number(path, line, name, text) for name, text in zip(HEADER[1:], row[1:], strict=True)
        )
        if not (label.is_integer() and 0 <= label < MAX_CLASSES):
            raise DataError(
                f"data: {path}, line {line}: label must be a class number from 0, got {row[1]!r}"
            )
        x1, y1, x2, y2 = corners
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
            raise DataError(
                f"data: {path}, line {line}: the box must lie in the {width} x {height} pixels of "
                f"{row[0]} with xmin < xmax and ymin < ymax, got {', '.join(row[2:])}"
            )
        groups[row[0]].append([label, x1 / width, y1 / height, x2 / width, y2 / height])
    labels = torch.full((len(names), max(map(len, groups.values())), 5), -1.0)
    for index, name in enumerate(names):
        labels[index, : len(groups[name])] = torch.tensor(groups[name])
    return labels


def _number(path: Path, line: int, column: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not np.isfinite(number):
        raise DataError(f"data: {path}, line {line}: {column} must be a number, got {text!r}")
    return number


def download_bananas(
    folder: str | os.PathLike[str],
    *,
    url: str = BANANAS_URL,
    sha1: str = BANANAS_SHA1,
    timeout: float = 30.0,
) -> Path:
    """Download the published banana set (1,000 and 100 pictures); the folder it lies in comes back.

    The checksum is compared before anything is unpacked. The set appears in its folder whole, or
    not at all: whatever fails, nothing is left behind.

    Args:
        folder: Where ``bananas_train`` and ``bananas_val`` go. It must not exist, or be empty.
        url: A zip archive with both, or with one folder that holds both; http or https. The default
            is the archive published with the book, which the checksum vouches for.
        sha1: What the archive must hash to, 40 hexadecimal digits; the default is the book's.
        timeout: Seconds to wait for the server, at each step.

    Raises:
        DataError: the server does not answer, or the archive is another one, is too large, has a
            member that leaves the folder, or lacks the set; or the folder cannot be written.
        FileExistsError: the folder is there, and is not empty.

    Source: Dive into Deep Learning, section 14.6.1.

    Example:
        >>> download_bananas("bananas")  # doctest: +SKIP
        PosixPath('bananas')
    """
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FileExistsError(f"download_bananas: folder must not exist or be empty, got {folder}")
    # Beside the folder or above it, so that the last step is a rename within one file system.
    above = next(parent for parent in folder.absolute().parents if parent.is_dir())
    try:
        with tempfile.TemporaryDirectory(prefix=".bananas-", dir=above) as aside:
            archive, unpacked = Path(aside) / "archive.zip", Path(aside) / "unpacked"
            _fetch(url, archive, sha1.lower(), timeout)
            _unpack(archive, unpacked, url)
            found = _find_set(unpacked, url)
            folder.mkdir(parents=True, exist_ok=True)
            folder.rmdir()
            os.replace(found, folder)
    except OSError as error:
        raise DataError(f"download_bananas: {folder} must be writable, got {error}") from None
    return folder


def _fetch(url: str, target: Path, sha1: str, timeout: float) -> None:
    if not url.startswith(("http://", "https://")):
        raise DataError(f"download_bananas: url must start with http:// or https://, got {url!r}")
    # A fresh opener reads the proxy settings as they are now; urlopen keeps the first it saw.
    opener = urllib.request.build_opener()
    digest, size = hashlib.sha1(usedforsecurity=False), 0
    try:
        with opener.open(url, timeout=timeout) as response, open(target, "wb") as file:
            expected = response.headers.get("Content-Length")
            while block := response.read(1 << 20):
                size += len(block)
                if size > MAX_ARCHIVE:
                    raise DataError(
                        f"download_bananas: {url} must be at most {MAX_ARCHIVE} bytes, got more"
                    )
                digest.update(block)
                file.write(block)
    except DataError:
        raise
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(
            f"download_bananas: {url} must be there to download, got {_reason(error)}"
        ) from None
    if expected is not None and expected != str(size):
        raise DataError(f"download_bananas: {url} must send {expected} bytes, got {size}")
    if digest.hexdigest() != sha1:
        raise DataError(
            f"download_bananas: {url} must have the SHA-1 {sha1}, got {digest.hexdigest()}"
        )


def _find_set(folder: Path, url: str) -> Path:
    splits = ("bananas_train", "bananas_val")
    for place in (folder, *sorted(path for path in folder.iterdir() if path.is_dir())):
        if all((place / split / "label.csv").is_file() for split in splits):
            return place
    raise DataError(f"download_bananas: {url} must hold {' and '.join(splits)}, got neither")


def _unpack(archive: Path, target: Path, url: str) -> None:
    """Unpack plain files and folders that stay inside `target`; all else is refused beforehand."""
    try:
        with zipfile.ZipFile(archive) as file:
            members = file.infolist()
            for member in members:
                parts = Path(member.filename.replace("\\", "/")).parts
                mode = member.external_attr >> 16
                leaves = not parts or parts[0].startswith("/") or ".." in parts or ":" in parts[0]
                special = stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR)
                if leaves or special:
                    name = member.filename
                    raise DataError(
                        f"download_bananas: {url} must hold files inside its folder, got {name!r}"
                    )
            if sum(member.file_size for member in members) > MAX_UNPACKED:
                raise DataError(
                    f"download_bananas: {url} must unpack to at most {MAX_UNPACKED} bytes, got more"
                )
            target.mkdir()
            file.extractall(target)
    except (
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        EOFError,
    ) as error:
        raise DataError(
            f"download_bananas: {url} must be a zip archive, got {_reason(error)}"
        ) from None
