"""Custom cells for the tests, and networks of them as plain loops over rows and steps.

Imported by the fixture `cells` only: cells defined here join fastrnn.cells.CELLS, over which other tests run.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import Tensor

import fastrnn


@fastrnn.cell(gates="i f g o", states="h c")
def lstm(x, r, s):
    i, f, o = torch.sigmoid(x.i + r.i), torch.sigmoid(x.f + r.f), torch.sigmoid(x.o + r.o)
    c = f * s.c + i * torch.tanh(x.g + r.g)
    return o * torch.tanh(c), c


@fastrnn.cell(gates=["r", "z", "n"])
def gru(x, r, s):
    n = torch.tanh(x.n + torch.sigmoid(x.r + r.r) * r.n)
    return n + torch.sigmoid(x.z + r.z) * (s.h - n)


@fastrnn.cell(gates="a")
def rnn_tanh(x, r, s):
    return torch.tanh(x.a + r.a)


@fastrnn.cell(gates="a")
def rnn_relu(x, r, s):
    return {"h": torch.relu(x.a + r.a)}


@fastrnn.cell(gates="f, u", states=("h", "m"), parameters={"slope": 0.3, "decay": lambda t: t.uniform_(0.1, 0.9)})
def mixed(x, r, s, p):
    """Two states, per-unit parameters, gradients of x and r that differ, and old states that are read."""
    f = torch.sigmoid(x.f + r.f + p.slope * s.m)
    m = f * s.m + (1 - f) * torch.tanh(x.u + f * r.u)
    return torch.tanh(m) * torch.exp(-p.decay) + 0.25 * s.h, m


ALL = (lstm, gru, rnn_tanh, rnn_relu, mixed)


def row(net, suffix: str, x: Tensor, first: list[Tensor], reset: Tensor | None, reverse: bool):
    """Compute one row's outputs (T, H) and final states (H), from x (T, I); `reset` (T) starts new segments."""
    cell, named = net.cell, dict(net.named_parameters())
    w_ih, w_hh = named["weight_ih" + suffix], named["weight_hh" + suffix]
    zero = torch.zeros(len(w_ih), dtype=x.dtype)
    b_ih, b_hh = (named.get(f"bias_{kind}{suffix}", zero) for kind in ("ih", "hh"))
    p = SimpleNamespace(**{name: named[name + suffix] for name in cell.parameters})
    arguments = (p,) if cell.parameters else ()
    states, outputs = list(first), [x] * len(x)
    for t in range(len(x) - 1, -1, -1) if reverse else range(len(x)):
        begins = t + 1 if reverse else t
        if reset is not None and begins < len(x) and reset[begins]:
            states = list(first)
        wx = (w_ih @ x[t] + b_ih).chunk(len(cell.gates))
        rh = (w_hh @ states[0] + b_hh).chunk(len(cell.gates))
        named_x, named_r = (SimpleNamespace(**dict(zip(cell.gates, v, strict=True))) for v in (wx, rh))
        new = cell.step(named_x, named_r, SimpleNamespace(**dict(zip(cell.states, states, strict=True))), *arguments)
        new = tuple(new.values()) if isinstance(new, dict) else new if isinstance(new, tuple) else (new,)
        states, outputs[t] = list(new), new[0]
    return (torch.stack(outputs) if outputs else x.new_zeros(0, net.hidden_size)), states


def network(net, x: Tensor, hx=None, lengths=None, reset: Tensor | None = None):
    """Compute the expected `net`(x) for x (T, B, I): outputs (T, B, D·H) and the final states, (L·D, B, H) each."""
    T, B, H = x.shape[0], x.shape[1], net.hidden_size
    directions = 2 if net.bidirectional else 1
    count = len(net.cell.states)
    if hx is None:
        hx = [x.new_zeros(net.num_layers * directions, B, H)] * count
    finals: list[list[Tensor]] = [[] for _ in range(count)]
    for layer in range(net.num_layers):
        sides = []
        for d in range(directions):
            suffix = f"_l{layer}" + "_reverse" * d
            rows, lasts = [], []
            for b in range(B):
                n = T if lengths is None else int(lengths[b])
                first = [s[layer * directions + d, b] for s in hx]
                y, last = row(net, suffix, x[:n, b], first, None if reset is None else reset[:n, b], bool(d))
                rows.append(torch.cat((y, y.new_zeros(T - n, H))))
                lasts.append(last)
            sides.append(torch.stack(rows, 1))
            for k in range(count):
                finals[k].append(torch.stack([last[k] for last in lasts]))
        x = torch.cat(sides, -1)
    return x, tuple(torch.stack(f) for f in finals)
