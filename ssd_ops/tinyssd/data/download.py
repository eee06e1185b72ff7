"""Downloads the published banana set: checked before it is unpacked, whole or not at all."""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from pathlib import Path, PureWindowsPath
from typing import Any

from ssd_ops.tinyssd.data.images import DataError, reason
from ssd_ops.tinyssd.files import new_folder

BANANAS_URL = "http://d2l-data.s3-accelerate.amazonaws.com/banana-detection.zip"
BANANAS_SHA1 = "5de26c8fce5ccdea9f91267273464dc968d20d72"
SPLITS = ("bananas_train", "bananas_val")
MAX_ARCHIVE = 500_000_000  # bytes to download; the published set has about 24 million
MAX_UNPACKED = 2_000_000_000


def download_bananas(
    folder: str | os.PathLike[str],
    *,
    url: str = BANANAS_URL,
    sha1: str = BANANAS_SHA1,
    timeout: float = 30.0,
) -> Path:
    """Download the published banana set (1,000 and 100 images); the folder it lies in comes back.

    The checksum is compared before anything is unpacked. Whatever fails, nothing is left behind.

    Args:
        folder: where ``bananas_train`` and ``bananas_val`` go. It must not exist, or be empty.
        url: a zip archive with both, or with one folder that holds both; http or https. The default
            is the archive published with the book.
        sha1: what the archive must hash to, 40 hexadecimal digits; the default is the book's.
        timeout: seconds to wait for the server, at each step.

    Raises:
        DataError: the server does not answer, or the archive is another one, is too large, has a
            member that leaves the folder, or lacks the set; or the folder cannot be written.
        FileExistsError: the folder is there, and is not empty.
        ImportError: pooch is not installed.

    Source: Dive into Deep Learning, section 14.6.1.

    Example:
        >>> download_bananas("bananas")  # doctest: +SKIP
        PosixPath('bananas')
    """
    try:
        with new_folder(folder) as target:
            archive, unpacked = target.with_name("archive.zip"), target.with_name("unpacked")
            _fetch(url, archive, sha1.lower(), timeout)
            _unpack(archive, unpacked, url)
            places = [unpacked, *sorted(path for path in unpacked.iterdir() if path.is_dir())]
            whole = [p for p in places if all((p / s / "label.csv").is_file() for s in SPLITS)]
            if not whole:
                raise DataError(f"download_bananas: {url} must hold {' and '.join(SPLITS)}")
            for split in SPLITS:
                (whole[0] / split).rename(target / split)
    except FileExistsError:
        raise
    except OSError as error:
        raise DataError(f"download_bananas: {folder} must be writable, got {error}") from None
    return Path(folder)


class _Limited(io.FileIO):
    """A file that does not grow beyond `MAX_ARCHIVE` bytes."""

    def write(self, data: Any) -> int:
        if self.tell() + len(data) > MAX_ARCHIVE:
            raise ValueError(f"more than {MAX_ARCHIVE} bytes")
        return super().write(data)


def _fetch(url: str, archive: Path, sha1: str, timeout: float) -> None:
    """Download an archive, and compare its checksum."""
    try:
        import pooch
    except ImportError:
        raise ImportError("download_bananas: pooch is needed: pip install ssd_ops[train]") from None

    def download(url: str, path: str, _: object) -> None:
        with _Limited(path, "wb") as file:
            pooch.HTTPDownloader(timeout=timeout, chunk_size=1 << 20)(url, file, None)

    try:
        pooch.retrieve(url, f"sha1:{sha1}", archive.name, archive.parent, downloader=download)
    except (OSError, ValueError) as error:
        wanted = f"{url} must be an archive to download with the SHA-1 {sha1}"
        raise DataError(f"download_bananas: {wanted}, got {reason(error)}") from None


def _unpack(archive: Path, folder: Path, url: str) -> None:
    """Unpack plain files and folders that stay inside `folder`; all else is refused beforehand."""
    wanted = f"download_bananas: {url} must"
    try:
        with zipfile.ZipFile(archive) as file:
            for member in file.infolist():
                # The rules of Windows know the drives and both kinds of slashes.
                path = PureWindowsPath(member.filename)
                plain = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG, stat.S_IFDIR)
                if path.anchor or ".." in path.parts or not plain:
                    name = member.filename
                    raise DataError(f"{wanted} hold files inside its folder, got {name!r}")
            if sum(member.file_size for member in file.infolist()) > MAX_UNPACKED:
                raise DataError(f"{wanted} unpack to at most {MAX_UNPACKED} bytes, got more")
            file.extractall(folder)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
        # RuntimeError: it is encrypted, or (NotImplementedError) packed in an unknown way.
        raise DataError(f"{wanted} be a zip archive, got {reason(error)}") from None
