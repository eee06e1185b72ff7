"""The rules of the house: what may import or include what, and what every op must have."""

from __future__ import annotations

import ast
import doctest
import graphlib
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
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()
PUBLIC = [name for name in ssd_ops.__all__ if name[0].islower()]


def module_name(path: Path) -> str:
    """`tinyssd.data.coco` for ssd_ops/tinyssd/data/coco.py; a package is called by its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}

# A part of the package -> the other parts that it may import. The longest name that fits a module counts.
NOBODY: set[str] = set()
ARROWS = {
    "": {"_ext", "ops", "version"},
    "__main__": {"tinyssd.cli"},
    "_ext": {"version"},
    "version": NOBODY,
    "reference": NOBODY,
    "ops": {"_ext"},
    "integrations": {"ops"},
    "tinyssd": {"ops"},
    "tinyssd.export": {"ops", "tinyssd", "integrations"},
    "tinyssd.cli": {"", "_ext", "ops", "tinyssd", "tinyssd.export"},
}
# A room of csrc -> the files of other rooms that it may include, besides those of common: the core of NMS.
ROOMS = {
    "detection": {
        f"nms/{name}"
        for name in (
            "greedy.h",
            "greedy.cuh",
            "greedy.cu.h",
            "greedy_tiles.cuh",
            "grouped.h",
            "prune.h",
        )
    }
}


def imports_of(module: str) -> set[str]:
    """The modules of the package that a module imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module} imports by a relative name"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] != "ssd_ops":
                continue
            # The longest part of the name that is a module; what follows is a name in it.
            while ".".join(parts[1:]) not in MODULES:
                parts.pop()
            found.add(".".join(parts[1:]))
    return found


def part_of(module: str) -> str:
    """The part of the package that a module belongs to: the longest key of `ARROWS` that fits."""
    return max((key for key in ARROWS if f"{module}.".startswith(f"{key}.") or not key), key=len)


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
    assert part_of(module) or not module, f"say in ARROWS what {module} may import"
    allowed = ARROWS[part_of(module)] | {part_of(module)}
    wrong = {name for name in imports_of(module) if part_of(name) not in allowed}
    assert not wrong, f"{module} must not import {', '.join(sorted(wrong))}"


def test_nothing_imports_in_a_circle():
    graphlib.TopologicalSorter(
        {
            name: {other for other in imports_of(name) if not f"{name}.".startswith(f"{other}.")}
            for name in MODULES
        }
    ).prepare()


