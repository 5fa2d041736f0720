"""Stream: single time steps of a network with low overhead, for inference."""

from __future__ import annotations

import copy
import threading
from typing import Any

import torch
from torch import Tensor, nn

from .. import _C, _paths, cells
from .._ops import traits_of
from .._surroundings import ORDINARY
from ..functional import LayerWeights
from . import _checks, _initial
from ._layers import as_layers, run_layers
from ._options import Options, shapes
from ._recurrent import Recurrent


class Stream:
    r"""Network that runs time step by time step and holds its own state, for inference; not differentiable.

    It computes with a copy of the weights, taken at construction: changes to the module take effect after `refresh`.
    ``y`` and the states are bitwise equal to those of ``module.step`` in evaluation mode (without dropout), except with
    narrow ``weights``. Steps in several threads are serialised; a step longer than some microseconds releases the
    Python GIL.

    A stream can be copied (`copy.deepcopy`) and pickled, with the module, its own copy of the weights and its states.

    Shapes: B batch rows, I input size, H hidden size, P projection size (H without projection), L layers.

    Args:
        module: a `fastrnn.LSTM`, `GRU` or `RNN`, or a network of `fastrnn.cell`, in one direction, on the CPU.
        batch: B; None: that of the first ``x``, or of ``state``.
        state: the initial state, also used by `reset`, shaped like ``hx`` of the module: ``h`` (L, B, P), for LSTM
            ``(h, c)`` with ``c`` (L, B, H), for a cell of several states a tuple; None for the module's learned initial
            states, or zeros.
        weights: ``"bfloat16"`` or ``"int8"`` store the matrices W and R of a float32 module in that dtype; None keeps
            theirs. A step of few batch rows takes the time needed to read the matrices: half or a quarter. int8 has one
            scale for each row of a matrix, its largest absolute value divided by 127, and rounds the inputs and states
            that it multiplies to 16 bits (not on processors without AVX2). States, biases and sums stay float32. With
            bfloat16, the error of a product is at most 2⁻⁸ of the sum of its terms' absolute values. With int8, it is
            at most 1/254 of the largest weight of its row times the sum of the absolute values of x, plus 1/65000 of
            the largest absolute value of x times the sum of those of the row; a product may overflow where the sum over
            x exceeds 10³⁶. A step raises RuntimeError while `fastrnn.set_batch_invariant` is on.

    A cell that multiplies another vector than h, has further inputs or heads, or has no kernels runs its steps in
    Python, at the cost of ``module.step``.

    Raises:
        TypeError: ``module`` is none of these classes, or its weights are not dense CPU tensors of one dtype.
        ValueError: the network is bidirectional; ``batch`` is not positive; ``state`` is invalid; ``weights`` is none
            of these, or given for a module that is not float32, runs its steps in Python, or has per-unit parameters or
            matrices that are not finite.

    Example:
        >>> stream = fastrnn.Stream(fastrnn.GRU(8, 16), batch=1)
        >>> for x in torch.randn(5, 1, 8):
        ...     y = stream.step(x)
        >>> y.shape, stream.state.shape
        (torch.Size([1, 16]), torch.Size([1, 1, 16]))
    """

    _learned = False
    _narrow: torch.dtype | None = None

    def __init__(
        self, module: nn.Module, batch: int | None = None, state: Any = None, *, weights: str | None = None
    ) -> None:
        if not isinstance(module, Recurrent):
            got = type(module).__name__
            raise TypeError(f"module: expected a fastrnn.LSTM, GRU or RNN, or a network of fastrnn.cell, got {got}")
        if module.bidirectional:
            raise ValueError("module: expected bidirectional=False, got a bidirectional network")
        if batch is not None and (not isinstance(batch, int) or batch < 1):
            raise ValueError(f"batch: expected a positive number of batch rows, got {batch!r}")
        if batch is not None and batch >= 1 << 31:
            raise ValueError(f"batch: expected less than {1 << 31} rows, got an integer of {batch.bit_length()} bits")
        if weights not in (None, *_NARROW):
            raise ValueError(f"weights: expected None, 'bfloat16' or 'int8', got {weights!r}")
        self._module = module
        self._narrow = None if weights is None else _NARROW[weights]
        self._weights = self._take_weights()
        self._kernel: Any = None
        self._handle: Any = None
        self._batch = 0  # unknown
        self._initial: tuple[Tensor, ...] = ()  # zeros
        if batch is not None:
            self._begin(batch)
        self._learned = state is None and module.learn_initial_state
        if state is not None:
            self.state = state
            kernel: Any = self._kernel
            self._initial = tuple(kernel.states())
        elif batch is not None:
            self._begin_learned()

    def step(self, x: Tensor) -> Tensor:
        """Run the next time step.

        Args:
            x: (B, I), or (I) if B is 1; of the module's dtype.

        Returns:
            ``y`` (B, P), or (P).

        Raises:
            TypeError: x is not an ordinary CPU tensor of the module's dtype.
            ValueError: x has another shape.
        """
        if self._handle is not None:
            y = _C.stream_step(self._handle, x)
            if y is not None:
                return y
        return self._step_checked(x)

    @property
    def state(self) -> Any:
        """The current state, as a copy.

        It is shaped like ``hx`` of the module: ``h`` (L, B, P), for LSTM ``(h, c)`` with ``c`` (L, B, H); None before
        the first step of a stream without a batch size. An assigned state is copied; None assigns the initial state.

        Raises:
            TypeError: an assigned value is not as many tensors as the cell has states, or has another dtype.
            ValueError: a tensor has another shape.
        """
        if self._kernel is None:
            return None
        states = tuple(self._kernel.states())
        return states if len(states) > 1 else states[0]

    @state.setter
    def state(self, value: Any) -> None:
        if value is None:
            if self._kernel is not None:
                self._kernel.reset(None, self._initial if self._learned else ())
            return
        module, layers = self._module, self._module.num_layers
        given, sizes = module._as_states(value), module._state_sizes()
        w: Any = self._weights[0][1]
        dtype = w.dtype if self._narrow is None else torch.float32
        if len(given) != len(sizes) or not all(isinstance(s, Tensor) and s.dtype is dtype for s in given):
            raise TypeError(f"state: expected {len(sizes)} tensor(s) of {dtype}, got {value!r:.100}")
        batch = given[0].shape[1] if self._kernel is None and given[0].dim() == 3 else self._batch
        for s, size in zip(given, sizes, strict=True):
            if tuple(s.shape) != (layers, batch, size) or batch == 0:
                raise ValueError(f"state: expected shape {(layers, batch or 'B', size)}, got {tuple(s.shape)}")
        if self._kernel is None:
            self._begin(batch)
        self._kernel.set_states(given)

    def reset(self, rows: Any = None) -> None:
        """Return to the initial state: that given to the constructor, the learned one, or zeros.

        Args:
            rows: the batch rows to reset: a bool mask (B), or indices (a tensor, a sequence of integers or one
                integer); None for all.

        Raises:
            IndexError: a row is outside the batch.
        """
        if self._kernel is None:
            return
        chosen = None
        if rows is not None:
            mask = torch.zeros(self._batch, dtype=torch.bool, device="cpu")
            mask[(rows,)] = True
            chosen = mask.nonzero().flatten().tolist()
        self._kernel.reset(chosen, self._initial)

    def refresh(self) -> None:
        """Copy the module's weights again; the state is unchanged.

        Raises:
            TypeError: they are not dense CPU tensors of the same dtype as before.
            ValueError: their shapes have changed.
        """
        dtype = self._module._weights()[0].dtype
        if self._narrow is not None and dtype is not torch.float32:
            raise TypeError(f"module: expected weights of torch.float32 as before, got {dtype}")
        weights = self._take_weights()
        for old, new in zip(self._weights, weights, strict=True):
            for a, b in zip(old, new, strict=True):
                if a is not None and b is not None and a.dtype is not b.dtype:
                    raise TypeError(f"module: expected weights of {a.dtype} as before, got {b.dtype}")
                if (None if a is None else a.shape) != (None if b is None else b.shape):
                    raise ValueError(f"module: expected weights {shapes(old)} as before, got {shapes(new)}")
        self._weights = weights
        if self._kernel is not None:
            self._kernel.set_weights(weights)
            if self._learned:
                self._initial = self._take_initial()

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in ("_kernel", "_handle")}
        return state | {"_now": None if self._kernel is None else self._kernel.states()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _kernel=None, _handle=None)
        now = self.__dict__.pop("_now")
        if now is not None:
            self._begin(self._batch)
            self._kernel.set_states(now)

    def _begin(self, batch: int) -> None:
        name = self._module._cell_name
        self._batch = batch
        if self._narrow is not None or (self._module._takes_ids and _runs_alone(name, self._weights[0])):
            self._kernel = _C.Stream(name, self._weights, batch)
            self._handle = self._kernel.handle()
        else:
            self._kernel = _Steps(self._module, self._weights, batch)

    def _begin_learned(self) -> None:
        if self._learned:
            self._initial = self._take_initial()
            self._kernel.set_states(self._initial)

    def _take_initial(self) -> tuple[Tensor, ...]:
        """Return a copy of the module's learned states."""
        states = _initial.of_layers(self._module, self._module._state_names, self._batch)
        return tuple(s.detach().clone() for s in states)

    def _take_weights(self) -> list[list[Tensor | None]]:
        """Return copies of w_ih, w_hh, b_ih, b_hh, w_hr of each layer."""
        module = self._module
        weights = module._weights()
        if not weights or not weights[0].is_cpu or not _checks.are_ordinary(weights[0], None, weights):
            raise TypeError("module: expected dense CPU weights of one floating-point dtype")
        own = [_C.plain_copy(w) for w in weights]
        if any(w is None for w in own):
            raise TypeError("module: expected ordinary weights, got some wrapped by torch.func or a dispatch mode")
        layers = as_layers(own, module.bias, module.proj_size)  # type: ignore[arg-type]
        if self._narrow is None:
            return [list(layer) for layer in layers]
        name = module._cell_name
        native = module._takes_ids and _runs_alone(name, list(layers[0])) and not traits_of(name).parameters
        if weights[0].dtype is not torch.float32 or not native:
            reason = "whose cell multiplies another vector than h, has per-unit parameters or has no kernels"
            got = weights[0].dtype if native else f"{type(module).__name__}, {reason}"
            raise ValueError(f"weights: expected a network of float32 matrices, got {got}")
        if not all(_C.is_finite(m) for layer in layers for m in (layer.w_ih, layer.w_hh) if m is not None):
            raise ValueError("weights: expected finite matrices, got infinity or NaN")
        return [_narrowed(layer, self._narrow) for layer in layers]

    def _step_checked(self, x: Any) -> Tensor:
        """Run a step that the fast path did not take: the first one, strided input, or one that raises."""
        w = self._weights[0][0]
        assert w is not None
        dtype = w.dtype if self._narrow is None else torch.float32
        if type(x) not in ORDINARY or not x.is_cpu or x.layout is not torch.strided or x.dtype is not dtype:
            got = f"{x.dtype} on {x.device}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x: expected a dense CPU tensor of {dtype}, got {got}")
        rows = self._batch or (x.shape[0] if x.dim() == 2 else 1)
        if rows == 0 or (tuple(x.shape) != (rows, w.shape[1]) and not (rows == 1 and x.shape == w.shape[1:])):
            raise ValueError(f"x: expected shape {(self._batch or 'B', w.shape[1])}, got {tuple(x.shape)}")
        dense = _C.plain_copy(x)
        if dense is None:
            raise TypeError("x: expected an ordinary tensor, got one wrapped by torch.func or a dispatch mode")
        if self._kernel is None:
            self._begin(rows)
            self._begin_learned()
        if self._handle is None:
            return self._kernel.step(dense)
        y = _C.stream_step(self._handle, dense)
        assert y is not None
        return y


