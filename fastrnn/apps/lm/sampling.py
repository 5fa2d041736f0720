"""Generation of text with a model, unit by unit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastrnn
from fastrnn.apps.lm import checkpoint, vocabulary
from fastrnn.apps.lm.content import in_a_line, load_weights
from fastrnn.apps.lm.errors import CheckpointError, TrainingError
from fastrnn.apps.lm.model import LanguageModel


def load(path: str | os.PathLike[str], engine: str = "fastrnn") -> LanguageModel:
    """Load the model of a checkpoint, on the CPU and in evaluation mode.

    Args:
        path: a checkpoint file of ``fastrnn train``, or a folder, whose newest checkpoint is used.
        engine: ``"fastrnn"`` or ``"torch"``, irrespective of the one that trained it.

    Raises:
        CheckpointError: the file is missing, foreign, truncated or damaged.
        ValueError: ``engine`` is neither.
    """
    if engine not in ("fastrnn", "torch"):
        raise ValueError(f"engine: expected 'fastrnn' or 'torch', got {engine!r}")
    file = checkpoint.newest(path)
    content = checkpoint.read(file)
    options = checkpoint.options_of(content, file)
    try:
        with torch.random.fork_rng([]):  # the initial weights are drawn but not needed
            model = LanguageModel(options, vocabulary.from_dict(content["vocabulary"]), engine)
        load_weights(model, content["model"])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint: {file} does not match its own options: {in_a_line(error)}") from None
    return model.eval()


def sample(
    model: LanguageModel | str | os.PathLike[str],
    prime: str = "",
    length: int = 1000,
    *,
    temperature: float = 1.0,
    seed: int | None = 0,
    top_k: int | None = None,
) -> Iterator[str]:
    """Yield text that continues ``prime``, piece by piece; ``"".join(sample(…))`` is all of it.

    Bytes are joined to characters first. Invalid UTF-8 is returned as U+FFFD; bytes of an incomplete character at the
    end are dropped.

    Args:
        model: a model from `load`, which is put into evaluation mode; or a checkpoint for it.
        prime: text that the model reads first; it is not returned. If empty, the model reads a line feed (or the first
            unit of a vocabulary without one).
        length: number of units to draw, bytes or characters.
        temperature: divides the logits: below 1 more conservative, above 1 more random; 0 takes the most likely one.
        seed: the same seed gives the same text; None for a different text each time.
        top_k: draw only among the k most likely bytes or characters.

    Raises:
        ValueError: a number is out of range, or ``prime`` has characters outside the vocabulary.
        CheckpointError: see `load`.
        TrainingError: the model's logits are not finite.
    """
    _check(length, temperature, seed, top_k)
    if not isinstance(model, LanguageModel):
        model = load(model)
    primed = model.vocabulary.encode(prime, "prime") if prime else _beginning(model)
    return _sampled(model, primed, length, Chooser(temperature, seed, top_k))


def _sampled(model: LanguageModel, primed: np.ndarray, length: int, choose: Chooser) -> Iterator[str]:
    model.eval()
    advance, decoder = _stepper(model), model.vocabulary.decoder()
    unit = int(primed[-1])
    with torch.no_grad():
        for before in primed[:-1].tolist():
            advance(before, False)
    for _ in range(length):
        with torch.no_grad():  # not around the yield, which would change the caller's grad mode
            unit = choose(advance(unit, True))
        piece = decoder.feed(unit)
        if piece:
            yield piece


def _beginning(model: LanguageModel) -> np.ndarray:
    try:
        return model.vocabulary.encode("\n")
    except ValueError:
        return np.zeros(1, np.int64)


def _check(length: int, temperature: float, seed: int | None, top_k: int | None) -> None:
    if length < 0:
        raise ValueError(f"length: expected at least 0, got {length}")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature: expected at least 0, got {temperature}")
    if seed is not None and seed < 0:
        raise ValueError(f"seed: expected at least 0, got {seed}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k: expected at least 1, got {top_k}")


class Chooser:
    """Draws a unit from logits; arguments as for `sample`."""

    def __init__(self, temperature: float, seed: int | None, top_k: int | None) -> None:
        self._temperature, self._top_k = temperature, top_k
        self._random = np.random.default_rng(seed)

    def __call__(self, logits: np.ndarray) -> int:
        """Return a unit drawn from logits (V)."""
        best = float(logits.max())
        if not np.isfinite(best):
            raise TrainingError("model: expected finite logits, got infinity or NaN; its training has diverged")
        if self._temperature == 0:
            return int(logits.argmax())
        weights = np.exp((logits.astype(np.float64) - best) / self._temperature)
        if self._top_k is not None and self._top_k < len(weights):
            weights[np.argsort(-logits, kind="stable")[self._top_k :]] = 0
        sums = np.cumsum(weights)
        return int(np.searchsorted(sums, self._random.random() * sums[-1], side="right"))


def _stepper(model: LanguageModel) -> Callable[[int, bool], Any]:
    """Return a function that feeds one unit to the model and, if requested, returns the logits (V) for the next."""
    rows, device = model.rows().detach(), model.rows().device
    layers: Any = model.recurrent
    if isinstance(layers, (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN)) and device.type == "cpu":
        stream = fastrnn.Stream(layers, batch=1)

        def step(x: Tensor) -> Tensor:
            return stream.step(x)
    else:
        states: Any = None

        def step(x: Tensor) -> Tensor:
            nonlocal states
            if hasattr(layers, "step"):
                y, states = layers.step(x, states)
            else:
                y, states = layers(x.unsqueeze(0), states)
                y = y.squeeze(0)
            return y

    def advance(unit: int, wanted: bool) -> Any:
        y = step(rows[unit].unsqueeze(0))  # (1, E) to (1, H)
        return model.logits(y).squeeze(0).cpu().numpy() if wanted else None

    return advance
