from __future__ import annotations

import itertools

import cases
import pytest
import torch

import ssd_ops
from ssd_ops import reference

pytestmark = pytest.mark.usefixtures("backend")

nan, inf = float("nan"), float("inf")


def multiclass_nms_inputs(images, size, dtype):
    return cases.boxes(images, size, dtype=dtype), torch.rand(images, size, 3).to(dtype)


def multiclass_nms(*args, **options) -> tuple:
    """The op with its results as a plain tuple, which every backend can move."""
    return tuple(ssd_ops.multiclass_nms(*args, **options))


def same(got, expected) -> bool:
    pairs = zip(got, expected, strict=True)
    return all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)) for a, b in pairs
    )


def compare(boxes, scores, **options):
    got = multiclass_nms(boxes, scores, **options)
    assert same(got, reference.multiclass_nms(boxes, scores, **options)), options


def inputs(images, count, classes, kind, dtype=torch.float32):
    boxes = cases.boxes(images, count, kind=kind, dtype=dtype)
    return boxes, cases.scores(images, count, classes, kind=kind, dtype=dtype)


OPTIONS = (
    {},
    {"score_threshold": 0.5, "iou_threshold": 0.3, "class_agnostic": True},
    {"topk": 3, "max_detections": 7, "score_threshold": 0.0},
    {"topk": -1, "max_detections": 1, "iou_threshold": 1.0},
    {"topk": 5, "max_detections": 300, "class_agnostic": True, "iou_threshold": 0.0},
    {"topk": 30, "max_detections": 1500, "score_threshold": 0.0},  # past the searched list
    {"topk": -1, "max_detections": 1025, "class_agnostic": True, "score_threshold": 0.0},
    {"score_threshold": 1.0},
    {"metric": "ios"},
    {"metric": "ios", "class_agnostic": True, "iou_threshold": 0.2, "score_threshold": 0.0},
    {"metric": "ios", "topk": 30, "max_detections": 1500, "score_threshold": 0.0},
    {"best_class_only": True},
    {"best_class_only": True, "class_agnostic": True, "topk": 5, "score_threshold": 0.0},
    {"best_class_only": True, "topk": -1, "max_detections": 1500, "score_threshold": 0.3},
)


def test_by_hand():
    boxes = torch.tensor([[[0.0, 0, 2, 2], [0, 0, 2, 1.9], [5, 5, 6, 6]]])
    scores = torch.tensor([[[0.8, 0.9], [0.9, 0.1], [0.05, 0.7]]])
    found = ssd_ops.multiclass_nms(boxes, scores, max_detections=5)
    assert isinstance(found, ssd_ops.Detections)
    # Equal scores by class; 0.05 is not over the threshold; box 0 falls to box 1 in class 0.
    assert found.labels.tolist() == [[0, 1, 1, -1, -1]]
    assert found.indices.tolist() == [[1, 0, 2, -1, -1]]
    torch.testing.assert_close(found.scores, torch.tensor([[0.9, 0.9, 0.7, 0, 0]]))
    assert torch.equal(found.boxes[0, :3], boxes[0, [1, 0, 2]]) and found.boxes[0, 3:].eq(0).all()
    assert found.counts.tolist() == [3]
    inside = (
        torch.cat((boxes, torch.tensor([[[1.0, 1, 2, 1.5]]])), dim=1),
        scores[:, [0, 1, 2, 0]] / 2,
    )
    assert ssd_ops.multiclass_nms(*inside).counts.tolist() == [5]
    assert ssd_ops.multiclass_nms(*inside, metric="ios").counts.tolist() == [3]
    agnostic = ssd_ops.multiclass_nms(boxes, scores, max_detections=5, class_agnostic=True)
    assert agnostic.indices.tolist() == [[1, 2, -1, -1, -1]]
    first = ssd_ops.multiclass_nms(boxes, scores, topk=1, max_detections=2)
    assert first.indices.tolist() == [[1, 0]]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_reference(options):
    for kind, dtype in itertools.product(cases.KINDS, (torch.float32, torch.float64, torch.half)):
        for count, classes in ((1, 1), (17, 3), (70, 2)):
            compare(*inputs(2, count, classes, kind, dtype), **options)


