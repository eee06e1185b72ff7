"""docs/deploy.md: the project of the page, built outside the repository, and the detector it runs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import ssd_ops
from ssd_ops import _ext

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "deploy.md").read_text()
FILES = dict(re.findall(r'^```\w+ title="([\w.]+)"\n(.*?)^```', PAGE, re.M | re.S))
# The tools of this environment before those of the system.
TOOLS = {
    **os.environ,
    "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
}
MISSING = [name for name in ("cmake", "ninja", "g++") if not shutil.which(name, path=TOOLS["PATH"])]
needs_tools = pytest.mark.skipif(
    bool(MISSING), reason=f"{MISSING} of a C++ project are not installed"
)
CUDA = ROOT / "ssd_ops" / "lib" / "libssd_ops_cuda.so"
NO_PYTHON = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}


def run(command, **kwargs):
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **kwargs)


def prefix_path() -> str:
    """As the page has it: from the command line."""
    done = run([sys.executable, "-m", "ssd_ops", "info", "--cmake"])
    assert done.returncode == 0, done.stderr
    assert done.stdout == ssd_ops.cmake_prefix_path() + "\n"
    return done.stdout.strip()


def test_the_page_has_a_whole_project():
    assert list(FILES) == ["CMakeLists.txt", "call_ops.cpp", "detect.cpp"]
    assert len(FILES["detect.cpp"].splitlines()) <= 60
    commands = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
    lines = len(FILES["detect.cpp"].splitlines())
    assert f"a C++ program of {lines} lines" in " ".join((ROOT / "README.md").read_text().split())
    assert any("$(python -m ssd_ops info --cmake)" in command for command in commands)


def test_the_tables_are_those_of_the_record():
    spec = importlib.util.spec_from_file_location("deploy", ROOT / "benchmarks" / "deploy.py")
    deploy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(deploy)
    record = json.loads(deploy.RECORD.read_text())
    assert deploy.files() == FILES
    assert deploy.times_table(record) in PAGE
    assert deploy.sizes_table(record) in (ROOT / "README.md").read_text()
    assert {"C++", "libssd_ops.so"} <= record["times"].keys() | record["bytes"].keys()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The folder of the built programs, from the page alone."""
    folder = tmp_path_factory.mktemp("project")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    options = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", f"-DCMAKE_PREFIX_PATH={prefix_path()}"]
    for command in (["-S", ".", "-B", "build", *options], ["--build", "build"]):
        done = run(["cmake", *command], cwd=folder, env=TOOLS)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert "warning" not in done.stderr.lower(), done.stderr
    return folder / "build"


@needs_tools
def test_the_programs_call_the_ops_and_need_no_python(project):
    assert run([project / "call_ops"], env=NO_PYTHON).stdout == "box 1\nbox 2\n"
    for name in ("call_ops", "detect"):
        needed = run(["ldd", project / name], env=NO_PYTHON).stdout
        assert "libssd_ops.so => " in needed and "libtorch_cpu.so => " in needed
        assert "libpython" not in needed and "not found" not in needed
        assert ("libssd_ops_cuda.so => " in needed) == bool(torch.version.cuda and CUDA.exists())
        # With all that is opened while it runs.
        done = run([project / name], env={**NO_PYTHON, "LD_DEBUG": "files"})
        assert "libssd_ops.so" in done.stderr and "libpython" not in done.stderr
    assert run([project / "detect"], env=NO_PYTHON).returncode == 2


def test_any_program_can_open_the_library(tmp_path):
    """`dlopen` in a process without Python, of a package that is installed beside torch."""
    (tmp_path / "torch").symlink_to(Path(torch.__file__).parent)
    library = tmp_path / "ssd_ops" / "lib" / "libssd_ops.so"
    library.parent.mkdir(parents=True)
    shutil.copy(_ext.library_path(), library)
    # The loader opens it for a program that knows nothing of it, and resolves all that it needs.
    env = {**NO_PYTHON, "LD_PRELOAD": str(library), "LD_BIND_NOW": "1"}
    done = run([shutil.which("true")], env=env)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    debug = run([shutil.which("true")], env={**env, "LD_DEBUG": "files"}).stderr
    assert f"calling init: {library}" in debug and "libpython" not in debug


