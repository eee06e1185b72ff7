"""The detector of docs/deploy.md in C++ beside Python: times, memory and sizes.

    make demo && make wheel
    python benchmarks/deploy.py demo/run demo/bananas-0/bananas_val

builds the project of the page, exports the run, and first compares what C++ and Python find in all images:
every bit must be equal. Then each program runs several times, as a process of its own, with no image, with
one and with all; differences are the times of the start, the first image and a later one. Writes
benchmarks/results/deploy.json, and from it the tables of docs/deploy.md and README.md. `--tables` only writes
the tables, from the JSON that is there. Do nothing else with the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
import zipfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "benchmarks" / "results" / "deploy.json"
PAGE, README = ROOT / "docs" / "deploy.md", ROOT / "README.md"
RUNS = 5
MARKS = "<!-- benchmarks/deploy.py: {} -->\n", "<!-- end -->"

# What a program in Python does, in the fewest imports; argv as the C++ program's.
PYTHON = {
    "Python, the same file": """
import sys, numpy, torch, ssd_ops
from PIL import Image
with torch.inference_mode():
    detector = torch._inductor.aoti_load_package(sys.argv[1])
    for path in sys.argv[3:]:
        image = torch.from_numpy(numpy.array(Image.open(path))).permute(2, 0, 1)[None].contiguous()
        boxes, scores, labels, indices, counts = detector(image)
        for i in range(int(counts[0])):
            box = " ".join(f"{value:.9g}" for value in boxes[0, i].tolist())
            print(f"{path}: class {labels[0, i].item()}, score {scores[0, i].item():.9g}, box {box}")
""",
    "Python, `predict`": """
import sys
from ssd_ops.tinyssd import checkpoint
from ssd_ops.tinyssd.predict import predict
model = checkpoint.load(sys.argv[2], "cpu")[0]
for path in sys.argv[3:]:
    for label, score, box in zip(*predict(model, path, score_threshold=0.5)):
        box = " ".join(f"{value:.9g}" for value in box.tolist())
        print(f"{path}: class {label.item()}, score {score.item():.9g}, box {box}")
""",
    "Python, the module that is exported": """
import sys, numpy, torch
from PIL import Image
from ssd_ops.tinyssd import checkpoint
from ssd_ops.tinyssd.export import Detector
model = checkpoint.load(sys.argv[2], "cpu")[0]
detector = None
with torch.inference_mode():
    for path in sys.argv[3:]:
        image = torch.from_numpy(numpy.array(Image.open(path))).permute(2, 0, 1)[None].contiguous()
        detector = detector or Detector(model, image.shape[2:]).eval()
        boxes, scores, labels, indices, counts = detector(image)
        for i in range(int(counts[0])):
            box = " ".join(f"{value:.9g}" for value in boxes[0, i].tolist())
            print(f"{path}: class {labels[0, i].item()}, score {scores[0, i].item():.9g}, box {box}")
