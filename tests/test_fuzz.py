"""Calls of the ops with arguments at random (fuzz.py), and the calls that once found a fault."""

import resource
from collections.abc import Iterator

import backends
import cases
import fuzz
import pytest
import torch

WHY_NOT = backends.why_not("emulated")
EMULATED = not WHY_NOT
# op, seed
FOUND = [
    ("detect", 154),
    ("detect", 228),
    ("multiclass_nms", 74),  # results too large for any memory
    ("multibox_priors", 15234),  # no feature map: the dispatcher has nothing to go by
]


@pytest.fixture(autouse=True)
def limited_memory() -> Iterator[None]:
    """At most 4 GB more: a call may ask for any size."""
    if EMULATED:
        backends.load()
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + (4 << 30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")
@pytest.mark.parametrize("name", fuzz.OPS)
def test_any_call_returns_or_is_one_named_error(name):
    assert list(fuzz.faults(name, range(len(cases.rounds(200))), emulated=True)) == []


@pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "-")
@pytest.mark.parametrize("draw, count", [("set", 100), ("threshold", 30)])
@pytest.mark.parametrize("name", fuzz.OPS)
def test_cpu_and_emulated_agree_on_sets_of_boxes(name, draw, count):
    seeds = range(len(cases.rounds(count)))
    assert list(fuzz.faults(name, seeds, emulated=True, draw=draw)) == []


@pytest.mark.parametrize("name", ["nms", "batched_nms", "multiclass_nms", "multibox_target"])
def test_sets_at_the_threshold_are_at_it(name):
    """A threshold two numbers lower or higher gives something else, for some."""
    op = getattr(torch.ops.ssd_ops, name)
    names = [argument.name for argument in op.default._schema.arguments]
    at = names.index("iou_threshold")
    differ = 0
    for seed in range(30):
        args = fuzz.set_at_the_threshold(name, seed)
        around = [
            [*args[:at], args[at] * factor, *args[at + 1 :]] for factor in (1 - 2e-7, 1 + 2e-7)
        ]
        middle, *others = (fuzz.outcome(op, each) for each in (args, *around))
        differ += not all(all(map(fuzz.same, middle, other)) for other in others)
    assert differ >= 6


@pytest.mark.parametrize("name, seed", FOUND)
def test_what_failed_once(name, seed):
    assert fuzz.fault(name, seed, emulated=EMULATED) is None


def test_a_result_that_does_not_fit_in_memory_is_told_with_its_shape():
    boxes, scores = torch.rand(2, 3, 4), torch.rand(2, 3, 1)

    def call(count):
        rules = (0.01, 0.5, -1, count, False, 0, False, [0], -1)
        return torch.ops.ssd_ops.multiclass_nms(boxes, scores, *rules)

    for count in (2**36, 2**63 - 1):
        with pytest.raises(
            RuntimeError, match=rf"results must fit in memory, got .*\[2, {count}, 4\]"
        ):
            call(count)
    assert call(3)[0].shape == (2, 3, 4)


def test_faults_are_seen(monkeypatch):
    """Of a result that differs, of an error without a name, and of an argument that is changed."""
    monkeypatch.setattr(fuzz, "outcome", lambda op, args: (torch.rand(3),))
    assert "differ" in fuzz.fault("nms", 0, emulated=True)
    monkeypatch.setattr(fuzz, "outcome", lambda op, args: "segmentation fault")
    assert "without the op's name" in fuzz.fault("nms", 0, emulated=True)

    def change(op, args):
        next(a for a in args if isinstance(a, torch.Tensor) and a.numel()).fill_(7)
        return ()

    monkeypatch.setattr(fuzz, "outcome", change)
    seeds = range(40)
    assert any(
        fuzz.fault("nms", seed, emulated=False) == "an argument was changed" for seed in seeds
    )
