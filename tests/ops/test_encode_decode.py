from __future__ import annotations

import itertools

import cases
import golden
import numpy as np
import pytest
import torch

import ssd_ops
from ssd_ops import reference

pytestmark = pytest.mark.usefixtures("backend")

nan, inf = float("nan"), float("inf")
VARIANCES = [(0.1, 0.1, 0.2, 0.2), (1, 1, 1, 1), (0.3, 0.05, 2, 0.7)]


def encode_boxes_inputs(images, size, dtype):
    return cases.boxes(images, size, dtype=dtype), cases.boxes(1, size, dtype=dtype)


def decode_boxes_inputs(images, size, dtype):
    return torch.randn(images, size, 4).to(dtype), cases.boxes(1, size, dtype=dtype)


def close(actual, expected):
    """Equal but for the last bits of exp and log; infinities and NaN in the same places."""
    assert actual.dtype == expected.dtype
    rtol = 1e-5 if actual.dtype == torch.float32 else 1e-12
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=rtol, equal_nan=True)


def test_the_book_box():
    anchor, dog = golden.BOOK_ANCHORS[0, 1:2], golden.BOOK_LABELS[0, :1, 1:]
    offsets = ssd_ops.encode_boxes(dog, anchor)
    torch.testing.assert_close(offsets[0], golden.BOOK_OFFSETS_1, rtol=0, atol=2e-4)
    torch.testing.assert_close(ssd_ops.decode_boxes(offsets, anchor), dog)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_matches_reference(dtype):
    counts = (1, 15, 16, 17, 1023, 1024, 1025, 5444)
    for kind, count in itertools.product(("uniform", "small", "grid"), counts):
        anchors = cases.boxes(count, kind="uniform", dtype=dtype)
        boxes = cases.boxes(2, count, kind=kind, dtype=dtype)
        offsets = torch.randn(2, count, 4).to(dtype)
        for variances in VARIANCES:
            for eps in (0.0, 1e-6):
                options = {"variances": variances, "eps": eps}
                close(
                    ssd_ops.encode_boxes(boxes, anchors, **options),
                    reference.encode_boxes(boxes, anchors, **options),
                )
            for clip in (False, True):
                options = {"variances": variances, "clip": clip}
                close(
                    ssd_ops.decode_boxes(offsets, anchors, **options),
                    reference.decode_boxes(offsets, anchors, **options),
                )


def test_odd_boxes_match_reference():
    boxes, anchors = cases.boxes(2000, kind="odd"), cases.boxes(2000, kind="odd")
    close(ssd_ops.encode_boxes(boxes, anchors), reference.encode_boxes(boxes, anchors))
    offsets = torch.randn(2000, 4) * torch.tensor([1, 10, 100, 1e4])[torch.randint(0, 4, (2000, 1))]
    got, expected = ssd_ops.decode_boxes(offsets, anchors), reference.decode_boxes(offsets, anchors)
    # A corner is center minus half a side: where they nearly cancel, the last bit of exp shows in the
    # difference as an error of their size, which is that of the other corner.
    size = expected.abs().unflatten(1, (2, 2)).amax(dim=1).repeat(1, 2)
    finite = size.isfinite()
    close(got[~finite | (size == 0)], expected[~finite | (size == 0)])
    close((got / size)[finite & (size > 0)], (expected / size)[finite & (size > 0)])


def test_mixed_dtypes():
    for first in cases.DTYPES:
        for second in cases.DTYPES:
            rows, anchors = cases.boxes(40, dtype=first), cases.boxes(40, dtype=second)
            close(ssd_ops.encode_boxes(rows, anchors), reference.encode_boxes(rows, anchors))
            close(ssd_ops.decode_boxes(rows, anchors), reference.decode_boxes(rows, anchors))


def ulps(actual: np.ndarray, exact: np.ndarray) -> float:
    """The largest error of float32 results, in units of their last place."""
    rounded = exact.astype(np.float32)
    return float(np.max(np.abs(actual.astype(np.float64) - exact) / np.spacing(np.abs(rounded))))


def test_exp_is_accurate():
    # Of the anchor (-1/2, 1/2) with variances 1, x2 is exp(offset) / 2.
    x = torch.cat((torch.linspace(-86, 88, 400_000), torch.linspace(-1, 1, 400_000)))
    rows = torch.stack((0 * x, 0 * x, x, 0 * x), dim=1)
    anchor = torch.tensor([[-0.5, -0.5, 0.5, 0.5]])
    got = 2 * ssd_ops.decode_boxes(rows, anchor, variances=(1, 1, 1, 1))[:, 2]
    assert ulps(got.numpy(), np.exp(x.double().numpy())) < 1.1


