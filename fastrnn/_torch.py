"""torch.nn's recurrent classes, as they were when fastrnn was imported.

Code that assigns fastrnn's classes into ``torch.nn`` changes the meaning of ``torch.nn.LSTM``. Code here that needs
torch's own class, to derive from it, fall back on it or convert to it, imports it from this module.
"""

from __future__ import annotations

from torch.nn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNBase, RNNCell, RNNCellBase

__all__ = ["GRU", "LSTM", "RNN", "GRUCell", "LSTMCell", "RNNBase", "RNNCell", "RNNCellBase"]
