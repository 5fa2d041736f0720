"""Nodes and loops in the traces of torch.onnx.export(dynamo=False)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]

_set_tracing_state: Any = torch._C._set_tracing_state  # type: ignore[attr-defined]


def node(
    name: str, inputs: Sequence[Tensor | None], attributes: dict[str, Any], outputs: int, compute: Callable[[], Tensors]
) -> Tensors:
    """Add a node of ONNX to the trace; ``compute`` returns the values of its outputs."""
    with _outside_of_trace():  # inside, sizes are tensors
        attributes = {k: v.item() if isinstance(v, Tensor) else v for k, v in attributes.items()}
    return _Node.apply(compute, name, attributes, outputs, *inputs)


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, compute: Callable[[], Tensors], name: str, attributes: dict[str, Any], outputs: int, *inputs: Any
    ) -> Tensors:
        # The trace needs a recorded operation for every output, and must not record any on tensors that are not inputs.
        with _outside_of_trace():
            values = compute()
            like = [(tuple(value.shape), value.dtype) for value in values]
        results = tuple(inputs[0].new_zeros(shape, dtype=dtype) for shape, dtype in like)
        with _outside_of_trace():
            for result, value in zip(results, values, strict=True):
                result.copy_(value)
        return results

    @staticmethod
    def symbolic(
        g: Any, compute: Callable[[], Tensors], name: str, attributes: dict[str, Any], outputs: int, *inputs: Any
    ) -> Any:
        while inputs[-1] is None:  # ONNX omits trailing optional inputs
            inputs = inputs[:-1]
        values = [_absent(g) if value is None else value for value in inputs]
        return g.op(name, *values, outputs=outputs, **{_typed(k, v): v for k, v in attributes.items()})


def _absent(g: Any) -> Any:
    """Return the value that stands for an absent optional input."""
    value = g.op("prim::Constant")
    value.setType(torch._C.OptionalType.ofTensor())
    return value


def _typed(name: str, value: Any) -> str:
    """Return an attribute's name with the suffix of its type."""
    first = value[0] if isinstance(value, (list, tuple)) else value
    return f"{name}_{'i' if isinstance(first, int) else 's'}"


_LOOP = """
def loop({arguments}):
    outputs = torch.jit.annotate(List[Tensor], [])
    for t in range({first}.size(0)):
        {states}, y = step({call})
        outputs.append(y)
    return {states}, torch.stack(outputs)
"""


def scan(
    body: Callable[..., list[Tensor]], states: Sequence[Tensor], steps: Sequence[Tensor], shared: Sequence[Tensor]
) -> list[Tensor]:
    """Return the final states and the stacked outputs of all steps, as `torch.ops.higher_order.scan` does.

    A scripted function appears in the trace as a loop. A Python loop would appear as the steps of the example.
    """
    with _outside_of_trace(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated; steps compare sizes that do not depend on the batch
        example = [torch.zeros_like(t) for t in (*states, *(s[0] for s in steps), *shared)]
        step = torch.jit.trace(lambda *arguments: tuple(body(*arguments)), tuple(example), check_trace=False)
    s, x, g = ([f"{letter}{k}" for k in range(len(ts))] for letter, ts in (("s", states), ("x", steps), ("g", shared)))
    source = _LOOP.format(
        arguments=", ".join(s + x + g),
        first=x[0],
        states=", ".join(s),
        call=", ".join(s + [f"{name}[t]" for name in x] + g),
    )
    unit = torch.jit.CompilationUnit(source)
    _keep_alive(step, unit)
    loop = unit.loop
    return list(loop(*states, *steps, *shared))


_alive: tuple[Any, list[Any]] = (None, [])


def _keep_alive(*scripts: Any) -> None:
    """Own functions that a trace calls until the next trace begins; the trace itself does not own them."""
    global _alive
    trace = torch._C._get_tracing_state()
    if _alive[0] is not trace:
        _alive = (trace, [])
    _alive[1].extend(scripts)


@contextlib.contextmanager
def _outside_of_trace() -> Iterator[None]:
    """Suspend the trace: nothing is recorded, and another trace can be made."""
    state = torch._C._get_tracing_state()
    _set_tracing_state(None)
    try:
        yield
    finally:
        _set_tracing_state(state)
