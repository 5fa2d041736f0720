"""The differentiable layer: ``torch.autograd.Function``s that call the functional operators.

:class:`Layer` runs the fused forward pass, and its backward the fused backward pass. In eager mode ``_C.layer`` does
the same in C++, at a quarter of the overhead; the compiler and ``torch.func`` use the class here. If the backward pass
is itself to be differentiated, it runs :class:`LayerBackward`, whose own backward is that of the plain PyTorch
reference: correct to any order, and without cost for first derivatives. Forward mode uses the reference from the start
(_paths.py).

Under ``vmap`` a batch of inputs becomes more batch rows of one call; a batch of weights becomes one call each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn import _C, _invariant, _ops, cells, reference
from fastrnn import _surroundings as here
from fastrnn._call import N_FIXED, N_SAVED, Call, Wanted, as_returned, needs_of, save, saved, wanted_of
from fastrnn._vmap import Rows, can_expand, each, needs_each, step_dim


def _run_reference(call: Call) -> tuple[Tensor, ...]:
    if _invariant.enabled:
        _invariant.refuse("a second derivative or batched gradients, which are computed step by step in torch")
    spec = cells.find(call.cell)
    assert spec is not None
    return _flatten(reference.run(spec, call))


def _flatten(result: tuple[Tensor, tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    y, finals = result
    return (y, *finals)


class Layer(torch.autograd.Function):
    """``apply(*call.flat())`` → y, final states, and the tensors saved for backward."""

    @staticmethod
    def forward(*flat):
        y, finals, saved_tensors = _ops.forward(Call.of_flat(*flat), True)
        return (y, *finals, *saved_tensors)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[-N_SAVED:])
        save(ctx, Call.of_flat(*inputs), output[0], *output[-N_SAVED:])

    @staticmethod
    def backward(ctx, *grads):
        call, (y, *results) = saved(ctx)
        needs = needs_of(ctx, call)
        pass_ = BackwardPass(call, grads[:-N_SAVED], y, results, wanted_of(needs))
        return as_returned(ctx, needs, _gradients(pass_))

    @staticmethod
    def vmap(info, in_dims, *flat):
        call = Call.of_flat(*flat)
        dims = Call.of_flat(*in_dims, like=call)
        if needs_each(call, dims):
            return each(Layer, info.batch_size, in_dims, flat)
        rows = Rows(info.batch_size, call, dims)
        out = Layer.apply(*rows.fold_call(call, dims).flat())
        states = [rows.unfold(t, 0) for t in out[1:-N_SAVED]]
        saved_tensors = [rows.unfold_saved(t) for t in out[-N_SAVED:]]
        places = (1, *(0 for _ in states), *(step_dim(t) for t in saved_tensors))
        return (rows.unfold(out[0], 1), *states, *saved_tensors), places


class BackwardPass(NamedTuple):
    """Backward pass of a call: gradients of y and of the final states, y, saved tensors, gradients to compute."""

    call: Call
    grads: Sequence[Tensor | None]
    y: Tensor
    saved: Sequence[Tensor]
    wanted: Wanted

    def run(self) -> list[Tensor | None]:
        """Return a gradient or None for each of the call's inputs."""
        return _ops.backward(self.call, self.grads, self.y, self.saved, self.wanted).of_inputs(self.call)

    def flat(self) -> tuple[Any, ...]:
        """Return the backward pass as a list of arguments, the tensors last."""
        call = self.call.flat()
        return (tuple(self.wanted), len(call), len(self.grads), *call, *self.grads, self.y, *self.saved)

    @staticmethod
    def of_flat(wanted: Any, call: Any, grads: Any, *rest: Any, like: BackwardPass | None = None) -> BackwardPass:
        """Rebuild it from such a list; with ``like``, from other values in the places of that one's arguments."""
        if like is not None:
            call, grads = len(like.call.flat()), len(like.grads)
        own = Call.of_flat(*rest[:call], like=None if like is None else like.call)
        y, *results = rest[call + grads :]
        return BackwardPass(own, rest[call : call + grads], y, results, Wanted(*wanted) if like is None else wanted)


def _gradients(pass_: BackwardPass) -> Sequence[Tensor | None]:
    """Return a gradient or None for each of the call's inputs."""
    if all(g is None for g in pass_.grads):
        return (None,) * len(pass_.call.inputs)
    if torch.is_grad_enabled() and not here.is_compiling():
        return LayerBackward.apply(*pass_.flat())
    return pass_.run()


