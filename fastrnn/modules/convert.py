"""`convert`: a whole model's recurrent modules to fastrnn, and back."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from torch.nn.utils import parametrize

from . import _initial
from ._identity import FACE
from .cells import GRUCell, LSTMCell, RNNCell
from .rnn import GRU, LSTM, RNN

Model = TypeVar("Model", bound=nn.Module)

_TO_FASTRNN: dict[type, type] = {cls._torch_class: cls for cls in (LSTM, GRU, RNN, LSTMCell, GRUCell, RNNCell)}
_TO_TORCH: dict[type, type] = {ours: theirs for theirs, ours in _TO_FASTRNN.items()}


def convert(model: Model, to: str = "fastrnn") -> Model:
    """Turns every `torch.nn` LSTM, GRU, RNN, LSTMCell, GRUCell and RNNCell of ``model`` into fastrnn's, in place.

    The modules stay the objects that they are and only change their class, so that everything about them remains:
    parameters and buffers (an optimizer made before goes on working), hooks, training flags, parametrizations, other
    references to them.

    Classes are matched exactly. A subclass of yours is left alone, as what it overrides may rest on how torch.nn works
    inside: derive it from ``fastrnn.LSTM`` instead. The classes that `torch.nn.utils.parametrize` puts on top are seen
    through.

    On the way back learned initial states remain what a call without states starts from: torch's module gets a forward
    pre-hook that supplies them, which goes when it is turned into fastrnn's again. (What torch's quantisation makes of
    that module has them no more, and raises where it is given no states.)

    Args:
        model: any module; may itself be recurrent.
        to: ``"fastrnn"``, or ``"torch"`` for the way back (before ``quantize_dynamic``, say, which matches exact
            classes too).

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``to`` is neither; or on the way back a module has a ``clip_state_gradient``, which torch.nn would
            not heed. Nothing is changed then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if to not in ("fastrnn", "torch"):
        raise ValueError(f"to: expected 'fastrnn' or 'torch', got {to!r}")
    classes = _TO_FASTRNN if to == "fastrnn" else _TO_TORCH
    if to == "torch":
        _refuse_bounds(model)
    for module in list(model.modules()):
        _swap(module, classes)
        if to == "torch" and _is_one_of(module, _TO_FASTRNN):
            for name in ("backend", "recompute"):
                module.__dict__.pop(name, None)
        _supply_initial_states(module)
    return model


def _is_one_of(module: nn.Module, classes: dict[type, type]) -> bool:
    """Whether it is of one of the classes, not of a subclass other than that of parametrizations."""
    return type(module) in classes or (parametrize.is_parametrized(module) and type(module).__base__ in classes)


def _refuse_bounds(model: nn.Module) -> None:
    for name, module in model.named_modules():
        turned = _is_one_of(module, _TO_TORCH)
        bound = getattr(module, "clip_state_gradient", None)
        if turned and bound is not None:
            where = f"{name}.clip_state_gradient" if name else "clip_state_gradient"
            raise ValueError(f"model: expected no bound for ∂L/∂h, which torch.nn has not, got {where} = {bound}")


def _supply_initial_states(module: nn.Module) -> None:
    """A module of torch's takes its learned states from a hook, one of ours by itself."""
    present = [key for key, hook in module._forward_pre_hooks.items() if hook is _initial.supply]
    if isinstance(module, tuple(_TO_TORCH)):
        for key in present:
            module._forward_pre_hooks.pop(key)
            module._forward_pre_hooks_with_kwargs.pop(key, None)
    elif not present and getattr(module, "learn_initial_state", False) and _is_one_of(module, _TO_FASTRNN):
        module.register_forward_pre_hook(_initial.supply, with_kwargs=True)


def _swap(module: nn.Module, classes: dict[type, type]) -> None:
    current = type(module)
    if current in classes:
        module.__class__ = classes[current]
    elif parametrize.is_parametrized(module) and len(current.__bases__) == 1 and current.__bases__[0] in classes:
        # A class made for this one module, with properties for its weights: the same again, over the other base.
        left_out = ("__dict__", "__weakref__", FACE)
        namespace = {key: value for key, value in vars(current).items() if key not in left_out}
        module.__class__ = type(current.__name__, (classes[current.__bases__[0]],), namespace)
