"""Initialisations by name, those of `fastrnn.init`, for `fastrnn gradflow --init`."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from fastrnn import init

#: By name: a function of a module and a number, and the default number.
_FILL: dict[str, tuple[Callable[[nn.Module, float], object], float]] = {
    "default": (lambda module, number: module, 1.0),
    "orthogonal": (init.orthogonal_, 1.0),
    "identity": (init.identity_, 1.0),
    "np_rnn": (lambda module, number: init.np_rnn_(module), 1.0),
    "forget": (init.forget_bias_, 1.0),
    "chrono": (init.chrono_, 100.0),
}
NAMES = tuple(_FILL)
_WITHOUT_NUMBER = ("default", "np_rnn")


def parsed(text: str) -> tuple[str, float]:
    """Split ``name`` or ``name:number`` into name and number.

    Raises:
        ValueError: the name or the number is invalid.
    """
    name, colon, rest = text.partition(":")
    try:
        number = float(rest) if colon else _FILL.get(name, (None, math.nan))[1]
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or name not in NAMES or (colon and name in _WITHOUT_NUMBER):
        raise ValueError(f"init: expected one of {', '.join(NAMES)}, with a number as in orthogonal:0.9, got {text!r}")
    return name, number


def initialise(module: nn.Module, text: str) -> None:
    """Initialise a recurrent module's weights, drawing from torch's generator.

    Raises:
        ValueError: ``text`` is unknown, or does not apply to this kind of module.
        TypeError: the module is of another kind.
    """
    name, number = parsed(text)
    module.reset_parameters()  # type: ignore[operator]
    try:
        _FILL[name][0](module, number)
    except ValueError as error:
        raise ValueError(f"init: {name}: {error}") from None