def differentiable_backward(flat, wanted, grads, results) -> Sequence[Tensor | None]:
    """Return a gradient or None for each input of a call whose backward pass is itself differentiated or batched.

    Called by csrc/python/eager.cpp.
    """
    call, (y, *saved_tensors) = Call.of_flat(*flat), results
    if any(map(here.is_batched, grads)):
        return _by_reference(call, Wanted(*wanted), grads)
    return LayerBackward.apply(*BackwardPass(call, grads, y, saved_tensors, Wanted(*wanted)).flat())


def _inputs_wanted(call: Call, wanted: Wanted) -> list[bool]:
    """Return a flag for each of the call's inputs: True if its gradient is to be computed."""
    return [*wanted[:N_FIXED], *(wanted.states for _ in call.states), *(wanted.restart for _ in call.restart)]


def _by_reference(call: Call, wanted: Wanted, grads) -> list[Tensor | None]:
    """Compute gradients through the reference for `is_grads_batched`, whose vmap does not support autograd.Function."""
    create_graph = torch.is_grad_enabled()
    flags = _inputs_wanted(call, wanted)
    chosen = [k for k, t in enumerate(call.inputs) if t is not None and flags[k] and t.requires_grad]
    with torch.enable_grad():
        # Views, at which the engine stops: if one input is computed from another, the graph between them must not run.
        inputs = [t.view_as(t) if t is not None and t.requires_grad else t for t in call.inputs]
        outputs = _run_reference(call.with_inputs(inputs))
        seeded = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None]
        gradients = torch.autograd.grad(
            [o for o, _ in seeded],
            [inputs[k] for k in chosen],
            [g for _, g in seeded],
            create_graph=create_graph,
            allow_unused=True,
        )
    out = [torch.zeros_like(t) if t is not None else None for t in inputs]
    for k, g in zip(chosen, gradients, strict=True):
        if g is not None:
            out[k] = g
    return out


_C.use_higher_order(differentiable_backward)


class LayerBackward(torch.autograd.Function):
    """``apply(*backward_pass.flat())`` → a gradient of each input, an empty tensor where it is not requested."""

    @staticmethod
    def forward(*flat):
        pass_ = BackwardPass.of_flat(*flat)
        return tuple(pass_.call.x.new_empty(0) if g is None else g for g in pass_.run())

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass_ = BackwardPass.of_flat(*inputs)
        ctx.wanted, ctx.after = pass_.wanted, 1 + len(pass_.saved)
        ctx.set_materialize_grads(False)
        flags = _inputs_wanted(pass_.call, pass_.wanted)
        ctx.mark_non_differentiable(*(t for t, wanted in zip(output, flags, strict=True) if not wanted))
        save(ctx, pass_.call, *pass_.grads)

    @staticmethod
    def backward(ctx, *second):
        call, grads = saved(ctx)
        wanted = _inputs_wanted(call, ctx.wanted)
        count = len(call.inputs)
        tensors = [*call.inputs, *grads]
        present = [k for k, t in enumerate(tensors) if t is not None]
        seeds = [k for k, g in enumerate(second) if g is not None and wanted[k]]

        def first_order(*values: Tensor) -> tuple[Tensor, ...]:
            full: list[Tensor | None] = [None] * len(tensors)
            for k, value in zip(present, values, strict=True):
                full[k] = value
            arguments = [k for k in present if k < count]

            def run(*leaves: Tensor) -> tuple[Tensor, ...]:
                inputs: list[Tensor | None] = [None] * count
                for k, leaf in zip(arguments, leaves, strict=True):
                    inputs[k] = leaf
                return _run_reference(call.with_inputs(inputs))

            outputs, pull = torch.func.vjp(  # type: ignore[misc] # the third result is optional
                run,
                *(full[k] for k in arguments),
            )
            given = tuple(torch.zeros_like(o) if g is None else g for o, g in zip(outputs, full[count:], strict=True))
            pulled = dict(zip(arguments, pull(given), strict=True))
            return tuple(pulled[k] for k in seeds)

        out: list[Tensor | None] = [None] * len(tensors)
        if seeds:
            _, pull = torch.func.vjp(  # type: ignore[misc]
                first_order,
                *(tensors[k] for k in present),
            )
            for k, g in zip(present, pull(tuple(second[k] for k in seeds)), strict=True):
                out[k] = g
        before = 3 + len(ctx.setting) + len(call.layout)
        return (None,) * before + tuple(out) + (None,) * ctx.after

    @staticmethod
    def vmap(info, in_dims, *flat):
        pass_ = BackwardPass.of_flat(*flat)
        dims: Any = BackwardPass.of_flat(*in_dims, like=pass_)
        call, wanted = pass_.call, pass_.wanted
        if needs_each(call, dims.call) or (
            wanted.weights and not (can_expand(flat, call.reset) and _ops.traits_of(call.cell).one_product)
        ):
            return each(LayerBackward, info.batch_size, in_dims, flat)
        rows = Rows(info.batch_size, call, dims.call)
        grads = [rows.fold(g, d, 0 if k else 1) for k, (g, d) in enumerate(zip(pass_.grads, dims.grads, strict=True))]
        y, *results = (
            rows.fold_saved(t, d) for t, d in zip((pass_.y, *pass_.saved), (dims.y, *dims.saved), strict=True)
        )
        folded = BackwardPass(rows.fold_call(call, dims.call), grads, y, results, wanted)
        if wanted.weights:
            out = _per_sample(folded, rows)
        else:
            out = list(LayerBackward.apply(*folded.flat()))
            out[0] = rows.unfold_saved(out[0]) if wanted.x else out[0]
        flags = _inputs_wanted(call, wanted)
        for k in range(N_FIXED, len(out)):
            out[k] = rows.unfold(out[k], 0) if flags[k] else out[k]
        places = (1, *(0 for _ in out[1:]))
        return tuple(out), tuple(place if flag else None for place, flag in zip(places, flags, strict=True))


