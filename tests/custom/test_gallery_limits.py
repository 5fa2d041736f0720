"""Every cell of the gallery where its gates are far open or closed: kernels and fallback in float32, against the
paper's equations in float64.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from compilers import needs_compiler
from gallery_reference import REFERENCES
from gallery_reference import run as run_reference

FAR = (-1e4, -100.0, 0.0, 100.0, 1e4)
ROWS, H = 2000, 3
#: Gates that are nearly closed: where σ begins to lose digits, and where it underflows.
NEAR = (-1e4, -104.0, -90.0, -88.0, -40.0, -39.0, -17.0, -1.0, 0.0, 1.0, 17.0, 40.0, 90.0)


def pre_activations(gates: int, values: tuple[float, ...]) -> torch.Tensor:
    """All combinations of these values of the gates, or some of them, (1, rows, gates·H): of all units of a row alike,
    and of each unit another.
    """
    generator = torch.Generator().manual_seed(gates)
    choice = torch.tensor(values)
    if len(values) ** gates <= ROWS:
        alike = torch.tensor(list(itertools.product(values, repeat=gates)))
    else:
        alike = choice[torch.randint(len(values), (ROWS, gates), generator=generator)]
    apart = choice[torch.randint(len(values), (ROWS // 2, gates * H), generator=generator)]
    return torch.cat((alike[..., None].expand(-1, -1, H).flatten(1), apart))[None]


def coarse(like: torch.Tensor) -> torch.Tensor:
    """Numbers whose sums with those above are exact in float32: what is measured is the step, not its input."""
    return (8 * torch.randn_like(like)).round() / 8


def problem(cell, values):
    """A network whose input are its gates before their activation, but for a small part of h; one step in float32."""
    torch.manual_seed(3)
    gates = len(cell.gates)
    network = cell(gates * H, H).eval()  # a cell with masks has their means then
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.startswith("weight_ih"):
                parameter.copy_(torch.eye(gates * H))
            elif name.startswith("bias_ih"):
                parameter.zero_()
            elif not name.startswith("alpha"):
                parameter.copy_(coarse(parameter))
    x = pre_activations(gates, values)
    states = [coarse(torch.empty(1, x.shape[1], H)) for _ in cell.states]
    if "n" in cell.states:  # a normaliser is a sum of positive gates
        states[cell.states.index("n")].abs_().add_(0.5)
    seeds = [torch.randn(1, x.shape[1], H), *(torch.randn(1, x.shape[1], H) for _ in states)]
    return network, [x, *states], seeds


def results(network, values, seeds, run, dtype):
    """Outputs, last states, and gradients of the input, the initial states and the parameters."""
    network = network.to(dtype)
    leaves = [v.to(dtype).requires_grad_() for v in values]
    found = run(network, leaves)
    names = ["x", *(f"{s}0" for s in network.cell.states), *dict(network.named_parameters())]
    wanted = [*leaves, *network.parameters()]
    gradients = torch.autograd.grad(found, wanted, [s.to(dtype) for s in seeds], allow_unused=True)
    named = dict(zip(("y", *network.cell.states), found, strict=True))
    named |= {
        f"d{n}": torch.zeros_like(w) if g is None else g for n, w, g in zip(names, wanted, gradients, strict=True)
    }
    return {name: value.detach() for name, value in named.items()}


def ours(backend):
    def run(network, leaves):
        x, *states = leaves
        y, last = network(x, tuple(states) if len(states) > 1 else states[0], backend=backend)
        return (y, *last) if isinstance(last, tuple) else (y, last)

    return run


def of_the_paper(network, leaves):
    y, last = run_reference(network.cell.name, network, leaves[0], tuple(s[0] for s in leaves[1:]))
    return (y, *(s[None] for s in last))


@needs_compiler
@pytest.mark.parametrize("values", [FAR, NEAR], ids=["far", "near"])
@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("name", REFERENCES)
def test_gates_at_their_limits(CELLS, name, backend, values):
    network, leaves, seeds = problem(CELLS[name], values)
    found = results(network, leaves, seeds, ours(backend), torch.float32)
    torchs = results(network, leaves, seeds, of_the_paper, torch.float32)
    right = results(network, leaves, seeds, of_the_paper, torch.float64)
    for key, value in right.items():
        assert found[key].isfinite().all(), key
        if value.numel():  # there is a recurrent weight
            allowed = 2 * (torchs[key] - value).abs() + 1e-5 * (1 + value.abs().amax(-1, keepdim=True))
            if value.dim() == 3:  # of a row: some of its gates are numbers that are added and subtracted
                allowed += 2 * torch.finfo(torch.float32).eps * leaves[0].abs().amax(-1, keepdim=True)
            wrong = ((found[key] - value).abs() > allowed).nonzero()[:5].tolist()
            rows = [(i, found[key][tuple(i)].item(), value[tuple(i)].item()) for i in wrong]
            assert not rows, f"{key}: index, found, expected: {rows}"


@needs_compiler
@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("name", ["slstm", "slstm_sigmoid"])
def test_sequences_begin_at_any_gate(CELLS, name, backend):
    """With n = 0, the first output is σ(o~)*tanh(z~), whatever i~ and f~ are."""
    network, (x, *_), _ = problem(CELLS[name], FAR)
    x.requires_grad_()
    y, _ = network(x[:1], backend=backend)
    (dx,) = torch.autograd.grad(y.sum(), x)
    gates = dict(
        zip(CELLS[name].gates, (x.detach()[0].double() + network.bias_hh_l0.detach()).chunk(4, -1), strict=True)
    )
    torch.testing.assert_close(y[0].detach(), (gates["o"].sigmoid() * gates["z"].tanh()).float())
    assert dx.isfinite().all()


@needs_compiler
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_min_lstm_with_closed_gates(CELLS, backend):
    """f' = i' = ½ where both are closed alike, and e/(1 + e) where f~ is larger by 1."""
    network = CELLS["min_lstm"](3, 1)
    with torch.no_grad():
        network.weight_ih_l0.copy_(torch.eye(3))
        network.bias_ih_l0.zero_()
    x = torch.tensor([[[f + d, f, 0.3] for f in (-50.0, -90.0, -104.0, -1e4) for d in (0.0, 1.0)]], requires_grad=True)
    y, _ = network(x, torch.full((1, 8, 1), 3.0), backend=backend)
    share = torch.tensor([0.5, 1 / (1 + torch.e**-1)], dtype=torch.float64).repeat(4)
    torch.testing.assert_close(y[0, :, 0].double(), 3 * share + 0.3 * (1 - share), rtol=1e-6, atol=0)
    (dx,) = torch.autograd.grad(y.sum(), x)
    slope = share * (1 - share) * 2.7
    torch.testing.assert_close(dx[0].double(), torch.stack((slope, -slope, 1 - share), 1), rtol=2e-6, atol=0)
