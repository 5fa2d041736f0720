"""Choice of the path that a layer's call takes, in one place; `fastrnn.explain` reports it for a module's call.

A module first makes its own choice (modules/_recurrent.py): the fast path in C++ for ordinary calls, or torch.nn's
forward for tensors and arguments that are left to torch.

====================  ==========================================================================================
path                  taken where
====================  ==========================================================================================
``onnx``              torch.onnx.export(dynamo=False) is tracing
``observed``          an observer reads the gradients inside backward (`fastrnn.training.GradientNormPenalty`)
``reference``         ``backend="reference"``; no kernels for the cell, dtype or device; forward mode; torch.func
                      inside a compiled function; functionalize with another transform
``recompute``         ``recompute=`` in eager mode while a graph is recorded
``eager``             eager mode on the CPU: operators and autograd node in C++, without the dispatcher
``differentiable``    a graph is recorded outside ``eager``: compiled functions, torch.func, CUDA, tensor subclasses
``operator``          no graph is recorded: the operator only
====================  ==========================================================================================

The first path whose condition holds is taken.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fastrnn import _gpu, _invariant, _onnx, _ops, _recompute, cells, reference
from fastrnn import _surroundings as here
from fastrnn._after_import import after_import
from fastrnn._call import (
    N_SAVED,
    Call,
    Gradients,
    LayerWeights,
    as_returned,
    needs_of,
    save,
    saved,
    wanted_of,
)
from fastrnn._surroundings import Surroundings
from fastrnn.autograd import Layer
from fastrnn.cells import CellSpec

DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
BACKENDS = ("auto", "fused", "reference")
LayerResult = tuple[Tensor, tuple[Tensor, ...]]


#: Description of each path.
IN_WORDS = {
    "fast path": "checks and call in C++, for ordinary tensors on the CPU",
    "torch": "the forward of torch.nn",
    "onnx": "nodes of ONNX",
    "observed": "kernels, with an observer of the gradients in backward",
    "reference": "plain torch operations, step by step",
    "recompute": "kernels; the backward pass recomputes segments",
    "eager": "kernels and their autograd node in C++, without the dispatcher",
    "differentiable": "kernels called from an autograd.Function",
    "operator": "kernels called by an operator, without a graph",
}


class Decision(NamedTuple):
    """Path of one layer or module, and the reason why it is not a faster one (or an empty string)."""

    cell: str
    path: str
    reason: str = ""

    def __str__(self) -> str:
        text = f"{self.cell}: {self.path} ({IN_WORDS[self.path]})"
        return f"{text}; {self.reason}" if self.reason else text


_recorded: ContextVar[list[Decision] | None] = ContextVar("recorded", default=None)
#: Number of open `recorded` contexts in any thread; calls check only this number.
recorders = 0


@contextlib.contextmanager
def recorded() -> Iterator[list[Decision]]:
    """Collect the decisions of calls."""
    global recorders
    decisions: list[Decision] = []
    token = _recorded.set(decisions)
    recorders += 1
    try:
        yield decisions
    finally:
        recorders -= 1
        _recorded.reset(token)


def record(cell: str, path: str, reason: str = "") -> None:
    """Record a decision if a `recorded` context is open; do nothing while the compiler traces."""
    if here.is_compiling():
        return
    decisions = _recorded.get()
    if decisions is not None:
        decisions.append(Decision(cell, path, reason))


class Observer(Protocol):
    """Object that sees the gradients inside a layer's backward pass and may change its results."""

    def begin(self, call: Call, spec: CellSpec, backend: str) -> None:
        """Called before the forward pass; raises if the call cannot be observed."""

    def backward(self, call: Call, grads: tuple[Tensor | None, ...], results: Gradients) -> None:
        """Called after a backward pass; ``results`` includes ``products`` and ``later``."""


class Options(NamedTuple):
    """Arguments that decide on the path of a call and are not part of it."""

    backend: str = "auto"
    recompute: bool | int = False
    observer: Observer | None = None


