"""Checks that decide which calls a module runs itself and which it leaves to torch.

A module calls `fastrnn.functional.sequence` only with arguments that certainly fit: ordinary tensors, all on the CPU or
all on one supported GPU, of one dtype and the right sizes. All other calls go to the forward of the torch.nn class,
which either computes them (tensor subclasses, complex dtypes, other devices, states that broadcast) or raises. Errors
are therefore torch's own, and the checks here only return yes or no.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Proxy

from .. import _gpu, _paths
from .. import _surroundings as here
from .._surroundings import ORDINARY, has_values, is_of_compiler

BACKENDS = (*_paths.BACKENDS, "torch")
DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
_STRIDED = torch.strided
_HAS_ONEDNN = torch.backends.mkldnn.is_available()
_LOWERED = frozenset((torch.float32, torch.bfloat16, torch.float16))  # by autocast on a GPU


def are_ordinary(x: Any, states: Sequence[Any] | None, weights: Sequence[Any]) -> bool:
    """Return True if the kernels can take these tensors: exact class Tensor, dense, one supported device, one dtype.

    Under autocast two dtypes are allowed, which autocast unifies. One function with one loop, because every call of
    every module passes through it.
    """
    if here.is_tracing():  # a trace of torch's operators can be loaded without fastrnn
        return False
    if (type(x) not in ORDINARY and not is_of_compiler(x)) or x.is_nested:
        return False
    on_cpu = x.is_cpu
    if not on_cpu and not _gpu.takes(x):
        return False
    dtype = other = x.dtype
    target = autocast_dtype(x)
    if target is not None:
        dtype, other = torch.float32, target
    elif dtype not in DTYPES:
        return False
    for tensor in (x, *weights) if states is None else (x, *weights, *states):
        if type(tensor) not in ORDINARY and not is_of_compiler(tensor):
            return False
        if (tensor.dtype is not dtype and tensor.dtype is not other) or tensor.layout is not _STRIDED:
            return False
        if not (tensor.is_cpu if on_cpu else tensor.device == x.device):
            return False
    return True


def has_shape(tensor: Tensor, expected: Sequence[int]) -> bool:
    """Return True if the tensor has this shape; always True while tracing, where comparing sizes raises a warning."""
    return here.is_tracing() or tuple(tensor.shape) == tuple(expected)


def expected(x: Any) -> str:
    """Describe the tensors that `are_ordinary` accepts, for error messages; with the reason if no GPU is supported."""
    if not isinstance(x, Tensor) or not x.is_cuda:
        return "dense tensors of one floating-point dtype on the CPU"
    problem = _gpu.problem(x.device)
    if problem:
        return f"dense tensors of one floating-point dtype on the CPU, as {problem}"
    return "dense tensors of one floating-point dtype on one GPU"


def read_weights(module: torch.nn.Module, names: Sequence[str]) -> list[Any]:
    """Read the attributes ``names``, None for a missing one. Each is read once, because a property may compute it.

    For ordinary parameters, equivalent to `torch.nn.Module.__getattr__` but faster.
    """
    if here.is_compiling() or type(module).__getattr__ is not torch.nn.Module.__getattr__:
        return [getattr(module, name, None) for name in names]
    own = module.__dict__
    parameters = own["_parameters"]
    weights = []
    for name in names:
        weight = parameters.get(name)
        weights.append(getattr(module, name, None) if weight is None or name in own else weight)
    return weights


def read_flat_weights(module: Any) -> list[Any]:
    """Read the weights of a layer, in torch's order: its attributes, or tensors assigned into ``_flat_weights``.

    Like torch.nn, a layer computes with that list unless an attribute is another tensor than ``_flat_weight_refs``
    refers to: `functional_call` and parametrizations replace attributes without changing the list.
    """
    weights = read_weights(module, module._flat_weights_names)
    flat = module._flat_weights
    if len(flat) != len(weights) or all(map(operator.is_, flat, weights)):
        return weights
    for reference, weight in zip(module._flat_weight_refs, weights, strict=False):
        if reference is not None and weight is not None and reference() is not weight:
            return weights
    return list(flat)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype to which `torch.autocast` casts ``x``, or None: it is inactive, or x is float64 or ids."""
    if x.dtype is torch.float64 or not x.is_floating_point():
        return None
    device = "cpu" if x.is_cpu else "cuda" if x.is_cuda else None
    return torch.get_autocast_dtype(device) if device and torch.is_autocast_enabled(device) else None


def onednn_takes(x: Tensor, batch_sizes: Tensor | None) -> bool:
    """Return True if torch computes the LSTM with oneDNN: padded, or packed with rows of equal length; not empty."""
    if x.numel() == 0:
        return False
    if batch_sizes is not None and not (has_values(batch_sizes) and bool(batch_sizes[0] == batch_sizes[-1])):
        return False
    return _HAS_ONEDNN and (here.is_compiling() or torch._C._get_mkldnn_enabled())


