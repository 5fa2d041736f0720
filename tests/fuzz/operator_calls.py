"""Arguments of the raw operators for a case, in guarded memory, and the results of the plain PyTorch reference."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastrnn import cells, reference

from .guarded import Memory
from .operator_case import OperatorCase

#: The arguments of each operator in the order of its schema (csrc/ops/operators.h).
_WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")
_LAYOUT = ("batch_sizes", "lengths", "reset", "reverse")
_RESULTS = ("states", "y", "reserve", *_LAYOUT)
ARGUMENTS = {
    "sequence_forward": ("cell", "x", *_WEIGHTS, "states", *_LAYOUT, "training", "restart"),
    "layer_backward": (
        "cell",
        "grad_y",
        "grad_final",
        "x",
        "w_ih",
        "w_hh",
        "w_hr",
        *_RESULTS,
        "wanted",
        "restart",
        "clip",
    ),
    "layer": ("cell", "x", *_WEIGHTS, "states", *_LAYOUT, "restart", "clip"),
}


@dataclass
class Problem:
    """The tensors of one layer in one direction, in ordinary memory, rounded to the dtype of the case."""

    case: OperatorCase
    x: Tensor = field(init=False)
    weights: tuple[Tensor | None, ...] = field(init=False)
    states: tuple[Tensor, ...] = field(init=False)
    batch_sizes: Tensor | None = None
    lengths: Tensor | None = None
    reset: Tensor | None = None

    def __post_init__(self) -> None:
        c, self.g = self.case, torch.Generator().manual_seed(self.case.values)
        self.dtype = getattr(torch, c.dtype)
        self.spec = cells.find(c.cell)
        G, P = self.spec.gates, c.P or c.H
        rows: tuple[int, ...] = (c.T, c.B)
        if c.layout == "packed":
            n = torch.randint(1, c.T + 1, (c.B,), generator=self.g).sort(descending=True)[0]
            n[0] = c.T
            self.batch_sizes = (torch.arange(c.T).unsqueeze(1) < n).sum(1)
            rows = (int(n.sum()),)
        if c.lengths:
            self.lengths = torch.randint(0, c.T + 1, (c.B,), generator=self.g)
        if c.reset:
            self.reset = torch.rand(c.T, c.B, generator=self.g) < 0.3
        self.x = self.draw(*rows, c.I if c.w_ih else G * c.H)
        bound = c.H**-0.5
        self.weights = (
            self.draw(G * c.H, c.I, scale=bound) if c.w_ih else None,
            self.draw(G * c.H, P, scale=bound),
            self.draw(G * c.H, scale=bound) if c.b_ih else None,
            self.draw(G * c.H, scale=bound) if c.b_hh else None,
            self.draw(P, c.H, scale=bound) if c.P else None,
        )
        widths = [P if k == 0 else c.H for k in range(len(self.spec.states))]
        self.states = tuple(self.draw(c.B, w) for w in widths) if c.states else ()
        self.restart = tuple(self.draw(c.B, w) for w in widths) if c.restart else ()
        self.grad_y = self.draw(*rows, P)
        self.grad_final = [self.draw(c.B, w) for w in widths]
        r = random.Random(c.grads)
        if c.grads:
            self.grad_y = self.grad_y if r.random() < 0.6 else None
            self.grad_final = [g if r.random() < 0.6 else None for g in self.grad_final]

    def draw(self, *shape: int, scale: float = 1.0) -> Tensor:
        values = (2 * torch.rand(shape, generator=self.g, dtype=torch.float64) - 1) * scale
        return values.to(self.dtype)

    def arguments(self) -> dict:
        """Return the arguments of the forward operator, by name."""
        c = self.case
        found = dict(zip(_WEIGHTS, self.weights, strict=True))
        found |= {
            "cell": c.cell,
            "clip": c.clip,
            "restart": list(self.restart),
            "x": self.x,
            "states": list(self.states),
            "batch_sizes": self.batch_sizes,
        }
        return found | {"lengths": self.lengths, "reset": self.reset, "reverse": c.reverse, "training": c.training}

    def backward_arguments(self) -> dict:
        """Return the arguments of the backward operators, by name, after a forward pass in ordinary memory."""
        c, found = self.case, self.arguments() | {"training": True}
        forward = torch.ops.fastrnn.sequence_forward(*(found[k] for k in ARGUMENTS["sequence_forward"]))
        found |= {"y": forward[0], "reserve": forward[2], "grad_y": self.grad_y, "grad_final": self.grad_final}
        return found | {"wanted": [bool(c.wanted >> k & 1) for k in range(11)]}

    def right(self) -> tuple[list[Tensor], dict[str, Tensor | None]]:
        """Compute outputs and final states, and gradients by name, in float64 with the reference."""
        c = self.case
        wide = lambda t: None if t is None else t.double().requires_grad_()  # noqa: E731
        x, weights, states = wide(self.x), tuple(map(wide, self.weights)), tuple(map(wide, self.states))
        restart = tuple(map(wide, self.restart))
        hidden = c.H
        P = c.P or c.H
        initial = states or reference.zero_states(self.spec, x, c.B, hidden, P)
        layout = (self.batch_sizes, self.lengths, self.reset, c.reverse)
        y, finals = reference.sequence(self.spec, x, weights, initial, *layout, restart=restart, clip=c.clip)
        outputs = [y, *finals]
        seeds = [
            (o, g.double()) for o, g in zip(outputs, [self.grad_y, *self.grad_final], strict=True) if g is not None
        ]
        leaves = {"x": x, **dict(zip(_WEIGHTS, weights, strict=True))}
        leaves |= {f"state {k}": s for k, s in enumerate(states)}
        leaves |= {f"restart {k}": s for k, s in enumerate(restart)}
        there = {name: leaf for name, leaf in leaves.items() if leaf is not None}
        if not seeds:
            return outputs, {name: torch.zeros_like(leaf) for name, leaf in there.items()}
        roots, values = zip(*seeds, strict=True)
        gradients = torch.autograd.grad(roots, list(there.values()), values, allow_unused=True)
        return outputs, {
            name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(there.items(), gradients, strict=True)
        }


def guarded(case: OperatorCase, memory: Memory, arguments: dict) -> dict:
    """Copy the tensors of `arguments` into guarded memory, laid out as the case says."""
    places, ways = random.Random(case.placing), random.Random(case.strides)

    def place(value):
        if isinstance(value, list | tuple):
            return [place(v) for v in value]
        if not isinstance(value, Tensor) or value.layout is not torch.strided or value.device.type != "cpu":
            return value
        if value.requires_grad or value.is_neg() or value._is_zerotensor() or value.is_conj():
            return value
        at_end = case.placing == 0 or places.random() < 0.5
        return memory.place(value, at_end, _strides(value, ways) if case.strides else None)

    return {name: place(value) for name, value in arguments.items()}


def _strides(t: Tensor, r: random.Random) -> tuple[int, ...]:
    """Draw strides without overlap: dimensions in another order, or with gaps."""
    order = list(range(t.dim()))
    if r.random() < 0.5:
        r.shuffle(order)
    strides, step = [0] * t.dim(), r.choice((1, 1, 2, 3))
    for d in reversed(order):
        strides[d] = step
        step *= max(1, t.shape[d])
        step += r.choice((0, 0, 1))
    return tuple(strides)