def test_log_is_accurate():
    # A box (0, w) to an anchor of size 1 has the offset log(w).
    w = torch.cat((torch.logspace(-37, 37, 400_000), torch.linspace(0.5, 2, 400_000)))
    zero = torch.zeros_like(w)
    boxes = torch.stack((zero, zero, w, zero + 1), dim=1)
    anchor = torch.tensor([[0.0, 0, 1, 1]])
    got = ssd_ops.encode_boxes(boxes, anchor, variances=(1, 1, 1, 1))[:, 2]
    exact = np.log(w.double().numpy())
    nonzero = exact != 0
    assert ulps(got.numpy()[nonzero], exact[nonzero]) < 1.1
    assert (got.numpy()[~nonzero] == 0).all()


def test_exp_and_log_at_their_ends():
    anchor = torch.tensor([[-0.5, -0.5, 0.5, 0.5]])
    x = torch.tensor([-inf, -1e30, -200.0, -103.0, -0.0, 0.0, 88.0, 89.0, 1e30, inf, nan])
    rows = torch.stack((0.0 * x.nan_to_num(), 0.0 * x.nan_to_num(), x, 0.0 * x.nan_to_num()), dim=1)
    decoded = ssd_ops.decode_boxes(rows, anchor, variances=(1, 1, 1, 1))
    close(decoded, reference.decode_boxes(rows, anchor, variances=(1, 1, 1, 1)))
    boxes = torch.tensor([[0, 0, w, 1] for w in (0.0, 1e-40, 1e-45, 3e38, inf, nan, -1.0)])
    unit = torch.tensor([[0.0, 0, 1, 1]])
    encoded = ssd_ops.encode_boxes(boxes, unit, variances=(1, 1, 1, 1))
    close(encoded[:, 2:], reference.encode_boxes(boxes, unit, variances=(1, 1, 1, 1))[:, 2:])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.float64, 1e-14)])
def test_decode_inverts_encode(dtype, tolerance):
    boxes, anchors = (cases.boxes(5000, dtype=dtype) for _ in "ab")
    for variances in VARIANCES:
        offsets = ssd_ops.encode_boxes(boxes, anchors, variances=variances)
        back = ssd_ops.decode_boxes(offsets, anchors, variances=variances)
        torch.testing.assert_close(back, boxes, rtol=0, atol=tolerance)


def test_a_box_that_is_its_anchor_has_no_offset():
    boxes = cases.boxes(1000)
    assert (ssd_ops.encode_boxes(boxes, boxes) == 0).all()


def test_anchor_shapes():
    boxes, anchors = cases.boxes(3, 2, 7), cases.boxes(7)
    expected = ssd_ops.encode_boxes(boxes, anchors.expand(3, 2, 7, 4))
    for view in (anchors, anchors[None], anchors[None, None], anchors.expand(2, 7, 4)):
        assert torch.equal(ssd_ops.encode_boxes(boxes, view), expected)
        assert torch.equal(
            ssd_ops.decode_boxes(boxes, view),
            ssd_ops.decode_boxes(boxes, anchors.expand(3, 2, 7, 4)),
        )
    assert ssd_ops.encode_boxes(boxes[0, 0, 0], anchors[0]).shape == (4,)


def test_layouts():
    rows, anchors = cases.boxes(3, 17), cases.boxes(17)
    for op in (ssd_ops.encode_boxes, ssd_ops.decode_boxes):
        expected = op(rows, anchors)
        for name, view in cases.odd_layouts(rows).items():
            assert torch.equal(op(view, anchors), expected), name
        for name, view in cases.odd_layouts(anchors).items():
            assert torch.equal(op(rows, view), expected), name
        assert torch.equal(op(rows[:1].expand(3, 17, 4), anchors), expected[:1].expand(3, 17, 4))


def test_empty():
    for op in (ssd_ops.encode_boxes, ssd_ops.decode_boxes):
        assert op(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
        assert op(torch.zeros(0, 7, 4), torch.zeros(7, 4)).shape == (0, 7, 4)
        assert op(torch.zeros(2, 0, 4), torch.zeros(1, 0, 4)).shape == (2, 0, 4)


def test_threads_and_runs_agree(threads):
    rows, anchors = cases.boxes(4, 5444), cases.boxes(5444)
    for op in (ssd_ops.encode_boxes, ssd_ops.decode_boxes):
        results = []
        for count in (1, 2, 2):
            threads(count)
            results.append(op(rows, anchors))
        assert torch.equal(results[0], results[1])
        assert torch.equal(results[1], results[2])
