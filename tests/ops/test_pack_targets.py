"""Targets in the form of torchvision, made into labels; labels as a list."""

from __future__ import annotations

import itertools

import cases
import pytest
import torch

import ssd_ops
from ssd_ops import reference

pytestmark = pytest.mark.usefixtures("backend")

SIZES = [(100, 200), (50, 400), (300, 300)]
TARGETS = [
    {
        "boxes": torch.tensor([[20.0, 10, 60, 90], [0, 0, 200, 100]]),
        "labels": torch.tensor([1, 91]),
        "image_id": 7,
    },
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    {"boxes": torch.tensor([[30.0, 150, 60, 300]]), "labels": torch.tensor([3])},
]
ROWS = [
    [[0.0, 0.1, 0.1, 0.3, 0.9], [90, 0, 0, 1, 1]],
    [],
    [[2, 0.1, 0.5, 0.2, 1]],
]


def pack_targets_inputs(images, size, dtype):
    """Two images, of which one has as many boxes as there should be images."""
    targets = [
        {"boxes": 64 * cases.boxes(count, dtype=dtype), "labels": torch.arange(count)}
        for count in (size, images)
    ]
    return targets, [(48, 64)] * 2


def rows(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 5)


def test_by_hand():
    labels = ssd_ops.pack_targets(TARGETS, SIZES)
    padding = [-1.0] * 5
    expected = [ROWS[0], [padding] * 2, [*ROWS[2], padding]]
    torch.testing.assert_close(labels, torch.tensor(expected), rtol=1e-7, atol=0)
    as_list = ssd_ops.pack_targets(TARGETS, SIZES, padded=False)
    assert isinstance(as_list, list)
    for got, want in zip(as_list, ROWS, strict=True):
        torch.testing.assert_close(got, rows(want), rtol=1e-7, atol=0)


def test_labels_from_one_and_from_zero():
    """torchvision's count from 1; a label below the first class is no ground truth."""
    classes = ssd_ops.pack_targets(TARGETS, SIZES)[..., 0].tolist()
    assert classes == [[0, 90], [-1, -1], [2, -1]]
    classes = ssd_ops.pack_targets(TARGETS, SIZES, first_class=0)[..., 0].tolist()
    assert classes == [[1, 91], [-1, -1], [3, -1]]
    classes = ssd_ops.pack_targets(TARGETS, SIZES, first_class=3)[..., 0].tolist()
    assert classes == [[-1, 88], [-1, -1], [0, -1]]
    for dtype in (torch.uint8, torch.int32, torch.bool):
        target = {"boxes": torch.ones(2, 4), "labels": torch.tensor([0, 1], dtype=dtype)}
        assert ssd_ops.pack_targets([target], None)[0, :, 0].tolist() == [-1, 0]


def test_crowds_are_marked_and_split_off():
    crowd = [{"iscrowd": torch.tensor([0, 1])}, {}, {"iscrowd": torch.tensor([True])}]
    targets = [{**target, **more} for target, more in zip(TARGETS, crowd, strict=True)]
    labels = ssd_ops.pack_targets(targets, SIZES)
    assert labels[..., 0].tolist() == [[0, -92], [-1, -1], [-4, -1]]
    assert torch.equal(labels[..., 1:], ssd_ops.pack_targets(TARGETS, SIZES)[..., 1:])
    assert ssd_ops.pack_targets(targets, None, first_class=5)[..., 0].tolist() == [
        [-1, -88],
        [-1, -1],
        [-1, -1],
    ]
    ignore_boxes = labels[..., 1:] * (labels[..., :1] < -1)
    torch.testing.assert_close(
        ignore_boxes,
        torch.tensor([[[0.0] * 4, [0, 0, 1, 1]], [[0] * 4] * 2, [[0.1, 0.5, 0.2, 1], [0] * 4]]),
    )
    anchors = cases.prior_anchors(5444)
    classes = ssd_ops.multibox_target(anchors, labels, ignore_boxes=ignore_boxes)[2]
    assert classes[0].unique().tolist() == [-1, 0, 1]
    assert classes[1].unique().tolist() == [0] and classes[2].unique().tolist() == [-1, 0]
    as_list = ssd_ops.pack_targets(targets, SIZES, padded=False)
    regions = [some[:, 1:] * (some[:, :1] < -1) for some in as_list]
    got = ssd_ops.multibox_target(anchors, as_list, ignore_boxes=regions)[2]
    assert torch.equal(got, classes)


def test_sizes_in_any_form():
    expected = ssd_ops.pack_targets(TARGETS, SIZES)
    sizes = torch.tensor(SIZES)
    for form in (sizes, sizes.double(), sizes.unbind(), [torch.Size(size) for size in SIZES]):
        assert torch.equal(ssd_ops.pack_targets(TARGETS, form), expected)
    in_pixels = ssd_ops.pack_targets(TARGETS, None)
    assert in_pixels[0, 0].tolist() == [0, 20, 10, 60, 90]
    targets = [
        {**target, "boxes": target["boxes"] / torch.tensor([width, height, width, height])}
        for target, (height, width) in zip(TARGETS, SIZES, strict=True)
    ]
    assert torch.equal(ssd_ops.pack_targets(targets, None), expected)


