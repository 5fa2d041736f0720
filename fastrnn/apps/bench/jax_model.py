"""The recurrent networks of torch.nn in JAX, as a careful user would write them: a jitted ``lax.scan`` over time.

The product of the whole input with W stands before the loop. Weights are kept transposed, (I, G·H) and (H, G·H), so
that no product has to transpose them in each step.
"""

from __future__ import annotations

import importlib
from typing import Any

from fastrnn.apps.bench.cases import Case

Parameters = dict[str, Any]


def make_forward(case: Case) -> Any:
    """A function of (parameters, x, states) that answers (output, final states).

    Parameters are named as torch's, weights transposed. x (T, B, I), states a tuple of (L·D, B, H), ``h`` first;
    output (T, B, D·H).
    """
    np = importlib.import_module("jax.numpy")
    suffixes = ("", "_reverse")[: 2 if case.shape.bidirectional else 1]
    layer: Any = _CELLS[case.cell]

    def forward(parameters: Parameters, x: Any, states: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        finals: list[tuple[Any, ...]] = []
        for number in range(case.shape.layers):
            outputs = []
            for suffix in suffixes:
                names = [f"{kind}_l{number}{suffix}" for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
                initial = tuple(state[len(finals)] for state in states)
                y, last = layer(x, initial, *(parameters[name] for name in names), bool(suffix))
                outputs.append(y)
                finals.append(last)
            x = outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=-1)
        return x, tuple(np.stack(state) for state in zip(*finals, strict=True))

    return forward


def make_training_step(case: Case) -> Any:
    """A function of (parameters, x, states, gradients of output and final states).

    It answers (output, final states), and the gradients of parameters, x and states.
    """
    jax = importlib.import_module("jax")
    forward = make_forward(case)

    def step(parameters: Parameters, x: Any, states: tuple[Any, ...], given: tuple[Any, ...]) -> Any:
        outputs, pull_back = jax.vjp(forward, parameters, x, states)
        return outputs, pull_back((given[0], tuple(given[1:])))

    return step


def _scan(step: Any, initial: Any, inputs: Any, reverse: bool) -> Any:
    last, y = importlib.import_module("jax").lax.scan(step, initial, inputs, reverse=reverse)
    return y, last


def _lstm(x: Any, states: Any, w: Any, r: Any, b_ih: Any, b_hh: Any, reverse: bool) -> Any:
    jax, np = importlib.import_module("jax"), importlib.import_module("jax.numpy")

    def step(state: Any, row: Any) -> Any:
        h, c = state
        i, f, g, o = np.split(row + h @ r, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * np.tanh(g)
        h = jax.nn.sigmoid(o) * np.tanh(c)
        return (h, c), h

    return _scan(step, states, x @ w + (b_ih + b_hh), reverse)


def _gru(x: Any, states: Any, w: Any, r: Any, b_ih: Any, b_hh: Any, reverse: bool) -> Any:
    jax, np = importlib.import_module("jax"), importlib.import_module("jax.numpy")

    def step(state: Any, row: Any) -> Any:
        (h,) = state
        wr, wz, wn = np.split(row, 3, axis=-1)
        rr, rz, rn = np.split(h @ r + b_hh, 3, axis=-1)
        update = jax.nn.sigmoid(wz + rz)
        candidate = np.tanh(wn + jax.nn.sigmoid(wr + rr) * rn)
        h = candidate + update * (h - candidate)
        return (h,), h

    return _scan(step, states, x @ w + b_ih, reverse)


def _rnn(x: Any, states: Any, w: Any, r: Any, b_ih: Any, b_hh: Any, reverse: bool) -> Any:
    np = importlib.import_module("jax.numpy")

    def step(state: Any, row: Any) -> Any:
        h = np.tanh(row + state[0] @ r)
        return (h,), h

    return _scan(step, states, x @ w + (b_ih + b_hh), reverse)


_CELLS = {"lstm": _lstm, "gru": _gru, "rnn": _rnn}
