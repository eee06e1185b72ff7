"""`make gpu`, rehearsed without a GPU: the driver with every step made to fail, to hang and to be killed, and
every check and benchmark itself, on tiny shapes."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import signal
import subprocess
import sys
import time
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import backends
import pytest
import torch
from torch.overrides import TorchFunctionMode

import ssd_ops

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "benchmarks" / "gpu"
TRAINED = {
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


@pytest.fixture
def load(monkeypatch):
    """load(name): a module of benchmarks/gpu."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def suite(load, monkeypatch):
    """The driver, which does not ask what machine this is, and gives no case time for last words."""
    module = load("suite")
    monkeypatch.setattr(module, "machine", lambda: {"gpu": "stand-in"})
    monkeypatch.setattr(module, "SLACK", 0.2)
    before = signal.getsignal(signal.SIGTERM)
    yield module
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("installed", "options"),
    [
        ((), []),
        (("pytest_timeout",), []),
        (("xdist",), ["-n"]),
        (("xdist", "pytest_timeout"), ["-n", "--timeout", "--timeout-method"]),
    ],
)
def test_pytest_gets_the_options_of_what_is_installed(suite, monkeypatch, installed, options):
    monkeypatch.setattr(suite.importlib.util, "find_spec", lambda name: name in installed or None)
    tests = next(step for step in suite.steps(Path("out")) if step.name == "tests")
    last = tests.command[tests.command.index("-k") + 2 :]
    assert [part for part in last if part.startswith("-")] == options
    assert "-x" not in tests.command


# What stands in for the command of a step. Each notes its process, and a child of it, in a file.
GOOD = "echo all good"
FAILS = "echo it fails; exit 3"
KILLED = "echo before; kill -KILL $$"
# Neither the command nor its child ends when asked to.
HANGS = "echo begun; trap '' TERM INT HUP; sleep 60 & echo $! >>PIDS; sleep 60"
# A child holds the pipe open that the driver reads.
LEAVES_A_CHILD = "sleep 60 & echo $! >>PIDS; echo all good"


def shell(text: str, folder: Path) -> list[str]:
    pids = folder / "pids"
    return ["sh", "-c", f"echo $$ >>{pids}; {text}".replace("PIDS", str(pids))]


def alive(folder: Path) -> list[int]:
    """The processes noted in a folder that still run, a second after the end at most."""
    pids = [int(text) for text in (folder / "pids").read_text().split()]
    assert pids

    def runs(pid):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        return state != "Z"

    for _ in range(50):
        left = [pid for pid in pids if runs(pid)]
        if not left:
            break
        time.sleep(0.02)
    return left


def outcomes(folder: Path) -> dict[str, dict]:
    return json.loads((folder / "results.json").read_text())["steps"]


REAL_STEPS = (
    "build",
    "one call of every op",
    "memcheck",
    "racecheck",
    "tests",
    "large shapes",
    "benchmarks",
    "agreement",
    "step tests",
    "training",
    "torch.compile",
    "probes build",
    "probes",
)


def test_the_steps_are_those_of_the_plan_and_fit_into_the_budget(suite):
    steps = suite.steps(Path("out"))
    assert tuple(step.name for step in steps) == REAL_STEPS
    assert sum(step.limit for step in steps) < suite.BUDGET == 530
    for step in steps:
        assert step.limit > 0 and (step.most == 0 or step.most >= step.limit), step.name
        for part in step.command:
            if part.endswith((".py", ".cu")):
                assert (ROOT / part).is_file(), part
        # A case can only be left out by a command that knows `--after`.
        assert not step.by_cases or {"checks.py", "bench.py"} & {Path(p).name for p in step.command}


@pytest.mark.parametrize(
    ("text", "outcome", "last"),
    [
        (FAILS, "failed with 3", "it fails"),
        (HANGS, "stopped after 0.4 s", "begun"),
        (KILLED, "killed by signal 9", "before"),
    ],
    ids=["fails", "hangs", "is killed"],
)
def test_every_step_in_turn(suite, tmp_path, text, outcome, last):
    """One step goes wrong; all others have their results, in the log too, and no process is left."""
    for place, name in enumerate(REAL_STEPS):
        folder = tmp_path / str(place)
        folder.mkdir()
        todo = [
            replace(
                step,
                limit=0.4 if i == place else 20,
                most=0,
                command=shell(text if i == place else GOOD, folder),
            )
            for i, step in enumerate(suite.steps(folder))
        ]
        start = time.monotonic()
        assert suite.main(folder, todo) == 1
        assert time.monotonic() - start < 15
        got = outcomes(folder)
        assert [*got] == [*REAL_STEPS]
        assert got[name]["outcome"] == outcome and got[name]["last"] == last
        others = {step["outcome"] for other, step in got.items() if other != name}
        assert others == {"passed"}
        assert (folder / "log.txt").read_text().count("all good\n") >= len(REAL_STEPS) - 1
        assert f"| {name} | {outcome} |" in (folder / "table.md").read_text()
        assert alive(folder) == []


