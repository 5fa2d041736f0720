"""The translation for torch.onnx.export(dynamo=False), which traces Python code."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Found = tuple[Tensor, ...]

_set_tracing_state: Any = torch._C._set_tracing_state  # type: ignore[attr-defined]


def is_active() -> bool:
    """Whether a trace for ONNX is being made: one that need not run without this library."""
    return torch.jit.is_tracing() and torch.onnx.is_in_onnx_export()  # type: ignore[attr-defined]


def node(
    name: str, inputs: Sequence[Tensor | None], attributes: dict[str, Any], outputs: int, compute: Callable[[], Found]
) -> Found:
    """A node of ONNX with these inputs, whose outputs ``compute`` gives in the trace itself."""
    with _outside_of_trace():  # where sizes are tensors
        attributes = {k: v.item() if isinstance(v, Tensor) else v for k, v in attributes.items()}
    return _Node.apply(compute, name, attributes, outputs, *inputs)


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, compute: Callable[[], Found], name: str, attributes: dict[str, Any], outputs: int, *inputs: Any
    ) -> Found:
        # What is computed from other tensors than its inputs must not be recorded; its results must be.
        with _outside_of_trace():
            found = compute()
            like = [(tuple(f.shape), f.dtype) for f in found]
        results = tuple(inputs[0].new_zeros(shape, dtype=dtype) for shape, dtype in like)
        with _outside_of_trace():
            for result, value in zip(results, found, strict=True):
                result.copy_(value)
        return results

    @staticmethod
    def symbolic(
        g: Any, compute: Callable[[], Found], name: str, attributes: dict[str, Any], outputs: int, *inputs: Any
    ) -> Any:
        given = [_absent(g) if value is None else value for value in inputs]
        while inputs and inputs[-1] is None:  # trailing ones are left out
            inputs, given = inputs[:-1], given[:-1]
        return g.op(name, *given, outputs=outputs, **{_typed(k, v): v for k, v in attributes.items()})


def _absent(g: Any) -> Any:
    """An optional input that is not there."""
    value = g.op("prim::Constant")
    value.setType(torch._C.OptionalType.ofTensor())
    return value


def _typed(name: str, value: Any) -> str:
    """An attribute's name with the letter of its type."""
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
    body: Callable[..., list[Tensor]], states: Sequence[Tensor], steps: Sequence[Tensor], given: Sequence[Tensor]
) -> list[Tensor]:
    """As `torch.ops.higher_order.scan`: the final states, and the outputs of all steps. A script is called, which
    stands in the trace as a loop; a loop in Python would stand there as the steps of the example.
    """
    with _outside_of_trace(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that are compared, which are the same for every batch
        example = [torch.zeros_like(t) for t in (*states, *(s[0] for s in steps), *given)]
        step = torch.jit.trace(lambda *arguments: tuple(body(*arguments)), tuple(example), check_trace=False)
    s, x, g = ([f"{letter}{k}" for k in range(len(ts))] for letter, ts in (("s", states), ("x", steps), ("g", given)))
    source = _LOOP.format(
        arguments=", ".join(s + x + g),
        first=x[0],
        states=", ".join(s),
        call=", ".join(s + [f"{name}[t]" for name in x] + g),
    )
    unit = torch.jit.CompilationUnit(source)
    _keep(step, unit)
    loop = unit.loop
    return list(loop(*states, *steps, *given))


_kept: tuple[Any, list[Any]] = (None, [])


def _keep(*scripts: Any) -> None:
    """Keeps alive what the trace refers to, until another trace begins: a trace does not."""
    global _kept
    trace = torch._C._get_tracing_state()
    if _kept[0] is not trace:
        _kept = (trace, [])
    _kept[1].extend(scripts)


@contextlib.contextmanager
def _outside_of_trace() -> Iterator[None]:
    """While it lasts, nothing is recorded, and another trace can be made."""
    state = torch._C._get_tracing_state()
    _set_tracing_state(None)
    try:
        yield
    finally:
        _set_tracing_state(state)
