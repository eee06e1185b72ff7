import functools

import baselines
import cases
import pytest
import torch

import ssd_ops


def encode(boxes, anchors):
    return ssd_ops.encode_boxes(boxes, anchors, eps=baselines.EPS)


ENCODE = {
    "ssd_ops": encode,
    "d2l": baselines.d2l_encode_boxes,
    "eager": baselines.eager_encode_boxes,
}
DECODE = {
    "ssd_ops": ssd_ops.decode_boxes,
    "d2l": baselines.d2l_decode_boxes,
    "eager": baselines.eager_decode_boxes,
}


@pytest.mark.parametrize("impl", ENCODE)
@pytest.mark.parametrize("anchors", [5444, 24564])
def bench_encode_boxes(timed, anchors, impl):
    args = cases.boxes(anchors), cases.prior_anchors(anchors)[0]
    timed(f"encode_boxes A{anchors:,}", impl, ENCODE, args, baselines.close)


@pytest.mark.parametrize("impl", DECODE)
@pytest.mark.parametrize("anchors", [5444, 24564])
def bench_decode_boxes(timed, anchors, impl):
    args = torch.randn(anchors, 4), cases.prior_anchors(anchors)[0]
    timed(f"decode_boxes A{anchors:,}", impl, DECODE, args, baselines.close)


def eager_distance(offsets, anchors):
    size, center = anchors[:, 2:] - anchors[:, :2], (anchors[:, :2] + anchors[:, 2:]) / 2
    low, high = center - offsets[:, :2] * size, center + offsets[:, 2:] * size
    return torch.cat((low, high), dim=1).clamp_(0, 1)


DISTANCE = {
    "ssd_ops": functools.partial(ssd_ops.decode_boxes, coding="distance", clip=True),
    "eager": eager_distance,
}


@pytest.mark.parametrize("impl", DISTANCE)
def bench_decode_distances(timed, impl):
    args = torch.rand(24564, 4), cases.prior_anchors(24564)[0]
    timed("decode_boxes A24,564 distances, clipped", impl, DISTANCE, args, baselines.close)
