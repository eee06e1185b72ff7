"""The public ops: typed Python functions over `torch.ops.ssd_ops`, each followed by its fake kernel.

What all ops have in common:

- Input tensors may be float16, bfloat16, float32 or float64, mixed, and do not have to be contiguous.
- Arithmetic and results are float32, or float64 if at least one input is float64. Autocast changes nothing.
- The same input gives the same bits on every run and with any number of threads.
- Outputs carry no gradient: they are detached.
- Every op can be exported, and compiled with `fullgraph=True`.
- A wrong tensor (rank, dtype, device or size) raises `RuntimeError`. Another wrong argument raises
  `TypeError` or `ValueError`. The message is always `op: argument must be X, got Y`.

There is one module for each folder ("room") of csrc. A function in a module's `__all__` is public as
`ssd_ops.ops.<op>` and `ssd_ops.<op>`.
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
