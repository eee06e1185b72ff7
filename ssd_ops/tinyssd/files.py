"""Files that are whole at any moment."""

from __future__ import annotations

import os
from pathlib import Path


def replace_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file beside `path` and rename it, so that `path` is whole at any moment.

    Args:
        path: the file; one that is there is replaced.
        data: all of its content.

    Raises:
        OSError: it cannot be written; a file that was there before is still there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "words.txt"
        >>> replace_file(path, b"all of it")
        >>> path.read_bytes()
        b'all of it'
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}-{os.getpid()}.part")
    try:
        with open(aside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
