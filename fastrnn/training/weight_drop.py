"""DropConnect on recurrent weights, with one mask for a whole sequence."""

from __future__ import annotations

from typing import Any, TypeVar

import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrize

from fastrnn import _torch
from fastrnn._networks import parts

Model = TypeVar("Model", bound=nn.Module)

_KEPT = "_flat_weights_undropped"


class WeightDrop:
    """Hooks before and after a module's forward: in training, the dropped weight replaces the parameter's attribute.

    The parameter itself stays registered under its name, so that state dicts, optimizers and copies are unaffected.
    """

    def __init__(self, p: float, names: list[str]) -> None:
        self.p, self.names = p, names

    def before(self, module: nn.Module, args: Any) -> None:
        self.after(module, args, None)  # clean up after Ctrl-C, after which torch runs no hooks
        if not module.training or self.p == 0:
            return
        own = module.__dict__
        dropped = {name: F.dropout(getattr(module, name), self.p, True) for name in self.names}
        own.update(dropped)  # takes precedence over the parameter of that name
        if isinstance(module, _torch.RNNBase):  # torch's forward reads this list
            own[_KEPT] = own["_flat_weights"]
            pairs = zip(module._flat_weights_names, own["_flat_weights"], strict=True)
            own["_flat_weights"] = [dropped.get(name, weight) for name, weight in pairs]

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        own = module.__dict__
        for name in self.names:
            own.pop(name, None)
        if _KEPT in own:
            own["_flat_weights"] = own.pop(_KEPT)


def weight_drop(model: Model, p: float = 0.5) -> Model:
    """Drop elements of the recurrent weights in training, with probability ``p``; scale the others by 1/(1-p).

    A mask is drawn once per call and used at all its time steps, so that the kernels receive an ordinary weight. Each
    layer, direction and gate has its own mask. In evaluation mode nothing is dropped. ``step`` runs no hooks and drops
    nothing.

    Sources: Wan et al., Regularization of neural networks using DropConnect, 2013; on the hidden-to-hidden weights of
    an LSTM: Merity, Keskar and Socher, Regularizing and optimizing LSTM language models, 2018 (arXiv:1708.02182).

    Args:
        model: an LSTM, GRU or RNN of torch.nn or fastrnn, a network of `fastrnn.cell`, or a model that contains some.
            Its parameters and their names are unchanged. Calling again changes ``p``.
        p: the probability, from 0 to 1.

    Returns:
        ``model``.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``p`` is not a probability, the model contains no such network (cells, whose calls are single time
            steps, do not count), or a recurrent weight is parametrized, which would hide the mask.

    Example:
        >>> fastrnn.training.weight_drop(fastrnn.LSTM(3, 4), 0.5)
        LSTM(3, 4)
    """
    if isinstance(p, bool) or not isinstance(p, (int, float)) or not 0 <= p <= 1:
        raise ValueError(f"p: expected a probability from 0 to 1, got {p!r}")
    names: dict[nn.Module, list[str]] = {}
    for part in parts(model, with_cells=False):
        name = "weight_hh" + part.suffix
        if parametrize.is_parametrized(part.module, name):
            raise ValueError(
                f"model: expected recurrent weights that are not parametrized, got {part.kind} with {name}"
            )
        names.setdefault(part.module, []).append(name)
    remove_weight_drop(model)
    for module, recurrent in names.items():
        drop = WeightDrop(float(p), recurrent)
        module.register_forward_pre_hook(drop.before)
        module.register_forward_hook(drop.after, always_call=True)
    return model


def remove_weight_drop(model: Model) -> Model:
    """Undo `weight_drop`; no effect if it was not applied.

    Returns:
        ``model``.

    Example:
        >>> lstm = fastrnn.training.weight_drop(fastrnn.LSTM(3, 4), 0.5)
        >>> fastrnn.training.remove_weight_drop(lstm)
        LSTM(3, 4)
    """
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key, hook in list(hooks.items()):
                drop = getattr(hook, "__self__", None)
                if isinstance(drop, WeightDrop):
                    drop.after(module, None, None)
                    hooks.pop(key)
                    module._forward_hooks_always_called.pop(key, None)
    return model
