"""What the layers LSTM, GRU and RNN have in common: how they are called."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from .. import _C, _paths, _recompute, _torch
from ..cells import MODES
from . import _checks, _extra, _initial, _tokens
from ._keywords import ExportedKeywords
from ._layers import as_layers, run_layers

if TYPE_CHECKING:
    from ..training import GradientNormPenalty


class RecurrentLayers(ExportedKeywords, _initial.LearnedStates, _torch.RNNBase):
    """Base of LSTM, GRU and RNN: how they are called. Parameters, their initialisation, checks and errors are torch's.

    A subclass derives from this class first and then from torch.nn's class of the same name, ``_torch_class``. A call
    computes with the attributes ``weight_ih_l0`` and so on or, like torch, with tensors that somebody has put into
    torch's private list of them, ``_flat_weights``.

    Attributes:
        backend, recompute, clip_state_gradient: taken where a call names none; ``"auto"``, False and None unless
            assigned. See `forward`.
        learn_initial_state: whether the states that a sequence starts from are parameters; a keyword of the
            constructor.
    """

    _torch_class: type[nn.RNNBase]
    backend: str = "auto"
    recompute: bool | int = False
    clip_state_gradient: float | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        names = self.__dict__.get("_flat_weights_names", ())
        if name in names and isinstance(value, Tensor) and len(self._flat_weight_refs) == len(names):
            # torch puts the value into its list of weights, and notes at its next call that the list holds it.
            self._flat_weight_refs[names.index(name)] = weakref.ref(value)  # type: ignore[arg-type]

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Any = None,
        *,
        lengths: Tensor | Sequence[int] | None = None,
        reset: Tensor | None = None,
        backend: str | None = None,
        embedding: nn.Module | Tensor | None = None,
        recompute: bool | int | None = None,
        initial: Any = None,
        clip_state_gradient: float | None = None,
        penalty: GradientNormPenalty | None = None,
    ) -> tuple[Any, Any]:
        """torch's forward, and keywords of our own.

        Shapes: T time steps, B batch rows, I input size, H hidden size, P projection size (H without projection),
        L layers, D directions.

        Args:
            input: (T, B, I); (B, T, I) if ``batch_first``; (T, I) unbatched; or a `PackedSequence`.
            hx: initial states, the learned ones or zeros if None: ``h`` (L·D, B, P), for LSTM ``(h, c)`` with ``c``
                (L·D, B, H); without B if unbatched.
            lengths: (B) integers from 0 to T in any order, on any device: the number of steps of each row. Outputs
                after a row's end are zero, its final state is that of its last step (``hx``, if it has none), and the
                reverse direction starts there. On a GPU they are not read back, and so not checked: more than T counts
                as T, less than 0 as 0.
            reset: bool, laid out as the input's leading dimensions: (T, B), (B, T) or (T). True at the *first* step of
                a new segment, which then starts from ``initial``, in every layer and direction.
            backend: ``"auto"``; ``"fused"``, the compiled kernels or an error; ``"reference"``, plain torch operations;
                ``"torch"``, the forward of torch.nn. None: the attribute ``backend``.
            embedding: a `torch.nn.Embedding` (or a module like one) or its weight (V, I). ``input`` is then token ids,
                int64 or int32: (T, B); (B, T) if ``batch_first``; (T); or a `PackedSequence` of them. The result is
                that for ``embedding(input)``, with its gradients; where V is less than the number of ids, the products
                of the first layer are made for the vocabulary and looked up.
            recompute: for training on long sequences. True: of each layer only inputs, outputs and the states at the
                borders of √T segments are kept for the backward pass, which computes the rest again; an integer: the
                steps of a segment, at least 2. None: the attribute ``recompute``. Results are the same, but in 16-bit
                formats the states are rounded at the borders. Without effect where the kernels do not run, in compiled
                functions, and under `torch.func`; no table of ``embedding`` is made.

            initial: states in the form of ``hx`` that a new segment starts from, where ``hx`` is what an earlier call
                returned. None: the learned ones, or, if there are none, ``hx`` itself.
            clip_state_gradient: a bound c: in the backward pass every element of ∂L/∂h_t is cut to ±c at every step of
                every layer, before it goes through the step to h_{t-1}, c_{t-1}, x_t and the weights. What goes from
                step to step in the cell state is not cut. None: the attribute ``clip_state_gradient``.
            penalty: a `fastrnn.training.GradientNormPenalty`.

        Returns:
            ``y`` (T, B, D·P), laid out as the input, and the final states, shaped like ``hx``.

        Raises:
            ValueError, RuntimeError: as torch.nn does, in its words.
            TypeError, ValueError: for ``lengths``, ``reset``, ``backend`` and the other keywords, saying what was
                expected and what came.
            TypeError, ValueError, RuntimeError, IndexError: for ``embedding`` and ids, likewise.
        """
        backend = backend or self.backend
        if backend != "auto":
            _checks.check_backend(backend, lengths, reset)
        recompute = self.recompute if recompute is None else recompute
        if recompute is not False:
            _recompute.check(recompute)
        clip = self.clip_state_gradient if clip_state_gradient is None else clip_state_gradient
        more: dict[str, Any] = {}
        if clip is not None or initial is not None or penalty is not None:
            more = _extra.of_call(initial, clip, penalty)
        if self.learn_initial_state or initial is not None:
            hx = self._start(input, hx, reset, embedding is not None, self.batch_first, more)
        if more:
            _extra.check_backend(more, backend)
        if backend == "auto" and lengths is None and reset is None and embedding is None and recompute is False:
            found = None if more or torch.compiler.is_compiling() else _C.short_layers(self, input, hx, False)
            if found is not None:
                if _paths.recorders:
                    _paths.record(MODES[self.mode], "fast path")
                return found
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, lengths, reset, backend, embedding, recompute, more)
        return self._forward_padded(input, hx, lengths, reset, backend, self.batch_first, embedding, recompute, more)

    def step(
        self,
        x: Tensor,
        state: Any = None,
        *,
        backend: str | None = None,
        embedding: nn.Module | Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """One time step of a stream: the same numbers as `forward` with T = 1, with less around them. Runs no hooks.

        Args:
            x: (B, I), or (I) unbatched, whatever ``batch_first`` says.
            state: what the last call returned (shaped like ``hx`` of `forward`); None at the start of a stream: the
                learned initial states, or zeros.
            backend: as in `forward`.
            embedding: as in `forward`; ``x`` is then ids, (B) or a single one, ().

        Returns:
            ``y`` (B, P) or (P), and the state to give to the next call.

        Raises:
            ValueError: the network is bidirectional, or ``x`` is not 1-D or 2-D; otherwise as `forward`.
        """
        backend = backend or self.backend
        more: dict[str, Any] = {}
        if self.clip_state_gradient is not None:
            more = _extra.of_call(None, self.clip_state_gradient, None)
            _extra.check_backend(more, backend)
        if state is None and self.learn_initial_state and isinstance(x, Tensor):
            # (B, I) lies as (B, T) does: rows first.
            state = self._start(x.unsqueeze(0), None, None, embedding is not None, False, more)
        usual = backend == "auto" and embedding is None and not more
        if usual and not self.bidirectional and not torch.compiler.is_compiling():
            found = _C.short_layers(self, x, state, True)
            if found is not None:
                return found
        if self.bidirectional:
            raise ValueError(
                "step: expected bidirectional=False, got a bidirectional network, which needs its whole input at once"
            )
        if embedding is not None:
            x = _tokens.embed_step(x, embedding)
        if not isinstance(x, Tensor) or x.dim() not in (1, 2):
            got = f"{x.dim()}-D" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"step: expected x to be a 1-D or 2-D tensor, (I) or (B, I), got {got}")
        if backend != "auto":
            _checks.check_backend(backend, None, None)
        y, state = self._forward_padded(x.unsqueeze(0), state, None, None, backend, False, more=more)
        return y.squeeze(0), state

    def _forward_padded(
        self,
        input: Any,
        hx: Any,
        lengths: Any,
        reset: Any,
        backend: str,
        batch_first: bool,
        embedding: Any = None,
        recompute: bool | int = False,
        more: dict[str, Any] | None = None,
    ) -> tuple[Any, Any]:
        weights = _checks.read_flat_weights(self)
        states = None if hx is None else self._as_states(hx)
        if embedding is not None:
            table = backend != "torch" and not recompute
            form = _tokens.Form(batch_first=batch_first, lengths=lengths)
            input, embedding = _tokens.read(self, input, embedding, form, states, weights, table)
        if embedding is None and (
            backend == "torch"
            or not _checks.are_plain(input, states, weights)
            or not self._fits(input, states, batch_first)
        ):
            found = self._forward_torch(input, hx, lengths, reset, batch_first)
            self._record_torch(backend, input, states)
            for_onnx = backend != "torch" and _checks.is_traced_for_onnx()  # torch has checked the sizes
            if lengths is None and reset is None and not more and backend != "fused" and not for_onnx:
                return found
            if isinstance(found, Proxy):
                return found  # type: ignore[return-value]
            if not for_onnx and (backend == "fused" or not self._fits(input, states, batch_first)):
                what = "backend='fused'" if backend == "fused" else _extra.in_words(more)
                raise ValueError(self._refusal(input, states, what))
            backend = "reference"

        batched = input.dim() == 3
        if not batched:
            x = input.unsqueeze(1)
            if states is not None:
                states = tuple([state.unsqueeze(1) for state in states])
        else:
            x = input.transpose(0, 1) if batch_first else input
        if lengths is not None:
            lengths = _checks.as_lengths(lengths, x.shape[0], x.shape[1], x.device)
        if reset is not None:
            reset = _checks.as_reset(reset, input.shape[:-1], batch_first, x.device)

        options: dict[str, Any] = {"batch_sizes": None, "lengths": lengths, "reset": reset, "backend": backend}
        if embedding is not None or recompute:
            options.update(embedding=embedding, recompute=recompute)
        if more:
            options.update(self._checked(more, states, batched))
        y, last = self._run(x, states, weights, options)
        if not batched:
            y = y.squeeze(1)
            last = tuple([state.squeeze(1) for state in last])
        elif batch_first:
            y = y.transpose(0, 1)
        return y, last if len(last) > 1 else last[0]

    def _forward_packed(
        self,
        input: PackedSequence,
        hx: Any,
        lengths: Any,
        reset: Any,
        backend: str,
        embedding: Any,
        recompute: bool | int,
        more: dict[str, Any],
    ) -> tuple[Any, Any]:
        if lengths is not None:
            raise ValueError("lengths: expected None with a PackedSequence, which has lengths of its own")
        if reset is not None:
            raise ValueError(
                "reset: expected None with a PackedSequence; give the padded input with reset= and lengths= instead"
            )
        x, batch_sizes, sorted_indices, unsorted_indices = input
        weights = _checks.read_flat_weights(self)
        # Sorted first and checked after, as in torch: what does not fit may do so once sorted.
        states = None if hx is None else self._as_states(self.permute_hidden(hx, sorted_indices))
        if embedding is not None:
            table = backend != "torch" and not recompute
            form = _tokens.Form(batch_sizes=batch_sizes)
            x, embedding = _tokens.read(self, x, embedding, form, states, weights, table)
            input = PackedSequence(x, batch_sizes, sorted_indices, unsorted_indices)
        if embedding is None and (
            backend == "torch"
            or not _checks.are_plain(x, states, weights)
            or not self._fits_packed(x, batch_sizes, states)
        ):
            found = self._torch_class.forward(self, input, hx)
            self._record_torch(backend, x, states)
            if backend == "fused" or more:
                what = "backend='fused'" if backend == "fused" else _extra.in_words(more)
                raise ValueError(self._refusal(x, states, what))
            return found

        options: dict[str, Any] = {"batch_sizes": batch_sizes, "lengths": None, "reset": None, "backend": backend}
        if embedding is not None or recompute:
            options.update(embedding=embedding, recompute=recompute)
        options.update(more)
        try:
            y, last = self._run(x, states, weights, options)
        except ValueError:
            if int(batch_sizes.sum()) != x.shape[0]:
                self._torch_class.forward(self, input, hx)  # raises in torch's words
            raise
        hidden = self.permute_hidden(last if len(last) > 1 else last[0], unsorted_indices)  # type: ignore[arg-type]
        return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), hidden

    def _record_torch(self, backend: str, x: Any, states: tuple[Any, ...] | None) -> None:
        if torch.compiler.is_compiling() or not _paths.recorders or not isinstance(x, Tensor):
            return
        tensors = [s for s in states or () if isinstance(s, Tensor)]
        why = "backend='torch'" if backend == "torch" else self._refusal(x, tuple(tensors), "kernels")
        _paths.record(MODES[self.mode], "torch", why)

    def _forward_torch(self, input: Any, hx: Any, lengths: Any, reset: Any, batch_first: bool) -> Any:
        """The call as torch.nn's class has it."""
        proxy = _checks.leaf_proxy(self, input, hx, lengths=lengths, reset=reset)
        if proxy is not None:
            return proxy
        if batch_first == self.batch_first or input.dim() != 3:
            return self._torch_class.forward(self, input, hx)
        y, last = self._torch_class.forward(self, input.transpose(0, 1), hx)  # `step`, which is time-major
        return y.transpose(0, 1), last

    def _run(
        self,
        x: Tensor,
        states: tuple[Tensor, ...] | None,
        weights: list[Tensor],
        options: dict[str, Any],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """All layers, on tensors that are time-major and known to fit. With an embedding x is ids, (T, B, 1).

        ``options`` are those of `fastrnn.functional.sequence`.
        """
        cell = MODES[self.mode]
        dropout = self.dropout if self.training else 0.0
        directions = 2 if self.bidirectional else 1
        target = _checks.autocast_dtype(x)
        if target is None:
            layers = as_layers(weights, self.bias, self.proj_size)
            return run_layers(cell, x, layers, states, directions, dropout, options)

        onednn = cell == "lstm" and not self.proj_size and _checks.onednn_takes(x, options["batch_sizes"])
        dtype = _checks.run_dtype(cell, target, x, states, onednn)
        layers = as_layers([weight.to(dtype) for weight in weights], self.bias, self.proj_size)
        if states is not None:
            states = tuple([state.to(dtype) for state in states])
        if "initial" in options:
            options["initial"] = tuple([state.to(dtype) for state in options["initial"]])
        with torch.autocast(x.device.type, enabled=False):
            y, last = run_layers(cell, x.to(dtype), layers, states, directions, dropout, options)
        if self.proj_size:  # the projection, a product, comes last
            y, last = y.to(target), (last[0].to(target), last[1])
        return y, last

    def _as_states(self, hx: Any) -> tuple[Any, ...]:
        """``hx`` as a tuple of states; of nothing where it has not the form for that, which fits no network."""
        return (hx,)

    def _state_sizes(self) -> tuple[int, ...]:
        return (self.hidden_size,)

    def _fits(self, input: Tensor, states: tuple[Tensor, ...] | None, batch_first: bool) -> bool:
        """Whether input and states have the sizes that the network expects."""
        shape = input.shape
        if len(shape) not in (2, 3):
            return False
        batched = len(shape) == 3
        steps = shape[1] if batched and batch_first else shape[0]
        if shape[-1] != self.input_size or steps == 0:
            return False
        if states is None:
            return True
        return self._states_fit(
            states, (len(self._all_weights), shape[0] if batch_first else shape[1])[: len(shape) - 1]
        )

    def _fits_packed(self, x: Tensor, batch_sizes: Tensor, states: tuple[Tensor, ...] | None) -> bool:
        if x.dim() != 2 or x.shape[-1] != self.input_size:
            return False
        if states is None:
            return True
        rows = _checks.packed_rows(batch_sizes, states[0] if states else None)
        return self._states_fit(states, (len(self._all_weights), rows))

    def _states_fit(self, states: tuple[Tensor, ...], lead: tuple[int, ...]) -> bool:
        sizes = self._state_sizes()
        if len(states) != len(sizes):
            return False
        for state, size in zip(states, sizes, strict=True):  # noqa: SIM110 - in the path of every call
            if state.shape != (*lead, size):
                return False
        return True

    def _refusal(self, x: Tensor, states: tuple[Tensor, ...] | None, what: str) -> str:
        got = ", ".join(f"{t.dtype} {tuple(t.shape)} on {t.device}" for t in (x, *(states or ())))
        return f"{what}: expected {_checks.expected(x)}, and states of exact sizes; got {got}"

    def __prepare_scriptable__(self) -> nn.Module:
        """For `torch.jit.script`: a torch.nn module with the same parameters."""
        _extra.check_scriptable(self)
        twin = self._torch_class.__new__(self._torch_class)
        twin.__dict__ = self.__dict__.copy()
        return twin
