"""Network of a custom cell: layers, directions, packed input, streams."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import _paths
from fastrnn import _surroundings as here
from fastrnn._call_checks import check_devices
from fastrnn.custom.definition import Cell
from fastrnn.custom.kernels import Kernels
from fastrnn.custom.raw_input import blocks_of, check_raw_input, of_kernels, padded
from fastrnn.functional import LayerWeights, sequence
from fastrnn.modules import _checks, _initial
from fastrnn.modules._layers import LayerResult
from fastrnn.modules._options import Options
from fastrnn.modules._recurrent import CallArguments, Recurrent


class Network(Recurrent, nn.Module):
    """Recurrent network of a cell made by :func:`fastrnn.cell`, with the arguments and calls of `torch.nn.GRU`.

    Created by calling the cell: ``one_state(input_size, hidden_size, num_layers=1, bias=True, batch_first=False,
    dropout=0.0, bidirectional=False, heads=1, device=None, dtype=None, learn_initial_state=False)``.

    Parameters, for layer k and, with the suffix ``_reverse``, its second direction: ``weight_ih_l{k}`` (G·H, I; D·H
    from the second layer on) and ``bias_ih_l{k}`` (G·H), gates in the cell's order; ``weight_hh_l{k}`` (R·H, H) and
    ``bias_hh_l{k}`` (R·H), for the R gates with a recurrent product (``cell.recurrent``); and ``{name}_l{k}`` (H) for
    each parameter of the cell. With ``heads``, units are connected only within their head: each recurrent matrix is
    block-diagonal, and ``weight_hh_l{k}`` (R·H, H/heads) stacks the blocks. Weights are initialised like torch.nn's,
    uniform within ±1/√H, parameters as defined by the cell. With ``learn_initial_state`` the initial states of calls
    without ``hx`` are parameters too: ``initial_{state}_l{k}`` (H), initially zero.

    A cell with a raw input has for each matrix that multiplies it or has its width a weight of its own,
    ``weight_{name}_l{k}`` and ``bias_{name}_l{k}``, with I rows or columns (D·H from the second layer on); its other
    matrices are in ``weight_hh``.

    Calls, their keywords and `step` are those of `fastrnn.LSTM`; errors have the types of torch.nn's.

    Raises:
        ValueError: ``dropout`` is not a probability, a size is not positive, H is not a multiple of ``heads``; for a
            cell with a raw input, heads is not 1, or the step combines it with values of H units and I is not H, or the
            step is infinite for an input of zeros, with which kernels pad the raw input unless I is a multiple of H.
        TypeError: a size is not an integer, ``dtype`` is not a `torch.dtype`.

    Example:
        >>> from fastrnn import gallery
        >>> network = gallery.min_gru(3, 4, num_layers=2)
        >>> y, h = network(torch.randn(5, 2, 3))
        >>> y.shape, h.shape
        (torch.Size([5, 2, 4]), torch.Size([2, 2, 4]))
    """

    _backends = _paths.BACKENDS

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
                raise ValueError(f"{name}: expected less than {1 << 31}, got an integer of {size.bit_length()} bits")
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype: expected a torch.dtype, such as torch.float64, got {dtype!r}")
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
            width = input_size if layer == 0 else hidden_size * (2 if bidirectional else 1)
            check_raw_input(cell, width, hidden_size, heads)
            self.kernels_of(width)  # not within torch.compile
            for suffix in _initial.suffixes_of(layer, bidirectional):
                seen = hidden_size // heads
                shapes: dict[str, tuple[int, ...]] = {"weight_ih": (rows, width), "weight_hh": (recurrent, seen)}
                if bias:
                    shapes |= {"bias_ih": (rows,), "bias_hh": (recurrent,)}
                for name, shape in cell.rectangular.items():
                    size = width if shape.rows else hidden_size
                    shapes["weight_" + name] = (size, width if shape.columns else hidden_size)
                    if bias:
                        shapes["bias_" + name] = (size,)
                shapes |= dict.fromkeys(cell.parameters, (hidden_size,))
                for name, sizes in shapes.items():
                    self.register_parameter(name + suffix, nn.Parameter(torch.empty(sizes, device=device, dtype=dtype)))
        self._learn_initial_state(learn_initial_state)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the weights as torch.nn's networks do, and the parameters as defined by the cell."""
        bound = 1 / math.sqrt(self.hidden_size // self.heads)
        with torch.no_grad():
            for suffix in _initial.suffixes(self):
                for name in ("ih", "hh", *self.cell.rectangular):
                    for kind in ("weight_", "bias_") if self.bias else ("weight_",):
                        getattr(self, kind + name + suffix).uniform_(-bound, bound)
                for name, initial in self.cell.initial.items():
                    parameter = getattr(self, name + suffix)
                    if callable(initial):
                        initial(parameter)
                    else:
                        parameter.fill_(initial)
                for name in self.cell.states if self.learn_initial_state else ():
                    getattr(self, _initial.PREFIX + name + suffix).zero_()

    @property
    def _cell_name(self) -> str:
        return self.cell.kernels

    @property
    def _state_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.cell.states

    @property
    def _takes_ids(self) -> bool:  # type: ignore[override]
        return self.heads == 1 and not self.cell.inputs and self.cell.raw_input is None

    def _state_sizes(self) -> tuple[int, ...]:
        return (self.hidden_size,) * len(self.cell.states)

    def _weights(self) -> list[Any]:
        if self.cell.raw_input is not None:
            return [w for suffix in _initial.suffixes(self) for w in of_kernels(self, suffix)]
        weights = []
        for suffix in _initial.suffixes(self):
            w_hh = self._blocks("weight_hh" + suffix)
            if self.cell.parameters:
                seen = self.hidden_size // self.heads  # a parameter has as many rows as there are heads
                more = [getattr(self, name + suffix).view(-1, seen) for name in self.cell.parameters]
                w_hh = torch.cat([w_hh, *more])
            weights += [getattr(self, "weight_ih" + suffix), w_hh]
            if self.bias:
                weights += [getattr(self, "bias_ih" + suffix), self._blocks("bias_hh" + suffix)]
        return weights

    def _blocks(self, name: str) -> Tensor:
        """Return a recurrent weight or bias in the kernels' layout: each matrix once for each of its vectors."""
        weight: Tensor = getattr(self, name)
        if self.cell.repeated is None:
            return weight
        blocks = weight.unflatten(0, (len(self.cell.recurrent), self.hidden_size)).unbind()
        return torch.cat([blocks[k] for k in self.cell.repeated])

    def _as_states(self, hx: Any) -> tuple[Tensor, ...]:
        names = self.cell.states
        if not isinstance(hx, (Tensor, tuple, list)):
            raise TypeError(f"hx: expected a Tensor or a tuple of them, got {type(hx).__name__}")
        states = (hx,) if isinstance(hx, Tensor) else tuple(hx)
        if len(states) != len(names) or not all(isinstance(s, Tensor) for s in states):
            raise TypeError(f"hx: expected {len(names)} tensors ({', '.join(names)}), got {len(states)}")
        return states

    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        if permutation is None:
            return hx
        states = tuple([s.index_select(1, permutation) for s in self._as_states(hx)])
        return states if len(states) > 1 else states[0]

    def _delegate(self, given: CallArguments, options: Options) -> tuple[Any, Options]:
        x, states, layout = given.x, given.states, given.layout
        if not isinstance(x, Tensor):
            raise TypeError(f"input: expected a Tensor or a PackedSequence, got {type(x).__name__}")
        dims = (2, 3) if layout.batch_sizes is None else (2,)
        if x.dim() not in dims:
            wanted = " or ".join(f"{n}D" for n in dims)
            raise ValueError(f"{self.cell.name}: Expected input to be {wanted}, got {x.dim()}D instead")
        if not _checks.has_shape(x, (*x.shape[:-1], self.input_size)):
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.shape[-1]}"
            )
        steps = x.shape[1] if layout.batch_first and x.dim() == 3 else x.shape[0]
        if not here.is_tracing() and steps == 0:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        rows: tuple[Any, ...] = ()
        if states is not None and layout.batch_sizes is not None:
            rows = (_checks.packed_rows(layout.batch_sizes, states[0]),)
        elif x.dim() == 3:
            rows = (x.shape[0] if layout.batch_first else x.shape[1],)
        expected = (self.num_layers * (2 if self.bidirectional else 1), *rows, self.hidden_size)
        for name, state in zip(self.cell.states, states or (), strict=False):
            if not _checks.has_shape(state, expected):
                raise RuntimeError(f"hx: expected {name} of size {expected}, got {tuple(state.shape)}")
        return None, options

    @property
    def _layer(self) -> Callable[..., LayerResult]:
        if self.cell.inputs or self.cell.raw_input is not None:
            return self._layer_with_inputs
        return self._layer_of_units

    def _layer_with_inputs(
        self, cell: str, x: Tensor, weights: LayerWeights, states: Any, *, lengths: Tensor | None, **options: Any
    ) -> LayerResult:
        """Run one layer whose kernels have further inputs besides the product with W."""
        if lengths is not None:  # padding may be NaN, which must not be multiplied by a zero gradient
            live = torch.arange(x.shape[0], device=x.device).unsqueeze(-1) < lengths.to(x.device)
            x = torch.where(live.unsqueeze(-1), x, x.new_zeros(()))
        if self.cell.raw_input is not None:
            cell = self.kernels_of(x.shape[-1]).name
        given = weights._replace(w_ih=None, b_ih=None)
        return self._layer_of_units(cell, self.columns(x, weights), given, states, lengths=lengths, **options)

    def kernels_of(self, width: int) -> Kernels:
        """Return the kernels of a layer with this many inputs."""
        return self.cell.variant(blocks_of(width, self.hidden_size) if self.cell.raw_input is not None else 1)

    def columns(self, x: Tensor, weights: LayerWeights) -> Tensor:
        """Return the kernels' input (…, columns·H): the product with W, the cell's further inputs, the raw input."""
        assert weights.w_ih is not None
        check_devices(x, {"weight_ih": weights.w_ih, "bias_ih": weights.b_ih})
        H = self.hidden_size
        columns = [nn.functional.linear(x, weights.w_ih, weights.b_ih)] if weights.w_ih.shape[0] else []
        like = columns[0][..., :H] if columns else x.new_empty(1).expand(*x.shape[:-1], H)
        columns += [self._input(name, like) for name in self.cell.inputs]
        if self.cell.raw_input is not None:
            columns.append(padded(x, -1, blocks_of(x.shape[-1], H) * H))
        return torch.cat(columns, -1) if len(columns) > 1 else columns[0]

    @property
    def _layer_of_units(self) -> Callable[..., LayerResult]:
        return sequence if self.heads == 1 else self._layer_of_heads

    def _layer_of_heads(self, cell: str, x: Tensor, weights: LayerWeights, states: Any, **options: Any) -> LayerResult:
        """Run one layer with several heads, each as a separate layer of its own units."""
        heads, initial = self.heads, options.pop("initial", None)
        if options.get("penalty") is not None:
            raise ValueError("penalty: expected a network with one head")

        def of_heads(rows: Tensor) -> Tensor:
            """Reshape (K·H, ·), one block of H rows for each of K names, to (heads, K·H/heads, ·)."""
            blocks = rows.unflatten(0, (-1, heads, self.hidden_size // heads))
            return blocks.transpose(0, 1).flatten(1, 2)

        recurrent = len(self.cell.blocks) * self.hidden_size
        w_hh = of_heads(weights.w_hh[:recurrent])
        if self.cell.parameters:  # a row of each head for each parameter
            w_hh = torch.cat([w_hh, weights.w_hh[recurrent:].unflatten(0, (-1, heads)).transpose(0, 1)], 1)
        parts = [None if w is None else of_heads(w) for w in (weights.w_ih, weights.b_ih, weights.b_hh)]
        inputs = (x,) * heads
        if weights.w_ih is None:  # already the gates
            inputs = x.unflatten(-1, (-1, heads, self.hidden_size // heads)).transpose(-2, -3).flatten(-2).unbind(-2)
        results = []
        for k in range(heads):
            w_ih, b_ih, b_hh = (None if part is None else part[k] for part in parts)
            mine = None if states is None else tuple(s.chunk(heads, -1)[k] for s in states)
            if initial is not None:
                options["initial"] = tuple(s.chunk(heads, -1)[k] for s in initial)
            results.append(sequence(cell, inputs[k], LayerWeights(w_ih, w_hh[k], b_ih, b_hh), mine, **options))
        ends = zip(*(last for _, last in results), strict=True)
        return torch.cat([y for y, _ in results], -1), tuple(torch.cat(states, -1) for states in ends)

    def _input(self, name: str, like: Tensor) -> Tensor:
        value = self.cell.sources[name](like.detach(), self.training)
        if value.shape != like.shape:
            raise RuntimeError(f"{name}: expected an input of shape {tuple(like.shape)}, got {tuple(value.shape)}")
        return value.to(like.dtype)

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