def test_what_a_step_leaves_behind_ends_with_it(suite, tmp_path):
    start = time.monotonic()
    step = suite.Step("leaves a child", 20, shell(LEAVES_A_CHILD, tmp_path))
    assert suite.main(tmp_path, [step]) == 0
    assert time.monotonic() - start < 10
    assert alive(tmp_path) == []


def test_steps_that_hang_take_no_more_than_the_budget(suite, tmp_path):
    todo = [suite.Step(str(i), 1.0, shell(HANGS, tmp_path)) for i in range(4)]
    start = time.monotonic()
    assert suite.main(tmp_path, todo, budget=2.2) == 1
    assert time.monotonic() - start < 4
    got = [outcomes(tmp_path)[step.name]["outcome"] for step in todo]
    assert got[0] == got[1] == "stopped after 1.0 s" and got[-1] == "no time left"
    assert alive(tmp_path) == []


def test_a_step_may_use_what_those_before_it_left(suite, tmp_path, capsys):
    """But not what those after it have in any case."""
    todo = [
        suite.Step("first", 100, shell(GOOD, tmp_path)),
        suite.Step("second", 10, shell(GOOD, tmp_path), most=50),
        suite.Step("third", 10, shell(GOOD, tmp_path), most=500),
        suite.Step("fourth", 70, shell(GOOD, tmp_path)),
    ]
    assert suite.main(tmp_path, todo, budget=200.4) == 0
    given = re.findall(r"(\w+) \(at most (\d+) s\)", capsys.readouterr().out)
    seconds = {name: int(text) for name, text in given}
    assert seconds == {"first": 100, "second": 50, "third": pytest.approx(129, abs=2), "fourth": 70}


def test_a_program_that_is_missing(suite, tmp_path):
    todo = [
        suite.Step("missing", 20, ["no-such-program"]),
        suite.Step("next", 20, shell(GOOD, tmp_path)),
    ]
    assert suite.main(tmp_path, todo) == 1
    assert [step["outcome"] for step in outcomes(tmp_path).values()] == [
        "no-such-program does not start: No such file or directory",
        "passed",
    ]


def test_neither_git_nor_a_gpu_is_needed_to_say_what_machine_it_is(load, monkeypatch):
    monkeypatch.setenv("PATH", "")
    facts = load("suite").machine()
    assert facts["commit"] == facts["driver, clocks"] == "?"
    assert facts["gpu"]


def test_results_are_kept_when_the_suite_itself_is_stopped(tmp_path):
    hangs = shell(HANGS, tmp_path)[-1]
    text = hangs.replace("echo begun", """echo '{"case": "one", "eager": 1}'; echo begun""")
    code = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(ROOT / "benchmarks")!r}, {str(FOLDER)!r}]
import suite
suite.machine = lambda: {{"gpu": "stand-in"}}
todo = [suite.Step("first", 20, ["echo", "good"]), suite.Step("second", 99, ["sh", "-c", {text!r}])]
sys.exit(suite.main(Path({str(tmp_path)!r}), todo))
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    log, end = tmp_path / "log.txt", time.monotonic() + 20
    while time.monotonic() < end and not (log.is_file() and "begun\n" in log.read_text()):
        time.sleep(0.05)
    process.terminate()
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    got = outcomes(tmp_path)
    assert got["first"]["outcome"] == "passed"
    assert got["second"]["outcome"] == "stopped from outside"
    assert got["second"]["cases"] == {"one": {"eager": 1}}
    assert alive(tmp_path) == []


