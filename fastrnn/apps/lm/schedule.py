"""Optimisers, and the learning-rate schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from fastrnn.apps.lm.options import Options


def make_optimizer(options: Options, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of a model; weight decay applies to matrices, not to biases and per-unit parameters."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if options.optimizer == "adam":
        return torch.optim.Adam(groups, lr=options.learning_rate)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.learning_rate)
    kind = torch.optim.SGD if options.optimizer == "sgd" else torch.optim.RMSprop
    return kind(groups, lr=options.learning_rate, momentum=options.momentum)


def learning_rate(options: Options, step: int, total: int | None) -> float:
    """Return the learning rate of step 0…total-1: a linear increase over ``warmup`` steps, then the schedule."""
    peak, last = options.learning_rate, options.final_learning_rate
    if step < options.warmup:
        return peak * (step + 1) / options.warmup
    if options.schedule == "constant":
        return peak
    if total is None:
        raise ValueError(f"schedule: expected a last step for {options.schedule!r}, got none")
    share = min(1.0, (step - options.warmup) / max(1, total - options.warmup))
    if options.schedule == "linear":
        return peak + (last - peak) * share
    return last + (peak - last) * (1 + math.cos(math.pi * share)) / 2
