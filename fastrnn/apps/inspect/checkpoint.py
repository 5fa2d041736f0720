"""Gradient flow in a checkpoint of ``fastrnn train``."""

from __future__ import annotations

import math
import os

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn.apps.inspect.reading import ids_of
from fastrnn.apps.lm.sampling import load
from fastrnn.inspect.gradflow import Run, check_clip, clipped, run_of


def of_checkpoint(
    path: str | os.PathLike[str],
    text: str | bytes,
    *,
    steps: int = 100,
    batch: int = 16,
    batches: int = 20,
    clip: float | None = None,
    name: str = "",
) -> Run:
    """Compute the gradient flow in the last layer of a language model of ``fastrnn train``.

    For the flow, L is the cross entropy of the unit that follows T units, mean over B places of the text; for the norms
    of the parameters' gradient it is that of all T units, as in training.

    Args:
        path: as for `fastrnn.apps.lm.load`.
        text: at least T + 1 units.
        steps, batch: T and B.
        batches: the number of norms to take.
        clip: the norm to clip to; None: as in training.
        name: the name of the run.

    Raises:
        CheckpointError: see `fastrnn.apps.lm.load`.
        ValueError: the text is too short or has characters outside the vocabulary, or a number is out of range.
    """
    for what, size in {"steps": steps, "batch": batch, "batches": batches}.items():
        if size < 1:
            raise ValueError(f"{what}: expected at least 1, got {size}")
    model = load(path)
    clip = (model.options.clip_norm or math.inf) if clip is None else clip
    check_clip(clip)
    ids = torch.from_numpy(ids_of(model, text))
    if len(ids) <= steps:
        raise ValueError(f"text: expected more than {steps} units, the number of steps, got {len(ids)}")
    starts = torch.linspace(0, len(ids) - steps - 1, batch * batches).long().view(batches, batch)
    windows = ids[starts.unsqueeze(-1) + torch.arange(steps + 1)].transpose(1, 2)  # (batches, T+1, B)
    before, after = [], []
    for window in windows:
        model.zero_grad()
        model.loss(model(window[:-1])[0], window[1:]).backward()
        both = clipped(model, clip)
        before.append(both[0])
        after.append(both[1])

    def last(y: Tensor) -> Tensor:
        return F.cross_entropy(model.logits(y[-1]).float(), windows[0, -1])

    x = F.embedding(windows[0, :-1], model.rows()).detach()
    words = "cross entropy of the last character, mean over places"
    return run_of(model.recurrent, x, last, model.options.cell, name or str(path), words, before, after, clip)
