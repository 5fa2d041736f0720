"""Building blocks of cells besides torch's own functions; they accept a step's arguments and tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrnn.custom.symbols import Symbol


def normalize(*vectors: Any, eps: float = 1e-5) -> Any:
    """Shift and scale vectors (B, H) to mean 0 and variance 1 over the units.

    Mean and variance of several vectors are taken over all of them jointly.

    Source: layer normalisation, Ba, Kiros and Hinton 2016, without gain and bias.

    Args:
        eps: constant added to the variance.

    Returns:
        the vector, or a tuple of the vectors.

    Example:
        >>> y = fastrnn.custom.normalize(torch.randn(2, 8))
        >>> torch.allclose(y.mean(-1), torch.zeros(2), atol=1e-6)
        True
    """
    count = len(vectors)
    mean = sum(v.mean(dim=-1, keepdim=True) for v in vectors) / count
    centred = [v - mean for v in vectors]
    variance = sum((c * c).mean(dim=-1, keepdim=True) for c in centred) / count
    scale = 1.0 / (variance + eps) ** 0.5
    normalized = tuple(c * scale for c in centred)
    return normalized if count > 1 else normalized[0]


def layer_norm(vector: Any, weight: Any, bias: Any = 0.0, eps: float = 1e-5) -> Any:
    """Apply :func:`normalize`, then a gain and a bias, which are parameters of the cell.

    Example:
        >>> y = fastrnn.custom.layer_norm(torch.randn(2, 8), torch.ones(8), torch.full((8,), 3.0))
        >>> y.mean(-1).round().tolist()
        [3.0, 3.0]
    """
    return normalize(vector, eps=eps) * weight + bias


def detach(value: Any) -> Any:
    """Return the value without a gradient, like `torch.Tensor.detach`; in a cell's step and on tensors.

    Args:
        value: a value of a step, a tensor (B, H), or a number.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> fastrnn.custom.detach(x).requires_grad
        False
    """
    return value.detach() if isinstance(value, (Symbol, Tensor)) else value


def surrogate(value: Any, smooth: Any) -> Any:
    """Return the value of one expression with the gradient of another: a straight-through or surrogate gradient.

    Args:
        value: the value to return, such as a spike, ``torch.where(v > 1, 1.0, 0.0)``; a value of a step, a tensor (B,
            H), or a number.
        smooth: the expression to differentiate in its place, such as ``torch.sigmoid(4 * (v - 1))``; kernels compute it
            only in the backward pass.

    Returns:
        ``value``; the gradient ∂L/∂(result) passes to ``smooth`` unchanged, and not to ``value``.

    Example:
        >>> v = torch.tensor([0.5, 2.0], requires_grad=True)
        >>> spike = fastrnn.custom.surrogate(torch.where(v > 1, 1.0, 0.0), torch.sigmoid(v - 1))
        >>> spike.tolist()
        [0.0, 1.0]
    """
    for given in (value, smooth):
        if isinstance(given, Symbol):
            return given.trace.operation("surrogate", (value, smooth))
    if not isinstance(smooth, Tensor):
        return detach(value)
    exact = detach(value) + (smooth - smooth.detach())
    return torch.where(smooth.isfinite(), exact, detach(value))
