"""Start and resumption of training runs."""

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

    torch's global random number generators are seeded, because dropout draws from them.

    If torch.distributed has a process group, every process calls this function with the same options; they share the
    batch rows, and the first process writes the files.

    Args:
        options: the options of the run.
        report: called with each event, in the first process.
        stop: called before every step; if it returns True, the run writes a checkpoint and ends.

    Returns:
        the result of the run.

    Raises:
        ValueError: text, device or batch is invalid, or the folder ``out`` already has checkpoints.
        TrainingError: the loss is not finite, the log cannot be written, or the text can no longer be read, for example
            because its file was truncated. In the last case a checkpoint is written, from which the run can resume.
        CheckpointError: a checkpoint cannot be written. Earlier ones remain.
    """
    existing = checkpoint.all_in(Path(options.out))
    if existing:
        raise ValueError(
            f"out: expected a folder without checkpoints for a new run, got {options.out} with {existing[-1][1].name}; "
            "resume that run, or choose another folder"
        )
    return _run(options, None, report, stop)


def resume(
    path: str | os.PathLike[str], report: Report | None = None, stop: Stop | None = None, **changes: Any
) -> events.Result:
    """Resume a run; the result is bitwise identical to that of an uninterrupted run.

    This holds for the same build, processor, threads, device and number of processes.

    Args:
        path: a checkpoint file, or a folder, whose newest checkpoint is used.
        report, stop: as for `train`.
        changes: options with a new value: the end of the run (``steps`` or ``epochs`` replace all ends that are not
            named; ``minutes`` alone does not), intervals, ``keep``, ``out``, ``threads``, ``device``, ``compile``,
            ``tensorboard``, ``file`` (if it was moved). By default ``out`` is the checkpoint's folder.

    Raises:
        CheckpointError: the file is not a checkpoint, or cannot be read.
        TypeError, ValueError: a change is not allowed, or the text is a different one. Otherwise as `train`.
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
        content["log"]["bytes"] = content["best"] = None  # a new log starts there, and the best checkpoint is elsewhere
    return _run(options, content, report, stop)


def _run(options: Options, content: dict[str, Any] | None, report: Report | None, stop: Stop | None) -> events.Result:
    with _threads(options.threads):
        trainer = Trainer(options, content, report or (lambda event: None), stop or (lambda: False))
        if content is not None:
            content.clear()  # the trainer has its own copy; free this one
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
