"""Downloads the published banana set: checked before it is unpacked, whole or not at all."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

from ssd_ops.tinyssd.data.images import DataError, reason
from ssd_ops.tinyssd.files import new_folder

BANANAS_URL = "http://d2l-data.s3-accelerate.amazonaws.com/banana-detection.zip"
BANANAS_SHA1 = "5de26c8fce5ccdea9f91267273464dc968d20d72"
TIMEOUT = 30.0  # seconds to wait for the server, at each step
SPLITS = ("bananas_train", "bananas_val")


def download_bananas(
    folder: str | os.PathLike[str],
    *,
    url: str = BANANAS_URL,
    sha1: str = BANANAS_SHA1,
) -> Path:
    """Download the published banana set (1,000 and 100 images); the folder it lies in comes back.

    Args:
        folder: where ``bananas_train`` and ``bananas_val`` go. It must not exist, or be empty.
        url: a zip archive with both, or with one folder that holds both; http or https.
        sha1: the checksum of the archive, 40 hexadecimal digits.

    Raises:
        DataError: the server does not answer, the archive is not the expected one, or the folder
            cannot be written. Nothing is left behind.
        FileExistsError: the folder is there, and is not empty.
        ImportError: pooch is not installed.

    Source: Dive into Deep Learning, section 14.6.1.
    """
    try:
        import pooch
    except ImportError:
        raise ImportError("download_bananas: pooch is needed: pip install ssd_ops[train]") from None
    wanted = f"download_bananas: {url} must"
    download = pooch.HTTPDownloader(timeout=TIMEOUT, chunk_size=1 << 20)
    try:
        with new_folder(folder) as target:
            archive, unpacked = target.with_name("archive.zip"), target.with_name("unpacked")
            try:
                known = f"sha1:{sha1.lower()}"
                pooch.retrieve(url, known, archive.name, archive.parent, downloader=download)
            except (OSError, ValueError) as error:
                what = f"be an archive to download with the SHA-1 {sha1}"
                raise DataError(f"{wanted} {what}, got {reason(error)}") from None
            # It is the archive that was asked for; and zipfile writes nothing outside the folder.
            with zipfile.ZipFile(archive) as file:
                file.extractall(unpacked)
            places = [unpacked, *(path for path in unpacked.iterdir() if path.is_dir())]
            whole = [p for p in places if all((p / s / "label.csv").is_file() for s in SPLITS)]
            if not whole:
                raise DataError(f"{wanted} hold {' and '.join(SPLITS)}")
            for split in SPLITS:
                (whole[0] / split).rename(target / split)
    except FileExistsError:
        raise
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:
        # RuntimeError: it is encrypted, or (NotImplementedError) packed in an unknown way.
        raise DataError(f"{wanted} be a zip archive, got {reason(error)}") from None
    except OSError as error:
        raise DataError(f"download_bananas: {folder} must be writable, got {error}") from None
    return Path(folder)
