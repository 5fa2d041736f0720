"""Runs from their beginning and from checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fastrnn.apps.lm import checkpoint, events
from fastrnn.apps.lm.options import Options
from fastrnn.apps.lm.trainer import Report, Stop, Trainer


def train(options: Options, report: Report | None = None, stop: Stop | None = None) -> events.Result:
    """Train a language model from its first step.

    torch's global random numbers are seeded, as dropout draws from them.

    Under torch.distributed's process group, if there is one, every process calls this with the same options; they share
    the rows, and the first one writes.

    Args:
        options: of the run.
        report: called with each event, in the first process.
        stop: called before every step; when it returns True, the run writes a checkpoint and ends.

    Returns:
        the result of the run.

    Raises:
        ValueError: text, device or batch is invalid, or the folder ``out`` has checkpoints already.
        TrainingError: the loss is not finite, the log cannot be written, or the text cannot be read any more, as where
            its file has become shorter. A checkpoint is written in the last case, to go on once the text is back.
        CheckpointError: a checkpoint cannot be written. Those before are still there.
    """
    found = checkpoint.all_in(Path(options.out))
    if found:
        raise ValueError(
            f"out: expected a folder without checkpoints for a new run, got {found[-1][1]}; resume goes on with it"
        )
    return _run(options, None, report, stop)


def resume(
    path: str | os.PathLike[str], report: Report | None = None, stop: Stop | None = None, **changes: Any
) -> events.Result:
    """Resume a run; the result is bitwise identical to that of an uninterrupted run.

    This holds for the same build, processor, threads, device and number of processes.

    Args:
        path: a checkpoint, or a folder, for the newest in it.
        report, stop: as for `train`.
        changes: options with a new value: the end of the run (``steps`` or ``epochs`` take the place
            of every end that is not named; ``minutes`` alone leave those two), intervals, ``keep``, ``out``,
            ``threads``, ``device``, ``compile``, ``tensorboard``, ``file`` (if it was moved). ``out`` is otherwise the
            checkpoint's folder.

    Raises:
        CheckpointError: the file is no checkpoint, or cannot be read.
        TypeError, ValueError: a change is not possible, or the text is another one; otherwise as `train`.
    """
    file = checkpoint.newest(path)
    content = checkpoint.read(file)
    options = checkpoint.options_of(content, file).changed({"out": str(file.parent), **changes})
    out = Path(options.out)
    same = out.resolve() == file.parent.resolve()
    later = [other for step, other in checkpoint.all_in(out) if not same or step > content["step"]]
    whole = [other for other in later if checkpoint.is_whole(other)]
    if whole:
        raise ValueError(f"out: expected a folder without other or later checkpoints than {file}, got {whole[-1]}")
    for damaged in later:
        checkpoint.put_aside(damaged)
    if not same:
        content["log"]["bytes"] = content["best"] = None  # another log begins there, and the best lies elsewhere
    return _run(options, content, report, stop)


def _run(options: Options, content: dict[str, Any] | None, report: Report | None, stop: Stop | None) -> events.Result:
    with _threads(options.threads):
        trainer = Trainer(options, content, report or (lambda event: None), stop or (lambda: False))
        if content is not None:
            content.clear()  # the trainer has its own copy, and two would lie in memory for the whole run
        try:
            return trainer.run()
        finally:
            trainer.close()


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
