"""Registration of fastrnn's modules with torch's dynamic quantisation, which looks modules up by exact class."""

from __future__ import annotations

from typing import Any

from torch import nn

from .._after_import import after_import

MAPPINGS = "torch.ao.quantization.quantization_mappings"


def register(classes: tuple[Any, ...]) -> None:
    """Make ``quantize_dynamic(model, {fastrnn.LSTM})`` handle ``classes`` like the classes of torch.nn.

    Adds to torch's table of default mappings, now or when that module is imported. torch.nn.RNN has no quantised
    version, so ``fastrnn.RNN`` gets none either.
    """

    def add(mappings: Any) -> None:
        table = mappings.DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS
        for cls in classes:
            quantised = table.get(cls._torch_class)
            if quantised is not None:
                table[cls] = _from_fastrnn(quantised)

    after_import(MAPPINGS, add)


def _from_fastrnn(quantised: Any) -> type:
    """Return the class that torch's quantisation calls to make the quantised version of a fastrnn module."""

    class FromFastrnn(quantised):
        @classmethod
        def from_float(cls, mod: Any, *args: Any, **kwargs: Any) -> nn.Module:
            if mod.learn_initial_state:
                raise ValueError(
                    "learn_initial_state: expected False, as torch's quantised modules have no learned initial states, "
                    "got True"
                )
            if type(mod) is not getattr(nn, type(mod).__name__, None):  # else it was assigned into torch.nn
                copied = mod._torch_class.__new__(mod._torch_class)
                copied.__dict__ = mod.__dict__.copy()
                mod = copied
            return quantised.from_float(mod, *args, **kwargs)

    FromFastrnn.__name__ = quantised.__name__
    FromFastrnn.__qualname__ = quantised.__qualname__
    return FromFastrnn
