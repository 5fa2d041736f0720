"""LSTMCell, GRUCell and RNNCell: single time steps with fastrnn's kernels and the interface of torch.nn's cells."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import _C, _paths, _torch
from .. import _surroundings as here
from ..functional import LayerWeights, sequence
from . import _checks, _initial, _options, _tokens
from ._keywords import ExportedKeywords

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class RecurrentCell(ExportedKeywords, _torch.RNNCellBase):
    """Base of the cells; implements their calls.

    Attributes:
        backend: ``"auto"`` unless assigned; ``"fused"``, ``"reference"`` or ``"torch"``, as for the layers.
        learn_initial_state: a keyword of the constructor. True: the initial state of a call without one is a parameter,
            ``initial_h`` (H), and for an LSTM also ``initial_c`` (H); otherwise zeros.

    With the keyword ``embedding``, a `torch.nn.Embedding` or its weight (V, I), ``input`` holds token ids, (B) or ().
    """

    backend: str = "auto"
    learn_initial_state: bool = False
    clip_state_gradient: None = None  # only for layers; between calls of a cell, a tensor hook can clip
    _torch_class: type[nn.RNNCellBase]
    _state_names: tuple[str, ...] = ("h",)

    def _learn_initial_state(self, wanted: bool) -> None:
        if _initial.check(wanted):
            self.learn_initial_state = True
            _initial.add(self, dict.fromkeys(self._state_names, self.hidden_size), [""], self.weight_hh)

    def reset_parameters(self) -> None:
        """Initialise the weights as torch.nn does, and learned initial states with zeros."""
        _initial.reset_parameters(self)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", learn_initial_state=True" if self.learn_initial_state else "")

    def _begin(self, input: Any) -> Any:
        """Return the learned state for a call without one, shaped like its ``hx``."""
        if not _initial.is_readable(input, 2):
            return None
        states = _initial.of_cell(self, self._state_names, input)
        return states if len(states) > 1 else states[0]

    def _step(self, cell: str, input: Any, states: tuple[Any, ...] | None) -> tuple[Tensor, ...] | None:
        """Return the new states, (B, H) or (H) like the input (B, I) or (I); None to leave the call to torch."""
        if self.backend == "auto" and not here.is_compiling():
            result = _C.fast_path_cell(self, cell, input, states)
            if result is not None:
                if _paths.recorders:
                    _paths.record(cell, "fast path")
                return result
        weights = LayerWeights(*_checks.read_weights(self, _NAMES))
        given = weights[:4] if weights.b_ih is not None else weights[:2]
        if self.backend == "torch" or not _checks.are_ordinary(input, states, given) or not self._fits(input, states):
            return None
        batched = input.dim() == 2
        x = input.unsqueeze(0) if batched else input.view(1, 1, -1)
        if states is not None and not batched:
            states = tuple([state.unsqueeze(0) for state in states])

        target = _checks.autocast_dtype(x)
        if target is None:
            last = sequence(cell, x, weights, states, backend=self.backend)[1]
        else:
            dtype = _checks.run_dtype(cell, target, x, states, False)
            weights = LayerWeights(*[weight.to(dtype) for weight in given])  # type: ignore[union-attr]
            if states is not None:
                states = tuple([state.to(dtype) for state in states])
            with torch.autocast(x.device.type, enabled=False):
                last = sequence(cell, x.to(dtype), weights, states, backend=self.backend)[1]
        return last if batched else tuple([state.squeeze(0) for state in last])

    def _fits(self, input: Tensor, states: tuple[Tensor, ...] | None) -> bool:
        shape = input.shape
        if len(shape) not in (1, 2) or shape[-1] != self.input_size or self.hidden_size == 0:
            return False
        expected = (*shape[:-1], self.hidden_size)
        for state in states or ():  # noqa: SIM110 - in the path of every call
            if state.shape != expected:
                return False
        return True

    def _leave_to_torch(self, input: Any, hx: Any) -> Any:
        proxy = _checks.leaf_proxy(self, input, hx)
        if proxy is not None:
            return proxy
        result = self._torch_class.forward(self, input, hx)
        if not here.is_compiling() and _paths.recorders and isinstance(input, Tensor):
            why = "backend='torch'" if self.backend == "torch" else f"kernels: expected {_checks.expected(input)}"
            _paths.record(type(self).__name__, "torch", why)
        if self.backend == "fused":
            raise ValueError(
                f"backend='fused': expected {_checks.expected(input)} with matching sizes, "
                f"got {input.dtype} {tuple(input.shape)} on {input.device}"
            )
        return result

    def __prepare_scriptable__(self) -> nn.Module:
        """Return a torch.nn module with the same parameters, for `torch.jit.script`."""
        _options.check_scriptable(self)
        copied = self._torch_class.__new__(self._torch_class)
        copied.__dict__ = self.__dict__.copy()
        return copied


class LSTMCell(RecurrentCell, _torch.LSTMCell):
    """One time step of an LSTM layer, with the arguments of `torch.nn.LSTMCell`.

    ``h', c' = cell(x, (h, c))``: x (B, I) or (I), states (B, H) or (H), zeros if omitted; equations as for
    `fastrnn.LSTM`. Parameters ``weight_ih`` (4·H, I), ``weight_hh`` (4·H, H), ``bias_ih`` and ``bias_hh`` (4·H).

    Raises:
        ValueError, RuntimeError: an argument is invalid; with the message of torch.nn.LSTMCell.

    Example:
        >>> cell = fastrnn.LSTMCell(3, 4)
        >>> h, c = cell(torch.randn(2, 3))
        >>> h.shape
        torch.Size([2, 4])
    """

    _torch_class = _torch.LSTMCell
    _state_names = ("h", "c")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        learn_initial_state: bool = False,
    ) -> None:
        _torch.LSTMCell.__init__(self, input_size, hidden_size, bias, device, dtype)
        self._learn_initial_state(learn_initial_state)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, *, embedding: nn.Module | Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if embedding is not None:
            input = _tokens.embed_step(input, embedding)
        if hx is None and self.learn_initial_state:
            hx = self._begin(input)
        if hx is None or (isinstance(hx, (tuple, list)) and len(hx) == 2):
            new = self._step("lstm", input, hx if hx is None else tuple(hx))
            if new is not None:
                return new  # type: ignore[return-value]
        return self._leave_to_torch(input, hx)


class GRUCell(RecurrentCell, _torch.GRUCell):
    """One time step of a GRU layer, with the arguments of `torch.nn.GRUCell`.

    ``h' = cell(x, h)``: x (B, I) or (I), h (B, H) or (H), zeros if omitted; equations as for `fastrnn.GRU`. Parameters
    ``weight_ih`` (3·H, I), ``weight_hh`` (3·H, H), ``bias_ih`` and ``bias_hh`` (3·H).

    Raises:
        ValueError, RuntimeError: an argument is invalid; with the message of torch.nn.GRUCell.

    Example:
        >>> cell = fastrnn.GRUCell(3, 4)
        >>> h = cell(torch.randn(2, 3))
        >>> h.shape
        torch.Size([2, 4])
    """

    _torch_class = _torch.GRUCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
        *,
        learn_initial_state: bool = False,
    ) -> None:
        _torch.GRUCell.__init__(self, input_size, hidden_size, bias, device, dtype)
        self._learn_initial_state(learn_initial_state)

    def forward(
        self, input: Tensor, hx: Tensor | None = None, *, embedding: nn.Module | Tensor | None = None
    ) -> Tensor:
        if embedding is not None:
            input = _tokens.embed_step(input, embedding)
        if hx is None and self.learn_initial_state:
            hx = self._begin(input)
        new = self._step("gru", input, None if hx is None else (hx,))
        if new is not None:
            return new[0]
        return self._leave_to_torch(input, hx)


class RNNCell(RecurrentCell, _torch.RNNCell):
    """One time step of an Elman layer, with the arguments of `torch.nn.RNNCell`.

    ``h' = cell(x, h)``: x (B, I) or (I), h (B, H) or (H), zeros if omitted; equations as for `fastrnn.RNN`. Parameters
    ``weight_ih`` (H, I), ``weight_hh`` (H, H), ``bias_ih`` and ``bias_hh`` (H).

    Raises:
        ValueError, RuntimeError: an argument is invalid; with the message of torch.nn.RNNCell.

    Example:
        >>> cell = fastrnn.RNNCell(3, 4)
        >>> h = cell(torch.randn(2, 3))
        >>> h.shape
        torch.Size([2, 4])
    """

    _torch_class = _torch.RNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
        *,
        learn_initial_state: bool = False,
    ) -> None:
        _torch.RNNCell.__init__(self, input_size, hidden_size, bias, nonlinearity, device, dtype)
        self._learn_initial_state(learn_initial_state)

    def forward(
        self, input: Tensor, hx: Tensor | None = None, *, embedding: nn.Module | Tensor | None = None
    ) -> Tensor:
        if embedding is not None:
            input = _tokens.embed_step(input, embedding)
        if hx is None and self.learn_initial_state:
            hx = self._begin(input)
        if self.nonlinearity in ("tanh", "relu"):
            new = self._step(f"rnn_{self.nonlinearity}", input, None if hx is None else (hx,))
            if new is not None:
                return new[0]
        return self._leave_to_torch(input, hx)
