"""Predictions in an image's own pixels, and counts worked by hand."""

import contextlib
import io
import json
import sys
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from ssd_ops import ops
from ssd_ops.tinyssd.data.coco import CocoDetection
from ssd_ops.tinyssd.measure import metrics
from ssd_ops.tinyssd.measure.evaluate import collect, evaluate, measure
from ssd_ops.tinyssd.measure.metrics import count_found
from ssd_ops.tinyssd.model import TinySSD
from ssd_ops.tinyssd.predict import (
    SCORE_THRESHOLD,
    Prediction,
    predict,
    predict_batch,
    predictions,
)
from ssd_ops.tinyssd.preprocess import Preprocess
from ssd_ops.tinyssd.settings import PRESETS, make_model

ANCHORS = torch.tensor(
    [[[0.1, 0.1, 0.5, 0.5], [0.12, 0.1, 0.5, 0.5], [0.6, 0.6, 0.9, 0.9], [0.0, 0.5, 0.4, 1.0]]]
)


class Fixed(nn.Module):
    """A detector that says the same of every image: these scores, and the anchors as boxes."""

    def __init__(self, scores):
        super().__init__()
        self.preprocess = Preprocess(size=(8, 8))
        # The softmax of (log(1 - p), log p) is p.
        odds = torch.tensor(scores)
        self.logits = nn.Parameter(torch.cat((1 - odds.sum(1, keepdim=True), odds), 1).log())
        self.seen = []

    def forward(self, X):
        self.seen.append(X)
        assert not self.training
        return ANCHORS, self.logits.expand(len(X), -1, -1), torch.zeros(len(X), 16)


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return TinySSD(2, channels=(4, 4, 8, 8, 8, 8), preprocess=Preprocess(size=(64, 64)))


def gt_rows(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)


def prediction(*rows):
    rows = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Prediction(rows[:, 0].long(), rows[:, 1], rows[:, 2:])


def test_predict_by_hand():
    """Softmax, suppression of the second anchor by the first, background dropped, pixels."""
    model = Fixed([[0.9], [0.8], [0.3], [0.001]]).train()
    labels, scores, boxes = predict(model, np.zeros((100, 200, 3), dtype=np.uint8))
    assert labels.tolist() == [0, 0]
    torch.testing.assert_close(scores, torch.tensor([0.9, 0.3]))
    expected = torch.tensor([[20.0, 10.0, 100.0, 50.0], [120.0, 60.0, 180.0, 90.0]])
    torch.testing.assert_close(boxes, expected)
    assert model.training and model.seen[0].shape == (1, 3, 8, 8)
    assert (
        predict(model, torch.zeros(3, 5, 5), score_threshold=0.5).scores.tolist()
        == scores[:1].tolist()
    )
    assert len(predict(model, torch.zeros(3, 5, 5), nms_threshold=1.0).scores) == 3


def test_every_part_of_a_model_gets_its_own_mode_back(small):
    small.train()
    small.blk_0.eval()  # as for a base network whose batch norms are frozen
    predict(small, torch.zeros(3, 64, 64))
    assert small.training and small.blk_1.training
    assert not any(module.training for module in small.blk_0.modules())
    small.eval()


def test_the_models_own_nms_threshold_is_the_default():
    """The first two anchors overlap with an IoU of 0.95."""
    model = Fixed([[0.9], [0.8], [0.001], [0.001]])
    image = torch.zeros(3, 8, 8)
    for own, asked, kept in ((0.5, None, 1), (0.97, None, 2), (0.97, 0.5, 1), (0.5, 0.97, 2)):
        model.nms_threshold = own
        assert len(predict(model, image, nms_threshold=asked).scores) == kept
        dataset = SimpleNamespace(images=image[None].byte(), labels=torch.full((1, 1, 5), -1.0))
        assert evaluate(model, dataset, nms_threshold=asked).false_boxes == kept


