"""Recurrent matrices R: identity, np-RNN, orthogonal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrnn._numbers import finite
from fastrnn.init._blocks import Gates, Target, fill_recurrent


def identity_(target: Target, scale: float = 1.0, *, gates: Gates = None) -> Target:
    """Set R = scale·I and zero biases, so that a rectified network initially copies its state.

    Source: Le, Jaitly and Hinton, A simple way to initialize recurrent networks of rectified linear units, 2015
    (arXiv:1504.00941), "IRNN"; with scale 0.01, say, for tasks that need no long memory.

    Args:
        target: a tensor (G·H, H), or a module (or model), for ``weight_hh`` of all layers and directions; their
            biases become zero. Input weights stay (the paper draws them from a Gaussian of standard deviation 0.001).
        scale: the value on the diagonal.
        gates: for a tensor G, 1 if None; for a module the names of the gates to initialise, all if None.

    Raises:
        TypeError: ``gates`` is a name for a tensor, or a number for a module; ``target`` is neither tensor nor module.
        ValueError: R is not square (as with a projection), there is no such gate, or no recurrent module in the model.

    Example:
        >>> rnn = fastrnn.init.identity_(fastrnn.RNN(3, 2, nonlinearity="relu"))
        >>> rnn.weight_hh_l0.tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """

    scale = finite(scale, "scale")

    def fill(block: Tensor) -> None:
        _check_square(block)
        block.zero_().diagonal().fill_(scale)

    return fill_recurrent(target, gates, fill, zero_bias=True)


def np_rnn_(target: Target, *, gates: Gates = None, generator: torch.Generator | None = None) -> Target:
    """Set R to a positive definite matrix whose largest eigenvalue is 1, and the biases to zero.

    ``A = QᵀQ / H`` with Q a matrix of standard normal numbers (H, H), and ``R = (A + I) / λ_max(A + I)``.

    Source: Talathi and Vartak, Improving performance of recurrent neural network with relu nonlinearity, 2015
    (arXiv:1511.03771), "np-RNN".

    Args:
        target, gates: as for `identity_`.
        generator: the random number generator; None: torch's default.

    Raises:
        TypeError, ValueError: as `identity_`.

    Example:
        >>> rnn = fastrnn.init.np_rnn_(fastrnn.RNN(3, 4, nonlinearity="relu"))
        >>> round(torch.linalg.eigvalsh(rnn.weight_hh_l0).max().item(), 4)
        1.0
    """

    def fill(block: Tensor) -> None:
        _check_square(block)
        q = _normal(block, generator)
        size = q.shape[0]
        a = q.T @ q / size + torch.eye(size, dtype=q.dtype, device=q.device)
        block.copy_(a / torch.linalg.eigvalsh(a)[-1])

    return fill_recurrent(target, gates, fill, zero_bias=True)


def orthogonal_(
    target: Target, gain: float = 1.0, *, gates: Gates = None, generator: torch.Generator | None = None
) -> Target:
    """Set R of every gate, and of every head, to an orthogonal matrix times ``gain``.

    With a projection, R is not square: its rows or columns are orthogonal.

    `torch.nn.init.orthogonal_` applied to the whole ``weight_hh`` would make the stacked gate matrices orthogonal;
    those of an LSTM then shrink h to half its norm.

    Source: Saxe, McClelland and Ganguli, Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks, 2014 (arXiv:1312.6120).

    Args:
        target: a tensor (G·H, P), or a module (or model), for ``weight_hh`` of all layers and directions. Biases
            stay.
        gain: the factor.
        gates, generator: as for `np_rnn_`.

    Raises:
        TypeError, ValueError: as `identity_`, but R need not be square.

    TypeError, ValueError: as `identity_`, except that R need not be square.
        >>> lstm = fastrnn.init.orthogonal_(fastrnn.LSTM(3, 4))
        >>> forget = lstm.weight_hh_l0[4:8]
        >>> torch.allclose(forget @ forget.T, torch.eye(4), atol=1e-5)
        True
    """

    gain = finite(gain, "gain")

    def fill(block: Tensor) -> None:
        whole = torch.empty_like(block, dtype=_compute_dtype(block), memory_format=torch.contiguous_format)
        block.copy_(nn.init.orthogonal_(whole, gain, generator=generator))

    return fill_recurrent(target, gates, fill, zero_bias=False)


def _compute_dtype(t: Tensor) -> torch.dtype:
    return torch.float32 if t.dtype in (torch.float16, torch.bfloat16) else t.dtype


def _normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.empty(like.shape, dtype=_compute_dtype(like), device=like.device).normal_(generator=generator)


def _check_square(block: Tensor) -> None:
    if block.shape[0] != block.shape[1]:
        raise ValueError(
            f"R: expected a square matrix for each gate, got {tuple(block.shape)}"
            " (a projection, or another number of gates)"
        )