LEVEL_OPTIONS = (
    {"topk": -1},
    {"best_class_only": True, "score_threshold": 0.3},
    {"topk": 2, "max_detections": 9, "score_threshold": 0.0},
    {"class_agnostic": True, "iou_threshold": 0.3, "score_threshold": 0.0},
    {"topk": 7, "max_detections": 1100, "iou_threshold": 0.9, "score_threshold": 0.0},
)


@pytest.mark.parametrize("options", LEVEL_OPTIONS, ids=str)
def test_levels_equal_reference(options):
    splits = itertools.cycle(([70], [40, 30], [0, 1, 64, 5]))
    wanted = itertools.cycle((1, 3, 20, 64, 2**62, 7, 40))
    for kind, dtype in itertools.product(cases.KINDS, (torch.float32, torch.float64, torch.half)):
        for classes in (3, 1):
            levels = {"level_counts": next(splits), "topk_per_level": next(wanted)}
            compare(*inputs(2, 70, classes, kind, dtype), **levels, **options)


def test_more_levels_than_one_launch_takes():
    boxes, scores = inputs(1, 70, 2, "uniform")
    for topk_per_level in (1, 2):
        compare(boxes, scores, level_counts=[1] * 70, topk_per_level=topk_per_level)


def test_best_class_only_by_hand():
    """Equal scores: the first class. A NaN does not count, and a box without a number is out."""
    boxes = cases.boxes(1, 6)
    scores = torch.tensor(
        [
            [
                [0.2, 0.9, 0.9],
                [0.3, nan, 0.2],
                [nan, nan, nan],
                [0.1, 0.1, 0.1],
                [inf, 1, inf],
                [-inf, 0.6, nan],
            ]
        ]
    )
    found = ssd_ops.multiclass_nms(
        boxes,
        scores,
        best_class_only=True,
        iou_threshold=1.0,
        score_threshold=0.1,
        max_detections=6,
    )
    assert found.indices.tolist() == [[4, 0, 5, 1, -1, -1]]
    assert found.labels.tolist() == [[0, 1, 1, 0, -1, -1]]
    all_classes = ssd_ops.multiclass_nms(
        boxes, scores, iou_threshold=1.0, score_threshold=0.1, max_detections=12
    )
    assert all_classes.counts.tolist() == [9]


@pytest.mark.parametrize("classes", [33, 70])
def test_every_class_can_be_the_best(classes):
    """Box i has class i; a warp of a GPU looks at 32 classes at a time."""
    scores = torch.full((1, classes, classes), 0.2) + 0.7 * torch.eye(classes)
    found = ssd_ops.multiclass_nms(
        cases.boxes(1, classes), scores, best_class_only=True, max_detections=classes
    )
    assert found.counts.tolist() == [classes]
    assert torch.equal(found.labels, found.indices)
    assert found.labels.sort().values.tolist() == [list(range(classes))]


def test_no_class_has_no_best():
    compare(cases.boxes(2, 5), torch.zeros(2, 5, 0), best_class_only=True)


def test_best_class_only_is_the_default_of_yolo():
    """Ultralytics' steps with `multi_label=False`: maximum, threshold, order, boxes moved by class, NMS."""
    boxes = 640 * cases.boxes(2, 900)
    scores = (torch.randperm(2 * 900 * 8) / (2 * 900 * 8)).view(2, 900, 8)  # no two are equal
    for agnostic in (False, True):
        found = ssd_ops.multiclass_nms(
            boxes, scores, best_class_only=True, class_agnostic=agnostic,
            score_threshold=0.75, iou_threshold=0.7, topk=-1, max_detections=300,
        )  # fmt: skip
        for image in range(2):
            conf, label = scores[image].max(dim=1)
            chosen = (conf > 0.75).nonzero().flatten()
            chosen = chosen[conf[chosen].argsort(descending=True)]
            moved = boxes[image, chosen].double() + (0 if agnostic else label[chosen, None] * 7680)
            kept = []
            for i in range(len(chosen)):
                if not kept or reference.box_iou(moved[i, None], moved[kept]).max() <= 0.7:
                    kept.append(i)
            expected = chosen[kept[:300]]
            count = int(found.counts[image])
            assert found.indices[image, :count].tolist() == expected.tolist()
            assert found.labels[image, :count].tolist() == label[expected].tolist()