""",
}


def files(page: Path = PAGE) -> dict[str, str]:
    """The files of the project that the page holds."""
    found = re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```', page.read_text(), re.M | re.S)
    return dict(found)


def build(folder: Path) -> Path:
    """The C++ program, from the page."""
    for name, text in files().items():
        (folder / name).write_text(text)
    asked = [sys.executable, "-m", "ssd_ops", "info", "--cmake"]
    prefix = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    options = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_PREFIX_PATH={prefix}"]
    for command in (["-S", ".", "-B", "build", *options], ["--build", "build"]):
        subprocess.run(["cmake", *command], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / "build" / "detect"


def run(command: list[str]) -> tuple[float, float, str]:
    """Milliseconds, the most MB that were resident, and what is printed."""
    with tempfile.TemporaryFile() as out:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"deploy: {' '.join(command[:4])} ... failed")
        out.seek(0)
        return 1e3 * wall, usage.ru_maxrss / 1e3, out.read().decode()


def times(command: list[str], images: list[str]) -> dict[str, float]:
    walls: dict[int, list[float]] = {0: [], 1: [], len(images): []}
    memory = 0.0
    run([*command, *images[:1]])  # files into the cache of the system
    for _ in range(RUNS):
        for count, found in walls.items():
            wall, most, _ = run([*command, *images[:count]])
            found.append(wall)
            memory = max(memory, most)
    none, one, every = (statistics.median(found) for found in walls.values())
    return {
        "start_ms": round(none, 1),
        "first_image_ms": round(one - none, 1),
        "later_image_ms": round((every - one) / (len(images) - 1), 2),
        "memory_mb": round(memory),
    }


def sizes(wheels: list[Path], more: dict[str, Path]) -> dict[str, int]:
    """Bytes of what is installed and made."""
    found = {path.name: path for path in sorted((ROOT / "ssd_ops" / "lib").glob("*.so"))}
    found |= {path.name: path for path in wheels} | more
    return {name: path.stat().st_size for name, path in found.items()}


def measure(model_run: Path, images: Path, wheels: list[Path]) -> dict[str, Any]:
    import torch
    from PIL import Image

    from ssd_ops import _ext

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        program = str(build(folder))
        paths = []
        for path in sorted(images.rglob("*.png")):
            image = Image.open(path).convert("RGB")
            paths.append(str(folder / f"{path.stem}.ppm"))
            image.save(paths[-1])
        size = ["--image-size", str(image.height), str(image.width)]
        for name in ("model.pt2", "model.onnx"):
            export = [sys.executable, "-m", "ssd_ops", "export", str(model_run), "--out", name]
            subprocess.run([*export, *size], cwd=folder, check=True)
        commands = {"C++": [program, str(folder / "model.pt2")]}
        for name, code in PYTHON.items():
            words = [str(folder / "model.pt2"), str(model_run)]
            commands[name] = [sys.executable, "-c", code, *words]

        printed = {name: run([*command, *paths])[2] for name, command in commands.items()}
        lines = printed["C++"].splitlines()
        for name in ("Python, the same file", "Python, the module that is exported"):
            if printed[name] != printed["C++"]:
                sys.exit(f"deploy: C++ and {name} find other boxes")
        if len(printed["Python, `predict`"].splitlines()) != len(lines):
            sys.exit("deploy: predict finds more or fewer boxes than the exported detector")
        return {
            "machine": _processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "build": _ext.build_info()["compiler"],
            "cuda": _architectures(),
            "runs": RUNS,
            "images": len(paths),
            "boxes": len(lines),
            "times": {name: times(commands[name], paths) for name in ("C++", *list(PYTHON)[:2])},
            "with_cuda": [
                path.name
                for path in wheels
                if "ssd_ops/lib/libssd_ops_cuda.so" in zipfile.ZipFile(path).namelist()
            ],
            "bytes": sizes(
                wheels,
                {
                    "detect": Path(program),
                    "model.pt2": folder / "model.pt2",
                    "model.onnx": folder / "model.onnx",
                },
            ),
        }


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _architectures() -> str:
    """The GPUs that libssd_ops_cuda.so is for, or nothing."""
    import ctypes

    import torch  # noqa: F401  (the library needs it)

    path = ROOT / "ssd_ops" / "lib" / "libssd_ops_cuda.so"
    if not path.exists():
        return ""
    try:
        function = ctypes.CDLL(str(path)).ssd_ops_cuda_build_info
    except OSError:  # it needs a torch with CUDA; the JSON stands in the file all the same
        found = re.search(rb'"architectures": "([^"]+)"', path.read_bytes())
        return found[1].decode() if found else ""
    function.restype = ctypes.c_char_p
    return str(json.loads(function())["architectures"])


def times_table(record: dict[str, Any]) -> str:
    rows = [
        "| program | start | first image | later images | memory |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, row in record["times"].items():
        first, later = (_rounded(row[key]) for key in ("first_image_ms", "later_image_ms"))
        start = f"{row['start_ms'] / 1e3:.2f} s"
        rows.append(f"| {name} | {start} | {first} ms | {later} ms | {row['memory_mb']:,} MB |")
    about = (
        f"Medians of {record['runs']} runs over {record['images']} images of the demo, with torch "
        f"{record['torch'].partition('+')[0]} and {record['threads']} threads on {record['machine']}. "
        f"All {record['boxes']} boxes are equal to the last bit in the first two programs."
    )
    return "\n".join([*rows, "", textwrap.fill(about, 118), ""])


def _rounded(milliseconds: float) -> str:
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.3g}"


def sizes_table(record: dict[str, Any]) -> str:
    about = {
        "libssd_ops.so": "the ops and their CPU kernels",
        "libssd_ops_cuda.so": f"CUDA kernels for {record['cuda'].replace(';', ', ')}",
        "detect": "the program of docs/deploy.md",
        "model.pt2": "the demo's detector, compiled",
        "model.onnx": "the demo's detector as ONNX",
    }
    rows = ["| file | size | what it is |", "|---|---:|---|"]
    for name, size in record["bytes"].items():
        kernels = "with" if name in record["with_cuda"] else "without"
        what = about.get(name, f"the wheel {kernels} CUDA kernels")
        rows.append(f"| `{name}` | {size / 1e6:.2f} MB | {what} |")
    return "\n".join([*rows, ""])


def write_tables(record: dict[str, Any]) -> None:
    for path, name, text in (
        (PAGE, "times", times_table(record)),
        (README, "sizes", sizes_table(record)),
    ):
        begin, end = MARKS[0].format(name), MARKS[1]
        before, _, rest = path.read_text().partition(begin)
        path.write_text(before + begin + text + end + rest.partition(end)[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="folder of a trained run")
    parser.add_argument("images", type=Path, nargs="?", help="folder of PNG images of one size")
    parser.add_argument("--wheel", type=Path, nargs="*", default=sorted(ROOT.glob("dist/*.whl")))
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    options = parser.parse_args()
    if not options.tables:
        if not (options.run and options.images):
            parser.error("RUN and IMAGES must be given")
        missing = [name for name in ("cmake", "ninja") if shutil.which(name) is None]
        if missing:
            parser.error(f"{' and '.join(missing)} must be installed")
        record = measure(options.run.resolve(), options.images.resolve(), options.wheel)
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    write_tables(json.loads(RECORD.read_text()))


if __name__ == "__main__":
    main()
