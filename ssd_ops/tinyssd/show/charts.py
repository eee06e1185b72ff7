"""Curves of the measures, and the two figures of the chapter's exercises."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ssd_ops.tinyssd.loss import focal_loss, smooth_l1
from ssd_ops.tinyssd.measure.metrics import Curve
from ssd_ops.tinyssd.show.plot import new_figure, write


def draw_precision_recall(
    curves: Sequence[Curve], class_names: Sequence[str], path: str | os.PathLike[str]
) -> Path:
    """Write the precision-recall curves of each class; the file's path comes back.

    Classes without a true box are left out; the legend, of 24 classes at most, holds the average
    precision of the others.

    Args:
        curves: of `ssd_ops.tinyssd.measure.metrics.precision_recall`, one for each class.
        class_names: as many names.
        path: the file to write, whose ending names the format (``.png``, ``.svg``, ...).

    Raises:
        ValueError: as many curves as names are wanted; an unknown format.
        FileNotFoundError: the folder of `path` does not exist.
        ImportError: matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> curve = Curve(np.array([1.0, 0.5, 0.67]), np.array([0.5, 0.5, 1.0]), truths=2)
        >>> path = draw_precision_recall([curve], ["cup"], Path(tempfile.mkdtemp()) / "curve.png")
    """
    figure = new_figure(6, 5)
    axes = figure.subplots()
    for curve, name in zip(curves, class_names, strict=True):
        ap = curve.ap()
        if ap is not None:
            # From recall 0 on, at the first detection's precision.
            start = curve.precision[:1]
            axes.plot(
                [0.0, *curve.recall], [*start, *curve.precision] if len(start) else [0.0],
                label=f"{name}  AP {ap:.3f}", linewidth=1.5,
            )  # fmt: skip
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title("Precision and recall at IoU 0.5")
    # More names than fit would hide the curves; the table of measures has them.
    if 0 < len(axes.lines) <= 24:
        axes.legend(frameon=False, fontsize="small", ncols=1 + len(axes.lines) // 13)
    return write(path, _tidy(axes, figure).savefig)


def draw_smooth_l1(path: str | os.PathLike[str]) -> Path:
    """Write the chapter's figure of smooth L1, for sigma 10, 1 and 0.5; the file's path comes back.

    Args:
        path: as for `draw_precision_recall`.

    Source: Dive into Deep Learning, section 14.7, exercise 2.

    Example:
        >>> import tempfile
        >>> path = draw_smooth_l1(Path(tempfile.mkdtemp()) / "smooth_l1.png")
    """
    figure = new_figure(5, 3.5)
    axes = figure.subplots()
    x = torch.linspace(-2, 2, 401)
    for sigma, style in ((10.0, "-"), (1.0, "--"), (0.5, "-.")):
        axes.plot(x, smooth_l1(x, sigma), style, label=f"sigma {sigma:g}")
    axes.set(xlabel="error", ylabel="loss", title="Smooth L1", ylim=(0, None))
    axes.legend(frameon=False)
    return write(path, _tidy(axes, figure).savefig)


def draw_focal(path: str | os.PathLike[str]) -> Path:
    """Write the chapter's figure of the focal loss, for gamma 0, 1 and 5; the file's path comes back.

    Args:
        path: as for `draw_precision_recall`.

    Source: Dive into Deep Learning, section 14.7, exercise 2.

    Example:
        >>> import tempfile
        >>> path = draw_focal(Path(tempfile.mkdtemp()) / "focal.png")
    """
    figure = new_figure(5, 3.5)
    axes = figure.subplots()
    p = torch.linspace(0.01, 0.99, 197)
    # Of two classes, the second has the probability p.
    preds = torch.stack((torch.zeros_like(p), (p / (1 - p)).log()), dim=1)[None]
    labels = torch.ones(1, len(p), dtype=torch.int64)
    for gamma, style in ((0.0, "-"), (1.0, "--"), (5.0, "-.")):
        axes.plot(p, focal_loss(preds, labels, gamma)[0], style, label=f"gamma {gamma:g}")
    axes.set(
        xlabel="probability of the true class", ylabel="loss", title="Focal loss", xlim=(0, 1),
        ylim=(0, None),
    )  # fmt: skip
    axes.legend(frameon=False)
    return write(path, _tidy(axes, figure).savefig)


def _tidy(axes: Any, figure: Any) -> Any:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
