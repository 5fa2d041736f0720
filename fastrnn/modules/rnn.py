"""LSTM, GRU and RNN: networks with fastrnn's kernels and the interface of torch.nn's modules."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from .. import _C, _paths, _torch
from .. import _surroundings as here
from ..cells import MODES
from . import _checks
from ._options import Options, check_scriptable
from ._recurrent import CallArguments, Recurrent


class RecurrentLayers(Recurrent, _torch.RNNBase):
    """Base of LSTM, GRU and RNN. Parameters, initialisation, checks and errors are those of torch.nn.

    Calls that the kernels do not support are passed to torch. A subclass derives from this class first and then from
    torch.nn's class of the same name, ``_torch_class``. A call computes with the attributes ``weight_ih_l0`` and so on,
    or, like torch, with tensors that were put into torch's private list of weights, ``_flat_weights``.
    """

    _torch_class: type[nn.RNNBase]
    _fast_path = staticmethod(_C.fast_path_layers)

    def __init__(self, *args: Any, learn_initial_state: bool = False, **kwargs: Any) -> None:
        self._torch_class.__init__(self, *args, **kwargs)
        self._learn_initial_state(learn_initial_state)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        names = self.__dict__.get("_flat_weights_names", ())
        if name in names and isinstance(value, Tensor) and len(self._flat_weight_refs) == len(names):
            # torch puts the value into its list of weights, but updates the references only at its next call.
            self._flat_weight_refs[names.index(name)] = weakref.ref(value)  # type: ignore[arg-type]

    @property
    def _cell_name(self) -> str:
        return MODES[self.mode]

    def _state_sizes(self) -> tuple[int, ...]:
        return (self.hidden_size,)

    def _weights(self) -> list[Any]:
        return _checks.read_flat_weights(self)

    def _as_states(self, hx: Any) -> tuple[Any, ...]:
        return (hx,)

    def _run_dtype(
        self, target: torch.dtype, x: Tensor, states: tuple[Tensor, ...] | None, batch_sizes: Tensor | None
    ) -> torch.dtype:
        cell = self._cell_name
        onednn = cell == "lstm" and not self.proj_size and _checks.onednn_takes(x, batch_sizes)
        return _checks.run_dtype(cell, target, x, states, onednn)

    def _delegate(self, given: CallArguments, options: Options) -> tuple[Any, Options]:
        x, states, layout, backend = given.x, given.states, given.layout, options.backend
        ordinary = backend != "torch" and _checks.are_ordinary(x, states, given.weights)
        if ordinary and self._fits(x.shape, states, layout):
            return None, options
        result = self._forward_torch(given, options)
        self._record_torch(backend, x, states)
        own = bool(options.training())
        if layout.batch_sizes is None:
            for_onnx = backend != "torch" and here.is_traced_for_onnx()  # torch has checked the sizes
            usual = options.lengths is None and options.reset is None and not own
            if (usual and backend != "fused" and not for_onnx) or isinstance(result, Proxy):
                return result, options
            if for_onnx or (backend != "fused" and self._fits(x.shape, states, layout)):
                return None, options._replace(backend="reference")
        elif backend != "fused" and not own:
            return result, options
        what = "backend='fused'" if backend == "fused" else options.in_words()
        raise ValueError(self._refusal(x, states, what))

    def _forward_torch(self, given: CallArguments, options: Options) -> Any:
        """Run the call by torch.nn's class."""
        if given.layout.batch_sizes is not None:
            return self._torch_class.forward(self, given.input, given.hx)
        proxy = _checks.leaf_proxy(self, given.input, given.hx, lengths=options.lengths, reset=options.reset)
        if proxy is not None:
            return proxy
        if given.layout.batch_first == self.batch_first or given.input.dim() != 3:
            return self._torch_class.forward(self, given.input, given.hx)
        y, last = self._torch_class.forward(self, given.input.transpose(0, 1), given.hx)  # `step` is time-major
        return y.transpose(0, 1), last

    def _forward_packed(self, input: PackedSequence, hx: Any, options: Options) -> tuple[Any, Any]:
        try:
            return super()._forward_packed(input, hx, options)
        except ValueError:
            if options.lengths is None and options.reset is None and int(input.batch_sizes.sum()) != len(input.data):
                self._torch_class.forward(self, input, hx)  # raises torch's error
            raise

    def _record_torch(self, backend: str, x: Any, states: tuple[Any, ...] | None) -> None:
        if here.is_compiling() or not _paths.recorders or not isinstance(x, Tensor):
            return
        tensors = [s for s in states or () if isinstance(s, Tensor)]
        why = "backend='torch'" if backend == "torch" else self._refusal(x, tuple(tensors), "kernels")
        _paths.record(self._cell_name, "torch", why)

    def _refusal(self, x: Tensor, states: tuple[Tensor, ...] | None, what: str) -> str:
        got = ", ".join(f"{t.dtype} {tuple(t.shape)} on {t.device}" for t in (x, *(states or ())))
        return f"{what}: expected {_checks.expected(x)}, and states of matching sizes; got {got}"

    def __prepare_scriptable__(self) -> nn.Module:
        """Return a torch.nn module with the same parameters, for `torch.jit.script`."""
        check_scriptable(self)
        copied = self._torch_class.__new__(self._torch_class)
        copied.__dict__ = self.__dict__.copy()
        return copied


