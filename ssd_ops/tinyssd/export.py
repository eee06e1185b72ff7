"""A trained detector as one file that runs without this package: compiled by AOTInductor, or as ONNX."""

from __future__ import annotations

import copy
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ssd_ops import ops
from ssd_ops.integrations.onnx import translations
from ssd_ops.tinyssd.files import replace_file
from ssd_ops.tinyssd.model import TinySSD, concat_preds
from ssd_ops.tinyssd.predict import SHOW_THRESHOLD, inference

OUTPUTS = ops.Detections._fields  # names and order of what an exported detector returns


class Detector(nn.Module):
    """All of a detector in one module: raw images in, detections in their pixels out.

    It finds what `predict` finds, with another rounding: each batch norm is folded into the convolution
    before it, and the anchors of the one input size are constants.

    Args:
        model: a trained TinySSD; it is copied.
        image_size: (height, width) of the images. Default: None, those that the network takes. Images of
            another size are resized to it, as `predict` does.
        score_threshold: detections below it are left out.
        max_detections: K, the rows of each image.

    Example:
        >>> detector = Detector(TinySSD(), (480, 640), max_detections=10)
        >>> boxes, scores, labels, indices, counts = detector(torch.zeros(2, 3, 480, 640, dtype=torch.uint8))
        >>> boxes.shape, counts.shape
        (torch.Size([2, 10, 4]), torch.Size([2]))
    """

    anchors: Tensor

    def __init__(
        self,
        model: TinySSD,
        image_size: Sequence[int] | None = None,
        *,
        score_threshold: float = SHOW_THRESHOLD,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"export: score_threshold must be in 0..1, got {score_threshold}")
        self.height, self.width = image_size or model.preprocess.size
        if min(self.height, self.width) < 1:
            raise ValueError(f"export: image_size must be at least 1, got {image_size}")
        self.model = _fold_batch_norm(copy.deepcopy(model).eval().requires_grad_(False))
        device = next(model.parameters()).device
        # `detect` takes what is above its threshold, `predict` also what is at it.
        below = float(np.nextafter(np.float32(score_threshold), np.float32(0)))
        self.options: Any = {
            "score_threshold": below,
            "iou_threshold": model.nms_threshold,
            "topk": -1,
            "max_detections": max_detections,
            "clip": False,
            "class_agnostic": True,
            "best_class_only": True,
        }
        with torch.inference_mode(False), torch.no_grad():
            anchors = self.model(torch.zeros(1, 3, *model.preprocess.size, device=device))[0]
        self.register_buffer("anchors", anchors)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The tensors of `Detections`, from uint8 images ``[B, 3, height, width]``, red first."""
        maps = self.model.feature_maps(self.model.preprocess(images))
        heads = []
        for kind in ("cls", "bbox"):
            preds = [getattr(self.model, f"{kind}_{i}")(m) for i, m in enumerate(maps)]
            heads.append(concat_preds(preds))
        classes = heads[0].unflatten(1, (-1, self.model.num_classes + 1))
        found = ops.detect(classes, heads[1], self.anchors, **self.options)
        boxes = self.model.preprocess.to_pixels(found.boxes, self.height, self.width)
        padding = (found.labels < 0)[..., None]
        return (torch.where(padding, torch.zeros_like(boxes), boxes), *found[1:])

    def example(self, images: int = 2) -> Tensor:
        """Images of noise, as `forward` takes them."""
        shape = (images, 3, self.height, self.width)
        noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return torch.from_numpy(noise).to(self.anchors.device)


def _fold_batch_norm(module: nn.Module) -> Any:
    """The module without its batch norms: they are in the convolutions before them."""
    for child in module.children():
        _fold_batch_norm(child)
    if isinstance(module, nn.Sequential):
        for i in range(len(module) - 1):
            conv, norm = module[i], module[i + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                module[i], module[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return module


def write_package(detector: Detector, path: str | os.PathLike[str]) -> None:
    """Compile a detector with AOTInductor into one file: the weights, and code for this processor or GPU.

    A program that loads it needs libtorch, of the version that wrote it, and libssd_ops.so; no Python. The
    number of images is free. docs/deploy.md has such a program.

    Args:
        detector: on the device that the file is for.
        path: of the file, which ends in ``.pt2``.

    Raises:
        ValueError: the path has another ending.
        RuntimeError: there is no C++ compiler, or torch cannot compile the detector.
        OSError: the file cannot be written.
    """
    _check_ending(path, ".pt2")
    compiler = os.environ.get("CXX", "g++").split()[0]
    if shutil.which(compiler) is None:
        raise RuntimeError(f"export: {compiler}, which compiles the detector, is not on the PATH")
    with tempfile.TemporaryDirectory() as folder:
        with _program(detector) as program, _in_a_line("AOTInductor"):
            made = torch._inductor.aoti_compile_and_package(
                program, package_path=str(Path(folder) / "model.pt2")
            )
        replace_file(path, Path(made).read_bytes())


def write_onnx(detector: Detector, path: str | os.PathLike[str]) -> None:
    """Write a detector as ONNX, opset 18, with the standard operators alone: any ONNX runtime runs it.

    The input is called ``images``, and the outputs have the names of `Detections`. The number of images is
    free. Scores and boxes differ from those of PyTorch in the last bits. If onnxruntime is installed, the
    file is run on noise and compared with the detector.

    Args:
        detector: on the CPU.
        path: of the file, which ends in ``.onnx``.

    Raises:
        ValueError: the path has another ending.
        ImportError: onnx or onnxscript is not installed.
        RuntimeError: onnxruntime finds other boxes than PyTorch.
        OSError: the file cannot be written.
    """
    _check_ending(path, ".onnx")
    table = translations()
    with tempfile.TemporaryDirectory() as folder:
        aside = Path(folder) / "model.onnx"
        with _program(detector) as program, _in_a_line("torch.onnx"):
            made: Any = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=18,
                input_names=["images"],
                output_names=list(OUTPUTS),
                custom_translation_table=table,
                verbose=False,
            )
            made.save(str(aside))
        data = aside.read_bytes()
    _check_onnx(detector, data)
    replace_file(path, data)


def _check_ending(path: str | os.PathLike[str], ending: str) -> None:
    if Path(path).suffix != ending:
        raise ValueError(f"export: the file must end in {ending}, got {os.fspath(path)}")


@contextmanager
def _in_a_line(what: str) -> Iterator[None]:
    """What torch says on pages, if it cannot do it, as one sentence; the pages are the cause."""
    try:
        yield
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RuntimeError(f"export: {what} cannot write this detector: {said}") from error


@contextmanager
def _program(detector: Detector) -> Iterator[Any]:
    """The detector as a program of torch.export for any number of images."""
    batch = torch.export.Dim("images", min=1, max=1024)
    disabled = logging.root.manager.disable
    with warnings.catch_warnings(), inference(detector), torch.inference_mode(False):
        # What torch and onnxscript say about themselves.
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            with torch.no_grad():
                # The first call makes constants that later calls share; torch.export's would have no values.
                detector(detector.example())
                sizes = ({0: batch},)
                yield torch.export.export(detector, (detector.example(),), dynamic_shapes=sizes)
        finally:
            logging.disable(disabled)


def _check_onnx(detector: Detector, data: bytes) -> None:
    try:
        import onnxruntime
    except ImportError:
        return
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    images = detector.example(3)
    with inference(detector):
        wanted = [tensor.numpy() for tensor in detector(images)]
    got = session.run(None, {"images": images.numpy()})
    for name, a, b in zip(OUTPUTS, got, wanted, strict=True):
        if a.shape != b.shape or np.abs(a - b).max(initial=0) > 0.02:
            raise RuntimeError(
                f"export: onnxruntime finds other {name} than PyTorch in images of noise"
            )
