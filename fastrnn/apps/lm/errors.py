"""What can go wrong besides wrong arguments."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is not finite, or the log cannot be written. A model that has diverged."""


class TextError(TrainingError):
    """The text cannot be read to its end: its file has become shorter or is another one, or the disk fails."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or a file is none: foreign, cut short or damaged."""
