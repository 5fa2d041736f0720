"""Networks with learned initial states that are not zero."""

from __future__ import annotations

import torch
from dropin_cases import LAYERS, B, H, I, T
from torch import nn

import fastrnn
from fastrnn import gallery

LOOSE = {"rtol": 1e-4, "atol": 1e-5}


OPTIONS = [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}]


def make(kind: str, **options) -> nn.Module:
    """Make a network with learned initial states that are not zero."""
    torch.manual_seed(0)
    options = {"learn_initial_state": True, **options}
    if kind == "custom":
        module = gallery.peephole_lstm(I, H, **options)
    else:
        name, extra = LAYERS[kind]
        module = getattr(fastrnn, name)(I, H, **extra, **options)
    return randomised(module)


def states_of(module: nn.Module, batch: int | None = B):
    """Build the states by hand, from the names of the parameters."""
    found = []
    for state in ("h", "c"):
        rows = [
            module.get_parameter(f"initial_{state}_l{layer}{suffix}")
            for layer in range(module.num_layers)
            for suffix in (["", "_reverse"] if module.bidirectional else [""])
            if hasattr(module, f"initial_{state}_l{layer}{suffix}")
        ]
        if rows:
            s = torch.stack(rows)
            found.append(s if batch is None else s.unsqueeze(1).repeat(1, batch, 1))
    return tuple(found) if len(found) > 1 else found[0]


def x_for(module: nn.Module) -> torch.Tensor:
    return torch.randn(B, T, I) if module.batch_first else torch.randn(T, B, I)


def randomised(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "initial_" in name:
                p.normal_()
    return model
