"""Biases of the gates that determine how long a network remembers."""

from __future__ import annotations

import torch
from torch import Tensor

from fastrnn._networks import Part, parts
from fastrnn._numbers import finite
from fastrnn.init._blocks import Target, set_bias


def forget_bias_(target: Target, value: float = 1.0, *, gate: str | None = None) -> Target:
    """Set the bias of the forget gate, the sum of torch's two biases, so that a network initially remembers.

    Sources: Gers, Schmidhuber and Cummins, Learning to forget, 2000; Jozefowicz, Zaremba and Sutskever, An empirical
    exploration of recurrent network architectures, 2015, who recommend 1.

    Args:
        target: one bias of an LSTM (4·H), in torch's order i, f, g, o; or a module (or model), for the forget gates
            of all layers and directions. The forget gate is f for an LSTM; z for a GRU, which in torch's equations
            ``h' = (1 - z)·n + z·h`` is the weight of the old state; the gate named f for a custom cell.
        value: the bias.
        gate: the name of another gate, for a module.

    Raises:
        TypeError: ``target`` is neither tensor nor module.
        ValueError: the tensor is not (4·H), a module has no biases or no such gate, or the model contains no
            recurrent module.

    Example:
        >>> lstm = fastrnn.init.forget_bias_(fastrnn.LSTM(3, 4), 1.0)
        >>> (lstm.bias_ih_l0 + lstm.bias_hh_l0)[4:8].tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    value = finite(value, "value")
    with torch.no_grad():
        if isinstance(target, Tensor):
            _lstm_gate(target, 1).fill_(value)
            return target
        for part in parts(target):
            set_bias(part, _gate(part, gate if gate is not None else _forget_gate(part, "gate")), value)
    return target


def chrono_(
    target: Target,
    t_max: float,
    *,
    forget: str | None = None,
    input: str | None = None,
    generator: torch.Generator | None = None,
) -> Target:
    """Set gate biases so that the memory lengths of the units spread between 1 and ``t_max`` time steps.

    ``b_f = log u`` with u uniform in (1, T_max - 1), one u for each unit, and ``b_i = -b_f``.

    Source: Tallec and Ollivier, Can recurrent neural networks warp time?, 2018 (arXiv:1804.11188). For the GRU with
    torch's z, the weight of the old state, ``b_z = log u`` (the paper's z is the weight of the new one).

    Args:
        target: one bias of an LSTM (4·H), in torch's order i, f, g, o; or a module (or model), for all layers and
            directions. The gates are f and i of an LSTM; z of a GRU; for a custom cell those named f and, if it has
            one, i.
        t_max: the longest expected dependency, in time steps; more than 2.
        forget: for a module, the name of the gate that weights the old state; it gets ``log u``.
        input: for a module, the name of the gate that weights the new values; it gets ``-log u``. If one gate does
            both, as in ``h' = (1 - z)·h + z·n``, pass only ``input="z"``.
        generator: the random number generator; None: torch's default.

    Raises:
        TypeError: ``target`` is neither tensor nor module.
        ValueError: ``t_max`` is not more than 2; otherwise as `forget_bias_`.

    Example:
        >>> lstm = fastrnn.init.chrono_(fastrnn.LSTM(3, 4), t_max=100)
        >>> bool((lstm.bias_ih_l0[4:8] >= 0).all())  # the forget gate
        True
    """
    t_max = finite(t_max, "t_max", "more than 2 steps")
    if t_max <= 2:
        raise ValueError(f"t_max: expected more than 2 steps, got {t_max:g}")
    with torch.no_grad():
        if isinstance(target, Tensor):
            forgotten, let_in = _lstm_gate(target, 1), _lstm_gate(target, 0)
            value = _log_uniform(forgotten, t_max, generator)
            forgotten.copy_(value)
            let_in.copy_(-value)
            return target
        for part in parts(target):
            gates = (forget, input)
            if forget is None and input is None:
                gates = (_forget_gate(part, "forget"), "i" if "i" in part.gates else None)
            names = [None if name is None else _gate(part, name) for name in gates]
            bias = getattr(part.module, "bias_ih" + part.suffix)
            value = _log_uniform(bias[: bias.shape[0] // len(part.gates)], t_max, generator)
            for name, values in zip(names, (value, -value), strict=True):
                if name is not None:
                    set_bias(part, name, values)
    return target


def _log_uniform(like: Tensor, t_max: float, generator: torch.Generator | None) -> Tensor:
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.empty(like.shape, dtype=dtype, device=like.device).uniform_(1, t_max - 1, generator=generator).log_()


def _lstm_gate(bias: Tensor, k: int) -> Tensor:
    if bias.dim() != 1 or bias.shape[0] % 4 or bias.shape[0] == 0:
        raise ValueError(f"tensor: expected the bias of an LSTM, (4·H), got {tuple(bias.shape)}")
    return bias.chunk(4)[k]


def _forget_gate(part: Part, keyword: str) -> str:
    name = "z" if part.kind == "GRU" else "f"
    if name not in part.gates:
        other = ", or the one that weights the new values, input=" if keyword == "forget" else ""
        raise ValueError(
            f"module: expected a cell with a gate {name}, got {part.kind} with the gates {', '.join(part.gates)}; "
            f"name the one that weights the old state, {keyword}={other}"
        )
    return name


def _gate(part: Part, name: str) -> str:
    if not part.bias:
        raise ValueError(f"module: expected a network with biases, got {part.kind} with bias=False")
    if name not in part.gates:
        raise ValueError(f"gate: expected a gate of {part.kind} ({', '.join(part.gates)}), got {name!r}")
    return name
