"""Cells that normalise over their units: Ba, Kiros and Hinton, Layer normalization, 2016 (arXiv:1607.06450).

LN(v; g, b) = g*(v - mean(v))/√(var(v) + 1e-5) + b; for several gates, over all their units together. Shifts that would
be added to one another are a single parameter. Biases of the network are added before the normalisation; the paper has
none: ``bias=False``.
"""

from __future__ import annotations

from typing import Any

import torch

import fastrnn
from fastrnn.custom import layer_norm, normalize


def _gains(gates: str, kinds: str) -> dict[str, Any]:
    """Return gains ``{kind}g_{gate}``, initially 1, and shifts ``b_{gate}``, initially 0."""
    gains = {f"{kind}g_{gate}": 1.0 for kind in kinds for gate in gates}
    return gains | {f"b_{gate}": 0.0 for gate in gates}


@fastrnn.cell(gates="f i o g", states="h c", parameters={**_gains("fiog", "xr"), "g_c": 1.0, "b_c": 0.0})
def layer_norm_lstm(x: Any, r: Any, s: Any, p: Any) -> Any:
    """LSTM with layer normalisation.

        f~, i~, o~, g~ = LN(W·x; xg, 0) + LN(R·h; rg, b)
        c' = σ(f~)*c + σ(i~)*tanh(g~)
        h' = σ(o~)*tanh(LN(c'; g_c, b_c))

    Ba et al. 2016, equations 20 to 22. Shapes: W (4·H, I), R (4·H, H), blocks f, i, o, g; gains xg_k of W·x and rg_k of
    R·h, shifts b_k, and g_c, b_c of the cell (H each). Initialisation: gains 1, shifts 0, others within ±1/√H.
    """
    f, i, o, g = (
        p[f"xg_{k}"] * a + p[f"rg_{k}"] * b + p[f"b_{k}"]
        for k, a, b in zip("fiog", normalize(*x), normalize(*r), strict=True)
    )
    c = torch.sigmoid(f) * s.c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(layer_norm(c, p.g_c, p.b_c)), c


@fastrnn.cell(gates="z r h", parameters=_gains("zrh", "xr") | {"rb_h": 0.0})
def layer_norm_gru(x: Any, r: Any, s: Any, p: Any) -> Any:
    """GRU with layer normalisation.

        z, r = σ(LN(W·x; xg, 0) + LN(R·h; rg, b))
        n = tanh(LN(W_h·x; xg_h, b_h) + r*LN(R_h·h; rg_h, rb_h))
        h' = (1-z)*h + z*n

    Ba et al. 2016, supplementary equations; z and r are normalised together. Shapes: W (3·H, I), R (3·H, H), blocks z,
    r, h; gains xg_k, rg_k and shifts b_k, rb_h (H each). Initialisation: gains 1, shifts 0, others within ±1/√H.
    """
    xz, xr = normalize(x.z, x.r)
    rz, rr = normalize(r.z, r.r)
    z = torch.sigmoid(p.xg_z * xz + p.rg_z * rz + p.b_z)
    reset = torch.sigmoid(p.xg_r * xr + p.rg_r * rr + p.b_r)
    n = torch.tanh(layer_norm(x.h, p.xg_h, p.b_h) + reset * layer_norm(r.h, p.rg_h, p.rb_h))
    return (1 - z) * s.h + z * n
