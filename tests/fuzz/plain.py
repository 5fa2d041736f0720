"""Compute the exact value of a call with torch.nn's modules.

They run on whole sequences, or, for what torch.nn lacks (lengths, resets, initial states of segments, clipped
gradients), in a loop over rows, segments and steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .case import Case

States = tuple[Tensor, ...]
TORCH_LAYERS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}
TORCH_CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn_tanh": nn.RNNCell, "rnn_relu": nn.RNNCell}


def as_hx(states: States | None):
    """Arrange states as torch.nn takes them."""
    return None if states is None else states[0] if len(states) == 1 else states


def as_states(hx) -> States:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def layers(
    case: Case, net: nn.Module, x: Tensor, states: States | None, initial: States, lengths, reset, dropout: float
) -> tuple[Tensor, States]:
    """Run all layers of `net`, a torch.nn module, over x (T, B, I).

    `states`: those at the start of the sequence; `initial`: those at the start of later segments; each (L·D, B, P or
        H).
    """
    begin = initial if states is None else states
    counts = None if states is None and not case.learned else 1
    finals: list[States] = []
    for layer in range(case.layers):
        if layer and dropout:
            x = torch.dropout(x, dropout, True)
        sides = []
        for d in range(case.directions):
            k = layer * case.directions + d
            one = single(case, net, layer, d, x.shape[-1])
            sizes = tuple(s[k] for s in begin), tuple(s[k] for s in initial)
            y, last = direction(case, one, x, *sizes, lengths, reset, bool(d), counts is not None)
            sides.append(y)
            finals.append(last)
        x = torch.cat(sides, -1)
    return x, tuple(torch.stack(column) for column in zip(*finals, strict=True))


def single(case: Case, net: nn.Module, layer: int, d: int, width: int) -> Callable:
    """Return `run(x, states)` for one layer in one direction, with the current weights of `net`."""
    options = {"nonlinearity": "relu"} if case.kind == "rnn_relu" else {}
    if case.P:
        options["proj_size"] = case.P
    module = TORCH_LAYERS[case.kind](width, case.H, bias=case.bias, device="meta", **options)
    suffix = f"_l{layer}" + "_reverse" * d
    names = [name.removesuffix("_l0") for name, _ in module.named_parameters()]
    weights = {name + "_l0": getattr(net, name + suffix) for name in names}

    def run(x: Tensor, states: States) -> tuple[Tensor, States]:
        hx = as_hx(tuple(s.unsqueeze(0) for s in states))
        y, last = torch.func.functional_call(module, weights, (x, hx))
        return y, tuple(s.squeeze(0) for s in as_states(last))

    return run


def direction(case: Case, run, x, begin: States, initial: States, lengths, reset, reverse: bool, given: bool):
    """Run one layer in one direction; return its outputs (T, B, ·) and the final states."""
    together = lengths is None and reset is None
    rows = [slice(None)] if together else [slice(b, b + 1) for b in range(x.shape[1])]
    if not rows:
        return run(x, begin)
    outputs, finals = [], []
    for b, rows_b in enumerate(rows):
        n = x.shape[0] if lengths is None else int(lengths[b])
        flags = None if reset is None else reset[:n, b]
        parts = segments(n, flags, reverse)
        states, pieces = tuple(s[rows_b] for s in begin), [x[:0, rows_b, :1].expand(-1, -1, states_width(begin))]
        for first, last, anew in parts:
            if anew:
                states = tuple(s[rows_b] for s in initial)
            y, states = piece(case, run, x[first:last, rows_b], states, reverse)
            pieces.append(y)
        whole = torch.cat([pieces[0], *(reversed(pieces[1:]) if reverse else pieces[1:])]) if n else pieces[0]
        padding = whole.new_zeros(x.shape[0] - n, *whole.shape[1:])
        outputs.append(torch.cat((whole, padding)))
        finals.append(states)
    return torch.cat(outputs, 1), tuple(torch.cat(column) for column in zip(*finals, strict=True))


def states_width(states: States) -> int:
    return states[0].shape[-1]


def segments(n: int, flags: Tensor | None, reverse: bool) -> list[tuple[int, int, bool]]:
    """List each segment in running order: first step, end, and whether it starts from the initial states."""
    if n == 0:
        return []
    borders = [t for t in range(1, n) if flags is not None and flags[t]]
    spans = list(zip([0, *borders], [*borders, n], strict=True))
    if reverse:
        return [(a, b, k > 0) for k, (a, b) in enumerate(reversed(spans))]
    return [(a, b, k > 0 or (flags is not None and bool(flags[0]))) for k, (a, b) in enumerate(spans)]


def piece(case: Case, run, x: Tensor, states: States, reverse: bool) -> tuple[Tensor, States]:
    """Run a segment; step by step if ∂L/∂h is clipped at every step."""
    if not case.clip:
        y, last = run(x.flip(0) if reverse else x, states)
        return y.flip(0) if reverse else y, last
    outputs = []
    for t in range(len(x) - 1, -1, -1) if reverse else range(len(x)):
        _, (h, *rest) = run(x[t : t + 1], states)
        if h.requires_grad:
            h = h.clone()  # a tensor of its own, so that its hook sees the sum of all gradients
            h.register_hook(lambda g: g.clamp(-case.clip, case.clip))
        states = (h, *rest)
        outputs.append(h)
    return torch.stack(outputs[::-1] if reverse else outputs), states
