"""The functional form: recurrent layers as functions of their weights.

:func:`lstm`, :func:`gru` and :func:`rnn` run a stack of one layer in one direction each call; the modules build layers,
directions and dropout around :func:`sequence`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastrnn import _C, _gpu, _onnx, _ops, _recompute, _segments, _tokens, cells, reference
from fastrnn.autograd import N_RESERVE, Layer
from fastrnn.cells import CellSpec

if TYPE_CHECKING:
    from fastrnn.training import GradientNormPenalty

_FORMATS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
_BACKENDS = ("auto", "fused", "reference")
_FUNCTIONALIZE = torch._C._functorch.TransformType.Functionalize


class LayerWeights(NamedTuple):
    """The weights of one layer in one direction, named as torch.nn names them.

    G is the number of gates of the cell, P the width of ``h``: the projection's, or H.
    """

    #: (G·H, I), or None where the input is the product with it already
    w_ih: Tensor | None
    #: (G·H, P); of a cell of one's own the gates that multiply h, those that multiply another vector, and a row for
    #: each of its parameters
    w_hh: Tensor
    #: (G·H) or None
    b_ih: Tensor | None = None
    #: (G·H) or None
    b_hh: Tensor | None = None
    #: (P, H) or None: no projection
    w_hr: Tensor | None = None


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
    """One layer in one direction over a whole sequence.

    Differentiable in ``x``, every weight and every state, to any order, in reverse and forward mode, under
    ``torch.func`` transforms and ``torch.compile``. Under autocast it computes in the dtype it is given.

    Args:
        cell: a name in :data:`fastrnn.cells.CELLS`: ``"lstm"``, ``"gru"``, ``"rnn_tanh"``, ``"rnn_relu"``; or of a cell
            made by :func:`fastrnn.cell`, its ``kernels``.
        x: (T, B, I) with any strides; (N, I) with ``batch_sizes``. If ``weights.w_ih`` is None, the input product
            (…, G·H) itself.
        weights: the layer's weights, all of x's dtype.
        states: initial states, each (B, P or H), ``h`` first; None for ``initial``, or zeros.
        batch_sizes: (T) int64 on the CPU (also for x on a GPU), rows of each step of a packed input, never growing. The
            rows of states are then in the order of the packed rows.
        lengths: (B) integers from 0 to T in any order, the steps of each row. Outputs after a row's end are zero, its
            final state is that of its own last step, padding may hold anything. On a GPU they are not read back, and so
            not checked: more than T counts as T, less than 0 as 0.
        reset: (T, B) bool, true at the first step of a new segment: the state before it is the initial state again, or
            ``initial``. With ``reverse`` the segments are the same, each run from its last step to its first.
        reverse: from the last step to the first.
        backend: ``"fused"`` kernels or raise; the plain-torch ``"reference"``; or ``"auto"``: fused where there are
            kernels, else the reference with one warning that says why.
        embedding: (V, I). ``x`` is then token ids, int64 or int32, (T, B), or (N) with ``batch_sizes``; beyond
            ``lengths`` they may be anything. The result is that of embedded ids. If V is less than the number of ids,
            the products of all V embeddings are made and looked up (in 16-bit formats only where nothing asks for a
            gradient: there the sums over a token's occurrences would lose digits).
        recompute: for long sequences in training. True: inputs, outputs and the states at the borders of √T segments
            are kept for the backward pass, which computes all else again, segment by segment; an integer: the steps of
            a segment, at least 2. Results are the same, but in 16-bit formats the states are rounded at the borders.
            Without effect where the kernels keep nothing or do not run: no gradient, the reference, compiled
            functions, ``torch.func``. Higher derivatives keep everything.
        initial: what new segments start from where ``states`` are those that an earlier call returned: states in their
            form. A true ``reset`` at the very first step then counts too. None: ``states``.
        clip_state_gradient: a bound c. In the backward pass every element of ∂L/∂h_t, all paths together, is cut to ±c
            before it goes through step t. States other than h are not cut. (Not where derivatives are taken in forward
            mode.)
        penalty: what adds the gradient of its Ω to that of ``w_hh``: `fastrnn.training.GradientNormPenalty`.

    Returns:
        outputs (T, B, P) or (N, P), and the tuple of final states, each (B, P or H).

    Raises:
        ValueError: ``cell``, ``backend``, ``batch_sizes``, ``lengths``, ``reset`` or ``recompute`` is not what it must
            be.
        RuntimeError: sizes or dtypes do not fit together, or ``backend="fused"`` where there are no kernels.
        IndexError: an id is not in 0…V-1.
    """
    spec = cells.find(cell)
    if spec is None:
        raise ValueError(_C.unknown_cell(cell) if isinstance(cell, str) else f"cell: expected a name, got {cell!r}")
    if weights.w_hr is not None:
        spec.check_projection(weights.w_hr)
    if backend != "auto" and backend not in _BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(_BACKENDS)}, got {backend!r}")
    if recompute is not False:
        _recompute.check(recompute)
    if initial is not None and states is None:
        states = initial
    elif initial is not None and states is not None and reset is not None:
        options = {"reverse": reverse, "backend": backend, "embedding": embedding, "recompute": recompute}
        options.update(clip_state_gradient=clip_state_gradient, penalty=penalty)
        return _segments.from_initial(
            sequence, cell, x, weights, tuple(states), tuple(initial), lengths, reset, options
        )
    if clip_state_gradient is not None:
        cell = cells.with_bound(cell, clip_state_gradient)
        if weights.w_hh.is_complex():
            raise ValueError(f"clip_state_gradient: expected real numbers, got weights of {weights.w_hh.dtype}")
        spec = spec.clipped(clip_state_gradient)
    if embedding is not None:
        # To be kept, embedded ids (…, I) are smaller than products (…, G·H).
        x, w_ih, b_ih = _tokens.embed(x, embedding, weights.w_ih, weights.b_ih, batch_sizes, lengths, bool(recompute))
        weights = weights._replace(w_ih=w_ih, b_ih=b_ih)
    states = () if states is None else tuple(states)
    compiling = torch.compiler.is_compiling()
    if not compiling and torch._C._is_tracing() and torch.onnx.is_in_onnx_export():
        return _onnx.traced(cell, x, weights, states, batch_sizes, lengths, reset, reverse)
    if penalty is not None:
        return penalty._layer(cell, spec, x, weights, states, (batch_sizes, lengths, reset, reverse), backend)
    transformed = torch._C._are_functorch_transforms_active()
    functionalized = transformed and not compiling and _is_functionalized()
    plain = _must_be_plain(compiling and transformed) or (functionalized and _may_need_graph(x, weights, states))
    for_onnx = compiling and _onnx.replaces_operator(weights.w_hh)
    if not for_onnx and (backend == "reference" or plain or not _fusible(weights, backend, spec)):
        if not states:
            batch = x.shape[1] if batch_sizes is None else int(batch_sizes[0])
            states = reference.zero_states(spec, x, batch, *_ops.state_widths(weights.w_hh, weights.w_hr))
        return _without_autocast(spec, x, weights, states, batch_sizes, lengths, reset, reverse)
    layout = (batch_sizes, lengths, reset, reverse)
    if not compiling and not transformed:
        if recompute and _needs_graph(x, weights, states) and not _below_autograd():
            found = _recompute.layer(cell, x, weights, states, *layout, recompute)
            if found is not None:
                return found
        try:
            out = _ops.layer(cell, x, *weights, states, *layout)
        except TypeError:
            _check_types(x, weights, states, layout)
            raise
        if out is not None:
            return out[0], tuple(out[1:])
    graph = transformed or (_needs_graph(x, weights, states) and (compiling or not _below_autograd()))
    if graph and not functionalized:
        out = Layer.apply(cell, reverse, batch_sizes, lengths, reset, x, *weights, *states)
        # A copy, as y may be changed in place: neither the compiler nor torch.func notices that for the saved one. In
        # eager mode autograd does, and raises in backward, as it does for torch.nn on a GPU.
        noticed = x.is_cuda and not compiling and not transformed and torch._C._len_torch_dispatch_stack() == 0
        return out[0] if noticed else out[0].clone(), out[1:-N_RESERVE]
    y, finals, _ = _ops.forward(cell, x, *weights, states or None, *layout, False)
    return y, tuple(finals)


def _must_be_plain(transformed_and_compiling: bool) -> bool:
    """Forward mode; and torch.func inside a compiled function, where dynamo says that nothing requires a gradient."""
    return transformed_and_compiling or torch.autograd.forward_ad._current_level >= 0


def _without_autocast(spec: CellSpec, x: Tensor, *arguments: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    device = x.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return reference.sequence(spec, x, *arguments)
    return reference.sequence(spec, x, *arguments)


def _check_types(x: Tensor, weights: LayerWeights, states: tuple[Tensor, ...], layout: tuple) -> None:
    """Raises a TypeError that names the argument which is no tensor."""
    named: dict[str, Any] = {"x": x, **LayerWeights(*weights)._asdict()}
    named |= {f"states[{k}]": s for k, s in enumerate(states)}
    named |= dict(zip(("batch_sizes", "lengths", "reset"), layout, strict=False))
    optional = ("w_ih", "b_ih", "b_hh", "w_hr", "batch_sizes", "lengths", "reset")
    for name, value in named.items():
        if not isinstance(value, Tensor) and not (value is None and name in optional):
            raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}") from None


def _needs_graph(x: Tensor, weights: LayerWeights, states: tuple[Tensor, ...]) -> bool:
    if torch.is_grad_enabled():
        for t in (x, *weights, *states):
            if t is not None and t.requires_grad:
                return True
    return False


def _below_autograd() -> bool:
    """Whether nothing is recorded, whatever grad mode says: in inference mode, or in the body of a custom operator.

    Not for the compiler to trace.
    """
    return torch._C._dispatch_tls_is_dispatch_key_excluded(torch._C.DispatchKey.AutogradFunctionality)


def _is_functionalized() -> bool:
    """Under `torch.func.functionalize`, at any level: it has no rule for an ``autograd.Function``."""
    return any(level.key() == _FUNCTIONALIZE for level in torch._C._functorch.get_interpreter_stack() or ())


def _may_need_graph(x: Tensor, weights: LayerWeights, states: tuple[Tensor, ...]) -> bool:
    """As `_needs_graph`, under functionalize: another transform may want gradients, or the tensors wrapped by it."""
    if len(torch._C._functorch.get_interpreter_stack() or ()) > 1:
        return True
    inside = [t for t in (x, *weights, *states) if t is not None]
    inside = [torch._from_functional_tensor(t) if torch._is_functional_tensor(t) else t for t in inside]
    return torch.is_grad_enabled() and any(t.requires_grad for t in inside)


def _fusible(weights: LayerWeights, backend: str, spec: CellSpec) -> bool:
    reason = no_kernels(spec, weights.w_hh.dtype, weights.w_hh.device)
    if not reason:
        return True
    if backend == "fused":
        raise RuntimeError(f'backend="fused": {reason}')
    instead = "using the plain-torch reference" if spec.prepare is None else "running it as plain torch, step by step"
    _warn_once(f"fastrnn: {reason}; {instead}")
    return False


def no_kernels(spec: CellSpec, dtype: torch.dtype, device: torch.device) -> str:
    """Why there are no kernels of a cell, or an empty string."""
    if spec.prepare is not None:
        problem = _prepared(spec.name, dtype, device)
        return f"{spec.name}: {problem}" if problem else ""
    reason = f"no kernels for {dtype} on {device.type}"
    if dtype not in _FORMATS:
        return reason
    if device.type in ("cpu", "meta"):
        return ""
    if device.type != "cuda":
        return reason
    problem = _gpu.problem(device)
    return f"{reason}, {problem}" if problem else ""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _prepared(cell: str, dtype: torch.dtype, device: torch.device) -> str:
    spec = cells.find(cell)
    assert spec is not None
    assert spec.prepare is not None
    return spec.prepare(dtype, device)


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=4)


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
    """One LSTM layer in one direction: ``y, (h, c) = lstm(x, weights, (h0, c0))``. Arguments as in :func:`sequence`,
    ``more`` of them too.

    Gates in torch's order (i, f, g, o). Source: Hochreiter & Schmidhuber 1997 with the forget gate of Gers 2000; with
    ``weights.w_hr`` the projection of Sak 2014.
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
    """One GRU layer in one direction: ``y, h = gru(x, weights, h0)``. Arguments as in :func:`sequence`, ``more`` of
    them too.

    Gates in torch's order (r, z, n), reset after the product. Source: Cho 2014, v1.
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
    """One Elman layer in one direction: ``y, h = rnn(x, weights, h0)``. Arguments as in :func:`sequence`, ``more`` of
    them too.

    ``nonlinearity`` is ``"tanh"`` or ``"relu"``. Source: Elman 1990.
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
    """∂L/∂h_t at every step, all paths together: through the step's own output and through every later step.

    For the analysis of gradient flow and for regularisers of it. Arguments as in :func:`sequence`, and:

    Args:
        grad_y: ∂L/∂y, of y's shape, or None.
        grad_final: ∂L/∂(final states), each (B, P or H) or None.

    Returns:
        a tensor of y's shape, (T, B, P) or (N, P). Not differentiable.
    """
    states = [] if states is None else list(states)
    with torch.no_grad():
        layout = (batch_sizes, lengths, reset, reverse)
        y, finals, reserve = _ops.forward(cell, x, *weights, states, *layout, True)
        grad_final = [None] * len(finals) if grad_final is None else list(grad_final)
        _, w_hh, _, _, w_hr = weights
        return _ops.backward(cell, grad_y, grad_final, w_hh, w_hr, states, y, reserve, *layout, False, True)[3]
