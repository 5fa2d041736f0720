"""fastrnn: recurrent networks for PyTorch on hand-written fused kernels, in place of torch.nn's.

``fastrnn.LSTM``, ``GRU``, ``RNN`` and their ``…Cell`` forms take the place of ``torch.nn``'s; :func:`convert` swaps
those of a whole model. :mod:`fastrnn.functional` is the functional form. :func:`cell` makes kernels of a custom
cell. :mod:`fastrnn.init` and :mod:`fastrnn.training` are what training through time needs.
"""

from __future__ import annotations

from fastrnn._as_command import answer
from fastrnn._version import __version__

answer()  # `python -m fastrnn`: ends the process here

try:
    from fastrnn import _flops, cuda, functional, init, training  # noqa: F401 - _flops registers formulas
    from fastrnn._explain import Explanation, explain
    from fastrnn._invariant import batch_invariant, is_batch_invariant, set_batch_invariant
    from fastrnn.custom import CellError, cell
    from fastrnn.modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell, Stream, convert
except ImportError as _error:
    from fastrnn._missing import KernelsMissingError

    if not isinstance(_error, KernelsMissingError):
        raise
    _problem = _error

    # `python -m fastrnn info` must be able to say what is wrong, so it is said at the first use.
    def __getattr__(name: str) -> object:
        if name in __all__:
            raise KernelsMissingError(str(_problem)) from None
        raise AttributeError(f"module 'fastrnn' has no attribute {name!r}")


__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "CellError",
    "Explanation",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "Stream",
    "__version__",
    "batch_invariant",
    "cell",
    "convert",
    "cuda",
    "explain",
    "functional",
    "init",
    "is_batch_invariant",
    "set_batch_invariant",
    "training",
]
