"""Operations of cells drawn at random, and problems for such cells."""

from __future__ import annotations

import os

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase
from problems import Problem

from fastrnn.custom import detach, surrogate

#: Functions of two values; finite for arguments of moderate size.
FUNCTIONS = (
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: torch.tanh(a) * b,
    lambda a, b: a / (1 + b.square()),
    lambda a, b: -a,
    lambda a, b: torch.sigmoid(a),
    lambda a, b: torch.tanh(a),
    lambda a, b: torch.relu(a),
    lambda a, b: torch.exp(torch.clamp(a, -2, 1)),
    lambda a, b: torch.log(1 + a * a),
    lambda a, b: F.softplus(a),
    lambda a, b: torch.sqrt(1 + abs(a)),
    lambda a, b: torch.maximum(a, b),
    lambda a, b: torch.minimum(a, b),
    lambda a, b: torch.where(a < b, b, 0.5),
    lambda a, b: torch.where(a >= 0.1, a, -b),
    lambda a, b: torch.clamp(a, max=b),
    lambda a, b: 0.1 * a**3,
    lambda a, b: torch.sin(a),
    lambda a, b: torch.cos(3 * a) - b,
    lambda a, b: surrogate(torch.sign(a), torch.tanh(b)),
    lambda a, b: a * detach(b),
    lambda a, b: 0.75 * a,
    lambda a, b: 1 - b,
)


def lambda_named(function):
    function.__name__ = "drawn"
    return function


OPERATIONS = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
    "neg": torch.neg,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "exp": torch.exp,
    "log": torch.log,
    "softplus": lambda a: F.softplus(a, threshold=700),
    "sqrt": torch.sqrt,
    "abs": torch.abs,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "sin": torch.sin,
    "cos": torch.cos,
    "remainder": torch.remainder,
    "surrogate": surrogate,
    "detach": detach,
    "where_less": lambda a, b, c, d: torch.where(a < b, c, d),
    "where_at_most": lambda a, b, c, d: torch.where(a <= b, c, d),
    "sigmoid_slope": lambda y: y * (1 - y),
    "tanh_slope": lambda y: 1 - y * y,
}


limits = {
    "derandomize": bool(os.environ.get("CI")),
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.reuse, Phase.generate),  # shrinking an example would need more builds
}


def problem_of(cell, H: int) -> Problem:
    problem = Problem(cell.kernels, 4, 3, 2, H, layout="lengths")
    rows = len(cell.recurrent) * H
    g = torch.Generator().manual_seed(1)
    w_hh = torch.randn(rows + len(cell.parameters), H, generator=g, dtype=torch.float64) * 0.3
    b_hh = torch.randn(rows, generator=g, dtype=torch.float64)
    problem.weights = problem.weights._replace(w_hh=w_hh.requires_grad_(), b_hh=b_hh.requires_grad_())
    return problem
