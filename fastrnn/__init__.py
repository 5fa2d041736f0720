"""Recurrent networks for PyTorch on hand-written fused kernels: replacements for torch.nn's.

``fastrnn.LSTM``, ``GRU``, ``RNN`` and their ``…Cell`` variants replace those of ``torch.nn``; :func:`convert` replaces
them throughout a model. :mod:`fastrnn.functional` is the functional interface. :func:`cell` compiles kernels for a
custom cell. :mod:`fastrnn.init` and :mod:`fastrnn.training` hold initialisation and training through time.
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

    # Deferred to the first use of a name, so that `python -m fastrnn info` can still report the problem.
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
