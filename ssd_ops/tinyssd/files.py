"""Writes files and folders so that what stands under a name is always whole, even after a kill."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def replace_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file beside `path` and rename it, so that `path` holds the old bytes or the new.

    Raises:
        OSError: it cannot be written; `path` is as it was, and nothing else is left.
    """
    path = Path(path)
    aside = path.with_name(path.name + ".part")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def new_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder to fill, which becomes `path` at the end of the block, if all went well.

    What is put beside it is removed in any case. Folders above `path` are made at the end.

    Raises:
        FileExistsError: `path` is there, and is not an empty folder.
        OSError: it cannot be written.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"data: folder must not exist or be empty, got {path}")
    # Beside the folder or above it, so that the last step is a rename within one file system.
    above = next(parent for parent in path.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=above) as temporary:
        aside = Path(temporary) / "folder"
        aside.mkdir()
        yield aside
        path.mkdir(parents=True, exist_ok=True)
        path.rmdir()
        os.replace(aside, path)
