"""Downloads the published banana set: checked before it is unpacked, whole or not at all."""

from __future__ import annotations

import hashlib
import http.client
import os
import stat
import tempfile
import urllib.request
import zipfile
import zlib
from pathlib import Path

from ssd_ops.tinyssd.data.images import DataError, reason

BANANAS_URL = "http://d2l-data.s3-accelerate.amazonaws.com/banana-detection.zip"
BANANAS_SHA1 = "5de26c8fce5ccdea9f91267273464dc968d20d72"
MAX_ARCHIVE = 500_000_000  # bytes to download; the published set has about 24 million
MAX_UNPACKED = 2_000_000_000


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
            f"download_bananas: {url} must be there to download, got {reason(error)}"
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
            f"download_bananas: {url} must be a zip archive, got {reason(error)}"
        ) from None
