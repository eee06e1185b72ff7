"""The public ops: typed Python functions over `torch.ops.ssd_ops`, each followed by its fake kernel.

All of them: take float16, bfloat16, float32 and float64 tensors in any mix, contiguous or not; compute
and return float32, or float64 where an input is float64; give the same bits on every run and for any
number of threads; carry no gradient (outputs are detached); can be compiled with `fullgraph=True` and
exported; and are the same under autocast: half-precision inputs are computed with in float32 anyway.

Tensors that do not fit (rank, dtype, device, sizes) raise `RuntimeError`, whatever Python can see by
itself `TypeError` or `ValueError`, always as `op: argument must be X, got Y`.

One module for each room of csrc. A function that a module names in its `__all__` is public here and as
`ssd_ops.<op>`.
"""

from typing import TYPE_CHECKING

from ssd_ops import _ext  # noqa: F401  (loading registers the ops)
from ssd_ops.ops import boxes, detection, mining, prior, target
from ssd_ops.ops import nms as nms_room  # `nms` itself is the function
from ssd_ops.ops.boxes import *
from ssd_ops.ops.detection import *
from ssd_ops.ops.mining import *
from ssd_ops.ops.nms import *
from ssd_ops.ops.prior import *
from ssd_ops.ops.target import *

if not TYPE_CHECKING:  # mypy reads no sum of lists; it takes what the lines above import by *
    __all__ = [
        *boxes.__all__,
        *detection.__all__,
        *mining.__all__,
        *nms_room.__all__,
        *prior.__all__,
        *target.__all__,
    ]
