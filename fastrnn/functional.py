"""The functional interface: recurrent layers as functions of their weights.

:func:`lstm`, :func:`gru` and :func:`rnn` run one layer in one direction; the modules build layers, directions and
dropout on :func:`sequence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastrnn import _C, _ops, _paths, _recompute, _tokens, cells
from fastrnn._call import Call, Wanted
from fastrnn._call import LayerWeights as LayerWeights

if TYPE_CHECKING:
    from fastrnn.training import GradientNormPenalty


def sequence(
    cell: str,
    x: Tensor,
    weights: LayerWeights,
    states: Sequence[Tensor] | None = None,
    *,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    backend: str = "auto",
    embedding: Tensor | None = None,
    recompute: bool | int = False,
    initial: Sequence[Tensor] | None = None,
    clip_state_gradient: float | None = None,
    penalty: GradientNormPenalty | None = None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer in one direction over a whole sequence.

    Differentiable in ``x``, every weight and every state, to any order, in reverse and forward mode, under
    ``torch.func`` transforms and ``torch.compile``. Under autocast it computes in the dtype of its arguments.

    Args:
        cell: a name in :data:`fastrnn.cells.CELLS`: ``"lstm"``, ``"gru"``, ``"rnn_tanh"``, ``"rnn_relu"``; or the
            ``kernels`` of a cell made by :func:`fastrnn.cell`.
        x: (T, B, I) with any strides; (N, I) with ``batch_sizes``. If ``weights.w_ih`` is None, the input product
            (…, G·H) instead.
        weights: the layer's weights, all of x's dtype.
        states: initial states, each (B, P or H), ``h`` first; None: ``initial``, or zeros.
        batch_sizes: (T) int64 on the CPU (also for x on a GPU), batch rows of each time step of packed input, never
            increasing. The rows of states are then in the order of the packed rows.
        lengths: (B) integers from 0 to T in any order, the number of time steps of each batch row. Outputs after a
            row's end are zero, its final state is that of its own last step, and padding may have any values. On a GPU
            they are not read back, and so not checked: more than T counts as T, less than 0 as 0.
        reset: (T, B) bool, true at the first time step of a new segment: the state before it is the initial state
            again, or ``initial``. With ``reverse`` the segments are the same, each run from its last step to its first.
        reverse: run from the last time step to the first.
        backend: ``"fused"``: kernels, or an error if there are none; ``"reference"``: plain PyTorch; ``"auto"``: fused
            if there are kernels, else the reference, with one warning that gives the reason.
        embedding: (V, I). ``x`` then holds token ids, int64 or int32, (T, B), or (N) with ``batch_sizes``; ids beyond
            ``lengths`` are ignored. The result is that for embedded ids. If V is less than the number of ids, the input
            products of all V embeddings are computed and looked up (in 16-bit dtypes only if no gradient is needed: the
            sums over a token's occurrences would lose precision).
        recompute: for training on long sequences. True: only inputs, outputs and the states at the borders of √T
            segments are saved for backward, which recomputes everything else segment by segment; an integer: the time
            steps of a segment, at least 2. Results are the same, except that in 16-bit dtypes the states are rounded at
            the borders. No effect where kernels save nothing or do not run: without gradient, in the reference, in
            compiled functions and under ``torch.func``. Higher derivatives save everything.
        clip_state_gradient: the limit c. In the backward pass every element of ∂L/∂h_t, the sum over all paths, is
            clipped to ±c before it passes through time step t. States other than h are not clipped. No effect on
            derivatives in forward mode.
        penalty: a `fastrnn.training.GradientNormPenalty`, which adds the gradient of its Ω to that of ``w_hh``.

    Returns:
        outputs (T, B, P) or (N, P), and the tuple of final states, each (B, P or H).

    Raises:
        ValueError: ``cell``, ``backend``, ``batch_sizes``, ``lengths``, ``reset`` or ``recompute`` is not as
            described above.
        RuntimeError: sizes or dtypes do not match, or ``backend="fused"`` without kernels.
        IndexError: an id is not in 0…V-1.

    Example:
        >>> gru = fastrnn.GRU(3, 4)
        >>> weights = fastrnn.functional.LayerWeights(*gru.parameters())
        >>> y, (h,) = fastrnn.functional.sequence("gru", torch.randn(5, 2, 3), weights)
        >>> y.shape, h.shape
        (torch.Size([5, 2, 4]), torch.Size([2, 4]))
    """
    spec = cells.find(cell) if isinstance(cell, str) else None
    if spec is None:
        raise ValueError(_C.unknown_cell(cell) if isinstance(cell, str) else f"cell: expected a name, got {cell!r}")
    if weights.w_hr is not None:
        spec.check_projection(weights.w_hr)
    if backend != "auto" and backend not in _paths.BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(_paths.BACKENDS)}, got {backend!r}")
    if recompute is not False:
        _recompute.check(recompute)
    clip = 0.0
    if clip_state_gradient is not None:
        cells.check_limit(clip_state_gradient)
        if weights.w_hh.is_complex():
            raise ValueError(f"clip_state_gradient: expected real numbers, got weights of {weights.w_hh.dtype}")
        clip = float(clip_state_gradient)
    if embedding is not None:
        # Embedded ids (…, I) take less memory to save than products (…, G·H).
        x, w_ih, b_ih = _tokens.embed(x, embedding, weights.w_ih, weights.b_ih, batch_sizes, lengths, bool(recompute))
        weights = weights._replace(w_ih=w_ih, b_ih=b_ih)
    restart: tuple[Tensor, ...] = ()
    if states is None:
        states = initial
    elif initial is not None and reset is not None:
        restart = tuple(initial)
    states = () if states is None else tuple(states)
    if restart and batch_sizes is not None:
        raise RuntimeError("reset: expected None with batch_sizes, got a tensor")
    call = Call(cell, x, weights, states, restart, batch_sizes, lengths, reset, reverse, clip)
    return _paths.run(call, spec, _paths.Options(backend, recompute, penalty))


