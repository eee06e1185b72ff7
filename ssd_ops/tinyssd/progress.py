"""Progress bars."""

from __future__ import annotations

from typing import Any

from ssd_ops.tinyssd.checks import extra


def progress_bar(total: int, title: str, wanted: bool) -> Any:
    """A bar of tqdm over `total` images, which shows nothing where none is wanted."""
    bar = "{l_bar}{bar:20}|{postfix}"
    return extra("tqdm").tqdm(
        total=total, desc=title, unit="image", bar_format=bar, disable=not wanted
    )
