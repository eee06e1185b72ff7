"""Progress bars."""

from __future__ import annotations

from typing import Any


def progress_bar(total: int, title: str, wanted: bool) -> Any:
    """A bar of tqdm over `total` images, which shows nothing where none is wanted."""
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("train: tqdm is needed: pip install ssd_ops[train]") from None
    bar = "{l_bar}{bar:20}|{postfix}"
    return tqdm(total=total, desc=title, unit="image", bar_format=bar, disable=not wanted)
