"""The command line, `python -m ssd_ops` or `ssd-ops`. The only file that parses, prints or exits."""

from __future__ import annotations

import argparse
import json
import platform
import sys
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
        "Train TinySSD on a banana detection set; writes a checkpoint after each epoch.",
        "ssd-ops train bananas --out run --preset paper --epochs 10",
    )
    command.add_argument("folder", type=Path, help="holds bananas_train and bananas_val")
    command.add_argument(
        "--out", type=Path, default=Path("run"), help="folder for checkpoint and curves (run)"
    )
    command.add_argument(
        "--preset", default="chapter", help="chapter (the book's settings) or paper"
    )
    command.add_argument("--epochs", type=int, help="passes over the data (the preset's)")
    command.add_argument("--batch-size", type=int, help="images in a step (the preset's)")
    command.add_argument("--lr", type=float, help="learning rate (the preset's)")
    command.add_argument(
        "--input-size", type=int, help="pixels a side (the preset's, or the images')"
    )
    command.add_argument("--seed", type=int, help="of weights, order and augmentation (0)")
    command.add_argument("--device", help="auto, cpu, cuda, cuda:1 (auto)")
    command.add_argument("--precision", help="auto, float32 or bfloat16 (auto)")
    command.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")

    command = add(
        "evaluate",
        _evaluate,
        "Measure a checkpoint on the validation pictures of a set.",
        "ssd-ops evaluate run bananas --json",
    )
    command.add_argument("checkpoint", type=Path, help="the file, or the folder that `train` wrote")
    command.add_argument("folder", type=Path, help="holds bananas_val")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda (auto)")
    command.add_argument("--json", action="store_true", help="print the measures as JSON")

    command = add(
        "detect",
        _detect,
        "Find objects in pictures; writes each picture with its boxes, and prints them.",
        "ssd-ops detect run photo.png --out found",
    )
    command.add_argument("checkpoint", type=Path, help="the file, or the folder that `train` wrote")
    command.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="pictures of any size"
    )
    command.add_argument(
        "--out", type=Path, default=Path("detections"), help="folder for the pictures (detections)"
    )
    command.add_argument("--threshold", type=float, default=0.9, help="lowest score shown (0.9)")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda (auto)")

    add("info", _info, "Versions, what is compiled, and the devices.", "ssd-ops info")
    return parser


def _demo(args: argparse.Namespace) -> None:
    from ssd_ops import bananas, data, plot
    from ssd_ops.predict import predict_batch
    from ssd_ops.train import DEMO_EPOCHS, PRESETS, load, train

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
    model, history = train(settings, train_set, val_set, run, resume=_unfinished(run, settings))
    _, _, meta = load(run)

    predictions = predict_batch(model, val_set.images)
    grid, curves = args.out / "detections.png", args.out / "curves.png"
    truths = [_pixels(labels, val_set.images.shape[2:]) for labels in val_set.labels[:12]]
    plot.draw_grid(val_set.images[:12], predictions[:12], truths, columns=4, path=grid)
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


def _unfinished(run: Path, settings: Any) -> bool:
    """Whether `run` holds a checkpoint of these very settings, finished or not, to go on from."""
    from ssd_ops.train import load

    try:
        return load(run)[1] == settings
    except (FileNotFoundError, ValueError):
        return False


def _pixels(labels: Any, size: Any) -> Any:
    """Corners in pixels of the rows that are not padding."""
    height, width = size
    boxes = labels[labels[:, 0] >= 0, 1:]
    return boxes * boxes.new_tensor([width, height, width, height])


def _make_data(args: argparse.Namespace) -> None:
    from ssd_ops import bananas, data

    if args.download:
        folder = data.download_bananas(args.folder)
    else:
        folder = bananas.make_bananas(args.folder, train=args.train, val=args.val, seed=args.seed)
    print(f"Wrote {folder}")


def _train(args: argparse.Namespace) -> None:
    from ssd_ops import data, plot
    from ssd_ops.train import PRESETS, train

    if args.preset not in PRESETS:
        raise ValueError(f"--preset must be {' or '.join(PRESETS)}, got {args.preset}")
    given = {
        name: getattr(args, name)
        for name in ("epochs", "batch_size", "lr", "input_size", "seed", "device", "precision")
        if getattr(args, name) is not None
    }
    settings = replace(PRESETS[args.preset], **given)
    train_set = data.BananaDetection(args.folder, "train")
    val_set = data.BananaDetection(args.folder, "val")
    _, history = train(settings, train_set, val_set, args.out, resume=args.resume)
    curves = args.out / "curves.png"
    plot.draw_curves(history, curves)
    _print_measures(history[-1], prefix="val_")
    print(f"Checkpoint and history: {args.out}. Curves: {curves}")


def _evaluate(args: argparse.Namespace) -> None:
    from ssd_ops import data
    from ssd_ops.evaluate import evaluate
    from ssd_ops.train import load

    model, _, _ = load(args.checkpoint, args.device)
    measures = asdict(evaluate(model, data.BananaDetection(args.folder, "val")))
    if args.json:
        print(json.dumps(measures))
    else:
        _print_measures(measures)


def _print_measures(measures: dict[str, Any], prefix: str = "") -> None:
    print(
        f"found {measures['found']} of {measures['truths']} objects (IoU >= 0.5, score >= 0.5), "
        f"{measures['false_boxes']} false boxes"
    )
    print(
        f"class error {measures[prefix + 'class_error']:.2e}, "
        f"offset error {measures[prefix + 'offset_error']:.2e}"
    )
    if measures["ap"] is not None:
        print(f"AP {measures['ap']:.3f}, AP50 {measures['ap50']:.3f}")


def _detect(args: argparse.Namespace) -> None:
    from ssd_ops import plot
    from ssd_ops.predict import predict
    from ssd_ops.train import load

    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold must be in 0..1, got {args.threshold}")
    model, _, meta = load(args.checkpoint, args.device)
    names = meta["class_names"]
    args.out.mkdir(parents=True, exist_ok=True)
    targets = _targets(args.images, args.out)
    for source, target in zip(args.images, targets, strict=True):
        prediction = predict(model, source)
        plot.draw_detections(
            source,
            prediction.boxes,
            prediction.scores,
            prediction.labels,
            class_names=names,
            threshold=args.threshold,
            path=target,
        )
        shown = prediction.scores >= args.threshold
        print(f"{source}: {int(shown.sum())} found, drawn in {target}")
        rows = zip(
            prediction.labels[shown], prediction.scores[shown], prediction.boxes[shown], strict=True
        )
        for label, score, box in rows:
            corners = ", ".join(f"{value:.1f}" for value in box.tolist())
            print(f"  {names[int(label)]} {score:.3f} [{corners}]")


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
