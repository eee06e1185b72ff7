"""Detection ops for PyTorch: anchors, assignment, hard-negative mining, decoding and NMS."""

from ssd_ops import ops
from ssd_ops.ops import *
from ssd_ops.version import __version__

__all__ = ["__version__"]
__all__ += ops.__all__
