"""Jacobian of a time step, and spectrum of recurrent matrices."""

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
        gate: the block's name: i, f, g, o for an LSTM; r, z, n for a GRU; h for an Elman network; those of a custom
            cell.
        eigenvalues: (H) complex, the largest modulus first. With a projection those of R_k·P, (H, H).
        singular_values: (H), the largest first.

    Example:
        >>> blocks = fastrnn.inspect.spectrum(fastrnn.LSTM(3, 4))
        >>> [block.gate for block in blocks], blocks[0].eigenvalues.shape
        (['i', 'f', 'g', 'o'], torch.Size([4]))
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
    """Compute eigenvalues and singular values of the recurrent matrix (H, H) of each layer, direction and gate.

    Args:
        module: as for `gradient_flow`.

    Raises:
        TypeError: ``module`` is of another kind.
        ValueError: it has more than one head.

    Example:
        >>> [matrix.gate for matrix in fastrnn.inspect.spectrum(fastrnn.GRU(3, 4))]
        ['r', 'z', 'n']
    """
    spectra = []
    for layer in layers_of(module):
        for gate, matrix in matrices(layer).items():
            values = eigenvalues(matrix)
            spectra.append(Spectrum(layer.name, gate, values, torch.linalg.svdvals(matrix)))
    return spectra


def matrices(layer: Layer) -> dict[str, Tensor]:
    """Return the recurrent matrices (H, H) of a layer, by gate."""
    w_hh, w_hr, H = layer.weights.w_hh.detach(), layer.weights.w_hr, layer.hidden
    blocks = [w_hh[k * H : (k + 1) * H] for k in range(len(layer.blocks))]
    if w_hr is not None:
        blocks = [block @ w_hr.detach() for block in blocks]
    square = layer.blocks if layer.cell is None else layer.cell.recurrent
    pairs = zip(layer.blocks, blocks, strict=True)
    return {name: _wide(block) for name, block in pairs if name in square}


def _wide(matrix: Tensor) -> Tensor:
    """Convert a matrix to a dtype that torch's decompositions support."""
    return matrix if matrix.dtype is torch.float64 else matrix.float()


def eigenvalues(matrix: Tensor) -> Tensor:
    """Return the eigenvalues of a square matrix, complex, the largest modulus first."""
    values = torch.linalg.eigvals(_wide(matrix))
    return values[values.abs().argsort(descending=True)]


def jacobian(module: nn.Module, x: Tensor, h: Any = None, *, layer: int = 0) -> Tensor:
    """Compute ∂(new states)/∂(old states) of one time step of one layer.

    The states are concatenated, h first: for an LSTM rows and columns are those of h, then those of c.

    Args:
        module: as for `gradient_flow`.
        x: (B, I) or (I), the layer's input at this step.
        h: the layer's old states, (B, ·) or without B each: a tensor, or a tuple if the cell has several; None for
            zeros.
        layer: the number of the layer; with two directions 2·k is layer k forward and 2·k + 1 its reverse.

    Returns:
        (B, N, N), or (N, N) if x is unbatched, where N is the total width of the states.

    Raises:
        TypeError: ``module`` is of another kind.
        ValueError: x or h has another shape, or there is no such layer.

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
    result = step_jacobian(one, wx, states)
    return result if x.dim() == 2 else result.squeeze(0)


def _states(layer: Layer, h: Any, rows: Tensor) -> States:
    zeros = layer.initial(rows, len(rows))
    if h is None:
        return zeros
    given = (h,) if isinstance(h, Tensor) else tuple(h)
    states = tuple(s.detach().reshape(-1, s.shape[-1]) for s in given)
    wanted, got = [tuple(z.shape) for z in zeros], [tuple(s.shape) for s in states]
    if wanted != got:
        raise ValueError(f"h: expected states of shapes {wanted}, got {got}")
    return states


def step_jacobian(layer: Layer, wx: Tensor, states: States) -> Tensor:
    """Return the Jacobians (B, N, N), for `Layer.columns` (B, ·) and the old states (B, ·).

    Batch rows are independent, so that one backward pass for each of the N new values serves all rows.
    """
    widths = [s.shape[-1] for s in states]
    with torch.enable_grad():
        old = torch.cat([s.detach() for s in states], -1).requires_grad_()
        new = torch.cat(layer.step(wx.detach(), old.split(widths, -1)), -1)
        if not new.requires_grad:  # the new states do not depend on the old ones
            return old.new_zeros(len(old), old.shape[-1], old.shape[-1])
        directions = torch.eye(new.shape[-1], dtype=new.dtype, device=new.device).unsqueeze(1).expand(-1, len(old), -1)
        (jacobian,) = torch.autograd.grad(new, old, directions, is_grads_batched=True, allow_unused=True)
    return jacobian.transpose(0, 1).detach()
