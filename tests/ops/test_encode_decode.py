from __future__ import annotations

import itertools
import math

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
CODINGS = ("center", "linear", "distance")


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


def same(actual, expected):
    """The same bits, and NaN in the same places."""
    assert actual.dtype == expected.dtype
    assert torch.equal(actual.nan_to_num(7e7, 8e8, -8e8), expected.nan_to_num(7e7, 8e8, -8e8))


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
@pytest.mark.parametrize("coding", CODINGS)
def test_codings_equal_reference(monkeypatch, coding, dtype):
    monkeypatch.setattr(reference, "_exp", cases.library_exp)
    decodings = [
        {"clip": (0.7, 0.4)},
        {"clip": (1e6, 3.0), "variances": (0.3, 0.05, 2, 0.7)},
        {"clip": True, "variances": None},
    ]
    if coding == "center":
        decodings += [{"max_log_size": 0.1}, {"max_log_size": 0.3, "clip": (0.9, 0.8)}]
        decodings.append({"max_log_size": math.log(1000 / 16), "variances": (1, 1, 1, 1)})
    for kind, count in itertools.product(("uniform", "grid", "odd"), (1, 15, 17, 1025)):
        anchors = cases.boxes(count, kind="uniform", dtype=dtype)
        boxes, offsets = cases.boxes(2, count, kind=kind, dtype=dtype), torch.randn(2, count, 4)
        offsets[0, ::3] = 8 * offsets[0, ::3].abs()
        offsets[1, ::5] = torch.tensor([nan, inf, -inf, 0.0])
        offsets[1, 1::5] = torch.tensor([0.0, -inf, inf, 2000])
        for variances in (None, *VARIANCES):
            options = {"variances": variances, "coding": coding}
            got = ssd_ops.encode_boxes(boxes, anchors, **options)
            expected = reference.encode_boxes(boxes, anchors, **options)
            close(got, expected) if coding == "center" else same(got, expected)
            got = ssd_ops.decode_boxes(offsets.to(dtype), anchors, **options)
            same(got, reference.decode_boxes(offsets.to(dtype), anchors, **options))
        for options in decodings:
            options = {**options, "coding": coding}
            got = ssd_ops.decode_boxes(offsets.to(dtype), anchors, **options)
            same(got, reference.decode_boxes(offsets.to(dtype), anchors, **options))


def test_codings_by_hand():
    """A box 4 to the left and 2 below the center of an anchor of 4 x 8, and 6 x 3 in size."""
    anchor, box = torch.tensor([[8.0, 0, 12, 8]]), torch.tensor([[3.0, 4.5, 9, 7.5]])
    wanted = {
        "center": [-4 / 4 / 0.5, 2 / 8 / 0.25, math.log(6 / 4) / 2, math.log(3 / 8) / 4],
        "linear": [-4 / 4 / 0.5, 2 / 8 / 0.25, 6 / 4 / 2, 3 / 8 / 4],
        "distance": [7 / 4 / 0.5, -0.5 / 8 / 0.25, -1 / 4 / 2, 3.5 / 8 / 4],
    }
    for coding, offset in wanted.items():
        options = {"coding": coding, "variances": (0.5, 0.25, 2, 4)}
        got = ssd_ops.encode_boxes(box, anchor, **options)
        torch.testing.assert_close(got, torch.tensor([offset]))
        torch.testing.assert_close(ssd_ops.decode_boxes(got, anchor, **options), box)
    default = ssd_ops.encode_boxes(box, anchor, coding="distance")
    torch.testing.assert_close(default, torch.tensor([[7 / 4, -0.5 / 8, -1 / 4, 3.5 / 8]]))


def test_clip_to_an_image():
    anchor, offset = torch.tensor([[-10.0, 5, 50, 60]]), torch.zeros(1, 4)
    clipped = {
        False: [-10.0, 5, 50, 60],
        True: [0.0, 1, 1, 1],
        (40, 30): [0.0, 5, 30, 40],
        (7.5, 80): [0.0, 5, 50, 7.5],
    }
    for clip, expected in clipped.items():
        got = ssd_ops.decode_boxes(offset, anchor, clip=clip)
        torch.testing.assert_close(got, torch.tensor([expected]))
    with_nan = ssd_ops.decode_boxes(torch.tensor([[nan, inf, 0, 0]]), anchor, clip=(40, 30))
    assert with_nan[0, [0, 2]].isnan().all() and with_nan[0, [1, 3]].tolist() == [40, 40]


def test_max_log_size():
    """What is more than the bound is cut to it, after the variances; NaN stays NaN."""
    anchor = torch.tensor([[-1.0, -1, 1, 1]])
    offsets = torch.tensor([[0, 0, 10, -10], [0, 0, 5, inf], [0, 0, -inf, nan], [0, 0, 1, 2.0]])
    got = ssd_ops.decode_boxes(offsets, anchor, variances=(1, 1, 0.5, 2), max_log_size=3.0)
    half = torch.tensor([[3, -20], [2.5, 3], [-inf, nan], [0.5, 3]]).exp()
    torch.testing.assert_close(got[:, 2:], half, equal_nan=True)
    free = ssd_ops.decode_boxes(offsets, anchor, variances=(1, 1, 0.5, 2), max_log_size=inf)
    same(free, ssd_ops.decode_boxes(offsets, anchor, variances=(1, 1, 0.5, 2)))


