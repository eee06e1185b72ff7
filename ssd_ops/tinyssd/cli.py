"""The command line, `python -m ssd_ops` or `ssd-ops`. The only file that parses, prints or exits."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tomllib
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

MISTAKES = (ValueError, TypeError, OSError, ImportError, FloatingPointError, RuntimeError)


class Parser(argparse.ArgumentParser):
    """Says a mistake in one sentence, without the usage around it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: list[str] | None = None) -> None:
    """Run a command; a mistake of the user's is one sentence on stderr and exit code 2.

    Args:
        argv: The arguments; None (the default) takes those of the process.
    """
    args = _parser().parse_args(argv)
    try:
        args.run(args)
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does: nothing to say, and no one to say it to.
        sys.stderr.close()
        sys.exit(1)
    except KeyboardInterrupt as stop:
        sys.exit(_say(args, stop, 130))
    except MISTAKES as error:
        if args.traceback:
            raise
        sys.exit(_say(args, error, 2))


def _say(args: argparse.Namespace, error: BaseException, code: int) -> int:
    text = " ".join(str(error).split()) or type(error).__name__
    print(f"ssd-ops {args.command}: {text}", file=sys.stderr)
    return code


def _parser() -> Parser:
    parser = Parser(
        prog="ssd-ops",
        description="Detection ops for PyTorch, and a small detector that shows them at work.",
        epilog="example: ssd-ops demo",
    )
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error arose (to report a bug)"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(
        name: str, run: Callable[[argparse.Namespace], None], text: str, example: str
    ) -> Parser:
        command = commands.add_parser(
            name, help=text, description=text, epilog=f"example: {example}"
        )
        command.set_defaults(run=run)
        return command

    command = add(
        "demo",
        _demo,
        "Make banana pictures, train on them with the `paper` preset, measure, and draw what is found.",
        "ssd-ops demo --out demo --epochs 20",
    )
    command.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for all it makes (demo)"
    )
    command.add_argument(
        "--epochs", type=int, help="passes over the data (what fits in a few minutes)"
    )
    command.add_argument("--seed", type=int, default=0, help="of the pictures and the training (0)")

    command = add(
        "make-data",
        _make_data,
        "Draw a banana detection set, or download the published one.",
        "ssd-ops make-data bananas --seed 1",
    )
    command.add_argument("folder", type=Path, help="where it goes; must not exist")
    command.add_argument("--train", type=int, default=1000, help="training pictures (1000)")
    command.add_argument("--val", type=int, default=100, help="validation pictures (100)")
    command.add_argument("--seed", type=int, default=0, help="another seed, other pictures (0)")
    command.add_argument(
        "--download", action="store_true", help="the set of the book, from its archive"
    )

    command = add(
        "train",
        _train,
        "Train TinySSD on a detection set; writes a checkpoint and a log line after each epoch. "
        "Under torchrun, its processes share each batch.",
        "ssd-ops train bananas --out run --preset paper --epochs 10",
    )
    command.add_argument(
        "data", type=Path, help="folder of a banana set or of COCO JSON files; or a COCO JSON file"
    )
    command.add_argument("--val", type=Path, help="the validation set, where `data` holds none")
    command.add_argument("--images", type=Path, help="folder of the pictures of COCO JSON files")
    command.add_argument(
        "--out", type=Path, default=Path("run"), help="folder for checkpoint, log, curves (run)"
    )
    command.add_argument(
        "--preset", help="chapter (the book's settings, the default), paper or photos"
    )
    command.add_argument("--settings", type=Path, metavar="FILE.toml", help="settings in a file")
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any setting, in TOML, such as schedule=cosine; stronger than the file (repeatable)",
    )
    command.add_argument("--epochs", type=int, help="passes over the data (the preset's)")
    command.add_argument("--batch-size", type=int, help="images in a step (the preset's)")
    command.add_argument("--lr", type=float, help="learning rate (the preset's)")
    command.add_argument(
        "--input-size", type=int, help="pixels a side (the preset's, or the images')"
    )
    command.add_argument(
        "--letterbox", action="store_true", default=None, help="keep the shape of the images"
    )
    command.add_argument("--seed", type=int, help="of weights, order and augmentation (0)")
    command.add_argument("--device", help="auto, cpu, cuda, cuda:1 (auto)")
    command.add_argument("--precision", help="auto, float32 or bfloat16 (auto)")
    command.add_argument("--workers", type=int, help="processes that decode pictures (2)")
    command.add_argument(
        "--compile", action="store_true", default=None, help="run the network through torch.compile"
    )
    command.add_argument(
        "--cuda-graph",
        action="store_true",
        default=None,
        help="record and replay the step on a GPU",
    )
    begin = command.add_mutually_exclusive_group()
    begin.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    begin.add_argument("--overwrite", action="store_true", help="lose the run that --out holds")

    command = add(
        "evaluate",
        _evaluate,
        "Measure a checkpoint on the validation images of a set: COCO's average precision, "
        "precision-recall curves, and a sheet of the pictures it does worst on.",
        "ssd-ops evaluate run bananas --json",
    )
    command.add_argument("checkpoint", type=Path, help="the file, or the folder that `train` wrote")
    command.add_argument(
        "data", type=Path, help="as for `train`; its validation pictures are taken"
    )
    command.add_argument("--images", type=Path, help="as for `train`")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda (auto)")
    command.add_argument("--json", action="store_true", help="print the measures as JSON")
    command.add_argument(
        "--out", type=Path, help="folder for measures and pictures (`evaluation` by the checkpoint)"
    )
    command.add_argument("--worst", type=int, default=24, help="pictures on the sheet (24)")

    command = add(
        "detect",
        _detect,
        "Find objects in pictures; writes each picture with its boxes, and all boxes as JSON.",
        "ssd-ops detect run photo.png --out found",
    )
    command.add_argument("checkpoint", type=Path, help="the file, or the folder that `train` wrote")
    command.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="pictures of any size, or folders"
    )
    command.add_argument(
        "--out",
        type=Path,
        default=Path("detections"),
        help="folder for what it writes (detections)",
    )
    command.add_argument("--threshold", type=float, default=0.9, help="lowest score shown (0.9)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda (auto)")

    command = add(
        "anchors",
        _anchors,
        "Report which objects of a set no anchor covers, draw the anchors, and suggest better ones.",
        "ssd-ops anchors bananas --input-size 128",
    )
    command.add_argument("data", type=Path, help="as for `train`; its training pictures are taken")
    command.add_argument("--images", type=Path, help="as for `train`")
    command.add_argument("--preset", help="as for `train`")
    command.add_argument("--settings", type=Path, metavar="FILE.toml", help="as for `train`")
    command.add_argument("--input-size", type=int, help="as for `train`")
    command.add_argument("--letterbox", action="store_true", default=None, help="as for `train`")
    command.add_argument(
        "--out", type=Path, default=Path("anchors.png"), help="the picture (anchors.png)"
    )
    command.add_argument("--image", type=int, default=0, help="number of the picture drawn on (0)")

    command = add(
        "curves",
        _curves,
        "Draw the curves of a training run, finished or not, from its log.",
        "ssd-ops curves run",
    )
    command.add_argument("folder", type=Path, help="that `train` writes to")

    add("info", _info, "Versions, what is compiled, and the devices.", "ssd-ops info")
    return parser


