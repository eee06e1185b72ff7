"""The build: its messages where it cannot be done, what the packages hold, and that they install and run."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

import ssd_ops
from ssd_ops import _ext

ROOT = Path(__file__).resolve().parent.parent
BLOCK_TORCH = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ImportError("no torch here")
sys.meta_path.insert(0, Finder())
"""


def run(command, **kwargs):
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **kwargs)


def said(result):
    """The lines on stderr, without what a torch for GPUs says first where there is none."""
    lines = result.stderr.strip().splitlines()
    return [line for line in lines if "torch/utils/cpp_extension.py" not in line]


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the build reads, so that it writes nothing here."""
    for name in ("csrc", "ssd_ops"):
        ignore = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(ROOT / name, tmp_path / "src" / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "src")
    (tmp_path / "src" / "tests").mkdir()
    (tmp_path / "src" / "tests" / "test_nothing.py").touch()
    return tmp_path / "src"


@pytest.fixture
def sdist(checkout):
    """The source distribution; making it needs no torch."""
    made = run([sys.executable, "setup.py", "-q", "sdist"], cwd=checkout)
    assert made.returncode == 0, made.stderr
    assert "warning" not in made.stderr.lower(), made.stderr
    (archive,) = (checkout / "dist").iterdir()
    return archive


def files_below(folder: Path, *suffixes: str) -> set[str]:
    """Paths relative to the checkout of the files that a package has to hold."""
    return {
        str(path.relative_to(folder.parent))
        for path in folder.rglob("*")
        if path.suffix in suffixes
    }


SOURCES = files_below(ROOT / "csrc", ".h", ".cpp", ".cuh", ".cu", ".map")
MODULES = files_below(ROOT / "ssd_ops", ".py", ".typed", ".h", ".cmake")


def test_without_torch_the_build_says_what_to_do(checkout, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(BLOCK_TORCH)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    result = run([sys.executable, "setup.py", "build_ext"], cwd=checkout, env=env)
    assert result.returncode == 1
    last = said(result)
    assert len(last) == 1
    assert last[0].startswith("ssd_ops: building needs torch 2.11 or newer")
    assert "pip install --no-build-isolation" in last[0]


def test_without_a_compiler_the_build_says_what_to_do(checkout):
    env = {**os.environ, "CXX": "no-such-compiler"}
    result = run([sys.executable, "setup.py", "build_ext"], cwd=checkout, env=env)
    assert result.returncode == 1
    last = said(result)
    assert len(last) == 1
    assert last[0].startswith("ssd_ops: building needs a C++17 compiler, and `no-such-compiler`")


def test_the_sdist_holds_what_the_build_reads(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert SOURCES and MODULES
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE"} | SOURCES | MODULES <= names
    assert not [name for name in names if name.startswith("tests") or name.endswith(".so")]


def test_a_wheel_holds_what_its_build_made_and_nothing_older(checkout):
    """The kernels of an earlier build do not go into a wheel without CUDA."""
    for path in sorted((checkout / "csrc").rglob("*.c*")):
        if path.stem not in ("module", "_C"):
            path.unlink()  # so that it takes seconds
    older = f"build/lib.{sysconfig.get_platform()}-{sys.implementation.cache_tag}/ssd_ops/lib"
    (checkout / older).mkdir(parents=True)
    (checkout / older / "libssd_ops_cuda.so").touch()
    env = {**os.environ, "SSD_OPS_CUDA": "0"}
    made = run([sys.executable, "setup.py", "-q", "bdist_wheel"], cwd=checkout, env=env)
    assert made.returncode == 0, made.stderr[-2000:]
    (wheel,) = (checkout / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        libraries = sorted(name for name in archive.namelist() if name.endswith(".so"))
    assert [name.partition(".")[0] for name in libraries] == [
        "ssd_ops/_C",
        "ssd_ops/lib/libssd_ops",
    ]


@pytest.mark.slow
def test_the_sdist_installs_in_an_empty_environment_and_runs(sdist, tmp_path):
    """As a stranger's pip does it: in isolation, without nvcc, and with no other torch than the one there."""
    # An environment of torch alone: what this one's torch needs, and nothing of this checkout.
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(run([python, "-c", "import site; print(site.getsitepackages()[0])"]).stdout.strip())
    (site / "torch_of_the_tests.pth").write_text(str(Path(torch.__file__).parent.parent))
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    # Without nvcc: a wheel would have kernels for every GPU, which takes many minutes.
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SSD_OPS_CUDA")}
    env["CUDA_HOME"] = str(tmp_path / "none")
    wheels = tmp_path / "wheels"
    made = run(
        [*pip, "wheel", "-v", "--no-cache-dir", "--no-deps", "-w", wheels, sdist],
        cwd=tmp_path,
        env=env,
    )
    if made.returncode and "No matching distribution found" in made.stderr + made.stdout:
        pytest.skip(
            "pip reaches no packages here, and an isolated build needs setuptools from them"
        )
    assert made.returncode == 0, made.stderr[-2000:]
    assert (
        "ssd_ops: building without CUDA kernels: there is no bin/nvcc" in made.stdout + made.stderr
    )
    (wheel,) = wheels.glob("*.whl")
    assert wheel.stat().st_size < 5_000_000
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    libraries = {name for name in names if name.endswith(".so")}
    stems = sorted(name.partition(".")[0] for name in libraries)
    assert stems == ["ssd_ops/_C", "ssd_ops/lib/libssd_ops"]
    assert names == MODULES | libraries

    installed = run([*pip, "install", "--no-deps", "--force-reinstall", wheel])
    assert installed.returncode == 0, installed.stderr
    code = (
        "import torch, ssd_ops; from ssd_ops import _ext; print(_ext.library_path());"
        "print(ssd_ops.nms(torch.tensor([[0., 0, 1, 1]] * 2), torch.ones(2), 0.5).tolist())"
    )
    result = run([python, "-c", code], cwd=tmp_path, env=env)
    assert result.returncode == 0, result.stderr
    path, answer = result.stdout.splitlines()
    assert Path(path).is_relative_to(site)
    assert answer == "[0]"
    assert run([*pip, "uninstall", "-y", "ssd_ops"], env=env).returncode == 0
    assert not (site / "ssd_ops").exists()


