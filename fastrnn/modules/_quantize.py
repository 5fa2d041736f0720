"""Registers fastrnn's modules with torch's dynamic quantisation, which looks modules up by their exact class."""

from __future__ import annotations

from typing import Any

from torch import nn

from .._after_import import after_import

MAPPINGS = "torch.ao.quantization.quantization_mappings"


def register(classes: tuple[Any, ...]) -> None:
    """Let ``quantize_dynamic(model, {fastrnn.LSTM})`` do for ``classes`` what it does for the classes of torch.nn.

    Adds to torch's table of default mappings, now or as soon as that is imported. torch.nn.RNN has no quantised form,
    so that ``fastrnn.RNN`` gets none.
    """

    def add(mappings: Any) -> None:
        table = mappings.DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS
        for cls in classes:
            quantised = table.get(cls._torch_class)
            if quantised is not None:
                table[cls] = _from_fastrnn(quantised)

    after_import(MAPPINGS, add)


def _from_fastrnn(quantised: Any) -> type:
    """Make the class that torch's quantisation asks for the quantised form of a module of fastrnn."""

    class FromFastrnn(quantised):
        @classmethod
        def from_float(cls, mod: Any, *args: Any, **kwargs: Any) -> nn.Module:
            if mod.learn_initial_state:
                raise ValueError(
                    "learn_initial_state: torch's quantised modules have no learned initial states; expected a module "
                    "without them"
                )
            if type(mod) is not getattr(nn, type(mod).__name__, None):  # unless it stands in torch.nn itself
                twin = mod._torch_class.__new__(mod._torch_class)
                twin.__dict__ = mod.__dict__.copy()
                mod = twin
            return quantised.from_float(mod, *args, **kwargs)

    FromFastrnn.__name__ = quantised.__name__
    FromFastrnn.__qualname__ = quantised.__qualname__
    return FromFastrnn
