"""The rules of the house: what may import or include what, and what every op must have."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import ssd_ops

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, CSRC = ROOT / "ssd_ops", ROOT / "csrc"
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))
PUBLIC = [name for name in ssd_ops.__all__ if name[0].islower()]

# Module -> the modules of ours that it may import. Only the command line may import everything, and
# nothing but __main__ imports the command line.
NOBODY: set[str] = set()
ARROWS = {
    "__init__": {"ops", "version"},
    "__main__": {"cli"},
    "cli": set(MODULES) - {"cli", "__main__"},
    "train": {
        "model",
        "loss",
        "data",
        "evaluate",
        "predict",
        "ops",
        "checkpoint",
        "settings",
        "augment",
    },
    "augment": {"settings"},
    "checkpoint": {"model", "loss", "settings"},
    "settings": {"model", "loss"},
    "evaluate": {"model", "loss", "predict", "ops"},
    "predict": {"model", "ops"},
    "model": {"ops"},
    "loss": {"ops"},
    "ops": {"_ext"},
    "_ext": NOBODY,
    "reference": NOBODY,
    "boxes": NOBODY,
    "data": NOBODY,
    "bananas": NOBODY,
    "plot": NOBODY,
    "version": NOBODY,
}
# A room of csrc -> the rooms it may include files of, besides its own and common.
ROOMS = {"detection": {"nms"}}


def imports_of(module: str) -> set[str]:
    """The modules of the package that a module imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ("ssd_ops." if node.level else "") + (node.module or "")
            names = [f"{base.rstrip('.')}.{alias.name}" for alias in node.names]
        for parts in (name.split(".") for name in names):
            if parts[0] == "ssd_ops":
                found.add(parts[1] if len(parts) > 1 and parts[1] in MODULES else "__init__")
    return found