def test_an_editable_install_is_seen_by_mypy(tmp_path):
    """From another folder, with the type of every public name; a wrong call is found."""
    pytest.importorskip("mypy")
    # Of several, since setuptools leaves metadata in the checkout too.
    found = importlib.metadata.distributions(name="ssd_ops")
    facts = [json.loads(one.read_text("direct_url.json") or "{}") for one in found]
    if not any(fact.get("dir_info", {}).get("editable") for fact in facts):
        pytest.skip("ssd_ops is not installed in editable mode here")
    lines = [f"reveal_type(ssd_ops.{name})" for name in ssd_ops.__all__]
    (tmp_path / "call.py").write_text("\n".join(["import ssd_ops", *lines, "ssd_ops.nms(3)"]))
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    cache = ROOT / "build" / "mypy"  # reading torch takes long the first time
    mypy = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", cache, "call.py"]
    done = run(mypy, cwd=tmp_path, env=env)
    *revealed, wrong, wrong_too, summary = done.stdout.splitlines()
    assert len(revealed) == len(ssd_ops.__all__), done.stdout
    assert not [line for line in revealed if "Revealed type is" not in line or "Any" in line]
    assert 'Missing positional arguments "scores", "iou_threshold"' in wrong
    assert 'incompatible type "int"; expected "Tensor"' in wrong_too
    assert summary.startswith("Found 2 errors")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            {"SSD_OPS_CUDA": "1", "CUDA_HOME": "no-such-folder"},
            "SSD_OPS_CUDA=1 asks for CUDA kernels, but there is no bin/nvcc in no-such-folder, which "
            "CUDA_HOME names",
        ),
        (
            {"SSD_OPS_CUDA": "1", "PATH_WITHOUT": "nvcc"},
            "SSD_OPS_CUDA=1 asks for CUDA kernels, but ",
        ),
        ({"SSD_OPS_CUDA": "yes"}, "SSD_OPS_CUDA must be 0 or 1, got `yes`"),
    ],
    ids=["no toolkit there", "no nvcc", "no number"],
)
def test_cuda_asked_for_and_impossible_ends_the_build_with_a_sentence(checkout, env, message):
    env = {**os.environ, **env}
    if env.pop("PATH_WITHOUT", None):
        env = {k: v for k, v in env.items() if k not in ("CUDA_HOME", "CUDA_PATH")}
        folders = env["PATH"].split(os.pathsep)
        env["PATH"] = os.pathsep.join(f for f in folders if not (Path(f) / "nvcc").exists())
        if (
            Path("/usr/local/cuda/bin/nvcc").exists()
            or shutil.which("g++", path=env["PATH"]) is None
        ):
            pytest.skip("nvcc cannot be hidden here")
    result = run([sys.executable, "setup.py", "build_ext"], cwd=checkout, env=env)
    assert result.returncode == 1
    last = said(result)
    assert len(last) == 1 and last[0].startswith(f"ssd_ops: {message}"), result.stderr