def defined_in(module: str) -> set[str]:
    """The names that a module defines itself, at its top level."""
    names = set()
    for node in ast.parse(MODULES[module].read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {
                name.id for t in targets for name in ast.walk(t) if isinstance(name, ast.Name)
            }
    return names


@pytest.mark.parametrize("module", MODULES)
def test_names_are_imported_from_where_they_are_defined(module):
    """No module passes on what it imports, but for the `__init__` of a package."""
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        source = getattr(node, "module", None) or ""
        if not isinstance(node, ast.ImportFrom) or not source.startswith("ssd_ops."):
            continue
        source = source.removeprefix("ssd_ops.")
        if MODULES[source].name == "__init__.py":
            continue
        names = {alias.name for alias in node.names} - {"*"}
        wrong = names - defined_in(source)
        assert not wrong, f"{', '.join(sorted(wrong))}: not defined in {source}"


def test_reference_calls_no_kernel():
    assert "torch.ops" not in (PACKAGE / "reference.py").read_text()


def ending(path: Path) -> str:
    return path.name[path.name.index(".") :]


def csrc_files(*endings: str) -> list[Path]:
    paths = sorted(path for path in CSRC.rglob("*") if path.is_file())
    return [path for path in paths if not endings or ending(path) in endings]


def includes(path: Path) -> list[str]:
    return re.findall(r'#include [<"]([^>"]+)[>"]', path.read_text())


def all_includes(path: Path) -> set[str]:
    """What a file of csrc includes, directly or through other files of csrc."""
    found: set[str] = set()
    queue = [path]
    while queue:
        new = set(includes(queue.pop())) - found
        found |= new
        queue += [CSRC / name for name in new if (CSRC / name).is_file()]
    return found


def test_includes_stay_in_their_room():
    for path in csrc_files():
        room = path.relative_to(CSRC).parts[0]
        for include in re.findall(r'#include "([^"]+)"', path.read_text()):
            assert (CSRC / include).is_file(), (
                f"{path.name} includes {include} by another path than csrc's"
            )
            target = include.split("/")[0]
            allowed = target in {room, "common"} or include in ROOMS.get(room, set())
            assert allowed, f"{room}/{path.name} must not include {include}"


@pytest.mark.parametrize("path", csrc_files(), ids=lambda path: str(path.relative_to(CSRC)))
def test_a_file_of_csrc_is_what_its_ending_says(path):
    """`.h`: contract and host core. `.cpp`: schema and CPU kernel. `.cuh`: CUDA kernels. `.cu`: checks,
    launch, registration. `.cu.h`: what several `.cu` files share of that. `.map`: what a library shows.
    """
    text, included = path.read_text(), all_includes(path)
    cuda = {name for name in included if re.search(r"\.cuh$|\.cu\.h$|^cuda_|^cub/", name)}
    torch_headers = {name for name in included if name.startswith("torch/")}
    assert ending(path) in {".h", ".cpp", ".cuh", ".cu", ".cu.h", ".map"}
    if ending(path) in {".h", ".cpp"}:
        assert not cuda, f"a file without CUDA includes {cuda}"
    if ending(path) == ".cuh":
        assert not torch_headers, f"kernels need no torch, {path.name} includes {torch_headers}"
    for word, place in (
        ("__global__", ".cuh"),
        ("STABLE_TORCH_LIBRARY_FRAGMENT", ".cpp"),
        ("SSD_CUDA_IMPL(m) {", ".cu"),
    ):
        assert word not in text or ending(path) == place, f"{word} stands in {place} files"
    python = path.parent.name == "python"
    assert python == any(name.startswith("pybind11/") for name in included)
    if ending(path) in {".cpp", ".cu"} and path.stem != "module" and not python:
        assert path.stem in schemas(), f"{path.name} is not of an op"
        assert f"{path.stem}.h" in {Path(name).name for name in included}, "the contract"


def test_no_name_of_csrc_is_used_twice():
    headers = [path.name for path in csrc_files(".h", ".cuh", ".cu.h")]
    types = [
        name
        for path in csrc_files()
        for name in re.findall(
            r"^(?:struct|class|enum class) (?:alignas\(.*\) )?(\w+)(?= [{:])",
            path.read_text(),
            re.M,
        )
    ]
    for names in (headers, types):
        assert len(names) > 20
        twice = {name for name in names if names.count(name) > 1}
        assert not twice, f"defined twice: {', '.join(sorted(twice))}"


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


def test_libraries_are_told_apart_by_their_names_and_found_by_place():
    readelf = shutil.which("readelf")
    if readelf is None:
        pytest.skip("readelf is not installed")
    for library in LIBRARIES:
        table = subprocess.run([readelf, "-d", library], capture_output=True, text=True).stdout
        assert re.search(r"SONAME.*\[(.+)\]", table)[1] == library.name
        assert re.search(r"RUNPATH.*\[(.+)\]", table)[1] == "$ORIGIN:$ORIGIN/../../torch/lib"
        needed = set(re.findall(r"NEEDED.*\[(.+?)\.so", table))
        assert not [name for name in needed if "python" in name or "c10" in name]
        assert ("libssd_ops" in needed) == ("cuda" in library.name)


def test_box_math_needs_no_torch():
    for name in ("box.h", "math.h", "host_device.h"):
        assert "torch/" not in (CSRC / "common" / name).read_text(), name


def symbols(library: Path, which: str) -> list[str]:
    """The dynamic symbols of a library, those that it defines or those that it takes from others."""
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("nm is not installed")
    table = subprocess.run([nm, "-D", which, library], capture_output=True, text=True, check=True)
    return [line.split()[-1] for line in table.stdout.splitlines()]


LIBRARIES = sorted(PACKAGE.glob("lib/*.so"))
SYSTEM = re.compile(r".*@(GLIBC|GLIBCXX|CXXABI|GCC)_|_ITM_|__gmon_start__$")
SANITIZERS = re.compile(r"__(asan|ubsan|tsan|sanitizer)_")  # tests/sanitize.py


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_a_library_needs_the_stable_abi_alone(library):
    """No symbol of Python, and of torch only its C functions."""
    names = symbols(library, "--undefined-only")
    assert any(name.startswith("aoti_torch_") for name in names)
    allowed = re.compile(r"aoti_torch_\w+$|torch_\w+$|ssd_ops_version$")
    others = [n for n in names if not (SYSTEM.match(n) or SANITIZERS.match(n) or allowed.match(n))]
    assert not others, f"{library.name} needs {others}"


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda path: path.name)
def test_a_library_shows_its_interface_alone(library):
    what = "ssd_ops_cuda" if "cuda" in library.name else "ssd_ops"
    defined = symbols(library, "--defined-only")
    assert sorted(defined) == [f"{what}_build_info", f"{what}_version"]