_NARROW = {"bfloat16": torch.bfloat16, "int8": torch.int8}


def _narrowed(layer: Any, dtype: torch.dtype) -> list[Tensor | None]:
    """Return a layer's weights with narrow matrices, and the scales of their rows, None for bfloat16."""
    w_ih, w_hh, *rest = layer
    if dtype is torch.bfloat16:
        return [w_ih.to(dtype), w_hh.to(dtype), *rest, None, None]
    matrices, scales = [], []
    for w in (w_ih, w_hh):
        scale = w.abs().amax(1) / 127
        divisor = torch.where(scale > 0, scale, 1.0).unsqueeze(1)
        matrices.append(torch.round(w / divisor).clamp_(-127, 127).to(dtype))
        scales.append(scale)
    return [*matrices, *rest, *scales]


def _runs_alone(cell: str, weights: list[Any]) -> bool:
    """Return True if the kernels can run a whole step: they are available, and the cell multiplies nothing but h."""
    traits, spec = traits_of(cell), cells.find(cell)
    assert spec is not None
    return not traits.second and not traits.totals and _paths.has_kernels(spec, LayerWeights(*weights))


class _Steps:
    """Python counterpart of `_C.Stream`, for networks that it does not support."""

    def __init__(self, module: Recurrent, weights: list[list[Any]], batch: int) -> None:
        self._lock = threading.Lock()
        self._module = copy.copy(module)
        self._module.training = False
        self.set_weights(weights)
        like = weights[0][1]
        lead = (len(weights), batch)
        with torch.inference_mode(False):
            self._states = tuple(like.new_zeros(*lead, width) for width in module._state_sizes())

    def set_weights(self, weights: list[list[Any]]) -> None:
        self._layers = [LayerWeights(*layer) for layer in weights]

    def states(self) -> list[Tensor]:
        with self._lock:
            return [s.clone() for s in self._states]

    def set_states(self, values: Any) -> None:
        with self._lock, torch.inference_mode(False):
            self._states = tuple(torch.empty_like(v).copy_(v.detach()) for v in values)

    def reset(self, rows: list[int] | None, initial: tuple[Tensor, ...]) -> None:
        chosen = slice(None) if rows is None else rows
        with self._lock:
            for k, state in enumerate(self._states):
                state[:, chosen] = initial[k][:, chosen] if initial else 0

    def step(self, x: Tensor) -> Tensor:
        """Run the next time step of x (B, I) or (I)."""
        rows = x if x.dim() == 2 else x.unsqueeze(0)
        keywords = Options().of_layers(None)
        # The states are written both in inference mode and outside it, so they are allocated outside.
        with self._lock, torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            name, layer = self._module._cell_name, self._module._layer
            y, states = run_layers(name, rows.unsqueeze(0), self._layers, self._states, 1, 0.0, keywords, layer)
            self._states = states
        return y[0].view(*x.shape[:-1], -1)
