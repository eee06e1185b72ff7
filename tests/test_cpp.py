"""The C++ interface: ssd_ops.h beside the Python functions and the schemas, and what its functions return."""

from __future__ import annotations

import ast
import inspect
import os
import re
import shutil
import subprocess
from pathlib import Path

import backends
import cases
import pytest
import torch

import ssd_ops
from ssd_ops import _ext
from ssd_ops.ops import _arguments, detection, target

ROOT = Path(__file__).resolve().parent.parent
HEADER = ROOT / "ssd_ops" / "include" / "ssd_ops.h"
TEXT = re.sub(r"//.*", "", HEADER.read_text())
# Plain PyTorch in Python, without an op of their own.
PYTHON_ALONE = {"merge_boxes", "pack_targets"}
ENUMS = {
    "Activation": detection.ACTIVATION,
    "Metric": _arguments.METRIC,
    "Coding": _arguments.CODING,
    "Semantics": _arguments.SEMANTICS,
    "ForceMatch": target._FORCE_MATCH,
}
OPS = sorted(name for name in ssd_ops.__all__ if name[0].islower())


def split(text: str) -> list[str]:
    """At the commas that stand in no bracket."""
    parts, depth = [""], 0
    for c in text.replace("->", "  "):
        depth += (c in "([{<") - (c in ")]}>")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return [part.strip() for part in parts if part.strip()]


def inside(text: str, begin: int) -> str:
    """What the bracket at `begin` holds."""
    depth, end = 0, begin
    while True:
        depth += (text[end] in "({") - (text[end] in ")}")
        if depth == 0:
            return text[begin + 1 : end]
        end += 1


def value(text: str) -> object:
    """A default of C++ as Python has it."""
    if "::" in text and text.split("::")[0] in ENUMS:
        return text.split("::")[1]
    if text.startswith("{"):
        return tuple(value(part) for part in split(text[1:-1]))
    return (
        {"true": True, "false": False, "std::nullopt": None}.get(text)
        if not re.match(r"-?\d", text)
        else float(text)
    )


def variable(text: str) -> tuple[str, object]:
    """Name and default of `type name` or `type name = default`."""
    declared, _, default = text.partition("=")
    name = re.search(r"(\w+)\s*$", declared)[1]
    return name, value(default.strip()) if default else inspect.Parameter.empty


def functions() -> dict[str, tuple[dict[str, object], dict[str, object]]]:
    """Of each public function the positional arguments, and the options, with their defaults."""
    found = {}
    public = TEXT[TEXT.index("struct GridAnchorsOptions") :]
    for match in re.finditer(r"^inline [\w:<>, ]+?\b(\w+)\(", public, re.M):
        *first, last = split(inside(public, match.end() - 1))
        options = re.fullmatch(r"const (\w+Options)& options = \{\}", " ".join(last.split()))
        assert options, f"{match[1]}: the last argument must be its options, got {last}"
        body = inside(public, public.index(f"struct {options[1]} {{") + len(options[1]) + 8)
        members = [
            variable(" ".join(member.split())) for member in body.split(";") if member.strip()
        ]
        found[match[1]] = dict(variable(" ".join(p.split())) for p in first), dict(members)
    return found


FUNCTIONS = functions()


def test_every_op_is_in_the_header_and_nothing_else():
    assert set(FUNCTIONS) == set(OPS) - PYTHON_ALONE


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_names_order_and_defaults_are_those_of_python(name):
    positional, options = FUNCTIONS[name]
    expected: tuple[dict[str, object], dict[str, object]] = ({}, {})
    for parameter in inspect.signature(getattr(ssd_ops, name)).parameters.values():
        if (name, parameter.name) == ("box_iou", "fmt"):
            continue  # C++ takes corners alone
        expected[parameter.kind is parameter.KEYWORD_ONLY][parameter.name] = parameter.default
    for found, wanted in zip((positional, options), expected, strict=True):
        assert list(found.items()) == list(wanted.items())


@pytest.mark.parametrize("name", sorted(ENUMS))
def test_the_numbers_of_an_enum_are_those_of_the_schemas(name):
    (body,) = re.findall(rf"enum class {name} : int64_t \{{(.*?)\}}", TEXT, re.S)
    assert {key: int(number) for key, number in re.findall(r"(\w+) = (\d+)", body)} == ENUMS[name]


