"""Random problems for the tests: one layer, one direction, in every layout."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from fastrnn.cells import CELLS, find
from fastrnn.functional import LayerWeights, sequence

#: Every row layout. "lengths" includes rows of length 0.
LAYOUTS = ("plain", "packed", "lengths", "reset", "lengths+reset")

#: (cell, projected size) of every built-in cell, with and without a projection.
CASES = [(cell, P) for cell in CELLS for P in ((0, 2) if CELLS[cell].projectable else (0,))]


@dataclass
class Problem:
    """A layer and its input. Leaves are independent of dtype: rounded from the same float64 draws."""

    cell: str
    steps: int
    batch: int
    inputs: int
    hidden: int
    projected: int = 0
    layout: str = "plain"
    reverse: bool = False
    bias: bool = True
    initial: bool = True
    dtype: torch.dtype = torch.float64
    seed: int = 0
    x: Tensor = field(init=False)
    weights: LayerWeights = field(init=False)
    states: tuple[Tensor, ...] | None = field(init=False)
    arguments: dict = field(init=False)

    def __post_init__(self):
        spec, g = find(self.cell), torch.Generator().manual_seed(self.seed)
        T, B, H, P = self.steps, self.batch, self.hidden, self.projected or self.hidden
        bound = self.hidden**-0.5

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            values = (2 * torch.rand(shape, generator=g, dtype=torch.float64) - 1) * scale
            return values.to(self.dtype).requires_grad_()

        self.arguments = {"reverse": self.reverse}
        rows: tuple[int, ...] = (T, B)
        if self.layout == "packed":
            lengths = torch.randint(1, T + 1, (B,), generator=g).sort(descending=True)[0]
            lengths[0] = T
            sizes = (torch.arange(T).unsqueeze(1) < lengths).sum(1)
            self.arguments["batch_sizes"], rows = sizes, (int(sizes.sum()),)
        if "lengths" in self.layout:
            self.arguments["lengths"] = torch.randint(0, T + 1, (B,), generator=g)
        if "reset" in self.layout:
            self.arguments["reset"] = torch.rand(T, B, generator=g) < 0.3
        GH = spec.gates * H
        self.weights = LayerWeights(
            draw(GH, self.inputs, scale=bound),
            draw(GH, P, scale=bound),
            draw(GH, scale=bound) if self.bias else None,
            draw(GH, scale=bound) if self.bias else None,
            draw(P, H, scale=bound) if P != H else None,
        )
        self.x = draw(*rows, self.inputs)
        self.states = tuple(draw(B, H if k else P) for k in range(len(spec.states))) if self.initial else None

    def leaves(self) -> dict[str, Tensor]:
        """Return everything that has a gradient, by name."""
        named = {"x": self.x, **self.weights._asdict()}
        for name, s in zip(find(self.cell).states, self.states or (), strict=False):
            named[f"{name}0"] = s
        return {name: t for name, t in named.items() if t is not None}

    def seeds(self, outputs: tuple[Tensor, ...]) -> list[Tensor]:
        """Draw random ∂L/∂output, the same for every dtype."""
        g = torch.Generator().manual_seed(self.seed + 1)
        return [(2 * torch.rand(o.shape, generator=g, dtype=torch.float64) - 1).to(o.dtype) for o in outputs]

    def run(self, backend: str = "fused") -> dict[str, Tensor]:
        """Return the outputs and the gradients of all leaves, by name."""
        y, finals = sequence(self.cell, self.x, self.weights, self.states, backend=backend, **self.arguments)
        outputs = (y, *finals)
        leaves = self.leaves()
        grads = torch.autograd.grad(outputs, list(leaves.values()), self.seeds(outputs), allow_unused=True)
        names = ["y", *(f"{s}_n" for s in find(self.cell).states)]
        found = dict(zip(names, (o.detach() for o in outputs), strict=True))
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True):
            found[f"d{name}"] = torch.zeros_like(leaf) if grad is None else grad
        return found


def error(value: Tensor, exact: Tensor) -> float:
    """Return the root mean square of the difference, relative to that of the exact values."""
    if exact.numel() == 0:
        return 0.0
    exact = exact.double()
    scale = exact.square().mean().sqrt().item()
    return (value.double() - exact).square().mean().sqrt().item() / (scale or 1.0)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    """Fail with the name of the first tensor that differs."""
    for name, exact in wanted.items():
        assert found[name].shape == exact.shape, name
        difference = error(found[name], exact)
        assert difference <= tolerance, f"{name}: relative error {difference:.2e}, allowed {tolerance:.2e}"


def flat(p: Problem):
    """Return the problem as a function of its leaves, and the leaves."""
    leaves = p.leaves()
    names = list(leaves)

    def run(*values, backend="fused"):
        given = dict(zip(names, values, strict=True))
        states = tuple(given[f"{s}0"] for s in CELLS[p.cell].states) if p.initial else None
        weights = LayerWeights(*(given.get(n) for n in LayerWeights._fields))
        y, finals = sequence(p.cell, given["x"], weights, states, backend=backend, **p.arguments)
        return (y, *finals)

    return run, list(leaves.values())
