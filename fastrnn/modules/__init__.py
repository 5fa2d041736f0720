"""Modules: torch.nn's recurrent classes, under their own names."""

from .. import _C
from ._recurrent import _CELLS
from .cells import GRUCell, LSTMCell, RNNCell
from .convert import convert
from .rnn import GRU, LSTM, RNN
from .stream import Stream

_C.use_short((LSTM, GRU, RNN), (LSTMCell, GRUCell, RNNCell), _CELLS)

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "Stream", "convert"]
