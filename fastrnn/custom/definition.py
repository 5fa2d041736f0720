"""Definition of a cell by a Python function: `fastrnn.cell`."""

from __future__ import annotations

import functools
import inspect
import keyword
import numbers
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn.custom.emit import Compiled, equations
from fastrnn.custom.kernels import Kernels
from fastrnn.custom.trace import CellError, traced
from fastrnn.custom.widths import Shape

MAX_STATES = 8  # csrc/cpu/args.h
#: Initial values of a parameter: a number for all units, or a function that fills a tensor (H) in place.
Initial = float | Callable[[Tensor], Any]
#: Computes a further input of every time step, given a tensor of its shape and whether the network is training.
Source = Callable[[Tensor, bool], Tensor]


class Cell:
    """Recurrent cell made by :func:`fastrnn.cell`; calling it creates a :class:`fastrnn.custom.Network`.

    Attributes:
        name: the name of the function that defines it.
        gates, states, parameters, inputs, matrices: their names, in the order of their rows in the weights.
        raw_input: the name of the raw input, or None.
        kernels: the name of its kernels, used as ``cell`` of `fastrnn.functional.sequence`.

    Example:
        >>> from fastrnn import gallery
        >>> gallery.min_gru.gates, gallery.min_gru.states
        (('z', 'h'), ('h',))
    """

    def __init__(
        self,
        step: Callable,
        gates: Sequence[str],
        states: Sequence[str],
        parameters: Mapping[str, Initial],
        inputs: Mapping[str, Source],
        matrices: Sequence[str] = (),
        raw_input: str | None = None,
    ) -> None:
        self.step = step
        self.name = step.__name__ if step.__name__.isidentifier() else "cell"  # a lambda's name is not
        self.gates, self.states = _names("gates", gates), _names("states", states)
        self.parameters = _names("parameters", tuple(parameters), empty=True)
        self.inputs = _names("inputs", tuple(inputs), empty=True)
        self.matrices = _names("matrices", matrices, empty=True)
        self.raw_input = raw_input
        raw = _names("raw_input", () if raw_input is None else (raw_input,), empty=True)
        self._columns = self.gates + self.inputs + raw  # the values of ``x``
        _names("gates, inputs and matrices", self._columns + self.matrices)
        self.initial, self.sources = dict(parameters), dict(inputs)
        self.__doc__, self.__module__, self.__qualname__ = step.__doc__, step.__module__, step.__qualname__
        _check_arguments(step, bool(self.parameters))
        if len(self.states) > MAX_STATES:
            raise CellError(f"states: expected at most {MAX_STATES}, got {len(self.states)}")
        self._step = traced(
            step, self._columns, self.states, self.parameters, self.matrices, len(self.gates), bool(raw)
        )
        self._kernels = {1: Kernels(self, self._step)}
        self._lock = threading.Lock()
        self._check_matrices()

    def _check_matrices(self) -> None:
        used = {block.matrix for block in self._kernels[1].blocks}
        if any(len(self.gates) <= k < len(self._columns) for k in used):
            names = self._columns[len(self.gates) :]
            raise CellError(f"{self.name}: inputs ({', '.join(names)}) have no recurrent weights; use a gate")
        first = len(self._columns)
        if unused := [name for k, name in enumerate(self.matrices, first) if k not in used]:
            raise CellError(f"matrices: {', '.join(unused)}: no new state depends on a product with them")
        weights = {f"{kind}_{name}" for name in ("ih", "hh", *self.rectangular) for kind in ("weight", "bias")}
        if taken := weights & set(self.parameters):
            raise CellError(
                f"parameters: expected names other than those of the network's weights, got {', '.join(taken)}"
            )
        if taken := {"ih", "hh"} & set(self.rectangular):
            raise CellError(f"matrices: expected names other than ih and hh, got {', '.join(taken)}")

    def variant(self, blocks: int) -> Kernels:
        """Return the kernels for a raw input of this many blocks of H units; other cells have those for one."""
        if blocks in self._kernels:
            return self._kernels[blocks]
        with self._lock:
            if blocks not in self._kernels:
                self._kernels[blocks] = Kernels(self, self._step, blocks)
            return self._kernels[blocks]

    @property
    def kernels(self) -> str:
        """The name of the kernels; with a raw input, for one that is not wider than the hidden size."""
        return self._kernels[1].name

    @property
    def _compiled(self) -> Compiled:
        return self._kernels[1].compiled

    @property
    def _torch_step(self) -> Callable[..., tuple]:
        return self._kernels[1].torch_step

    @property
    def _prepare(self) -> Callable[..., str]:
        return self._kernels[1].prepare

    def matrix_name(self, matrix: int) -> str:
        """Return the name of a matrix in `products`: its own, or ``x.i`` for the input matrix of gate i."""
        names = (*self._columns, *self.matrices)
        return names[matrix] if matrix < len(names) else f"x.{self.gates[matrix - len(names)]}"

    @property
    def rectangular(self) -> dict[str, Shape]:
        """The further matrices with as many rows or columns as inputs, which are weights of their own."""
        shapes, first = self._step.found.shapes, len(self._columns)
        found = {name: shapes.get(k, Shape()) for k, name in enumerate(self.matrices, first)}
        return {name: shape for name, shape in found.items() if not shape.square}

    @property
    def same_width(self) -> str:
        """The reason why a layer must have as many inputs as units; empty if it need not."""
        return self._step.same_width

    @functools.cached_property
    def pads_well(self) -> bool:
        """True if the kernels may pad the raw input with zeros."""
        return self._step.pads_well()

    @property
    def input_gates(self) -> tuple[int, ...]:
        """The gates whose input product is computed before the step; a step may multiply the others itself."""
        return tuple(k for k in range(len(self.gates)) if not self._step.is_called(k))

    @property
    def recurrent(self) -> tuple[str, ...]:
        """The gates and further matrices that have rows in the recurrent weight, in the order of these rows."""
        own, others = len(self._columns) + len(self.matrices), self.rectangular
        names = dict.fromkeys(self.matrix_name(b.matrix) for b in self._kernels[1].blocks if b.matrix < own)
        return tuple(name for name in names if name not in others)

    @property
    def blocks(self) -> tuple[str, ...]:
        """The matrices in the kernels' order: one that multiplies several vectors occurs once for each vector."""
        return tuple(self.matrix_name(block.matrix) for block in self._kernels[1].blocks)

    @property
    def repeated(self) -> tuple[int, ...] | None:
        """The index in `recurrent` of each of the `blocks`; None if the two are equal."""
        places = {name: k for k, name in enumerate(self.recurrent)}
        indices = tuple(places[name] for name in self.blocks)
        return None if len(indices) == len(places) else indices

    @property
    def products(self) -> tuple[tuple[str, ...], ...]:
        """The `blocks` grouped by the vector that they multiply: h (possibly none) first, then the others."""
        names = self._compiled.matrices
        return tuple(tuple(names[k] for k in group) for group in self._kernels[1].products)

    def build(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        """Compile the kernels now instead of at the first call: for the CPU, or with ``device="cuda"`` for a GPU.

        Raises:
            RuntimeError: they cannot be compiled; a call would warn and run plain PyTorch instead.
            TypeError: ``dtype`` is not a `torch.dtype`.
        """
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype: expected a torch.dtype, such as torch.float32, got {dtype!r}")
        self._kernels[1].forget()
        problem = self._prepare(dtype, torch.device(device))
        if problem:
            raise RuntimeError(f"{self.name}: {problem}")

    def explain(self) -> str:
        """Return the equations of the step and its gradient, the values saved for backward, and the cost."""
        return f"{self.name}: gates {', '.join(self.gates)}\n{equations(self._compiled)}"

    def source(self) -> str:
        """Return the generated C++ header."""
        return self._kernels[1].header

    def __call__(self, input_size: int, hidden_size: int, num_layers: int = 1, **options: Any) -> nn.Module:
        from fastrnn.custom.module import Network

        return Network(self, input_size, hidden_size, num_layers, **options)

    def __repr__(self) -> str:
        return f"<fastrnn.cell {self.name}: gates {', '.join(self.gates)}; states {', '.join(self.states)}>"

    def __reduce__(self) -> str:
        return self.__qualname__  # pickled by qualified name, like a function

    def __deepcopy__(self, memo: Any) -> Cell:
        return self

    __copy__ = lambda self: self  # noqa: E731


def cell(
    gates: str | Sequence[str],
    states: str | Sequence[str] = "h",
    parameters: Mapping[str, Initial] | str | Sequence[str] | None = None,
    inputs: Mapping[str, Source] | None = None,
    matrices: str | Sequence[str] = (),
    raw_input: str | None = None,
) -> Callable[[Callable], Cell]:
    """Make a recurrent cell from a function, with fused kernels for whole sequences, forward and backward.

    .. code-block:: python

        @fastrnn.cell(gates="f u")
        def one_state(x, r, s):
            f = torch.sigmoid(x.f + r.f)
            return f * s.h + torch.tanh(x.u + r.u)

        network = one_state(input_size=32, hidden_size=128, num_layers=2)
        y, h = network(torch.randn(100, 16, 32))

    The function receives, by name, the gates of the input product ``x = W·x_t + b`` and of the recurrent product
    ``r = R·h + b_r``, the old states ``s``, and ``p`` if there are parameters. It returns the new states in order, or
    as a dict. Every value stands for a tensor (B, H), and operations are element-wise: ``+ - * /``, ``abs``, powers,
    ``%``, and torch's sigmoid, logsigmoid, tanh, relu, exp, log, softplus, sqrt, sin, cos, sign, maximum, minimum,
    clamp, and ``where`` with a comparison. :func:`fastrnn.custom.detach` stops a gradient,
    :func:`fastrnn.custom.surrogate` replaces the gradient of one expression by that of another.

    ``r.n`` is R_n·h, and ``r.n(v)`` is R_n·v for another vector, or for several in several calls: a GRU that resets
    before the product has ``torch.tanh(x.n + r.n(reset * s.h))``. A gate whose ``r`` is not used has no recurrent
    weights. A value shared by all units of a row is ``v.mean(-1, keepdim=True)``, and likewise ``sum`` and ``var``
    (with ``correction=0``); :func:`fastrnn.custom.layer_norm` is built from them. A step with more than one vector
    besides h, or with such sums, runs in stages between which threads synchronise; it takes longer.

    The function is run twice at definition and must compute the same both times: random numbers come from `inputs`. Its
    gradient is derived. Kernels are compiled at the first call (some seconds) and stored in ``FASTRNN_CACHE``
    (``~/.cache/fastrnn``): by the C++ compiler, or by nvcc for tensors on a GPU. Without a compiler the function itself
    runs on tensors, step by step, after one warning with the reason.

    Args:
        gates: G names; the weights have a block of H rows for each, in this order.
        states: names of the states, at most 8; the first is the output and the vector that R multiplies.
        parameters: names of per-unit parameters (H), with their initial value (a number, or a function that fills
            a tensor in place; 0 if only names are given).
        inputs: further values ``x`` of every time step that no weight multiplies: dropout masks, noise, time intervals.
            For each name a function ``(like, training) -> Tensor``, called once for each call, layer and direction.
            ``like`` has the outputs' dtype, device and shape: (T, B, H), or (N, H) with N rows for packed input; T = 1
            in `step`. ``training`` is that of the network. The result has the shape of ``like``; gradients pass through
            it.
        matrices: names of recurrent matrices (H, H) that belong to no gate: ``r.name(v)``. They follow those of the
            gates in the network's ``weight_hh``, in the order of `Cell.recurrent`.
        raw_input: a name for the raw input x_t, (B, I), in ``x``. Then ``x.i(v)`` is W_i·v + b_i for a vector v of I
            values, in place of ``x.i``; and a matrix of `matrices` that multiplies such a vector has I columns, one
            whose product is combined with such a vector I rows: weights of their own, ``weight_{name}_l{k}``. A step
            that combines such a vector with one of H units takes networks with as many inputs as units only.

    Raises:
        fastrnn.CellError: the function does something that kernels do not support, or differs between the two runs;
            with the line. A subclass of TypeError.

    Example:
        >>> @fastrnn.cell(gates="u")
        ... def leaky(x, r, s):
        ...     return 0.9 * s.h + 0.1 * torch.tanh(x.u + r.u)
        >>> leaky.gates, leaky.states
        (('u',), ('h',))
    """
    if parameters is None:
        parameters = {}
    if not isinstance(parameters, Mapping):
        parameters = dict.fromkeys(_names("parameters", parameters, empty=True), 0.0)
    given = dict(parameters)
    _check_values(given, inputs)

    def decorate(step: Callable) -> Cell:
        lists = (_split("gates", gates), _split("states", states), _split("matrices", matrices))
        return Cell(step, *lists[:2], given, inputs or {}, lists[2], raw_input)

    if callable(gates):
        raise CellError('gates: expected names, as in @fastrnn.cell(gates="f u"), got the function itself')
    return decorate


def _check_values(parameters: Mapping[str, Any], inputs: Any) -> None:
    for name, initial in parameters.items():
        if not callable(initial) and not isinstance(initial, numbers.Real):
            raise CellError(
                f"parameters: expected a number or a function that fills a tensor for {name}, got {initial!r}"
            )
    if inputs is None:
        return
    if not isinstance(inputs, Mapping) or not all(callable(source) for source in inputs.values()):
        raise CellError(f"inputs: expected a dict of functions (like, training) -> tensor by name, got {inputs!r}")


def _split(what: str, names: str | Sequence[str]) -> Sequence[str]:
    if isinstance(names, str):
        return names.replace(",", " ").split()
    if not isinstance(names, Iterable):
        raise CellError(f'{what}: expected names, as in {what}="a b", got {names!r}')
    return tuple(names)


def _names(what: str, names: str | Sequence[str], empty: bool = False) -> tuple[str, ...]:
    result = tuple(_split(what, names))
    if not result and not empty:
        raise CellError(f"{what}: expected at least one name, got none")
    for name in result:
        if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
            raise CellError(f"{what}: expected names that are valid as attributes, got {name!r}")
    if len(set(result)) != len(result):
        raise CellError(f"{what}: expected different names, got {', '.join(result)}")
    return result


def _check_arguments(step: Callable, parameters: bool) -> None:
    wanted = ["x", "r", "s", *(["p"] if parameters else [])]
    count = len(inspect.signature(step).parameters)
    if count != len(wanted):
        raise CellError(
            f"{step.__qualname__}: expected a function of {len(wanted)} arguments ({', '.join(wanted)}), got {count}"
        )
