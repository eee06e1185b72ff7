from __future__ import annotations

import itertools

import cases
import pytest
import torch

import ssd_ops
from ssd_ops import reference

pytestmark = pytest.mark.usefixtures("backend")

nan, inf = float("nan"), float("inf")


def hard_negative_mining_inputs(images, size, dtype):
    return torch.rand(images, size).to(dtype), torch.randint(-1, 2, (images, size))


def random_labels(images: int, anchors: int, positives: float, ignored: float = 0.1):
    draw = torch.rand(images, anchors)
    labels = torch.randint(1, 21, (images, anchors))
    labels[draw > positives] = 0
    labels[draw > 1 - ignored] = -torch.randint(1, 9, labels.shape)[draw > 1 - ignored]
    return labels


def test_by_hand():
    losses = torch.tensor([[0.1, 0.9, 0.5, 0.7, 0.3, 5.0], [1, 2, 2, 2, 0, 0]])
    labels = torch.tensor([[1, 0, 0, 0, 0, -1], [0, 0, 0, 0, 3, 1]])
    for ratio, expected in (
        (2, [[1, 1, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]]),
        (1.5, [[1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1]]),
        (1, [[1, 1, 0, 0, 0, 0], [0, 1, 1, 0, 1, 1]]),  # equal losses: the first ones
        (0, [[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]]),
    ):
        selected = ssd_ops.hard_negative_mining(losses, labels, ratio=ratio)
        assert selected.dtype == torch.bool
        assert selected.int().tolist() == expected


def test_default_is_three_negatives_for_a_positive():
    losses, labels = torch.arange(10.0)[None], torch.tensor([[1] + [0] * 9])
    assert ssd_ops.hard_negative_mining(losses, labels).nonzero()[:, 1].tolist() == [0, 7, 8, 9]


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_equals_reference(dtype):
    sizes = (1, 2, 15, 16, 17, 300, 1023, 1024, 1025)
    for kind, num_anchors in itertools.product(("uniform", "ties", "odd"), sizes):
        for positives in cases.some((0.0, 0.02, 0.3, 0.9)):
            losses = cases.scores(6, num_anchors, kind=kind, dtype=dtype)
            labels = random_labels(6, num_anchors, positives)
            for options in ({}, {"ratio": 0.4}, {"ratio": 1, "min_negatives": 5}):
                got = ssd_ops.hard_negative_mining(losses, labels, **options)
                expected = reference.hard_negative_mining(losses, labels, **options)
                assert torch.equal(got, expected), (num_anchors, positives, options)


def test_equals_reference_at_real_sizes():
    for count in (*cases.ANCHOR_COUNTS, 200_700):
        losses, labels = torch.rand(3, count), random_labels(3, count, 0.01)
        got = ssd_ops.hard_negative_mining(losses, labels)
        assert torch.equal(got, reference.hard_negative_mining(losses, labels)), count


# Where the keys no longer fit the shared memory of a block of the emulation (64 KB) and of an H200 (227 KB).
LIMITS = {torch.float32: (13_276, 55_004), torch.float64: (6_638, 27_502)}


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
def test_equals_reference_around_the_limit_of_shared_memory(dtype):
    counts = [limit + more for limit in LIMITS[dtype] for more in (0, 1)]
    for kind, count in itertools.product(("uniform", "ties"), counts):
        losses, labels = (
            cases.scores(2, count, kind=kind, dtype=dtype),
            random_labels(2, count, 0.01),
        )
        got = ssd_ops.hard_negative_mining(losses, labels)
        assert torch.equal(got, reference.hard_negative_mining(losses, labels)), (kind, count)


@pytest.mark.parametrize("dtype", cases.DTYPES, ids=str)
def test_of_equal_losses_the_first_are_selected(dtype):
    """All equal but few, so that the last one selected is anywhere in a long row of equals."""
    for count in (4095, 4096, 4097, 8193, 9001):
        losses, labels = torch.ones(3, count, dtype=dtype), random_labels(3, count, 0.2)
        losses[:, torch.randint(0, count, (5,))] = 2
        losses[2, ::2] = nan
        got = ssd_ops.hard_negative_mining(losses, labels, ratio=torch.rand(()).item() * 2)
        for image in range(3):
            hard = (got[image] & (labels[image] == 0)).nonzero()[:, 0]
            order = losses[image].nan_to_num(nan=3).sort(descending=True, stable=True).indices
            order = order[labels[image, order] == 0]
            assert torch.equal(hard, order[: len(hard)].sort().values), count