@needs_tools
def test_cmake_finds_a_version_that_fits(tmp_path):
    assert ssd_ops.__version__.startswith("0.1.")  # a new series changes the versions below
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(none LANGUAGES NONE)\n"
        'foreach(asked "" 0 0.1 0.1.0 0.1.99 0.2 1)\n'
        "  unset(ssd_ops_DIR CACHE)\n"
        "  find_package(ssd_ops ${asked} CONFIG QUIET)\n"
        '  message("${asked}: ${ssd_ops_FOUND} ${ssd_ops_VERSION}")\n'
        "endforeach()\n"
    )
    paths = f"-DCMAKE_PREFIX_PATH={ssd_ops.cmake_prefix_path()}"
    done = run(["cmake", "-S", ".", "-B", "build", "-G", "Ninja", paths], cwd=tmp_path, env=TOOLS)
    version = ssd_ops.__version__
    fits = [f"{asked}: 1 {version}" for asked in ("", "0", "0.1", "0.1.0")]
    assert done.stderr.splitlines()[:4] == fits
    others = [line.split()[:2] for line in done.stderr.splitlines()[4:]]
    assert others == [["0.1.99:", "0"], ["0.2:", "0"], ["1:", "0"]]


@needs_tools
@pytest.mark.skipif(torch.version.cuda is not None, reason="its package wants the CUDA toolkit")
def test_targets_of_torch_are_used_where_a_project_has_them(tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(both LANGUAGES CXX)\n"
        "find_package(Torch REQUIRED)\nfind_package(ssd_ops CONFIG REQUIRED)\n"
        "get_target_property(libraries ssd_ops::torch INTERFACE_LINK_LIBRARIES)\n"
        'message("linked: ${libraries}")\n'
    )
    paths = f"-DCMAKE_PREFIX_PATH={ssd_ops.cmake_prefix_path()}"
    done = run(["cmake", "-S", ".", "-B", "build", "-G", "Ninja", paths], cwd=tmp_path, env=TOOLS)
    assert done.returncode == 0, done.stderr
    assert "linked: torch;torch_library;" in done.stderr


@needs_tools
def test_without_torch_cmake_says_what_is_missing(tmp_path):
    # The package alone, without a torch beside it.
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(
        ROOT / "ssd_ops" / "lib" / "cmake", tmp_path / "p" / "lib" / "cmake", ignore=ignore
    )
    shutil.copy(ROOT / "ssd_ops" / "version.py", tmp_path / "p")
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.18)\nproject(none LANGUAGES NONE)\n"
        "find_package(ssd_ops CONFIG REQUIRED)\n"
    )
    command = ["cmake", "-S", ".", "-B", "build", "-G", "Ninja"]
    done = run([*command, f"-DCMAKE_PREFIX_PATH={tmp_path / 'p'}"], cwd=tmp_path, env=TOOLS)
    assert done.returncode != 0
    assert "torch 2.11 or later is not below CMAKE_PREFIX_PATH" in " ".join(done.stderr.split())


