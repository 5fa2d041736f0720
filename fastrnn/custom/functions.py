"""What cells are made of, besides torch's own functions: works on a step's arguments and on tensors."""

from __future__ import annotations

from typing import Any


def normalize(*vectors: Any, eps: float = 1e-5) -> Any:
    """Vectors (B, H) shifted and scaled to mean 0 and variance 1 over the units, and over all of them together if there
    are several.

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
