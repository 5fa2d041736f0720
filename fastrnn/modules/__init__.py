"""Replacements for torch.nn's recurrent classes, under the same names."""

from .. import _C
from ..cells import MODES
from ._dynamo import allow_layers
from ._quantize import register
from .cells import GRUCell, LSTMCell, RNNCell
from .convert import convert
from .rnn import GRU, LSTM, RNN, RecurrentLayers
from .stream import Stream

allow_layers(RecurrentLayers)
register((LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell))
_C.use_fast_path((LSTM, GRU, RNN), (LSTMCell, GRUCell, RNNCell), MODES)

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "Stream", "convert"]