def test_dtypes():
    for dtype, real in zip(cases.DTYPES, [torch.float32] * 3 + [torch.float64], strict=True):
        targets = [{**target, "boxes": target["boxes"].to(dtype)} for target in TARGETS]
        labels = ssd_ops.pack_targets(targets, SIZES)
        assert labels.dtype == real
        torch.testing.assert_close(labels, ssd_ops.pack_targets(TARGETS, SIZES).to(real))
    whole = [{**target, "boxes": target["boxes"].long()} for target in TARGETS]
    assert torch.equal(ssd_ops.pack_targets(whole, SIZES), ssd_ops.pack_targets(TARGETS, SIZES))


def test_nothing_to_pack():
    assert ssd_ops.pack_targets([], []).shape == (0, 0, 5)
    assert ssd_ops.pack_targets([], torch.zeros(0, 2), padded=False) == []
    assert ssd_ops.pack_targets(TARGETS[1:2], SIZES[:1]).shape == (1, 0, 5)


def test_the_targets_are_those_of_the_rows():
    """With what a user of torchvision has, and by a plain loop."""
    anchors = cases.prior_anchors(5444)
    images = [cases.labels(1, count, padding=0)[0] for count in (3, 0, 8)]
    targets = [{"boxes": some[:, 1:] * 512, "labels": some[:, 0].long() + 1} for some in images]
    for padded in (True, False):
        labels = ssd_ops.pack_targets(targets, [(512, 512)] * 3, padded=padded)
        got = ssd_ops.multibox_target(anchors, labels)
        for image, some in enumerate(images):
            alone = ssd_ops.multibox_target(anchors, some[None])
            assert all(torch.equal(a[image], b[0]) for a, b in zip(got, alone, strict=True))


def test_compiled_and_without_reading_values():
    def packed(*boxes):
        targets = [
            {"boxes": some, "labels": some[:, 0].long(), "iscrowd": some[:, 1].long()}
            for some in boxes
        ]
        labels = ssd_ops.pack_targets(targets, [(20, 30)] * len(boxes))
        return ssd_ops.multibox_target(cases.boxes(9), list(labels))

    torch.compiler.reset()
    boxes = [torch.rand(count, 4) for count in (3, 0, 5)]
    torch.manual_seed(0)
    expected = packed(*boxes)
    torch.manual_seed(0)
    got = torch.compile(packed, fullgraph=True, dynamic=True, backend="aot_eager")(*boxes)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    # On the meta device there is no value to read.
    targets = [{"boxes": some.to("meta"), "labels": some[:, 0].to("meta").long()} for some in boxes]
    assert ssd_ops.pack_targets(targets, SIZES).shape == (3, 5, 5)


BOX, LABEL = torch.zeros(2, 4), torch.zeros(2, dtype=torch.int64)
GOOD = {"boxes": BOX, "labels": LABEL}


@pytest.mark.parametrize(
    "targets, sizes, error, message",
    [
        (GOOD, None, TypeError, "targets must be a list of dicts, got dict"),
        ("two", None, TypeError, "targets must be a list of dicts, got str"),
        ([BOX], None, TypeError, r"targets\[0\] must be a dict, got Tensor"),
        (
            [GOOD, {"boxes": BOX}],
            None,
            ValueError,
            r"targets\[1\] must have 'labels', got \['boxes",
        ),
        ([{**GOOD, "boxes": [1]}], None, TypeError, r"targets\[0\]\['boxes'\] must be a tensor"),
        ([{**GOOD, "boxes": BOX[0]}], None, ValueError, r"\['boxes'\] must be \[G, 4\], got \[4\]"),
        ([{**GOOD, "boxes": torch.zeros(0)}], None, ValueError, r"must be \[G, 4\], got \[0\]"),
        ([{**GOOD, "labels": LABEL[:1]}], None, ValueError, r"\['labels'\] must be integers \[2\]"),
        ([{**GOOD, "labels": BOX[:, 0]}], None, ValueError, r"one for each box, got torch.float32"),
        ([{**GOOD, "labels": 3}], None, TypeError, r"\['labels'\] must be a tensor, got int"),
        ([{**GOOD, "iscrowd": LABEL[:1]}], None, ValueError, r"\['iscrowd'\] must be integers"),
        ([GOOD], [(1, 1)] * 2, ValueError, r"image_sizes must be \[1, 2\], \(height, width\)"),
        ([GOOD], torch.ones(2), ValueError, r"image_sizes must be \[1, 2\], .* got \[2\]"),
        ([GOOD], (8, 8), ValueError, r"image_sizes must be \[1, 2\], .* got \(8, 8\)"),
        ([GOOD], 8, ValueError, r"image_sizes must be \[1, 2\], .* got 8"),
        ([GOOD], [8], ValueError, "image_sizes must be 2 numbers, got 8"),
        ([GOOD], [(8, 0)], ValueError, "image_sizes must be positive and finite, got 0.0"),
    ],
)
def test_wrong_calls(targets, sizes, error, message):
    with pytest.raises(error, match=f"^pack_targets: .*{message}"):
        ssd_ops.pack_targets(targets, sizes)


