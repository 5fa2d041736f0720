"""What can go wrong besides wrong arguments."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot go on: the loss is not finite, or the log cannot be written. A model that has diverged."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or a file is none: foreign, cut short or damaged."""