def test_every_call_of_an_op_has_the_arguments_and_results_of_its_schema():
    called = set()
    schemas = {schema.name.removeprefix("ssd_ops::"): schema for schema in backends.schemas()}
    for match in re.finditer(r"detail::call<([\w, ]+)>\(", TEXT):
        name, *arguments = split(inside(TEXT, match.end() - 1))
        schema = schemas[name.strip('"')]
        called.add(schema.name.removeprefix("ssd_ops::"))
        assert len(arguments) == len(schema.arguments), schema
        assert len(match[1].split(",")) == len(schema.returns), schema
    assert called == set(schemas)


def compiler() -> str:
    name = os.environ.get("CXX", "g++").split()[0]
    if shutil.which(name) is None:
        pytest.skip("a C++ compiler is not installed")
    return name


# An op of the namespace ssd_ops_cpp for each function of the header: as it is without options, and with all
# options at other values than their defaults.
CALLS = """
#include <ssd_ops.h>
using ssd_ops::Tensor;
using Tensors = std::vector<Tensor>;
Tensors list(const ssd_ops::Detections& d) { return {d.boxes, d.scores, d.labels, d.indices, d.counts}; }
Tensors list(const Tensor& t) { return {t}; }
template <typename... T> Tensors list(const std::tuple<T...>& all) {
  return std::apply([](const auto&... each) { return Tensors{each...}; }, all);
}
template <typename Call> Tensors call(const Call& body) { return list(body()); }
#define OP(name, ...) Tensors name(Tensors t) { return call([&] { return (__VA_ARGS__); }); }
@OPS@
STABLE_TORCH_LIBRARY(ssd_ops_cpp, m) {
@DEFS@
}
STABLE_TORCH_LIBRARY_IMPL(ssd_ops_cpp, CPU, m) {
@IMPLS@
}
"""
LEVELS = "std::vector<int64_t>{20, 10}"
# name: C++, Python; `t` are tensors, and `o` is ssd_ops.
PAIRS = {
    "nms": ("o::nms(t[0], t[1], 0.5)", "o.nms(t[0], t[1], 0.5)"),
    "nms_ios": (
        "o::nms(t[0], t[1], 0.3, {.metric = o::Metric::ios})",
        "o.nms(t[0], t[1], 0.3, metric='ios')",
    ),
    "nms_above_1": ("o::nms(t[0], t[1], 1.5)", "o.nms(t[0], t[1], 1.5)"),
    "batched_nms": ("o::batched_nms(t[0], t[1], t[2], 0.5)", "o.batched_nms(*t[:3], 0.5)"),
    "nms_padded": ("o::nms_padded(t[0], t[1], 0.5)", "o.nms_padded(t[0], t[1], 0.5)"),
    "nms_padded_batch": ("o::nms_padded(t[3], t[4], 0.5)", "o.nms_padded(t[3], t[4], 0.5)"),
    "nms_groups": ("o::nms_groups(t[0], t[1], 0.5)", "o.nms_groups(t[0], t[1], 0.5)"),
    "nms_groups_idxs": (
        "o::nms_groups(t[0], t[1], 0.5, {.idxs = t[2], .metric = o::Metric::ios})",
        "o.nms_groups(t[0], t[1], 0.5, idxs=t[2], metric='ios')",
    ),
    "box_iou": ("o::box_iou(t[0], t[3])", "o.box_iou(t[0].expand(2, -1, -1), t[3])"),
    "box_ios": (
        "o::box_iou(t[0], t[0], {.metric = o::Metric::ios})",
        "o.box_iou(t[0], t[0], metric='ios')",
    ),
    "encode_boxes": ("o::encode_boxes(t[3], t[0])", "o.encode_boxes(t[3], t[0])"),
    "encode_boxes_linear": (
        "o::encode_boxes(t[3], t[0], {.coding = o::Coding::linear})",
        "o.encode_boxes(t[3], t[0], coding='linear')",
    ),
    "encode_boxes_options": (
        "o::encode_boxes(t[3], t[0], {.variances = o::Variances{1, 2, 3, 4}, .eps = 0.5})",
        "o.encode_boxes(t[3], t[0], variances=(1, 2, 3, 4), eps=0.5)",
    ),
    "decode_boxes": ("o::decode_boxes(t[5], t[0])", "o.decode_boxes(t[5], t[0])"),
    "decode_boxes_options": (
        "o::decode_boxes(t[5], t[0], {.variances = o::Variances{1, 2, 3, 4}, .clip = {0.5, 0.75}, "
        ".max_log_size = 0.1})",
        "o.decode_boxes(t[5], t[0], variances=(1, 2, 3, 4), clip=(0.5, 0.75), max_log_size=0.1)",
    ),
    "decode_boxes_distance": (
        "o::decode_boxes(t[5], t[0], {.clip = true, .coding = o::Coding::distance})",
        "o.decode_boxes(t[5], t[0], clip=True, coding='distance')",
    ),
    "multibox_prior": (
        "o::multibox_prior(t[3], {0.2, 0.3}, {1, 2, 0.5})",
        "o.multibox_prior(t[3], [0.2, 0.3], [1, 2, 0.5])",
    ),
    "multibox_prior_options": (
        "o::multibox_prior(t[3], {20, 30}, {1, 2, 0.5}, {.image_size = o::Pair{480, 640}, "
        ".steps = o::Pair{8, 16}, .offsets = {0.25, 0.75}, .clip = true})",
        "o.multibox_prior(t[3], [20, 30], [1, 2, 0.5], image_size=(480, 640), steps=(8, 16), "
        "offsets=(0.25, 0.75), clip=True)",
    ),
    "multibox_priors": (
        "o::multibox_priors({t[3], t[0]}, {{0.2, 0.3}, {0.5}}, {{1, 2}, {1, 2, 0.5}})",
        "o.multibox_priors([t[3], t[0]], [[0.2, 0.3], [0.5]], [[1, 2], [1, 2, 0.5]])",
    ),
    "multibox_priors_options": (
        "o::multibox_priors({t[3], t[0]}, {{0.2, 0.3}, {0.5}}, {{1, 2}, {1, 2, 0.5}}, {.steps = "
        "std::vector<o::Pair>{{0.1, 0.2}, {0.3, 0.4}}, .offsets = {0.25, 0.75}, .clip = true})",
        "o.multibox_priors([t[3], t[0]], [[0.2, 0.3], [0.5]], [[1, 2], [1, 2, 0.5]], steps=[(0.1, 0.2), "
        "(0.3, 0.4)], offsets=(0.25, 0.75), clip=True)",
    ),
    "grid_anchors": (
        "o::grid_anchors({t[3], t[0]}, {{{0.2, 0.3}}, {{0.5, 0.1}, {0.1, 0.5}}})",
        "o.grid_anchors([t[3], t[0]], [[(0.2, 0.3)], [(0.5, 0.1), (0.1, 0.5)]])",
    ),
    "assign_anchors": ("o::assign_anchors(t[0], t[3])", "o.assign_anchors(t[0], t[3])"),
    "assign_anchors_options": (
        "o::assign_anchors(t[0], t[3], t[6], {.iou_threshold = 0.35, .background_threshold = 0.2, "
        ".force_match = o::ForceMatch::none, .ignore_boxes = t[13], .ignore_threshold = 0.9})",
        "o.assign_anchors(t[0], t[3], t[6], iou_threshold=0.35, background_threshold=0.2, "
        "force_match='none', ignore_boxes=t[13], ignore_threshold=0.9)",
    ),
    "multibox_target": ("o::multibox_target(t[0], t[7])", "o.multibox_target(t[0], t[7])"),
    "multibox_target_options": (
        "o::multibox_target(t[0], t[14], t[8], {.iou_threshold = 0.1, .variances = "
        "o::Variances{1, 2, 3, 4}, .negative_mining_ratio = 0.5, .negative_mining_threshold = 0.05, "
        ".min_negatives = 9, .ignore_label = -7, .coding = o::Coding::linear, "
        ".ignore_boxes = t[13], .ignore_threshold = 0.9})",
        "o.multibox_target(t[0], t[14], t[8], iou_threshold=0.1, variances=(1, 2, 3, 4), "
        "negative_mining_ratio=0.5, negative_mining_threshold=0.05, min_negatives=9, ignore_label=-7, "
        "coding='linear', ignore_boxes=t[13], ignore_threshold=0.9)",
    ),
    "multibox_target_mxnet": (
        "o::multibox_target(t[0], t[14], std::nullopt, {.semantics = o::Semantics::mxnet})",
        "o.multibox_target(t[0], t[14], None, semantics='mxnet')",
    ),
    "hard_negative_mining": (
        "o::hard_negative_mining(t[4], t[9])",
        "o.hard_negative_mining(t[4], t[9])",
    ),
    "hard_negative_mining_options": (
        "o::hard_negative_mining(t[4], t[9], {.ratio = 0.5, .min_negatives = 4})",
        "o.hard_negative_mining(t[4], t[9], ratio=0.5, min_negatives=4)",
    ),
    "multiclass_nms": ("o::multiclass_nms(t[3], t[10])", "o.multiclass_nms(t[3], t[10])"),
    "multiclass_nms_options": (
        "o::multiclass_nms(t[3], t[10], {.score_threshold = 0.6, .iou_threshold = 0.3, "
        ".max_detections = 20, .class_agnostic = true, .metric = o::Metric::ios})",
        "o.multiclass_nms(t[3], t[10], score_threshold=0.6, iou_threshold=0.3, max_detections=20, "
        "class_agnostic=True, metric='ios')",
    ),
    "multiclass_nms_levels": (
        "o::multiclass_nms(t[3], t[10], {.topk = 2, .best_class_only = true, "
        f".level_counts = {LEVELS}, .topk_per_level = 6}})",
        "o.multiclass_nms(t[3], t[10], topk=2, best_class_only=True, level_counts=[20, 10], "
        "topk_per_level=6)",
    ),
    "detect": ("o::detect(t[11], t[5], t[0])", "o.detect(t[11], t[5], t[0])"),
    "detect_options": (
        "o::detect(t[11], t[5], t[0], {.activation = o::Activation::sigmoid, .score_threshold = 0.97, "
        ".iou_threshold = 0.3, .max_detections = 20, .variances = o::Variances{1, 2, 3, 4}, "
        ".clip = {0.5, 0.75}, .class_agnostic = true, .metric = o::Metric::ios, .max_log_size = 0.1, "
        ".best_class_only = true})",
        "o.detect(t[11], t[5], t[0], activation='sigmoid', score_threshold=0.97, iou_threshold=0.3, "
        "max_detections=20, variances=(1, 2, 3, 4), clip=(0.5, 0.75), class_agnostic=True, metric='ios', "
        "max_log_size=0.1, best_class_only=True)",
    ),
    "detect_levels": (
        "o::detect(t[11], t[5], t[0], {.topk = 2, .clip = false, .coding = o::Coding::distance, "
        f".level_counts = {LEVELS}, .topk_per_level = 6}})",
        "o.detect(t[11], t[5], t[0], topk=2, clip=False, coding='distance', level_counts=[20, 10], "
        "topk_per_level=6)",
    ),
    "multibox_detection": (
        "o::multibox_detection(t[8], t[12], t[0])",
        "o.multibox_detection(t[8], t[12], t[0])",
    ),
    "multibox_detection_mxnet": (
        "o::multibox_detection(t[8], t[12], t[0], 0.1, 0.2, {.variances = {1, 2, 3, 4}, .clip = false, "
        ".class_agnostic = true, .topk = 9, .semantics = o::Semantics::mxnet})",
        "o.multibox_detection(t[8], t[12], t[0], 0.1, 0.2, variances=(1, 2, 3, 4), clip=False, "
        "class_agnostic=True, topk=9, semantics='mxnet')",
    ),
    "multibox_detection_mxnet_defaults": (
        "o::multibox_detection(t[8], t[12], t[0], 0.3, 0.2, {.semantics = o::Semantics::mxnet})",
        "o.multibox_detection(t[8], t[12], t[0], 0.3, 0.2, semantics='mxnet')",
    ),
}


