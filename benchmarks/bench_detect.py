import math

import baselines
import cases
import pytest
import torch

import ssd_ops

IMPLEMENTATIONS = {
    "ssd_ops": ssd_ops.detect,
    "torchvision": baselines.torchvision_detect,
    "eager": baselines.eager_detect,
}


def heads(images: int, classes: int, trained: bool):
    """Outputs like those of SSD300: noise, or high scores for anchors near one of 8 gts an image."""
    anchors = cases.prior_anchors(8732)[0]
    offsets = 0.3 * torch.randn(images, 8732, 4)
    if not trained:
        return 0.3 * torch.randn(images, 8732, classes + 1), offsets, anchors
    logits = torch.randn(images, 8732, classes + 1)
    best, gt = ssd_ops.box_iou(anchors[None].expand(images, -1, -1), cases.boxes(images, 8)).max(2)
    label = torch.randint(1, classes + 1, (images, 8)).gather(1, gt)
    logits[..., 0] += 7
    likely = torch.where(best > 0.3, 14 * best, 0).clamp(max=11)
    return logits.scatter_add(2, label[..., None], likely[..., None]), offsets, anchors


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
@pytest.mark.parametrize("images", [1, 8])
def bench_detect(timed, images, trained, impl):
    case = f"detect SSD300 B{images} 20 classes, {'trained' if trained else 'untrained'} heads"
    timed(case, impl, IMPLEMENTATIONS, heads(images, 20, trained), baselines.same_found)


# A padded batch of 800 x 1344: the anchors of each of the five levels.
LEVELS = [9 * cells for cells in (100 * 168, 50 * 84, 25 * 42, 13 * 21, 7 * 11)]
IMAGE_SIZE, MOST = (800, 1344), math.log(1000 / 16)


def retinanet(cls_scores, offset_preds, anchors):
    return ssd_ops.detect(
        cls_scores, offset_preds, anchors, activation="sigmoid", score_threshold=0.05,
        iou_threshold=0.5, topk=-1, max_detections=300, variances=(1, 1, 1, 1), clip=IMAGE_SIZE,
        max_log_size=MOST, level_counts=LEVELS, topk_per_level=1000,
    )  # fmt: skip


def retinanet_loop(cls_scores, offset_preds, anchors):
    """`postprocess_detections` of torchvision's RetinaNet, with `loop_batched_nms`."""
    found = []
    for logits, offsets in zip(cls_scores, offset_preds, strict=True):
        boxes, scores, labels = [], [], []
        levels = (logits.split(LEVELS), offsets.split(LEVELS), anchors.split(LEVELS))
        for logit, offset, anchor in zip(*levels, strict=True):
            score = logit.sigmoid().flatten()
            pair = (score > 0.05).nonzero().flatten()
            score, order = score[pair].topk(min(1000, len(pair)))
            row, label = pair[order] // logit.shape[1], pair[order] % logit.shape[1]
            offset, anchor = offset[row], anchor[row]
            size, center = anchor[:, 2:] - anchor[:, :2], (anchor[:, :2] + anchor[:, 2:]) / 2
            half = offset[:, 2:].clamp(max=MOST).exp() * size / 2
            center = center + offset[:, :2] * size
            box = torch.cat((center - half, center + half), dim=1).clamp(min=0)
            boxes.append(box.minimum(box.new_tensor([*IMAGE_SIZE[::-1]] * 2)))
            scores.append(score)
            labels.append(label)
        box, score, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
        keep = baselines.loop_batched_nms(box, score, label, 0.5)[:300]
        found.append({"boxes": box[keep], "scores": score[keep], "labels": label[keep] + 1})
    return found


RETINANET = {"ssd_ops": retinanet, "torchvision's loop": retinanet_loop}


@pytest.mark.parametrize("impl", RETINANET)
@pytest.mark.parametrize("trained", [False, True], ids=["untrained", "trained"])
def bench_retinanet(timed, trained, impl):
    """One image, 91 classes. Untrained: the prior probability of 0.01 with noise. Trained: few over 0.05."""
    anchors = 1344 * cases.boxes(sum(LEVELS), kind="small")
    anchors[:, 1::2] *= 800 / 1344
    logits = torch.randn(1, len(anchors), 91) - 4.6
    if trained:
        logits += torch.where(torch.rand(1, len(anchors), 1) < 0.005, 2.0, -4.0)
    args = logits, 0.3 * torch.randn(1, len(anchors), 4), anchors
    case = f"detect RetinaNet B1 91 classes, {'trained' if trained else 'untrained'} heads"
    timed(case, impl, RETINANET, args, baselines.same_found)