def test_selects_the_number_it_promises():
    losses, labels = cases.scores(40, 200, kind="ties"), random_labels(40, 200, 0.2)
    for ratio, least in ((0.0, 0), (0.3, 0), (1.7, 10), (3.0, 0), (1e300, 0), (0.0, 2**62)):
        selected = ssd_ops.hard_negative_mining(losses, labels, ratio=ratio, min_negatives=least)
        positive, negative = labels > 0, labels == 0
        assert selected[positive].all()
        assert not selected[labels < 0].any()
        for image in range(40):
            wanted = max(ratio * int(positive[image].sum()) // 1, least)
            found = int((selected & negative)[image].sum())
            assert found == min(wanted, int(negative[image].sum()))


def test_what_is_selected_is_harder_than_what_is_not():
    losses, labels = torch.randn(30, 500), random_labels(30, 500, 0.05)
    selected = ssd_ops.hard_negative_mining(losses, labels)
    for image in range(30):
        negative = labels[image] == 0
        chosen, left = (
            losses[image][negative & selected[image]],
            losses[image][negative & ~selected[image]],
        )
        assert not len(chosen) or not len(left) or chosen.min() >= left.max()


def test_nan_infinity_and_zeros():
    labels = torch.tensor([[1, 0, 0, 0, 0]])
    for losses, expected in (
        ([0, inf, nan, 1.0, nan], [1, 0, 1, 0, 0]),
        ([nan, -inf, -inf, -inf, -inf], [1, 1, 0, 0, 0]),
        ([0, -0.0, 0.0, -0.0, 0.0], [1, 1, 0, 0, 0]),
        ([0, 1e-45, 3e-45, 0, 0], [1, 0, 1, 0, 0]),
        ([0, -inf, inf, inf, 3e38], [1, 0, 1, 0, 0]),
    ):
        selected = ssd_ops.hard_negative_mining(torch.tensor([losses]), labels, ratio=1)
        assert selected.int().tolist() == [expected], losses


def test_no_positives():
    losses, labels = torch.rand(2, 30), torch.zeros(2, 30, dtype=torch.int64)
    assert not ssd_ops.hard_negative_mining(losses, labels).any()
    assert ssd_ops.hard_negative_mining(losses, labels, min_negatives=4).sum(1).tolist() == [4, 4]


def test_only_positives_or_only_ignored():
    losses = torch.rand(2, 30)
    ones = torch.ones(2, 30, dtype=torch.int64)
    assert ssd_ops.hard_negative_mining(losses, ones).all()
    assert not ssd_ops.hard_negative_mining(losses, -ones, min_negatives=3).any()


def test_empty():
    for shape in ((0, 5), (3, 0), (0, 0)):
        labels = torch.zeros(shape, dtype=torch.int64)
        assert ssd_ops.hard_negative_mining(torch.zeros(shape), labels).shape == shape


def test_layouts():
    losses, labels = torch.rand(4, 60), random_labels(4, 60, 0.1)
    expected = ssd_ops.hard_negative_mining(losses, labels)
    for name, view in cases.odd_layouts(losses).items():
        assert torch.equal(ssd_ops.hard_negative_mining(view, labels), expected), name
    for name, view in cases.odd_layouts(labels).items():
        assert torch.equal(ssd_ops.hard_negative_mining(losses, view), expected), name
    one = losses[:1].expand(4, 60)
    assert torch.equal(
        ssd_ops.hard_negative_mining(one, labels), reference.hard_negative_mining(one, labels)
    )


def test_inputs_stay_as_they_are():
    losses, labels = torch.rand(4, 60), random_labels(4, 60, 0.1)
    copies = losses.clone(), labels.clone()
    ssd_ops.hard_negative_mining(losses, labels)
    assert torch.equal(losses, copies[0]) and torch.equal(labels, copies[1])


def test_threads_and_runs_agree(threads):
    losses, labels = cases.scores(9, 8732, kind="ties"), random_labels(9, 8732, 0.01)
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(ssd_ops.hard_negative_mining(losses, labels))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[1], results[2])
