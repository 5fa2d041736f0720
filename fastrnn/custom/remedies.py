"""Remedies in error messages about operations that a cell's step does not support."""

from __future__ import annotations

BRANCH = "Python cannot branch on a value of the step: use torch.where(condition, a, b)"
NO_NUMBER = "a comparison is not a number: use torch.where(condition, 1.0, 0.0)"
IN_PLACE = "a value cannot be changed in place: write a = a + b instead of a += b"
RAW_INPUT = "x.n(v): expected a cell with raw_input=, whose input matrices multiply vectors of the input's width"
CONVERSION = "kernels compute in float32 (float64 in float64) and convert stored values themselves: omit it"
#: Alternatives to unsupported attributes and functions, by name.
BY_NAME = dict.fromkeys(("float", "double", "half", "bfloat16", "to", "type", "type_as"), CONVERSION)
BY_NAME |= dict.fromkeys(("dtype", "shape", "size", "device"), "a value of the step stands for tensors of every size")
BY_NAME |= dict.fromkeys(("max", "min"), "use torch.maximum(a, b) and torch.minimum(a, b)")
BY_NAME |= dict.fromkeys(("data", "requires_grad", "requires_grad_"), "use fastrnn.custom.detach(v)")
BY_NAME |= dict.fromkeys(("floor", "floor_divide"), "use a - a % 1 for the floor of a")
BY_NAME |= dict.fromkeys(("item", "tolist", "numpy"), "a value of the step has no number")
BY_NAME |= dict.fromkeys(
    ("logical_and", "logical_or", "logical_not"), "comparisons cannot be combined: use one torch.where within another"
)