def _demo(args: argparse.Namespace) -> None:
    from ssd_ops.tinyssd.checkpoint import load
    from ssd_ops.tinyssd.data import bananas as data
    from ssd_ops.tinyssd.data import draw_bananas as bananas
    from ssd_ops.tinyssd.predict import predict_batch
    from ssd_ops.tinyssd.settings import DEMO_EPOCHS, PRESETS
    from ssd_ops.tinyssd.show import plot
    from ssd_ops.tinyssd.train import train

    epochs = DEMO_EPOCHS if args.epochs is None else args.epochs
    settings = replace(PRESETS["paper"], epochs=epochs, seed=args.seed)
    folder = args.out / f"bananas-{args.seed}"
    if not (folder / "bananas_val").exists():
        print(f"Drawing 1,100 pictures into {folder} ...")
        args.out.mkdir(parents=True, exist_ok=True)
        bananas.make_bananas(folder, seed=args.seed)
    train_set = data.BananaDetection(folder, "train")
    val_set = data.BananaDetection(folder, "val")
    run = args.out / "run"
    print(f"Training TinySSD with the preset `paper`, {epochs} epochs ...")
    model, history = train(settings, train_set, val_set, run, **_left_by_demo(run, settings))
    _, _, meta = load(run)

    predictions = predict_batch(model, val_set.images)
    grid, curves = args.out / "detections.png", args.out / "curves.png"
    gts = [_pixels(labels, val_set.images.shape[2:]) for labels in val_set.labels[:12]]
    plot.draw_grid(val_set.images[:12], predictions[:12], gts, columns=4, path=grid)
    plot.draw_curves(history, curves)
    found = args.out / "found"
    found.mkdir(exist_ok=True)
    for name, image, prediction in list(
        zip(val_set.names, val_set.images, predictions, strict=True)
    )[:12]:
        plot.draw_detections(
            image,
            prediction.boxes,
            prediction.scores,
            prediction.labels,
            class_names=meta["class_names"],
            path=found / f"{Path(name).stem}.png",
        )
    _print_measures(history[-1], prefix="val_")
    print(f"Pictures: {grid}, {curves}, and single ones in {found}. Checkpoint: {run}")


