"""Initialisations of recurrent matrices by name, for `fastrnn gradflow --init`."""

from __future__ import annotations

import math

import torch
from torch import nn

from fastrnn.inspect.layers import Layer, layers_of

NAMES = ("default", "orthogonal", "identity", "forget")
DESCRIPTION = (
    "default: the module's own; orthogonal:X: every recurrent matrix X times a random orthogonal one (default X: 1), "
    "whose eigenvalues all have modulus X; identity:X: X times the identity, biases 0 (Le et al. 2015); forget:X: the "
    "module's own with the bias of forget gates at X (default: 1)"
)


def parsed(text: str) -> tuple[str, float]:
    """Name and number of ``name`` or ``name:number``.

    Raises:
        ValueError: it is none of them.
    """
    name, colon, rest = text.partition(":")
    try:
        number = float(rest) if colon else 1.0
    except ValueError:
        number = math.nan
    if name not in NAMES or not math.isfinite(number) or (name == "default" and colon):
        raise ValueError(f"init: expected one of {', '.join(NAMES)}, with a number as in orthogonal:0.9, got {text!r}")
    return name, number


def initialise(module: nn.Module, init: str) -> None:
    """Gives a recurrent module new weights, drawn from torch's generator.

    Raises:
        ValueError: ``init`` is unknown, or ``forget`` is for a cell without a gate f.
        TypeError: the module is of another kind.
    """
    name, number = parsed(init)
    module.reset_parameters()  # type: ignore[operator]
    with torch.no_grad():
        for layer in layers_of(module):
            suffix = f"_l{layer.index}" + ("_reverse" if layer.reverse else "")
            _fill(module, layer, suffix, name, number)


def _fill(module: nn.Module, layer: Layer, suffix: str, name: str, number: float) -> None:
    H, w_hh = layer.hidden, getattr(module, "weight_hh" + suffix)
    biases = [getattr(module, kind + suffix, None) for kind in ("bias_ih", "bias_hh")]
    if name in ("orthogonal", "identity"):
        fill = nn.init.orthogonal_ if name == "orthogonal" else nn.init.eye_
        for k in range(len(layer.blocks)):
            w_hh[k * H : (k + 1) * H] = number * fill(torch.empty_like(w_hh[:H]))
    if name == "identity":
        for bias in biases:
            if bias is not None:
                bias.zero_()
    if name == "forget":
        given = layer.blocks if layer.cell is None else layer.cell.gates
        if "f" not in given or biases[0] is None:
            raise ValueError(f"init: expected a cell with a forget gate for forget, got {layer.title}")
        for bias, blocks, value in zip(biases, (given, layer.blocks), (number, 0.0), strict=True):
            if bias is not None and "f" in blocks:
                bias[blocks.index("f") * H : (blocks.index("f") + 1) * H] = value