def tensors() -> list[torch.Tensor]:
    torch.manual_seed(0)  # of which every option below changes something
    boxes = cases.boxes(2, 30)
    return [
        boxes[0],
        torch.rand(30),
        torch.randint(0, 3, (30,)),
        boxes,
        torch.rand(2, 30),
        0.3 * torch.randn(2, 30, 4),
        torch.tensor([30, 9]),
        cases.labels(2, 5, classes=3),
        torch.randn(2, 4, 30).softmax(1),
        torch.randint(-1, 2, (2, 30)).clamp(max=torch.tensor([[1], [0]])),
        torch.rand(2, 30, 3),
        3 * torch.randn(2, 30, 4),
        0.3 * torch.randn(2, 120),
        torch.tensor([[[0.0, 0.0, 0.5, 1.0]], [[0.5, 0.0, 1.0, 1.0]]]),
        torch.cat((cases.labels(1, 5, classes=3), torch.full((1, 5, 5), -1.0))),
    ]


@pytest.fixture(scope="module")
def called(tmp_path_factory):
    """The functions of the header as ops of the namespace ssd_ops_cpp."""
    from torch.utils.cpp_extension import include_paths, library_paths

    folder = tmp_path_factory.mktemp("cpp")
    text = CALLS
    for mark, line in (
        ("OPS", "OP({0}, {1})"),
        ("DEFS", '  m.def("{0}(Tensor[] t) -> Tensor[]");'),
        ("IMPLS", '  m.impl("{0}", TORCH_BOX(&{0}));'),
    ):
        lines = [line.format(name, cpp) for name, (cpp, _) in PAIRS.items()]
        text = text.replace(f"@{mark}@", "\n".join(lines))
    text = text.replace("using Tensors", "namespace o = ssd_ops;\nusing Tensors", 1)
    (folder / "calls.cpp").write_text(text)
    library = Path(_ext.library_path())
    command = [
        *(compiler(), "-std=c++20", "-O0", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"),
        *(f"-isystem{path}" for path in include_paths()),
        *(f"-I{HEADER.parent}", str(folder / "calls.cpp"), "-o", str(folder / "calls.so")),
        *(f"-L{path}" for path in (*library_paths(), library.parent)),
        *("-lssd_ops", "-ltorch_cpu"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    torch.ops.load_library(str(folder / "calls.so"))
    return torch.ops.ssd_ops_cpp


def test_every_function_has_a_call():
    called = {re.match(r"o::(\w+)", cpp)[1] for cpp, _ in PAIRS.values()}
    assert called == set(FUNCTIONS)
    for name, (_, options) in FUNCTIONS.items():
        calls = " ".join(cpp for cpp, _ in PAIRS.values() if cpp.startswith(f"o::{name}("))
        if name in ("batched_nms", "nms_padded", "grid_anchors"):
            continue  # their options are those of nms and of multibox_prior, which calls grid_anchors
        missing = [option for option in options if f".{option} =" not in calls]
        assert name == "multibox_priors" or not missing, f"{name}: {missing}"


@pytest.mark.parametrize("name", [name for name, (_, code) in PAIRS.items() if "=" in code])
def test_every_option_of_a_call_changes_the_result(name):
    """Or a function could leave it out, and nobody would see it."""
    tree = ast.parse(PAIRS[name][1], mode="eval")
    t = tensors()

    def result() -> list[torch.Tensor]:
        found = eval(compile(tree, name, "eval"), {"o": ssd_ops, "t": t})
        return [found] if isinstance(found, torch.Tensor) else list(found)

    options, full = list(tree.body.keywords), result()
    for option in options:
        tree.body.keywords = [other for other in options if other is not option]
        try:
            without = result()
        except ValueError:
            continue  # one that another one needs
        same = [
            a.shape == b.shape and torch.equal(a, b) for a, b in zip(full, without, strict=True)
        ]
        assert not all(same), option.arg


@pytest.mark.parametrize("name", PAIRS)
def test_a_function_returns_what_python_s_does(called, name):
    t = tensors()
    expected = eval(PAIRS[name][1], {"o": ssd_ops, "t": t})
    expected = [expected] if isinstance(expected, torch.Tensor) else list(expected)
    given = [boxes.expand(2, -1, -1) if name == "box_iou" else boxes for boxes in t[:1]] + t[1:]
    got = getattr(called, name)(given)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
