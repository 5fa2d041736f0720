"""Pytest plugin (``-p patched_torch_nn``) that puts fastrnn's classes into ``torch.nn`` before any other import.

Also a context manager that does so temporarily.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

import fastrnn

NAMES = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")
PLACES = (torch.nn, torch.nn.modules, torch.nn.modules.rnn)


def assign(source) -> None:
    """Put the six classes of ``source`` into torch.nn and into the modules that define them."""
    for place in PLACES:
        for name in NAMES:
            setattr(place, name, getattr(source, name))


@contextlib.contextmanager
def patched() -> Iterator[None]:
    assign(fastrnn)
    try:
        yield
    finally:
        assign(fastrnn._torch)


def pytest_configure(config) -> None:
    assign(fastrnn)
