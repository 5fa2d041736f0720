"""Recurrences for the emulated CUDA kernels, run forward and backward, and their exact results."""

from __future__ import annotations

import ctypes
import dataclasses
import random
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from emulated import DRIVERS, DTYPES, FORMATS, Call, Library, Machine, Outcome, Sizes
from torch import Tensor

from fastrnn import reference
from fastrnn._ops import TRAITS
from fastrnn.cells import find

BIG = Machine()


@dataclass(frozen=True)
class Way:
    """The way to run a problem. slices: (units, rows) of a persistent driver; None leaves it to csrc/cuda/plan.cpp.

    warps_deep: warps that share the depth of the product, 0 for all.
    """

    driver: str = "auto"
    slices: tuple[int, int] | None = None
    warps_deep: int = 0
    machine: Machine = BIG
    seed: int = 0


class LaunchError(AssertionError):
    """The emulator rejected a launch or stopped it."""


@dataclass
class Problem:
    """The recurrence of one layer in one direction. Values are those of `fmt`, in float64.

    layout: "plain", "packed", "lengths" (with rows of no steps), "reset" or "lengths+reset". whole: small integers, so
    that the relu cell has no rounding error in any dtype.
    """

    cell: str
    T: int
    B: int
    H: int
    fmt: str = "float32"
    P: int = 0
    layout: str = "plain"
    reverse: bool = False
    bias: bool = True
    initial: bool = True
    grad_y: bool = True
    grad_final: bool = True
    want_initial: bool = True
    whole: bool = False
    seed: int = 0
    inputs: dict[str, Tensor] = field(init=False, repr=False)
    sizes: Tensor | None = field(init=False, default=None, repr=False)

    def __post_init__(self):
        spec, g = find(self.cell), torch.Generator().manual_seed(self.seed)
        T, B, H, G, R = self.T, self.B, self.H, spec.gates, TRAITS[self.cell].recurrent
        P = self.P or H
        self.inputs = {}
        if self.layout == "packed":
            lengths = torch.randint(1, T + 1, (B,), generator=g).sort(descending=True)[0]
            lengths[0] = T
            self.sizes = (torch.arange(T).unsqueeze(1) < lengths).sum(1)
            self.inputs["offsets"] = F.pad(self.sizes.cumsum(0), (1, 0))
        if "lengths" in self.layout:
            self.inputs["lengths"] = torch.randint(0, T + 1, (B,), generator=g)
        if "reset" in self.layout:
            self.inputs["reset"] = torch.rand(T, B, generator=g) < 0.4

        def draw(*shape: int, scale: float = 1.0) -> Tensor:
            values = (2 * torch.rand(shape, generator=g, dtype=torch.float64) - 1) * scale
            if self.whole:
                values = torch.randint(-1, 2, shape, generator=g, dtype=torch.float64)
                if self.T > 2 and scale != 1:  # otherwise they would exceed what 8 bits can represent
                    values *= torch.rand(shape, generator=g) < min(1, 2 / P)
            return values.to(DTYPES[self.fmt]).double()

        self.inputs["wx"] = draw(self.rows, G * H)
        self.inputs["w_hh"] = draw(R * H, P, scale=2 * P**-0.5)
        if self.bias:
            self.inputs["b_hh"] = draw(R * H)
        if spec.parameters:
            self.inputs["parameters"] = draw(spec.parameters, H)
        if P != H:
            self.inputs["w_hr"] = draw(P, H, scale=2 * H**-0.5)
        widths = [P, *[H] * (len(spec.states) - 1)]
        for s, width in enumerate(widths):
            if self.initial:
                self.inputs[f"initial{s}"] = draw(B, width)
            if self.grad_final:
                self.inputs[f"grad_final{s}"] = draw(B, width)
        if self.grad_y:
            self.inputs["grad_y"] = draw(self.rows, P)
        if "lengths" in self.inputs:  # values beyond a row's end are not compared
            self.inputs["wx"][~self.active()] = float("nan")
            if self.grad_y:
                self.inputs["grad_y"][~self.active()] = float("nan")

    @property
    def rows(self) -> int:
        """Return N, the rows of all steps together."""
        return int(self.sizes.sum()) if self.sizes is not None else self.T * self.B

    def active(self) -> Tensor:
        """Return (N) bool: the rows at which the network takes a step."""
        if "lengths" not in self.inputs:
            return torch.ones(self.rows, dtype=torch.bool)
        return (torch.arange(self.T).unsqueeze(1) < self.inputs["lengths"]).flatten()


