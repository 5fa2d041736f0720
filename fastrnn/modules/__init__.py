"""Modules: torch.nn's recurrent classes, under their own names."""

from .cells import GRUCell, LSTMCell, RNNCell
from .convert import convert
from .rnn import GRU, LSTM, RNN

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNCell", "convert"]
