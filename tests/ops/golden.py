"""Numbers from print and from public tests, with their calculation by hand.

Book: "Dive into Deep Learning", section 14.4.
MXNet: tests/python/unittest/test_contrib_operator.py.
"""

from __future__ import annotations

import torch

# The book's image of a dog and a cat: labels [1, 2, 5], anchors [1, 5, 4].
BOOK_LABELS = torch.tensor([[[0, 0.1, 0.08, 0.52, 0.92], [1, 0.55, 0.2, 0.9, 0.88]]])
BOOK_ANCHORS = torch.tensor(
    [
        [
            [0, 0.1, 0.2, 0.3],
            [0.15, 0.2, 0.4, 0.4],
            [0.63, 0.05, 0.88, 0.98],
            [0.66, 0.45, 0.8, 0.8],
            [0.57, 0.3, 0.92, 0.9],
        ]
    ]
)
BOOK_CLASSES = torch.tensor([[0, 1, 2, 0, 2]])
# Of the matched anchors 1, 2 and 4, as printed there.
BOOK_OFFSETS = torch.tensor(
    [
        [1.40, 10.0, 2.59, 7.18],
        [-1.20, 0.269, 1.68, -1.57],
        [-0.571, -1.00, 4.17e-06, 0.626],
    ]
)
# By hand for anchor 1 and the dog: anchor center (.275, .3), size (.25, .2); dog center (.31, .5),
# size (.42, .84). (.31 - .275) / .25 / .1 = 1.4; (.5 - .3) / .2 / .1 = 10;
# log(.42 / .25) / .2 = 2.5940; log(.84 / .2) / .2 = 7.1754.
BOOK_OFFSETS_1 = torch.tensor([1.4, 10.0, 2.5940, 7.1754])

# The book's detections: four boxes that are their anchors, background and two classes.
BOOK_DETECTION_ANCHORS = torch.tensor(
    [
        [
            [0.1, 0.08, 0.52, 0.92],
            [0.08, 0.2, 0.56, 0.95],
            [0.15, 0.3, 0.62, 0.91],
            [0.55, 0.2, 0.9, 0.88],
        ]
    ]
)
BOOK_PROBS = torch.tensor([[[0.0] * 4, [0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.9]]])
BOOK_DETECTIONS = torch.tensor(
    [
        [
            [0, 0.9, 0.1, 0.08, 0.52, 0.92],
            [1, 0.9, 0.55, 0.2, 0.9, 0.88],
            [-1, 0.8, 0.08, 0.2, 0.56, 0.95],
            [-1, 0.7, 0.15, 0.3, 0.62, 0.91],
        ]
    ]
)

# The first box of a cell: map (H, W), sizes, ratios, (y, x), box.
PRIOR_BOXES = [
    # By hand: center (.125, .25), w = .75 * 1 * 2/4 = .375, h = .75.
    ((2, 4), [0.75, 0.5], [1, 2, 0.5], (0, 0), (-0.0625, -0.125, 0.3125, 0.625)),
    # MXNet's map of 561 x 728.
    (
        (561, 728),
        [0.75, 0.5, 0.25],
        [1, 2, 0.5],
        (250, 250),
        (0.055117, 0.071524, 0.63307, 0.821524),
    ),
    (
        (561, 728),
        [0.75, 0.5, 0.25],
        [20, 2, 0.5],
        (250, 250),
        (-0.948249, 0.362671, 1.636436, 0.530377),
    ),
]

# MXNet's target test: its label is class 1, whose target is 2. Offsets of anchor 0, which is
# matched: centers (.2, .3) and (.3, .35), sizes .2 x .2 and .4 x .5: .1 / .2 / .1 = 5,
# .05 / .2 / .1 = 2.5, log(2) / .2 = 3.4657, log(2.5) / .2 = 4.5815.
MXNET_ANCHORS = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]])
MXNET_LABELS = torch.tensor([[[1, 0.1, 0.1, 0.5, 0.6]]])
MXNET_OFFSETS = torch.tensor([[5.0, 2.5, 3.4657357, 4.581454, 0, 0, 0, 0]])
MXNET_MASKS = torch.tensor([[1.0, 1, 1, 1, 0, 0, 0, 0]])
MXNET_CLASSES = torch.tensor([[2, 0]])

# Pairs of boxes and their IoU, by hand.
IOU_PAIRS = [
    ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),  # 2 shared of 4 + 4 - 2
    ((0, 0, 2, 2), (0, 0, 2, 2), 1.0),
    ((0, 0, 4, 4), (1, 1, 3, 3), 0.25),  # one inside the other
    ((0, 0, 1, 1), (1, 0, 2, 1), 0.0),  # a common edge has no area
    ((0, 0, 1, 1), (5, 5, 6, 6), 0.0),
    ((0, 0, 1, 1), (0.5, 0, 0.5, 1), 0.0),  # a line
    ((1, 1, 1, 1), (1, 1, 1, 1), 0.0),  # the same point twice: no union
    ((2, 0, 0, 2), (0, 0, 2, 2), 0.0),  # inverted
    ((2, 2, 0, 0), (2, 2, 0, 0), 0.0),  # inverted twice has a positive product, yet no area
    ((float("nan"), 0, 1, 1), (0, 0, 1, 1), 0.0),
    ((float("-inf"), 0, float("inf"), 1), (0, 0, 1, 1), 0.0),
    ((-2, -2, 0, 0), (-1, -1, 1, 1), 1 / 7),  # negative coordinates
]
