"""The pages of docs: their code runs, the table of semantics is true, and its figure can be drawn."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest
import torch

import ssd_ops

DOCS = Path(__file__).resolve().parent.parent / "docs"


# What a page gives as a command, in a block or between backticks, up to a comment.
COMMANDS = [
    (page.name, found[1].strip())
    for page in (DOCS.parent / "README.md", *sorted(DOCS.glob("*.md")))
    for found in re.finditer(r"(?:\bssd-ops|-m ssd_ops) ([\w-][^`#&|;)\n]*)", page.read_text())
]


def test_commands_are_found():
    assert {"train", "evaluate", "detect"} <= {command.split()[0] for _, command in COMMANDS}
    assert len(COMMANDS) > 12


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_parses(page, command, tmp_path, monkeypatch):
    pytest.importorskip("tyro", reason="the command line is made by tyro")
    from ssd_ops.tinyssd import cli

    monkeypatch.chdir(tmp_path)
    Path("own.toml").write_text("epochs = 3\n")
    name, *words = shlex.split(command)
    assert name in cli.COMMANDS or name == "--version"
    # A name alone is spoken of, and not called.
    if words:
        cli.parse(name, words)


def why_not(package: str) -> str:
    """Why a block that needs a package cannot run, or an empty string."""
    try:
        importlib.import_module(
            "torchvision.models.detection" if package == "torchvision" else package
        )
    except Exception as error:  # RuntimeError too, where a library does not fit
        return f"{package} does not import ({str(error).splitlines()[0]})"
    return ""


def blocks(page: str) -> list[tuple[str, str]]:
    text = (DOCS / page).read_text()
    return re.findall(r"```python\n(?:# needs (\w+)\n)?(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("package", ["", "torchvision", "onnxscript"])
def test_the_code_of_detectors_runs(package):
    """In order, because blocks use names of earlier ones. A block of another package has its own test."""
    if package and why_not(package):
        pytest.skip(why_not(package))
    names: dict[str, object] = {}
    needed = [code for needs, code in blocks("detectors.md") if needs in ("", package)]
    assert len(needed) > 2
    for code in needed:
        exec(compile(code, "detectors.md", "exec"), names)
    assert names["found"].counts.gt(0).all()
    assert names["loss"].isfinite()


def table() -> dict[str, list[str]]:
    rows = re.findall(r"^\| (.+) \|$", (DOCS / "semantics.md").read_text(), flags=re.MULTILINE)
    cells = [[cell.strip() for cell in row.split(" | ")] for row in rows]
    return {row[0]: row[1:] for row in cells}


def target(anchors, labels, **options):
    """The targets by each semantics: {name: (offsets, class labels)}."""
    found = {}
    for name in ("d2l", "mxnet", "torchvision"):
        offsets, _, classes = ssd_ops.multibox_target(
            torch.tensor(anchors), torch.tensor([labels]), semantics=name, **options
        )
        found[name] = offsets[0], classes[0].tolist()
    return found


def row(question: str, answers: dict[str, str]) -> None:
    assert table()[question] == [answers[name] for name in ("d2l", "mxnet", "torchvision")]


HALF, WHOLE = [0.0, 0.0, 0.5, 1.0], [0.0, 0.0, 1.0, 1.0]


def test_table_threshold():
    found = target([WHOLE, HALF], [[3.0, *WHOLE]])
    words = {0: "no", 4: "yes"}
    row(
        "an IoU equal to the threshold is a match",
        {name: words[classes[1]] for name, (_, classes) in found.items()},
    )


# Anchor 0 is the best of both gts. Its IoU with the first gt is higher.
BETWEEN = [[0.05, 0.3, 0.35, 0.7], [0.33, 0.3, 0.63, 0.7], [0.68, 0.3, 0.98, 0.7]]
GTS = [[0.0, 0.07, 0.26, 0.37, 0.72], [1.0, 0.19, 0.24, 0.48, 0.74]]


def test_table_two_gts():
    iou = ssd_ops.box_iou(torch.tensor(BETWEEN), torch.tensor(GTS)[:, 1:])
    assert iou[0, 0] > iou[0, 1] > iou[1, 1] > iou[1, 0] and iou[2].eq(0).all()
    words = {
        (1, 2, 0): "the gt with the higher IoU gets it, the other gets its next best",
        (2, 0, 0): "the later gt gets it",
    }
    answers = {
        name: words[tuple(classes)]
        for name, (_, classes) in target(BETWEEN, GTS, iou_threshold=0.9).items()
    }
    if answers["mxnet"] == answers["d2l"]:
        answers["mxnet"] = "the same"
    row("two gts have the same best anchor", answers)


def test_table_no_overlap():
    labels = [[0.0, *WHOLE], [1.0, 2.0, 2.0, 3.0, 3.0]]
    found = target([WHOLE, HALF], labels, iou_threshold=0.9)
    words = {
        (1, 2): "gets the first free anchor",
        (1, 0): "gets no anchor",
        (2, 0): "gets the first anchor",
    }
    row(
        "a gt that overlaps no anchor",
        {name: words[tuple(classes)] for name, (_, classes) in found.items()},
    )


def test_table_no_gts_and_offsets():
    words = {0: "is background", -1: "is ignored"}
    found = target([WHOLE], [[-1.0] * 5])
    row(
        "an image without gts",
        {name: words[classes[0]] for name, (_, classes) in found.items()},
    )
    found = target([WHOLE], [[0.0, *WHOLE]])
    row(
        "size offsets of a gt with the size of its anchor",
        {name: f"{offsets[2]:.0e}".replace("0e+00", "0").replace("e-0", "e-")
         for name, (offsets, _) in found.items()},
    )  # fmt: skip


def test_table_detection():
    """Boxes of IoU 1/2, of one class and of two; one anchor of two classes."""

    def found(scores: list[list[float]], threshold: float) -> dict[str, int]:
        """Detections by each rule; scores [C][A] without background."""
        anchors, probs = torch.tensor([WHOLE, HALF]), torch.tensor([[[0.0, 0.0], *scores]])
        rows = {
            name: ssd_ops.multibox_detection(
                probs, torch.zeros(1, 8), anchors, threshold, semantics=name
            )
            for name in ("d2l", "mxnet")
        }
        counts = {name: int((r[0, :, 0] >= 0).sum()) for name, r in rows.items()}
        detected = ssd_ops.detect(
            probs[:, 1:].mT, torch.zeros(1, 8), anchors, activation="none", iou_threshold=threshold
        )
        return {**counts, "torchvision": int(detected.counts[0])}

    words = {2: "no", 1: "yes"}
    one_class = found([[0.9, 0.8]], 0.5)
    row(
        "NMS drops a box if its IoU equals the threshold",
        {name: words[count] for name, count in one_class.items()},
    )
    words = {2: "keeps", 1: "drops"}
    two_classes = found([[0.9, 0.0], [0.0, 0.8]], 0.3)
    row(
        "NMS of overlapping boxes of different classes",
        {name: words[count] for name, count in two_classes.items()},
    )
    # With d2l every anchor has a row; the second one has score 0 and is background.
    words = {1: "the best one", 2: "all above the threshold"}
    two_of_one = found([[0.9, 0.0], [0.8, 0.0]], 0.5)
    row(
        "classes that one anchor can be detected as",
        {name: words[count] for name, count in two_of_one.items()},
    )


def draw(path: Path) -> None:
    """The case of `test_table_two_gts`, once for each semantics."""
    plt = pytest.importorskip("matplotlib.pyplot", reason="matplotlib is not installed")
    from matplotlib.patches import Rectangle

    def rectangle(box, **style):
        x1, y1, x2, y2 = box
        return Rectangle((x1, y1), x2 - x1, y2 - y1, **style)

    colors, names = ("tab:orange", "tab:blue"), ("first gt", "second gt")
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
    found = target(BETWEEN, GTS, iou_threshold=0.9)
    for axis, (name, (_, classes)) in zip(axes, found.items(), strict=True):
        for anchor, got in zip(BETWEEN, classes, strict=True):
            fill = colors[got - 1] if got else "lightgray"
            axis.add_patch(rectangle(anchor, facecolor=fill, alpha=0.35))
            axis.add_patch(rectangle(anchor, facecolor="none", edgecolor="black", linewidth=1))
            text = names[got - 1].replace(" ", "\n") if got else "background"
            axis.text((anchor[0] + anchor[2]) / 2, 0.79, text, ha="center", va="center", fontsize=8)
        for (_, *box), color in zip(GTS, colors, strict=True):
            axis.add_patch(
                rectangle(box, facecolor="none", edgecolor=color, linewidth=2, linestyle="--")
            )
        axis.set(title=name, xlim=(0, 1.03), ylim=(0.9, 0.18), xticks=[], yticks=[])
    figure.savefig(path, dpi=110)
    plt.close(figure)


def test_the_figure_of_semantics_is_drawn(tmp_path):
    """`python tests/test_docs.py` writes the figure that the page shows."""
    draw(tmp_path / "semantics.png")
    assert (tmp_path / "semantics.png").stat().st_size > 5000
    assert (DOCS / "semantics.png").exists()


if __name__ == "__main__":
    draw(DOCS / "semantics.png")