SIZE = 96  # of the images; the network takes 64


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch, and its validation images as PPM files."""
    pytest.importorskip("PIL", reason="the images are drawn with Pillow")
    pytest.importorskip("tyro", reason="the command line is made by tyro")
    from PIL import Image

    from ssd_ops.tinyssd import cli
    from ssd_ops.tinyssd.data.draw_bananas import make_bananas

    folder = tmp_path_factory.mktemp("detector")
    data = make_bananas(folder / "set", train=8, val=4, size=SIZE)
    words = ["--preset", "paper", "--epochs", "1", "--batch-size", "4", "--input-size", "64"]
    cli.main(["train", str(data), "--out", str(folder / "run"), *words])
    for path in sorted((data / "bananas_val").rglob("*.png")):
        Image.open(path).convert("RGB").save(folder / f"{path.stem}.ppm")
    return folder


def images(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.ppm"))


def pixels(path: Path) -> torch.Tensor:
    from PIL import Image

    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)[None].contiguous()


def export(trained: Path, name: str, *options: str) -> Path:
    """The run as `ssd-ops export` writes it. One epoch gives low scores, so nearly all are taken."""
    from ssd_ops.tinyssd import cli

    words = ["--threshold", "0.01", "--image-size", str(SIZE), str(SIZE), *options]
    cli.main(["export", str(trained / "run"), "--out", str(trained / name), *words])
    return trained / name


def said(folder: Path, results) -> str:
    """The lines that the program prints for what a detector returns for each image."""
    lines = []
    for path, (boxes, scores, labels, _, counts) in zip(images(folder), results, strict=True):
        for i in range(int(counts[0])):
            numbers = " ".join(f"{value:.9g}" for value in boxes[0, i].tolist())
            score = f"{scores[0, i].item():.9g}"
            lines.append(f"{path}: class {labels[0, i].item()}, score {score}, box {numbers}\n")
    return "".join(lines)


@needs_tools
@pytest.mark.slow
def test_the_program_prints_what_python_finds_to_the_last_bit(project, trained):
    """The same file in Python, and the module in plain PyTorch. Nothing of Python is in the process."""
    from ssd_ops.tinyssd import checkpoint
    from ssd_ops.tinyssd.export import Detector

    package = export(trained, "model.pt2")
    command = [project / "detect", package, *images(trained)]
    done = run(command, env=NO_PYTHON)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) > 20
    again = run(command, env={**NO_PYTHON, "LD_DEBUG": "files"})
    assert again.stdout == done.stdout and "libpython" not in again.stderr

    model = checkpoint.load(trained / "run", "cpu")[0]
    detector = Detector(model, (SIZE, SIZE), score_threshold=0.01).eval()
    loaded = torch._inductor.aoti_load_package(str(package))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            inputs = [pixels(path) for path in images(trained)]
            assert done.stdout == said(trained, [loaded(image) for image in inputs])
            assert done.stdout == said(trained, [detector(image) for image in inputs])
            # Any number of images in a call.
            for a, b in zip(loaded(torch.cat(inputs)), detector(torch.cat(inputs)), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.set_num_threads(threads)

    with zipfile.ZipFile(package) as archive:
        for name in [name for name in archive.namelist() if name.endswith(".so")]:
            archive.extract(name, trained / "unpacked")
            needed = run(["readelf", "-d", trained / "unpacked" / name]).stdout
            assert "NEEDED" in needed and "libpython" not in needed

    (trained / "short.txt").write_bytes(b"P6\n8 8\n255\n" + bytes(7))
    (trained / "text.txt").write_text("no image")
    for path, message in (
        (trained / "short.txt", "ends too early"),
        (trained / "text.txt", "must be a binary PPM file"),
        (trained / "none.ppm", "must be a binary PPM file"),
    ):
        wrong = run([project / "detect", package, path], env=NO_PYTHON)
        assert wrong.returncode == 1 and wrong.stdout == ""
        assert wrong.stderr.startswith("detect: ") and message in wrong.stderr
        assert len(wrong.stderr.splitlines()) == 1


@needs_tools
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_the_program_runs_on_a_gpu(project, trained):
    path = export(trained, "cuda.pt2", "--device", "cuda")
    done = run([project / "detect", path, *images(trained)], env=NO_PYTHON)
    assert done.returncode == 0, done.stderr
    loaded = torch._inductor.aoti_load_package(str(path))
    results = [[t.cpu() for t in loaded(pixels(image).cuda())] for image in images(trained)]
    assert done.stdout == said(trained, results)
