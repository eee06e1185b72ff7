"""The command line, `python -m ssd_ops` or `ssd-ops`. The only file that parses, prints or exits.

Each command is a function: tyro makes its arguments without a default positional, the others options,
and its docstring the help. tyro comes with the extra `train`; `info` works without.
"""

from __future__ import annotations

import functools
import io
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch

from ssd_ops import __version__, _ext, ops
from ssd_ops.tinyssd import checkpoint
from ssd_ops.tinyssd import export as exporter
from ssd_ops.tinyssd import train as trainer
from ssd_ops.tinyssd.data import draw_bananas
from ssd_ops.tinyssd.data.bananas import BananaDetection
from ssd_ops.tinyssd.data.download import download_bananas
from ssd_ops.tinyssd.data.images import DataError, pillow, read_image
from ssd_ops.tinyssd.data.sets import open_set
from ssd_ops.tinyssd.distributed import is_first
from ssd_ops.tinyssd.files import replace_file
from ssd_ops.tinyssd.measure import coverage, metrics
from ssd_ops.tinyssd.measure.evaluate import collect, measure
from ssd_ops.tinyssd.predict import SHOW_THRESHOLD, predict
from ssd_ops.tinyssd.settings import DEMO_EPOCHS, PRESETS, Settings, read_settings
from ssd_ops.tinyssd.show import plot

try:
    import tyro
except ImportError:
    tyro = None  # type: ignore[assignment]

INSTALL = "pip install 'ssd_ops[train]'"
MISTAKES = (ValueError, TypeError, OSError, ImportError, FloatingPointError, RuntimeError)
say = functools.partial(print, flush=True)  # in its place among the lines of progress bars


def main(argv: list[str] | None = None) -> None:
    """Run the command of these arguments, or of the process's own where None.

    A mistake of the user's is one sentence on stderr and exit code 2.
    """
    words = sys.argv[1:] if argv is None else argv
    traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    try:
        _run(words)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does. At its end Python writes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (KeyboardInterrupt, *MISTAKES) as error:
        stopped = isinstance(error, KeyboardInterrupt)
        if traceback and not stopped:
            raise
        name = " ".join(["ssd-ops", *(word for word in words[:1] if word in COMMANDS)])
        print(f"{name}: {_sentence(error)}", file=sys.stderr)
        sys.exit(130 if stopped else 2)


def _sentence(error: BaseException) -> str:
    """What an error says, in one line; of a system's error the file and the reason."""
    text = str(error)
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__


def _run(words: Sequence[str]) -> None:
    match words:
        case [] | ["-h" | "--help"]:
            print("usage: ssd-ops [--version | --traceback] COMMAND ...\n")
            for name, command in COMMANDS.items():
                print(f"  {name:10} {str(command.__doc__).splitlines()[0]}")
            print("\n`ssd-ops COMMAND --help` says more. example: ssd-ops demo")
            if not tyro:
                print(f"All commands but info need tyro: {INSTALL}")
        case ["--version"]:
            print(f"ssd-ops {__version__}")
        case ["info"]:
            info()
        case ["info", "--cmake"]:
            info(cmake=True)
        case [name, *rest] if name in COMMANDS:
            parse(name, rest)()
        case [name, *_]:
            raise ValueError(f"the command must be one of {', '.join(COMMANDS)}, got {name!r}")