def lstm(
    x: Tensor,
    weights: LayerWeights,
    states: tuple[Tensor, Tensor] | None = None,
    *,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    backend: str = "auto",
    embedding: Tensor | None = None,
    recompute: bool | int = False,
    **more: Any,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one LSTM layer in one direction: ``y, (h, c) = lstm(x, weights, (h0, c0))``.

    Arguments, including ``more``, are as in :func:`sequence`.

    Gates in torch's order (i, f, g, o). Source: Hochreiter & Schmidhuber 1997 with the forget gate of Gers 2000; with
    ``weights.w_hr``, the projection of Sak 2014.

    Example:
        >>> lstm = fastrnn.LSTM(3, 4)
        >>> weights = fastrnn.functional.LayerWeights(*lstm.parameters())
        >>> y, (h, c) = fastrnn.functional.lstm(torch.randn(5, 2, 3), weights)
        >>> torch.equal(y[-1], h)
        True
    """
    return sequence(
        "lstm",
        x,
        weights,
        states,
        batch_sizes=batch_sizes,
        lengths=lengths,
        reset=reset,
        reverse=reverse,
        backend=backend,
        embedding=embedding,
        recompute=recompute,
        **more,
    )


def gru(
    x: Tensor,
    weights: LayerWeights,
    state: Tensor | None = None,
    *,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    backend: str = "auto",
    embedding: Tensor | None = None,
    recompute: bool | int = False,
    **more: Any,
) -> tuple[Tensor, Tensor]:
    """Run one GRU layer in one direction: ``y, h = gru(x, weights, h0)``.

    Arguments, including ``more``, are as in :func:`sequence`.

    Gates in torch's order (r, z, n), reset after the product. Source: Cho 2014, v1.

    Example:
        >>> gru = fastrnn.GRU(3, 4)
        >>> weights = fastrnn.functional.LayerWeights(*gru.parameters())
        >>> y, h = fastrnn.functional.gru(torch.randn(5, 2, 3), weights)
        >>> torch.equal(y[-1], h)
        True
    """
    layout = {"batch_sizes": batch_sizes, "lengths": lengths, "reset": reset, "reverse": reverse}
    options = {"backend": backend, "embedding": embedding, "recompute": recompute, **more}
    return _single("gru", x, weights, state, layout, options)


def rnn(
    x: Tensor,
    weights: LayerWeights,
    state: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    backend: str = "auto",
    embedding: Tensor | None = None,
    recompute: bool | int = False,
    **more: Any,
) -> tuple[Tensor, Tensor]:
    """Run one Elman layer in one direction: ``y, h = rnn(x, weights, h0)``.

    Arguments, including ``more``, are as in :func:`sequence`.

    ``nonlinearity`` is ``"tanh"`` or ``"relu"``. Source: Elman 1990.

    Example:
        >>> rnn = fastrnn.RNN(3, 4)
        >>> weights = fastrnn.functional.LayerWeights(*rnn.parameters())
        >>> y, h = fastrnn.functional.rnn(torch.randn(5, 2, 3), weights)
        >>> torch.equal(y[-1], h)
        True
    """
    if nonlinearity not in ("tanh", "relu"):
        raise ValueError(f"nonlinearity: expected tanh or relu, got {nonlinearity!r}")
    layout = {"batch_sizes": batch_sizes, "lengths": lengths, "reset": reset, "reverse": reverse}
    options = {"backend": backend, "embedding": embedding, "recompute": recompute, **more}
    return _single(f"rnn_{nonlinearity}", x, weights, state, layout, options)


def _single(
    cell: str, x: Tensor, weights: LayerWeights, state: Tensor | None, layout: dict[str, Any], options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    y, (h,) = sequence(cell, x, weights, None if state is None else (state,), **layout, **options)
    return y, h


def hidden_gradients(
    cell: str,
    x: Tensor,
    weights: LayerWeights,
    states: Sequence[Tensor] | None,
    grad_y: Tensor | None,
    grad_final: Sequence[Tensor | None] | None = None,
    *,
    batch_sizes: Tensor | None = None,
    lengths: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
) -> Tensor:
    """Compute ∂L/∂h_t at every time step, the sum over all paths: its own output and every later time step.

    For the analysis of gradient flow and for regularisers of it. Arguments as in :func:`sequence`, and:

    Args:
        grad_y: ∂L/∂y, of y's shape, or None.
        grad_final: ∂L/∂(final states), each (B, P or H) or None.

    Returns:
        a tensor of y's shape, (T, B, P) or (N, P). Not differentiable.

    Example:
        >>> gru = fastrnn.GRU(3, 4)
        >>> weights = fastrnn.functional.LayerWeights(*gru.parameters())
        >>> x, ones = torch.randn(5, 2, 3), torch.ones(5, 2, 4)
        >>> fastrnn.functional.hidden_gradients("gru", x, weights, None, grad_y=ones).shape
        torch.Size([5, 2, 4])
    """
    states = () if states is None else tuple(states)
    call = Call(cell, x, weights, states, (), batch_sizes, lengths, reset, reverse)
    with torch.no_grad():
        y, finals, saved = _ops.forward(call, True)
        grad_final = [None] * len(finals) if grad_final is None else list(grad_final)
        return _ops.backward(call, [grad_y, *grad_final], y, saved, Wanted(hidden=True)).hidden[0]
