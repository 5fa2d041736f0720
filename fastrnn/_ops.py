"""Loads the compiled operators and tells the compiler their output shapes.

``torch.ops.fastrnn.*`` are functional: they change no argument and share no memory with one. Their schemas and what
they return are in ``csrc/binding/ops.cpp`` and ``backward.cpp``.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn._missing import KernelsMissingError, check_torch

try:
    from fastrnn import _C

    check_torch(_C.build_info()["torch_version"], "the compiled kernels")
except KernelsMissingError:
    raise
except ImportError as error:
    raise KernelsMissingError(
        f"fastrnn: the compiled kernels cannot be loaded ({error}). In a checkout, build them with "
        "`pip install -e . --no-build-isolation`; if fastrnn is installed elsewhere, run Python outside of the checkout"
    ) from error

# After _C, which defines the operators that it implements for CUDA.
from fastrnn import _gpu, cells
from fastrnn._call_checks import UNKNOWN, Call, check_dtype, check_present

if _C.capability_problem():
    warnings.warn(f"{_C.capability_problem()}; using {_C.capability()}", stacklevel=2)


class Sizes(NamedTuple):
    """What the shapes of a cell's saved tensors follow from; the same constants as in its header."""

    gates: int
    states: int
    saved: int
    split_gradient: bool
    parameters: int = 0
    recurrent: int = 0  # gates with a recurrent product, and how many of them multiply another vector than h
    second: int = 0
    vectors: int = 0  # that are multiplied besides h, and sums over all units of a row
    totals: int = 0
    projectable: bool = False  # csrc/binding/cell_lookup.h

    @property
    def one_product(self) -> bool:
        """Whether w_hh is the matrix of one product, with rows for every gate and nothing else."""
        return self.recurrent == self.gates and not self.parameters and not self.second


def _sizes() -> dict[str, Sizes]:
    return {name: Sizes(*_C.cell_sizes(name)) for name in _C.cells()}


SIZES: dict[str, Sizes] = _sizes()  # fastrnn.custom adds its own


def sizes_of(cell: str) -> Sizes:
    """Those of a cell, also of one with a bound for ∂L/∂h (`fastrnn.cells.with_bound`).

    Raises:
        ValueError: there is no such cell, or the bound is not a positive number.
    """
    found = SIZES.get(cell)
    if found is None:
        name = cell.partition("@")[0]
        found = SIZES.get(name) or _sizes_of_cached(name)
        _C.bound_of(cell)
    return found


def _sizes_of_cached(name: str) -> Sizes:
    """Sizes of a custom cell that another process defined and whose kernels are in the cell cache."""
    from fastrnn.custom.build import load_cached  # which imports this module

    load_cached(name)
    return Sizes(*_C.cell_sizes(name))


_DTYPES = {"Float": torch.float32, "Double": torch.float64, "BFloat16": torch.bfloat16, "Half": torch.float16}


