"""Custom cells: a few lines of Python, fused kernels over whole sequences. See :func:`fastrnn.cell`."""

from fastrnn.custom.definition import Cell, cell
from fastrnn.custom.functions import detach, layer_norm, normalize, surrogate
from fastrnn.custom.module import Network
from fastrnn.custom.trace import CellError

__all__ = ["Cell", "CellError", "Network", "cell", "detach", "layer_norm", "normalize", "surrogate"]
