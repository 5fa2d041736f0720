"""Calls of the raw operators: valid ones, and ways in which one may be wrong."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastrnn import _ops

OPERATORS = ("sequence_forward", "layer_backward")
LAYOUTS = ("plain", "packed", "lengths", "reset", "lengths+reset")
LAYOUT = ("batch_sizes", "lengths", "reset")
ORDER = {
    "sequence_forward": (
        *("cell", "x", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr", "states", *LAYOUT),
        *("reverse", "training", "restart"),
    ),
    "layer_backward": (
        *("cell", "grad_y", "grad_final", "x", "w_ih", "w_hh", "w_hr", "states", "y", "reserve", *LAYOUT, "reverse"),
        *("wanted", "restart", "clip"),
    ),
}
Call = dict[str, Any]


def invoke(name: str, call: Call) -> Any:
    """Return the operator's results."""
    return getattr(torch.ops.fastrnn, name).default(*(call[key] for key in ORDER[name]))


def tensors(found: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(found) if isinstance(t, Tensor)]


def valid(name: str, cell: str, g: random.Random, layout: str = "plain", dtype: torch.dtype = torch.float32) -> Call:
    """Make the arguments of a valid call."""
    sizes = _ops.traits_of(cell)
    T, B, inputs, H = g.randint(1, 4), g.randint(0, 3), g.randint(1, 4), g.randint(1, 5)
    P = g.randint(1, 4) if sizes.projectable and g.random() < 0.4 else 0
    batch_sizes = lengths = reset = None
    rows: tuple[int, ...] = (T, B)
    if layout == "packed":
        B = max(1, B)
        counts = sorted((g.randint(1, B) for _ in range(T)), reverse=True)
        counts[0] = B
        batch_sizes, rows = torch.tensor(counts), (sum(counts),)
    if "lengths" in layout:
        lengths = torch.tensor([g.randint(0, T) for _ in range(B)], dtype=torch.int64)
    if "reset" in layout:
        reset = torch.rand(T, B) < 0.3
    wide, recurrent = sizes.gates * H, sizes.recurrent * H

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype)

    given = g.random() < 0.8
    call: Call = {
        "cell": cell,
        "x": draw(*rows, inputs if given else wide),
        "w_ih": draw(wide, inputs) if given else None,
        "w_hh": draw(recurrent + sizes.parameters, P or H),
        "b_ih": draw(wide) if g.random() < 0.7 else None,
        "b_hh": draw(recurrent) if g.random() < 0.7 else None,
        "w_hr": draw(P, H) if P else None,
        "states": [draw(B, H if k else P or H) for k in range(sizes.states)] if g.random() < 0.7 else [],
        "batch_sizes": batch_sizes,
        "lengths": lengths,
        "reset": reset,
        "reverse": g.random() < 0.5,
        "training": True if name != "sequence_forward" else g.random() < 0.7,
        "wanted": [g.random() < 0.7 for _ in range(11)],
        "clip": g.choice((0.0, 0.0, 0.5)),
    }
    restarts = "reset" in layout and g.random() < 0.5
    call["restart"] = [draw(B, H if k else P or H) for k in range(sizes.states)] if restarts else []
    if name != "sequence_forward":
        y, finals, reserve = invoke("sequence_forward", call)
        call |= {"y": y, "reserve": reserve, "grad_y": torch.randn_like(y) if g.random() < 0.8 else None}
        call["grad_final"] = [torch.randn_like(f) if g.random() < 0.7 else None for f in finals]
    return call


def _wrong_tensors(t: Tensor) -> Iterator[tuple[str, Tensor | None]]:
    """Yield tensors that may not fit in place of one, without values that are out of range."""
    other = {torch.float32: torch.float64, torch.int64: torch.float32, torch.bool: torch.uint8}
    yield "dtype", t.to(other.get(t.dtype, torch.float32))
    if t.is_floating_point():
        yield "complex", t.to(torch.complex64)
        yield "integer", t.to(torch.int64)
        yield "half", t.to(torch.float16)
    yield "more dimensions", t.unsqueeze(0)
    if t.dim():
        yield "fewer dimensions", t.flatten(0, 1) if t.dim() > 1 else t.sum()
        yield "no dimensions", t.new_zeros(())
    for dim in range(t.dim()):
        yield f"longer {dim}", torch.cat((t, t.new_ones(*t.shape[:dim], 1, *t.shape[dim + 1 :])), dim)
        if t.shape[dim]:
            yield f"shorter {dim}", t.narrow(dim, 0, t.shape[dim] - 1)
            yield f"nothing {dim}", t.narrow(dim, 0, 0)
    if t.dim() == 2:
        yield "transposed", t.t()


def wrong(name: str, call: Call) -> Iterator[tuple[str, Call]]:
    """Yield calls that differ from a valid one in one argument, which may make them wrong, and the difference."""
    for key in ORDER[name]:
        value = call[key]
        if isinstance(value, Tensor):
            for what, tensor in _wrong_tensors(value):
                if key != "batch_sizes" or what in ("dtype", "more dimensions", "no dimensions", "nothing 0"):
                    yield f"{key}: {what}", call | {key: tensor}
            if key in ("w_ih", "b_ih", "b_hh", "w_hr", "grad_y", *LAYOUT):
                yield f"{key}: none", call | {key: None}
        elif isinstance(value, list) and key != "wanted":
            yield f"{key}: empty", call | {key: []}
            yield f"{key}: one more", call | {key: [*value, torch.zeros(2, 2)]}
            yield f"{key}: one less", call | {key: value[:-1]}
            for k, entry in enumerate(value):
                for what, tensor in _wrong_tensors(entry) if isinstance(entry, Tensor) else ():
                    yield f"{key}[{k}]: {what}", call | {key: [*value[:k], tensor, *value[k + 1 :]]}
    H = call["w_hh"].shape[1]
    yield "w_hr: square", call | {"w_hr": call["w_hh"].new_zeros(H, H)}
    yield "w_hr: a wider state", call | {"w_hr": call["w_hh"].new_zeros(H, H + 3)}
    for cell in ("gru", "lstm", "rnn_tanh", "lstm@0.5", "ltsm", "a_0123456789ab"):
        yield f"cell: {cell}", call | {"cell": cell}
    size = call["states"][0].shape[0] if call["states"] else 1
    for key, tensor in (
        ("lengths", torch.zeros(size, dtype=torch.int32)),
        ("reset", torch.zeros(call.get("y", call.get("x")).shape[:2], dtype=torch.bool)),
    ):
        if call[key] is None:
            yield f"{key}: given", call | {key: tensor}


def moved(call: Call, to: Any, keep: tuple[str, ...] = ()) -> Call:
    """Apply `to` to every tensor of a call, except those under the names `keep`."""
    tree_map = torch.utils._pytree.tree_map_only
    return {key: value if key in keep else tree_map(Tensor, to, value) for key, value in call.items()}
