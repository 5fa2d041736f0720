"""Gradient flow through time as numbers, for several networks to be compared.

All results are numbers, strings or lists, so that they can be written as JSON: see `Run`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.inspect.flow import gradient_flow
from fastrnn.inspect.initial import initialise, parsed
from fastrnn.inspect.layers import as_input, as_states, layers_of
from fastrnn.inspect.states import follow
from fastrnn.inspect.step import eigenvalues, spectrum, step_jacobian

_BUILT_IN = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@dataclass
class Run:
    """Gradient flow of one network, for its last layer in the forward direction.

    Attributes:
        cell, init: the names of the cell and of its initialisation, or the checkpoint's name.
        loss, value: a description of the loss, and its value.
        norms: by state, ‖∂L/∂state‖ by lag, mean over batch rows: T+1 numbers, the first after the last step.
        heat: (T+1, H) mean over batch rows of abs(∂L/∂h), the initial state first.
        recurrent: by gate, the eigenvalues of R's block as [real, imaginary] pairs.
        step: the eigenvalues of the Jacobian of the step in the middle of the sequence, for the first batch row.
        before, after: the norm of the gradient of all parameters, for each of several batches, before and after
            clipping to ``clip``.

    Example:
        >>> run = fastrnn.inspect.compare(["lstm"], steps=10, hidden=4, batch=2, batches=1)[0]
        >>> run.cell, len(run.norms["h"])
        ('lstm', 11)
    """

    cell: str
    init: str
    loss: str
    value: float
    norms: dict[str, list[float]]
    heat: list[list[float]]
    recurrent: dict[str, list[list[float]]]
    step: list[list[float]]
    before: list[float]
    after: list[float]
    clip: float

    @property
    def label(self) -> str:
        return f"{self.cell}, {self.init}"

    def as_dict(self) -> dict[str, Any]:
        """Return a dict for JSON; numbers that are not finite (a gradient that overflowed) become null."""
        return _finite(asdict(self))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list) else value


def compare(
    cells: Sequence[str],
    inits: Sequence[str] = ("default",),
    *,
    steps: int = 100,
    hidden: int = 64,
    batch: int = 16,
    inputs: int = 16,
    batches: int = 20,
    clip: float = 1.0,
    seed: int = 0,
) -> list[Run]:
    """Compute the gradient flow of new one-layer networks, every cell with every initialisation.

    It is computed in float64 on normally distributed input. The loss is the sum of the last h over its units, mean over
    batch rows.

    Args:
        cells: lstm, gru, rnn_tanh, rnn_relu, or names of `fastrnn.gallery`.
        inits: of `fastrnn.inspect.initial`.
        steps, batch, inputs, hidden: T, B, I and H.
        batches: the number of batches for which the norm of the parameters' gradient is taken.
        clip: the norm to clip them to.
        seed: the seed of weights and input; all networks get the same input.

    Raises:
        ValueError: there is no such cell or initialisation, or a number is out of range.

    Example:
        >>> runs = fastrnn.inspect.compare(["lstm", "gru"], steps=10, hidden=4, batch=2, batches=1)
        >>> [run.cell for run in runs]
        ['lstm', 'gru']
    """
    sizes = {"steps": steps, "hidden": hidden, "batch": batch, "inputs": inputs, "batches": batches}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}: expected at least 1, got {size}")
    check_clip(clip)
    for init in inits:
        parsed(init)
    made = {cell: _maker(cell) for cell in cells}
    runs = []
    with torch.random.fork_rng([]):
        for cell in cells:
            for init in inits:
                torch.manual_seed(seed)
                draws = [torch.randn(steps, batch, inputs, dtype=torch.float64) for _ in range(batches)]
                module = made[cell](inputs, hidden)
                initialise(module, init)
                runs.append(_fresh(cell, init, module, draws, clip))
    return runs


def check_clip(clip: float) -> None:
    """Raise ValueError unless ``clip`` is a positive norm."""
    if not clip > 0:
        raise ValueError(f"clip: expected more than 0, got {clip}")


def _maker(cell: str) -> Callable[[int, int], nn.Module]:
    if cell in _BUILT_IN:
        options: dict[str, Any] = {"dtype": torch.float64}
        if cell.startswith("rnn_"):
            return lambda inputs, hidden: fastrnn.RNN(inputs, hidden, nonlinearity=cell[4:], **options)
        return lambda inputs, hidden: {"lstm": fastrnn.LSTM, "gru": fastrnn.GRU}[cell](inputs, hidden, **options)
    from fastrnn.gallery import CELLS as GALLERY

    if cell not in GALLERY:
        raise ValueError(f"cell: expected one of {', '.join((*_BUILT_IN, *GALLERY))}, got {cell!r}")
    return lambda inputs, hidden: GALLERY[cell](inputs, hidden, dtype=torch.float64)


def _fresh(cell: str, init: str, module: nn.Module, draws: list[Tensor], clip: float) -> Run:
    def last(y: Tensor) -> Tensor:
        return y[-1].sum(-1).mean()

    before, after = [], []
    for x in draws:
        module.zero_grad()
        last(module(x)[0]).backward()
        both = clipped(module, clip)
        before.append(both[0])
        after.append(both[1])
    return run_of(module, draws[0], last, cell, init, "sum of the last h, mean over batch rows", before, after, clip)


def clipped(module: nn.Module, clip: float) -> tuple[float, float]:
    """Clip the gradient of all parameters, and return its norm before and after."""
    before = float(nn.utils.clip_grad_norm_(module.parameters(), clip))
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return before, float(nn.utils.get_total_norm(gradients))


def run_of(
    module: nn.Module,
    x: Tensor,
    loss: Callable[[Tensor], Tensor],
    cell: str,
    init: str,
    words: str,
    before: list[float],
    after: list[float],
    clip: float,
) -> Run:
    """Return the `Run` of a module with one direction on x (T, B, I), given norms taken before."""
    flow = gradient_flow(module, x, loss=loss)
    gradients = flow.layers[-1]
    layers = layers_of(module)
    layer = layers[-1]
    with torch.no_grad():
        followed = follow(module, x)
        below = as_input(module, x) if len(followed) == 1 else followed[-2].states["h"]
        middle = x.shape[0] // 2
        wx = layer.columns(below[middle, :1].unsqueeze(0)).squeeze(0)
        start = as_states(module, layers, None, as_input(module, x))[-1]
        states = tuple(
            layer.before(s0, s)[middle, :1] for s0, s in zip(start, followed[-1].states.values(), strict=True)
        )
    jacobian = step_jacobian(layer, wx, states)[0]
    return Run(
        cell=cell,
        init=init,
        loss=words,
        value=flow.loss,
        norms={state: gradients.norms(state).tolist() for state in gradients.gradients},
        heat=gradients.gradients["h"].abs().mean(1).tolist(),
        recurrent={s.gate: pairs(s.eigenvalues) for s in spectrum(module) if s.layer == layer.name},
        step=pairs(eigenvalues(jacobian)) if bool(torch.isfinite(jacobian).all()) else [],
        before=before,
        after=after,
        clip=clip,
    )


def pairs(values: Tensor) -> list[list[float]]:
    """Return complex numbers as [real, imaginary]."""
    return torch.view_as_real(values.resolve_conj()).tolist()
