"""Base class of all recurrent networks: LSTM, GRU, RNN, and networks of custom cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .. import _paths, _recompute
from .. import _surroundings as here
from ..cells import check_limit
from ..functional import sequence
from . import _checks, _initial, _tokens
from ._keywords import ExportedKeywords
from ._layers import LayerResult, as_layers, run_layers
from ._options import Options, shapes
from ._tokens import CallerLayout

if TYPE_CHECKING:
    from ..training import GradientNormPenalty


class CallArguments(NamedTuple):
    """Arguments of a call, as a network checks them.

    Attributes:
        input, hx: as passed; ids that are not looked up in a table of products are already embedded.
        x: the input tensor; the data of a `PackedSequence`.
        states: ``hx`` as a tuple, sorted for packed input; None for zeros.
        weights: in torch's order.
        layout: the layout of the input.
    """

    input: Any
    hx: Any
    x: Any
    states: tuple[Any, ...] | None
    weights: list[Any]
    layout: CallerLayout


class Recurrent(ExportedKeywords, _initial.LearnedStates):
    """Base of all recurrent networks, placed before a subclass of `torch.nn.Module`; implements their calls.

    A subclass has the attributes input_size, hidden_size, num_layers, bias, batch_first, dropout and bidirectional of
    torch.nn's modules, and defines its cell, its states and its weights.

    Attributes:
        backend, recompute, clip_state_gradient: defaults of a call's keywords; ``"auto"``, False and None unless
            assigned. See `forward`.
        learn_initial_state: True if the initial states of a sequence are parameters; a keyword of the constructor.
    """

    backend: str = "auto"
    recompute: bool | int = False
    clip_state_gradient: float | None = None

    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    training: bool
    proj_size: int = 0

    #: values of ``backend``
    _backends: tuple[str, ...] = _checks.BACKENDS
    #: (module, input, hx, is it `step`) -> the result of an ordinary call on the fast path, or None
    _fast_path: Callable[[Any, Any, Any, bool], Any] | None = None
    #: True if ids may be looked up in a table of the first layer's products
    _takes_ids: bool = True

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
        """Run the network over a batch of sequences.

        Shapes: T time steps, B batch rows, I input size, H hidden size, P projection size (H without projection),
        L layers, D directions.

        Args:
            input: (T, B, I); (B, T, I) if ``batch_first``; (T, I) unbatched; or a `PackedSequence`.
            hx: initial states: ``h`` (L·D, B, P), for LSTM ``(h, c)`` with ``c`` (L·D, B, H), for a custom cell a
                tensor (L·D, B, H) or a tuple of its several states; without B if unbatched. None: the learned ones, or
                zeros.
            lengths: (B) integers from 0 to T in any order, on any device: the number of time steps of each batch row.
                Outputs after a row's end are zero, its final state is that of its last step (``hx`` if it has none),
                and the reverse direction starts there. On a GPU they are not read back, and so not checked: more than T
                counts as T, less than 0 as 0.
            reset: bool, with the layout of the input's leading dimensions: (T, B), (B, T) or (T). True at the *first*
                time step of a new segment, which then starts from ``initial``, in every layer and direction.
            backend: ``"auto"``; ``"fused"``: the compiled kernels or an error; ``"reference"``: plain PyTorch;
                ``"torch"``: the forward of torch.nn (not for custom cells). None: the attribute ``backend``.
            embedding: a `torch.nn.Embedding` (or a similar module) or its weight (V, I). ``input`` then holds token
                ids, int64 or int32: (T, B); (B, T) if ``batch_first``; (T); or a `PackedSequence` of them. The result
                is that for ``embedding(input)``, with its gradients; if V is less than the number of ids, the first
                layer's products are computed for the whole vocabulary and looked up.
            recompute: for training on long sequences. True: only inputs, outputs and the states at the borders of √T
                segments of each layer are saved for backward, which recomputes the rest; an integer: the time steps of
                a
                segment, at least 2. None: the attribute ``recompute``. Results are the same, except that in 16-bit
                dtypes the states are rounded at the borders. No effect where the kernels do not run, in compiled
                functions, and under `torch.func`; input products are then not looked up for ``embedding``.
            initial: states that a new segment starts from, shaped like ``hx``, if ``hx`` comes from an earlier call.
                None: the learned ones, or else ``hx`` itself.
            clip_state_gradient: the limit c: in the backward pass every element of ∂L/∂h_t is clipped to ±c at every
                time step of every layer, before it passes through the step to h_{t-1}, c_{t-1}, x_t and the weights.
                The gradients of the cell state and of other states than the first are not clipped. None: the attribute
                ``clip_state_gradient``.
            penalty: a `fastrnn.training.GradientNormPenalty`.

        Returns:
            ``y`` (T, B, D·P), in the layout of the input, and the final states, shaped like ``hx``.

        Raises:
            ValueError, RuntimeError: an argument is invalid; for LSTM, GRU and RNN with torch.nn's message.
            TypeError, ValueError: ``lengths``, ``reset``, ``backend`` or another keyword is invalid; the message
                gives the expected and the actual value.
            TypeError, ValueError, RuntimeError, IndexError: ``embedding`` or ids are invalid, likewise.
        """
        backend = backend or self.backend
        recompute = self.recompute if recompute is None else recompute
        if recompute is not False:
            _recompute.check(recompute)
        clip = self.clip_state_gradient if clip_state_gradient is None else clip_state_gradient
        if clip is not None:
            check_limit(clip)
        if self.learn_initial_state or initial is not None:
            hx, initial = self._start(input, hx, initial, reset, embedding is not None, self.batch_first)
        if (
            backend == "auto"
            and lengths is None
            and reset is None
            and embedding is None
            and recompute is False
            and clip is None
            and penalty is None
            and self._fast_path is not None
            and not here.is_compiling()
        ):
            result = self._fast_path(self, input, hx, False)
            if result is not None:
                if _paths.recorders:
                    _paths.record(self._cell_name, "fast path")
                return result
        options = Options(lengths, reset, backend, embedding, recompute, initial, clip, penalty)
        options.check_backend(self._backends)
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx, options)
        return self._forward_padded(input, hx, options, self.batch_first)

    def step(
        self,
        x: Tensor,
        state: Any = None,
        *,
        backend: str | None = None,
        embedding: nn.Module | Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Run one time step of a stream.

        The result is that of `forward` with T = 1, at a lower overhead. Hooks do not run.

        Args:
            x: (B, I), or (I) if unbatched; ``batch_first`` has no effect.
            state: the state that the last call returned (shaped like ``hx`` of `forward`); None at the start of a
                stream: the learned initial states, or zeros.
            backend: as in `forward`.
            embedding: as in `forward`; ``x`` then holds ids, (B) or a single one, ().

        Returns:
            ``y`` (B, P) or (P), and the state to pass to the next call.

        Raises:
            ValueError: the network is bidirectional, or ``x`` is not 1-D or 2-D. Otherwise as `forward`.
        """
        backend = backend or self.backend
        clip = self.clip_state_gradient
        if clip is not None:
            check_limit(clip)
        if state is None and self.learn_initial_state and isinstance(x, Tensor):
            # (B, I) has the leading dimension of (B, T): batch rows first.
            state, _ = self._start(x.unsqueeze(0), None, None, None, embedding is not None, False)
        usual = backend == "auto" and embedding is None and clip is None and not self.bidirectional
        if usual and self._fast_path is not None and not here.is_compiling():
            result = self._fast_path(self, x, state, True)
            if result is not None:
                return result
        if self.bidirectional:
            raise ValueError(
                "step: expected bidirectional=False, got a bidirectional network, which needs its whole input at once"
            )
        if embedding is not None:
            x = _tokens.embed_step(x, embedding)
        if not isinstance(x, Tensor) or x.dim() not in (1, 2):
            got = f"{x.dim()}-D" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"step: expected x to be a 1-D or 2-D tensor, (I) or (B, I), got {got}")
        options = Options(backend=backend, clip_state_gradient=clip)
        options.check_backend(self._backends)
        y, state = self._forward_padded(x.unsqueeze(0), state, options, False)
        return y.squeeze(0), state

    # To be defined by a subclass.

    @property
    def _cell_name(self) -> str:
        """The name of the cell in `fastrnn.functional.sequence`."""
        raise NotImplementedError

    def _state_sizes(self) -> tuple[int, ...]:
        """Return the widths of the states, in the order of their names."""
        raise NotImplementedError

    def _weights(self) -> list[Any]:
        """Return the weights in torch's order; None for a missing one."""
        raise NotImplementedError

    def _as_states(self, hx: Any) -> tuple[Any, ...]:
        """Return ``hx`` as a tuple of states; an empty tuple, which fits no network, if it has another structure."""
        raise NotImplementedError

    if TYPE_CHECKING:

        def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
            """Return ``hx`` with its rows permuted; torch.nn's method, or the subclass's own."""

    def _run_dtype(
        self, target: torch.dtype, x: Tensor, states: tuple[Tensor, ...] | None, batch_sizes: Tensor | None
    ) -> torch.dtype:
        """Return the dtype to run in under autocast to ``target``."""
        return target

    @property
    def _layer(self) -> Callable[..., LayerResult]:
        """The function that runs one layer in one direction, with the signature of `fastrnn.functional.sequence`."""
        return sequence

    def _delegate(self, given: CallArguments, options: Options) -> tuple[Any, Options]:
        """Return the result of a call that the layers here cannot run, or None and the options to continue with.

        Raises:
            TypeError, ValueError, RuntimeError: the arguments are invalid.
        """
        raise NotImplementedError

    # Execution of a call.

    def _forward_padded(self, input: Any, hx: Any, options: Options, batch_first: bool) -> tuple[Any, Any]:
        weights = self._weights()
        states = None if hx is None else self._as_states(hx)
        layout = CallerLayout(batch_first, options.lengths)
        if options.embedding is not None:
            input, options = self._embed(input, options, layout, states, weights)
        if options.embedding is None:
            found, options = self._delegate(CallArguments(input, hx, input, states, weights, layout), options)
            if found is not None:
                return found

        batched = input.dim() == 3
        if not batched:
            x = input.unsqueeze(1)
            if states is not None:
                states = tuple([state.unsqueeze(1) for state in states])
        else:
            x = input.transpose(0, 1) if batch_first else input
        if options.lengths is not None:
            lengths = _checks.as_lengths(options.lengths, x.shape[0], x.shape[1], x.device)
            options = options._replace(lengths=lengths)
        if options.reset is not None:
            reset = _checks.as_reset(options.reset, input.shape[:-1], batch_first, x.device)
            options = options._replace(reset=reset)
        if options.initial is not None:
            options = options._replace(initial=self._as_initial(options.initial, states, batched))

        y, last = self._run(x, states, weights, options, None)
        if not batched:
            y = y.squeeze(1)
            last = tuple([state.squeeze(1) for state in last])
        elif batch_first:
            y = y.transpose(0, 1)
        return y, last if len(last) > 1 else last[0]

    def _forward_packed(self, input: PackedSequence, hx: Any, options: Options) -> tuple[Any, Any]:
        if options.lengths is not None:
            raise ValueError("lengths: expected None with a PackedSequence, which has lengths of its own, got a tensor")
        if options.reset is not None:
            raise ValueError(
                "reset: expected None with a PackedSequence; pass the padded input with reset= and lengths= instead"
            )
        x, batch_sizes, sorted_indices, unsorted_indices = input
        weights = self._weights()
        # Sorted first and checked afterwards, as in torch: states may fit only once sorted.
        states = None if hx is None else self._as_states(self.permute_hidden(hx, sorted_indices))
        layout = CallerLayout(batch_sizes=batch_sizes)
        if options.embedding is not None:
            x, options = self._embed(x, options, layout, states, weights)
            input = PackedSequence(x, batch_sizes, sorted_indices, unsorted_indices)
        if options.embedding is None:
            found, options = self._delegate(CallArguments(input, hx, x, states, weights, layout), options)
            if found is not None:
                return found
        y, last = self._run(x, states, weights, options, batch_sizes)
        hidden = self.permute_hidden(last if len(last) > 1 else last[0], unsorted_indices)
        return PackedSequence(y, batch_sizes, sorted_indices, unsorted_indices), hidden

    def _embed(
        self, ids: Any, options: Options, layout: CallerLayout, states: tuple[Any, ...] | None, weights: list[Any]
    ) -> tuple[Any, Options]:
        """Return the layers' input, and the options with the matrix to look it up in, or with None."""
        table = self._takes_ids and options.backend != "torch" and not options.recompute
        x, matrix = _tokens.read(self, ids, options.embedding, layout, states, weights if table else None)
        return x, options._replace(embedding=matrix)

    def _run(
        self,
        x: Tensor,
        states: tuple[Tensor, ...] | None,
        weights: list[Tensor],
        options: Options,
        batch_sizes: Tensor | None,
    ) -> LayerResult:
        """Run all layers, on tensors that are time-major and checked. With an embedding x holds ids, (T, B, 1)."""
        dropout = self.dropout if self.training else 0.0
        directions = 2 if self.bidirectional else 1
        keywords = options.of_layers(batch_sizes)
        target = _checks.autocast_dtype(x)
        if target is None:
            layers = as_layers(weights, self.bias, self.proj_size)
            return run_layers(self._cell_name, x, layers, states, directions, dropout, keywords, self._layer)

        dtype = self._run_dtype(target, x, states, batch_sizes)
        layers = as_layers([weight.to(dtype) for weight in weights], self.bias, self.proj_size)
        if states is not None:
            states = tuple([state.to(dtype) for state in states])
        if options.initial is not None:
            keywords["initial"] = tuple([state.to(dtype) for state in options.initial])
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(dtype)
            y, last = run_layers(self._cell_name, x, layers, states, directions, dropout, keywords, self._layer)
        if self.proj_size:  # the projection, a product, is the last operation
            y, last = y.to(target), (last[0].to(target), last[1])
        return y, last

    def _as_initial(self, initial: Any, states: tuple[Tensor, ...] | None, batched: bool) -> tuple[Tensor, ...]:
        """Return ``initial`` as `sequence` expects it; ``states`` are those of the call."""
        given = self._as_states(initial)
        if not batched:
            given = tuple([s.unsqueeze(1) if isinstance(s, Tensor) else s for s in given])
        wanted = states or ()
        fits = len(given) == len(wanted) and all(isinstance(s, Tensor) for s in given)
        if not fits or not all(_checks.has_shape(s, w.shape) for s, w in zip(given, wanted, strict=True)):
            raise ValueError(f"initial: expected states shaped like hx, got {shapes(initial)}")
        return given

    def _fits(self, shape: Sequence[int], states: tuple[Tensor, ...] | None, layout: CallerLayout) -> bool:
        """Return True if an input of this shape and the states have the sizes that the network expects."""
        if shape[-1:] != (self.input_size,):
            return False
        rows = self.num_layers * (2 if self.bidirectional else 1)
        if layout.batch_sizes is not None:
            if len(shape) != 2:
                return False
            if states is None:
                return True
            return self._states_fit(
                states, (rows, _checks.packed_rows(layout.batch_sizes, states[0] if states else None))
            )
        if len(shape) not in (2, 3):
            return False
        batched = len(shape) == 3
        if (shape[1] if batched and layout.batch_first else shape[0]) == 0:
            return False
        if states is None:
            return True
        return self._states_fit(states, (rows, shape[0] if layout.batch_first else shape[1])[: len(shape) - 1])

    def _states_fit(self, states: tuple[Tensor, ...], lead: tuple[int, ...]) -> bool:
        sizes = self._state_sizes()
        if len(states) != len(sizes):
            return False
        for state, size in zip(states, sizes, strict=True):  # noqa: SIM110 - in the path of every call
            if state.shape != (*lead, size):
                return False
        return True
