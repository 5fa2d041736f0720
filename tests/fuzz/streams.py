"""Calls of the extension's Stream: valid ones, compared with the reference, and mutated ones."""

from __future__ import annotations

import contextlib
import random

import torch
from torch import Tensor

from fastrnn import _C, cells, reference

from .guarded import Memory
from .operator_calls import Problem, guarded
from .operator_case import OperatorCase


def problem(case: OperatorCase) -> dict:
    """Make weights of every layer, x (T, B, I) and states, (L, B, ·) each."""
    p = Problem(case)
    P = case.P or case.H
    layers = [list(p.weights)]
    for _ in range(case.layers - 1):
        own = [None if w is None else p.draw(*w.shape, scale=case.H**-0.5) for w in p.weights]
        own[0] = p.draw(p.weights[0].shape[0], P, scale=case.H**-0.5)
        layers.append(own)
    widths = [P if k == 0 else case.H for k in range(len(p.spec.states))]
    states = [p.draw(case.layers, case.B, w) for w in widths]
    return {"cell": case.cell, "layers": layers, "x": p.x, "states": states if case.states else [], "batch": case.B}


def right(case: OperatorCase, given: dict) -> tuple[Tensor, list[Tensor]]:
    """Compute outputs and states in float64 with the reference."""
    spec, x, finals = cells.find(case.cell), given["x"].double(), []
    for k, weights in enumerate(given["layers"]):
        weights = tuple(None if w is None else w.double() for w in weights)
        states = tuple(s[k].double() for s in given["states"])
        states = states or reference.zero_states(spec, x, case.B, case.H, case.P or case.H)
        x, last = reference.sequence(spec, x, weights, states)
        finals.append(last)
    return x, [torch.stack(column) for column in zip(*finals, strict=True)]


def place(case: OperatorCase, memory: Memory, given: dict) -> dict:
    flat = guarded(case, memory, {f"w{k}": layer for k, layer in enumerate(given["layers"])} | {"x": given["x"]})
    states = guarded(case, memory, {"states": given["states"]})["states"]
    # `fastrnn.Stream` passes the kernels contiguous copies of the weights, and x step by step.
    layers = [[None if w is None else w for w in flat[f"w{k}"]] for k in range(len(given["layers"]))]
    return {**given, "layers": layers, "x": flat["x"], "states": states}


def run(given: dict) -> tuple[Tensor, list[Tensor]]:
    stream = _C.Stream(given["cell"], given["layers"], given["batch"])
    if given["states"]:
        stream.set_states(given["states"])
    handle = stream.handle()
    outputs = []
    for t in range(given["x"].shape[0]):
        y = _C.stream_step(handle, given["x"][t])
        if y is None:
            raise ValueError("x: does not fit")
        outputs.append(y)
    return torch.stack(outputs), stream.states()


def wild(case: OperatorCase, given: dict) -> str:
    """Make nonsensical calls, each of which may raise; return their names."""
    r = random.Random(case.invalid)
    w = given["layers"][0][1]
    known = {
        "an unknown cell": lambda: _C.Stream("x", given["layers"], given["batch"]),
        "no layers": lambda: _C.Stream(case.cell, [], given["batch"]),
        "empty layers": lambda: _C.Stream(case.cell, [[]], given["batch"]),
        "missing weights": lambda: _C.Stream(case.cell, [[None] * 5], given["batch"]),
        "no rows": lambda: run({**given, "batch": 0}),
        "negative rows": lambda: run({**given, "batch": -1}),
        "weights of another size": lambda: run({**given, "layers": _shrunk(given["layers"], r)}),
        "weights of another dtype": lambda: run({**given, "layers": _cast(given["layers"], r)}),
        "another cell": lambda: run({**given, "cell": "gru" if case.cell == "lstm" else "lstm"}),
        "states of another size": lambda: run({**given, "states": [s[..., :-1] for s in given["states"]] or [w]}),
        "other weights later": lambda: _later(case, given, r),
        "reset of rows out of range": lambda: _C.Stream(case.cell, given["layers"], given["batch"]).reset(
            [1 << 20], []
        ),
        "reset to other states": lambda: _C.Stream(case.cell, given["layers"], given["batch"]).reset(None, [w[:1, :1]]),
        "a step of no stream": lambda: _C.stream_step(object(), given["x"][0]),
        "a step of no tensor": lambda: _C.stream_step(_handle(case, given), None),
        "a step on meta": lambda: _C.stream_step(_handle(case, given), given["x"][0].to("meta")),
        "a step of another width": lambda: _C.stream_step(_handle(case, given), torch.zeros(given["batch"], 999)),
        "a dtype that is none": lambda: _C.has_kernels(case.cell, 3),
        "sizes of no cell": lambda: _C.cell_traits("x"),
        "no capability": lambda: _C.set_capability("x"),
        "no split": lambda: _C.set_split("x"),
        "no file": lambda: _C.load_cells("/does/not/exist.so"),
        "a copy of no tensor": lambda: _C.plain_copy(3),
        "a copy on meta": lambda: _C.plain_copy(w.to("meta")),
        "fast path of no module": lambda: _C.fast_path_layers(torch.nn.Linear(1, 1), given["x"], None, False),
        "fast path of no tensor": lambda: _C.fast_path_layers(torch.nn.LSTM(1, 1), 3, 4, True),
        "fast path of no cell": lambda: _C.fast_path_cell(torch.nn.LSTMCell(1, 1), "x", None, None),
    }
    what = r.choice(list(known))
    with contextlib.suppress(
        TypeError, ValueError, RuntimeError, IndexError, NotImplementedError, OSError, ImportError
    ):
        known[what]()
    return what


def _handle(case: OperatorCase, given: dict):
    return _C.Stream(case.cell, given["layers"], given["batch"]).handle()


def _shrunk(layers: list, r: random.Random) -> list:
    k, name = r.randrange(len(layers)), r.randrange(4)
    changed = [list(layer) for layer in layers]
    if changed[k][name] is not None:
        changed[k][name] = changed[k][name][: max(1, len(changed[k][name]) // 2)]
    return changed


def _cast(layers: list, r: random.Random) -> list:
    k, name = r.randrange(len(layers)), r.randrange(4)
    changed = [list(layer) for layer in layers]
    if changed[k][name] is not None:
        changed[k][name] = changed[k][name].to(r.choice((torch.float16, torch.float64, torch.int64)))
    return changed


def _later(case: OperatorCase, given: dict, r: random.Random) -> None:
    stream = _C.Stream(case.cell, given["layers"], given["batch"])
    stream.set_weights(_shrunk(given["layers"], r))
    _C.stream_step(stream.handle(), given["x"][0])
