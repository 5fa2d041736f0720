"""Stream: single steps of a network at the least cost, for inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _C
from ..cells import MODES
from . import _checks, _initial
from ._recurrent import RecurrentLayers


class Stream:
    """A network that is fed one time step after the other and remembers its own state. For inference: nothing of it is
    differentiable.

    It computes with a copy of the weights, taken when it is made: changes to the module show after `refresh`. ``y`` and
    the states are bit for bit those of ``module.step``, in evaluation mode (without dropout). Steps of several threads
    take turns; while one takes longer than some microseconds, other threads of Python run.

    A stream can be copied (`copy.deepcopy`) and pickled, with the module, the weights it has and its states.

    Shapes: B batch rows, I input size, H hidden size, P projection size (H without projection), L layers.

    Args:
        module: a `fastrnn.LSTM`, `GRU` or `RNN` in one direction, on the CPU.
        batch: B; None: that of the first ``x``, or of ``state``.
        state: the state to begin with and to `reset` to, shaped like ``hx`` of the module: ``h`` (L, B, P), for LSTM
            ``(h, c)`` with ``c`` (L, B, H); None for the module's learned initial states, or zeros.

    Raises:
        TypeError: ``module`` is none of these classes, or its weights are not dense CPU tensors of one format.
        ValueError: the network is bidirectional, or ``batch`` is not positive, or as for `state`.
    """

    _learned = False

    def __init__(self, module: RecurrentLayers, batch: int | None = None, state: Any = None) -> None:
        if not isinstance(module, RecurrentLayers):
            raise TypeError(f"module: expected a fastrnn.LSTM, GRU or RNN, got {type(module).__name__}")
        if module.bidirectional:
            raise ValueError("module: expected bidirectional=False, got a bidirectional network")
        if batch is not None and (not isinstance(batch, int) or batch < 1):
            raise ValueError(f"batch: expected a positive number of rows, got {batch!r}")
        if batch is not None and batch >= 1 << 31:
            raise ValueError(f"batch: expected less than {1 << 31} rows, got a number of {batch.bit_length()} bits")
        self._module = module
        self._weights = self._take_weights()
        self._kernel: Any = None
        self._handle: Any = None
        self._batch = 0  # not known yet
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
        """The next time step.

        Args:
            x: (B, I), or (I) if B is 1; of the dtype of the weights.

        Returns:
            ``y`` (B, P), or (P).

        Raises:
            TypeError: x is no ordinary CPU tensor, or of another dtype.
            ValueError: x has another shape.
        """
        if self._handle is not None:
            y = _C.stream_step(self._handle, x)
            if y is not None:
                return y
        return self._step_with_care(x)

    @property
    def state(self) -> Any:
        """The state now, shaped like ``hx`` of the module: ``h`` (L, B, P), for LSTM ``(h, c)`` with ``c`` (L, B, H). A
        copy; None before the first step of a stream that does not know its batch size. What is assigned is copied, None
        means the initial state.

        Raises:
            TypeError: not tensors in the number of the cell's states, or of another dtype.
            ValueError: they have not this shape.
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
        if len(given) != len(sizes) or not all(isinstance(s, Tensor) and s.dtype is w.dtype for s in given):
            raise TypeError(f"state: expected {len(sizes)} tensor(s) of {w.dtype}, got {value!r:.100}")
        batch = given[0].shape[1] if self._kernel is None and given[0].dim() == 3 else self._batch
        for s, size in zip(given, sizes, strict=True):
            if tuple(s.shape) != (layers, batch, size) or batch == 0:
                raise ValueError(f"state: expected shape {(layers, batch or 'B', size)}, got {tuple(s.shape)}")
        if self._kernel is None:
            self._begin(batch)
        self._kernel.set_states(given)

    def reset(self, rows: Any = None) -> None:
        """Back to the initial state: that given to the constructor, or zeros.

        Args:
            rows: which of the B rows: a bool mask (B), or indices (a tensor, a sequence of integers or one integer);
                None for all.

        Raises:
            IndexError: as of torch's indexing, if they are not rows of the batch.
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
        """Takes the module's weights again; the state stays.

        Raises:
            TypeError: they are not dense CPU tensors of the dtype of before.
            ValueError: they have other shapes than before.
        """
        weights = self._take_weights()
        for old, new in zip(self._weights, weights, strict=True):
            for a, b in zip(old, new, strict=True):
                if a is not None and b is not None and a.dtype is not b.dtype:
                    raise TypeError(f"module: expected weights of {a.dtype} as before, got {b.dtype}")
                if (None if a is None else a.shape) != (None if b is None else b.shape):
                    raise ValueError("module: expected weights of the shapes that they had when the stream was made")
        self._weights = weights
        if self._kernel is not None:
            self._kernel.set_weights(weights)
            if self._learned:
                self._initial = self._take_initial()

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_kernel", "_handle")}
        return kept | {"_now": None if self._kernel is None else self._kernel.states()}

    def __setstate__(self, kept: dict[str, Any]) -> None:
        self.__dict__.update(kept, _kernel=None, _handle=None)
        now = self.__dict__.pop("_now")
        if now is not None:
            self._begin(self._batch)
            self._kernel.set_states(now)

    def _begin(self, batch: int) -> None:
        self._kernel = _C.Stream(MODES[self._module.mode], self._weights, batch)
        self._batch = batch
        self._handle = self._kernel.handle()

    def _begin_learned(self) -> None:
        if self._learned:
            self._initial = self._take_initial()
            self._kernel.set_states(self._initial)

    def _take_initial(self) -> tuple[Tensor, ...]:
        """A copy of the module's learned states."""
        found = _initial.of_layers(self._module, self._module._state_names, self._batch)
        return tuple(s.detach().clone() for s in found)

    def _take_weights(self) -> list[list[Tensor | None]]:
        """Of each layer w_ih, w_hh, b_ih, b_hh, w_hr: copies."""
        module = self._module
        found = _checks.read_weights(module, module._flat_weights_names)
        if not found or not found[0].is_cpu or not _checks.are_plain(found[0], None, found):
            raise TypeError("module: expected dense CPU weights of one floating-point format")
        own = [_C.plain_copy(w) for w in found]
        if any(w is None for w in own):
            raise TypeError("module: expected ordinary weights, got some that torch.func or a mode has wrapped")
        count = len(own) // module.num_layers
        layers = []
        for first in range(0, len(own), count):
            w = own[first : first + count]
            biases = w[2:4] if module.bias else [None, None]
            layers.append([*w[:2], *biases, w[-1] if module.proj_size else None])
        return layers

    def _step_with_care(self, x: Any) -> Tensor:
        """What did not go at once: the first step, strides, and errors."""
        w = self._weights[0][0]
        assert w is not None
        if type(x) not in _checks.PLAIN or not x.is_cpu or x.layout is not torch.strided or x.dtype is not w.dtype:
            got = f"{x.dtype} on {x.device}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"x: expected a dense CPU tensor of {w.dtype}, got {got}")
        rows = self._batch or (x.shape[0] if x.dim() == 2 else 1)
        if rows == 0 or (tuple(x.shape) != (rows, w.shape[1]) and not (rows == 1 and x.shape == w.shape[1:])):
            raise ValueError(f"x: expected shape {(self._batch or 'B', w.shape[1])}, got {tuple(x.shape)}")
        plain = _C.plain_copy(x)
        if plain is None:
            raise TypeError("x: expected an ordinary tensor, got one that torch.func or a mode of torch has wrapped")
        if self._kernel is None:
            self._begin(rows)
            self._begin_learned()
        y = _C.stream_step(self._handle, plain)
        assert y is not None
        return y
