"""The losses and the chapter's measures, against numbers worked by hand and plain formulas."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssd_ops.tinyssd.loss import MultiBoxLoss, bbox_eval, cls_eval, focal_loss, smooth_l1

LOG2 = math.log(2)


def random_case(batch=3, anchors=40, classes=2, positives=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    cls_labels = torch.zeros(batch, anchors, dtype=torch.int64)
    cls_labels[:, :positives] = torch.randint(1, classes + 1, (batch, positives), generator=g)
    masks = (cls_labels > 0).float().repeat_interleave(4, dim=1)
    return (
        torch.randn(batch, anchors, classes + 1, generator=g),
        cls_labels,
        torch.randn(batch, 4 * anchors, generator=g) * 3,
        torch.randn(batch, 4 * anchors, generator=g),
        masks,
    )


def chapter_loss(cls_preds, cls_labels, bbox_preds, bbox_labels, bbox_masks):
    batch, _, outputs = cls_preds.shape
    cls = F.cross_entropy(cls_preds.reshape(-1, outputs), cls_labels.reshape(-1), reduction="none")
    bbox = F.l1_loss(bbox_preds * bbox_masks, bbox_labels * bbox_masks, reduction="none")
    return cls.reshape(batch, -1).mean(dim=1) + bbox.mean(dim=1)


def test_default_is_the_chapters_loss():
    case = random_case()
    torch.testing.assert_close(MultiBoxLoss()(*case), chapter_loss(*case))


def test_default_by_hand():
    """Two anchors with even odds cost log 2 each; four of eight offsets are off by 3."""
    loss = MultiBoxLoss()(
        torch.zeros(1, 2, 2),
        torch.tensor([[1, 0]]),
        torch.zeros(1, 8),
        torch.full((1, 8), 3.0),
        torch.tensor([[1.0] * 4 + [0.0] * 4]),
    )
    torch.testing.assert_close(loss, torch.tensor([LOG2 + 4 * 3 / 8]))


def test_smooth_l1_by_hand():
    """With sigma 1: 0.5 * 0.5**2 below it, 3 - 0.5 above."""
    arguments = (
        torch.zeros(1, 1, 2),
        torch.tensor([[1]]),
        torch.zeros(1, 4),
        torch.tensor([[0.5, 3.0, 0.0, 0.0]]),
        torch.ones(1, 4),
    )
    loss = MultiBoxLoss(offset_loss="smooth_l1")(*arguments)
    torch.testing.assert_close(loss, torch.tensor([LOG2 + (0.125 + 2.5) / 4]))
    sharp = MultiBoxLoss(offset_loss="smooth_l1", sigma=10)(*arguments)
    torch.testing.assert_close(sharp, torch.tensor([LOG2 + (0.495 + 2.995) / 4]))


@pytest.mark.parametrize("sigma", [0.5, 1.0, 10.0])
def test_smooth_l1_is_the_books_formula_and_torchs(sigma):
    x = torch.linspace(-5, 5, 2001, dtype=torch.float64)
    near = x.abs() < 1 / sigma**2
    expected = torch.where(near, (sigma * x) ** 2 / 2, x.abs() - 0.5 / sigma**2)
    torch.testing.assert_close(smooth_l1(x, sigma), expected)
    torch.testing.assert_close(
        smooth_l1(x, sigma), F.smooth_l1_loss(x, 0 * x, reduction="none", beta=1 / sigma**2)
    )


def test_focal_by_hand():
    """p is 3/4 of anchor 0, 1/4 of anchor 1; anchor 2 does not count."""
    cls_preds = torch.tensor([[[0.0, math.log(3)], [0.0, math.log(3)], [0.0, 5.0]]])
    cls_labels = torch.tensor([[1, 0, -1]])
    for gamma in (0.0, 0.5, 1.0, 2.0, 5.0):
        got = focal_loss(cls_preds, cls_labels, gamma, alpha=0.25)
        expected = [-0.25 * (1 - p) ** gamma * math.log(p) for p in (0.75, 0.25)]
        torch.testing.assert_close(got, torch.tensor([[*expected, 0.0]]))


def test_focal_of_gamma_0_is_cross_entropy():
    case = random_case()
    assert torch.equal(
        MultiBoxLoss(cls_loss="focal", focal_gamma=0.0)(*case), MultiBoxLoss()(*case)
    )


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_gradient_is_finite_at_both_ends_and_that_of_the_formula(gamma):
    labels = torch.tensor([[1, 1, 0, 2, 0]])
    certain = torch.zeros(1, 5, 3)
    certain[0, 0, 1], certain[0, 1, 0], certain[0, 2, 0] = 200.0, 200.0, 17.0
    certain.requires_grad_()
    focal_loss(certain, labels, gamma).sum().backward()
    assert certain.grad.isfinite().all()
    preds = torch.randn(1, 5, 3).requires_grad_()
    focal_loss(preds, labels, gamma).sum().backward()
    twin = preds.detach().double().requires_grad_()
    p = twin.softmax(dim=2).gather(2, labels[..., None])
    (-((1 - p) ** gamma) * p.log()).sum().backward()
    torch.testing.assert_close(preds.grad.double(), twin.grad, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("normalize", ["mean", "positives"])
def test_weights_are_factors_of_the_two_parts(normalize):
    case = random_case()
    options = {"normalize": normalize, "cls_loss": "focal"}

    def loss(cls_weight, offset_weight):
        weights = {"cls_weight": cls_weight, "offset_weight": offset_weight}
        return MultiBoxLoss(**options, **weights)(*case)

    torch.testing.assert_close(loss(2.0, 0.5), 2 * loss(1.0, 0.0) + 0.5 * loss(0.0, 1.0))


@pytest.mark.parametrize("normalize", ["mean", "positives"])
def test_parts_of_a_batch_add_up_to_its_loss(normalize):
    case = random_case(batch=5)
    criterion = MultiBoxLoss(normalize=normalize, negative_mining_ratio=3.0, min_negatives=2)
    whole = 5, (case[1] > 0).sum()
    parts = [
        criterion(*(tensor[rows] for tensor in case), whole=whole).sum()
        for rows in (slice(0, 2), slice(2, 5), slice(5, 5))
    ]
    torch.testing.assert_close(sum(parts) / 5, criterion(*case).mean())


def test_paper_loss_by_hand():
    """Image 0: one positive, and of four negatives the three hardest. Image 1: no object."""
    margins = torch.tensor([[2.0, -1.0, 3.0, 0.5, 1.0], [9.0, 9.0, 9.0, 9.0, 9.0]])
    cls_preds = torch.stack((torch.zeros(2, 5), margins), dim=2)
    cls_labels = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    masks = torch.zeros(2, 20)
    masks[0, :4] = 1
    loss = MultiBoxLoss(
        offset_loss="smooth_l1", negative_mining_ratio=3.0, normalize="positives", offset_weight=2.0
    )(cls_preds, cls_labels, torch.zeros(2, 20), torch.full((2, 20), 0.5), masks)
    softplus = [math.log1p(math.exp(x)) for x in (-2.0, 3.0, 1.0, 0.5)]
    torch.testing.assert_close(loss.mean(), torch.tensor(sum(softplus) + 2 * 4 * 0.125))
    assert loss[1] == 0


def test_positives_are_those_of_the_batch():
    case = random_case()
    loss = MultiBoxLoss(normalize="positives")(*case)
    cls_preds, cls_labels, bbox_preds, bbox_labels, masks = case
    cls = F.cross_entropy(cls_preds.flatten(0, 1), cls_labels.flatten(), reduction="sum")
    bbox = ((bbox_preds - bbox_labels).abs() * masks).sum()
    torch.testing.assert_close(loss.mean(), (cls + bbox) / (cls_labels > 0).sum())


def test_mining_of_the_mean_averages_what_it_selects():
    case = random_case(anchors=12, positives=1)
    all_negatives = MultiBoxLoss(negative_mining_ratio=100.0)(*case)
    torch.testing.assert_close(all_negatives, MultiBoxLoss()(*case))
    assert (MultiBoxLoss(negative_mining_ratio=3.0)(*case) >= all_negatives).all()


@pytest.mark.parametrize("normalize", ["mean", "positives"])
@pytest.mark.parametrize("ratio", [None, 3.0])
def test_no_positive_is_finite_and_trains_nothing_wrong(normalize, ratio):
    cls_preds, _, bbox_preds, bbox_labels, masks = random_case()
    cls_preds.requires_grad_()
    bbox_preds.requires_grad_()
    labels = torch.zeros(3, 40, dtype=torch.int64)
    loss = MultiBoxLoss(normalize=normalize, negative_mining_ratio=ratio)(
        cls_preds, labels, bbox_preds, bbox_labels, torch.zeros_like(masks)
    )
    loss.mean().backward()
    assert loss.isfinite().all() and cls_preds.grad.isfinite().all()
    assert not bbox_preds.grad.any()
    if normalize == "positives" or ratio is not None:
        assert not loss.any() and not cls_preds.grad.any()


@pytest.mark.parametrize("normalize", ["mean", "positives"])
@pytest.mark.parametrize("ratio", [None, 3.0])
def test_ignored_anchors_do_not_count(normalize, ratio):
    """Anchors labelled -1 change nothing: the loss is the one without them."""
    cls_preds, cls_labels, bbox_preds, bbox_labels, masks = random_case(anchors=20)
    junk = torch.full((3, 7), -1)
    more_preds = torch.cat((cls_preds, torch.randn(3, 7, 3) * 50), dim=1).requires_grad_()
    more_labels = torch.cat((cls_labels, junk), dim=1)
    pad = torch.zeros(3, 28)
    criterion = MultiBoxLoss(normalize=normalize, negative_mining_ratio=ratio, offset_weight=0.0)
    bbox = (torch.cat((x, pad), dim=1) for x in (bbox_preds, bbox_labels, masks))
    loss = criterion(more_preds, more_labels, *bbox)
    plain = criterion(cls_preds, cls_labels, bbox_preds, bbox_labels, masks)
    torch.testing.assert_close(loss, plain)
    loss.sum().backward()
    assert not more_preds.grad[:, 20:].any()


def test_half_precision_is_computed_in_float32():
    cls_preds, cls_labels, bbox_preds, bbox_labels, masks = random_case()
    rounded = cls_preds.bfloat16(), cls_labels, bbox_preds.bfloat16(), bbox_labels, masks
    widened = rounded[0].float(), cls_labels, rounded[2].float(), bbox_labels, masks
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = MultiBoxLoss(negative_mining_ratio=3.0)(*rounded)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, MultiBoxLoss(negative_mining_ratio=3.0)(*widened))


def test_gradients_are_those_of_the_formula():
    case = random_case(batch=2, anchors=6, positives=2)
    inputs = case[0].double().requires_grad_(), case[2].double().requires_grad_()
    cls, bbox = (
        MultiBoxLoss(offset_loss="smooth_l1")(
            case[0].requires_grad_(), case[1], case[2].requires_grad_(), *case[3:]
        ).sum(),
        None,
    )
    cls.backward()
    expected = F.cross_entropy(inputs[0].transpose(1, 2), case[1], reduction="none").mean(1)
    bbox = F.smooth_l1_loss(inputs[1] * case[4], case[3].double() * case[4], reduction="none")
    (expected + bbox.mean(1)).sum().backward()
    torch.testing.assert_close(case[0].grad.double(), inputs[0].grad, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(case[2].grad.double(), inputs[1].grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"offset_loss": "l2"}, "offset_loss must be l1 or smooth_l1, got 'l2'"),
        ({"sigma": 0}, "sigma must be positive, got 0"),
        ({"cls_loss": "hinge"}, "cls_loss must be cross_entropy or focal, got 'hinge'"),
        ({"focal_gamma": -1}, "focal_gamma must be 0 or more"),
        ({"focal_alpha": 0}, "focal_alpha must be positive"),
        ({"cls_weight": -1}, "cls_weight must be 0 or more"),
        ({"negative_mining_ratio": -1.0}, "negative_mining_ratio must be positive, got"),
        ({"min_negatives": -1}, "min_negatives must be 0 or more"),
        ({"normalize": "anchors"}, "normalize must be mean or positives"),
        ({"offset_weight": -1}, "offset_weight must be 0 or more"),
        ({"sigma": "1"}, "sigma must be a finite number, got '1'"),
        ({"min_negatives": 1.5}, "min_negatives must be a whole number, got 1.5"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=f"MultiBoxLoss: {message}"):
        MultiBoxLoss(**options)


def test_measures_by_hand():
    cls_preds = torch.tensor([[[2.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
    assert cls_eval(cls_preds, torch.tensor([[0, 1, -1]])) == 2.0
    preds, labels = torch.zeros(1, 4), torch.tensor([[1.0, -2.0, 5.0, 5.0]])
    assert bbox_eval(preds, labels, torch.tensor([[1.0, 1.0, 0.0, 0.0]])) == 3.0


@pytest.mark.parametrize("cls_loss", ["cross_entropy", "focal"])
@pytest.mark.parametrize("offset_loss", ["l1", "smooth_l1"])
@pytest.mark.parametrize("normalize", ["mean", "positives"])
def test_gradients_are_those_of_finite_differences(cls_loss, offset_loss, normalize):
    """In float64, which the loss keeps; mining has no part in the gradient but its choice."""
    cls_preds, cls_labels, *offsets = (t.double() for t in random_case(2, 6, positives=2))
    loss = MultiBoxLoss(
        cls_loss=cls_loss, offset_loss=offset_loss, sigma=0.7, normalize=normalize,
        negative_mining_ratio=1.0, cls_weight=0.5, offset_weight=2.0,
    )  # fmt: skip
    bbox_preds, bbox_labels, masks = offsets

    def run(cls_preds, bbox_preds):
        return loss(cls_preds, cls_labels.long(), bbox_preds, bbox_labels, masks)

    inputs = cls_preds.requires_grad_(), bbox_preds.requires_grad_()
    assert run(*inputs).dtype == torch.float64
    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(half):
    """As much as those numbers, which half precision could not add up."""
    g = torch.Generator().manual_seed(0)
    cls_preds, bbox_preds = torch.randn(2, 3000, 3, generator=g), torch.randn(2, 12000, generator=g)
    cls_preds, bbox_preds = cls_preds.to(half), bbox_preds.to(half)
    cls_labels = torch.randint(0, 3, (2, 3000), generator=g)
    targets = torch.randn(2, 12000, generator=g), torch.ones(2, 12000)
    got = MultiBoxLoss()(cls_preds, cls_labels, bbox_preds, *targets)
    expected = MultiBoxLoss()(cls_preds.float(), cls_labels, bbox_preds.float(), *targets)
    assert got.dtype == torch.float32 and torch.equal(got, expected)