def _per_sample(pass_: BackwardPass, rows: Rows) -> list[Tensor]:
    """Compute the weight gradients of each sample: one fused pass over all rows, then a batched product per weight."""
    call, wanted, y = pass_.call, pass_.wanted, pass_.y
    w_ih, projecting = call.weights.w_ih, call.weights.w_hr is not None
    wanted_here = Wanted(states=wanted.states, restart=wanted.restart, products=True, hidden=projecting)
    results = _ops.backward(call, pass_.grads, y, pass_.saved, wanted_here)
    da, drh = results.products
    first = call.states[0].unsqueeze(0) if call.states else y.new_zeros(1, *y.shape[1:])
    before = torch.cat((y[1:], first)) if call.reverse else torch.cat((first, y[:-1]))
    da_v, drh_v, before_v, x_v = (rows.unfold(t, 1) for t in (da, drh, before, call.x))
    out = [y.new_empty(0) for _ in range(N_FIXED)]
    if wanted.x:
        out[0] = rows.unfold(da if w_ih is None else da @ w_ih, 1)
    if wanted.w_ih:
        out[1] = _outer_products(da_v, x_v)
    if wanted.w_hh:
        out[2] = _outer_products(drh_v, before_v)
    if wanted.b_ih:
        out[3] = da_v.sum((0, 2))
    if wanted.b_hh:
        out[4] = drh_v.sum((0, 2))
    if wanted.w_hr and projecting:
        out[5] = _outer_products(rows.unfold(results.hidden[0], 1), rows.unfold(pass_.saved[3], 1))
    empty = y.new_empty(0)
    states = results.states or [empty] * len(call.states)
    return [*out, *states, *(results.restart or [empty] * len(call.restart))]


def _outer_products(gradients: Tensor, values: Tensor) -> Tensor:
    """Sum gradient times value over time steps and batch rows: (T, V, B, M) and (T, V, B, N) to (V, M, N).

    The sequence is summed in pieces and then over the pieces: BLAS adds up one piece sequentially, with an error that
    grows with its length. csrc/ops/cpu/products.cpp does the same.
    """
    terms, most = 96, 16
    T, B = gradients.shape[0], gradients.shape[2]
    steps = max(1, terms // max(1, B), -(-T // most))
    pieces = zip(gradients.split(steps), values.split(steps), strict=True)
    return torch.stack([torch.einsum("tvbm,tvbn->vmn", g, v) for g, v in pieces]).sum(0)
