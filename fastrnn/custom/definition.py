"""Definition of a cell by a Python function: `fastrnn.cell`."""

from __future__ import annotations

import hashlib
import inspect
import keyword
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import _C, _ops, cells
from fastrnn.cells import CellSpec
from fastrnn.custom import build, build_cuda
from fastrnn.custom.cache import BuildError
from fastrnn.custom.emit import Compiled, compiled, equations, header
from fastrnn.custom.names import Names
from fastrnn.custom.trace import CellError, traced

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
    ) -> None:
        self.step = step
        self.name = step.__name__ if step.__name__.isidentifier() else "cell"  # a lambda's name is not
        self.gates, self.states = _names("gates", gates), _names("states", states)
        self.parameters = _names("parameters", tuple(parameters), empty=True)
        taken = {"weight_ih", "weight_hh", "bias_ih", "bias_hh"} & set(self.parameters)
        if taken:
            raise CellError(
                f"parameters: expected names other than those of the network's weights, got {', '.join(taken)}"
            )
        self.inputs = _names("inputs", tuple(inputs), empty=True)
        self.matrices = _names("matrices", matrices, empty=True)
        _names("gates, inputs and matrices", self.gates + self.inputs + self.matrices)
        self.initial, self.sources = dict(parameters), dict(inputs)
        self.__doc__, self.__module__, self.__qualname__ = step.__doc__, step.__module__, step.__qualname__
        _check_arguments(step, bool(self.parameters))
        if len(self.states) > MAX_STATES:
            raise CellError(f"states: expected at most {MAX_STATES}, got {len(self.states)}")
        found = traced(step, self._columns, self.states, self.parameters, self.matrices)
        every = (*range(len(self._columns) + len(self.matrices)), *found.copies)  # by number: the matrix itself
        if any(len(self.gates) <= every[k] < len(self._columns) for k in found.first + found.second):
            raise CellError(f"{self.name}: inputs ({', '.join(self.inputs)}) have no recurrent weights; use a gate")
        names = (*self._columns, *self.matrices)
        used = {names[every[k]] for k in found.first + found.second}
        if unused := [name for name in self.matrices if name not in used]:
            raise CellError(f"matrices: {', '.join(unused)}: no new state depends on a product with them")
        rows = (*self.matrices, *(names[k] for k in found.copies))
        self._compiled: Compiled = compiled(found, self._columns, self.states, self.parameters, rows)
        text = header(self._compiled, "CELL", "")
        self.kernels = f"{self.name}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self._header = header(self._compiled, self.kernels, self._comment())
        self._missing: dict[tuple[str, torch.dtype], str] = {}
        self._register()

    def _comment(self) -> str:
        return f"{self.name}, generated from Python.\n" + equations(self._compiled)

    def _register(self) -> None:
        """Register the cell and its traits under a name derived from its computation: equal cells share one name."""
        traits = self._compiled.traits()
        spec = CellSpec(
            self.kernels,
            len(self._columns),
            self.states,
            self._torch_step,
            projectable=traits.projectable,
            source=f"{self.__module__}.{self.__qualname__}",
            parameters=len(self.parameters),
            second=len(self._compiled.step.second),
            prepare=self._prepare,
            gate_names=self._columns,
        )
        _ops.TRAITS[self.kernels] = traits
        cells.add(spec)

    @property
    def _columns(self) -> tuple[str, ...]:
        """Names of the blocks of columns in a row of the kernels' input."""
        return self.gates + self.inputs

    @property
    def recurrent(self) -> tuple[str, ...]:
        """The gates and further matrices that have rows in the recurrent weight, in the order of these rows."""
        return tuple(dict.fromkeys(self.blocks))

    @property
    def blocks(self) -> tuple[str, ...]:
        """The same in the kernels' order: a matrix that multiplies several vectors occurs once for each vector."""
        return tuple(self._compiled.matrices[k] for k in self._compiled.recurrent)

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
        return tuple(tuple(names[k] for k in group) for group in self._products)

    @property
    def _products(self) -> tuple[tuple[int, ...], ...]:
        step = self._compiled.step
        others = [g.matrices for g in step.groups if g.matrices != step.first] if step.staged else [step.second]
        return (step.first, *others)

    def _torch_step(self, wx: Tensor, rh: Tensor, states: tuple[Tensor, ...], *more: Any) -> tuple:
        """Run the function itself on tensors: wx (B, G·H), rh (B, ·) the products of h, states (B, H).

        ``more`` holds the parameters (H) and a function that multiplies another vector by some of the other matrices.
        """
        G = len(self._columns)
        first, *others = self._products
        products: dict[int, Any] = {}
        if first:
            products |= zip(first, rh.chunk(len(first), -1), strict=True)
        if len(self.blocks) > len(first):
            *more, multiply = more  # type: ignore[assignment]
            begin = 0
            for group in others:
                products |= zip(group, _of_vector(multiply, begin, len(group)), strict=True)
                begin += len(group)
        for matrix, calls in self._compiled.step.calls.items():
            if len(set(calls)) > 1:
                products[matrix] = _by_call([products[k] for k in calls])

        def named(kind: str, names: tuple[str, ...], values: Sequence[Any]) -> Names:
            return Names(kind, names, values, CellError)

        matrices = (*self._columns, *self.matrices)
        arguments = [
            named("x", self._columns, wx.chunk(G, -1)),
            named("r", matrices, [products.get(k, wx.new_zeros(())) for k in range(len(matrices))]),
            named("s", self.states, states),
        ]
        if self.parameters:
            arguments.append(named("p", self.parameters, more))
        new = self.step(*arguments)
        if isinstance(new, dict):
            new = tuple(new[name] for name in self.states)
        new = tuple(new) if isinstance(new, (tuple, list)) else (new,)
        like = wx[..., : wx.shape[-1] // G]  # not the old h, which is narrower with a projection
        return tuple(_for_every_row(f, like) for f, _ in zip(new, states, strict=True))

    def _prepare(self, dtype: torch.dtype, device: torch.device) -> str:
        """Ensure that there are kernels; return the problem or an empty string."""
        if device.type == "cuda":
            if self._compiled.step.staged:
                return "no kernels on cuda for products with several vectors or sums over the units"
            if len(self.states) > build_cuda.MAX_STATES:
                return f"no kernels on cuda for more than {build_cuda.MAX_STATES} states"
            return build_cuda.prepare(self.kernels, self._header, dtype, device)
        if dtype not in build.FORMATS:
            return f"no kernels for {dtype}"
        built = (_C.capability(), dtype)
        if built in self._missing:
            return self._missing[built]
        if _C.has_kernels(self.kernels, dtype):
            return ""
        with build.lock_of(self.kernels):
            if not _C.has_kernels(self.kernels, dtype):
                try:
                    build.library(self.kernels, self._header, *built).load(_C.load_cells)
                except (BuildError, ImportError) as error:
                    self._missing[built] = str(error)
                    return str(error)
        return ""

    def build(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> None:
        """Compile the kernels now instead of at the first call: for the CPU, or with ``device="cuda"`` for a GPU.

        Raises:
            RuntimeError: they cannot be compiled; a call would warn and run plain PyTorch instead.
            TypeError: ``dtype`` is not a `torch.dtype`.
        """
        if not isinstance(dtype, torch.dtype):
            raise TypeError(f"dtype: expected a torch.dtype, such as torch.float32, got {dtype!r}")
        self._missing.clear()
        build_cuda.forget(self.kernels)
        problem = self._prepare(dtype, torch.device(device))
        if problem:
            raise RuntimeError(f"{self.name}: {problem}")

    def explain(self) -> str:
        """Return the equations of the step and its gradient, the values saved for backward, and the cost."""
        return f"{self.name}: gates {', '.join(self.gates)}\n{equations(self._compiled)}"

    def source(self) -> str:
        """Return the generated C++ header."""
        return self._header

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


def _for_every_row(value: Any, like: Tensor) -> Tensor:
    """Return a new state with a value for every batch row.

    A tensor of the full shape is returned as it is, so that values computed from it stay differentiable with respect to
    it. A constant or a parameter is expanded.
    """
    if isinstance(value, Tensor) and value.shape == like.shape and value.dtype == like.dtype:
        return value
    return torch.as_tensor(value, dtype=like.dtype).expand_as(like)


def _of_vector(multiply: Callable, begin: int, count: int) -> list[Callable[[Tensor], Tensor]]:
    """Return for each of ``count`` matrices, which multiply one vector, a function for its product; computed once."""
    products: list[tuple[Tensor, ...]] = []

    def part(k: int) -> Callable[[Tensor], Tensor]:
        def product(vector: Tensor) -> Tensor:
            if not products:
                products.append(multiply(vector, begin, count).chunk(count, -1))
            return products[0][k]

        return product

    return [part(k) for k in range(count)]


def _by_call(products: Sequence[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
    """Return the product with a matrix that multiplies several vectors, one vector per call, in the step's order."""
    order = iter(products)
    return lambda vector: next(order)(vector)


def cell(
    gates: str | Sequence[str],
    states: str | Sequence[str] = "h",
    parameters: Mapping[str, Initial] | str | Sequence[str] | None = None,
    inputs: Mapping[str, Source] | None = None,
    matrices: str | Sequence[str] = (),
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
        return Cell(step, *lists[:2], given, inputs or {}, lists[2])

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
