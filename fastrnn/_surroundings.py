"""Queries of torch's state: tracing, transforms, modes and wrapped tensors. The library makes them only here.

Dynamo evaluates all of them while tracing, and so does `torch.export`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch._subclasses.functional_tensor import FunctionalTensor
from torch.nn import Parameter

_C: Any = torch._C

#: torch.compile or torch.export is tracing
is_compiling = torch.compiler.is_compiling
#: torch.jit.trace or torch.onnx.export(dynamo=False) is tracing
is_tracing: Any = torch.jit.is_tracing  # type: ignore[attr-defined]
#: a transform of torch.func is active
is_transformed = _C._are_functorch_transforms_active

#: Exact types of ordinary tensors: a subclass may redefine any operation.
ORDINARY = frozenset((Tensor, Parameter))
_OF_COMPILER = (FakeTensor, FunctionalTensor)
_FUNCTIONALIZE = _C._functorch.TransformType.Functionalize


class Surroundings(NamedTuple):
    """State of the program that the choice of a layer's path depends on."""

    compiling: bool
    transformed: bool
    forward_mode: bool
    exporting_onnx: bool

    @staticmethod
    def now() -> Surroundings:
        compiling = is_compiling()
        return Surroundings(
            compiling,
            is_transformed(),
            torch.autograd.forward_ad._current_level >= 0,
            not compiling and is_traced_for_onnx(),
        )


def is_traced_for_onnx() -> bool:
    """Return True while torch.onnx.export(dynamo=False) traces; such a trace, unlike others, may depend on fastrnn."""
    return is_tracing() and torch.onnx.is_in_onnx_export()


def is_functionalized() -> bool:
    """Return True under `torch.func.functionalize`, at any level."""
    return any(level.key() == _FUNCTIONALIZE for level in transforms())


def transforms() -> list[Any]:
    """Return the active transforms of torch.func, the outermost first."""
    return _C._functorch.get_interpreter_stack() or []


def is_below_autograd() -> bool:
    """Return True if nothing is recorded, whatever the grad mode: in inference mode, or in the body of a custom
    operator. The compiler must not trace this.
    """
    return _C._dispatch_tls_is_dispatch_key_excluded(_C.DispatchKey.AutogradFunctionality)


def has_modes() -> bool:
    """Return True if a dispatch mode intercepts every operator; its tensors may have no values."""
    return _C._len_torch_dispatch_stack() > 0


def runs_now(tensor: Tensor) -> bool:
    """Return True if work on a tensor is done or launched at once: no tracing, transform or mode is active."""
    if is_compiling() or type(tensor) not in ORDINARY:
        return False
    return not is_tracing() and not is_transformed() and not has_modes()


def has_values(tensor: Tensor) -> bool:
    """Return True if a tensor's values can be read: not while tracing, nor under vmap."""
    if is_compiling() or is_tracing() or type(tensor) not in ORDINARY or tensor.is_meta:
        return False
    return not is_wrapped(tensor)


def is_wrapped(tensor: Tensor) -> bool:
    """Return True for a tensor that a transform of torch.func has wrapped."""
    return _C._functorch.is_functorch_wrapped_tensor(tensor)


def is_batched(tensor: Tensor | None) -> bool:
    """Return True for a gradient batched by ``is_grads_batched=True`` or by `torch.autograd.functional`."""
    return tensor is not None and _C._functorch.is_legacy_batchedtensor(tensor)


def is_of_compiler(tensor: Any) -> bool:
    """Return True for a tensor type of torch.export while it traces; our operators accept those types only then."""
    return isinstance(tensor, _OF_COMPILER) and is_compiling()
