"""Layers of a recurrent module for the analyses: one in one direction each, with its weights.

Letters: T time steps, B batch rows, I input size, H hidden size, P projection size (else H), G gates, S states, L
layers, D directions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastrnn import _paths, _torch, cells, reference
from fastrnn._networks import is_recurrent, parts_of
from fastrnn.cells import CellSpec
from fastrnn.custom import Cell
from fastrnn.custom.kernels import Kernels
from fastrnn.custom.module import Network
from fastrnn.functional import LayerWeights
from fastrnn.modules import _initial
from fastrnn.modules._layers import as_layers

States = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer in one direction.

    Attributes:
        spec: the specification of the cell.
        weights: the module's own parameters, not copies.
        index: the layer's number, from 0.
        reverse: True if it runs from the last time step to the first.
        cell: the cell of a network made by `fastrnn.cell`, else None.
        network: the network that provides a cell's further inputs, else None.
    """

    spec: CellSpec
    weights: LayerWeights
    index: int = 0
    reverse: bool = False
    cell: Cell | None = None
    network: Network | None = None

    @property
    def name(self) -> str:
        return f"layer {self.index + 1}" + (", reverse" if self.reverse else "")

    @property
    def title(self) -> str:
        """The cell's name."""
        return self.spec.name if self.cell is None else self.cell.name

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of the blocks of H rows in ``w_hh``, in order; a custom cell may have none."""
        if self.cell is None:
            return self.spec.gate_names
        return tuple(self.cell.matrix_name(block.matrix) for block in self.kernels.blocks)

    @property
    def kernels(self) -> Kernels:
        """The kernels of a cell made by `fastrnn.cell`."""
        assert self.cell is not None
        assert self.network is not None
        assert self.weights.w_ih is not None
        return self.network.kernels_of(self.weights.w_ih.shape[1])

    @property
    def hidden(self) -> int:
        return self.weights.hidden

    @property
    def after_input(self) -> LayerWeights:
        """The weights without those already applied by `columns`."""
        return self.weights._replace(w_ih=None, b_ih=None)

    def columns(self, x: Tensor) -> Tensor:
        """Return W·x + b (T, B, G·H) for x (T, B, I), followed by the cell's further inputs."""
        assert self.weights.w_ih is not None
        if self.network is not None:
            return self.network.columns(x, self.weights)
        return F.linear(x, self.weights.w_ih, self.weights.b_ih)

    def initial(self, like: Tensor, batch: int) -> States:
        """Return zeros: h (B, P), the others (B, H)."""
        return reference.zero_states(self.spec, like, batch, self.hidden, self.weights.w_hh.shape[1])

    def has_kernels(self) -> bool:
        """Return True if compiled kernels can run the layer here; otherwise warn."""
        return _paths.has_kernels(self.spec, self.weights)

    def step(self, wx: Tensor, states: States) -> States:
        """Run one time step in plain PyTorch: `columns` (B, ·) and the old states to the new states."""
        return reference.sequence(self.spec, wx.unsqueeze(0), self.after_input, states)[1]

    def order(self, steps: int) -> range:
        """Return the indices of time steps in the order in which the layer runs them."""
        return range(steps - 1, -1, -1) if self.reverse else range(steps)

    def before(self, initial: Tensor, states: Tensor) -> Tensor:
        """Return the state before each time step, (T, B, ·), given the initial one (B, ·) and those after each step."""
        first = initial.unsqueeze(0)
        return torch.cat((states[1:], first)) if self.reverse else torch.cat((first, states[:-1]))


def layers_of(module: nn.Module) -> list[Layer]:
    """Return the layers of a recurrent module, the directions of a layer adjacent.

    Args:
        module: an LSTM, GRU or RNN, or one of their cells, of torch.nn or of fastrnn; or a network made by
            `fastrnn.cell`.

    Raises:
        TypeError: it is none of these.
        ValueError: it has more than one head, so that its matrices are block-diagonal.
    """
    if not is_recurrent(module) or getattr(module, "mode", "GRU") not in cells.MODES:
        raise TypeError(
            "module: expected an LSTM, GRU or RNN (or a cell) of torch.nn or fastrnn, or a network made by "
            f"fastrnn.cell, got {type(module).__name__}"
        )
    parts = parts_of(module)
    if isinstance(module, Network):
        if module.heads != 1:
            raise ValueError(f"module: expected a network with one head, got {module.heads}")
        weights = as_layers(module._weights(), module.bias, 0)
        own: tuple[Cell | None, Network | None] = (module.cell, module)
    else:
        weights = [_weights(module, part.suffix) for part in parts]
        own = (None, None)
    return [Layer(part.spec, w, part.layer, part.reverse, *own) for part, w in zip(parts, weights, strict=True)]


def _weights(module: nn.Module, suffix: str) -> LayerWeights:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    weights: list[Any] = [getattr(module, name + suffix, None) for name in names]
    if weights[0] is None or weights[1] is None:
        raise TypeError(f"module: expected weights weight_ih{suffix} and weight_hh{suffix}, got none")
    return LayerWeights(*weights)


def as_input(module: nn.Module, x: Tensor) -> Tensor:
    """Return x as (T, B, I), whatever the module's layout.

    Raises:
        TypeError, ValueError: x is not a tensor of two or three dimensions with at least one time step.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a Tensor, got {type(x).__name__}")
    if x.dim() not in (2, 3) or not x.numel():
        raise ValueError(f"x: expected (T, B, I), or (T, I), with at least one time step, got shape {tuple(x.shape)}")
    if x.dim() == 2:
        return x.unsqueeze(1)
    return x.transpose(0, 1) if getattr(module, "batch_first", False) else x


def as_states(module: nn.Module, layers: Sequence[Layer], hx: Any, x: Tensor) -> list[States]:
    """Return the initial states of each layer, from ``hx`` as modules take it: (L·D, B, ·) for each state.

    If ``hx`` is None, the states that the module learns, or zeros.

    Raises:
        ValueError: the number or sizes of the states do not match the cell.
    """
    if hx is None and getattr(module, "learn_initial_state", False):
        suffixes = [""] if isinstance(module, _torch.RNNCellBase) else _initial.suffixes(module)
        names = [_initial.PREFIX + name for name in layers[0].spec.states]
        return [tuple(getattr(module, n + suffix).expand(x.shape[1], -1) for n in names) for suffix in suffixes]
    if hx is None:
        return [layer.initial(x, x.shape[1]) for layer in layers]
    given = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    wanted = [(len(layers), *s.shape) for s in layers[0].initial(x, x.shape[1])]
    given_shapes = [tuple(s.shape) for s in given]
    # Dimensions of size one are ignored: unbatched states and those of cells lack them.
    if [tuple(n for n in shape if n != 1) for shape in given_shapes] != [tuple(n for n in s if n != 1) for s in wanted]:
        raise ValueError(f"hx: expected states of shapes {wanted}, got {given_shapes}")
    whole = [s.reshape(shape) for s, shape in zip(given, wanted, strict=True)]
    return [tuple(s[k] for s in whole) for k in range(len(layers))]


def run_stack(layers: Sequence[Layer], x: Tensor, run: Callable[[int, Tensor], Tensor]) -> Tensor:
    """Run ``run(number, x)`` for each layer and direction on the output of the layer below, without dropout.

    Returns:
        the output (T, B, D·P).
    """
    number = 0
    while number < len(layers):
        outputs = []
        index = layers[number].index
        while number < len(layers) and layers[number].index == index:
            outputs.append(run(number, x))
            number += 1
        x = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
    return x
