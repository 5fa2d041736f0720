"""torch.nn's recurrent classes, as they are when fastrnn is imported.

Code that assigns fastrnn's classes into ``torch.nn`` changes what ``torch.nn.LSTM`` means. Everything here that needs
torch's own class, to derive from it, to fall back on it or to convert to it, takes it from this module.
"""

from __future__ import annotations

from torch.nn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNBase, RNNCell, RNNCellBase

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNBase", "RNNCell", "RNNCellBase"]
