"""Truncated backpropagation through time over long sequences."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastrnn._networks import is_recurrent
from fastrnn.training.states import detach, join_rows, leaves, take_rows, transform


class Chunk(NamedTuple):
    """Chunk of K time steps and B batch rows of a sequence, with the model's output for the loss.

    Attributes:
        output: the model's output for these steps, (K, B, …), or (B, K, …) if ``batch_first``. Its graph covers the
            window only.
        target: the same steps of ``targets``, or None.
        mask: bool, with the layout of the output's leading dimensions: the steps that count in the loss. False in the
            ``burn_in`` steps after a row's restart.
        start, stop: the range of steps in the whole sequence.
        state: the state after the last step, detached.

    Example:
        >>> chunks = fastrnn.training.truncated_bptt(fastrnn.GRU(3, 4), torch.randn(5, 2, 3), steps=3)
        >>> [(chunk.start, chunk.stop) for chunk in chunks]
        [(0, 3), (3, 5)]
    """

    output: Any
    target: Any
    mask: Tensor
    start: int
    stop: int
    state: Any

    def mean(self, losses: Tensor) -> Tensor:
        """Return the mean over the steps that count, as given by the mask.

        Args:
            losses: one for each step, shaped like the mask.

        Returns:
            the mean; zero if no step counts.

        Raises:
            ValueError: ``losses`` has another shape.
        """
        if losses.shape != self.mask.shape:
            raise ValueError(f"losses: expected shape {tuple(self.mask.shape)}, got {tuple(losses.shape)}")
        counted = torch.where(self.mask, losses, losses.new_zeros(()))
        return counted.sum() / self.mask.sum().clamp(min=1)


def truncated_bptt(
    model: Callable[..., Any],
    inputs: Any,
    targets: Any = None,
    *,
    steps: int,
    window: int | None = None,
    burn_in: int = 0,
    state: Any = None,
    initial: Any = None,
    reset: Tensor | None = None,
    batch_first: bool | None = None,
    state_dim: int = 1,
) -> TruncatedBPTT:
    """Iterate over a long sequence in chunks, carrying the state from each to the next.

    .. code-block:: python

        state = None
        for inputs, targets in batches:  # each continues the one before
            run = truncated_bptt(model, inputs, targets, steps=35, state=state)
            for chunk in run:
                optimizer.zero_grad()
                criterion(chunk.output.flatten(0, 1), chunk.target.flatten()).backward()
                optimizer.step()
            state = run.state

    The model runs a chunk when the loop requests it, thus after the optimizer's step for the previous chunk. States are
    detached; a chunk's loss reaches weights through at most ``window`` steps.

    With ``window`` > ``steps`` every loss reaches back over more steps than lie between two losses (Williams and
    Peng's BPTT(h; h'), k1 = ``steps`` and k2 = ``window``): the model is run again over the steps before the chunk,
    with the current weights, from the state saved there. This takes ``window / steps`` times as long.

    Sources: Williams and Peng, An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories, 1990; burn-in: Kapturowski et al., Recurrent experience replay in distributed reinforcement learning,
    2019.

    Args:
        model: called as ``model(inputs, state)``, returns ``(output, state)``; ``state`` is None at the beginning.
            A recurrent module of fastrnn, torch.nn or `fastrnn.cell`, a model that contains one, or any function.
        inputs: a tensor (T, B, …), or (B, T, …) if ``batch_first``; or tuples, lists or dicts of such tensors.
        targets: likewise, split like the inputs; or None.
        steps: k1, the steps of a chunk. The last chunk may have fewer.
        window: k2, the number of steps that gradients go back, a multiple of ``steps``; None: ``steps``.
        burn_in: this many steps at the beginning are run without gradients, only for the state, and belong to no chunk;
            after a restart of a batch row, this many of its steps are excluded from the ``mask``.
        state: the state to continue from, such as an earlier run's ``state``; None: ``initial``.
        initial: the initial state of batch rows, structured like the model's states. Gradients reach it: a leaf, or a
            view of leaves (``expand``, ``stack``). A state computed from other tensors is given as a function without
            arguments, which is called wherever the state is needed, because a graph can be traversed only once. None:
            the model's own initial state, zeros or learned states.
        reset: bool, (T, B), or (B, T) if ``batch_first``: true at the first time step of a new segment of a row, whose
            state is then ``initial`` again. A model with the keywords ``reset`` and ``initial`` receives them. Any
            other model is called for the steps between resets, with rows that restart separate from those that
            continue; so is one whose initial state is unknown while ``initial`` is None (a function; a model in which
            only some recurrent modules learn their initial states). A model with these keywords that computes its own
            initial state, for example from other parameters, needs ``initial``.
        batch_first: None: the model's attribute of that name, or False if it has none.
        state_dim: the batch dimension of the states; only used where rows that restart are called separately.

    Returns:
        a single-use iterator over `Chunk`; its ``len`` is their number, its ``state`` the current state.

    Raises:
        TypeError: a number is not an integer, ``inputs`` contains no tensor, ``reset`` is not bool, or the model does
            not return a pair.
        ValueError: a number is out of range, lengths and shapes do not match, or ``batch_first`` is None for a model
            that contains a module with that attribute set.

    Example:
        >>> gru = fastrnn.GRU(3, 4)
        >>> [chunk.output.shape[0] for chunk in fastrnn.training.truncated_bptt(gru, torch.randn(50, 2, 3), steps=20)]
        [20, 20, 10]
    """
    if batch_first is None:
        batch_first = _batch_first(model)
    return TruncatedBPTT(
        model, inputs, targets, (steps, window, burn_in), (state, initial), reset, batch_first, state_dim
    )


class TruncatedBPTT:
    """Iterator over the chunks of a sequence, returned by `truncated_bptt`.

    Attributes:
        state: the state after the last chunk returned, detached; to be passed to another run.

    Example:
        >>> chunks = fastrnn.training.truncated_bptt(fastrnn.GRU(3, 4), torch.randn(5, 2, 3), steps=3)
        >>> for chunk in chunks:
        ...     chunk.output.sum().backward()
        >>> chunks.state.shape
        torch.Size([1, 2, 4])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        inputs: Any,
        targets: Any,
        numbers: tuple[int, int | None, int],
        states: tuple[Any, Any],
        reset: Tensor | None,
        batch_first: bool,
        state_dim: int,
    ) -> None:
        self._model, self._inputs, self._targets = model, inputs, targets
        self._time, self._batch = (1, 0) if batch_first else (0, 1)
        self._state_dim = state_dim
        self._total, self._rows, self._device = self._measure()
        self._steps, self._window, self._burn_in = self._checked(*numbers)
        state, self._initial = states
        # Gradients reach `initial`, if it is learned, but not the state of an earlier run.
        self._begin = self._initial if state is None else detach(state)
        with torch.no_grad():
            self.state = detach(_made(self._begin))
        self._reset, self._mask = self._read_resets(reset)
        self._started = False

    def __len__(self) -> int:
        return -(-(self._total - self._burn_in) // self._steps)

    def __iter__(self) -> Iterator[Chunk]:
        if self._started:
            raise RuntimeError("truncated_bptt: expected one iteration, got a second; create a new run from its state")
        self._started = True
        return self._chunks()

    def _chunks(self) -> Iterator[Chunk]:
        first, saved = 0, self._begin  # the beginning of the window, and the state there
        if self._burn_in:
            with torch.no_grad():
                _, state = self._run(0, self._burn_in, _made(saved))
            first, saved = self._burn_in, detach(state)
            self.state = saved
        for start in range(self._burn_in, self._total, self._steps):
            stop = min(start + self._steps, self._total)
            # The next window begins as early as k2 permits.
            following = min(max(first, start + 2 * self._steps - self._window), stop)
            state, following_state, output = _made(saved), saved, None
            cuts = sorted({first, following, start, stop})
            for a, b in pairwise(cuts):
                output, state = self._run(a, b, state)
                if b == following:
                    following_state = detach(state)
            first, saved = following, following_state
            self.state = detach(state)
            piece = slice(start, stop)
            yield Chunk(output, self._cut(self._targets, piece), self._cut(self._mask, piece), start, stop, self.state)

    def _run(self, start: int, stop: int, state: Any) -> tuple[Any, Any]:
        """Return output and state of the steps from `start` to `stop`."""
        reset = None if self._reset is None else self._reset[start:stop]
        if reset is None or not reset.any():
            return self._call(slice(start, stop), state)
        if _takes_resets(self._model):
            keywords: dict[str, Any] = {"reset": self._laid_out(reset)}
            if state is None:
                state = _made(self._initial)
            elif self._initial is not None:
                keywords["initial"] = _made(self._initial)
            elif _starts_from_zeros(self._model):
                keywords["initial"] = transform(torch.zeros_like, state)
            elif not _starts_from_learned(self._model):  # only the model itself has its initial state
                return self._run_apart(start, stop, state, reset)
            return self._call(slice(start, stop), state, **keywords)
        return self._run_apart(start, stop, state, reset)

    def _run_apart(self, start: int, stop: int, state: Any, reset: Tensor) -> tuple[Any, Any]:
        """Do the same for a model without resets: run between them, with restarting rows separate."""
        outputs = []
        for s in leaves(state):
            if s.dim() <= self._state_dim or s.shape[self._state_dim] != self._rows:
                raise ValueError(
                    f"state_dim: expected the batch dimension of the states, of size {self._rows}, got "
                    f"{self._state_dim} for a state of shape {tuple(s.shape)}"
                )
        cuts = [0, *(k for k in range(1, stop - start) if reset[k].any()), stop - start]
        for a, b in pairwise(cuts):
            piece = slice(start + a, start + b)
            anew, on = (rows.nonzero().flatten() for rows in (reset[a], ~reset[a]))
            if anew.numel() == 0 or state is None:
                output, state = self._call(piece, state)
            elif on.numel() == 0:
                output, state = self._call(piece, _made(self._initial))
            else:
                # Rows that restart are called last: DistributedDataParallel looks for parameters without a gradient in
                # the graph of the last call, and learned states occur only in the graph of these rows.
                begin = take_rows(_made(self._initial), anew, self._state_dim)
                parts = [self._call(piece, take_rows(state, on, self._state_dim), on)]
                parts.append(self._call(piece, begin, anew))
                output = join_rows([o for o, _ in parts], [on, anew], self._batch)
                state = join_rows([s for _, s in parts], [on, anew], self._state_dim)
            outputs.append(output)
        whole = outputs[0] if len(outputs) == 1 else transform(lambda *ts: torch.cat(ts, self._time), *outputs)
        return whole, state

    def _call(self, piece: slice, state: Any, rows: Tensor | None = None, **keywords: Any) -> tuple[Any, Any]:
        inputs = self._cut(self._inputs, piece)
        if rows is not None:
            inputs = take_rows(inputs, rows, self._batch)
        result = self._model(inputs, state, **keywords)
        if not isinstance(result, (tuple, list)) or len(result) != 2:
            got = f"{len(result)} values" if isinstance(result, (tuple, list)) else type(result).__name__
            raise TypeError(f"model: expected it to return (output, state), got {got}")
        return result[0], result[1]

    def _cut(self, values: Any, piece: slice) -> Any:
        return transform(lambda t: t.narrow(self._time, piece.start, piece.stop - piece.start), values)

    def _laid_out(self, rows: Tensor) -> Tensor:
        """Return (T, B) in the layout of the inputs."""
        return rows.to(self._device).transpose(0, self._time)

    def _measure(self) -> tuple[int, int, torch.device]:
        """Return steps, batch rows and device of the inputs. Raise if they, or the targets, do not match."""
        tensors = leaves(self._inputs)
        if not tensors:
            raise TypeError(f"inputs: expected tensors, got {type(self._inputs).__name__}")
        for name, values in (("inputs", tensors), ("targets", leaves(self._targets))):
            for t in values:
                if t.dim() < 2 or t.shape[:2] != tensors[0].shape[:2]:
                    layout = "(B, T, …)" if self._time else "(T, B, …)"
                    expected = tuple(tensors[0].shape[:2])
                    raise ValueError(
                        f"{name}: expected shape {layout}, as the first one's {expected}, got {tuple(t.shape)}"
                    )
        return tensors[0].shape[self._time], tensors[0].shape[self._batch], tensors[0].device

    def _checked(self, steps: Any, window: Any, burn_in: Any) -> tuple[int, int, int]:
        window = steps if window is None else window
        for name, value, least in (("steps", steps, 1), ("window", window, 1), ("burn_in", burn_in, 0)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name}: expected an integer, got {type(value).__name__}")
            if value < least:
                raise ValueError(f"{name}: expected at least {least}, got {value}")
        if window % steps:
            raise ValueError(f"window: expected a multiple of steps, {steps}, got {window}")
        if burn_in >= self._total:
            raise ValueError(f"burn_in: expected less than the inputs' {self._total} time steps, got {burn_in}")
        return steps, window, burn_in

    def _read_resets(self, reset: Any) -> tuple[Tensor | None, Tensor]:
        """Return resets (T, B) on the CPU, None if there are none; and the mask, in the layout of the inputs."""
        shape = (self._total, self._rows)
        if reset is None:
            return None, self._laid_out(torch.ones(shape, dtype=torch.bool))
        if not isinstance(reset, Tensor) or reset.dtype is not torch.bool:
            got = reset.dtype if isinstance(reset, Tensor) else type(reset).__name__
            raise TypeError(f"reset: expected a bool tensor, got {got}")
        if tuple(reset.transpose(0, self._time).shape if reset.dim() == 2 else reset.shape) != shape:
            expected = shape[:: -1 if self._time else 1]
            raise ValueError(
                f"reset: expected shape {expected}, the inputs' leading dimensions, got {tuple(reset.shape)}"
            )
        rows = reset.transpose(0, self._time).cpu()
        steps = torch.arange(self._total).unsqueeze(1)
        begun = torch.where(rows, steps, 0).cummax(0).values
        return rows, self._laid_out(steps - begun >= self._burn_in)


def _made(state: Any) -> Any:
    """Return a state, calling it first if it is a function."""
    return state() if callable(state) else state


def _inner(model: Any) -> Any:
    """Return the model inside torch's transparent wrappers."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):  # torch.compile
            model = model._orig_mod
        else:
            return model


def _takes_resets(model: Any) -> bool:
    model = _inner(model)
    names = inspect.signature(model.forward if isinstance(model, nn.Module) else model).parameters
    return "reset" in names and "initial" in names


def _learning(model: Any) -> list[bool]:
    """Return for each recurrent module of a model whether it learns its initial state; empty for a non-module."""
    model = _inner(model)
    recurrent = [m for m in model.modules() if is_recurrent(m)] if isinstance(model, nn.Module) else []
    return [bool(getattr(m, "learn_initial_state", False)) for m in recurrent]


def _starts_from_zeros(model: Any) -> bool:
    learning = _learning(model)
    return bool(learning) and not any(learning)


def _starts_from_learned(model: Any) -> bool:
    learning = _learning(model)
    return bool(learning) and all(learning)


def _batch_first(model: Any) -> bool:
    """Return the model's `batch_first`, or False without one. Raise if a module inside it is batch_first."""
    model = _inner(model)
    own = getattr(model, "batch_first", None)
    modules = model.modules() if own is None and isinstance(model, nn.Module) else ()
    if any(is_recurrent(m) and getattr(m, "batch_first", False) for m in modules):
        raise ValueError(
            "batch_first: expected True or False for a model that has no such attribute but contains a module that is "
            "batch_first, got None"
        )
    return bool(own)