def _left_by_demo(run: Path, settings: Any) -> dict[str, bool]:
    """To resume the run of these very settings, finished or not; to overwrite another demo's."""
    from ssd_ops.tinyssd.checkpoint import load

    try:
        saved = load(run)[1]
    except (FileNotFoundError, ValueError):
        return {}
    alike = replace(saved, epochs=settings.epochs, seed=settings.seed) == settings
    return {"resume": saved == settings, "overwrite": alike}


def _pixels(labels: Any, size: Any) -> Any:
    """Corners in pixels of the rows that are not padding."""
    height, width = size
    boxes = labels[labels[:, 0] >= 0, 1:]
    return boxes * boxes.new_tensor([width, height, width, height])


def _make_data(args: argparse.Namespace) -> None:
    from ssd_ops.tinyssd.data import download
    from ssd_ops.tinyssd.data import draw_bananas as bananas

    if args.download:
        folder = download.download_bananas(args.folder)
    else:
        folder = bananas.make_bananas(args.folder, train=args.train, val=args.val, seed=args.seed)
    print(f"Wrote {folder}")


def _train(args: argparse.Namespace) -> None:
    from ssd_ops.tinyssd.data.sets import open_set
    from ssd_ops.tinyssd.distributed import is_first
    from ssd_ops.tinyssd.train import train

    settings = _settings(
        args, "epochs", "batch_size", "lr", "seed", "device", "precision", "workers", "compile",
        "cuda_graph",
    )  # fmt: skip
    if args.data.is_file() and args.val is None:
        raise ValueError(f"--val must name the validation set where data is a file, {args.data}")
    train_set = open_set(args.data, "train", images=args.images)
    names = train_set.class_names
    val_set = open_set(args.val or args.data, "val", images=args.images, class_names=names)
    for name, dataset in (("training", train_set), ("validation", val_set)):
        if is_first():
            _print_dropped(name, dataset)
    how = {"resume": args.resume, "overwrite": args.overwrite}
    _, history = train(settings, train_set, val_set, args.out, **how)
    if is_first():
        curves = _draw_curves(args.out)
        _print_measures(history[-1], prefix="val_")
        print(f"Checkpoint and log: {args.out}. Curves: {curves}")


