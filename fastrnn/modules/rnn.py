"""LSTM, GRU and RNN: torch.nn's layers with fastrnn's kernels inside."""

from __future__ import annotations

from typing import Any

from .. import _torch
from ._recurrent import RecurrentLayers


class LSTM(RecurrentLayers, _torch.LSTM):
    """`torch.nn.LSTM`, argument for argument: ``LSTM(input_size, hidden_size, num_layers=1, bias=True,
    batch_first=False, dropout=0.0, bidirectional=False, proj_size=0, device=None, dtype=None)``.

    ``i, f, o = σ(W x + b + R h + b')``, ``g = tanh(W x + b + R h + b')``, ``c' = f·c + i·g``, ``h' = o·tanh(c')``, and
    with ``proj_size`` ``h' = W_hr (o·tanh(c'))``. Rows of the weights in the order i, f, g, o.

    Parameters, for layer k and, with the suffix ``_reverse``, its second direction: ``weight_ih_l{k}`` (4·H, I; D·P
    from the second layer on), ``weight_hh_l{k}`` (4·H, P), ``bias_ih_l{k}`` and ``bias_hh_l{k}`` (4·H),
    ``weight_hr_l{k}`` (P, H) with projection. Their names, their order and, from the same seed, their values are
    torch's; a ``state_dict`` goes either way.

    Of our own: ``learn_initial_state=True`` makes the states that a sequence starts from parameters: see `_initial`.
    Shapes of a call, and its keywords ``lengths=``, ``reset=``, ``initial=``, ``backend=``, ``embedding=``,
    ``recompute=``, ``clip_state_gradient=``, ``penalty=``: see `forward`. Streaming: `step`.

    Raises:
        TypeError, ValueError: for arguments that torch.nn.LSTM refuses, in its words.

    Sources: Hochreiter and Schmidhuber, Long Short-Term Memory, 1997; with forget gate: Gers, Schmidhuber and Cummins,
    Learning to Forget, 2000; with projection: Sak, Senior and Beaufays, 2014 (arXiv:1402.1128).
    """

    _torch_class = _torch.LSTM
    _state_names = ("h", "c")

    def __init__(self, *args: Any, learn_initial_state: bool = False, **kwargs: Any) -> None:
        _torch.LSTM.__init__(self, *args, **kwargs)
        self._learn_initial_state(learn_initial_state)

    def _as_states(self, hx: Any) -> tuple[Any, ...]:
        return tuple(hx) if isinstance(hx, (tuple, list)) else ()

    def _state_sizes(self) -> tuple[int, ...]:
        return (self.proj_size or self.hidden_size, self.hidden_size)


class GRU(RecurrentLayers, _torch.GRU):
    """`torch.nn.GRU`, argument for argument: ``GRU(input_size, hidden_size, num_layers=1, bias=True, batch_first=False,
    dropout=0.0, bidirectional=False, device=None, dtype=None)``.

    ``r, z = σ(W x + b + R h + b')``, ``n = tanh(W x + b + r·(R h + b'))``, ``h' = (1 - z)·n + z·h``. Rows of the
    weights in the order r, z, n: ``weight_ih_l{k}`` (3·H, I; D·H from the second layer on), ``weight_hh_l{k}``
    (3·H, H), ``bias_ih_l{k}`` and ``bias_hh_l{k}`` (3·H), with the suffix ``_reverse`` for the second direction.

    Of our own: ``learn_initial_state=True`` makes the states that a sequence starts from parameters: see `_initial`.
    Shapes of a call, and its keywords ``lengths=``, ``reset=``, ``initial=``, ``backend=``, ``embedding=``,
    ``recompute=``, ``clip_state_gradient=``, ``penalty=``: see `forward`. Streaming: `step`.

    Raises:
        TypeError, ValueError: for arguments that torch.nn.GRU refuses, in its words.

    Source: Cho et al., 2014 (arXiv:1406.1078v1), in the variant that applies the reset gate after the product.
    """

    _torch_class = _torch.GRU

    def __init__(self, *args: Any, learn_initial_state: bool = False, **kwargs: Any) -> None:
        _torch.GRU.__init__(self, *args, **kwargs)
        self._learn_initial_state(learn_initial_state)


class RNN(RecurrentLayers, _torch.RNN):
    """`torch.nn.RNN`, argument for argument: ``RNN(input_size, hidden_size, num_layers=1, nonlinearity="tanh",
    bias=True, batch_first=False, dropout=0.0, bidirectional=False, device=None, dtype=None)``.

    ``h' = φ(W x + b + R h + b')`` with φ tanh, or relu if ``nonlinearity="relu"``. ``weight_ih_l{k}`` (H, I; D·H from
    the second layer on), ``weight_hh_l{k}`` (H, H), ``bias_ih_l{k}`` and ``bias_hh_l{k}`` (H), with the suffix
    ``_reverse`` for the second direction.

    Of our own: ``learn_initial_state=True`` makes the states that a sequence starts from parameters: see `_initial`.
    Shapes of a call, and its keywords ``lengths=``, ``reset=``, ``initial=``, ``backend=``, ``embedding=``,
    ``recompute=``, ``clip_state_gradient=``, ``penalty=``: see `forward`. Streaming: `step`.

    Raises:
        TypeError, ValueError: for arguments that torch.nn.RNN refuses, in its words.

    Source: Elman, Finding Structure in Time, 1990.
    """

    _torch_class = _torch.RNN

    def __init__(self, *args: Any, learn_initial_state: bool = False, **kwargs: Any) -> None:
        _torch.RNN.__init__(self, *args, **kwargs)
        self._learn_initial_state(learn_initial_state)
