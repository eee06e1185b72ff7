import cases
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

import ssd_ops


def image_by_image(targets, sizes):
    images = []
    for target, (height, width) in zip(targets, sizes, strict=True):
        boxes = target["boxes"] / target["boxes"].new_tensor([width, height, width, height])
        images.append(torch.cat((target["labels"][:, None] - 1, boxes), dim=1))
    return pad_sequence(images, batch_first=True, padding_value=-1.0)


IMPLEMENTATIONS = {"ssd_ops": ssd_ops.pack_targets, "image by image": image_by_image}


@pytest.mark.parametrize("impl", IMPLEMENTATIONS)
@pytest.mark.parametrize("images", [8, 32])
def bench_pack_targets(timed, images, impl):
    counts = torch.randint(0, 16, (images,)).tolist()
    targets = [
        {"boxes": 300 * cases.boxes(count), "labels": torch.randint(1, 91, (count,))}
        for count in counts
    ]
    args = targets, [(300, 300)] * images
    timed(f"pack_targets B{images} G0 to 15", impl, IMPLEMENTATIONS, args, torch.equal)