def test_path_array_and_tensor_agree(small, tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    for height, width in ((64, 64), (37, 91), (300, 20)):
        array = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        path = tmp_path / f"{height}x{width}.png"
        image_module.fromarray(array).save(path)
        tensor = torch.from_numpy(array).permute(2, 0, 1)
        results = [predict(small, x) for x in (path, str(path), array, tensor, tensor.float())]
        assert len(results[0].scores) > 0
        for other in results[1:]:
            for got, expected in zip(other, results[0], strict=True):
                torch.testing.assert_close(got, expected)


def test_grey_and_transparent_files(small, tmp_path):
    image_module = pytest.importorskip("PIL.Image")
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
        image_module.new(mode, (30, 40)).save(path)
        assert predict(small, path).boxes.shape[1] == 4


@pytest.mark.parametrize("nms_threshold", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("num_classes", [1, 3])
def test_predict_is_the_chapters_pipeline(num_classes, nms_threshold):
    """Its softmax and its `multibox_detection`, on models of random weights."""
    for seed in range(3):
        torch.manual_seed(seed)
        preprocess = Preprocess(size=(64, 64), mean=(127.5,) * 3, std=(64.0,) * 3)
        model = TinySSD(num_classes, channels=(4, 4, 8, 8, 8, 8), preprocess=preprocess).eval()
        images = torch.randint(0, 256, (3, 3, 48, 96), dtype=torch.uint8)
        with torch.no_grad():
            for scale in range(model.num_scales):  # else every score is about the same
                getattr(model, f"cls_{scale}").weight *= 60
            anchors, cls_preds, bbox_preds = model(preprocess(images))
            probs = cls_preds.softmax(2).transpose(1, 2)
        for threshold in (SCORE_THRESHOLD, 0.5):
            rows = ops.multibox_detection(probs, bbox_preds, anchors, nms_threshold, threshold)
            found = predict_batch(
                model, images, nms_threshold=nms_threshold, score_threshold=threshold
            )
            for one, image in zip(found, rows, strict=True):
                kept = image[image[:, 0] != -1]
                assert len(kept) > 0 and (one.scores.diff() <= 0).all()
                torch.testing.assert_close(one.labels, kept[:, 0].long())
                torch.testing.assert_close(one.scores, kept[:, 1])
                pixels = kept[:, 2:] * torch.tensor([96.0, 48.0, 96.0, 48.0])
                torch.testing.assert_close(one.boxes, pixels)


def test_a_score_at_the_threshold_counts():
    """As in the chapter: of equal odds the score is 0.5, to the bit."""
    model = Fixed([[0.5], [0.001], [0.001], [0.001]])
    image = torch.zeros(3, 8, 8)
    assert predict(model, image, score_threshold=0.5).scores.tolist() == [0.5]
    above = np.nextafter(np.float32(0.5), np.float32(1)).item()
    assert not len(predict(model, image, score_threshold=above).scores)
    assert len(predict(model, image, score_threshold=0.0, nms_threshold=1.0).scores) == 4
    with pytest.raises(ValueError, match="score_threshold must be"):
        predict(model, image, score_threshold=-0.5)


def test_an_anchor_is_found_once_with_its_best_class():
    """Also where nothing suppresses its other classes: no IoU is above 1, none of a box without area."""
    model = Fixed([[0.3, 0.6], [0.5, 0.2], [0.001, 0.001], [0.001, 0.001]])
    labels, scores, _ = predict(model, torch.zeros(3, 8, 8), nms_threshold=1.0)
    assert labels.tolist() == [1, 0]
    torch.testing.assert_close(scores, torch.tensor([0.6, 0.5]))


def test_predictions_are_those_of_predict_batch(small):
    """In the pixels of each image, whatever its size."""
    small.eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        outputs = small(small.preprocess(images))
    twice = predictions(small, outputs, [(64, 64), (128, 192)])
    for one, expected, sides in zip(
        twice, predict_batch(small, images), ((1, 1), (3, 2)), strict=True
    ):
        assert torch.equal(one.labels, expected.labels) and len(one.labels) > 0
        torch.testing.assert_close(one.boxes, expected.boxes * torch.tensor([*sides] * 2))
    assert predictions(small, (outputs[0], outputs[1][:0], outputs[2][:0]), []) == []


@pytest.mark.parametrize(
    "image, error, message",
    [
        (
            np.zeros((3, 8, 8), np.uint8),
            ValueError,
            r"uint8 array \[H, W, 3\], got uint8 \[3, 8, 8\]",
        ),
        (np.zeros((8, 8, 3)), ValueError, r"got float64 \[8, 8, 3\]"),
        (torch.zeros(8, 8, 3), ValueError, r"float tensor \[3, H, W\], got float32 \[8, 8, 3\]"),
        (torch.zeros(3, 0, 8), ValueError, r"got float32 \[3, 0, 8\]"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), ValueError, "got int64"),
        (7, TypeError, "must be a path, an array or a tensor, got int"),
        ("no/such/file.png", FileNotFoundError, "must be a readable file, got no/such/file.png"),
    ],
)
def test_bad_images(small, image, error, message):
    with pytest.raises(error, match=f"predict: image must be .*{message}|predict: image {message}"):
        predict(small, image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    "low, high", [(0, 1), (0.2, 0.8), (-1, 1), (-2.1, 2.6), (0, 256), (0, float("nan"))]
)
def test_floats_that_are_not_in_0_to_255_are_refused(small, low, high, dtype):
    image = torch.linspace(0, 1, 192).reshape(3, 8, 8) * (high - low) + low
    image = image.to(dtype)
    with pytest.raises(ValueError, match=r"^predict: image must be in 0\.\.255, .* got values in "):
        predict(small, image)
    with pytest.raises(ValueError, match=r"^predict_batch: images must be in 0\.\.255"):
        predict_batch(small, image[None])


def test_dark_images_are_in_0_to_255(small):
    """Whole numbers, also if none is above 1; and fractions if one is above."""
    for image in (torch.zeros(3, 8, 8), torch.eye(8).expand(3, 8, 8), torch.full((3, 8, 8), 1.5)):
        predict(small, image)
    assert predict_batch(small, torch.zeros(0, 3, 8, 8)) == []


def test_a_file_that_is_not_an_image(small, tmp_path):
    path = tmp_path / "words.png"
    path.write_text("not an image")
    with pytest.raises(ValueError, match=r"image must be a readable file, got"):
        predict(small, path)


def test_without_pillow_the_error_says_what_to_install(small, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install ssd_ops\[train\]"):
        predict(small, "x.png")


def test_predict_batch_wants_a_batch(small):
    with pytest.raises(ValueError, match=r"images must be \[B, 3, H, W\], got \[3, 8, 8\]"):
        predict_batch(small, torch.zeros(3, 8, 8))


@pytest.mark.parametrize(
    "detections, boxes, expected",
    [
        pytest.param([], [], (0, 0), id="nothing"),
        pytest.param([], [[0, 0, 0, 4, 4]], (0, 0), id="missed"),
        pytest.param([[0, 0.9, 0, 0, 4, 4]], [], (0, 1), id="no ground truth"),
        pytest.param([[0, 0.9, 0, 0, 4, 4]], [[-1] * 5], (0, 1), id="padding is no ground truth"),
        pytest.param([[0, 0.9, 0, 0, 4, 4]], [[0, 0, 0, 4, 8]], (1, 0), id="IoU 0.5 is enough"),
        pytest.param([[0, 0.9, 0, 0, 4, 4]], [[0, 0, 0, 4, 8.1]], (0, 1), id="below is not"),
        pytest.param([[0, 0.5, 0, 0, 4, 4]], [[0, 0, 0, 4, 4]], (1, 0), id="score 0.5 is enough"),
        pytest.param([[0, 0.49, 0, 0, 4, 4]], [[0, 0, 0, 4, 4]], (0, 0), id="below does not count"),
        pytest.param([[1, 0.9, 0, 0, 4, 4]], [[0, 0, 0, 4, 4]], (0, 1), id="another class"),
        pytest.param(
            [[0, 0.9, 0, 0, 4, 5], [0, 0.8, 0, 0, 4, 4]], [[0, 0, 0, 4, 4]], (1, 1), id="twice"
        ),
        pytest.param(
            [[0, 0.9, 0, 0, 4, 4], [0, 0.8, 0, 1, 4, 5]],
            [[-1] * 5, [0, 0, 1, 4, 5], [0, 0, 0, 4, 4]],
            (2, 0),
            id="two on two",
        ),
        pytest.param(
            # The first takes the box it overlaps most; what is left is for the second.
            [[0, 0.9, 0, 0, 4, 4], [0, 0.8, 0, 0, 4, 4]],
            [[0, 0, 0, 4, 4], [0, 0, 1, 4, 5]],
            (2, 0),
            id="second best",
        ),
    ],
)
def test_count_found(detections, boxes, expected):
    assert count_found(prediction(*detections), gt_rows(*boxes)) == expected


def test_evaluate_by_hand():
    """A ground truth on anchor 0 of two images, and an image without any."""
    model = Fixed([[0.9], [0.2], [0.7], [0.1]])
    labels = torch.tensor([[[0, 0.1, 0.1, 0.5, 0.5]], [[0, 0.1, 0.1, 0.5, 0.5]], [[-1.0] * 5]])
    dataset = SimpleNamespace(images=torch.zeros(3, 3, 20, 30, dtype=torch.uint8), labels=labels)
    for batch_size in (1, 2, 32):
        got = evaluate(model, dataset, batch_size=batch_size)
        assert (got.found, got.gts, got.false_boxes) == (2, 2, 4)
        # Anchors 0 and 1 are positive where there is a ground truth: 1 and 2 of 4 are wrong, then 2.
        assert got.class_error == pytest.approx(((1 + 1) * 2 + 2) / 12)
        # Anchor 0 is exact; for anchor 1 the x centre is off by 0.01 and the width by log.
        expected = 10 * 0.01 / 0.38 + 5 * np.log(0.4 / 0.38)
        assert got.offset_error == pytest.approx(2 * expected / 48, rel=1e-4)
    pytest.importorskip("faster_coco_eval")
    # The right boxes come first, but for an equal score in the image without ground truths.
    assert 0.5 < got.ap50 <= 1 and got.ap == pytest.approx(got.ap50)


class Oracle(nn.Module):
    """Predicts the targets of training, of its only image."""

    def __init__(self, settings, labels):
        super().__init__()
        self.detector = make_model(settings, 1, (64, 64))
        self.preprocess, self.labels = self.detector.preprocess, labels
        self.match_iou, self.trained_at = self.detector.match_iou, settings.match_iou

    def forward(self, X):
        anchors = self.detector(X)[0]
        targets = ops.multibox_target(anchors, self.labels, iou_threshold=self.trained_at)
        offsets, _, classes = targets
        return anchors, 20.0 * nn.functional.one_hot(classes, 2), offsets


@pytest.mark.parametrize("preset", ["chapter", "paper", "photos"])
def test_errors_are_those_of_the_matches_that_the_model_was_trained_on(preset):
    """A model that predicts its targets makes none, at any IoU that makes a positive."""
    settings = PRESETS[preset]
    labels = torch.tensor([[[0, 0.1, 0.1, 0.45, 0.5], [0, 0.5, 0.4, 0.9, 0.95]]])
    dataset = SimpleNamespace(images=torch.zeros(1, 3, 64, 64, dtype=torch.uint8), labels=labels)
    oracle = Oracle(settings, labels)
    got = evaluate(oracle, dataset)
    assert (got.class_error, got.offset_error) == (0, 0)
    # At another IoU there are other positives, which it does not predict.
    oracle.match_iou = 0.3
    other = evaluate(oracle, dataset)
    assert other.class_error > 1e-3 and other.offset_error > 1e-3
    del oracle.match_iou
    assert (evaluate(oracle, dataset).class_error == 0) == (settings.match_iou == 0.5)


def test_collect_keeps_the_order_and_the_pixels_of_the_images():
    """Padding left out, whatever the batches are."""
    model = Fixed([[0.9], [0.001], [0.001], [0.001]])
    labels = torch.full((3, 2, 5), -1.0)
    labels[0, 1] = torch.tensor([0, 0.0, 0.5, 0.5, 1.0])
    labels[2] = torch.tensor([[1, 0.1, 0.1, 0.5, 0.5], [0, 0.0, 0.0, 0.2, 0.2]])
    dataset = SimpleNamespace(images=torch.zeros(3, 3, 20, 30, dtype=torch.uint8), labels=labels)
    for batch_size in (1, 2, 32):
        results = collect(model, dataset, batch_size=batch_size)
        assert [rows.tolist() for rows in results.gts] == [
            [[0, 0, 10, 15, 20]],
            [],
            [[1, 3, 2, 15, 10], pytest.approx([0, 0, 0, 6, 4])],
        ]
        assert [prediction.boxes.tolist() for prediction in results.predictions] == [
            [pytest.approx([3, 2, 15, 10])]
        ] * 3
        assert results.class_names == ["class 0", "class 1"]


def test_evaluate_ignores_what_lies_in_crowds():
    """The same as above with a crowd of class 0 over anchors 2 and 3, the false ones there."""
    model = Fixed([[0.9], [0.2], [0.7], [0.1]])
    crowd = [-2.0, 0.0, 0.5, 1.0, 1.0]
    gt = [0, 0.1, 0.1, 0.5, 0.5]
    labels = torch.tensor([[gt, crowd], [crowd, gt], [[-1.0] * 5, crowd]])
    dataset = SimpleNamespace(images=torch.zeros(3, 3, 20, 30, dtype=torch.uint8), labels=labels)
    results = collect(model, dataset)
    assert [rows[:, 0].tolist() for rows in results.gts] == [[0, -2], [-2, 0], [-2]]
    assert results.class_names == ["class 0"] and results.areas is None
    got = evaluate(model, dataset)
    assert (got.found, got.gts, got.false_boxes) == (2, 2, 1)
    # Of the anchors that are left, as above: anchor 1 is wrong twice, and anchor 0 in the last image.
    assert got.class_error == pytest.approx(3 / 12)
    pytest.importorskip("faster_coco_eval")
    assert got.ap50 is not None and got.per_class[0]["gts"] == 2


def test_areas_of_a_set_are_those_of_its_rows():
    """In its order; a set with transforms has the areas of its boxes."""

    class Areas:
        def __init__(self):
            self.class_names, self.transforms = ["cup"], None
            self.areas = [torch.tensor([7.0, 9999.0]), torch.tensor([])]

        def __len__(self):
            return 2

        def __getitem__(self, index):
            rows = torch.tensor([[-2, 0, 0, 1, 1], [0, 0.1, 0.1, 0.5, 0.5]])[: 2 * (1 - index)]
            return torch.zeros(3, 40, 40, dtype=torch.uint8), rows

    model, dataset = Fixed([[0.9], [0.001], [0.001], [0.001]]), Areas()
    assert collect(model, dataset, batch_size=1).areas is dataset.areas
    got = evaluate(model, dataset)
    dataset.transforms = lambda *example: example
    other = evaluate(model, dataset)
    pytest.importorskip("faster_coco_eval")
    assert (got.ap_large, got.ap_small) == (pytest.approx(1), None)
    assert (other.ap_large, other.ap_small) == (None, pytest.approx(1))


@pytest.mark.parametrize("seed", range(4))
def test_a_file_with_crowds_and_areas_as_pycocotools_reads_it(seed, tmp_path):
    """From the JSON file to the numbers: the same detections given to both."""
    pytest.importorskip("faster_coco_eval")
    image_module = pytest.importorskip("PIL.Image")
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for number in range(6):
        width, height = (int(side) for side in rng.integers(100, 300, 2))
        image_module.new("RGB", (width, height)).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png"})
        for box in ANCHORS[0].tolist():
            if rng.random() < 0.3:
                continue
            x1, y1, x2, y2 = np.array(box) * ([width, height] * 2) + rng.integers(-6, 7, 4)
            crowd = int(rng.random() < 0.4)
            x1, y1, x2, y2 = (x1 - 30, y1 - 20, x2 + 30, y2 + 20) if crowd else (x1, y1, x2, y2)
            x1, y1, x2, y2 = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1 + len(annotations) % 2,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1) * rng.choice([0.1, 0.6, 1.0]),
                    "iscrowd": crowd,
                }
            )
    names = [{"id": 1, "name": "cup"}, {"id": 2, "name": "cat"}]
    path = tmp_path / "val.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": names}))
    model = Fixed([[0.6, 0.3], [0.1, 0.2], [0.2, 0.7], [0.45, 0.4]])
    results = collect(model, CocoDetection(path))
    detections = [
        {"image_id": image, "category_id": 1 + label, "score": score, "bbox": [x, y, u - x, v - y]}
        for image, found in enumerate(results.predictions)
        for label, score, (x, y, u, v) in zip(*(part.tolist() for part in found), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO(str(path))
        theirs = cocoeval.COCOeval(truth, truth.loadRes(detections), "bbox")
        theirs.evaluate()
        theirs.accumulate()
        theirs.summarize()
    expected = [None if value < 0 else pytest.approx(value) for value in theirs.stats]
    ours = vars(measure(results))
    assert [ours[name] for name in metrics.COCO_NAMES] == expected
    assert ours["ap50"] > 0.1 and sum(entry["iscrowd"] for entry in annotations) > 2


def test_evaluate_a_perfect_model_has_average_precision_one():
    pytest.importorskip("faster_coco_eval")
    model = Fixed([[0.9], [0.0001], [0.0001], [0.0001]])
    labels = torch.tensor([[[0, 0.1, 0.1, 0.5, 0.5]]]).repeat(3, 1, 1)
    images = torch.zeros(3, 3, 40, 40, dtype=torch.uint8)
    got = evaluate(model, SimpleNamespace(images=images, labels=labels))
    assert (got.found, got.false_boxes) == (3, 0)
    assert got.ap == pytest.approx(1) and got.ap50 == pytest.approx(1)


def test_evaluate_nothing_found_and_no_ground_truth():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    quiet = Fixed([[0.0001]] * 4)
    nothing = evaluate(quiet, SimpleNamespace(images=images, labels=torch.full((2, 1, 5), -1.0)))
    numbers = asdict(nothing)
    assert (numbers.pop("precision") == -1).all()
    assert [numbers.pop(key) for key in ("class_error", "offset_error")] == [0.0, 0.0]
    assert [numbers.pop(key) for key in ("found", "gts", "false_boxes")] == [0, 0, 0]
    (only,) = numbers.pop("per_class")
    assert only == {"name": "class 0", "gts": 0, "ap": None, "ap50": None}
    assert set(numbers.values()) == {None}
    one = torch.tensor([[[0, 0.1, 0.1, 0.5, 0.5]]] * 2)
    assert evaluate(quiet, SimpleNamespace(images=images, labels=one)).found == 0


def test_classes_that_the_set_does_not_name_get_a_number():
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    two = Fixed([[0.1, 0.8], [0.001, 0.001], [0.001, 0.001], [0.001, 0.001]])
    one = torch.tensor([[[0, 0.1, 0.1, 0.5, 0.5]]])
    got = evaluate(two, SimpleNamespace(images=images, labels=one, class_names=["cup"]))
    assert [row["name"] for row in got.per_class] == ["cup", "class 1"]
    assert (got.found, got.false_boxes) == (0, 1)


def test_boxes_of_letterboxed_images_are_in_their_own_pixels():
    """Anchor 0 is the upper left of the input; the image takes its middle rows."""
    model = Fixed([[0.9], [0.001], [0.001], [0.001]])
    model.preprocess = Preprocess(size=(8, 8), letterbox=True)
    image = torch.zeros(3, 40, 80, dtype=torch.uint8)
    box = predict(model, image).boxes
    expected = torch.tensor([[8.0, -12.0, 40.0, 20.0]])
    torch.testing.assert_close(box, expected)
    labels = torch.tensor([[[0, 0.1, -0.3, 0.5, 0.5]]])
    got = evaluate(model, SimpleNamespace(images=image[None], labels=labels))
    assert (got.found, got.false_boxes) == (1, 0) and got.class_error == 0.25


def test_evaluate_wants_images():
    empty = SimpleNamespace(images=torch.zeros(0, 3, 8, 8), labels=torch.zeros(0, 1, 5))
    with pytest.raises(ValueError, match="data: a set must hold an image at least"):
        evaluate(Fixed([[0.5]] * 4), empty)


def test_evaluate_without_faster_coco_eval(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    labels = torch.tensor([[[0, 0.1, 0.1, 0.5, 0.5]]])
    got = evaluate(Fixed([[0.9]] * 4), SimpleNamespace(images=images, labels=labels))
    assert got.found == got.gts == 1
    numbers = {name: getattr(got, name) for name in metrics.COCO_NAMES}
    assert len(numbers) == 12 and set(numbers.values()) == {None}
    assert got.per_class == [{"name": "class 0", "gts": 1, "ap": None, "ap50": None}]
