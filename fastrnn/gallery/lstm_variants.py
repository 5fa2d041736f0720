"""LSTM with peepholes and its ablations in "LSTM: A search space odyssey".

Greff et al. 2015 change one part of the peephole LSTM at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import fastrnn


def odyssey_normal(peephole: Tensor) -> Tensor:
    """Initialise a peephole as in the paper: normal with standard deviation 0.1."""
    return peephole.normal_(std=0.1)


def _peepholes(gates: str) -> dict[str, Any]:
    return {f"p{gate}": odyssey_normal for gate in gates}


@fastrnn.cell(gates="z i f o", states="h c", parameters=_peepholes("ifo"))
def peephole_lstm(x: Any, r: Any, s: Any, p: Any) -> Any:
    """LSTM with peepholes, the vanilla LSTM of the Odyssey; k~ = W_k·x + b_k + R_k·h + b_rk for k = z, i, f, o.

        z = tanh(z~)
        i = σ(i~ + p_i*c)
        f = σ(f~ + p_f*c)
        c' = f*c + i*z
        o = σ(o~ + p_o*c')
        h' = o*tanh(c')

    Gers, Schraudolph & Schmidhuber, Learning precise timing with LSTM recurrent networks, 2002; Greff et al. 2015.
    Shapes: W (4·H, I), R (4·H, H), blocks z, i, f, o; peepholes pi, pf, po (H). Initialisation: W, R, b within ±1/√H as
    torch.nn, peepholes normal with standard deviation 0.1.
    """
    i, f = torch.sigmoid(x.i + r.i + p.pi * s.c), torch.sigmoid(x.f + r.f + p.pf * s.c)
    c = f * s.c + i * torch.tanh(x.z + r.z)
    return torch.sigmoid(x.o + r.o + p.po * c) * torch.tanh(c), c


@fastrnn.cell(gates="z f o", states="h c", parameters=_peepholes("fo"))
def lstm_no_input_gate(x: Any, r: Any, s: Any, p: Any) -> Any:
    """LSTM without input gate (NIG), which is fixed at 1; k~ = W_k·x + b_k + R_k·h + b_rk for k = z, f, o.

        f = σ(f~ + p_f*c)
        c' = f*c + tanh(z~)
        o = σ(o~ + p_o*c')
        h' = o*tanh(c')

    Greff et al. 2015. Shapes: W (3·H, I), R (3·H, H), blocks z, f, o; pf, po (H). Initialisation as `peephole_lstm`.
    """
    c = torch.sigmoid(x.f + r.f + p.pf * s.c) * s.c + torch.tanh(x.z + r.z)
    return torch.sigmoid(x.o + r.o + p.po * c) * torch.tanh(c), c


@fastrnn.cell(gates="z i o", states="h c", parameters=_peepholes("io"))
def lstm_no_forget_gate(x: Any, r: Any, s: Any, p: Any) -> Any:
    """LSTM without forget gate (NFG), fixed at 1 as before 2000; k~ = W_k·x + b_k + R_k·h + b_rk for k = z, i, o.

        i = σ(i~ + p_i*c)
        c' = c + i*tanh(z~)
        o = σ(o~ + p_o*c')
        h' = o*tanh(c')

    Greff et al. 2015. Shapes: W (3·H, I), R (3·H, H), blocks z, i, o; pi, po (H). Initialisation as `peephole_lstm`.
    """
    c = s.c + torch.sigmoid(x.i + r.i + p.pi * s.c) * torch.tanh(x.z + r.z)
    return torch.sigmoid(x.o + r.o + p.po * c) * torch.tanh(c), c


@fastrnn.cell(gates="z i f", states="h c", parameters=_peepholes("if"))
def lstm_no_output_gate(x: Any, r: Any, s: Any, p: Any) -> Any:
    """LSTM without output gate (NOG), which is fixed at 1; k~ = W_k·x + b_k + R_k·h + b_rk for k = z, i, f.

        i = σ(i~ + p_i*c)
        f = σ(f~ + p_f*c)
        c' = f*c + i*tanh(z~)
        h' = tanh(c')

    Greff et al. 2015. Shapes: W (3·H, I), R (3·H, H), blocks z, i, f; pi, pf (H). Initialisation as `peephole_lstm`.
    """
    i, f = torch.sigmoid(x.i + r.i + p.pi * s.c), torch.sigmoid(x.f + r.f + p.pf * s.c)
    c = f * s.c + i * torch.tanh(x.z + r.z)
    return torch.tanh(c), c


@fastrnn.cell(gates="z i f o", states="h c", parameters=_peepholes("ifo"))
def lstm_no_input_activation(x: Any, r: Any, s: Any, p: Any) -> Any:
    """LSTM without input activation function (NIAF), z = z~; k~ = W_k·x + b_k + R_k·h + b_rk for k = z, i, f, o.

        i = σ(i~ + p_i*c)
        f = σ(f~ + p_f*c)
        c' = f*c + i*z~
        o = σ(o~ + p_o*c')
        h' = o*tanh(c')

    Greff et al. 2015. Shapes and initialisation as `peephole_lstm`.
    """
    i, f = torch.sigmoid(x.i + r.i + p.pi * s.c), torch.sigmoid(x.f + r.f + p.pf * s.c)
    c = f * s.c + i * (x.z + r.z)
    return torch.sigmoid(x.o + r.o + p.po * c) * torch.tanh(c), c


@fastrnn.cell(gates="z i f o", states="h c", parameters=_peepholes("ifo"))
def lstm_no_output_activation(x: Any, r: Any, s: Any, p: Any) -> Any:
    """LSTM without output activation function (NOAF), h' = o*c'; k~ = W_k·x + b_k + R_k·h + b_rk for k = z, i, f, o.

        i = σ(i~ + p_i*c)
        f = σ(f~ + p_f*c)
        c' = f*c + i*tanh(z~)
        o = σ(o~ + p_o*c')
        h' = o*c'

    Greff et al. 2015. Shapes and initialisation as `peephole_lstm`.
    """
    i, f = torch.sigmoid(x.i + r.i + p.pi * s.c), torch.sigmoid(x.f + r.f + p.pf * s.c)
    c = f * s.c + i * torch.tanh(x.z + r.z)
    return torch.sigmoid(x.o + r.o + p.po * c) * c, c


@fastrnn.cell(gates="z i o", states="h c", parameters=_peepholes("io"))
def lstm_coupled_gates(x: Any, r: Any, s: Any, p: Any) -> Any:
    """LSTM with coupled input and forget gate (CIFG), f = 1 − i; k~ = W_k·x + b_k + R_k·h + b_rk for k = z, i, o.

        i = σ(i~ + p_i*c)
        c' = (1 − i)*c + i*tanh(z~)
        o = σ(o~ + p_o*c')
        h' = o*tanh(c')

    Greff et al. 2015; like the GRU's update gate. Shapes: W (3·H, I), R (3·H, H), blocks z, i, o; pi, po (H).
    Initialisation as `peephole_lstm`.
    """
    i = torch.sigmoid(x.i + r.i + p.pi * s.c)
    c = (1 - i) * s.c + i * torch.tanh(x.z + r.z)
    return torch.sigmoid(x.o + r.o + p.po * c) * torch.tanh(c), c


@fastrnn.cell(gates="z i f o", states="h c")
def lstm_no_peepholes(x: Any, r: Any, s: Any) -> Any:
    """LSTM without peepholes (NP), today's LSTM; k~ = W_k·x + b_k + R_k·h + b_rk for k = z, i, f, o.

        c' = σ(f~)*c + σ(i~)*tanh(z~)
        h' = σ(o~)*tanh(c')

    Greff et al. 2015. The same function as :class:`fastrnn.LSTM`, with the gates in another order; for comparison with
    the variants. Shapes: W (4·H, I), R (4·H, H), blocks z, i, f, o. Initialisation: all within ±1/√H, as torch.nn.
    """
    c = torch.sigmoid(x.f + r.f) * s.c + torch.sigmoid(x.i + r.i) * torch.tanh(x.z + r.z)
    return torch.sigmoid(x.o + r.o) * torch.tanh(c), c


_BETWEEN = tuple(f"{source}_{gate}" for gate in "ifo" for source in "ifo")


@fastrnn.cell(gates="z i f o", states="h c i f o", parameters=_peepholes("ifo"), matrices=_BETWEEN)
def lstm_full_gate_recurrence(x: Any, r: Any, s: Any, p: Any) -> Any:
    """LSTM with full gate recurrence (FGR): gates depend on the gates of the previous step, by nine more matrices.

    Matrix R_kl leads from gate k to gate l; k~ = W_k·x + b_k + R_k·h + b_rk for k = z, i, f, o.

        i' = σ(i~ + p_i*c + R_ii·i + R_fi·f + R_oi·o)
        f' = σ(f~ + p_f*c + R_if·i + R_ff·f + R_of·o)
        c' = f'*c + i'*tanh(z~)
        o' = σ(o~ + p_o*c' + R_io·i + R_fo·f + R_oo·o)
        h' = o'*tanh(c')

    Greff et al. 2015, as in the first LSTM of Hochreiter & Schmidhuber 1997. Shapes: W (4·H, I), R (13·H, H): blocks z,
    i, f, o, then those from i, from f and from o, to i, f, o each; peepholes pi, pf, po (H). The gates are states,
    initially zero. Initialisation as `peephole_lstm`.
    """

    def from_gates(gate: str) -> Any:
        return r[f"i_{gate}"](s.i) + r[f"f_{gate}"](s.f) + r[f"o_{gate}"](s.o)

    i = torch.sigmoid(x.i + r.i + p.pi * s.c + from_gates("i"))
    f = torch.sigmoid(x.f + r.f + p.pf * s.c + from_gates("f"))
    c = f * s.c + i * torch.tanh(x.z + r.z)
    o = torch.sigmoid(x.o + r.o + p.po * c + from_gates("o"))
    return o * torch.tanh(c), c, i, f, o
