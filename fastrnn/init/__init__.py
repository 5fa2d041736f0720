"""Initialisation of recurrent networks, in the style of `torch.nn.init`.

Functions work in place and outside autograd, and return their first argument.

.. code-block:: python

    fastrnn.init.orthogonal_(lstm)  # every layer, direction and gate of a module, or of all modules in a model
    fastrnn.init.forget_bias_(lstm, 1.0)
    fastrnn.init.identity_(rnn.weight_hh_l0)  # a tensor

Modules are torch.nn's and fastrnn's LSTM, GRU, RNN and their cells, and networks of `fastrnn.cell`, whose gates are
referred to by name. Weights under `torch.nn.utils.parametrize` are set through their parametrization.

torch's networks add two biases, b_ih and b_hh: functions that set a bias set the *sum*, with b_hh zero.
"""

from __future__ import annotations

from fastrnn.init.biases import chrono_, forget_bias_
from fastrnn.init.recurrent import identity_, np_rnn_, orthogonal_

__all__ = ["chrono_", "forget_bias_", "identity_", "np_rnn_", "orthogonal_"]
