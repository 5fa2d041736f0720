"""Errors of a run other than wrong arguments."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Error that ends training: the loss is not finite, or the log cannot be written."""


class TextError(TrainingError):
    """The text cannot be read to its end: the file was truncated or replaced, or reading failed."""


class CheckpointError(RuntimeError):
    """Error of a checkpoint that cannot be written, or of a file that is foreign, truncated or damaged."""
