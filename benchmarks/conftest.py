"""`pytest benchmarks` times every op and its rivals. No benchmark fails because it is slow.

pytest benchmarks --benchmark-columns=median,iqr,rounds --benchmark-json=out.json
python benchmarks/table.py out.json
"""

from __future__ import annotations

import contextlib
import platform
import sys
from pathlib import Path

import pytest
import torch

import ssd_ops

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))  # cases.py


def pytest_addoption(parser):
    parser.addoption("--threads", type=int, default=2, help="threads of torch (default: 2)")
    parser.addoption(
        "--steps", type=int, default=6, help="training steps of bench_training (default: 6)"
    )


def pytest_configure(config):
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["ssd_ops"] = ssd_ops.__version__
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = config.getoption("--threads")
    machine_info["simd"] = torch.backends.cpu.get_cpu_capability()
    machine_info["system"] = platform.platform()


@pytest.fixture(autouse=True)
def _threads_and_seed(request):
    """All implementations of a case run with the same number of threads and the same random numbers."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def full_precision():
    """`with full_precision():` turns TF32 convolutions off on a GPU, so that results can be compared."""

    @contextlib.contextmanager
    def run():
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = before

    return run


@pytest.fixture
def timed(benchmark):
    """timed(case, impl, implementations, args, same): times one implementation of an op.

    `implementations` maps names to functions. Ours is "ssd_ops". If a rival cannot run here, its value is
    the reason as a string, and the case is skipped. Before the clock starts, `same` compares the result
    with ours.
    """

    def run(case, impl, implementations, args, same):
        function = implementations[impl]
        if isinstance(function, str):
            pytest.skip(f"{impl}: {function}")
        benchmark.group = case
        benchmark.extra_info["impl"] = impl
        with torch.no_grad():
            assert same(function(*args), implementations["ssd_ops"](*args)), (
                f"{impl} gives another result"
            )
            if benchmark.enabled:
                benchmark(function, *args)
            else:
                benchmark(lambda: None)  # `--benchmark-disable`: only the comparison runs

    return run
