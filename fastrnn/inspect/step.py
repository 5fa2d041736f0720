"""The Jacobian of a step, and the spectrum of recurrent matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn.inspect.layers import Layer, States, layers_of


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues and singular values of one recurrent matrix.

    Attributes:
        layer: ``"layer 1"``, ``"layer 1, reverse"``, …
        gate: the block's name: i, f, g, o of an LSTM; r, z, n of a GRU; h of an Elman network; those of a
            custom cell.
        eigenvalues: (H) complex, the largest modulus first. With a projection those of R_k·P, (H, H).
        singular_values: (H), the largest first.
    """

    layer: str
    gate: str
    eigenvalues: Tensor
    singular_values: Tensor

    @property
    def radius(self) -> float:
        """The spectral radius, the largest modulus of an eigenvalue."""
        return float(self.eigenvalues[0].abs())


def spectrum(module: nn.Module) -> list[Spectrum]:
    """Eigenvalues and singular values of the recurrent matrix of each layer, direction and gate, (H, H) each.

    Args:
        module: as for `gradient_flow`.

    Raises:
        TypeError: ``module`` is of another kind.
        ValueError: it has more than one head.

    Example:
        >>> [matrix.gate for matrix in fastrnn.inspect.spectrum(fastrnn.GRU(3, 4))]
        ['r', 'z', 'n']
    """
    found = []
    for layer in layers_of(module):
        for gate, matrix in matrices(layer).items():
            values = eigenvalues(matrix)
            found.append(Spectrum(layer.name, gate, values, torch.linalg.svdvals(matrix)))
    return found


def matrices(layer: Layer) -> dict[str, Tensor]:
    """The recurrent matrices (H, H) of a layer, by gate."""
    w_hh, w_hr, H = layer.weights.w_hh.detach(), layer.weights.w_hr, layer.hidden
    blocks = [w_hh[k * H : (k + 1) * H] for k in range(len(layer.blocks))]
    if w_hr is not None:
        blocks = [block @ w_hr.detach() for block in blocks]
    return dict(zip(layer.blocks, (_wide(block) for block in blocks), strict=True))


def _wide(matrix: Tensor) -> Tensor:
    """In a format that the library's decompositions take."""
    return matrix if matrix.dtype is torch.float64 else matrix.float()


def eigenvalues(matrix: Tensor) -> Tensor:
    """Of a square matrix, complex, the largest modulus first."""
    found = torch.linalg.eigvals(_wide(matrix))
    return found[found.abs().argsort(descending=True)]


def jacobian(module: nn.Module, x: Tensor, h: Any = None, *, layer: int = 0) -> Tensor:
    """Compute ∂(new states)/∂(old states) of one step of one layer.

    The states stand one behind the other, h first: of an LSTM rows and columns are those of h, then those of c.

    Args:
        module: as for `gradient_flow`.
        x: (B, I) or (I), the layer's input at this step.
        h: the layer's old states, (B, ·) or without B each: a tensor, or a tuple if the cell has several; None for
            zeros.
        layer: which layer; with two directions 2·k is layer k forward and 2·k + 1 its reverse.

    Returns:
        (B, N, N), or (N, N) if x has no B, where N is the width of all states together.

    Raises:
        TypeError: ``module`` is of another kind.
        ValueError: x or h is of another shape, or there is no such layer.

    Example:
        >>> fastrnn.inspect.jacobian(fastrnn.GRU(3, 4), torch.randn(2, 3), torch.zeros(2, 4)).shape
        torch.Size([2, 4, 4])
    """
    layers = layers_of(module)
    if not 0 <= layer < len(layers):
        raise ValueError(f"layer: expected one of 0 to {len(layers) - 1}, got {layer}")
    one = layers[layer]
    assert one.weights.w_ih is not None
    I = one.weights.w_ih.shape[1]  # noqa: E741
    if not isinstance(x, Tensor) or x.dim() not in (1, 2) or x.shape[-1] != I:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: expected (B, {I}) or ({I}), got {got}")
    rows = x.detach().reshape(-1, I)
    states = _states(one, h, rows)
    with torch.no_grad():
        wx = one.columns(rows.unsqueeze(0)).squeeze(0)
    found = step_jacobian(one, wx, states)
    return found if x.dim() == 2 else found.squeeze(0)


def _states(layer: Layer, h: Any, rows: Tensor) -> States:
    zeros = layer.initial(rows, len(rows))
    if h is None:
        return zeros
    given = (h,) if isinstance(h, Tensor) else tuple(h)
    states = tuple(s.detach().reshape(-1, s.shape[-1]) for s in given)
    wanted, found = [tuple(z.shape) for z in zeros], [tuple(s.shape) for s in states]
    if wanted != found:
        raise ValueError(f"h: expected states of shapes {wanted}, got {found}")
    return states


def step_jacobian(layer: Layer, wx: Tensor, states: States) -> Tensor:
    """(B, N, N), for `Layer.columns` (B, ·) and the old states (B, ·). Rows do not see each other, so that one backward
    pass for each of the N new numbers serves all of them.
    """
    widths = [s.shape[-1] for s in states]
    with torch.enable_grad():
        old = torch.cat([s.detach() for s in states], -1).requires_grad_()
        new = torch.cat(layer.step(wx.detach(), old.split(widths, -1)), -1)
        if not new.requires_grad:  # a cell that forgets everything
            return old.new_zeros(len(old), old.shape[-1], old.shape[-1])
        directions = torch.eye(new.shape[-1], dtype=new.dtype, device=new.device).unsqueeze(1).expand(-1, len(old), -1)
        (found,) = torch.autograd.grad(new, old, directions, is_grads_batched=True, allow_unused=True)
    return found.transpose(0, 1).detach()