def sources() -> list[Path]:
    """All text files of ours: what git would track, or our folders where there is no git."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        paths = [ROOT / name for name in listed]
    except (OSError, subprocess.CalledProcessError):
        folders = ("csrc", "ssd_ops", "tests", "benchmarks", "docs")
        paths = [path for folder in folders for path in (ROOT / folder).rglob("*")]
        paths += ROOT.glob("*.*")
    suffixes = {
        ".py",
        ".h",
        ".cpp",
        ".cu",
        ".cuh",
        ".md",
        ".toml",
        ".txt",
        ".sh",
        ".yml",
        ".cfg",
        "",
    }
    return [path for path in paths if path.is_file() and path.suffix in suffixes]


def schemas() -> set[str]:
    text = "\n".join(path.read_text() for path in CSRC.rglob("*.cpp"))
    return set(re.findall(r'm\.def\(\s*"(\w+)\(', text))


@pytest.mark.parametrize("module", MODULES)
def test_import_arrows(module):
    assert module in ARROWS, f"say in ARROWS what {module} may import"
    wrong = imports_of(module) - ARROWS[module]
    if module == "cli":
        wrong.discard("__init__")  # for the version
    assert not wrong, f"{module} must not import {', '.join(sorted(wrong))}"


def test_reference_calls_no_kernel():
    assert "torch.ops" not in (PACKAGE / "reference.py").read_text()


def test_includes_stay_in_their_room():
    for path in sorted(CSRC.rglob("*")):
        if path.suffix not in {".h", ".cpp", ".cu", ".cuh"}:
            continue
        room = path.relative_to(CSRC).parts[0]
        for include in re.findall(r'#include "([^"]+)"', path.read_text()):
            assert (CSRC / include).is_file(), (
                f"{path.name} includes {include} by another path than csrc's"
            )
            target = include.split("/")[0]
            allowed = {room, "common"} | ROOMS.get(room, set())
            assert target in allowed, f"{room}/{path.name} must not include {include}"


def test_only_the_stable_interface_of_torch_is_included():
    forbidden = re.compile(
        r"#include\s*[<\"](ATen|c10|torch/extension\.h|torch/torch\.h|torch/all\.h)"
    )
    stable = re.compile(
        r"#include\s*<torch/(?!csrc/stable/|headeronly/|csrc/inductor/aoti_torch/c/)"
    )
    for path in CSRC.rglob("*"):
        if path.is_file():
            text = path.read_text()
            assert not forbidden.search(text), path
            assert not stable.search(text), path


def test_box_math_needs_no_torch():
    for name in ("box.h", "math.h", "host_device.h"):
        assert "torch/" not in (CSRC / "common" / name).read_text(), name


def test_cpp_never_includes_cuda():
    for path in CSRC.rglob("*.cpp"):
        assert not re.search(r"#include.*(\.cuh|cuda_runtime)", path.read_text()), path


def test_the_library_needs_only_stable_symbols():
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    libraries = sorted(PACKAGE.glob("_C*.so"))
    assert libraries
    for library in libraries:
        table = subprocess.run(
            [nm, "-D", "--undefined-only", library], capture_output=True, text=True
        )
        names = [line.split()[-1] for line in table.stdout.splitlines() if line.split()]
        of_torch = [name for name in names if re.search(r"_Z\w*?(2at|3c10|5torch)\w*", name)]
        assert not of_torch, f"{library.name} needs C++ symbols of torch"
        versioned = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)")
        ours = re.compile(
            r"(aoti_torch_|torch_|cuda|_?Py|_Z\w*St|_ITM_|__gmon|__cxa|_Unwind|__asan|__ubsan)"
        )
        others = [name for name in names if not versioned.search(name) and not ours.match(name)]
        assert not others, f"{library.name} needs {others}"


def test_no_path_of_the_builder_in_the_library():
    for library in PACKAGE.glob("_C*.so"):
        assert str(ROOT).encode() not in library.read_bytes()


def test_no_absolute_paths_in_sources():
    pattern = re.compile(r"(?<![\w.:/-])/(?:home|root|Users|work|workspace)/\w")
    for path in sources():
        found = pattern.search(path.read_text(errors="ignore"))
        assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_python_lines_end_and_stay_short():
    for path in sources():
        if path.suffix in {".py", ".h", ".cpp", ".cu", ".cuh"}:
            text = path.read_text()
            assert not text or text.endswith("\n"), path
            assert "\t" not in text, path


def test_every_op_has_room_reference_test_and_benchmark():
    assert schemas(), "no schema found"
    tests = "\n".join(
        p.read_text() for p in (ROOT / "tests").glob("test_*.py") if p.name != Path(__file__).name
    )
    benchmarks = "\n".join(p.read_text() for p in (ROOT / "benchmarks").glob("bench_*.py"))
    for op in schemas():
        assert list(CSRC.glob(f"*/{op}.h")), f"{op} has no contract in csrc"
        assert list(CSRC.glob(f"*/{op}.cpp")), f"{op} has no CPU kernel in a file of its name"
        assert f"check_{op}" in "".join(p.read_text() for p in CSRC.glob(f"*/{op}.cpp"))
        assert f"def {op}(" in (PACKAGE / "reference.py").read_text(), f"{op} has no reference"
        assert op in PUBLIC, f"{op} is not exported"
        assert f"ssd_ops.{op}" in tests, f"{op} has no test"
        assert f"ssd_ops.{op}" in benchmarks, f"{op} has no benchmark"
        registered = torch._C._dispatch_has_kernel_for_dispatch_key
        assert registered(f"ssd_ops::{op}", "Meta"), f"{op} has no fake kernel"


def test_schemas_hold_no_strings():
    """torch 2.13 and older leak a string argument of a stable op on every call."""
    for path in CSRC.rglob("*.cpp"):
        for schema in re.findall(r"m\.def\((.*?)\);", path.read_text(), flags=re.DOTALL):
            assert not re.search(r"\bstr\b", schema), path


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions_are_documented(name):
    text = getattr(ssd_ops, name).__doc__ or ""
    for part in ("Args:", "Returns:", "Example:", ">>> "):
        assert part in text, f"{name} has no {part}"


@pytest.mark.parametrize("module", [name for name in MODULES if name != "__main__"])
def test_examples_run(module):
    # pytest's own --doctest-modules would import setup files and __main__ as well.
    tests = doctest.DocTestFinder(exclude_empty=True).find(
        importlib.import_module("ssd_ops" if module == "__init__" else f"ssd_ops.{module}")
    )
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failed: list[str] = []
    for test in tests:
        if test.examples:
            runner.run(test, out=failed.append)
    assert not failed, "".join(failed)
