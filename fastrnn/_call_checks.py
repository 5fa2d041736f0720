"""Checks of shapes, dtypes and devices for the operators' fake kernels; csrc/ops/checked.h, layout.cpp and
backward.cpp in Python.

A call on meta or fake tensors raises where the kernels would. Only the values of ``batch_sizes`` are read, if they
exist. Sizes may be symbolic, so every comparison goes through ``torch._check``, which turns an undecidable one into a
guard or a run-time assertion.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastrnn._surroundings import is_wrapped

if TYPE_CHECKING:
    from fastrnn._call import Call
    from fastrnn._ops import SavedTensor, Traits

DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
_INTEGERS = frozenset(
    (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64)
)
_MOST_UNITS = 1 << 40  # csrc/ops/cell.h: kTooManyUnits
#: A size that is a value of batch_sizes and unknown at trace time.
UNKNOWN = None
Size = Any  # int or SymInt; or UNKNOWN


def check_devices(like: Tensor, named: dict[str, Tensor | None]) -> None:
    """Raise RuntimeError, as torch does, unless all tensors are on the device of ``like``, which messages call x."""
    for name, tensor in named.items():
        if tensor is not None and tensor.device != like.device:
            raise RuntimeError(
                f"{name}: expected all tensors to be on the same device, got {name} on {tensor.device} and x on "
                f"{like.device}"
            )


def check_present(t: Tensor | None, name: str) -> None:
    """Raise TypeError for None in place of a tensor; the dispatcher passes None on to fake kernels."""
    if t is None:
        raise TypeError(f"{name}: expected a Tensor, got None")


def check_dtype(dtype: torch.dtype) -> None:
    """Raise TypeError for a dtype without kernels."""
    if dtype not in DTYPES:
        raise TypeError(f"input: expected float32, float64, bfloat16 or float16, got {dtype}")


def has_values(t: Tensor) -> bool:
    """Return True if the values of a tensor can be read inside a fake kernel: beside meta tensors, not fake ones."""
    return type(t) is Tensor and t.is_cpu and not is_wrapped(t)


class Checked:
    """Sizes of a call whose arguments have been checked.

    Args:
        call: the arguments.
        traits: the traits of the cell.
        rows_like: the tensor whose leading dimensions are those of the rows (x, or y in backward).
    """

    def __init__(self, call: Call, traits: Traits, rows_like: Tensor) -> None:
        check_present(rows_like, "input")
        w_hh, w_hr = call.weights.w_hh, call.weights.w_hr
        self.call, self.traits, self.like = call, traits, w_hh
        self._check_layout(rows_like, *call.layout)
        _expect(w_hh.dim() == 2, f"w_hh: expected shape [{traits.recurrent}·H, P], got {_shape(w_hh)}")
        if w_hr is not None and not traits.projectable:
            raise ValueError(f"w_hr: the cell {call.cell} cannot be used with a projection")
        rows, self.projected = w_hh.shape
        self.hidden = (rows - traits.parameters) // traits.recurrent if traits.recurrent else self.projected
        expected = traits.recurrent * self.hidden + traits.parameters
        _expect(rows == expected, f"w_hh: expected shape [{traits.recurrent}·H + {traits.parameters}, P], got {rows}")
        text = f"w_hh: expected at least one hidden unit, less than {_MOST_UNITS}, and an h of at least one, got shape "
        text += str(_shape(w_hh))
        for size in (self.hidden, self.projected):
            _expect(size > 0, text)
        _expect(self.hidden < _MOST_UNITS, text)
        self.check(w_hh, (rows, self.projected), "w_hh")
        if w_hr is not None:
            self.check(w_hr, (self.projected, self.hidden), "w_hr")
        else:
            text = f"w_hh: expected shape [{expected}, {self.hidden}], got {_shape(w_hh)}"
            _expect(self.projected == self.hidden, text)

    @property
    def saved(self) -> tuple[SavedTensor, ...]:
        """The tensors that a forward pass saves for backward."""
        return self.traits.saved_tensors(self.call.weights.w_hr is not None)

    def rows_of(self, width: Size) -> tuple[Size, ...]:
        """The shape of rows of this width in the caller's layout."""
        return (*self.lead, width)

    def _check_layout(
        self, x: Tensor, batch_sizes: Tensor | None, lengths: Tensor | None, reset: Tensor | None
    ) -> None:
        dims = 3 if batch_sizes is None else 2
        _expect(x.dim() == dims, f"input must have {dims} dimensions, got {x.dim()}")
        self.lead = tuple(x.shape[:-1])
        if batch_sizes is not None:
            if lengths is not None or reset is not None:
                raise ValueError("packed input takes neither lengths nor reset")
            text = "batch_sizes: expected a non-empty one-dimensional int64 tensor on the CPU, got "
            text += f"{batch_sizes.dtype} of shape {_shape(batch_sizes)} on {batch_sizes.device}"
            usual = batch_sizes.dtype is torch.int64 and batch_sizes.dim() == 1
            if not usual or batch_sizes.device.type not in ("cpu", self._meta()):
                raise ValueError(text)
            _expect_value(batch_sizes.shape[0] > 0, text)
            self.batch: Size = _checked_counts(batch_sizes, x.shape[0])[0] if has_values(batch_sizes) else UNKNOWN
            return
        steps, self.batch = self.lead
        _expect(steps > 0, "Expected sequence length to be larger than 0 in RNN")
        if reset is not None:
            text = f"reset: expected a bool tensor of shape [{steps}, {self.batch}], got {reset.dtype} {_shape(reset)}"
            _expect_value(reset.dtype is torch.bool and reset.dim() == 2, text)
            _expect_value(reset.shape[0] == steps, text)
            _expect_value(reset.shape[1] == self.batch, text)
            self._check_place(reset, "reset")
        if lengths is not None:
            text = f"lengths: expected an integer tensor of shape [{self.batch}], got {lengths.dtype} {_shape(lengths)}"
            _expect_value(lengths.dtype in _INTEGERS and lengths.dim() == 1, text)
            _expect_value(lengths.shape[0] == self.batch, text)
            self._check_place(lengths, "lengths")

    def _meta(self) -> str:
        """Return "meta" if the call itself is on the meta device."""
        return "meta" if self.like.is_meta else ""

    def _check_place(self, t: Tensor, name: str) -> None:
        """Lengths and resets may stay on the CPU if the other tensors are on a GPU."""
        on = t.device
        _expect(
            on == self.like.device or on.type == "cpu" or (on.type == "cuda" and self.like.device.type == "cpu"),
            f"{name}: expected a tensor on {self.like.device} or the CPU, got one on {on}",
        )

    def width(self, state: int) -> Size:
        """Return P for h, H for the other states."""
        return self.hidden if state else self.projected

    def check(self, t: Tensor, sizes: Sequence[Size], name: str) -> None:
        """Raise RuntimeError unless ``t`` has these sizes and the dtype and device of the call."""
        check_present(t, name)
        like = self.like
        text = f"{name}: expected a dense tensor on {like.device}, got {t.layout} on {t.device}"
        _expect(t.device == like.device and t.layout is torch.strided, text)
        _expect(t.dtype is like.dtype, f"{name}: expected dtype {like.dtype}, got {t.dtype}")
        text = f"{name}: expected shape {list(sizes)}, got {_shape(t)}"
        _expect(t.dim() == len(sizes), text)
        for got, expected in zip(t.shape, sizes, strict=True):
            if expected is not UNKNOWN:
                _expect(got == expected, text)

    def check_rows(self, t: Tensor, width: Size, name: str) -> None:
        """Run `check` for a tensor with the call's leading dimensions."""
        self.check(t, self.rows_of(width), name)

    def check_inputs(self) -> None:
        """Run `check` for x, the input weights, the biases and the states, where present."""
        call, traits = self.call, self.traits
        w_ih, b_ih, b_hh = call.weights.w_ih, call.weights.b_ih, call.weights.b_hh
        wide = traits.gates * self.hidden
        if w_ih is not None:
            if w_ih.dim() == 0:
                raise IndexError("w_ih: expected shape [G·H, I], got a tensor without dimensions")
            self.check(w_ih, (wide, w_ih.shape[-1]), "w_ih")
        if b_ih is not None:
            self.check(b_ih, (wide,), "b_ih")
        if b_hh is not None:
            self.check(b_hh, (traits.recurrent * self.hidden,), "b_hh")
        self.check_rows(call.x, wide if w_ih is None else w_ih.shape[-1], "x")
        self._check_states(call.states, "states")
        _expect(not call.restart or call.reset is not None, "restart: expected none without reset, got some")
        self._check_states(call.restart, "restart")

    def _check_states(self, states: Sequence[Tensor], name: str) -> None:
        if not states:
            return
        count = self.traits.states
        _expect(len(states) == count, f"{name}: expected {count} tensors, got {len(states)}")
        if self.batch is UNKNOWN and states[0].dim() > 0:
            self.batch = states[0].shape[0]
        for k, state in enumerate(states):
            self.check(state, (self.batch, self.width(k)), name)

    def check_results(self, y: Tensor, saved: Sequence[Tensor]) -> None:
        """Run `check` for the results of the forward pass."""
        self.check_rows(y, self.projected, "y")
        text = "reserve: expected what a forward pass with training=True returned, got "
        _expect(len(saved) == len(self.saved), f"{text}{len(saved)} tensors")
        dtype, rows = self.like.dtype, 1
        for size in self.lead:
            rows = rows * size
        for k, (t, expected) in enumerate(zip(saved, self.saved, strict=True)):
            width = expected.width(self.hidden)
            there = expected.per_unit > 0 or expected.constant > 0
            right = (torch.float64 if dtype == torch.float64 else torch.float32) if expected.compute else dtype
            text = (
                f"reserve: expected what the forward pass returned, got {t.dtype} of shape {_shape(t)} at position {k}"
            )
            _expect(t.device == self.like.device and (not there or t.dtype is right), text)
            _expect(t.numel() == (rows * width if there else 0), text)

    def check_grads(self, grad_y: Tensor | None, grad_final: Sequence[Tensor | None]) -> None:
        """Run `check` for the gradients of y and of the final states."""
        count = self.traits.states
        usual = len(grad_final) in (0, count)
        _expect(usual, f"grad_final: expected {count} gradients, got {len(grad_final)}")
        if grad_y is not None:
            self.check_rows(grad_y, self.projected, "grad_y")
        for k, grad in enumerate(grad_final):
            if grad is not None:
                self.check(grad, (self.batch, self.width(k)), "grad_final")


def _checked_counts(batch_sizes: Tensor, rows: Size) -> list[int]:
    """Return the batch rows of each time step. Raise ValueError unless they are valid for a packed input."""
    counts: list[int] = batch_sizes.tolist()
    for t, n in enumerate(counts):
        if n <= 0 or (t > 0 and n > counts[t - 1]):
            raise ValueError(f"batch_sizes: expected positive numbers that never grow, got {n} at step {t}")
    if sum(counts) != rows:
        raise ValueError(
            f"batch_sizes: expected a sum equal to the rows of the packed input, {rows}, got {sum(counts)}"
        )
    return counts


def _shape(t: Tensor) -> list[Any]:
    return list(t.shape)


def _expect(condition: Any, text: str) -> None:
    torch._check(condition, lambda: text)


def _expect_value(condition: Any, text: str) -> None:
    torch._check_value(condition, lambda: text)
