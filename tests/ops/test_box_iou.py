from __future__ import annotations

import itertools

import cases
import golden
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import ssd_ops
from ssd_ops import reference

pytestmark = pytest.mark.usefixtures("backend")


def box_iou_inputs(images, size, dtype):
    anchors = cases.boxes(1, size, dtype=dtype).expand(images, size, 4)
    return cases.boxes(images, size, dtype=dtype), anchors


def check(a, b):
    for metric in ("iou", "ios"):
        got = ssd_ops.box_iou(a, b, metric=metric)
        expected = reference.box_iou(a, b, metric=metric)
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected), metric
        assert ((got >= 0) & (got <= 1)).all(), metric


@pytest.mark.parametrize("first, second, iou", golden.IOU_PAIRS)
def test_pairs_by_hand(first, second, iou):
    a, b = torch.tensor([first], dtype=torch.float32), torch.tensor([second], dtype=torch.float32)
    expected = torch.tensor([[iou]])
    torch.testing.assert_close(ssd_ops.box_iou(a, b), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ssd_ops.box_iou(b, a), expected, rtol=0, atol=1e-6)


# Two boxes, and their intersection divided by the smaller area.
IOS_PAIRS = [
    ([0, 0, 2, 2], [1, 0, 3, 2], 1 / 2),
    ([0, 0, 2, 2], [0, 0, 2, 2], 1),
    ([0, 0, 8, 8], [1, 1, 2, 2], 1),
    ([0, 0, 8, 8], [7.5, 7, 8.5, 9], 1 / 4),
    ([0, 0, 8, 1], [0, 0, 2, 8], 1 / 4),
    ([0, 0, 1, 1], [1, 0, 2, 1], 0),
    ([0, 0, 2, 2], [1, 1, 1, 1], 0),
    ([0, 0, 2, 2], [1.5, 1.5, 0.5, 0.5], 0),
    ([0, 0, 2, 2], [0, 0, 2, float("nan")], 0),
    ([0, 0, 2, 2], [float("nan"), 0, 2, 2], 0),
    ([0, 0, 2, 2], [0, 0, 2, float("inf")], 0),
    ([0, 0, 1e19, 1e19], [0, 0, 1e20, 1e20], 0),
]


@pytest.mark.parametrize("first, second, ios", IOS_PAIRS)
def test_intersection_over_the_smaller_area_by_hand(first, second, ios):
    a, b = torch.tensor([first], dtype=torch.float32), torch.tensor([second], dtype=torch.float32)
    assert ssd_ops.box_iou(a, b, metric="ios").tolist() == [[ios]]
    assert ssd_ops.box_iou(b, a, metric="ios").tolist() == [[ios]]


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_bits_equal_reference(dtype):
    sizes = ((1, 1), (15, 16), (17, 3), (257, 100), (1, 1025), (1024, 1))
    for kind, (n, m) in itertools.product(cases.KINDS, sizes):
        check(
            cases.boxes(n, kind=kind, dtype=dtype),
            cases.boxes(m, kind=kind, dtype=dtype),
        )


@pytest.mark.parametrize(
    "integer, real", [(torch.int32, torch.float32), (torch.int64, torch.float64)]
)
def test_any_bits(integer, real):
    # Every pattern of bits: subnormals, NaNs with payload, both infinities, both zeros.
    info = torch.iinfo(integer)
    for _ in range(4):
        a, b = (torch.randint(info.min, info.max, (300, 4), dtype=integer).view(real) for _ in "ab")
        check(a, b)
        check(a, a)


@pytest.mark.parametrize("scale", [1e-45, 1e-38, 1e-23, 1e-19, 1e18, 1e19, 1e38])
def test_areas_that_leave_the_range(scale):
    a = cases.boxes(200, kind="uniform") * scale
    check(a, a)


def test_mixed_dtypes():
    for first in cases.DTYPES:
        for second in cases.DTYPES:
            check(cases.boxes(20, dtype=first), cases.boxes(30, dtype=second))


@given(
    lead1=st.lists(st.sampled_from([1, 2, 3]), max_size=3),
    lead2=st.lists(st.sampled_from([1, 2, 3]), max_size=3),
    n=st.integers(0, 5),
    m=st.integers(0, 5),
)
def test_leading_dimensions_broadcast(lead1, lead2, n, m):
    try:
        torch.broadcast_shapes(lead1, lead2)
    except RuntimeError:
        with pytest.raises((RuntimeError, ValueError), match="box_iou: boxes2 must"):
            ssd_ops.box_iou(torch.rand(*lead1, n, 4), torch.rand(*lead2, m, 4))
        return
    check(cases.boxes(*lead1, n, kind="grid"), cases.boxes(*lead2, m, kind="grid"))


def test_layouts():
    a, b = cases.boxes(3, 17), cases.boxes(3, 9)
    expected = reference.box_iou(a, b)
    for name, view in cases.odd_layouts(a).items():
        assert torch.equal(ssd_ops.box_iou(view, b), expected), name
    for name, view in cases.odd_layouts(b).items():
        assert torch.equal(ssd_ops.box_iou(a, view), expected), name
    same = a[:1].expand(3, 17, 4)
    assert torch.equal(ssd_ops.box_iou(same, b), reference.box_iou(same, b))


