"""The driver of `make gpu`, with steps that need no GPU: what fails or hangs stops no other step."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROW = {
    "case": "nms 1,000 uniform",
    "eager": 100.0,
    "graph": 20.5,
    "kernels": 15.25,
    "launches": 4,
    "floor": 0.1,
    "rivals": {"torchvision": 400.0, "eager": "RuntimeError: x"},
}
TRAINED = json.dumps(
    {
        "benchmarks": [
            {
                "group": "training, 6 steps",
                "name": impl,
                "extra_info": {"impl": impl, **note},
                "stats": {"median": seconds},
            }
            for impl, seconds, note in (
                ("ssd_ops", 2.0, {"note": "96 examples/s"}),
                ("d2l", 20.0, {}),
            )
        ]
    }
)


def load_suite():
    path = ROOT / "benchmarks" / "gpu" / "suite.py"
    spec = importlib.util.spec_from_file_location("gpu_suite", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_step_has_its_outcome(tmp_path, monkeypatch, capsys):
    suite = load_suite()

    def python(code):
        return [sys.executable, "-c", code]

    steps = [
        ("hangs", 1, python("import time; print('begun', flush=True); time.sleep(30)")),
        ("fails", 20, python("raise SystemExit(3)")),
        ("missing", 20, ["no-such-program"]),
        ("benchmarks", 20, python(f"print({json.dumps([ROW])!r})")),
        (
            "training",
            20,
            python(f"open({str(tmp_path / suite.TRAINING)!r}, 'w').write({TRAINED!r})"),
        ),
    ]
    monkeypatch.setattr(suite, "steps", lambda out: steps)
    assert suite.main(tmp_path) == 1
    results = json.loads((tmp_path / "results.json").read_text())["steps"]
    assert [results[name]["outcome"] for name, *_ in steps] == [
        "stopped after 1 s",
        "failed with 3",
        "no-such-program is not installed",
        "passed",
        "passed",
    ]
    assert results["hangs"]["last"] == "begun"
    assert results["benchmarks"]["result"] == [ROW]
    table = (tmp_path / "table.md").read_text()
    assert (
        "| nms 1,000 uniform | 100.0 | 20.5 | 15.2 | 4 | 0.1 | torchvision 400 (4x); eager: Runtime"
        in table
    )
    assert "| training, 6 steps | 2 s; 96 examples/s | 20 s (10x) |" in table
    assert table in capsys.readouterr().out
    assert "begun" in (tmp_path / "log.txt").read_text()


def test_the_limits_of_the_steps_fit_the_files_it_names():
    suite = load_suite()
    for name, limit, command in suite.steps(Path("out")):
        assert 0 < limit <= suite.BUDGET, name
        for part in command:
            if part.endswith((".py", ".cu")):
                assert (ROOT / part).is_file(), part
