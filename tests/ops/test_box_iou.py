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
    got, expected = ssd_ops.box_iou(a, b), reference.box_iou(a, b)
    assert got.dtype == expected.dtype
    assert torch.equal(got, expected)


@pytest.mark.parametrize("first, second, iou", golden.IOU_PAIRS)
def test_pairs_by_hand(first, second, iou):
    a, b = torch.tensor([first], dtype=torch.float32), torch.tensor([second], dtype=torch.float32)
    expected = torch.tensor([[iou]])
    torch.testing.assert_close(ssd_ops.box_iou(a, b), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ssd_ops.box_iou(b, a), expected, rtol=0, atol=1e-6)


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
    iou = ssd_ops.box_iou(a, a)
    assert torch.equal(iou, reference.box_iou(a, a))
    assert ((iou >= 0) & (iou <= 1)).all()


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
    assert torch.equal(ssd_ops.box_iou(a, b), ssd_ops.box_iou(b, a).T)
    assert (ssd_ops.box_iou(a, a).diagonal() == 1).all()


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
