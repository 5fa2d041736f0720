"""Random calls of the raw operators under guard pages: `python -m tests.fuzz.operators --help`.

A valid call must return the reference's results, an invalid one raise an exception, and neither may access memory
outside its arguments or change them.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastrnn import _C
from fastrnn._call import Gradients, Wanted

from . import streams
from .guarded import Memory
from .mutations import mutated
from .operator_calls import ARGUMENTS, Problem, guarded
from .operator_case import OperatorCase as Case
from .operator_case import drawn, simpler

__all__ = ["Case", "check", "drawn", "simpler"]

RAISED = (TypeError, ValueError, RuntimeError, IndexError, NotImplementedError)
ULPS = 200  # relative to the largest value: the differential fuzzer judges smaller errors


def check(case: Case) -> list[str]:
    """Return the errors of a call; empty if it is right."""
    before = _C.capability(), torch.get_num_threads()
    _C.set_poison(True)
    if case.capability in _C.capabilities():
        _C.set_capability(case.capability)
    _C.set_split(case.split)
    torch.set_num_threads(case.threads)
    try:
        with Memory() as memory:
            return _stream(case, memory) if case.operator == "stream" else _operator(case, memory)
    finally:
        _C.set_poison(False)
        _C.set_capability(before[0])
        _C.set_split("auto")
        torch.set_num_threads(before[1])


def _operator(case: Case, memory: Memory) -> list[str]:
    problem = Problem(case)
    forward = case.operator in ("sequence_forward", "layer")
    arguments = problem.arguments() if forward else problem.backward_arguments()
    arguments = {name: arguments[name] for name in ARGUMENTS[case.operator]}
    what = ""
    if case.invalid:
        try:
            arguments, what = mutated(case, arguments)
        except (RuntimeError, IndexError, TypeError, NotImplementedError, AttributeError):
            return []  # a mutation of an earlier mutation's result
    placed = guarded(case, memory, arguments)
    memory.lock()
    call = _layer if case.operator == "layer" else getattr(torch.ops.fastrnn, case.operator)
    with torch.no_grad():
        try:
            result = call(*placed.values())
        except Exception as error:
            return _of_error(case, what, error) + _after(memory, None)
    found = _after(memory, result)
    if not case.invalid:
        found += _compared(case, problem, arguments, result)
    return found


def _layer(cell, x, *arguments):
    """Call the eager entry point with flat arguments."""
    *weights, states, batch_sizes, lengths, reset, reverse, restart, clip = arguments
    states, restart = (list(s) if isinstance(s, list | tuple) else [] for s in (states, restart))
    return _C.layer((cell, reverse, clip, len(states), batch_sizes, lengths, reset, x, *weights, *states, *restart))


def _of_error(case: Case, what: str, error: Exception) -> list[str]:
    if not case.invalid:
        return [f"expected results, got {type(error).__name__}: {str(error)[:300]}"]
    if not isinstance(error, RAISED):
        return [f"{what}: expected an error that names the argument, got {type(error).__name__}: {str(error)[:300]}"]
    if "INTERNAL ASSERT" in str(error):
        return [f"{what}: expected an error that names the argument, got {str(error)[:300]}"]
    return []


def _after(memory: Memory, result: object) -> list[str]:
    found = ["an argument was changed"] if memory.changed() else []
    if any(memory.overlaps(t) for t in tree_leaves(result) if isinstance(t, Tensor) and t.numel()):
        found.append("a result shares the memory of an argument")
    return found


def _compared(case: Case, problem: Problem, arguments: dict, result) -> list[str]:
    outputs, gradients = problem.right()
    if case.operator == "layer":
        if result is None:
            return ["expected results, got None"]
        return _differences(case, zip(["y", "h_n", "c_n"], result, outputs, strict=False))
    if case.operator == "sequence_forward":
        return _differences(case, zip(["y", "h_n", "c_n"], [result[0], *result[1]], outputs, strict=False))
    if case.cell == "rnn_relu" and case.dtype != "float64":
        return []  # at the kink either side is correct
    if case.clip and case.dtype not in ("float64", "float32"):
        return []
    names = ["x", "w_ih", "w_hh", "b_ih", "b_hh", "w_hr"]
    wanted = Wanted(*arguments["wanted"])
    found = Gradients.of_flat(result, wanted, len(outputs) - 1, len(arguments["restart"]))
    pairs = [(n, g, gradients[n]) for n, g in zip(names, found.fixed, strict=True) if g is not None and n in gradients]
    pairs += [(f"state {k}", g, gradients[f"state {k}"]) for k, g in enumerate(found.states) if problem.states]
    pairs += [(f"restart {k}", g, gradients[f"restart {k}"]) for k, g in enumerate(found.restart)]
    return _differences(case, pairs)


def _differences(case: Case, pairs) -> list[str]:
    found = []
    for name, mine, right in pairs:
        if mine.shape != right.shape:
            found.append(f"{name}: expected shape {tuple(right.shape)}, got {tuple(mine.shape)}")
            continue
        if not right.numel():
            continue
        eps = max(torch.finfo(getattr(torch, case.dtype)).eps, 1e-13)
        scale, error = right.abs().max().item(), (mine.double() - right).abs().max().item()
        # A gradient of weights is a sum over all rows, whose terms may cancel.
        least = 1e-2 * max(1, case.T * case.B) ** 0.5 if name[:2] in ("w_", "b_") else 1e-2
        if not error <= ULPS * eps * max(scale, least):
            found.append(f"{name}: error {error:.3e} of values up to {scale:.3e}")
    return found


def _stream(case: Case, memory: Memory) -> list[str]:
    given = streams.problem(case)
    placed = streams.place(case, memory, given)
    placed["layers"] = [[None if w is None else w.contiguous() for w in layer] for layer in placed["layers"]]
    if case.invalid:
        memory.lock()
        what = streams.wild(case, placed)
        return [f"{what}: {text}" for text in _after(memory, None)]
    if case.strides:
        placed["x"] = placed["x"].contiguous()
    memory.lock()
    y, states = streams.run(placed)
    right, last = streams.right(case, given)
    names = ["y", "h_n", "c_n"]
    return _after(memory, [y, states]) + _differences(case, zip(names, [y, *states], [right, *last], strict=False))


if __name__ == "__main__":
    from .driver import main

    sys.exit(main("operators"))
