"""`convert`: conversion of a model's recurrent modules to fastrnn and back."""

from __future__ import annotations

import logging
import warnings
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from . import _initial
from .cells import GRUCell, LSTMCell, RNNCell
from .rnn import GRU, LSTM, RNN

Model = TypeVar("Model", bound=nn.Module)

_OURS: tuple[Any, ...] = (LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell)
_TO_FASTRNN: dict[type, type] = {cls._torch_class: cls for cls in _OURS}
_TO_TORCH: dict[type, type] = {ours: theirs for theirs, ours in _TO_FASTRNN.items()}
_SKIPPED = ("warn", "raise", "ignore")
_logger = logging.getLogger(__name__)


def convert(model: Model, to: str = "fastrnn", *, skipped: str = "warn") -> Model:
    """Convert every `torch.nn` LSTM, GRU, RNN, LSTMCell, GRUCell and RNNCell of ``model`` to fastrnn, in place.

    The modules remain the same objects and only change their class, so that everything attached to them remains valid:
    parameters and buffers (and an optimizer created before), hooks, training flags, parametrizations, other references.

    Classes are matched exactly. A subclass is skipped, because its overrides may depend on the internals of torch.nn:
    derive it from ``fastrnn.LSTM`` instead. Modules compiled by TorchScript, and modules whose ``forward`` was replaced
    on the instance, are skipped too. Classes created by `torch.nn.utils.parametrize` are converted. The logger
    ``fastrnn.modules.convert`` lists the converted modules at level INFO.

    When converting to torch, learned initial states remain the initial states of calls without states: torch's module
    gets a forward pre-hook that supplies them, which is removed when the module is converted again. (A module that
    torch's quantisation makes from it no longer has them, and raises if it is given no states.)

    Args:
        model: any module; may itself be recurrent.
        to: ``"fastrnn"``, or ``"torch"`` for the reverse: before ``quantize_dynamic`` or another tool that looks
            modules up by exact class, and before exporting a program that is to run without fastrnn.
        skipped: the action for recurrent modules that cannot be converted: ``"warn"`` names them and the reasons in
            one warning, ``"raise"`` raises before anything is changed, ``"ignore"`` skips them silently.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``to`` or ``skipped`` is none of the values above; a module cannot be converted and ``skipped`` is
            ``"raise"``; or, when converting to torch, a module has a ``clip_state_gradient``, which torch.nn does not
            support. Nothing is changed then.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.LSTM(3, 4))
        >>> type(fastrnn.convert(model)[0])
        <class 'fastrnn.modules.rnn.LSTM'>
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if to not in ("fastrnn", "torch"):
        raise ValueError(f"to: expected 'fastrnn' or 'torch', got {to!r}")
    if skipped not in _SKIPPED:
        raise ValueError(f"skipped: expected one of {', '.join(map(repr, _SKIPPED))}, got {skipped!r}")
    classes = _TO_FASTRNN if to == "fastrnn" else _TO_TORCH
    if to == "torch":
        _refuse_clipping(model)
    if skipped != "ignore":
        _report_skipped(model, to, classes, skipped)
    for name, module in list(model.named_modules()):
        if _reason_to_skip(module, classes) is None and _swap(module, classes):
            _logger.info("%s: converted to %s", name or "model", _name(type(module)))
        if to == "torch" and _is_one_of(module, _TO_FASTRNN):
            for option in ("backend", "recompute"):
                module.__dict__.pop(option, None)
        _supply_initial_states(module)
    return model


def _report_skipped(model: nn.Module, to: str, classes: dict[type, type], skipped: str) -> None:
    """Warn about, or raise for, the recurrent modules that `convert` skips."""
    reasons = [(name, module, _reason_to_skip(module, classes)) for name, module in model.named_modules()]
    found = [f"{name or 'model'} ({_name(type(module))}): {reason}" for name, module, reason in reasons if reason]
    if not found:
        return
    message = f"convert: expected modules that can be converted to {to}; these stay as they are: {'; '.join(found)}"
    if skipped == "raise":
        raise ValueError(message)
    warnings.warn(message, stacklevel=3)


def _reason_to_skip(module: nn.Module, classes: dict[type, type]) -> str | None:
    """Return why a recurrent module is not converted; None if it is, is not recurrent, or has the target class."""
    if isinstance(module, torch.jit.ScriptModule):
        names = {cls.__name__ for cls in classes}
        scripted = getattr(module, "original_name", "") in names
        return "compiled by TorchScript; convert the model first" if scripted else None
    if _is_one_of(module, classes):
        return "its forward was replaced on the instance" if "forward" in module.__dict__ else None
    # fastrnn's classes derive from torch.nn's.
    others = tuple(classes.values()) if classes is _TO_FASTRNN else ()
    if isinstance(module, others) or not isinstance(module, tuple(classes)):
        return None
    base = next(cls for cls in classes if isinstance(module, cls))
    return f"a subclass of {_name(base)}; derive it from {_name(classes[base])}"


def _name(cls: type) -> str:
    """Return the name of a class as users write it."""
    if cls in _TO_FASTRNN:
        return f"torch.nn.{cls.__name__}"
    return f"fastrnn.{cls.__name__}" if cls in _TO_TORCH else f"{cls.__module__}.{cls.__qualname__}"


def _is_one_of(module: nn.Module, classes: dict[type, type]) -> bool:
    """Return True if a module is of one of these classes, or of a parametrization's subclass of one."""
    return type(module) in classes or (parametrize.is_parametrized(module) and type(module).__base__ in classes)


def _refuse_clipping(model: nn.Module) -> None:
    for name, module in model.named_modules():
        limit = getattr(module, "clip_state_gradient", None)
        if _is_one_of(module, _TO_TORCH) and limit is not None:
            where = f"{name}.clip_state_gradient" if name else "clip_state_gradient"
            raise ValueError(f"{where}: expected None, as torch.nn does not support it, got {limit}")


def _supply_initial_states(module: nn.Module) -> None:
    """Give a torch.nn module with learned states the hook that supplies them; remove it from a fastrnn module."""
    present = [key for key, hook in module._forward_pre_hooks.items() if hook is _initial.supply]
    if isinstance(module, tuple(_TO_TORCH)):
        for key in present:
            module._forward_pre_hooks.pop(key)
            module._forward_pre_hooks_with_kwargs.pop(key, None)
    elif not present and getattr(module, "learn_initial_state", False) and _is_one_of(module, _TO_FASTRNN):
        module.register_forward_pre_hook(_initial.supply, with_kwargs=True)


def _swap(module: nn.Module, classes: dict[type, type]) -> bool:
    """Change the class of a module if it is one of ``classes``; return True if changed."""
    current = type(module)
    if current in classes:
        module.__class__ = classes[current]
        return True
    if parametrize.is_parametrized(module) and len(current.__bases__) == 1 and current.__bases__[0] in classes:
        # A class made for this one module, with properties for its weights: recreate it on the other base.
        namespace = {key: value for key, value in vars(current).items() if key not in ("__dict__", "__weakref__")}
        module.__class__ = type(current.__name__, (classes[current.__bases__[0]],), namespace)
        return True
    return False
