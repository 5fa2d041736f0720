"""Loader of the compiled operators, with their output shapes for the compiler.

``torch.ops.fastrnn.*`` are functional: they change no argument, and no result shares memory with one. Their schemas
and results are described in ``csrc/ops/operators.h``.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn._missing import KernelsMissingError, remedy, why

try:
    from fastrnn import _C
except ImportError as error:
    raise KernelsMissingError(
        f"fastrnn: {why(error)}: {remedy()}; or, to use an installed fastrnn instead of "
        "this checkout, run Python from another directory"
    ) from error

# After _C, which declares the operators that _gpu implements for CUDA.
from fastrnn import _gpu, cells
from fastrnn._call import Call, Gradients, LayerWeights, Wanted
from fastrnn._call_checks import UNKNOWN, Checked, check_dtype, check_present

if _C.capability_problem():
    warnings.warn(f"{_C.capability_problem()}; using {_C.capability()}", stacklevel=2)


class SavedTensor(NamedTuple):
    """A tensor that a forward pass saves, of width ``per_unit``·H + ``constant``; not saved if the width is 0."""

    per_unit: int
    constant: int
    compute: bool  # stored in the compute dtype

    def width(self, hidden):
        return self.per_unit * hidden + self.constant


class Traits(NamedTuple):
    """Sizes of a cell, as in the kernels (csrc/simd/cell_traits.h)."""

    gates: int
    states: int
    values: int  # values saved for backward per hidden unit
    split_from: int  # ∂L/∂(R·h) is ∂L/∂(W·x) for the gates before this one
    recurrent: int  # gates with a recurrent product
    second: int  # those of them that multiply another vector than h
    parameters: int
    totals: int  # sums over all units of a row
    projectable: bool
    saved: tuple[SavedTensor, ...]
    saved_with_projection: tuple[SavedTensor, ...]

    @property
    def one_product(self) -> bool:
        """Return True if w_hh is the matrix of a single product, with rows for every gate and nothing else."""
        return self.recurrent == self.gates and not self.parameters and not self.second

    def saved_tensors(self, projection: bool) -> tuple[SavedTensor, ...]:
        return self.saved_with_projection if projection else self.saved


def _traits(name: str) -> Traits:
    known = _C.cell_traits(name)
    for key in ("saved", "saved_with_projection"):
        known[key] = tuple(SavedTensor(*t) for t in known[key])
    return Traits(**known)


TRAITS: dict[str, Traits] = {name: _traits(name) for name in _C.cells()}  # fastrnn.custom adds its own


def traits_of(cell: str) -> Traits:
    """Return the traits of a cell.

    Raises:
        ValueError: the cell does not exist.
    """
    found = TRAITS.get(cell)
    return _traits_of_cached(cell) if found is None else found


def _traits_of_cached(name: str) -> Traits:
    """Return the traits of a custom cell defined by another process, whose kernels are in the cell cache."""
    from fastrnn.custom.build import load_cached  # which imports this module

    load_cached(name)
    return _traits(name)


_DTYPES = {"Float": torch.float32, "Double": torch.float64, "BFloat16": torch.bfloat16, "Half": torch.float16}


def _prepare(cell: str, dtype: str, device: str) -> str:
    """Load or build the kernels of a custom cell for an operator; return the problem or an empty string.

    Compiled and exported programs hold the name of a cell and not its definition; the cell cache may have its kernels.
    """
    spec = cells.find(cell)
    if spec is None:
        from fastrnn.custom.build import load_cached  # which imports this module

        load_cached(cell)
        return ""
    if spec.prepare is None:
        return ""
    return spec.prepare(_DTYPES[dtype], torch.device(device))


_C.use_preparation(_prepare)
if _gpu.module is not None:
    _gpu.module.use_preparation(_prepare)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that values of a storage dtype are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


#: The operators themselves, with their full argument lists.
sequence_forward = torch.ops.fastrnn.sequence_forward.default
layer_backward = torch.ops.fastrnn.layer_backward.default


def forward(call: Call, training: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return y, the final states and, if ``training``, the tensors that `backward` takes."""
    return sequence_forward(
        call.cell, call.x, *call.weights, call.states, *call.layout, call.reverse, training, call.restart
    )