def test_the_modules_take_all_from_python_and_our_libraries():
    modules = sorted(PACKAGE.glob("_C*.so"))
    assert LIBRARIES and len(modules) == len(LIBRARIES)
    allowed = re.compile(r"_?Py\w+$|ssd_ops_\w+$")
    for module in modules:
        names = symbols(module, "--undefined-only")
        others = [
            n for n in names if not (SYSTEM.match(n) or SANITIZERS.match(n) or allowed.match(n))
        ]
        assert not others, f"{module.name} needs {others}"


def test_no_path_of_the_builder_in_the_library():
    for library in [*LIBRARIES, *PACKAGE.glob("_C*.so")]:
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


def files_of_an_op() -> list[tuple[str, list[str]]]:
    """The table of CONTRIBUTING.md: patterns of paths, and what a file of that path must contain."""
    rows = re.findall(r"^\| `([^`|]+)` \| (`[^|]+`) \|", GUIDE, flags=re.MULTILINE)
    return [(path, re.findall(r"`([^`]+)`", texts)) for path, texts in rows]


def missing(op: str, pattern: str, texts: list[str]) -> list[str]:
    """What no file of the pattern contains. The room of an op is the folder of its contract."""
    rooms = [path.parent.name for path in CSRC.glob(f"*/{op}.h")]
    pattern = pattern.replace("<op>", op).replace("<room>", rooms[0] if rooms else "*")
    found = [path.read_text() for path in ROOT.glob(pattern)]
    wanted = [text.replace("<op>", op) for text in texts]
    return [f"{pattern} has no {text}" for text in wanted if not any(text in f for f in found)]


def test_every_op_has_the_files_of_the_guide():
    assert schemas(), "no schema found"
    assert len(files_of_an_op()) == 10, "the table of CONTRIBUTING.md is not read"
    for op in schemas():
        wrong = [line for row in files_of_an_op() for line in missing(op, *row)]
        assert not wrong, wrong
        assert op in PUBLIC, f"{op} is not exported"
        registered = torch._C._dispatch_has_kernel_for_dispatch_key
        assert registered(f"ssd_ops::{op}", "Meta"), f"{op} has no fake kernel"


def test_a_missing_part_of_an_op_is_found():
    assert missing("nms", "csrc/<room>/<op>.h", ["check_<op>("]) == []
    assert missing("nms", "csrc/<room>/<op>.h", ["no such text"])
    assert missing("no_such_op", "csrc/<room>/<op>.h", ["check_<op>("])


def test_the_excerpts_of_the_guide_are_in_their_files():
    excerpts = re.findall(
        r'^```\w+ title="(\S+)"\n(.*?)^```', GUIDE, flags=re.MULTILINE | re.DOTALL
    )
    assert len(excerpts) > 5
    for name, code in excerpts:
        text = (ROOT / name).read_text()
        for line in code.splitlines():
            assert line.strip() == "..." or line in text, f"{name} has no line {line!r}"


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
    if module == "integrations.torchvision":
        pytest.importorskip("torchvision", exc_type=Exception)
    tests = doctest.DocTestFinder(exclude_empty=True).find(
        importlib.import_module(f"ssd_ops.{module}".rstrip("."))
    )
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    failed: list[str] = []
    for test in tests:
        if test.examples:
            runner.run(test, out=failed.append)
    assert not failed, "".join(failed)