class LSTM(RecurrentLayers, _torch.LSTM):
    """Long short-term memory network, with the arguments of `torch.nn.LSTM`.

    ``i, f, o = σ(W x + b + R h + b')``, ``g = tanh(W x + b + R h + b')``, ``c' = f·c + i·g``, ``h' = o·tanh(c')``, and
    with ``proj_size`` ``h' = W_hr (o·tanh(c'))``. Rows of the weights in the order i, f, g, o.

    Parameters, for layer k and, with the suffix ``_reverse``, its second direction: ``weight_ih_l{k}`` (4·H, I; D·P
    from the second layer on), ``weight_hh_l{k}`` (4·H, P), ``bias_ih_l{k}`` and ``bias_hh_l{k}`` (4·H),
    ``weight_hr_l{k}`` (P, H) with projection. Their names, their order and, from the same seed, their values are
    torch's; a ``state_dict`` loads into either module.

    With ``learn_initial_state=True`` the initial states of a sequence are parameters, ``initial_h_l{k}`` and so on,
    initially zero. Shapes of a call, and its keywords ``lengths=``, ``reset=``, ``initial=``, ``backend=``,
    ``embedding=``, ``recompute=``, ``clip_state_gradient=``, ``penalty=``: see `forward`. Streaming: `step`.

    Raises:
        TypeError, ValueError: an argument is invalid; with the message of torch.nn.LSTM.

    Example:
        >>> network = fastrnn.LSTM(3, 4)
        >>> y, state = network(torch.randn(5, 2, 3))
        >>> y.shape
        torch.Size([5, 2, 4])

    Sources: Hochreiter and Schmidhuber, Long Short-Term Memory, 1997; with forget gate: Gers, Schmidhuber and Cummins,
    Learning to Forget, 2000; with projection: Sak, Senior and Beaufays, 2014 (arXiv:1402.1128).
    """

    _torch_class = _torch.LSTM
    _state_names = ("h", "c")

    def _as_states(self, hx: Any) -> tuple[Any, ...]:
        return tuple(hx) if isinstance(hx, (tuple, list)) else ()

    def _state_sizes(self) -> tuple[int, ...]:
        return (self.proj_size or self.hidden_size, self.hidden_size)


class GRU(RecurrentLayers, _torch.GRU):
    """Gated recurrent unit network, with the arguments of `torch.nn.GRU`.

    ``r, z = σ(W x + b + R h + b')``, ``n = tanh(W x + b + r·(R h + b'))``, ``h' = (1 - z)·n + z·h``. Rows of the
    weights in the order r, z, n: ``weight_ih_l{k}`` (3·H, I; D·H from the second layer on), ``weight_hh_l{k}``
    (3·H, H), ``bias_ih_l{k}`` and ``bias_hh_l{k}`` (3·H), with the suffix ``_reverse`` for the second direction.

    With ``learn_initial_state=True`` the initial states of a sequence are parameters, ``initial_h_l{k}`` and so on,
    initially zero. Shapes of a call, and its keywords ``lengths=``, ``reset=``, ``initial=``, ``backend=``,
    ``embedding=``, ``recompute=``, ``clip_state_gradient=``, ``penalty=``: see `forward`. Streaming: `step`.

    Raises:
        TypeError, ValueError: an argument is invalid; with the message of torch.nn.GRU.

    Example:
        >>> network = fastrnn.GRU(3, 4)
        >>> y, state = network(torch.randn(5, 2, 3))
        >>> y.shape
        torch.Size([5, 2, 4])

    Source: Cho et al., 2014 (arXiv:1406.1078v1), in the variant that applies the reset gate after the product.
    """

    _torch_class = _torch.GRU


class RNN(RecurrentLayers, _torch.RNN):
    """Elman network with tanh or relu, with the arguments of `torch.nn.RNN`.

    ``h' = φ(W x + b + R h + b')`` with φ tanh, or relu if ``nonlinearity="relu"``. ``weight_ih_l{k}`` (H, I; D·H from
    the second layer on), ``weight_hh_l{k}`` (H, H), ``bias_ih_l{k}`` and ``bias_hh_l{k}`` (H), with the suffix
    ``_reverse`` for the second direction.

    With ``learn_initial_state=True`` the initial states of a sequence are parameters, ``initial_h_l{k}`` and so on,
    initially zero. Shapes of a call, and its keywords ``lengths=``, ``reset=``, ``initial=``, ``backend=``,
    ``embedding=``, ``recompute=``, ``clip_state_gradient=``, ``penalty=``: see `forward`. Streaming: `step`.

    Raises:
        TypeError, ValueError: an argument is invalid; with the message of torch.nn.RNN.

    Example:
        >>> network = fastrnn.RNN(3, 4)
        >>> y, state = network(torch.randn(5, 2, 3))
        >>> y.shape
        torch.Size([5, 2, 4])

    Source: Elman, Finding Structure in Time, 1990.
    """

    _torch_class = _torch.RNN