def parse(name: str, words: Sequence[str]) -> Callable[[], None]:
    """The call of a command that these arguments ask for; ValueError says which one is not valid."""
    if not tyro:
        raise ImportError(f"tyro is needed: {INSTALL}")
    command = COMMANDS[name]

    @functools.wraps(command)
    def later(*args: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(command, *args, **options)

    def named(preset: str | None = None, settings: Path | None = None) -> Any:
        return settings, preset

    markers = (tyro.conf.PositionalRequiredArgs, tyro.conf.PositionalMetavarFromFieldName)
    how: dict[str, Any] = {"args": words, "prog": f"ssd-ops {name}", "config": markers}
    base, said = {}, io.StringIO()
    try:
        with redirect_stderr(said):
            if "options" in command.__annotations__:
                # Their defaults are those of the preset and the file, so these are read first.
                names, _ = tyro.cli(named, add_help=False, return_unknown_args=True, **how)
                base["options"] = read_settings(*names)
            return tyro.cli(functools.partial(later, **base), **how)
    except SystemExit as stop:
        if not stop.code:
            raise
    # tyro draws a box, with or without lines at its sides. The mistake stands between its first two rules.
    box = " ".join(line.strip("│ ") for line in said.getvalue().splitlines())
    text = re.split("[─-]{4,}", box)[1].strip("╮ ")
    raise ValueError(f"{text.rstrip('.')}; `ssd-ops {name} --help` shows all arguments")


def demo(out: Path = Path("demo"), epochs: int = DEMO_EPOCHS, seed: int = 0) -> None:
    """Draw banana images, train on them with the preset `paper`, measure, and draw what is found.

    example: ssd-ops demo --out demo --epochs 20

    Args:
        out: folder for all that it makes.
        epochs: passes over the images; the default takes a few minutes.
        seed: of the images and the training.
    """
    settings = replace(PRESETS["paper"], epochs=epochs, seed=seed)
    folder, run = out / f"bananas-{seed}", out / "run"
    if not (folder / "bananas_val").exists():
        say(f"Drawing 1,100 banana images into {folder} ...")
        draw_bananas.make_bananas(folder, seed=seed, progress=True)
    train_set, val_set = (BananaDetection(folder, split) for split in ("train", "val"))
    say(f"Training TinySSD with the preset `paper`, {epochs} epochs, into {run} ...")
    saved = checkpoint.load(run)[1] if (run / checkpoint.FILE_NAME).exists() else PRESETS["chapter"]
    # Only a run of a demo of another length or seed makes way.
    way = replace(saved, epochs=epochs, seed=seed) == settings
    how = {"resume": saved == settings, "overwrite": way}
    model, history = trainer.train(settings, train_set, val_set, run, **how)

    say(f"Drawing what it finds in 12 of the {len(val_set)} validation images ...")
    found = collect(model, val_set)
    shown = val_set.images[:12], found.predictions[:12], [rows[:, 1:] for rows in found.gts[:12]]
    sheet = plot.draw_grid(*shown, path=out / "detections.png")
    curves = plot.draw_curves(history, out / "curves.png")
    _print_measures(history[-1], prefix="val_")
    print(f"Images: {sheet}, {curves}. Checkpoint: {run}")


def make_data(
    folder: Path, train: int = 1000, val: int = 100, seed: int = 0, download: bool = False
) -> None:
    """Draw a banana detection set, or download the published one.

    example: ssd-ops make-data bananas --seed 1

    Args:
        folder: where the set goes; must not exist, or be empty.
        train: training images.
        val: validation images.
        seed: another seed, other images.
        download: fetch the set of the book instead.
    """
    if download:
        download_bananas(folder)
    else:
        draw_bananas.make_bananas(folder, train=train, val=val, seed=seed, progress=True)
    print(f"Wrote {folder}")


def train(
    data: Path,
    options: Annotated[Settings, tyro.conf.arg(name="")],  # each field by its name alone
    preset: str | None = None,
    settings: Path | None = None,
    val: Path | None = None,
    images: Path | None = None,
    out: Path = Path("run"),
    resume: bool = False,
    overwrite: bool = False,
) -> None:
    """Train TinySSD on a detection set; writes a checkpoint and a line of the log after each epoch.

    Under torchrun, its processes share each batch.

    example: ssd-ops train bananas --out run --preset paper --epochs 10

    Args:
        data: folder of a banana set or of COCO JSON files, or a COCO JSON file.
        preset: chapter (the book's settings, the default), paper or photos.
        settings: TOML file of settings, stronger than the preset. Options are stronger than both.
        val: the validation set, where DATA holds none.
        images: folder of the images of COCO JSON files.
        out: folder for checkpoint, log and curves.
        resume: go on from the checkpoint in `out`.
        overwrite: lose the run that `out` holds.
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite must not be given together")
    if data.is_file() and val is None:
        raise ValueError(f"--val must name the validation set where DATA is a file, got {data}")
    train_set = open_set(data, "train", images=images)
    val_set = open_set(val or data, "val", images=images, class_names=train_set.class_names)
    if is_first():
        _print_dropped("training", train_set)
        _print_dropped("validation", val_set)
    _, history = trainer.train(options, train_set, val_set, out, resume=resume, overwrite=overwrite)
    if is_first():
        _print_measures(history[-1], prefix="val_")
        print(f"Checkpoint and log: {out}. Curves: {plot.draw_curves(history, out / 'curves.png')}")


def _print_dropped(name: str, dataset: Any) -> None:
    counts = getattr(dataset, "dropped", {}).items()
    listed = ", ".join(f"{count} {what}" for what, count in counts if count)
    if listed:
        print(f"Boxes left out of the {name} set: {listed}")


def _print_measures(measures: dict[str, Any], prefix: str = "") -> None:
    """Print those of `measure`, or with the prefix "val_" those of an epoch of the history."""
    found = f"found {measures['found']} of {measures['gts']} ground truths"
    at = f"(IoU >= 0.5, score >= {SHOW_THRESHOLD})"
    print(f"{found} {at}, {measures['false_boxes']} false boxes")
    cls, offset = (measures[f"{prefix}{name}_error"] for name in ("class", "offset"))
    print(f"class error {cls:.2e}, offset error {offset:.2e}")
    for kind in ("ap", "ar"):
        named = [f"{name} {_number(measures[name])}" for name in measures if name.startswith(kind)]
        if named:
            print(f"COCO {kind.upper()} ", "  ".join(named))
    rows = [("class", "gts", "   ap", " ap50")]
    for row in measures.get("per_class", []):
        rows.append((row["name"], row["gts"], _number(row["ap"]), _number(row["ap50"])))
    for name, gts, *aps in rows if len(rows) > 2 else []:
        print(f"{name:16}  {gts:>6}  {'  '.join(aps)}")


def _number(value: float | None) -> str:
    return "    -" if value is None else f"{value:.3f}"


def evaluate(
    run: Path,
    data: Path,
    images: Path | None = None,
    device: str = "auto",
    json: bool = False,
    out: Path | None = None,
    worst: int = 24,
) -> None:
    """Measure a model on a validation set; writes measures, curves and the worst images.

    example: ssd-ops evaluate run bananas --json

    Args:
        run: the checkpoint, or the folder that `train` wrote.
        data: as for `train`; its validation images are taken.
        images: as for `train`.
        device: auto, cpu, cuda or cuda:1.
        json: print the measures as JSON, and nothing else.
        out: folder for what is written; None is `evaluation` beside the checkpoint.
        worst: images on the sheet.
    """
    model, _, meta = checkpoint.load(run, device)
    names = meta["class_names"]
    dataset = open_set(data, "val", images=images, class_names=names)
    results = collect(model, dataset)
    measures = dict(vars(measure(results)))
    precision = measures.pop("precision")
    out = out or (run if run.is_dir() else run.parent) / "evaluation"
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "measures.json", measures)
    if precision is None:
        print(f"No precision-recall curves without faster-coco-eval: {INSTALL}", file=sys.stderr)
    else:
        plot.draw_precision_recall(precision, results.class_names, out / "precision_recall.png")
    faults = list(map(metrics.badness, results.predictions, results.gts))
    order = sorted(range(len(faults)), key=lambda i: -faults[i])[: max(worst, 1)]
    found = [results.predictions[i] for i in order]
    gts = [rows[rows[:, 0] >= 0, 1:] for rows in (results.gts[i] for i in order)]
    titles = [f"{faults[i]:.2f}  {dataset.names[i]}" for i in order]
    look: Any = {"columns": 6, "tile": 256, "titles": titles, "class_names": names}
    plot.draw_grid([dataset[i][0] for i in order], found, gts, path=out / "worst.png", **look)
    if json:
        print((out / "measures.json").read_text())
    else:
        _print_dropped("validation", dataset)
        _print_measures(measures)
        print(f"Measures, precision-recall curves and the worst images: {out}")


def _write_json(path: Path, content: Any) -> None:
    replace_file(path, (json.dumps(content, indent=1) + "\n").encode())


def detect(
    run: Path,
    images: list[Path],
    out: Path = Path("detections"),
    threshold: float = SHOW_THRESHOLD,
    device: str = "auto",
) -> None:
    """Find objects in images; writes each image with its boxes, and all boxes as JSON.

    example: ssd-ops detect run photo.png --out found

    Args:
        run: the checkpoint, or the folder that `train` wrote.
        images: images of any size, or folders of them.
        out: folder for what is written.
        threshold: lowest score of a box that is drawn and written.
        device: auto, cpu, cuda or cuda:1.
    """
    sources = _images(images)
    if not 0 <= threshold <= 1:
        raise ValueError(f"--threshold must be in 0..1, got {threshold}")
    model, _, meta = checkpoint.load(run, device)
    names = meta["class_names"]
    out.mkdir(parents=True, exist_ok=True)
    report: list[dict[str, Any]] = []
    taken = {source.resolve() for source in sources}  # and what is drawn: neither is overwritten
    for source in sources:
        try:
            image = read_image(source)
        except DataError as error:
            if source in images:
                raise DataError(f"{source} must be an image, got {error}") from None
            # One of a folder: the others are wanted all the same.
            print(f"ssd-ops detect: {source} is left out, {error}", file=sys.stderr)
            continue
        target = out / f"{source.stem}.png"
        while target.resolve() in taken:
            target = target.with_stem(f"{target.stem}-2")
        taken.add(target.resolve())
        found = predict(model, image, score_threshold=threshold)
        columns = found.boxes, found.scores, found.labels
        plot.draw_detections(image, *columns, class_names=names, threshold=threshold, path=target)
        rows = zip(*(column.tolist() for column in found), strict=True)
        boxes = [{"class": names[label], "score": score, "box": box} for label, score, box in rows]
        size = {"width": image.shape[1], "height": image.shape[0]}
        report.append({"image": str(source), "drawn": str(target), **size, "detections": boxes})
        say(f"{source}: {len(boxes)} found, drawn in {target}")
    _write_json(out / "detections.json", report)
    print(f"All boxes, xyxy in pixels: {out / 'detections.json'}")


def _images(places: list[Path]) -> list[Path]:
    """The images themselves, folders replaced by the images in them."""
    found, endings = [], pillow().registered_extensions()
    for place in places:
        inside = place.iterdir() if place.is_dir() else ()
        found += sorted(path for path in inside if path.suffix.lower() in endings) or [place]
    if not found:
        raise ValueError("IMAGES must be given")
    return found


def export(
    run: Path,
    out: Path = Path("model.pt2"),
    onnx: bool = False,
    image_size: tuple[int, int] | None = None,
    threshold: float = SHOW_THRESHOLD,
    max_detections: int = 100,
    device: str = "cpu",
) -> None:
    """Write a trained detector as one file, for C++ programs without Python or for ONNX runtimes.

    From raw images to boxes in their pixels. docs/deploy.md has a C++ program that runs it.

    example: ssd-ops export run --out model.pt2 --image-size 480 640

    Args:
        run: the checkpoint, or the folder that `train` wrote.
        out: the file, model.pt2 (compiled by AOTInductor) or model.onnx.
        onnx: write ONNX, whatever the ending.
        image_size: height and width of the images; None is the size that the network takes.
        threshold: lowest score of a box.
        max_detections: boxes of an image.
        device: what a model.pt2 is compiled for: cpu, cuda or cuda:1.
    """
    if onnx and out == Path("model.pt2"):
        out = Path("model.onnx")
    onnx = onnx or out.suffix == ".onnx"
    model, _, meta = checkpoint.load(run, "cpu" if onnx else device)
    options: Any = {"score_threshold": threshold, "max_detections": max_detections}
    detector = exporter.Detector(model, image_size, **options)
    say(f"Exporting to {out} ...")
    write = exporter.write_onnx if onnx else exporter.write_package
    write(detector, out)
    print(f"Input: images [B, 3, {detector.height}, {detector.width}] uint8, red first")
    print(f"Output: {', '.join(exporter.OUTPUTS)}, padded to {max_detections} boxes an image")
    print(f"Classes: {', '.join(meta['class_names'])}")


def anchors(
    data: Path,
    options: Annotated[Settings, tyro.conf.arg(name="")],  # each field by its name alone
    preset: str | None = None,
    settings: Path | None = None,
    images: Path | None = None,
    out: Path = Path("anchors.png"),
) -> None:
    """List the ground truths of a set that no anchor covers, draw anchors, and suggest better ones.

    example: ssd-ops anchors bananas --input-size 128

    Args:
        data: as for `train`; its training images are taken.
        preset: as for `train`.
        settings: as for `train`.
        images: as for `train`.
        out: the image file that is drawn, with the first training image.
    """
    dataset = open_set(data, "train", images=images)
    model = trainer.untrained(options, dataset)
    boxes, labels = coverage.boxes_of(dataset, model.preprocess)
    maps, shapes = coverage.feature_maps(model), (options.sizes, options.ratios)
    priors = ops.multibox_priors(maps, *shapes)
    ious = coverage.best_ious(boxes, priors)
    better = coverage.suggest(boxes, maps, *shapes)

    _print_dropped("training", dataset)
    says = "{} ground truths that no anchor covers at IoU 0.5, mean best IoU {:.3f}"
    counts = [(int((some < 0.5).sum()), float(some.mean())) for some in (ious, better.ious)]
    (uncovered, mean), (left, reached) = counts
    of = "of an input of {1} x {0}".format(*model.preprocess.size)
    print(f"{len(boxes)} ground truths, {priors.shape[1]} anchors {of}: {says.format(*counts[0])}")
    for index in ious.argsort()[: min(uncovered, 10)].tolist():
        width, height = (boxes[index, 2:] - boxes[index, :2]).tolist()
        size = f"{width:5.3f} x {height:5.3f} of the input"
        print(f"  {dataset.class_names[labels[index]]:16}  {size}, best IoU {ious[index]:.3f}")
    if (left, -reached) < (uncovered, -mean):
        print(f"Better anchors, for a settings file: {says.format(*counts[1])}")
        print(f"sizes = {better.sizes}\nratios = {better.ratios}")
    else:
        print("No better anchors were found.")

    image, rows = dataset[0]
    height, width = image.shape[1:]
    gts = rows[rows[:, 0] >= 0, 1:] * rows.new_tensor([width, height, width, height])
    titles, cells = [], []
    for fmap, sizes, ratios in zip(maps, *shapes, strict=True):
        high, wide = fmap.shape[-2:]
        own = ops.multibox_prior(fmap, sizes, ratios).reshape(high, wide, -1, 4)
        own = model.preprocess.to_pixels(own[high // 2, wide // 2], height, width)
        cells.append(SimpleNamespace(boxes=own, scores=None, labels=range(len(own))))
        titles.append(f"{wide} x {high} cells, sizes {list(sizes)}")
    n, legend = len(maps), "anchors of the middle cell"
    look: Any = {"columns": n, "tile": 320, "titles": titles, "legend": legend}
    print(f"Anchors: {plot.draw_grid([image] * n, cells, [gts] * n, path=out, **look)}")


def curves(run: Path) -> None:
    """Draw the loss and the errors of a training run, finished or not, from its log.

    example: ssd-ops curves run

    Args:
        run: the folder that `train` writes to.
    """
    history = [json.loads(line) for line in (run / trainer.LOG_NAME).read_text().splitlines()]
    print(f"Curves: {plot.draw_curves(history, run / 'curves.png')}")


def info(cmake: bool = False) -> None:
    """Show versions, what is compiled, and the devices.

    example: ssd-ops info

    Args:
        cmake: print the value of CMAKE_PREFIX_PATH with which CMake finds ssd_ops and torch, and nothing
            else.
    """
    if cmake:
        return print(_ext.cmake_prefix_path())
    names = map(torch.cuda.get_device_name, range(torch.cuda.device_count()))
    cuda = [f"cuda:{index} ({name})" for index, name in enumerate(names)]
    rows = {
        "ssd_ops": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{f"built with {key}": value for key, value in _ext.build_info().items()},
        "library": _ext.library_path(),
        "threads": torch.get_num_threads(),
        "devices": ", ".join(["cpu", *cuda]),
    }
    for name, value in rows.items():
        print(f"{name + ':':24}{value}")


COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__.replace("_", "-"): command
    for command in (demo, make_data, train, evaluate, detect, export, anchors, curves, info)
}