# The formulas of detectors, as their own code has them.


def test_torchvision_box_coder():
    weights, most = (10.0, 10.0, 5.0, 5.0), math.log(1000 / 16)
    anchors, codes = 300 * cases.boxes(500), 5 * torch.randn(500, 4)
    wide, high = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    x, y = anchors[:, 0] + 0.5 * wide, anchors[:, 1] + 0.5 * high
    dx, dy, dw, dh = (codes / torch.tensor(weights)).unbind(1)
    w, h = dw.clamp(max=most).exp() * wide, dh.clamp(max=most).exp() * high
    x, y = dx * wide + x, dy * high + y
    expected = torch.stack((x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h), dim=1)
    expected[:, 0::2].clamp_(0, 320)
    expected[:, 1::2].clamp_(0, 240)
    options = {"variances": [1 / weight for weight in weights], "max_log_size": most}
    got = ssd_ops.decode_boxes(codes, anchors, clip=(240, 320), **options)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=2e-3)


def test_fcos_of_torchvision():
    """`BoxLinearCoder` with `normalize_by_size`, over anchors with sides of one stride."""
    stride = torch.tensor([8.0, 16, 32])[torch.randint(0, 3, (600,))]
    center = (torch.randint(0, 40, (600, 2)) + 0.5) * stride[:, None]
    anchors = torch.cat((center - stride[:, None] / 2, center + stride[:, None] / 2), dim=1)
    boxes = 300 * cases.boxes(600)
    wide, high = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    x, y = 0.5 * (anchors[:, 0] + anchors[:, 2]), 0.5 * (anchors[:, 1] + anchors[:, 3])
    sides = (x - boxes[:, 0], y - boxes[:, 1], boxes[:, 2] - x, boxes[:, 3] - y)
    encoded = torch.stack(sides, dim=1) / torch.stack((wide, high, wide, high), dim=1)
    torch.testing.assert_close(ssd_ops.encode_boxes(boxes, anchors, coding="distance"), encoded)

    codes = torch.randn(600, 4).relu()
    left, top, right, bottom = (codes * torch.stack((wide, high, wide, high), dim=1)).unbind(1)
    decoded = torch.stack((x - left, y - top, x + right, y + bottom), dim=1)
    torch.testing.assert_close(ssd_ops.decode_boxes(codes, anchors, coding="distance"), decoded)


def test_distances_in_strides_and_in_pixels():
    """YOLOv8's `dist2bbox` times the stride; mmdet's `DistancePointBBoxCoder` with `max_shape`."""
    stride, points = 16.0, 400 * torch.rand(300, 2)
    codes = 5 * torch.rand(300, 4)
    in_strides = points / stride
    corners = torch.cat((in_strides - codes[:, :2], in_strides + codes[:, 2:]), dim=1) * stride
    anchors = torch.cat((points - stride / 2, points + stride / 2), dim=1)
    got = ssd_ops.decode_boxes(codes, anchors, coding="distance")
    torch.testing.assert_close(got, corners, rtol=1e-5, atol=1e-3)

    corners = torch.cat((points - 30 * codes[:, :2], points + 30 * codes[:, 2:]), dim=1)
    corners[:, 0::2] = corners[:, 0::2].clamp(0, 400)
    corners[:, 1::2] = corners[:, 1::2].clamp(0, 300)
    pixels = torch.cat((points - 0.5, points + 0.5), dim=1)
    got = ssd_ops.decode_boxes(30 * codes, pixels, coding="distance", clip=(300, 400))
    torch.testing.assert_close(got, corners, rtol=1e-5, atol=2e-3)


def test_blazeface():
    """Anchors of 1 x 1 around 896 centers, and raw boxes in 128ths of the image."""
    centers = torch.cat([torch.cartesian_prod(*[(torch.arange(n) + 0.5) / n] * 2) for n in (16, 8)])
    centers = torch.cat(
        (centers[:256].repeat_interleave(2, 0), centers[256:].repeat_interleave(6, 0))
    )
    raw = 128 * torch.randn(2, 896, 4)
    x, y = raw[..., 0] / 128 * 1 + centers[:, 0], raw[..., 1] / 128 * 1 + centers[:, 1]
    w, h = raw[..., 2] / 128 * 1, raw[..., 3] / 128 * 1
    expected = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), dim=2)
    anchors = torch.cat((centers - 0.5, centers + 0.5), dim=1)
    got = ssd_ops.decode_boxes(raw, anchors, coding="linear", variances=(1 / 128,) * 4)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


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
    for variances, coding in itertools.product(VARIANCES, CODINGS):
        options = {"variances": variances, "coding": coding}
        offsets = ssd_ops.encode_boxes(boxes, anchors, **options)
        back = ssd_ops.decode_boxes(offsets, anchors, **options)
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