def test_levels_by_hand():
    boxes = torch.tensor([[[i, 0, i + 1, 1] for i in range(5)]]).float()
    scores = torch.tensor([[[0.9, 0.8], [0.7, 0.9], [0.95, 0.1], [0.3, 0.4], [0.3, 0.3]]])
    options = {"level_counts": [3, 2], "max_detections": 10}
    # Equal scores of a level by class, then by box: the third is 0.9 of class 1.
    found = ssd_ops.multiclass_nms(boxes, scores, topk_per_level=2, **options)
    assert list(zip(*(t[0, :5].tolist() for t in (found.indices, found.labels)), strict=True)) == [
        (2, 0), (0, 0), (3, 1), (3, 0), (-1, -1),
    ]  # fmt: skip
    one = ssd_ops.multiclass_nms(boxes, scores, topk_per_level=2, topk=1, **options)
    assert one.indices[0, :3].tolist() == [2, 3, -1]  # the topk of a class is after the levels
    best = ssd_ops.multiclass_nms(boxes, scores, topk_per_level=4, best_class_only=True, **options)
    assert best.indices[0, :6].tolist() == [2, 0, 1, 3, 4, -1]
    assert best.labels[0, :6].tolist() == [0, 0, 1, 1, 0, -1]


def test_levels_of_many_candidates():
    """Scores that are all equal, close together, or spread over all exponents; more than a portion each."""
    boxes, level_counts = cases.boxes(2, 3000, kind="small"), [2100, 1, 0, 800, 99]
    for scores in (
        torch.rand(2, 3000, 3),
        torch.full((2, 3000, 3), 0.5),
        0.5 + torch.randint(0, 3, (2, 3000, 3)) * 1e-7,
        torch.rand(2, 3000, 3) ** 30 * 3e38,
    ):
        for options in (
            {"topk_per_level": 1000, "topk": -1},
            {"topk_per_level": 37, "best_class_only": True},
            {"topk_per_level": 150, "max_detections": 1030},
        ):
            options = {"score_threshold": 0.0, "iou_threshold": 0.2, **options}
            compare(boxes, scores, level_counts=level_counts, **options)


def test_a_level_leaves_the_lowest_class_of_equal_scores():
    """Also where a box that comes later has it: more candidates than the CPU collects before it cuts."""
    boxes, scores = cases.boxes(1, 1200), torch.full((1, 1200, 8), 0.5)
    options = {"iou_threshold": 1.0, "topk": -1, "max_detections": 1010}
    got = multiclass_nms(boxes, scores, level_counts=[1200], topk_per_level=1000, **options)
    assert got[2][0, :1000].eq(0).all()
    assert got[3][0, :1000].tolist() == list(range(1000))
    assert got[4].tolist() == [1000]


def test_topk_leaves_the_first_of_equal_scores():
    boxes, scores = cases.boxes(1, 200), torch.full((1, 200, 2), 0.5)
    got = multiclass_nms(boxes, scores, topk=5, iou_threshold=1.0)
    assert got[3][0, :10].tolist() == [0, 1, 2, 3, 4] * 2
    assert got[4].tolist() == [10]


def test_many_candidates():
    """More than a portion of the histogram holds, with scores that lie far apart and close together."""
    boxes = cases.boxes(1, 3000, kind="small")
    for scores in (
        torch.rand(1, 3000, 2),
        torch.rand(1, 3000, 2) * 1e-30,
        0.5 + torch.rand(1, 3000, 2) * 1e-6,
        torch.randint(1, 4, (1, 3000, 2)) / 4,
        torch.rand(1, 3000, 2) ** 30 * 3e38,
    ):
        for options in (
            {},
            {"max_detections": 1000, "topk": 900},
            {"class_agnostic": True},
            {"metric": "ios"},
        ):
            options = {"score_threshold": 0.0, "iou_threshold": 0.2, **options}
            compare(boxes, scores, **options)


