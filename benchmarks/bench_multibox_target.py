from functools import partial

import baselines
import cases
import mxnet_rival
import pytest
import torch

import ssd_ops

IMPLEMENTATIONS = {
    "ssd_ops": ssd_ops.multibox_target,
    "d2l": baselines.d2l_multibox_target,
    "eager": baselines.eager_multibox_target,
}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    "images, gts, anchors", [(32, 1, 5444), (32, 8, 5444), (8, 64, 5444), (32, 8, 8732)]
)
def bench_multibox_target(timed, images, gts, anchors, impl):
    # Without padding, because the book's function gives wrong answers for it.
    args = cases.prior_anchors(anchors), cases.labels(images, gts, padding=0)
    case = f"multibox_target B{images} G{gts} A{anchors:,}"
    timed(case, impl, IMPLEMENTATIONS, args, baselines.same_targets)


def padded_here(anchors, images):
    padded = torch.nn.utils.rnn.pad_sequence(images, batch_first=True, padding_value=-1.0)
    return ssd_ops.multibox_target(anchors, padded)


RAGGED = {"ssd_ops": ssd_ops.multibox_target, "pad_sequence": padded_here}


@pytest.mark.parametrize("impl", RAGGED)
def bench_multibox_target_ragged(timed, impl):
    """Labels as a list, against the padded tensor that a user would make."""
    images = [cases.labels(1, count)[0] for count in torch.randint(0, 16, (32,)).tolist()]
    args = cases.prior_anchors(5444), images
    timed("multibox_target list B32 A5,444", impl, RAGGED, args, baselines.same_targets)


BY_MXNETS_RULES = {
    "ssd_ops": partial(ssd_ops.multibox_target, semantics="mxnet"),
    "mxnet": mxnet_rival.rival("target"),
}


@pytest.mark.parametrize("impl", BY_MXNETS_RULES)
@pytest.mark.parametrize("images, gts, anchors", [(32, 1, 5444), (32, 8, 5444), (8, 64, 5444)])
def bench_multibox_target_mxnet(timed, images, gts, anchors, impl):
    args = cases.prior_anchors(anchors), cases.labels(images, gts, padding=0)
    case = f"multibox_target mxnet B{images} G{gts} A{anchors:,}"
    timed(case, impl, BY_MXNETS_RULES, args, mxnet_rival.fetched(baselines.same_targets))


@pytest.mark.parametrize("semantics", ["mxnet", "torchvision"])
@pytest.mark.parametrize("mining", [False, True], ids=["all negatives", "mining"])
def bench_multibox_target_semantics(timed, semantics, mining):
    """Without a rival: the cost of mining and of the other semantics."""
    images, gts, anchors = 32, 8, 8732
    options = {"semantics": semantics, "negative_mining_ratio": 3.0 if mining else None}

    def target(*args):
        return ssd_ops.multibox_target(*args, **options)

    args = cases.prior_anchors(anchors), cases.labels(images, gts), torch.randn(images, 21, anchors)
    case = f"multibox_target {semantics} B{images} G{gts} A{anchors:,}{' mining' * mining}"
    timed(case, "ssd_ops", {"ssd_ops": target}, args, baselines.same_targets)