CASES = """
import os, sys, time
sys.path.insert(0, {folder!r})
import stream
from stream import Case

class Device:
    gone = False

    def synchronize(self):
        pass

    def broken(self):
        return self.gone


def good(say):
    assert not device.gone
    say(eager=1.5, rivals={{"a": {{"same": True}}}})
    say(rivals={{"b": {{"same": False}}}})


def raises(say):
    raise ValueError("of no use")


def hangs(say):
    say(eager=2.5)
    time.sleep(60)


def killed(say):
    os.kill(os.getpid(), 9)


def breaks(say):
    device.gone = True
    raise RuntimeError("an access out of bounds")


device = Device()
cases = [Case("first", 9, good), Case("raises", 9, raises), Case("hangs", 0.5, hangs),
         Case("after", 9, good), Case("killed", 9, killed), Case("breaks", 9, breaks),
         Case("last", 9, good)]
sys.exit(stream.run(cases, device, stream.parser("").parse_args().after))
"""


def test_a_case_costs_only_itself(suite, tmp_path):
    """One raises, one hangs, one kills the process and one leaves it of no use: the others have results."""
    script = tmp_path / "cases.py"
    script.write_text(CASES.format(folder=str(FOLDER)))
    command = [sys.executable, str(script)]
    todo = [suite.Step("cases", 60, command, by_cases=True), suite.Step("next", 9, ["true"])]
    assert suite.main(tmp_path, todo) == 1
    got = outcomes(tmp_path)
    good = {"eager": 1.5, "rivals": {"a": {"same": True}, "b": {"same": False}}}
    assert got["cases"]["cases"] == {
        "first": good,
        "raises": {"error": "ValueError: of no use"},
        "hangs": {"eager": 2.5, "error": "hangs"},
        "after": good,
        "killed": {"error": "the process killed by signal 9"},
        "breaks": {"error": "RuntimeError: an access out of bounds"},
        "last": good,
    }
    assert got["cases"]["outcome"] == "4 of 7 cases failed"
    assert len(got["cases"]["failed"]) == 4
    assert got["next"]["outcome"] == "passed"
    # Where the case hung.
    assert "in hangs\n" in (tmp_path / "log.txt").read_text()


def test_a_case_that_outlasts_its_step(suite, tmp_path):
    """It is not started again, and what was there before is kept."""
    lines = ['{"begin": "a", "limit": 9}', '{"case": "a", "eager": 1}', '{"end": "a"}']
    lines += ['{"begin": "b", "limit": 9}', '{"case": "b", "eager": 2}']
    text = "; ".join(f"echo '{line}'" for line in lines) + "; sleep 60"
    step = suite.Step("cases", 0.5, shell(text, tmp_path), by_cases=True)
    assert suite.main(tmp_path, [step]) == 1
    got = outcomes(tmp_path)["cases"]
    assert got["outcome"] == "stopped after 0.5 s, 1 of 2 cases failed"
    assert got["cases"]["a"] == {"eager": 1}
    assert got["cases"]["b"] == {"eager": 2, "error": "the time of the step was over"}
    assert alive(tmp_path) == []


def test_the_table(suite, tmp_path):
    def measure(median):
        return {"p10": median - 1, "median": median, "p90": median + 10, "times": 50}

    row = {
        "eager": measure(100.0),
        "graph": measure(20.5),
        "kernels": 15.25,
        "launches": 4.0,
        "bytes": 8000,
        "kept": 1234,
        "rivals": {
            "torchvision": {"same": True, "eager": measure(400.0), "graph": "waits"},
            "d2l": {"same": False, "eager": measure(50_000.0)},
            "eager": {"error": "RuntimeError: x"},
        },
    }
    compiled = {
        "rivals": {"compiled": {"same": True, "eager": measure(50.0), "graph": measure(41.0)}}
    }
    name = "nms 1,000 large boxes"
    bench = {"a copy": {"bytes a microsecond": 4000.0}, name: row, "another": {"error": "hangs"}}
    results = {
        "machine": {"gpu": "X"},
        "steps": {
            "tests": {"outcome": "failed with 1", "failed": ["FAILED a::b"], "seconds": 3.0},
            "benchmarks": {"outcome": "1 of 3", "failed": [], "cases": bench},
            "torch.compile": {"outcome": "passed", "failed": [], "cases": {name: compiled}},
            "agreement": {
                "outcome": "passed",
                "failed": [],
                "cases": {"agreement": {"batches": 1234, "different": {}}},
            },
        },
    }
    (tmp_path / suite.TRAINING).write_text(json.dumps(TRAINED))
    text = suite.table(results, tmp_path)
    aims = json.loads(suite.PREDICTED.read_text())["cases"][name]
    assert (
        f"| {name} | 1,234 | {aims['predicted']} | {aims['to reach']} | 20.5 (19.5 to 30.5) |  | "
        "100 (99 to 110) |  | 15.2 in 4 | 2 | torchvision: 400 (4x) eager; d2l [gives others]: "
        "50,000 (500x) eager; eager: RuntimeError: x; compiled: 50 (0.5x) eager, 41 (2x) graph |"
    ) in text
    assert "| another |  |  |  |  |  |  |  |  |  |  **hangs** |" in text
    assert "- tests: FAILED a::b" in text
    assert "1,234 batches of every op; different: none" in text
    assert "| training, 6 steps | 2 s; 96 examples/s | 20 s (10x) |" in text