def test_symmetric_and_one_for_itself():
    a, b = cases.boxes(200), cases.boxes(100)
    for metric in ("iou", "ios"):
        pairs = ssd_ops.box_iou(a, b, metric=metric)
        assert torch.equal(pairs, ssd_ops.box_iou(b, a, metric=metric).T)
        assert (ssd_ops.box_iou(a, a, metric=metric).diagonal() == 1).all()
    assert (ssd_ops.box_iou(a, b, metric="ios") >= ssd_ops.box_iou(a, b)).all()


def test_batch_is_loop_of_singles():
    a, b = cases.boxes(5, 33), cases.boxes(5, 21)
    assert torch.equal(
        ssd_ops.box_iou(a, b),
        torch.stack([ssd_ops.box_iou(x, y) for x, y in zip(a, b, strict=True)]),
    )


def test_empty():
    for shape1, shape2, expected in (
        ((0, 4), (3, 4), (0, 3)),
        ((3, 4), (0, 4), (3, 0)),
        ((0, 4), (0, 4), (0, 0)),
        ((0, 3, 4), (0, 2, 4), (0, 3, 2)),
        ((0, 3, 4), (2, 4), (0, 3, 2)),
    ):
        assert ssd_ops.box_iou(torch.zeros(shape1), torch.zeros(shape2)).shape == expected


def test_threads_and_runs_agree(threads):
    a, b = cases.boxes(700), cases.boxes(500)
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(ssd_ops.box_iou(a, b))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_integers_are_exact(dtype):
    a, b = (torch.randint(0, 100, (60, 4)) for _ in "ab")
    a, b = (
        torch.cat((x[:, :2], (x[:, :2] + x[:, 2:]).clamp(max=127)), 1).to(dtype) for x in (a, b)
    )
    got = ssd_ops.box_iou(a, b)
    assert got.dtype == torch.float32
    for i, j in itertools.product(range(60), repeat=2):
        (x1, y1, x2, y2), (u1, v1, u2, v2) = a[i].tolist(), b[j].tolist()
        inter = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
        union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - inter
        assert got[i, j] == torch.tensor(inter / union if inter else 0.0, dtype=torch.float32)
    assert torch.equal(ssd_ops.box_iou(a, b.float()), got)
    assert ssd_ops.box_iou(a.double(), b).dtype == torch.float64


def test_integers_beyond_the_digits_of_float32():
    far = 2**26
    a, b = (
        torch.tensor([[far, far, far + 3, far + 3]]),
        torch.tensor([[far + 1, far, far + 3, far + 3]]),
    )
    assert ssd_ops.box_iou(a, b).item() == torch.tensor(2 / 3, dtype=torch.float32)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_formats(dtype):
    a, b = (torch.rand(2, n, 4).to(dtype) for n in (20, 30))
    real = torch.float64 if dtype == torch.float64 else torch.float32
    corners = {"xyxy": [], "xywh": [], "cxcywh": []}
    for x, y, w, h in (boxes.to(real).unbind(-1) for boxes in (a, b)):
        corners["xyxy"].append(torch.stack((x, y, w, h), -1))
        corners["xywh"].append(torch.stack((x, y, x + w, y + h), -1))
        halves = w * 0.5, h * 0.5
        corners["cxcywh"].append(
            torch.stack((x - halves[0], y - halves[1], x + halves[0], y + halves[1]), -1)
        )
    for fmt, (first, second) in corners.items():
        assert torch.equal(ssd_ops.box_iou(a, b, fmt), reference.box_iou(first, second)), fmt
        assert torch.equal(ssd_ops.box_iou(a, b, fmt=fmt), reference.box_iou(first, second)), fmt


def test_formats_of_integers_and_wrong_ones():
    boxes = torch.tensor([[3, 3, 4, 2], [1, 2, 4, 2]])  # as cxcywh: 1..5 x 2..4 and -1..3 x 1..3
    got = ssd_ops.box_iou(boxes, boxes, "cxcywh")
    torch.testing.assert_close(got, torch.tensor([[1, 2 / 14], [2 / 14, 1]]))
    for fmt in ("xyxyr", None, 0):
        with pytest.raises(
            ValueError, match=r"^box_iou: fmt must be 'xyxy', 'xywh' or 'cxcywh', got"
        ):
            ssd_ops.box_iou(boxes, boxes, fmt)
    with pytest.raises(
        RuntimeError, match=r"^box_iou: boxes1 must be \[\.\.\., N, 4\], got \[3, 5\]"
    ):
        ssd_ops.box_iou(torch.zeros(3, 5), torch.zeros(3, 4), "xywh")
    with pytest.raises(RuntimeError, match=r"^box_iou: boxes2 must be"):
        ssd_ops.box_iou(torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.bool), "xywh")
