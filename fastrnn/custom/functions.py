"""What cells are made of, besides torch's own functions: works on a step's arguments and on tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastrnn.custom.symbols import Symbol


def normalize(*vectors: Any, eps: float = 1e-5) -> Any:
    """Vectors (B, H) shifted and scaled to mean 0 and variance 1 over the units.

    Mean and variance of several vectors are taken over all of them together.

    Source: layer normalisation, Ba, Kiros and Hinton 2016, without gain and bias.

    Args:
        eps: added to the variance.

    Returns:
        the vector, or a tuple of the vectors.
    """
    count = len(vectors)
    mean = sum(v.mean(dim=-1, keepdim=True) for v in vectors) / count
    centred = [v - mean for v in vectors]
    variance = sum((c * c).mean(dim=-1, keepdim=True) for c in centred) / count
    scale = 1.0 / (variance + eps) ** 0.5
    found = tuple(c * scale for c in centred)
    return found if count > 1 else found[0]


def layer_norm(vector: Any, weight: Any, bias: Any = 0.0, eps: float = 1e-5) -> Any:
    """:func:`normalize` with a gain and a bias, which are parameters of the cell."""
    return normalize(vector, eps=eps) * weight + bias


def detach(value: Any) -> Any:
    """Return the value without a gradient: as `torch.Tensor.detach`, in a cell's step and on tensors.

    Args:
        value: a value of a step, a tensor (B, H), or a number.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> fastrnn.custom.detach(x).requires_grad
        False
    """
    return value.detach() if isinstance(value, (Symbol, Tensor)) else value


def surrogate(value: Any, smooth: Any) -> Any:
    """The value of one expression with the gradient of another: a straight-through or surrogate gradient.

    Args:
        value: what is computed, such as a spike, ``torch.where(v > 1, 1.0, 0.0)``; a value of a step, a tensor (B, H),
            or a number.
        smooth: what is differentiated in its place, such as ``torch.sigmoid(4 * (v - 1))``; kernels compute it in the
            backward pass alone.

    Returns:
        ``value``; ∂L/∂(returned) goes to ``smooth`` as it is, and nothing to ``value``.

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
