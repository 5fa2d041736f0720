"""The differentiable layer: ``torch.autograd.Function``s around the functional operators.

:class:`Layer` runs the fused forward, and its backward runs the fused backward. (In plain eager mode ``_C.layer`` does
just this in C++, at a quarter of the cost of a call; the compiler and ``torch.func`` go through the class here.) If
that backward is itself to be differentiated it goes through :class:`LayerBackward`, whose own backward is that of the
plain-torch reference: right to any order, and paid for only by those who ask. Forward mode takes the reference from the
start (functional.py).

Under ``vmap`` a batch of inputs becomes more rows of one call; a batch of weights becomes one call each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn import _C, _ops, cells, reference
from fastrnn._vmap import Rows, can_expand, each, needs_each, step_dim

#: x, w_ih, w_hh, b_ih, b_hh, w_hr: the inputs before the states.
N_FIXED = 6
N_RESERVE = 4


class Setting(NamedTuple):
    """What of a call is not differentiable, and (cell, reverse) not a tensor either."""

    cell: str
    reverse: bool
    batch_sizes: Tensor | None
    lengths: Tensor | None
    reset: Tensor | None


def _run_reference(setting: Setting, inputs: tuple[Tensor | None, ...]) -> tuple[Tensor, ...]:
    x, w_ih, w_hh, b_ih, b_hh, w_hr, *states = inputs
    assert x is not None
    assert w_hh is not None
    spec = cells.find(setting.cell)
    assert spec is not None
    if states:
        initial = tuple(s for s in states if s is not None)
    else:
        batch = x.shape[1] if setting.batch_sizes is None else int(setting.batch_sizes[0])
        initial = reference.zero_states(spec, x, batch, *_ops.state_widths(w_hh, w_hr))
    weights = (w_ih, w_hh, b_ih, b_hh, w_hr)
    y, finals = reference.sequence(
        spec, x, weights, initial, setting.batch_sizes, setting.lengths, setting.reset, setting.reverse
    )
    return (y, *finals)


class Layer(torch.autograd.Function):
    """``apply(*setting, *inputs)`` → y, final states, and four tensors for backward."""

    @staticmethod
    def forward(cell, reverse, batch_sizes, lengths, reset, x, w_ih, w_hh, b_ih, b_hh, w_hr, *states):
        y, finals, reserve = _ops.forward(
            cell, x, w_ih, w_hh, b_ih, b_hh, w_hr, states or None, batch_sizes, lengths, reset, reverse, True
        )
        return (y, *finals, *reserve)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.cell, ctx.reverse = inputs[:2]
        ctx.n_states = len(inputs) - 5 - N_FIXED
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[-N_RESERVE:])
        ctx.save_for_backward(*inputs[2:], output[0], *output[-N_RESERVE:])

    @staticmethod
    def backward(ctx, *grads):
        saved = ctx.saved_tensors
        end = 3 + N_FIXED + ctx.n_states
        setting, inputs, results = Setting(ctx.cell, ctx.reverse, *saved[:3]), saved[3:end], saved[end:]
        return _gradients(setting, inputs, results, grads[:-N_RESERVE], ctx.needs_input_grad)

    @staticmethod
    def vmap(info, in_dims, *args):
        setting, inputs = args[:5], args[5:]
        if needs_each(args, in_dims[6 : 5 + N_FIXED]):
            return each(Layer, info.batch_size, in_dims, args)
        size = info.batch_size
        rows = Rows(size, inputs[0], in_dims[5])
        folded = (
            *setting[:3],
            rows.fold(setting[3], in_dims[3], 0),
            rows.fold(setting[4], in_dims[4], 1),
            rows.fold(inputs[0], in_dims[5], 1),
            *inputs[1:N_FIXED],
            *(rows.fold(s, d, 0) for s, d in zip(inputs[N_FIXED:], in_dims[5 + N_FIXED :], strict=True)),
        )
        out = Layer.apply(*folded)
        states = [rows.unfold(t, 0) for t in out[1:-N_RESERVE]]
        reserve = [rows.unfold_saved(t) for t in out[-N_RESERVE:]]
        dims = (1, *(0 for _ in states), *(step_dim(t) for t in reserve))
        return (rows.unfold(out[0], 1), *states, *reserve), dims


def _gradients(setting: Setting, inputs, results, grads, needs_input_grad):
    """What a layer's backward returns: gradients of the inputs that need one, None for the rest."""
    for g in grads:
        if g is not None:
            break
    else:
        return (None,) * len(needs_input_grad)
    needs = needs_input_grad[5:]
    needs = (*needs[:N_FIXED], True in needs[N_FIXED:])
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        out = LayerBackward.apply(*setting, needs, len(inputs), len(grads), *inputs, *grads, *results)
    else:
        out = _layer_backward(setting, needs, inputs, grads, results)
    states = out[N_FIXED:] if needs[-1] else (None,) * (len(inputs) - N_FIXED)
    fixed = (g if need else None for g, need in zip(out, needs[:N_FIXED], strict=False))
    return (None, None, None, None, None, *fixed, *states)