def run(call: Call, spec: CellSpec, options: Options) -> LayerResult:
    """Run one layer in one direction on the path that `choose` returns."""
    path, reason = choose(call, spec, options)
    if _invariant.enabled and (path in ("onnx", "reference") or not call.x.is_cpu):
        _invariant.refuse(reason or f"the path {path!r} on {call.x.device.type}")
    if reason:
        _warn_once(spec, reason)
    if path == "recompute":
        found = _recompute.layer(call, options.recompute)
        if found is not None:
            record(spec.name, path)
            return found
        path = "eager"
    if path == "eager":
        try:
            out = _ops.layer(call)
        except TypeError:
            _check_types(call)
            raise
        if out is not None:
            record(spec.name, path)
            return out[0], tuple(out[1:])
        path = "differentiable" if _records(call, Surroundings.now()) else "operator"
    if recorders and not here.is_compiling():
        record(spec.name, path, reason or _why(path, call, options))
    return _WAYS[path](call, spec, options)


def _why(path: str, call: Call, options: Options) -> str:
    """Return why a call takes no faster path, or an empty string."""
    around = Surroundings.now()
    if path == "reference":
        if options.backend == "reference":
            return "backend='reference'"
        return "forward mode" if around.forward_mode else "torch.func inside a compiled function, or functionalize"
    if path in ("differentiable", "operator"):
        if around.transformed:
            return "a torch.func transform is active"
        return "" if call.x.is_cuda else "a dispatch mode or a Tensor subclass must see the operators"
    return ""


def choose(call: Call, spec: CellSpec, options: Options) -> tuple[str, str]:
    """Return the path of a call and, for the reference, why there are no kernels (or an empty string).

    Raises:
        RuntimeError: ``backend="fused"`` and there are no kernels.
    """
    around = Surroundings.now()
    if around.exporting_onnx:
        return "onnx", ""
    if options.observer is not None:
        return "observed", ""
    for_onnx = around.compiling and _onnx.replaces_operator(call.weights.w_hh)
    if not for_onnx:
        if options.backend == "reference" or not _takes_operators(call, around):
            return "reference", ""
        reason = no_kernels(spec, call.weights.w_hh.dtype, call.weights.w_hh.device)
        if reason and options.backend == "fused":
            raise RuntimeError(f'backend="fused": {reason}')
        if reason:
            return "reference", reason
    if not around.compiling and not around.transformed:
        return ("recompute" if options.recompute and _records(call, around) else "eager"), ""
    return ("differentiable" if _records(call, around) else "operator"), ""


def _takes_operators(call: Call, around: Surroundings) -> bool:
    """Return False where the operators cannot be used: in forward mode, for which they have no rule, and under
    torch.func inside a compiled function, where dynamo reports that nothing requires a gradient.
    """
    if around.forward_mode or (around.compiling and around.transformed):
        return False
    return not (around.transformed and here.is_functionalized() and _may_need_graph(call))


def _records(call: Call, around: Surroundings) -> bool:
    """Return True if a graph is recorded; functionalize has no rule for an ``autograd.Function``."""
    if around.transformed:
        return around.compiling or not here.is_functionalized()
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in call.inputs):
        return False
    return around.compiling or not here.is_below_autograd()


def _may_need_graph(call: Call) -> bool:
    """Return True under functionalize if another transform or the wrapped tensors may need gradients."""
    if len(here.transforms()) > 1:
        return True
    tensors = [t for t in call.inputs if t is not None]
    tensors = [torch._from_functional_tensor(t) if torch._is_functional_tensor(t) else t for t in tensors]
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _by_onnx(call: Call, spec: CellSpec, options: Options) -> LayerResult:
    return _onnx.traced(call)


def _by_reference(call: Call, spec: CellSpec, options: Options) -> LayerResult:
    device = call.x.device.type
    if device in ("cpu", "cuda") and torch.is_autocast_enabled(device):
        with torch.autocast(device, enabled=False):
            return reference.run(spec, call)
    return reference.run(spec, call)


def _by_layer(call: Call, spec: CellSpec, options: Options) -> LayerResult:
    out = Layer.apply(*call.flat())
    # A copy, because y may be changed in place: neither the compiler nor torch.func detects that for the saved tensor.
    # In eager mode autograd detects it and raises in backward, as for torch.nn on a GPU.
    around = Surroundings.now()
    eager = not around.compiling and not around.transformed
    detected = call.x.is_cuda and eager and not here.has_modes()
    return out[0] if detected else out[0].clone(), out[1:-N_SAVED]


