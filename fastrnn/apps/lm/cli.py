"""``fastrnn train`` and ``fastrnn sample``; only this module prints."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

from fastrnn._missing import KernelsMissingError
from fastrnn.apps.command import guarded
from fastrnn.apps.lm import events
from fastrnn.apps.lm.arguments import add_sample_arguments, add_train_arguments, flag, given
from fastrnn.apps.lm.errors import CheckpointError, TrainingError
from fastrnn.apps.lm.options import Options
from fastrnn.apps.lm.signals import StopSignals

__all__ = ["add_sample_arguments", "add_train_arguments", "run_sample", "run_train"]


def run_train(args: argparse.Namespace) -> int:
    """Train with the parsed options; return the exit status."""
    return _guarded("train", lambda: _train(args))


def run_sample(args: argparse.Namespace) -> int:
    """Write a sample to standard output; return the exit status."""
    return _guarded("sample", lambda: _sample(args))


def _guarded(command: str, run: Callable[[], int]) -> int:
    names = (*Options.__dataclass_fields__, "prime", "temperature", "length", "top_k", "seed")
    failures = (TrainingError, CheckpointError, KernelsMissingError, OSError)
    return guarded(command, run, {name: flag(name) for name in names}, failures)


def _train(args: argparse.Namespace) -> int:
    from fastrnn.apps.lm.runs import resume, train
    from fastrnn.apps.lm.workers import launched, process_group

    changes = given(args)
    options = None if args.resume is not None else Options(**changes)
    first = int(os.environ.get("RANK") or 0) == 0 or not launched()
    printer = _Printer()
    stop = StopSignals("stopping after this step; Ctrl-C again stops at once" if first else "")
    with stop, process_group():

        def stops() -> bool:
            return stop() or printer.closed

        if options is not None:
            result = train(options, printer, stops)
        else:
            path = args.resume or changes.get("out", Options.out)
            result = resume(path, printer, stops, **changes)
    if first:
        printer.end(result)
    if not result.stopped:
        return 0
    return 1 if stop.signal is None and printer.closed else 128 + (stop.signal or 2)


class _Printer:
    """Printer of a run's events on standard output. ``closed`` is True once the output cannot be written."""

    def __init__(self) -> None:
        self.closed = False
        self._begun: int | None = None
        self._unit = "character"

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.Started):
            self._begun, self._unit = event.step, event.options.unit
            self._print(started(event))
        elif isinstance(event, events.Logged):
            self._print(progress(event, self._unit))
        elif isinstance(event, events.Sampled):
            self._print(f"--- sample after step {event.step:,}\n{printable(event.text)}\n---")

    def end(self, result: events.Result) -> None:
        """Print the last line: the checkpoint, and how to resume."""
        if not result.stopped:
            if result.step == self._begun:
                self._print(f"nothing left to do, the run has ended at step {result.step:,}: {result.checkpoint}")
                return
            self._print(f"done after {result.step:,} steps: {result.checkpoint}")
            return
        self._print(f"stopped after {result.step:,} steps; resume with: fastrnn train --resume {result.checkpoint}")

    def _print(self, text: str) -> None:
        if self.closed or sys.stdout is None:  # None: it was closed before the start
            return
        try:
            encoding = sys.stdout.encoding or "utf-8"
            print(text.encode(encoding, "replace").decode(encoding), flush=True)
        except OSError as error:  # `fastrnn train | head`, a closed terminal, a full disk: stop as for Ctrl-C
            self.closed = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # and write nothing more
            if not isinstance(error, BrokenPipeError):
                with contextlib.suppress(OSError):
                    print(f"fastrnn train: standard output: {error.strerror or error}", file=sys.stderr, flush=True)


def started(event: events.Started) -> str:
    """Describe the text, the model and the run."""
    options, unit = event.options, "bytes" if event.options.unit == "byte" else "characters"
    end = f"{event.total:,} steps" if event.total is not None else f"{options.minutes:g} minutes"
    lines = [
        f"text: {event.text}, {event.units:,} {unit}, vocabulary {event.vocabulary}",
        f"model: {options.cell} {options.layers}×{options.hidden}, {event.parameters:,} parameters, {options.dtype}, "
        f"engine {options.engine}",
        f"run: {end}, {event.steps_per_epoch:,} per epoch, {options.batch}×{options.truncation} {unit} per step, "
        f"in {options.out}",
    ]
    if event.processes > 1:
        lines.append(f"processes: {event.processes}")
    if event.step:
        lines.append(f"resumed after step {event.step:,}")
    return "\n".join(lines)


def progress(event: events.Logged, unit: str) -> str:
    """Format a row of the log as one line; unit: byte or character."""
    row: dict[str, Any] = event.row
    unit = "char" if unit == "character" else unit
    total = f"/{event.total:,}" if event.total is not None else ""
    parts = [f"step {row['step']:,}{total}", f"epoch {row['epoch']:.2f}"]
    if "loss" in row:
        parts.append(f"loss {row['loss']:.4f} nats, {row['bits_per_character']:.3f} bits/{unit}")
    if "validation_loss" in row:
        best = " (best)" if event.best else ""
        parts.append(f"validation {row['validation_bits_per_character']:.3f} bits/{unit}{best}")
    parts += [f"lr {row['learning_rate']:.3g}", f"{row['characters_per_second']:,.0f} {unit}s/s"]
    return "  ".join(parts)


def printable(text: str) -> str:
    """Replace characters that would move a terminal's cursor."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def _encoded(text: str, encoding: str) -> bytes:
    """Return the bytes of a command-line argument, even if they are not valid text."""
    try:
        return text.encode(encoding, "surrogateescape")
    except UnicodeEncodeError:
        return text.encode(encoding, "replace")


def _sample(args: argparse.Namespace) -> int:
    import torch

    from fastrnn.apps.lm.sampling import load, sample

    if args.threads < 1:
        raise ValueError(f"threads: expected at least 1, got {args.threads}")
    torch.set_num_threads(args.threads)
    pieces = sample(
        load(args.checkpoint),
        args.prime,
        args.length,
        temperature=args.temperature,
        seed=args.seed,
        top_k=args.top_k,
    )
    encoding, out = sys.stdout.encoding or "utf-8", sys.stdout.buffer
    try:
        out.write(_encoded(args.prime, encoding))
        for piece in pieces:
            out.write(piece.encode(encoding, "replace"))
            out.flush()
    finally:
        if sys.exc_info()[0] is None and sys.stdout.isatty():
            out.write(b"\n")
    return 0