def _higher_order(cell, reverse, batch_sizes, lengths, reset, needs, inputs, grads, results):
    """The eager layer's backward (csrc/binding/eager.cpp) where it is to be differentiated itself."""
    if any(g is not None and torch._C._functorch.is_legacy_batchedtensor(g) for g in grads):
        return _by_reference(Setting(cell, reverse, batch_sizes, lengths, reset), needs, inputs, grads)
    return LayerBackward.apply(
        cell, reverse, batch_sizes, lengths, reset, needs, len(inputs), len(grads), *inputs, *grads, *results
    )


def _by_reference(setting: Setting, needs, inputs, grads) -> tuple[Tensor, ...]:
    """Gradients through the reference, for `is_grads_batched`: an older vmap, which knows no autograd.Function."""
    create_graph = torch.is_grad_enabled()
    wanted = [k for k, t in enumerate(inputs) if t is not None and needs[min(k, N_FIXED)] and t.requires_grad]
    with torch.enable_grad():
        # Views, at which the engine stops: one input may be computed from another, and what lies between must not run.
        inputs = [t.view_as(t) if t is not None and t.requires_grad else t for t in inputs]
        outputs = _run_reference(setting, tuple(inputs))
        seeded = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None]
        found = torch.autograd.grad(
            [o for o, _ in seeded],
            [inputs[k] for k in wanted],
            [g for _, g in seeded],
            create_graph=create_graph,
            allow_unused=True,
        )
    out = [torch.zeros_like(t) if t is not None else inputs[0].new_empty(0) for t in inputs]
    for k, g in zip(wanted, found, strict=True):
        if g is not None:
            out[k] = g
    return tuple(out)


_C.use_higher_order(_higher_order)


def _layer_backward(setting: Setting, needs, inputs, grads, results):
    x, w_ih, w_hh, _, _, w_hr, *states = inputs
    return _ops.layer_backward(
        setting.cell,
        grads[0],
        grads[1:],
        x,
        w_ih,
        w_hh,
        w_hr,
        states or None,
        results[0],
        results[1:],
        setting.batch_sizes,
        setting.lengths,
        setting.reset,
        setting.reverse,
        needs,
    )


