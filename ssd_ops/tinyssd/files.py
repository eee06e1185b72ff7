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
        try:
            with open(aside, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise _not_written(error, path) from None


def _not_written(error: OSError, path: Path) -> OSError:
    """The same error, which names what was to be written and says what is there now."""
    if error.errno is None:  # not the system's
        return error
    left = "what was there before is whole" if path.exists() else "nothing of it is left"
    return OSError(error.errno, f"{error.strerror}; it cannot be written, and {left}", str(path))


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
    try:
        made = tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=above)
    except OSError as error:
        raise _not_written(error, path) from None
    with made as temporary:
        aside = Path(temporary) / "folder"
        aside.mkdir()
        try:
            yield aside
        except OSError as error:
            if error.errno is None or error.filename is not None:
                raise
            raise _not_written(error, path) from None  # as of a write, which knows no name
        path.mkdir(parents=True, exist_ok=True)
        path.rmdir()
        os.replace(aside, path)
