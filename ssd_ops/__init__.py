"""Detection ops for PyTorch: anchors, assignment, hard-negative mining, decoding and NMS."""

from typing import TYPE_CHECKING

from ssd_ops import ops
from ssd_ops._ext import cmake_prefix_path as cmake_prefix_path
from ssd_ops.ops import *
from ssd_ops.version import __version__ as __version__

if not TYPE_CHECKING:  # as in ssd_ops.ops
    __all__ = ["__version__", *ops.__all__]