def saved_values(cell: str, wx: Tensor, rh: Tensor) -> list[Tensor]:
    """Compute the values that a cell saves according to its header, each (rows, H); README.md of csrc/cells."""
    if cell == "lstm":
        i, f, g, o = (wx + rh).chunk(4, -1)
        return [i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()]
    if cell == "gru":
        (wr, wz, wn), (rr, rz, rn) = wx.chunk(3, -1), rh.chunk(3, -1)
        r = (wr + rr).sigmoid()
        return [r, (wz + rz).sigmoid(), (wn + r * rn).tanh(), rn]
    return []


def exact(p: Problem, numbers: tuple[int, ...]) -> dict[str, Tensor]:
    """Compute all results of the kernels, by name, in float64 with fastrnn.reference and autograd."""
    spec, inputs = find(p.cell), p.inputs
    G, S, _, split, *_ = numbers
    P = p.P or p.H
    w_hr, records = inputs.get("w_hr"), []

    def step(wx: Tensor, rh: Tensor, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        h, *rest = spec.step(wx, rh, states)
        rh.retain_grad()
        nothing = torch.zeros(len(h), P, dtype=torch.float64, requires_grad=True)  # its gradient is that of h
        records.append((wx, rh, h, rest, nothing))
        return ((h if w_hr is None else F.linear(h, w_hr)) + nothing, *rest)

    wx = inputs["wx"].clone().requires_grad_()
    states = [inputs.get(f"initial{s}", torch.zeros(p.B, p.H if s else P)).double() for s in range(S)]
    states = tuple(s.clone().requires_grad_() for s in states)
    x = wx if p.sizes is not None else wx.view(p.T, p.B, -1)
    weights = (None, inputs["w_hh"], None, inputs.get("b_hh"), None)
    w_hh = inputs["w_hh"].clone().requires_grad_()  # so that rh has a gradient without initial states too
    weights = (None, w_hh, *weights[2:])
    y, finals = reference.sequence(
        dataclasses.replace(spec, step=step), x, weights, states, p.sizes, inputs.get("lengths"), inputs.get("reset"),
        p.reverse,
    )  # fmt: skip
    outputs = [y.reshape(p.rows, P), *finals]
    names = ["grad_y", *(f"grad_final{s}" for s in range(S))]
    seeds = [inputs.get(name, torch.zeros_like(o)).nan_to_num() for name, o in zip(names, outputs, strict=True)]
    torch.autograd.backward(outputs, seeds)
    found = {"y": outputs[0], **{f"final{s}": f for s, f in enumerate(finals)}, "da": wx.grad}
    found |= {f"grad_initial{s}": state.grad for s, state in enumerate(states)}
    found |= by_rows(p, records, G, split, P)
    return {name: tensor.detach() for name, tensor in found.items()}


def by_rows(p: Problem, records: list, G: int, split: int, P: int) -> dict[str, Tensor]:
    """Return the values of the recorded steps, at the rows where the kernels store them."""
    order = list(range(p.T))[:: -1 if p.reverse else 1]
    found = {}
    for t, (wx, rh, h, rest, nothing) in zip(order, records, strict=True):
        saved = saved_values(p.cell, wx, rh)
        each = {"dh": nothing.grad, "unprojected": h, "drh": rh.grad[:, split * p.H :]}
        if saved:
            each["gates"] = torch.cat(saved[:G], -1)
            each["extra"] = torch.cat([*saved[G:], h[:, :0]], -1)
        each["cells"] = torch.cat([*rest, h[:, :0]], -1)
        first = int(p.inputs["offsets"][t]) if p.sizes is not None else t * p.B
        for name, value in each.items():
            if name not in found:
                found[name] = torch.zeros(p.rows, value.shape[1], dtype=torch.float64)
            found[name][first : first + len(value)] = value.detach()
    for name in ("dh", "unprojected", "drh"):
        found[name] = torch.where(p.active().unsqueeze(1), found[name], 0)
    return found


def shapes(p: Problem, numbers: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Return the outputs of both kernels: shape, and whether the dtype is that of the kernel's arithmetic."""
    G, S, K, split, R, R2, Q = numbers
    P = p.P or p.H
    found = {"y": ((p.rows, P), False), "da": ((p.rows, G * p.H), False), "dh": ((p.rows, P), False)}
    if K > G:
        found["extra"] = ((p.rows, (K - G) * p.H), False)
    if S > 1:
        found["cells"] = ((p.rows, (S - 1) * p.H), True)
    if P != p.H or R2 > 0:
        found["unprojected"] = ((p.rows, p.H), False)
    if split < R:
        found["drh"] = ((p.rows, (R - split) * p.H), False)
    if Q > 0:
        found["dparameters"] = ((p.rows, Q * p.H), False)
    for s in range(S):
        width = p.H if s else P
        found[f"final{s}"] = ((p.B, width), False)
        if p.want_initial:
            found[f"grad_initial{s}"] = ((p.B, width), False)
        if "reset" in p.inputs and p.want_initial:
            found[f"restarts{s}"] = ((p.B, width), True)
    return found


def run(library: Library, p: Problem, way: Way, training: bool = True) -> tuple[dict[str, Tensor], list[Outcome]]:
    """Run forward and, if training, backward on its saved values: all outputs in float64, and the outcome of each."""
    numbers = library.numbers(p.cell)
    dtype = DTYPES[p.fmt]
    compute = torch.float64 if p.fmt == "float64" else torch.float32
    library.set_machine(way.machine, way.seed)
    try:
        given = {}
        for name, value in p.inputs.items():
            kind = value.dtype if name in ("offsets", "lengths", "reset") else dtype
            given[name] = library.buffer(name, tuple(value.shape), kind, value)
        gates = given.pop("wx")
        out = {"gates": gates}
        for name, (shape, computed) in shapes(p, numbers).items():
            zeros = torch.zeros(shape) if name.startswith("restarts") else None
            inference = not training and name in ("extra", "cells", "unprojected")
            if not inference:
                out[name] = library.buffer(name, shape, compute if computed else dtype, zeros)
        kept = {name: tensor.clone() for name, tensor in given.items()}
        call = make_call(p, way, training, {**given, **out})
        outcomes = [start(library.lib.emulated_forward, call)]
        if training:
            after_forward = {name: out[name].clone() for name in ("gates", "y", "extra", "cells") if name in out}
            outcomes.append(start(library.lib.emulated_backward, call))
            kept |= after_forward
        for name, before in kept.items():
            now = given[name] if name in given else out[name]
            assert torch.equal(now.view(torch.uint8), before.view(torch.uint8)), f"{name} was changed"
        return {name: tensor.to(torch.float64, copy=True) for name, tensor in out.items()}, outcomes
    finally:
        library.release()


def make_call(p: Problem, way: Way, training: bool, buffers: dict[str, Tensor]) -> Call:
    call = Call(cell=p.cell.encode(), format=FORMATS.index(p.fmt), driver=DRIVERS.index(way.driver))
    call.unit_slices, call.row_slices = way.slices or (0, 0)
    call.warps_deep = way.warps_deep
    call.T, call.B, call.H, call.P = p.T, p.B, p.H, p.P or p.H
    call.reverse, call.training = p.reverse, training
    for name, tensor in buffers.items():
        setattr(call, name, tensor.data_ptr())
    return call


def start(function, call: Call) -> Outcome:
    outcome = Outcome()
    function(ctypes.byref(call), ctypes.byref(outcome))
    if outcome.error != 0 or not outcome.possible:
        raise LaunchError(f"error {outcome.error}: {outcome.message()}")
    return outcome


#: Largest allowed difference, relative to the largest of the exact values.
TOLERANCE = {"float64": 1e-13, "float32": 2e-6, "tf32": 3e-3, "float16": 4e-3, "bfloat16": 3e-2}


def differences(p: Problem, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """Return the largest difference of each output, relative to the largest exact value (or 0.25)."""
    result = {}
    for name, value in found.items():
        if name.startswith("restarts") or (name == "gates" and "gates" not in wanted):
            continue
        expected = wanted[name]
        if name in ("gates", "extra", "cells"):  # only where there is a step
            value, expected = value[p.active()], expected[p.active()]
        assert value.shape == expected.shape, name
        if expected.numel() > 0:
            # A single value may be small because large ones cancelled.
            scale = max(expected.abs().max().item(), 0.25)
            difference = (value - expected).abs().max().item()
            result[name] = difference / scale if difference == difference else float("inf")
    return result


def check(library: Library, p: Problem, way: Way, tolerance: float | None = None) -> list[Outcome]:
    """Run forward and backward, and fail at the first output that differs from the exact one."""
    found, outcomes = run(library, p, way)
    wanted = exact(p, library.numbers(p.cell))
    allowed = TOLERANCE[p.fmt] if tolerance is None else tolerance
    for name, difference in differences(p, found, wanted).items():
        assert difference <= allowed, f"{name} differs by {difference:.2e} ({allowed:.0e} allowed): {p}, {way}"
    return outcomes


def random_sizes(count: int) -> list[Sizes]:
    """Draw sizes for csrc/cuda/plan.cpp to choose a driver for."""
    r = random.Random(0)
    some = []
    for _ in range(count):
        H = r.choice([1, 2, 7, 8, 9, 31, 64, 100, 128, 200, 256, 384, 500, 512, 650, 1024, 1536, 2048, 4096])
        B = r.choice([1, 2, 8, 15, 16, 32, 33, 64, 100, 128, 257, 1000])
        some.append(
            Sizes(r.choice(["lstm", "gru", "rnn_tanh", "rnn_relu"]), B, H, r.choice(FORMATS), 0, r.random() < 0.5)
        )
    return some