def _settings(args: argparse.Namespace, *names: str) -> Any:
    """Preset, then the file, then --set, then the options of their own."""
    from ssd_ops.tinyssd.settings import read_settings

    changes: dict[str, Any] = {}
    for text in getattr(args, "set", []):
        name, sign, value = text.partition("=")
        if not sign:
            raise ValueError(f"--set must be NAME=VALUE, got {text!r}")
        try:
            changes[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            changes[name.strip()] = value.strip()  # a word that needs no quotes
    for name in (*names, "input_size", "letterbox"):
        if getattr(args, name) is not None:
            changes[name] = getattr(args, name)
    return read_settings(args.settings, args.preset, **changes)


def _print_dropped(name: str, dataset: Any) -> None:
    dropped = {what: count for what, count in getattr(dataset, "dropped", {}).items() if count}
    if dropped:
        listed = ", ".join(f"{count} {what}" for what, count in dropped.items())
        print(f"Boxes left out of the {name} set: {listed}")


def _curves(args: argparse.Namespace) -> None:
    print(f"Curves: {_draw_curves(args.folder)}")


def _draw_curves(run: Path) -> Path:
    from ssd_ops.tinyssd.show import plot
    from ssd_ops.tinyssd.train import LOG_NAME

    log = run / LOG_NAME
    if not log.is_file():
        raise FileNotFoundError(f"run must hold {LOG_NAME}, which `train` writes, got {run}")
    try:
        history = [json.loads(line) for line in log.read_text().splitlines()]
    except ValueError as error:
        raise ValueError(f"{log} must be a log of `train`, got {error}") from None
    return plot.draw_curves(history, run / "curves.png")


def _evaluate(args: argparse.Namespace) -> None:
    from ssd_ops.tinyssd.checkpoint import load, write_aside
    from ssd_ops.tinyssd.data.sets import open_set
    from ssd_ops.tinyssd.measure import metrics
    from ssd_ops.tinyssd.measure.evaluate import collect, measure
    from ssd_ops.tinyssd.measure.metrics import badness
    from ssd_ops.tinyssd.show import plot

    model, _, meta = load(args.checkpoint, args.device)
    names = meta["class_names"]
    dataset = open_set(args.data, "val", images=args.images, class_names=names)
    results = collect(model, dataset)
    measures = asdict(measure(results))
    run = args.checkpoint if args.checkpoint.is_dir() else args.checkpoint.parent
    out = args.out or run / "evaluation"
    out.mkdir(parents=True, exist_ok=True)
    write_aside(out / "measures.json", (json.dumps(measures, indent=1) + "\n").encode())
    try:
        _, precision = metrics.coco(results.predictions, results.gts, len(results.class_names))
        plot.draw_precision_recall(precision[0], results.class_names, out / "precision_recall.png")
    except ImportError as error:
        print(f"ssd-ops evaluate: no precision-recall curves, {error}", file=sys.stderr)

    faults = [badness(*pair) for pair in zip(results.predictions, results.gts, strict=True)]
    worst = sorted(range(len(faults)), key=lambda index: -faults[index])[: max(args.worst, 1)]
    plot.draw_grid(
        [dataset[index][0] for index in worst],
        [results.predictions[index] for index in worst],
        [results.gts[index][:, 1:] for index in worst],
        columns=6,
        tile=256,
        titles=[f"{faults[index]:.2f}  {dataset.names[index]}" for index in worst],
        class_names=names if len(names) > 1 else None,
        path=out / "worst.png",
    )
    if args.json:
        print(json.dumps(measures))
        return
    _print_dropped("validation", dataset)
    _print_measures(measures)
    print(f"Measures, precision-recall curves and the worst pictures: {out}")


def _print_measures(measures: dict[str, Any], prefix: str = "") -> None:
    print(
        f"found {measures['found']} of {measures['gts']} ground truths (IoU >= 0.5, score >= 0.5), "
        f"{measures['false_boxes']} false boxes"
    )
    print(
        f"class error {measures[prefix + 'class_error']:.2e}, "
        f"offset error {measures[prefix + 'offset_error']:.2e}"
    )
    for title, names in (
        ("COCO AP", ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")),
        ("COCO AR", ("ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")),
    ):
        words = {"ap": "50:95"}
        print(f"{title:9}", *(f"{words.get(n, n)} {_number(measures[n])} " for n in names))
    rows = measures.get("per_class", [])
    if len(rows) > 1:
        width = max(len("class"), *(len(row["name"]) for row in rows))
        print(f"{'class':{width}}     gts  COCO AP    AP50")
        for row in rows:
            ap, ap50 = _number(row["ap"]), _number(row["ap50"])
            print(f"{row['name']:{width}}  {row['gts']:6}  {ap:>7}  {ap50:>6}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _detect(args: argparse.Namespace) -> None:
    from ssd_ops.tinyssd.checkpoint import load, write_aside
    from ssd_ops.tinyssd.data.images import DataError, read_picture
    from ssd_ops.tinyssd.predict import predict
    from ssd_ops.tinyssd.show import plot

    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold must be in 0..1, got {args.threshold}")
    model, _, meta = load(args.checkpoint, args.device)
    names = meta["class_names"]
    images = _images(args.images)
    args.out.mkdir(parents=True, exist_ok=True)
    report: list[dict[str, Any]] = []
    for source, target in zip(images, _targets(images, args.out), strict=True):
        try:
            image = read_picture(source)
        except DataError as error:
            if source not in args.images:  # one of a folder: the others are wanted all the same
                print(f"ssd-ops detect: {source} is left out, {error}", file=sys.stderr)
                continue
            raise DataError(f"{source} must be a picture, got {error}") from None
        found = predict(model, image)
        plot.draw_detections(
            image,
            found.boxes,
            found.scores,
            found.labels,
            class_names=names,
            threshold=args.threshold,
            path=target,
        )
        shown = (found.scores >= args.threshold).tolist()
        rows = zip(found.labels.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True)
        detections = [
            {"class": names[label], "score": score, "box": box}
            for (label, score, box), above in zip(rows, shown, strict=True)
            if above
        ]
        size = {"width": image.shape[1], "height": image.shape[0]}
        report.append(
            {"image": str(source), "drawn": str(target), **size, "detections": detections}
        )
        print(f"{source}: {len(detections)} found, drawn in {target}")
        for row in detections:
            corners = ", ".join(f"{value:.1f}" for value in row["box"])
            print(f"  {row['class']} {row['score']:.3f} [{corners}]")
    path = args.out / "detections.json"
    write_aside(path, (json.dumps(report, indent=1) + "\n").encode())
    print(f"All boxes, xyxy in pixels: {path}")


def _images(places: list[Path]) -> list[Path]:
    """The pictures themselves, folders replaced by the pictures in them."""
    from ssd_ops.tinyssd.data.images import pillow

    endings = pillow().registered_extensions()
    images: list[Path] = []
    for place in places:
        if place.is_dir():
            inside = sorted(path for path in place.iterdir() if path.suffix.lower() in endings)
            if not inside:
                raise ValueError(f"a folder must hold pictures, got none in {place}")
            images += inside
        else:
            images.append(place)
    return images


def _anchors(args: argparse.Namespace) -> None:
    from types import SimpleNamespace

    from ssd_ops import ops
    from ssd_ops.tinyssd.data.sets import open_set
    from ssd_ops.tinyssd.measure import coverage
    from ssd_ops.tinyssd.show import plot
    from ssd_ops.tinyssd.train import untrained

    settings = _settings(args)
    dataset = open_set(args.data, "train", images=args.images)
    if not 0 <= args.image < len(dataset):
        raise ValueError(f"--image must be in 0..{len(dataset) - 1}, got {args.image}")
    model = untrained(settings, dataset)
    preprocess, (height, width) = model.preprocess, model.preprocess.size
    boxes, labels = coverage.boxes_of(dataset, preprocess)
    maps = coverage.feature_maps(model)
    anchors = ops.multibox_priors(maps, settings.sizes, settings.ratios)
    ious = coverage.best_ious(boxes, anchors)

    _print_dropped("training", dataset)
    missed = (ious < 0.5).nonzero().flatten().tolist()
    print(
        f"{len(boxes)} objects, {anchors.shape[1]} anchors of an input of {width} x {height}: "
        f"{len(missed)} objects that no anchor covers at IoU 0.5, mean best IoU {ious.mean():.3f}"
    )
    if missed:
        print("class             width  height  ratio   best IoU   (fractions of the input)")
        for index in sorted(missed, key=lambda index: float(ious[index]))[:20]:
            w, h = (boxes[index, 2:] - boxes[index, :2]).tolist()
            name = dataset.class_names[int(labels[index])]
            ratio = w * width / (h * height)
            print(f"{name[:16]:16}  {w:5.3f}  {h:6.3f}  {ratio:5.2f}   {float(ious[index]):.3f}")
        if len(missed) > 20:
            print(f"and {len(missed) - 20} more")
    better = coverage.suggest(boxes, maps, settings.sizes, settings.ratios)
    uncovered = int((better.ious < 0.5).sum())
    if (uncovered, -float(better.ious.mean())) < (len(missed), -float(ious.mean())):
        print(
            f"Better, {uncovered} uncovered and mean best IoU {better.ious.mean():.3f}; "
            "for a file of settings:"
        )
        print(f"sizes = {better.sizes}\nratios = {better.ratios}")
    else:
        print("No better anchors were found.")

    image, rows = dataset[args.image]
    found, titles = [], []
    for level, fmap in enumerate(maps):
        shape = tuple(fmap.shape[-2:])
        level_anchors = ops.multibox_prior(fmap, settings.sizes[level], settings.ratios[level])
        each = len(settings.sizes[level]) + len(settings.ratios[level]) - 1
        cell = (shape[0] // 2) * shape[1] + shape[1] // 2
        own = preprocess.to_pixels(
            level_anchors[0, cell * each : (cell + 1) * each], *image.shape[1:]
        )
        found.append(SimpleNamespace(boxes=own, scores=None, labels=range(each)))
        titles.append(f"{shape[1]} x {shape[0]} cells, sizes {list(settings.sizes[level])}")
    gts = [_pixels(rows, image.shape[1:])] * len(maps)
    plot.draw_grid(
        [image] * len(maps),
        found,
        gts,
        columns=len(maps),
        tile=320,
        titles=titles,
        legend="anchors of the middle cell",
        path=args.out,
    )
    print(f"Anchors of each scale: {args.out}")


def _targets(images: list[Path], out: Path) -> list[Path]:
    """A file in `out` for each image, never one of the images themselves, nor one twice."""
    targets: list[Path] = []
    taken = {image.resolve() for image in images}
    for image in images:
        number, target = 1, out / f"{image.stem}.png"
        while target.resolve() in taken:
            number += 1
            target = out / f"{image.stem}-{number}.png"
        taken.add(target.resolve())
        targets.append(target)
    return targets


def _info(args: argparse.Namespace) -> None:
    import torch

    import ssd_ops
    from ssd_ops import _ext

    rows = {
        "ssd_ops": ssd_ops.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{f"built with {key}": value for key, value in _ext.build_info().items()},
        "library": _ext.library_path(),
        "threads": torch.get_num_threads(),
        "devices": ", ".join(["cpu", *_cuda_names()]),
    }
    for name, value in rows.items():
        print(f"{name + ':':24}{value}")


def _cuda_names() -> list[str]:
    import torch

    return [
        f"cuda:{index} ({torch.cuda.get_device_name(index)})"
        for index in range(torch.cuda.device_count())
    ]