def run_dtype(
    cell: str, target: torch.dtype, x: Tensor, states: tuple[Tensor, ...] | None, onednn: bool
) -> torch.dtype:
    """Return the dtype in which to run ``cell`` under autocast to ``target``, so that results have torch's dtypes.

    On a GPU everything runs in ``target``: torch casts the arguments of cuDNN and of its own cells. (For cuDNN torch
    casts to float16 whatever autocast was set to; here it is the dtype that was set.) On the CPU torch's own cells
    multiply in ``target`` and leave the rest to type promotion, so that a float32 state stays float32 (GRU, cells,
    packed and projected LSTM). Exceptions are the plain RNN, whose whole time step is the product, and oneDNN's LSTM
    (``onednn``), which runs in ``target`` entirely. With a float32 state, products are in float32 here: exact where
    torch rounds, and no slower.
    """
    if onednn or cell.startswith("rnn") or (x.is_cuda and x.dtype in _LOWERED):
        return target
    return torch.promote_types(target, x.dtype if states is None else states[-1].dtype)


def packed_rows(batch_sizes: Tensor, state: Any) -> Any:
    """Return the batch rows of a packed input's first time step, which each initial state must have.

    The compiler cannot decide on a value. It uses the rows of ``state``, the first of the initial states, instead; the
    operator compares the two when the compiled function runs.
    """
    if here.is_compiling() and isinstance(state, Tensor) and state.dim() == 3:
        return state.shape[1]
    return int(batch_sizes[0])


def as_lengths(lengths: Any, steps: int, batch: int, device: torch.device) -> Tensor:
    """Return ``lengths`` as an int64 tensor (B) on ``device``.

    Raises:
        TypeError: not integers.
        ValueError: not of shape (B), or, on the CPU, a value outside 0…T.
    """
    if not isinstance(lengths, Tensor):
        try:
            lengths = torch.tensor(list(lengths), device="cpu") if len(lengths) else torch.zeros(0, dtype=torch.int64)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            got = type(lengths).__name__
            raise TypeError(f"lengths: expected an integer tensor or a sequence of integers, got {got}") from error
    if lengths.dtype.is_floating_point or lengths.dtype.is_complex or lengths.dtype is torch.bool:
        raise TypeError(f"lengths: expected integers, got {lengths.dtype}")
    if not has_shape(lengths, (batch,)):
        raise ValueError(f"lengths: expected shape ({batch},), one for each batch row, got {tuple(lengths.shape)}")
    if lengths.is_cpu and has_values(lengths) and batch:  # reading them back from a GPU would synchronise
        low, high = map(int, torch.aminmax(lengths))
        if low < 0 or high > steps:
            raise ValueError(
                f"lengths: expected values from 0 to {steps}, the input's number of time steps, got {low} to {high}"
            )
    return lengths.to(device=device, dtype=torch.int64, non_blocking=device.type == "cuda")


def as_reset(reset: Any, expected: tuple[int, ...], batch_first: bool, device: torch.device) -> Tensor:
    """Return ``reset`` as a bool tensor (T, B) on ``device``, given in the layout ``expected``.

    Raises:
        TypeError: not a bool tensor.
        ValueError: its shape is not that of the leading dimensions of the input.
    """
    if not isinstance(reset, Tensor) or reset.dtype is not torch.bool:
        got = reset.dtype if isinstance(reset, Tensor) else type(reset).__name__
        raise TypeError(f"reset: expected a bool tensor, got {got}")
    if not has_shape(reset, expected):
        raise ValueError(
            f"reset: expected shape {tuple(expected)}, the input's leading dimensions, got {tuple(reset.shape)}"
        )
    reset = reset.to(device, non_blocking=device.type == "cuda")
    if reset.dim() == 1:
        return reset.unsqueeze(1)
    return reset.transpose(0, 1) if batch_first else reset


def leaf_proxy(module: torch.nn.Module, *args: Any, **kwargs: Any) -> Proxy | None:
    """Return the call of ``module`` as one node while torch.fx traces, as torch does for its own modules; else None."""
    flat: list[Any] = []
    for value in (*args, *kwargs.values()):
        flat.extend(value if isinstance(value, (tuple, list)) else (value,))
    for value in flat:
        if isinstance(value, Proxy):
            tracer = value.tracer
            given = {name: value for name, value in kwargs.items() if value is not None}
            return tracer.create_proxy("call_module", tracer.path_of_module(module), args, given)  # type: ignore[attr-defined]
    return None
