"""A cell of one's own as a network: layers, directions, packed input, streams."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn._call_checks import check_devices
from fastrnn._paths import BACKENDS
from fastrnn.custom.definition import Cell
from fastrnn.functional import LayerWeights, sequence
from fastrnn.modules import _checks, _extra, _initial, _tokens
from fastrnn.modules._keywords import ExportedKeywords
from fastrnn.modules._layers import run_layers

if TYPE_CHECKING:
    from fastrnn.training import GradientNormPenalty

States = Tensor | tuple[Tensor, ...]


class Network(ExportedKeywords, nn.Module):
    """A recurrent network of a cell made by :func:`fastrnn.cell`, with the arguments and the calls of `torch.nn.GRU`.

    Made by calling the cell: ``one_state(input_size, hidden_size, num_layers=1, bias=True, batch_first=False,
    dropout=0.0, bidirectional=False, heads=1, device=None, dtype=None, learn_initial_state=False)``.

    Parameters, for layer k and, with the suffix ``_reverse``, its second direction: ``weight_ih_l{k}`` (G·H, I; D·H
    from the second layer on) and ``bias_ih_l{k}`` (G·H), gates in the cell's order; ``weight_hh_l{k}`` (R·H, H) and
    ``bias_hh_l{k}`` (R·H), of the R gates that have a recurrent product (``cell.recurrent``); and for each parameter of
    the cell ``{name}_l{k}`` (H). With ``heads`` units see only those of their head: each recurrent matrix is
    block-diagonal, and ``weight_hh_l{k}`` (R·H, H/heads) has the blocks below one another. Weights begin as torch.nn's
    do, uniform within ±1/√H, parameters as the cell says. With ``learn_initial_state`` the states that a call without
    ``hx`` starts from are parameters too: ``initial_{state}_l{k}`` (H), zeros at first.

    Attributes:
        backend, recompute, clip_state_gradient: taken where a call names none; ``"auto"``, False and None unless
            assigned. See `forward`.

    Raises:
        ValueError: ``dropout`` is not a probability, a size is not positive, H is not a multiple of ``heads``.
        TypeError: a size is not an integer.
    """

    backend: str = "auto"
    recompute: bool | int = False
    clip_state_gradient: float | None = None
    learn_initial_state: bool = False

    def __init__(
        self,
        cell: Cell,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        heads: int = 1,
        device: Any = None,
        dtype: torch.dtype | None = None,
        learn_initial_state: bool = False,
    ) -> None:
        super().__init__()
        for name, size in (
            ("input_size", input_size),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
            ("heads", heads),
        ):
            if not isinstance(size, int):
                raise TypeError(f"{name}: expected an integer, got {type(size).__name__}")
            if size <= 0:
                raise ValueError(f"{name}: expected a positive number, got {size}")
            if size >= 1 << 31:
                raise ValueError(f"{name}: expected less than {1 << 31}, got a number of {size.bit_length()} bits")
        if hidden_size % heads:
            raise ValueError(f"heads: expected a divisor of hidden_size, {hidden_size}, got {heads}")
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout <= 1:
            raise ValueError(f"dropout: expected a probability from 0 to 1, got {dropout!r}")
        self.cell = cell
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.heads = heads
        self.bias, self.batch_first, self.dropout, self.bidirectional = bias, batch_first, float(dropout), bidirectional
        rows, recurrent = len(cell.gates) * hidden_size, len(cell.recurrent) * hidden_size
        for layer in range(num_layers):
            width = input_size if layer == 0 else hidden_size * self._directions
            for suffix in self._suffixes(layer):
                seen = hidden_size // heads
                shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, width), "weight_hh": (recurrent, seen)}
                if bias:
                    shapes |= {"bias_ih": (rows,), "bias_hh": (recurrent,)}
                shapes |= dict.fromkeys(cell.parameters, (hidden_size,))
                for name, shape in shapes.items():
                    self.register_parameter(name + suffix, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        if _initial.check(learn_initial_state):
            self.learn_initial_state = True
            widths = dict.fromkeys(cell.states, hidden_size)
            _initial.add(self, widths, _initial.suffixes(self), self.weight_ih_l0)  # type: ignore[arg-type]
        self.reset_parameters()

    @property
    def _directions(self) -> int:
        return 2 if self.bidirectional else 1

    def _suffixes(self, layer: int) -> list[str]:
        return [f"_l{layer}", f"_l{layer}_reverse"][: self._directions]

    def reset_parameters(self) -> None:
        """Weights as torch.nn's recurrent networks begin, the cell's parameters as it says."""
        bound = 1 / math.sqrt(self.hidden_size // self.heads)
        with torch.no_grad():
            for layer in range(self.num_layers):
                for suffix in self._suffixes(layer):
                    for name in ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if self.bias else ())):
                        getattr(self, name + suffix).uniform_(-bound, bound)
                    for name, initial in self.cell.initial.items():
                        parameter = getattr(self, name + suffix)
                        if callable(initial):
                            initial(parameter)
                        else:
                            parameter.fill_(initial)
                    for name in self.cell.states if self.learn_initial_state else ():
                        getattr(self, _initial.PREFIX + name + suffix).zero_()

    def _weights(self, dtype: torch.dtype | None) -> list[LayerWeights]:
        def get(name: str) -> Tensor:
            found = getattr(self, name)
            return found if dtype is None else found.to(dtype)

        layers = []
        for layer in range(self.num_layers):
            for suffix in self._suffixes(layer):
                w_hh = get("weight_hh" + suffix)
                if self.cell.parameters:
                    seen = self.hidden_size // self.heads  # a parameter has as many rows as there are heads
                    w_hh = torch.cat([w_hh, *(get(name + suffix).view(-1, seen) for name in self.cell.parameters)])
                biases = (get("bias_ih" + suffix), get("bias_hh" + suffix)) if self.bias else (None, None)
                layers.append(LayerWeights(get("weight_ih" + suffix), w_hh, *biases))
        return layers

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: States | None = None,
        *,
        lengths: Any = None,
        reset: Any = None,
        backend: str | None = None,
        embedding: nn.Module | Tensor | None = None,
        recompute: bool | int | None = None,
        initial: States | None = None,
        clip_state_gradient: float | None = None,
        penalty: GradientNormPenalty | None = None,
    ) -> tuple[Any, States]:
        """All layers over a whole sequence.

        Args:
            input: (T, B, I), (B, T, I) if ``batch_first``, (T, I), or a PackedSequence.
            hx: initial states, (L·D, B, H) each, or (L·D, H) for an input without batch: one tensor if the cell has one
                state, else a tuple. None for the learned ones, or zeros.
            lengths: (B) the steps of each row; what is behind them is not looked at, and gives zeros.
            reset: (T, B) or as the input lies, bool: true at the first step of a new segment, which starts from
                ``initial``.
            backend: ``"auto"``, ``"fused"`` or ``"reference"``, see :func:`fastrnn.functional.sequence`. None: the
                attribute ``backend``.
            embedding: a `torch.nn.Embedding` or its weight (V, I). ``input`` is then token ids, as in `fastrnn.LSTM`'s
                forward, and embedded first.
            recompute: save less for the backward pass, see there. None: the attribute ``recompute``.
            initial, clip_state_gradient, penalty: as in `fastrnn.LSTM`'s forward. Of several states only the first
                one's gradient is cut.

        Returns:
            outputs, (T, B, D·H) or as the input lies, and the final states in the form of ``hx``.

        Raises:
            ValueError: the input has not 2 or 3 dimensions, or lengths or reset are not what they must be.
            RuntimeError: sizes or dtypes do not fit.
            TypeError: hx is not what it must be.
        """
        backend = backend or self.backend
        if backend not in BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
        recompute = self.recompute if recompute is None else recompute
        if embedding is not None:
            input = _tokens.embedded(input, embedding, self.batch_first, lengths)
        options: dict[str, Any] = {"lengths": None, "reset": None, "batch_sizes": None, "backend": backend}
        if recompute:
            options["recompute"] = recompute
        clip = self.clip_state_gradient if clip_state_gradient is None else clip_state_gradient
        options.update(_extra.of_call(None, clip, penalty))
        if self.learn_initial_state or initial is not None:
            hx, initial = self._start(input, hx, initial)
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, lengths, reset, options)
        if not isinstance(input, Tensor):
            raise TypeError(f"input: expected a Tensor or a PackedSequence, got {type(input).__name__}")
        if input.dim() not in (2, 3):
            raise ValueError(f"{self.cell.name}: Expected input to be 2D or 3D, got {input.dim()}D instead")
        batched = input.dim() == 3
        x = input if batched else input.unsqueeze(1)
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        states = self._as_states(hx, x.shape[1], batched)
        if lengths is not None:
            options["lengths"] = _checks.as_lengths(lengths, x.shape[0], x.shape[1], x.device)
        if reset is not None:
            options["reset"] = _checks.as_reset(reset, input.shape[:-1], self.batch_first, x.device)
            if initial is not None:
                options["initial"] = self._as_states(initial, x.shape[1], batched, "initial")
        y, last = self._run(x, states, options)
        if not batched:
            return y.squeeze(1), self._given_back(tuple(s.squeeze(1) for s in last))
        return y.transpose(0, 1) if self.batch_first else y, self._given_back(last)

    def _forward_packed(
        self, input: PackedSequence, hx: States | None, lengths: Any, reset: Any, options: dict[str, Any]
    ) -> tuple[PackedSequence, States]:
        for name, value in (("lengths", lengths), ("reset", reset)):
            if value is not None:
                raise ValueError(f"{name}: expected None with a PackedSequence; give the padded input instead")
        x, batch_sizes, sorted_indices, unsorted_indices = input
        states = None
        if hx is not None:
            rows = _checks.packed_rows(batch_sizes, hx[0] if isinstance(hx, (tuple, list)) and hx else hx)
            states = self._as_states(hx, rows, True)
        if states is not None and sorted_indices is not None:
            states = tuple(s.index_select(1, sorted_indices) for s in states)
        y, last = self._run(x, states, {**options, "batch_sizes": batch_sizes})
        if unsorted_indices is not None:
            last = tuple(s.index_select(1, unsorted_indices) for s in last)
        return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), self._given_back(last)

    def _run(
        self, x: Tensor, states: tuple[Tensor, ...] | None, options: dict[str, Any]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not _checks.has_shape(x, (*x.shape[:-1], self.input_size)):
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.shape[-1]}"
            )
        if not torch.jit.is_tracing() and x.shape[0] == 0:  # type: ignore[attr-defined]
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        target = _checks.autocast_dtype(x)
        dropout = self.dropout if self.training else 0.0
        layer = self._layer_with_inputs if self.cell.inputs else self._layer
        arguments = (self.cell.kernels, x if target is None else x.to(target), self._weights(target))
        if target is None:
            return run_layers(*arguments, states, self._directions, dropout, options, layer)
        if states is not None:
            states = tuple(s.to(target) for s in states)
        if "initial" in options:
            options["initial"] = tuple(s.to(target) for s in options["initial"])
        with torch.autocast(x.device.type, enabled=False):
            return run_layers(*arguments, states, self._directions, dropout, options, layer)

    def _layer_with_inputs(
        self, cell: str, x: Tensor, weights: LayerWeights, states: Any, *, lengths: Tensor | None, **options: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer where the kernels' input is more than the product with W."""
        if lengths is not None:  # what is behind them may be NaN, and must not meet a zero gradient
            live = torch.arange(x.shape[0], device=x.device).unsqueeze(-1) < lengths.to(x.device)
            x = torch.where(live.unsqueeze(-1), x, x.new_zeros(()))
        check_devices(x, {"weight_ih": weights.w_ih, "bias_ih": weights.b_ih})
        wx = nn.functional.linear(x, weights.w_ih, weights.b_ih)  # type: ignore[arg-type]
        columns = [wx, *(self._input(name, wx[..., : self.hidden_size]) for name in self.cell.inputs)]
        given = weights._replace(w_ih=None, b_ih=None)
        return self._layer(cell, torch.cat(columns, -1), given, states, lengths=lengths, **options)

    @property
    def _layer(self) -> Callable[..., tuple[Tensor, tuple[Tensor, ...]]]:
        return sequence if self.heads == 1 else self._layer_of_heads

    def _layer_of_heads(
        self, cell: str, x: Tensor, weights: LayerWeights, states: Any, **options: Any
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer whose heads do not see each other: each is a layer of its own units."""
        heads, initial = self.heads, options.pop("initial", None)
        if options.get("penalty") is not None:
            raise ValueError("penalty: expected a network with one head")

        def of_heads(rows: Tensor) -> Tensor:
            """(K·H, ·), a block of H rows for each of K names, as (heads, K·H/heads, ·)."""
            blocks = rows.unflatten(0, (-1, heads, self.hidden_size // heads))
            return blocks.transpose(0, 1).flatten(1, 2)

        recurrent = len(self.cell.recurrent) * self.hidden_size
        w_hh = of_heads(weights.w_hh[:recurrent])
        if self.cell.parameters:  # a row of each head for each parameter
            w_hh = torch.cat([w_hh, weights.w_hh[recurrent:].unflatten(0, (-1, heads)).transpose(0, 1)], 1)
        parts = [None if w is None else of_heads(w) for w in (weights.w_ih, weights.b_ih, weights.b_hh)]
        inputs = (x,) * heads
        if weights.w_ih is None:  # already the gates
            inputs = x.unflatten(-1, (-1, heads, self.hidden_size // heads)).transpose(-2, -3).flatten(-2).unbind(-2)
        found = []
        for k in range(heads):
            w_ih, b_ih, b_hh = (None if part is None else part[k] for part in parts)
            mine = None if states is None else tuple(s.chunk(heads, -1)[k] for s in states)
            if initial is not None:
                options["initial"] = tuple(s.chunk(heads, -1)[k] for s in initial)
            found.append(sequence(cell, inputs[k], LayerWeights(w_ih, w_hh[k], b_ih, b_hh), mine, **options))
        ends = zip(*(last for _, last in found), strict=True)
        return torch.cat([y for y, _ in found], -1), tuple(torch.cat(states, -1) for states in ends)

    def _input(self, name: str, like: Tensor) -> Tensor:
        found = self.cell.sources[name](like.detach(), self.training)
        if found.shape != like.shape:
            raise RuntimeError(f"{name}: expected an input of shape {tuple(like.shape)}, got {tuple(found.shape)}")
        return found.to(like.dtype)

    def step(
        self,
        input: Tensor,
        states: States | None = None,
        *,
        backend: str | None = None,
        embedding: nn.Module | Tensor | None = None,
    ) -> tuple[Tensor, States]:
        """One step of a stream: ``y, states = network.step(x, states)``.

        Args:
            input: (B, I) or (I).
            states: what the step before returned, or as ``hx`` of `forward`; None for the learned ones, or zeros.
            backend, embedding: as in `forward`; with an embedding ``input`` is ids, (B) or ().

        Returns:
            outputs (B, H) or (H), and the states.

        Raises:
            ValueError: the network is bidirectional, or the input has not 1 or 2 dimensions.
        """
        if self.bidirectional:
            raise ValueError("step: expected a network of one direction, got a bidirectional one")
        backend = backend or self.backend
        if backend not in BACKENDS:
            raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
        if embedding is not None:
            input = _tokens.embed_step(input, embedding)
        if input.dim() not in (1, 2):
            raise ValueError(f"input: expected (B, I) or (I), got shape {tuple(input.shape)}")
        batched = input.dim() == 2
        x = input.unsqueeze(0) if batched else input.view(1, 1, -1)
        options: dict[str, Any] = {"lengths": None, "reset": None, "batch_sizes": None, "backend": backend}
        options.update(_extra.of_call(None, self.clip_state_gradient, None))
        if states is None and self.learn_initial_state:
            states = _initial.of_layers(self, self.cell.states, x.shape[1] if batched else None)
        y, last = self._run(x, self._as_states(states, x.shape[1], batched), options)
        if not batched:
            last = tuple(s.squeeze(1) for s in last)
        return y.squeeze(0) if batched else y.view(-1), self._given_back(last)

    def _start(self, input: Any, hx: States | None, initial: States | None) -> tuple[States | None, States | None]:
        """The states that a call starts from, and those that a new segment does; None: the same."""
        if initial is None and _initial.is_readable(input, 3):
            batch = _initial.batch_of(input, self.batch_first, 3)
            initial = _initial.of_layers(self, self.cell.states, batch)
        return (initial, None) if hx is None else (hx, initial)

    def _as_states(
        self, hx: States | None, batch: int, batched: bool, argument: str = "hx"
    ) -> tuple[Tensor, ...] | None:
        if hx is None:
            return None
        names = self.cell.states
        if not isinstance(hx, (Tensor, tuple, list)):
            raise TypeError(f"{argument}: expected a Tensor or a tuple of them, got {type(hx).__name__}")
        states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        if len(states) != len(names) or not all(isinstance(s, Tensor) for s in states):
            raise TypeError(f"{argument}: expected {len(names)} tensors ({', '.join(names)}), got {len(states)}")
        if not batched:
            states = tuple(s.unsqueeze(1) if s.dim() == 2 else s for s in states)
        expected = (self.num_layers * self._directions, batch, self.hidden_size)
        for name, state in zip(names, states, strict=True):
            if not _checks.has_shape(state, expected):
                raise RuntimeError(f"{argument}: expected {name} of size {expected}, got {tuple(state.shape)}")
        return states

    def _given_back(self, states: tuple[Tensor, ...]) -> States:
        return states if len(states) > 1 else states[0]

    def extra_repr(self) -> str:
        text = f"{self.cell.name}, {self.input_size}, {self.hidden_size}"
        for name, usual in (
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("bidirectional", False),
            ("heads", 1),
        ):
            if getattr(self, name) != usual:
                text += f", {name}={getattr(self, name)}"
        text += f", dropout={self.dropout}" if self.dropout else ""
        return text + (", learn_initial_state=True" if self.learn_initial_state else "")
