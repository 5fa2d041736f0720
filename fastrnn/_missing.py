"""The error for a fastrnn without its compiled part."""

from __future__ import annotations


class KernelsMissingError(ImportError):
    """The compiled kernels cannot be loaded; the message says what to do."""
