"""What can go wrong besides wrong arguments."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Error that ends training: the loss is not finite, or the log cannot be written."""


class TextError(TrainingError):
    """The text cannot be read to its end: its file has become shorter or is another one, or the disk fails."""


class CheckpointError(RuntimeError):
    """Error of a checkpoint that cannot be written, or of a file that is foreign, truncated or damaged."""