def _prepare(cell: str, dtype: str, device: str) -> str:
    """Find or make the kernels of a custom cell that an operator was called with; return why there are none, or an
    empty string. Compiled and exported programs hold the name of a cell and not its definition: its kernels may be in
    the cell cache.
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


def _call(
    cell: str,
    rows_like: Tensor,
    w_hh: Tensor,
    w_hr: Tensor | None,
    layout: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> Call:
    check_present(w_hh, "w_hh")
    check_dtype(w_hh.dtype)
    return Call(cell, sizes_of(cell), rows_like, w_hh, w_hr, layout)


def hidden_size(w_hh: Tensor, w_hr: Tensor | None):
    """H, of the shapes of the recurrent matrix, (R·H + Q, P), and the projection, (P, H)."""
    return w_hh.shape[1] if w_hr is None else w_hr.shape[1]


def state_widths(w_hh: Tensor, w_hr: Tensor | None):
    """H, the width of all states but h, and P, that of h."""
    return hidden_size(w_hh, w_hr), w_hh.shape[1]


def _batch(call: Call):
    """B. Of packed input it is a value, not a shape, and may be known only when the call runs."""
    return torch.library.get_ctx().new_dynamic_size() if call.batch is UNKNOWN else call.batch


@torch.library.register_fake("fastrnn::sequence_forward")
def _(cell, x, w_ih, w_hh, b_ih, b_hh, w_hr, states, batch_sizes, lengths, reset, reverse, training):
    call = _call(cell, x, w_hh, w_hr, (batch_sizes, lengths, reset))
    call.check_input(x, w_ih)
    call.check_biases(b_ih, b_hh)
    call.check_states(states, "states")
    sizes = call.sizes
    hidden, projected = hidden_size(w_hh, w_hr), w_hh.shape[1]
    batch = _batch(call)
    y = w_hh.new_empty((*x.shape[:-1], projected))
    finals = [w_hh.new_empty((batch, hidden if s else projected)) for s in range(sizes.states)]
    if not training:
        return y, finals, []
    compute = torch.float64 if w_hh.dtype == torch.float64 else torch.float32

    def kept(width: int, dtype: torch.dtype) -> Tensor:
        return w_hh.new_empty((*x.shape[:-1], width) if width > 0 else (0, 0), dtype=dtype)

    reserve = [
        kept(sizes.gates * hidden if sizes.saved > 0 else 0, w_hh.dtype),
        kept(max(0, sizes.saved - sizes.gates) * hidden, w_hh.dtype),
        kept((sizes.states - 1) * hidden + sizes.totals, compute),
        kept(hidden * (1 if w_hr is not None else sizes.vectors), w_hh.dtype),
    ]
    return y, finals, reserve


@torch.library.register_fake("fastrnn::sequence_backward")
def _(
    cell,
    grad_y,
    grad_final,
    w_hh,
    w_hr,
    states,
    y,
    reserve,
    batch_sizes,
    lengths,
    reset,
    reverse,
    want_initial,
    want_dh,
):
    call = _call(cell, y, w_hh, w_hr, (batch_sizes, lengths, reset))
    call.check_saved(y, states, reserve, w_hr is not None)
    call.check_grads(grad_y, grad_final)
    sizes = call.sizes
    hidden = hidden_size(w_hh, w_hr)
    wide = (*y.shape[:-1], sizes.gates * hidden)
    initial = _fake_initial(sizes, w_hh, hidden, _batch(call)) if want_initial else []
    return (
        w_hh.new_empty(wide),
        w_hh.new_empty((*y.shape[:-1], sizes.recurrent * hidden) if sizes.split_gradient else (0,)),
        initial,
        w_hh.new_empty(y.shape if want_dh else (0,)),
    )


def _fake_initial(sizes: Sizes, w_hh: Tensor, hidden, batch) -> list[Tensor]:
    return [w_hh.new_empty((batch, hidden if s else w_hh.shape[1])) for s in range(sizes.states)]


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
    reserve,
    batch_sizes,
    lengths,
    reset,
    reverse,
    needs,
):
    call = _call(cell, y, w_hh, w_hr, (batch_sizes, lengths, reset))
    call.check_saved(y, states, reserve, w_hr is not None)
    call.check_input(x, w_ih)
    call.check_grads(grad_y, grad_final)
    sizes = call.sizes
    hidden = hidden_size(w_hh, w_hr)
    shapes = (
        x.shape,
        None if w_ih is None else w_ih.shape,
        w_hh.shape,
        (sizes.gates * hidden,),
        (sizes.recurrent * hidden,),
        None if w_hr is None else w_hr.shape,
    )
    out = [
        w_hh.new_empty(shape if need and shape is not None else (0,))
        for need, shape in zip(needs[:6], shapes, strict=True)
    ]
    if needs[6]:
        out += _fake_initial(sizes, w_hh, hidden, _batch(call))
    return out


@torch.library.register_fake("fastrnn::layer_backward_flow")
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
    reserve,
    batch_sizes,
    lengths,
    reset,
    reverse,
    needs,
):
    layout = (batch_sizes, lengths, reset, reverse)
    known = torch.ops.fastrnn.layer_backward.default
    out = known(cell, grad_y, grad_final, x, w_ih, w_hh, w_hr, states, y, reserve, *layout, needs)
    sizes, hidden = sizes_of(cell), hidden_size(w_hh, w_hr)
    compute = torch.float64 if w_hh.dtype == torch.float64 else torch.float32
    widths = [hidden if s else w_hh.shape[1] for s in range(sizes.states)]
    out.append(w_hh.new_empty((*x.shape[:-1], sizes.recurrent * hidden)))
    return out + [w_hh.new_empty((*x.shape[:-1], width), dtype=compute) for width in widths]


forward = torch.ops.fastrnn.sequence_forward.default
backward = torch.ops.fastrnn.sequence_backward.default
layer_backward = torch.ops.fastrnn.layer_backward.default
layer_backward_flow = torch.ops.fastrnn.layer_backward_flow.default
layer = _C.layer