def test_every_op_has_a_call_and_a_case(load):
    """And one that has none is a failure of the check, not an op left out."""
    checks, shapes = load("checks"), load("shapes")
    assert sorted(checks.draw(0)) == checks.every_op()
    timed = {name.partition(" ")[0] for name in shapes.all_shapes(tiny=True)}
    assert timed == set(checks.every_op())


def test_an_op_without_a_call_fails(load, monkeypatch, capsys):
    checks, stream, device = load("checks"), load("stream"), load("device")
    schema = namedtuple("Schema", "name")("ssd_ops::new_op")
    monkeypatch.setattr(backends, "schemas", lambda: [schema])
    options = stream.parser("").parse_args([])
    options.draws, options.replays = 1, 0
    on = device.open_device("cpu")
    assert stream.run(checks.calls(options, on), on) == 1
    assert "there is no call of new_op" in capsys.readouterr().out


class OneMore(TorchFunctionMode):
    """A device whose box_iou is wrong."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return result + 1 if str(function).startswith("ssd_ops.box_iou") else result


def test_a_wrong_answer_of_the_device_is_seen(load, monkeypatch, capsys):
    """In a call, in a replay, on two streams, and in what is printed until the deadline."""
    checks, stream, device = load("checks"), load("stream"), load("device")
    on = device.open_device("cpu")
    monkeypatch.setattr(on, "kernels", OneMore)
    monkeypatch.setattr(checks, "every_op", lambda: ["box_iou", "encode_boxes"])
    # Of another size than an empty one.
    drawn = checks.draw
    monkeypatch.setattr(checks, "draw", lambda number: drawn(0))
    options = stream.parser("").parse_args([])
    options.draws, options.replays, options.seconds, options.first = 2, 2, 0.2, 0
    stream.run(checks.calls(options, on), on)
    stream.run(checks.agreement(options, on), on)
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    found: dict = {}
    for row in rows:
        found.setdefault(row.get("case"), {}).update(row)
    assert found["box_iou"]["different"] == {"calls": 2, "replays": 2, "on two streams": 2}
    assert found["encode_boxes"]["different"] == {}
    assert found["agreement"]["different"] == {"box_iou": found["agreement"]["batches"]}
    assert found["agreement"]["first different"][0] == "box_iou of 0"


def test_the_stand_in_keeps_tensors_of_two_devices_apart(load):
    """What a GPU would refuse, the rehearsal on the CPU refuses."""
    on = load("device").open_device("cpu")
    x = on.put([torch.ones(3)])[0]
    with on.kernels():
        assert (x + torch.ones(3, device=x.device)).tolist() == [2, 2, 2]
        assert (x[1:] * torch.tensor([2.0, 3.0], device=x.device)).tolist() == [2, 3]
        assert torch.stack([row + 1 for row in x]).tolist() == [2, 2, 2]
        for wrong in (torch.arange(3), torch.tensor([1.0, 2, 3])):
            with pytest.raises(RuntimeError, match="of the CPU and of the device together"):
                x.flip(0) + wrong
        with pytest.raises(RuntimeError, match="together"):
            ssd_ops.box_iou(torch.ones(2, 4), on.put(torch.ones(2, 4)))


@pytest.fixture
def gpu(load, monkeypatch):
    """The code for a real GPU, with the CPU behind the calls of torch.cuda; what it asked for is noted."""
    on, asked = load("device").Gpu(), []

    class Stream:
        def wait_stream(self, other):
            assert isinstance(other, Stream)
            asked.append("wait_stream")

    class Graph:
        def replay(self):
            asked.append("replay")

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            asked.append("record")

        def synchronize(self):
            asked.append("event")

        def elapsed_time(self, end):
            assert isinstance(end, Event)
            return 0.25  # milliseconds

    @contextlib.contextmanager
    def graph(recorded):
        assert isinstance(recorded, Graph)
        asked.append("capture")
        yield

    class Profile:
        def __init__(self, activities):
            assert activities == [torch.profiler.ProfilerActivity.CUDA]

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def events(self):
            kinds = [SimpleNamespace(name=name) for name in ("CPU", "CUDA", "CUDA")]
            return [SimpleNamespace(device_type=kind, device_time=3.0) for kind in kinds]

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    cuda = torch.cuda
    for name, value in {
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": Graph,
        "graph": graph,
        "Event": Event,
        "synchronize": lambda: asked.append("synchronize"),
        "set_sync_debug_mode": asked.append,
    }.items():
        monkeypatch.setattr(cuda, name, value)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor: tensor.clone())
    on.__dict__["_filler"] = torch.ones(4)  # made on the GPU otherwise
    on.asked = asked
    return on


def test_what_a_gpu_is_asked_for(gpu, load):
    calls = []

    def call():
        calls.append(1)
        return torch.full((2,), len(calls))

    result, replay = gpu.capture(call, 3)
    replay()
    assert len(calls) == 4 and result.tolist() == [4, 4]  # one to warm up
    assert gpu.asked == ["wait_stream", "wait_stream", "capture", "replay"]
    gpu.asked.clear()
    assert len(gpu.at_once(call, 2)) == 2 and gpu.asked == ["synchronize"] * 2
    gpu.asked.clear()
    assert gpu.elapsed(call) == 250.0 and gpu.asked == ["record", "record", "event"]
    gpu.asked.clear()
    with pytest.raises(ValueError), gpu.no_waiting():
        raise ValueError
    assert gpu.asked == ["error", "default"]
    gpu.flush()
    assert gpu._filler.eq(0).all()
    assert gpu.kernel_times(call, 2) == (3.0, 1.0)


def test_whether_a_gpu_is_broken(gpu, monkeypatch):
    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *size, device: ones(*size))
    assert not gpu.broken()

    def fails():
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    assert gpu.broken()


def test_a_case_on_a_gpu(gpu, load):
    """All measures of one op that can be captured and of one that waits, by the code for a real GPU."""
    bench, shapes, merge = load("bench"), load("shapes"), load("suite").merge
    options = SimpleNamespace(rival_seconds=20)
    for name, captured in (("nms 1,000 clustered", True), ("batched_nms 10,000, 80 piles", False)):
        said: dict = {}
        make = shapes.all_shapes(tiny=True)[name]
        bench.benchmark(
            make, options, bench.Clock(gpu, 0), lambda said=said, **row: merge(said, row)
        )
        assert "error" not in said
        assert said["eager"]["median"] > 0 and said["eager, cold"]["median"] > 0
        if captured:
            assert (
                said["graph"]["median"] == 250 / bench.CALLS
                and said["graph, cold"]["median"] == 250
            )
        else:
            assert said["graph"] == "waits"
        assert {"kernels", "launches", "bytes", "kept"} <= set(said)
        assert said["rivals"]["eager"]["same"]


def test_a_rival_that_fails_costs_only_itself(load, monkeypatch, capsys):
    """It raises, is missing, takes too long or gives another result: the next one is timed."""
    bench, shapes, device = load("bench"), load("shapes"), load("device")
    Rival = load("rivals").Rival

    def raises(x):
        raise ValueError("of no use")

    def endless(x):
        while True:
            x = x + 0

    def slow(x):
        time.sleep(1.1)
        return x + 1

    rivals = {
        "raises": Rival(raises, torch.equal),
        "missing": Rival("it is not installed", torch.equal),
        "endless": Rival(endless, torch.equal),
        "slow": Rival(slow, torch.equal),
        "others": Rival(lambda x: x + 2, torch.equal),
        "by other rules": Rival(lambda x: x + 2, torch.equal, lambda x: x + 2),
        "good": Rival(lambda x: 1 + x, torch.equal),
    }
    shape = shapes.Shape(lambda x: x + 1, (torch.ones(3),), rivals, lambda x: x + 1)
    on = device.open_device("cpu")
    options = SimpleNamespace(rival_seconds=2)
    said: dict = {}
    merge = load("suite").merge
    bench.benchmark(lambda: shape, options, bench.Clock(on, 0), lambda **row: merge(said, row))
    got = said["rivals"]
    assert got["raises"] == {"error": "ValueError: of no use"}
    assert got["missing"] == {"error": "RuntimeError: it is not installed"}
    assert got["endless"] == {"error": "TimeoutError: takes more than 2 s"}
    assert got["slow"]["same"] and got["slow"]["eager"]["times"] == 1  # one call has to do
    assert not got["others"]["same"] and got["by other rules"]["same"] and got["good"]["same"]
    for row in (said, got["others"], got["by other rules"], got["good"]):
        for measure in ("eager", "eager, cold", "graph"):
            assert 0 < row[measure]["p10"] <= row[measure]["median"] <= row[measure]["p90"]
    assert said["graph, cold"]["median"] > 0 and said["bytes"] == 24 and said["launches"] == 1


def test_repetitions_are_bounded_by_time(load):
    bench, device = load("bench"), load("device")
    clock = bench.Clock(device.open_device("cpu"), 0.2)
    calls: list[int] = []
    start = time.perf_counter()
    got = clock.eager(lambda: calls.append(1))
    assert got["times"] + 1 == len(calls) > 100 and time.perf_counter() - start < 5
    assert clock.eager(lambda: time.sleep(0.15))["times"] == 3
    assert clock.eager(lambda: time.sleep(1.1))["times"] == 1
    assert clock.repeat(lambda: 2e6)["times"] == 1
    assert bench.summary([3.0, 1.0, 2.0]) == {"p10": 1.0, "median": 2.0, "p90": 3.0, "times": 3}


def test_predictions_are_those_of_cases_that_exist(load, suite):
    predicted = json.loads(suite.PREDICTED.read_text())["cases"]
    assert set(predicted) <= set(load("shapes").all_shapes(tiny=True))
    assert all(set(aims) == {"predicted", "to reach"} for aims in predicted.values())


@pytest.mark.parametrize("device", ["cpu", "emulated"])
def test_the_checks_themselves(suite, tmp_path, device):
    """Every call, every shape and the agreement, by the commands of the steps, on tiny shapes."""
    if why_not := backends.why_not(device):
        pytest.skip(why_not)
    if device == "emulated":
        backends.builder().build()  # it may take minutes, which are not the steps'
    named = {step.name: step for step in suite.steps(tmp_path, device)}
    more = {
        "one call of every op": ["--draws", "1", "--replays", "1"],
        "large shapes": [],
        "agreement": ["--seconds", "1"],
    }
    todo = [
        replace(named[name], limit=100, most=0, command=[*named[name].command, *options])
        for name, options in more.items()
    ]
    assert suite.main(tmp_path, todo) == 0, (tmp_path / "log.txt").read_text()
    got = outcomes(tmp_path)
    ops = [schema.name.removeprefix("ssd_ops::") for schema in backends.schemas()]
    assert sorted(got["one call of every op"]["cases"]) == sorted(ops)
    assert all(row["different"] == {} for row in got["large shapes"]["cases"].values())
    assert len(got["large shapes"]["cases"]) > 70
    assert got["agreement"]["cases"]["agreement"]["batches"] > 0


def test_the_benchmarks_themselves(suite, load, tmp_path):
    """Every case beside all of its rivals, and torch.compile of some, on tiny shapes."""
    named = {step.name: step for step in suite.steps(tmp_path, "cpu")}
    more = {
        "benchmarks": ["--seconds", "0", "--rival-seconds", "30"],
        "torch.compile": ["--seconds", "0", "--only", "hard_negative_mining B"],
    }
    todo = [
        replace(named[name], limit=250, most=0, command=[*named[name].command, *options])
        for name, options in more.items()
    ]
    assert suite.main(tmp_path, todo) == 0, (tmp_path / "log.txt").read_text()
    shapes = load("shapes").all_shapes(tiny=True)
    cases = outcomes(tmp_path)["benchmarks"]["cases"]
    assert [*cases][1:] == [*shapes]
    assert next(iter(cases.values()))["bytes a microsecond"] > 0
    missing = load("rivals").MISSING
    for name, row in [*cases.items()][1:]:
        for measure in ("eager", "eager, cold"):
            assert row[measure]["median"] > 0, name
        captured = shapes[name]().captured is not None
        assert (row["graph"] != "waits") == ("graph, cold" in row) == captured, name
        for rival, theirs in row.get("rivals", {}).items():
            if "torchvision" in rival and missing:
                assert missing[:30] in theirs["error"]
            else:
                assert theirs["same"] and theirs["eager"]["median"] > 0, (name, rival)
    compiled = outcomes(tmp_path)["torch.compile"]["cases"]
    assert len(compiled) == 3
    assert all(row["rivals"]["compiled"]["same"] for row in compiled.values())