class LayerBackward(torch.autograd.Function):
    """``apply(*setting, needs, n_inputs, n_grads, *inputs, *grads, y, *reserve)`` → gradients of the inputs."""

    @staticmethod
    def forward(cell, reverse, batch_sizes, lengths, reset, needs, n_inputs, n_grads, *tensors):
        setting = Setting(cell, reverse, batch_sizes, lengths, reset)
        split = n_inputs + n_grads
        return tuple(_layer_backward(setting, needs, tensors[:n_inputs], tensors[n_inputs:split], tensors[split:]))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.cell, ctx.reverse = inputs[:2]
        ctx.needs, ctx.n_inputs, ctx.n_grads = inputs[5:8]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(t for t, need in zip(output, ctx.needs[:N_FIXED], strict=False) if not need))
        ctx.save_for_backward(*inputs[2:5], *inputs[8 : 8 + ctx.n_inputs + ctx.n_grads])

    @staticmethod
    def backward(ctx, *second):
        saved = ctx.saved_tensors
        setting = Setting(ctx.cell, ctx.reverse, *saved[:3])
        tensors = saved[3:]  # inputs, then grads
        needs = ctx.needs
        wanted = [*needs[:N_FIXED], *(needs[-1] for _ in range(ctx.n_inputs - N_FIXED))]
        present = [k for k, t in enumerate(tensors) if t is not None]
        seeds = [k for k, g in enumerate(second) if g is not None and wanted[k]]

        def first_order(*values: Tensor) -> tuple[Tensor, ...]:
            full: list[Tensor | None] = [None] * len(tensors)
            for k, value in zip(present, values, strict=True):
                full[k] = value
            arguments = [k for k in present if k < ctx.n_inputs]

            def run(*leaves: Tensor) -> tuple[Tensor, ...]:
                inputs: list[Tensor | None] = [None] * ctx.n_inputs
                for k, leaf in zip(arguments, leaves, strict=True):
                    inputs[k] = leaf
                return _run_reference(setting, tuple(inputs))

            outputs, pull = torch.func.vjp(  # type: ignore[misc] # its third result is optional
                run,
                *(full[k] for k in arguments),
            )
            grads = full[ctx.n_inputs :]
            pulled = dict(
                zip(
                    arguments,
                    pull(tuple(torch.zeros_like(o) if g is None else g for o, g in zip(outputs, grads, strict=True))),
                    strict=True,
                )
            )
            return tuple(pulled[k] for k in seeds)

        out: list[Tensor | None] = [None] * len(tensors)
        if seeds:
            _, pull = torch.func.vjp(  # type: ignore[misc]
                first_order,
                *(tensors[k] for k in present),
            )
            for k, g in zip(present, pull(tuple(second[k] for k in seeds)), strict=True):
                out[k] = g
        return (None,) * 8 + tuple(out) + (None,) * (1 + N_RESERVE)

    @staticmethod
    def vmap(info, in_dims, *args):
        needs, n_inputs, n_grads = args[5:8]
        weight_grads = any(needs[1:N_FIXED])
        if needs_each(args, in_dims[9 : 8 + N_FIXED]) or (
            weight_grads and not (can_expand(args) and _ops.sizes_of(args[0]).one_product)
        ):
            return each(LayerBackward, info.batch_size, in_dims, args)
        rows = Rows(info.batch_size, args[8], in_dims[8])
        inputs, grads = args[8 : 8 + n_inputs], args[8 + n_inputs : 8 + n_inputs + n_grads]
        results = args[8 + n_inputs + n_grads :]
        dims = in_dims[8:]
        folded_inputs = (
            rows.fold(inputs[0], dims[0], 1),
            *inputs[1:N_FIXED],
            *(rows.fold(s, d, 0) for s, d in zip(inputs[N_FIXED:], dims[N_FIXED:n_inputs], strict=True)),
        )
        grad_dims = dims[n_inputs : n_inputs + n_grads]
        folded_grads = (
            rows.fold(grads[0], grad_dims[0], 1),
            *(rows.fold(g, d, 0) for g, d in zip(grads[1:], grad_dims[1:], strict=True)),
        )
        folded_results = tuple(rows.fold_saved(r, d) for r, d in zip(results, dims[n_inputs + n_grads :], strict=True))
        setting = Setting(args[0], args[1], None, None, rows.fold(args[4], in_dims[4], 1))
        if weight_grads:
            out = _per_sample(setting, needs, rows, folded_inputs, folded_grads, folded_results)
        else:
            out = list(
                LayerBackward.apply(*setting, needs, n_inputs, n_grads, *folded_inputs, *folded_grads, *folded_results)
            )
            out[0] = rows.unfold_saved(out[0]) if needs[0] else out[0]
        out[N_FIXED:] = [rows.unfold(t, 0) for t in out[N_FIXED:]]
        weight_dims = (0 if need else None for need in needs[1:N_FIXED])
        return tuple(out), (1 if needs[0] else None, *weight_dims, *(0 for _ in out[N_FIXED:]))


def _per_sample(setting: Setting, needs, rows: Rows, inputs, grads, results) -> list[Tensor]:
    """Weight gradients of each sample: one fused pass over all rows, then one batched product a weight."""
    x, w_ih, w_hh, _, _, w_hr, *states = inputs
    y, reserve = results[0], results[1:]
    projecting = w_hr is not None
    da, drh, initial, dh = _ops.backward(
        setting.cell,
        grads[0],
        grads[1:],
        w_hh,
        w_hr,
        states,
        y,
        reserve,
        None,
        None,
        None,
        setting.reverse,
        needs[-1],
        projecting,
    )
    drh = da if drh.numel() == 0 else drh
    first = states[0].unsqueeze(0) if states else y.new_zeros(1, *y.shape[1:])
    before = torch.cat((y[1:], first)) if setting.reverse else torch.cat((first, y[:-1]))
    split = [rows.unfold(t, 1) for t in (da, drh, before, x)]
    da_v, drh_v, before_v, x_v = split
    out = [x.new_empty(0) for _ in range(N_FIXED)]
    if needs[0]:
        out[0] = rows.unfold(da if w_ih is None else da @ w_ih, 1)
    if needs[1]:
        out[1] = _outer_products(da_v, x_v)
    if needs[2]:
        out[2] = _outer_products(drh_v, before_v)
    if needs[3]:
        out[3] = da_v.sum((0, 2))
    if needs[4]:
        out[4] = drh_v.sum((0, 2))
    if needs[5] and projecting:
        out[5] = _outer_products(rows.unfold(dh, 1), rows.unfold(reserve[3], 1))
    return [*out, *initial]


def _outer_products(gradients: Tensor, values: Tensor) -> Tensor:
    """Each sample's sum over steps and rows of gradient times value: (T, V, B, M) and (T, V, B, N) to (V, M, N).

    In some pieces of the sequence and then the sum of these: BLAS adds up one piece in one chain, whose error grows
    with its length. (csrc/binding/products.cpp does so too.)
    """
    chain, most = 96, 16
    T, B = gradients.shape[0], gradients.shape[2]
    steps = max(1, chain // max(1, B), -(-T // most))
    pieces = zip(gradients.split(steps), values.split(steps), strict=True)
    return torch.stack([torch.einsum("tvbm,tvbn->vmn", g, v) for g, v in pieces]).sum(0)
