"""The progress bar of the trainer."""

from __future__ import annotations

from typing import Any


class _NoBar:
    """What stands in for a progress bar where none is wanted."""

    def update(self, _: int) -> None: ...

    def set_postfix_str(self, _: str) -> None: ...

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None: ...


def progress_bar(total: int, title: str, wanted: bool) -> Any:
    """A bar of tqdm, or what does nothing in its place.

    Args:
        total: images to come.
        title: what stands before the bar.
        wanted: whether it is to be seen.

    Raises:
        ImportError: it is wanted, and tqdm is not installed.
    """
    if not wanted:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            "train: the progress bar needs tqdm: pip install ssd_ops[train]"
        ) from error
    return tqdm(total=total, desc=title, unit="image", bar_format="{l_bar}{bar:20}|{postfix}")