def test_wrong_options():
    with pytest.raises(TypeError, match=r"^pack_targets: first_class must be an int, got 1\.5"):
        ssd_ops.pack_targets([GOOD], None, first_class=1.5)


# Labels of multibox_target as a list.


@pytest.mark.parametrize("semantics", ["d2l", "mxnet", "torchvision"])
def test_a_list_of_labels_is_the_padded_tensor(semantics):
    anchors = cases.boxes(1, 200)
    for counts in ((3, 0, 7, 1), (0, 0), (4, 4, 4), (1,), (0,)):
        images = [cases.labels(1, count, kind="grid")[0] for count in counts]
        padded = torch.nn.utils.rnn.pad_sequence(images, True, -1.0)
        expected = ssd_ops.multibox_target(anchors, padded, semantics=semantics)
        for form in (images, tuple(images)):
            got = ssd_ops.multibox_target(anchors, form, semantics=semantics)
            assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        by_reference = reference.multibox_target(anchors, images, semantics=semantics)
        assert all(torch.equal(a, b) for a, b in zip(got[1:], by_reference[1:], strict=True))


def test_a_list_of_labels_with_mining():
    anchors, images = cases.boxes(1, 50), [cases.labels(1, count)[0] for count in (0, 4, 2)]
    padded, logits = torch.nn.utils.rnn.pad_sequence(images, True, -1.0), torch.randn(3, 4, 50)
    options = {"negative_mining_ratio": 2.0, "min_negatives": 3}
    got = ssd_ops.multibox_target(anchors, images, logits, **options)
    expected = ssd_ops.multibox_target(anchors, padded, logits, **options)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_a_list_of_labels_of_any_dtypes_and_layouts():
    anchors, images = cases.boxes(60), [cases.labels(1, count)[0] for count in (4, 2)]
    for first, second in itertools.product(cases.DTYPES, repeat=2):
        mixed = [images[0].to(first), images[1].to(second)]
        got = ssd_ops.multibox_target(anchors, mixed)
        for image, some in enumerate(mixed):  # nothing is rounded to the dtype of another image
            alone = ssd_ops.multibox_target(anchors, some[None])
            assert torch.equal(got[2][image], alone[2][0])
            if got[0].dtype == alone[0].dtype:
                assert torch.equal(got[0][image], alone[0][0])
    expected = ssd_ops.multibox_target(anchors, images)
    for name in ("strided", "transposed", "offset"):
        views = [cases.odd_layouts(some)[name] for some in images]
        got = ssd_ops.multibox_target(anchors, views)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True)), name


def test_an_empty_list_of_labels():
    shapes = [t.shape for t in ssd_ops.multibox_target(cases.boxes(9), [])]
    assert shapes == [(0, 36), (0, 36), (0, 9)]


def test_a_list_of_labels_compiles_for_any_counts():
    torch.compiler.reset()
    anchors, graphs = cases.boxes(9), []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    def target(*images):
        return ssd_ops.multibox_target(
            anchors, list(images), ignore_boxes=[x[:, 1:] for x in images]
        )

    compiled = torch.compile(target, fullgraph=True, dynamic=True, backend=backend)
    for counts in ((2, 3, 4), (5, 6, 7), (9, 8, 4), (3, 7, 2)):
        images = [cases.labels(1, count)[0] for count in counts]
        got, expected = compiled(*images), target(*images)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert len(graphs) <= 2, "the counts have been compiled in"


@pytest.mark.parametrize(
    "labels, error, message",
    [
        ([torch.zeros(3, 4)], ValueError, r"must be \[G, 5\] each, got \[3, 4\]"),
        ([torch.zeros(5)], ValueError, r"must be \[G, 5\] each, got \[5\]"),
        ([torch.zeros(3, 5).long()], RuntimeError, "must be float16, .* got Long"),
        ([None], TypeError, "must be a tensor, got NoneType"),
        ("rows", TypeError, "must be a tensor or a list of tensors, got str"),
        (None, TypeError, "must be a tensor or a list of tensors, got NoneType"),
    ],
)
def test_wrong_lists_of_labels(labels, error, message):
    with pytest.raises(error, match=f"^multibox_target: labels {message}"):
        ssd_ops.multibox_target(torch.zeros(6, 4), labels)