def backward(
    call: Call, grads: Sequence[Tensor | None], y: Tensor, saved: Sequence[Tensor], wanted: Wanted
) -> Gradients:
    """Return the gradients of a call from those of y and (optionally) the final states, and `forward`'s results."""
    w_ih, w_hh, _, _, w_hr = call.weights
    inputs = (call.x, w_ih, w_hh, w_hr, call.states)
    found = layer_backward(
        call.cell, grads[0], grads[1:], *inputs, y, saved, *call.layout, call.reverse, wanted, call.restart, call.clip
    )
    return Gradients.of_flat(found, wanted, traits_of(call.cell).states, len(call.restart))


def layer(call: Call) -> list[Tensor] | None:
    """Return y and the final states with their graph in eager mode; None if the dispatcher must see the operators."""
    return _C.layer(call.flat())


def _checked(call: Call, rows_like: Tensor) -> Checked:
    check_present(call.weights.w_hh, "w_hh")
    check_dtype(call.weights.w_hh.dtype)
    return Checked(call, traits_of(call.cell), rows_like)


def _batch(checked: Checked):
    """Return B. For packed input it is a value, not a shape, and may be unknown until run time."""
    return torch.library.get_ctx().new_dynamic_size() if checked.batch is UNKNOWN else checked.batch


@torch.library.register_fake("fastrnn::sequence_forward")
def _(cell, x, w_ih, w_hh, b_ih, b_hh, w_hr, states, batch_sizes, lengths, reset, reverse, training, restart=None):
    weights = LayerWeights(w_ih, w_hh, b_ih, b_hh, w_hr)
    call = Call(cell, x, weights, tuple(states or ()), tuple(restart or ()), batch_sizes, lengths, reset, reverse)
    checked = _checked(call, x)
    checked.check_inputs()
    batch = _batch(checked)
    y = w_hh.new_empty(checked.rows_of(checked.projected))
    finals = [w_hh.new_empty((batch, checked.width(s))) for s in range(checked.traits.states)]
    if not training:
        return y, finals, []
    saved = []
    for tensor in checked.saved:
        width = tensor.width(checked.hidden)
        dtype = compute_dtype(w_hh.dtype) if tensor.compute else w_hh.dtype
        saved.append(w_hh.new_empty(checked.rows_of(width) if width > 0 else (0, 0), dtype=dtype))
    return y, finals, saved


@torch.library.register_fake("fastrnn::layer_backward")
def _(
    cell,
    grad_y,
    grad_final,
    x,
    w_ih,
    w_hh,
    w_hr,
    states,
    y,
    saved,
    batch_sizes,
    lengths,
    reset,
    reverse,
    wanted,
    restart=None,
    clip=0.0,
):
    weights, layout = LayerWeights(w_ih, w_hh, w_hr=w_hr), (batch_sizes, lengths, reset, reverse, clip)
    checked = _checked(Call(cell, x, weights, tuple(states or ()), tuple(restart or ()), *layout), y)
    checked.check_inputs()
    checked.check_results(y, saved)
    checked.check_grads(grad_y, grad_final)
    wanted, traits, hidden = Wanted(*wanted), checked.traits, checked.hidden
    biases = ((traits.gates * hidden,), (traits.recurrent * hidden,))
    w_ih_shape, w_hr_shape = (None if w is None else w.shape for w in (w_ih, w_hr))
    shapes = (x.shape, w_ih_shape, w_hh.shape, *biases, w_hr_shape)
    out = [w_hh.new_empty(s if want and s is not None else (0,)) for want, s in zip(wanted, shapes, strict=False)]
    batch = _batch(checked) if wanted.states or wanted.restart else None
    widths = [checked.width(s) for s in range(traits.states)]
    for there in (wanted.states, wanted.restart and bool(restart)):
        out += [w_hh.new_empty((batch, width)) for width in widths] if there else []
    if wanted.products:
        out += [w_hh.new_empty(checked.rows_of(n * hidden)) for n in (traits.gates, traits.recurrent)]
    if wanted.hidden:
        out.append(w_hh.new_empty(y.shape))
    if wanted.later:
        out += [w_hh.new_empty(checked.rows_of(width), dtype=compute_dtype(w_hh.dtype)) for width in widths]
    return out
