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
    """Chunk of K time steps and B rows of a sequence, run and ready for the loss.

    Attributes:
        output: what the model returned for these steps, (K, B, …), or (B, K, …) if ``batch_first``. Its graph reaches
            back over the window, not further.
        target: the same steps of ``targets``, or None.
        mask: bool, laid out as the output's leading dimensions: the steps that count. False in the ``burn_in`` steps
            after a row's restart.
        start, stop: which steps of the whole these are.
        state: after the last of them, detached.
    """

    output: Any
    target: Any
    mask: Tensor
    start: int
    stop: int
    state: Any

    def mean(self, losses: Tensor) -> Tensor:
        """Return the mean over the steps that count.

        Args:
            losses: one for each step, of the mask's shape.

        Returns:
            the mean; zero if no step counts.

        Raises:
            ValueError: they have another shape.
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
        for inputs, targets in batches:  # each the continuation of the one before
            run = truncated_bptt(model, inputs, targets, steps=35, state=state)
            for chunk in run:
                optimizer.zero_grad()
                criterion(chunk.output.flatten(0, 1), chunk.target.flatten()).backward()
                optimizer.step()
            state = run.state

    The model runs a chunk when the loop requests it, so after the optimizer's step for the chunk before. States are
    detached; a chunk's loss cannot reach weights through more than ``window`` steps.

    With ``window`` > ``steps`` every loss reaches back over more steps than come between two losses (Williams and
    Peng's BPTT(h; h'), k1 = ``steps`` and k2 = ``window``): the model is run again over the steps before the chunk,
    with the current weights, from the state saved there. This costs ``window / steps`` times the time.

    Sources: Williams and Peng, An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories, 1990; burn-in: Kapturowski et al., Recurrent experience replay in distributed reinforcement learning,
    2019.

    Args:
        model: called as ``model(inputs, state)`` and returning ``(output, state)``; ``state`` is None at the beginning.
            A recurrent module of fastrnn, torch.nn or `fastrnn.cell`, a model around one, or any function.
        inputs: a tensor (T, B, …), or (B, T, …) if ``batch_first``; or tuples, lists, dicts of such.
        targets: likewise, split as the inputs are; or None.
        steps: k1, the steps of a chunk. The last chunk may have fewer.
        window: k2, over how many steps gradients go back, a multiple of ``steps``; None: ``steps``.
        burn_in: so many steps at the beginning are run without gradients, only for the state, and are in no chunk;
            after a restart of a row so many of its steps are not in the ``mask``.
        state: that to go on from, as an earlier run's ``state``; None: ``initial``.
        initial: what rows start from, in the form of the model's states, and gradients reach it: a leaf, or a view of
            leaves (``expand``, ``stack``). What is computed from others is given by a function without arguments, which
            is called wherever it is needed, as a graph can be gone back through only once. None: what the model itself
            starts from without a state, zeros or learned states.
        reset: bool, (T, B), or (B, T) if ``batch_first``: true at the first step of a new segment of a row, whose state
            is then ``initial`` again. A model that has the keywords ``reset`` and ``initial`` gets them; any other, and
            one of which it cannot be known what it starts from where ``initial`` is None (a function; a model in which
            some recurrent modules learn their initial states and others do not), is called for the steps between
            resets, and for rows that restart apart from those that go on. A model with these keywords that makes a
            beginning of its own, out of other parameters, say, needs ``initial``.
        batch_first: None: as the attribute of that name of the model says, False without one.
        state_dim: which dimension of the states is the batch; only used where rows that restart are called separately.

    Returns:
        an iterator over `Chunk`, once; ``len`` of it is their number, ``state`` the state by now.

    Raises:
        TypeError: numbers are no integers, there is no tensor in ``inputs``, ``reset`` is not bool, or what the model
            returns is not a pair.
        ValueError: a number is out of range, lengths and shapes do not fit together, or ``batch_first`` is None for a
            model around a module that has it.

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
        state: after the last chunk that was handed out, detached; to go on from in another run.
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
        # Of what is not an earlier state gradients are wanted, if it is learned.
        self._begin = self._initial if state is None else detach(state)
        with torch.no_grad():
            self.state = detach(_made(self._begin))
        self._reset, self._mask = self._read_resets(reset)
        self._started = False

    def __len__(self) -> int:
        return -(-(self._total - self._burn_in) // self._steps)

    def __iter__(self) -> Iterator[Chunk]:
        if self._started:
            raise RuntimeError("truncated_bptt: expected to be gone through once; make another one, from its state")
        self._started = True
        return self._chunks()

    def _chunks(self) -> Iterator[Chunk]:
        first, kept = 0, self._begin  # where the window begins, and the state there
        if self._burn_in:
            with torch.no_grad():
                _, state = self._run(0, self._burn_in, _made(kept))
            first, kept = self._burn_in, detach(state)
            self.state = kept
        for start in range(self._burn_in, self._total, self._steps):
            stop = min(start + self._steps, self._total)
            # The next window begins as far back as it may.
            following = min(max(first, start + 2 * self._steps - self._window), stop)
            state, following_state, output = _made(kept), kept, None
            cuts = sorted({first, following, start, stop})
            for a, b in pairwise(cuts):
                output, state = self._run(a, b, state)
                if b == following:
                    following_state = detach(state)
            first, kept = following, following_state
            self.state = detach(state)
            piece = slice(start, stop)
            yield Chunk(output, self._cut(self._targets, piece), self._cut(self._mask, piece), start, stop, self.state)

    def _run(self, start: int, stop: int, state: Any) -> tuple[Any, Any]:
        """Output and state of the steps from `start` to `stop`."""
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
            elif not _starts_from_learned(self._model):  # who knows what it starts from: only the model itself
                return self._run_apart(start, stop, state, reset)
            return self._call(slice(start, stop), state, **keywords)
        return self._run_apart(start, stop, state, reset)

    def _run_apart(self, start: int, stop: int, state: Any, reset: Tensor) -> tuple[Any, Any]:
        """The same for a model that knows no resets: between them, and rows that restart by themselves."""
        outputs = []
        for s in leaves(state):
            if s.dim() <= self._state_dim or s.shape[self._state_dim] != self._rows:
                raise ValueError(
                    f"state_dim: expected the dimension of the states in which the {self._rows} rows lie, got "
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
                # Rows that start anew come last: DistributedDataParallel looks for parameters without a gradient in the
                # graph of the last call, and those of learned states are in theirs alone.
                begin = take_rows(_made(self._initial), anew, self._state_dim)
                found = [self._call(piece, take_rows(state, on, self._state_dim), on)]
                found.append(self._call(piece, begin, anew))
                output = join_rows([o for o, _ in found], [on, anew], self._batch)
                state = join_rows([s for _, s in found], [on, anew], self._state_dim)
            outputs.append(output)
        whole = outputs[0] if len(outputs) == 1 else transform(lambda *ts: torch.cat(ts, self._time), *outputs)
        return whole, state

    def _call(self, piece: slice, state: Any, rows: Tensor | None = None, **keywords: Any) -> tuple[Any, Any]:
        inputs = self._cut(self._inputs, piece)
        if rows is not None:
            inputs = take_rows(inputs, rows, self._batch)
        found = self._model(inputs, state, **keywords)
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            got = f"{len(found)} values" if isinstance(found, (tuple, list)) else type(found).__name__
            raise TypeError(f"model: expected it to return (output, state), got {got}")
        return found[0], found[1]

    def _cut(self, values: Any, piece: slice) -> Any:
        return transform(lambda t: t.narrow(self._time, piece.start, piece.stop - piece.start), values)

    def _laid_out(self, rows: Tensor) -> Tensor:
        """(T, B) as the inputs lie."""
        return rows.to(self._device).transpose(0, self._time)

    def _measure(self) -> tuple[int, int, torch.device]:
        """Steps, rows and device of the inputs. Raises if they, or the targets, do not agree."""
        found = leaves(self._inputs)
        if not found:
            raise TypeError(f"inputs: expected tensors, got {type(self._inputs).__name__}")
        for name, values in (("inputs", found), ("targets", leaves(self._targets))):
            for t in values:
                if t.dim() < 2 or t.shape[:2] != found[0].shape[:2]:
                    form = "(B, T, …)" if self._time else "(T, B, …)"
                    expected = tuple(found[0].shape[:2])
                    raise ValueError(
                        f"{name}: expected shape {form}, as the first one's {expected}, got {tuple(t.shape)}"
                    )
        return found[0].shape[self._time], found[0].shape[self._batch], found[0].device

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
            raise ValueError(f"burn_in: expected less than the inputs' {self._total} steps, got {burn_in}")
        return steps, window, burn_in

    def _read_resets(self, reset: Any) -> tuple[Tensor | None, Tensor]:
        """Resets (T, B) on the CPU, None if there are none; and the mask, laid out as the inputs."""
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
    """A state, also where a function makes it."""
    return state() if callable(state) else state


def _inner(model: Any) -> Any:
    """The model in the wrappers of torch that pass everything on."""
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
    """Of each recurrent module in a model, whether it learns its initial state; empty for what is no module."""
    model = _inner(model)
    found = [m for m in model.modules() if is_recurrent(m)] if isinstance(model, nn.Module) else []
    return [bool(getattr(m, "learn_initial_state", False)) for m in found]


def _starts_from_zeros(model: Any) -> bool:
    learning = _learning(model)
    return bool(learning) and not any(learning)


def _starts_from_learned(model: Any) -> bool:
    learning = _learning(model)
    return bool(learning) and all(learning)


def _batch_first(model: Any) -> bool:
    """What a model says of itself, False if nothing. Raises where one inside of it says something else."""
    model = _inner(model)
    own = getattr(model, "batch_first", None)
    inside = model.modules() if own is None and isinstance(model, nn.Module) else ()
    if any(is_recurrent(m) and getattr(m, "batch_first", False) for m in inside):
        raise ValueError(
            "batch_first: expected True or False for a model that has no such attribute around a module that is "
            "batch_first, got None"
        )
    return bool(own)
