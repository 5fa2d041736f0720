"""Mutations of an operator's arguments, wrong or only seemingly so. Each changes a dictionary of arguments."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor

from .operator_case import OperatorCase

NAMES = (
    "gru@0.5",
    "lstm@nan",
    "lstm@inf",
    "lstm@-1",
    "lstm@0",
    "lstm@",
    "@0.5",
    "lstm@0.5@1",
    "",
    "x",
    "lstm\0",
    "LSTM",
)
Arguments = dict
Mutation = Callable[[OperatorCase, random.Random, Arguments], None]
MUTATIONS: list[Mutation] = []


def mutated(case: OperatorCase, arguments: Arguments) -> tuple[Arguments, str]:
    """Apply the mutations of a case; return the arguments and the mutations' names."""
    r, arguments = random.Random(case.invalid), dict(arguments)
    chosen = [r.choice(MUTATIONS) for _ in range(case.mutations)]
    for mutation in chosen:
        mutation(case, r, arguments)
    return arguments, "+".join(m.__name__ for m in chosen)


def _mutation(function: Mutation) -> Mutation:
    MUTATIONS.append(function)
    return function


def _pick(r: random.Random, arguments: Arguments) -> tuple[Callable[[], Tensor], Callable[[object], None], str]:
    """Pick a tensor among the arguments: functions to read and to replace it, and its name."""
    places: list[tuple[str, int | None]] = []
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            places.append((name, None))
        elif isinstance(value, list):
            places += [(name, k) for k, v in enumerate(value) if isinstance(v, Tensor)]
    name, k = r.choice(places)

    def write(value: object) -> None:
        if k is None:
            arguments[name] = value
        else:
            arguments[name] = [value if j == k else v for j, v in enumerate(arguments[name])]

    return (lambda: arguments[name] if k is None else arguments[name][k]), write, name


def _change(r: random.Random, arguments: Arguments, change: Callable[[Tensor], object]) -> None:
    read, write, _ = _pick(r, arguments)
    write(change(read()))


@_mutation
def unknown_cell(case, r, arguments):
    arguments["cell"] = r.choice(NAMES)


@_mutation
def another_cell(case, r, arguments):
    arguments["cell"] = r.choice(("lstm", "gru", "rnn_tanh", "rnn_relu"))


@_mutation
def longer(case, r, arguments):
    def change(t: Tensor) -> Tensor:
        d = r.randrange(t.dim()) if t.dim() else None
        return t.reshape(1) if d is None else torch.cat((t, t.narrow(d, 0, min(1, t.shape[d]))), d)

    _change(r, arguments, change)


@_mutation
def shorter(case, r, arguments):
    def change(t: Tensor) -> Tensor:
        d = r.randrange(t.dim()) if t.dim() else None
        return t if d is None or t.shape[d] == 0 else t.narrow(d, 0, r.randrange(t.shape[d]))

    _change(r, arguments, change)


@_mutation
def other_rank(case, r, arguments):
    def change(t: Tensor) -> Tensor:
        options = [t.unsqueeze(0), t.unsqueeze(-1), t.reshape(-1)]
        if t.dim() and t.shape[0]:
            options.append(t[0])
        return r.choice(options).contiguous()

    _change(r, arguments, change)


@_mutation
def other_dtype(case, r, arguments):
    dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.bool)
    _change(r, arguments, lambda t: t.to(r.choice((*dtypes, torch.complex64, torch.uint8))))


@_mutation
def empty(case, r, arguments):
    _change(r, arguments, lambda t: t.new_empty(r.choice(((0,), (0, 0), (), (0, 3, 2)))))


@_mutation
def missing(case, r, arguments):
    _change(r, arguments, lambda t: None)


@_mutation
def no_tensor(case, r, arguments):
    name = r.choice(list(arguments))
    arguments[name] = r.choice((None, 3, "lstm", 1.5, [], [None], True))


@_mutation
def on_meta(case, r, arguments):
    _change(r, arguments, lambda t: t.to("meta"))


@_mutation
def all_on_meta(case, r, arguments):
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            arguments[name] = value.to("meta")
        elif isinstance(value, list):
            arguments[name] = [v.to("meta") if isinstance(v, Tensor) else v for v in value]


@_mutation
def sparse(case, r, arguments):
    _change(r, arguments, lambda t: t.to_sparse() if t.dtype.is_floating_point and t.dim() else t)


@_mutation
def expanded(case, r, arguments):
    _change(r, arguments, lambda t: t[:1].expand(t.shape) if t.dim() and t.shape[0] else t)


@_mutation
def special_view(case, r, arguments):
    def change(t: Tensor) -> Tensor:
        if not t.dtype.is_floating_point:
            return t
        return r.choice((torch._efficientzerotensor(t.shape, dtype=t.dtype), torch._neg_view(t), t.requires_grad_()))

    _change(r, arguments, change)


@_mutation
def more_in_list(case, r, arguments):
    lists = [n for n in ("states", "reserve", "grad_final") if arguments.get(n)]
    if lists:
        name = r.choice(lists)
        values = list(arguments[name])
        arguments[name] = r.choice((values * 2, values[:-1], values[::-1], [values[0]] * len(values), []))


@_mutation
def wild_numbers(case, r, arguments):
    names = [n for n in ("lengths", "batch_sizes") if isinstance(arguments.get(n), Tensor)]
    if names:
        t = arguments[r.choice(names)]
        if t.numel():
            t.view(-1)[r.randrange(t.numel())] = r.choice((-1, 0, case.T + 1, 1 << 40, -(1 << 62), (1 << 63) - 1))


@_mutation
def wild_layout(case, r, arguments):
    """Add lengths, batch sizes or resets where there are none."""
    T, B = max(1, case.T), max(1, case.B)
    options = {
        "lengths": (torch.full((B,), T), torch.full((B,), T + 1), torch.zeros(B, dtype=torch.int32)),
        "batch_sizes": (torch.full((T,), B), torch.arange(T) + 1, torch.full((T,), 1 << 60), torch.zeros(0).long()),
        "reset": (torch.ones(T, B, dtype=torch.bool), torch.ones(B, T, dtype=torch.bool), torch.ones(T, B)),
    }
    name = r.choice(list(options))
    arguments[name] = r.choice(options[name])


@_mutation
def corrupted(case, r, arguments):
    """Replace saved tensors by ones of the same shape with other values."""
    if arguments.get("reserve"):
        wild = r.choice((float("nan"), float("inf"), 1e30, 0.0))
        arguments["reserve"] = [t if t is None else torch.full_like(t, wild) for t in arguments["reserve"]]
    if isinstance(arguments.get("y"), Tensor):
        arguments["y"] = torch.full_like(arguments["y"], r.choice((float("nan"), 0.0)))


@_mutation
def other_wanted(case, r, arguments):
    if "wanted" in arguments:
        arguments["wanted"] = [r.random() < 0.5 for _ in range(r.choice((0, 7, 10, 11, 11, 11, 12)))]


@_mutation
def other_projection(case, r, arguments):
    H, P = case.H, r.choice((1, case.H, case.P or 2))
    dtype = getattr(torch, case.dtype)
    arguments["w_hr"] = r.choice((None, torch.ones(P, H, dtype=dtype), torch.ones(H, P, dtype=dtype)))