def test_all_overlap_so_that_every_candidate_is_looked_at():
    boxes = torch.tensor([0.0, 0, 1, 1]) + 1e-4 * torch.rand(1, 4000, 4)
    compare(boxes, torch.rand(1, 4000, 1), topk=-1, max_detections=10)


def test_odd_scores():
    boxes = torch.tensor([[i, 0, i + 1, 1] for i in range(5)]).float()[None]
    scores = torch.tensor([nan, inf, -inf, 0.5, -1.0])[None, :, None]
    _, found, _, indices, counts = multiclass_nms(boxes, scores, max_detections=3)
    assert found.tolist() == [[inf, 0.5, 0]]
    assert indices.tolist() == [[1, 3, -1]] and counts.tolist() == [2]


def test_it_is_batched_nms_of_each_image():
    boxes, scores = inputs(3, 400, 5, "uniform")
    got = multiclass_nms(boxes, scores, score_threshold=0.3, topk=-1, max_detections=9000)
    for image in range(3):
        rows, classes = (scores[image] > 0.3).T.nonzero().flip(1).unbind(1)
        kept = ssd_ops.batched_nms(boxes[image, rows], scores[image, rows, classes], classes, 0.5)
        count = int(got[4][image])
        assert count == len(kept)
        assert torch.equal(got[3][image, :count], rows[kept])
        assert torch.equal(got[2][image, :count], classes[kept])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_empty(dtype):
    for images, count, classes in ((0, 5, 2), (2, 0, 2), (2, 5, 0), (0, 0, 0)):
        boxes = torch.rand(images, count, 4, dtype=dtype)
        scores = torch.rand(images, count, classes, dtype=dtype)
        got = ssd_ops.multiclass_nms(boxes, scores, max_detections=3)
        assert got.boxes.shape == (images, 3, 4) and got.boxes.dtype == dtype
        assert got.labels.eq(-1).all() and got.indices.eq(-1).all() and got.counts.eq(0).all()


def test_layouts_and_dtypes():
    args = inputs(2, 60, 3, "uniform")
    expected = ssd_ops.multiclass_nms(*args)
    for place, argument in enumerate(args):
        for name, view in cases.odd_layouts(argument).items():
            views = [*args[:place], view, *args[place + 1 :]]
            assert same(ssd_ops.multiclass_nms(*views), expected), name
    for first, second in itertools.product(cases.DTYPES, repeat=2):
        compare(args[0].to(first), args[1].to(second))


@pytest.mark.slow_emulated
def test_threads_and_runs_agree(threads):
    args = inputs(5, 900, 4, "grid")
    results = []
    for count in (1, 2, 2):
        threads(count)
        results.append(ssd_ops.multiclass_nms(*args))
    assert same(results[0], results[1]) and same(results[1], results[2])


@pytest.mark.parametrize("max_detections", [9, 10, 11, 12, 15, 20])
def test_the_search_ends_where_enough_are_kept(max_detections):
    """Ten of the 512 highest scores are kept, and five of those after them, on a GPU in other tiles."""
    rank = torch.arange(1100)
    place = torch.where(rank < 512, rank % 10, 10 + rank % 5).float()
    boxes = torch.stack((place, torch.zeros(1100), place + 0.9, torch.ones(1100)), dim=1)
    scores = torch.linspace(1, 0.5, 1100)
    order = torch.randperm(1100)
    found = ssd_ops.multiclass_nms(
        boxes[order][None], scores[order][None, :, None], topk=-1, max_detections=max_detections
    )
    expected = [*range(10), *range(512, 517)][:max_detections]
    assert found.counts.tolist() == [len(expected)]
    assert order[found.indices[0, : len(expected)]].tolist() == expected
