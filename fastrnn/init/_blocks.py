"""In-place initialisation of the blocks of rows of a weight, one for each gate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastrnn._networks import Part, parts

Target = TypeVar("Target", Tensor, nn.Module)
Fill = Callable[[Tensor], object]
Gates = int | str | Sequence[str] | None


def set_weight(module: nn.Module, name: str, fill: Fill) -> None:
    """Fill a weight in place; a parametrized one through its parametrization."""
    if parametrize.is_parametrized(module, name):
        value = getattr(module, name).detach().clone()
        fill(value)
        setattr(module, name, value)
    else:
        fill(getattr(module, name))


def fill_recurrent(target: Target, gates: Gates, fill: Fill, zero_bias: bool) -> Target:
    """Fill the recurrent blocks (H, P) of a weight (G·H, P), or of the ``weight_hh`` of all parts of a module.

    With several heads the block of each head is filled separately.

    Args:
        gates: for a tensor its number of blocks (None: 1); for a module the names of the gates (None: all).
        zero_bias: for a module, set the biases of these gates to zero.
    """
    with torch.no_grad():
        if isinstance(target, Tensor):
            for block in _split(target, gates):
                fill(block)
            return target
        for part in parts(target):
            weights: list[tuple[str, tuple[str, ...], Fill]] = [("weight_hh", part.recurrent, _by_head(part, fill))]
            if zero_bias and part.bias:
                weights += [("bias_ih", part.gates, Tensor.zero_), ("bias_hh", part.recurrent, Tensor.zero_)]
            for name, names, what in weights:
                set_weight(part.module, name + part.suffix, partial(_each, names, _chosen(part, gates), what))
    return target


def set_bias(part: Part, gate: str, value: Tensor | float) -> None:
    """Set the sum of the two biases of a gate to `value`, a number or (H)."""

    def fill(block: Tensor) -> None:
        block.copy_(value) if isinstance(value, Tensor) else block.fill_(value)

    set_weight(part.module, "bias_ih" + part.suffix, partial(_each, part.gates, (gate,), fill))
    if gate in part.recurrent:
        set_weight(part.module, "bias_hh" + part.suffix, partial(_each, part.recurrent, (gate,), Tensor.zero_))


def _each(names: tuple[str, ...], chosen: Sequence[str], fill: Fill, weight: Tensor) -> None:
    """Fill the blocks of a weight that belong to the chosen gates."""
    if not names:
        return
    for name, block in zip(names, weight.chunk(len(names)), strict=True):
        if name in chosen:
            fill(block)


def _by_head(part: Part, fill: Fill) -> Fill:
    """Return a function that fills the matrix of each head separately."""
    if part.heads == 1:
        return fill

    def fill_heads(block: Tensor) -> None:
        for matrix in block.chunk(part.heads):
            fill(matrix)

    return fill_heads


def _split(weight: Tensor, gates: Gates) -> Sequence[Tensor]:
    if gates is not None and (not isinstance(gates, int) or isinstance(gates, bool) or gates < 1):
        raise TypeError(f"gates: expected a tensor's number of blocks, a positive integer, got {gates!r}")
    count = 1 if gates is None else gates
    if weight.dim() != 2 or weight.shape[0] % count or weight.numel() == 0:
        raise ValueError(f"tensor: expected shape ({count}·H, P), got {tuple(weight.shape)}")
    return weight.chunk(count)


def _chosen(part: Part, gates: Gates) -> Sequence[str]:
    if gates is None:
        return part.recurrent
    if isinstance(gates, int):
        raise TypeError(f"gates: expected the names of a module's gates, got {gates!r}")
    names = gates.replace(",", " ").split() if isinstance(gates, str) else tuple(gates)
    for name in names:
        if name not in part.recurrent:
            known = ", ".join(part.recurrent) or "none"
            raise ValueError(f"gates: expected gates of {part.kind} with recurrent weights ({known}), got {name!r}")
    return names