def _by_operator(call: Call, spec: CellSpec, options: Options) -> LayerResult:
    y, finals, _ = _ops.forward(call, False)
    return y, tuple(finals)


def _observed(call: Call, spec: CellSpec, options: Options) -> LayerResult:
    observer = options.observer
    assert observer is not None
    observer.begin(call, spec, options.backend)
    y, *finals = _Observed.apply(observer, *call.flat())
    return y, tuple(finals)


_WAYS = {
    "onnx": _by_onnx,
    "observed": _observed,
    "reference": _by_reference,
    "differentiable": _by_layer,
    "operator": _by_operator,
}


class _Observed(torch.autograd.Function):
    """``apply(observer, *call.flat())`` → y, final states."""

    @staticmethod
    def forward(ctx: Any, observer: Observer, *flat: Any) -> tuple[Tensor, ...]:
        call = Call.of_flat(*flat)
        ctx.observer = observer
        ctx.set_materialize_grads(False)
        training = any(ctx.needs_input_grad)
        y, finals, results = _ops.forward(call, training)
        if training:
            save(ctx, call, y, *results)
        return (y, *finals)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("penalty: expected a backward pass without create_graph=True")
        if all(g is None for g in grads):
            return (None,) * len(ctx.needs_input_grad)
        call, (y, *results) = saved(ctx)
        needs = needs_of(ctx, call)
        found = _ops.backward(call, grads, y, results, wanted_of(needs)._replace(products=True, later=True))
        ctx.observer.backward(call, grads, found)
        return as_returned(ctx, needs, found.of_inputs(call))


def _check_types(call: Call) -> None:
    """Raise a TypeError that names the argument which is not a tensor."""
    named: dict[str, Any] = {"x": call.x, **LayerWeights(*call.weights)._asdict()}
    named |= {f"states[{k}]": s for k, s in enumerate(call.states)}
    named |= dict(zip(("batch_sizes", "lengths", "reset"), call.layout, strict=True))
    optional = ("w_ih", "b_ih", "b_hh", "w_hr", "batch_sizes", "lengths", "reset")
    for name, value in named.items():
        if not isinstance(value, Tensor) and not (value is None and name in optional):
            raise TypeError(f"{name}: expected a Tensor, got {type(value).__name__}") from None


def no_kernels(spec: CellSpec, dtype: torch.dtype, device: torch.device) -> str:
    """Return why a cell has no kernels, or an empty string."""
    if spec.prepare is not None:
        problem = _prepared(spec.name, dtype, device)
        return f"{spec.name}: {problem}" if problem else ""
    reason = f"no kernels for {dtype} on {device.type}"
    if dtype not in DTYPES:
        return reason
    if device.type in ("cpu", "meta"):
        return ""
    if device.type != "cuda":
        return reason
    problem = _gpu.problem(device)
    return f"{reason}, {problem}" if problem else ""


def has_kernels(spec: CellSpec, weights: LayerWeights) -> bool:
    """Return True if compiled kernels run the cell for these weights; otherwise warn with the reason."""
    reason = no_kernels(spec, weights.w_hh.dtype, weights.w_hh.device)
    if reason:
        _warn_once(spec, reason)
    return not reason


def _prepared(cell: str, dtype: torch.dtype, device: torch.device) -> str:
    spec = cells.find(cell)
    assert spec is not None
    assert spec.prepare is not None
    return spec.prepare(dtype, device)


def _is_constant(dynamo: ModuleType) -> None:
    """Mark `_prepared` as constant: the compiler calls it while tracing and keeps its result as a constant."""
    dynamo.assume_constant_result(_prepared)


after_import("torch._dynamo", _is_constant)


_warned: set[str] = set()


def _warn_once(spec: CellSpec, reason: str) -> None:
    instead = "using the plain-torch reference" if spec.prepare is None else "running it as plain torch, step by step"
    message = f"fastrnn: {reason}; {instead}"
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=5)