def test_a_wrong_list_of_architectures_ends_the_build_with_a_sentence(checkout):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    env = {**os.environ, "SSD_OPS_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "Hopper;9.0"}
    result = run([sys.executable, "setup.py", "build_ext"], cwd=checkout, env=env)
    assert result.returncode == 1
    assert (
        result.stderr.strip()
        .splitlines()[-1]
        .startswith(
            "ssd_ops: TORCH_CUDA_ARCH_LIST must be numbers such as `8.0;9.0+PTX`, got `Hopper;9.0`"
        )
    )


@pytest.mark.skipif(
    shutil.which("nvcc") is None or os.environ.get("SSD_OPS_CUDA") == "0",
    reason="built without nvcc",
)
def test_the_cuda_kernels_are_built_where_nvcc_is():
    library = ROOT / "ssd_ops" / "lib" / "libssd_ops_cuda.so"
    for op in _ext.op_names():
        # Its mangled name holds the name of the function that registers the kernel.
        assert f"{op.removeprefix('ssd_ops::')}_cuda".encode() in library.read_bytes(), op


@pytest.mark.skipif(torch.version.cuda is None, reason="torch is built without CUDA")
@pytest.mark.skipif(
    shutil.which("nvcc") is None or os.environ.get("SSD_OPS_CUDA") == "0",
    reason="built without nvcc",
)
def test_a_cuda_torch_gets_the_cuda_kernels():
    assert _ext.build_info()["cuda"].startswith("nvcc")
    for op in _ext.op_names():
        assert torch._C._dispatch_has_kernel_for_dispatch_key(op, "CUDA"), op


def test_without_cuda_kernels_a_cuda_tensor_gets_a_sentence():
    """In a process of its own: what it registers stays."""
    code = (
        "import torch, ssd_ops; from ssd_ops import _ext\n"
        "kept = _ext._explain_missing_cuda('ssd_ops was built without CUDA kernels')\n"
        "op = torch.ops.ssd_ops.nms.default\n"
        "op._op_dk(torch._C.DispatchKey.CUDA, torch.zeros(2, 4), torch.zeros(2), 0.5, 0)"
    )
    if torch._C._dispatch_has_kernel_for_dispatch_key("ssd_ops::nms", "CUDA"):
        pytest.skip("the CUDA kernels are there")
    result = run([sys.executable, "-c", code])
    assert result.stderr.strip().splitlines()[-1] == (
        "RuntimeError: nms: its tensors are on a CUDA device, and ssd_ops was built without CUDA kernels. "
        f"Install the CUDA toolkit and build again with SSD_OPS_CUDA=1 {_ext.REBUILD}, or move the tensors "
        "to the CPU."
    )


def copy_of_the_package(folder: Path) -> Path:
    """The CPU library of another copy of the package, in a folder."""
    cuda = shutil.ignore_patterns("*_cuda*", "__pycache__")
    shutil.copytree(ROOT / "ssd_ops", folder / "ssd_ops", ignore=cuda)
    return folder / "ssd_ops" / "lib" / "libssd_ops.so"


def test_a_second_copy_of_the_package_is_refused(tmp_path):
    """Loading two copies of the ops would end the process."""
    copy_of_the_package(tmp_path)
    code = (
        "import sys, ssd_ops; first = ssd_ops._ext.library_path()\n"
        "for name in [name for name in sys.modules if name.startswith('ssd_ops')]: del sys.modules[name]\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        "try:\n    import ssd_ops\nexcept ImportError as error:\n    print(first in str(error), error)\n"
    )
    result = run([sys.executable, "-c", code], cwd=tmp_path.parent)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("True ssd_ops: another copy of the library is loaded already")
    assert str(tmp_path) in result.stdout
    assert result.stdout.count(f"version {ssd_ops.__version__}") == 2


def test_the_same_library_may_be_loaded_before_the_package():
    code = (
        f"import torch; torch.ops.load_library({_ext.library_path()!r})\n"
        "import ssd_ops; print(ssd_ops.nms(torch.zeros(1, 4), torch.ones(1), 0.5).tolist())"
    )
    result = run([sys.executable, "-c", code])
    assert result.stdout.strip() == "[0]", result.stderr


def test_a_library_of_another_version_than_the_python_files_is_refused(tmp_path):
    copy_of_the_package(tmp_path)
    (tmp_path / "ssd_ops" / "version.py").write_text('__version__ = "9.9.9"\n')
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import ssd_ops"
    result = run([sys.executable, "-c", code], cwd=tmp_path)
    last = result.stderr.strip().splitlines()[-1]
    assert f"{tmp_path}/ssd_ops/lib/libssd_ops.so is of version {ssd_ops.__version__}" in last
    assert "the Python files are of version 9.9.9" in last


def test_a_second_library_is_refused_by_name_without_python_too(tmp_path):
    """What a C++ program meets that loads two; with one of the two linked in, also."""
    own, copy = _ext.library_path(), str(copy_of_the_package(tmp_path))
    load = "import torch, ctypes; ctypes.CDLL({!r}{}); ctypes.CDLL({!r})"
    says = (
        f"ssd_ops: the op library {{}}, version {ssd_ops.__version__}, is loaded already, so {{}}, version "
        f"{ssd_ops.__version__}, cannot be loaded into the same process: keep one of the two."
    )
    for first, second in ((own, copy), (copy, own)):
        for mode in ("", ", ctypes.RTLD_GLOBAL"):
            result = run([sys.executable, "-c", load.format(first, mode, second)])
            assert result.returncode == -signal.SIGABRT
            assert result.stderr.strip() == says.format(first, second)
    assert run([sys.executable, "-c", load.format(own, "", own)]).returncode == 0


def test_a_missing_library_is_said_plainly(tmp_path):
    shutil.copytree(ROOT / "ssd_ops", tmp_path / "ssd_ops", ignore=shutil.ignore_patterns("*.so"))
    packages = str(Path(torch.__file__).parent.parent)
    code = f"import sys; sys.path += [{str(tmp_path)!r}, {packages!r}]; import ssd_ops"
    # -S leaves out the hook of an editable install, which would supply the library.
    result = run([sys.executable, "-S", "-c", code], cwd=tmp_path)
    assert "ssd_ops: the compiled library is missing" in result.stderr
    assert "pip install --no-build-isolation" in result.stderr


def test_version_and_build_facts():
    info = _ext.build_info()
    assert info["torch_target"] == "2.11"
    assert info["cxx"] == 201703
    assert ssd_ops.__version__.count(".") == 2


def test_the_library_names_no_path_of_its_builder():
    library = Path(_ext.library_path()).read_bytes()
    assert str(ROOT).encode() not in library


def test_cuda_kernels_of_another_version_are_refused(tmp_path):
    """Their library without the kernels, as of another version; nvcc is not needed for what says no."""
    compiler = os.environ.get("CXX", "g++").split()[0]
    if shutil.which(compiler) is None:
        pytest.skip("a C++ compiler is not installed")
    own, other = Path(_ext.library_path()), tmp_path / "libssd_ops_cuda.so"
    facts = {"VERSION": "9.9.9", "TARGET": "2.11", "ARCHITECTURES": "9.0"}
    command = [
        *(compiler, "-shared", "-fPIC", "-std=c++17", f"-I{ROOT / 'csrc'}", "-x", "c++"),
        *(f'-DSSD_OPS_{name}="{value}"' for name, value in facts.items()),
        *(str(ROOT / "csrc" / "common" / "module.cu"), "-x", "none", str(own), "-o", str(other)),
    ]
    made = run(command)
    assert made.returncode == 0, made.stderr
    result = run([sys.executable, "-c", f"import ssd_ops, ctypes; ctypes.CDLL({str(other)!r})"])
    assert result.returncode == -signal.SIGABRT
    assert result.stderr.strip() == (
        f"ssd_ops: the op library {own}, version {ssd_ops.__version__}, is loaded already, so {other}, "
        "version 9.9.9, cannot be loaded into the same process: both must be of one version."
    )
