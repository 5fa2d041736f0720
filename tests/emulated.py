"""The CUDA kernels on the CPU: tests/cuda, built here as a shared object, and the problems that the tests give it.

The build is kept in build/emulated and made again only when a file that it includes has changed.
"""

from __future__ import annotations

import ctypes
import dataclasses
import fcntl
import hashlib
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn import reference
from fastrnn.cells import CELLS

ROOT = Path(__file__).resolve().parent.parent
HOST = [ROOT / "csrc" / "cuda" / name for name in ("plan.cpp", "drivers.cpp")]
FLAGS = ["-O1", "-g1", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]
FLAGS += ["-DFASTRNN_CUDA_EMULATED", "-DFASTRNN_ISA_CUDA=1", "-DFASTRNN_ISA_NAME=cuda"]
FLAGS += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'cuda'}"]

FORMATS = ("float32", "float64", "bfloat16", "float16", "tf32")  # as enum class Format
DRIVERS = ("auto", "stepwise", "grid", "cluster")  # as enum class Driver
DTYPES = {"tf32": torch.float32, **{name: getattr(torch, name) for name in FORMATS[:4]}}
KB = 1024


class BuildError(RuntimeError):
    """The compiler refused."""


def tools():
    """tools/build_checks.py and the compiler that it finds; raises SystemExit if there is none."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import build_checks

        build_checks.check_ninja()
        return build_checks.find_compiler(build_checks.find_torch_include())
    finally:
        sys.path.remove(str(ROOT / "tools"))


def generated(folder: Path, cells: tuple[str, ...]) -> list[Path]:
    """One unit for each cell, and the list of them."""
    texts = {}
    for cell in cells:
        texts[f"table_{cell}.cpp"] = (
            f'#include "launcher.h"\n#include "cells/{cell}.h"\nnamespace fastrnn::cuda {{\n'
            f'CellKernels {cell}_table() {{ return cell_table<emulator::Launcher, {cell}>("{cell}"); }}\n}}\n'
        )
    declared = "".join(f"CellKernels {cell}_table();\n" for cell in cells)
    listed = ", ".join(f"{cell}_table()" for cell in cells)
    texts["tables.cpp"] = (
        f'#include "tables.h"\nnamespace fastrnn::cuda {{\n{declared}const std::vector<CellKernels>& all_tables() {{\n'
        f"  static const std::vector<CellKernels> tables = {{{listed}}};\n  return tables;\n}}\n}}\n"
    )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        if not (folder / name).is_file() or (folder / name).read_text() != text:
            (folder / name).write_text(text)
    return [folder / name for name in texts]


def build(cells: tuple[str, ...] | None = None, checked: bool = False) -> Path:
    """Path of the shared object. checked: every access of a kernel to memory is looked at."""
    compiler = tools()
    cells = cells or tuple(sorted(path.stem for path in (ROOT / "csrc" / "cells").glob("*.h")))
    flags = [*FLAGS, *(["-DFASTRNN_MEMORY_CHECK=1"] if checked else [])]
    command = [*compiler.command, *flags]
    name = hashlib.sha256(repr((command, compiler.version, cells, checked)).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "emulated" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        units = generated(folder / "units", cells)
        host = [*HOST, *sorted((ROOT / "tests" / "cuda").glob("*.cpp"))]
        # gcc's and clang's own instrumentation, with functions of ours (memory_check.cpp) behind it.
        kernels = [*units, ROOT / "tests" / "cuda" / "mistakes.cpp"]
        sanitize = {path: "-fsanitize=thread" for path in kernels if checked}
        text = ninja_file(command, list(dict.fromkeys([*units, *host])), sanitize)
        if not (folder / "build.ninja").is_file() or (folder / "build.ninja").read_text() != text:
            (folder / "build.ninja").write_text(text)
        done = subprocess.run(["ninja", "-j2"], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(done.stdout)
    return folder / "emulated.so"


def ninja_file(command: list[str], sources: list[Path], extra: dict[Path, str]) -> str:
    def escape(path: object) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    compiler = " ".join(f"'{part}'" for part in command).replace("$", "$$")
    lines = ["rule compile", f"  command = {compiler} $extra -MMD -MF $out.d -c $in -o $out"]
    lines += ["  depfile = $out.d", "  deps = gcc", "rule link", f"  command = {compiler} -shared $in -o $out"]
    objects = []
    for path in sources:
        objects.append(f"{path.stem}.o")
        lines.append(f"build {objects[-1]}: compile {escape(path)}")
        if path in extra:
            lines.append(f"  extra = {extra[path]}")
    return "\n".join([*lines, f"build emulated.so: link {' '.join(objects)}", ""])


_POINTERS = ("offsets", "lengths", "reset")
_WEIGHTS = ("w_hh", "w_hr", "b_hh", "initial0", "initial1")
_FORWARD = ("gates", "extra", "cells", "unprojected", "y", "final0", "final1")
_BACKWARD = ("grad_y", "grad_final0", "grad_final1", "da", "drh", "grad_initial0", "grad_initial1")
_BACKWARD += ("restarts0", "restarts1", "dh")


class Call(ctypes.Structure):
    """As in tests/cuda/library.cpp."""

    _fields_ = (
        [("cell", ctypes.c_char_p)]
        + [(n, ctypes.c_int64) for n in ("format", "driver", "unit_slices", "row_slices", "warps_deep", "chunk")]
        + [(n, ctypes.c_int64) for n in "TBHP"]
        + [(n, ctypes.c_void_p) for n in _POINTERS]
        + [(n, ctypes.c_int64) for n in ("reverse", "training")]
        + [(n, ctypes.c_void_p) for n in (*_WEIGHTS, *_FORWARD, *_BACKWARD)]
    )


TILING = ("units", "unit_slices", "rows", "row_slices", "matrix_rows", "depth", "warps_across", "warps_deep")
TILING += ("shared_bytes", "cluster")


class Outcome(ctypes.Structure):
    _fields_ = (
        [(n, ctypes.c_int64) for n in ("error", "driver", "possible", *TILING)]
        + [("microseconds", ctypes.c_double), ("text", ctypes.c_char * 1000)]
    )

    def message(self) -> str:
        return self.text.decode()

    def tiling(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in TILING}


@dataclass(frozen=True)
class Machine:
    """An emulated GPU. largest_cluster 0: it has no clusters."""

    processors: int = 8
    shared_bytes: int = 227 * KB
    largest_cluster: int = 8


@dataclass(frozen=True)
class Way:
    """How a problem is run. slices: (units, rows) of a persistent driver; None leaves it to csrc/cuda/plan.cpp.

    warps_deep: warps that share the depth of the product, 0 for all that there are. chunk: steps of a graph that is
    launched again and again (step-wise driver), 0 for single launches.
    """

    driver: str = "auto"
    slices: tuple[int, int] | None = None
    warps_deep: int = 0
    chunk: int = 0
    machine: Machine = Machine()
    seed: int = 0


class Failure(AssertionError):
    """The emulator refused a launch or stopped it."""


class Library:
    def __init__(self, path: Path):
        self.lib = ctypes.CDLL(str(path))
        self.lib.emulated_allocate.restype = ctypes.c_void_p
        self.lib.emulated_allocate.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64]
        self.lib.emulated_machine.argtypes = [ctypes.c_int64] * 4
        self.lib.emulated_choose.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]

    def set_machine(self, way: Way) -> None:
        m = way.machine
        self.lib.emulated_machine(m.processors, m.shared_bytes, m.largest_cluster, way.seed)

    def buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, values: Tensor | None = None) -> Tensor:
        """A tensor in the emulated GPU's memory, until release(): full of NaN, or a copy of `values`."""
        count = max(1, int(torch.Size(shape).numel()))
        size = dtype.itemsize
        address = self.lib.emulated_allocate(name.encode(), count * size, size, values is not None)
        tensor = torch.frombuffer((ctypes.c_char * (count * size)).from_address(address), dtype=dtype)
        tensor = tensor[: torch.Size(shape).numel()].view(shape)
        return tensor if values is None else tensor.copy_(values)

    def release(self) -> None:
        self.lib.emulated_release()

    def numbers(self, cell: str) -> tuple[int, ...]:
        """G, S, K, the first gate of which the gradient is split."""
        values = (ctypes.c_int64 * 4)()
        assert self.lib.emulated_cell(cell.encode(), values), cell
        return tuple(values)


@dataclass
class Problem:
    """One layer in one direction, its recurrence alone. Values are those of `fmt`, in float64.

    layout: "plain", "packed", "lengths" (with rows of no steps), "reset" or "lengths+reset". whole: small integers, so
    that the relu cell has no rounding error in any format.
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
        spec, g = CELLS[self.cell], torch.Generator().manual_seed(self.seed)
        T, B, H, G = self.T, self.B, self.H, CELLS[self.cell].gates
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
            return values.to(DTYPES[self.fmt]).double()

        self.inputs["wx"] = draw(self.N, G * H)
        self.inputs["w_hh"] = draw(G * H, P, scale=2 * P**-0.5)
        if self.bias:
            self.inputs["b_hh"] = draw(G * H)
        if P != H:
            self.inputs["w_hr"] = draw(P, H, scale=2 * H**-0.5)
        widths = [P, *[H] * (len(spec.states) - 1)]
        for s, width in enumerate(widths):
            if self.initial:
                self.inputs[f"initial{s}"] = draw(B, width)
            if self.grad_final:
                self.inputs[f"grad_final{s}"] = draw(B, width)
        if self.grad_y:
            self.inputs["grad_y"] = draw(self.N, P)
        if "lengths" in self.inputs:  # what lies beyond a row's end is nobody's business
            self.inputs["wx"][~self.active()] = float("nan")
            if self.grad_y:
                self.inputs["grad_y"][~self.active()] = float("nan")

    @property
    def N(self) -> int:
        return int(self.sizes.sum()) if self.sizes is not None else self.T * self.B

    def active(self) -> Tensor:
        """(N) bool, rows at which the network takes a step."""
        if "lengths" not in self.inputs:
            return torch.ones(self.N, dtype=torch.bool)
        return (torch.arange(self.T).unsqueeze(1) < self.inputs["lengths"]).flatten()


def saved_values(cell: str, wx: Tensor, rh: Tensor) -> list[Tensor]:
    """What a cell's header says that it saves, each (rows, H); README.md of csrc/cells."""
    if cell == "lstm":
        i, f, g, o = (wx + rh).chunk(4, -1)
        return [i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()]
    if cell == "gru":
        (wr, wz, wn), (rr, rz, rn) = wx.chunk(3, -1), rh.chunk(3, -1)
        r = (wr + rr).sigmoid()
        return [r, (wz + rz).sigmoid(), (wn + r * rn).tanh(), rn]
    return []


def exact(p: Problem, numbers: tuple[int, ...]) -> dict[str, Tensor]:
    """All that the kernels compute, by name, in float64 by fastrnn.reference and autograd."""
    spec, inputs = CELLS[p.cell], p.inputs
    G, S, _, split = numbers
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
    outputs = [y.reshape(p.N, P), *finals]
    names = ["grad_y", *(f"grad_final{s}" for s in range(S))]
    seeds = [inputs.get(name, torch.zeros_like(o)).nan_to_num() for name, o in zip(names, outputs, strict=True)]
    torch.autograd.backward(outputs, seeds)
    found = {"y": outputs[0], **{f"final{s}": f for s, f in enumerate(finals)}, "da": wx.grad}
    found |= {f"grad_initial{s}": state.grad for s, state in enumerate(states)}
    found |= by_rows(p, records, G, split, P)
    return {name: tensor.detach() for name, tensor in found.items()}


def by_rows(p: Problem, records: list, G: int, split: int, P: int) -> dict[str, Tensor]:
    """What the recorded steps say, at the rows where the kernels leave it."""
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
                found[name] = torch.zeros(p.N, value.shape[1], dtype=torch.float64)
            found[name][first : first + len(value)] = value.detach()
    for name in ("dh", "unprojected", "drh"):
        found[name] = torch.where(p.active().unsqueeze(1), found[name], 0)
    return found


def shapes(p: Problem, numbers: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], bool]]:
    """Outputs of both kernels: shape, and whether it has the format that the kernel computes in."""
    G, S, K, split = numbers
    P = p.P or p.H
    found = {"y": ((p.N, P), False), "da": ((p.N, G * p.H), False), "dh": ((p.N, P), False)}
    if K > G:
        found["extra"] = ((p.N, (K - G) * p.H), False)
    if S > 1:
        found["cells"] = ((p.N, (S - 1) * p.H), True)
    if P != p.H:
        found["unprojected"] = ((p.N, p.H), False)
    if split < G:
        found["drh"] = ((p.N, (G - split) * p.H), False)
    for s in range(S):
        width = p.H if s else P
        found[f"final{s}"] = ((p.B, width), False)
        if p.want_initial:
            found[f"grad_initial{s}"] = ((p.B, width), False)
        if "reset" in p.inputs and p.want_initial:
            found[f"restarts{s}"] = ((p.B, width), True)
    return found


def run(library: Library, p: Problem, way: Way, training: bool = True) -> tuple[dict[str, Tensor], list[Outcome]]:
    """Forward and, if training, backward with what forward saved: all outputs in float64, and how each was run."""
    numbers = library.numbers(p.cell)
    dtype = DTYPES[p.fmt]
    compute = torch.float64 if p.fmt == "float64" else torch.float32
    library.set_machine(way)
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
        return {name: tensor.double() for name, tensor in out.items()}, outcomes
    finally:
        library.release()


def make_call(p: Problem, way: Way, training: bool, buffers: dict[str, Tensor]) -> Call:
    call = Call(cell=p.cell.encode(), format=FORMATS.index(p.fmt), driver=DRIVERS.index(way.driver))
    call.unit_slices, call.row_slices = way.slices or (0, 0)
    call.warps_deep, call.chunk = way.warps_deep, way.chunk
    call.T, call.B, call.H, call.P = p.T, p.B, p.H, p.P or p.H
    call.reverse, call.training = p.reverse, training
    for name, tensor in buffers.items():
        setattr(call, name, tensor.data_ptr())
    return call


def start(function, call: Call) -> Outcome:
    outcome = Outcome()
    function(ctypes.byref(call), ctypes.byref(outcome))
    if outcome.error != 0 or not outcome.possible:
        raise Failure(f"error {outcome.error}: {outcome.message()}")
    return outcome


#: Largest difference allowed, relative to the largest of the exact values.
TOLERANCE = {"float64": 1e-13, "float32": 2e-6, "tf32": 3e-3, "float16": 4e-3, "bfloat16": 3e-2}


def differences(p: Problem, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, float]:
    """Largest difference of each output, relative to the largest of the exact values."""
    result = {}
    for name, value in found.items():
        if name.startswith("restarts") or (name == "gates" and "gates" not in wanted):
            continue
        expected = wanted[name]
        if name in ("gates", "extra", "cells"):  # only where there is a step
            value, expected = value[p.active()], expected[p.active()]
        assert value.shape == expected.shape, name
        if expected.numel() > 0:
            scale = expected.abs().max().item() or 1.0
            difference = (value - expected).abs().max().item()
            result[name] = difference / scale if difference == difference else float("inf")
    return result


def check(library: Library, p: Problem, way: Way, tolerance: float | None = None) -> list[Outcome]:
    """Runs forward and backward, and fails with the first output that is not as it has to be."""
    found, outcomes = run(library, p, way)
    wanted = exact(p, library.numbers(p.cell))
    allowed = TOLERANCE[p.fmt] if tolerance is None else tolerance
    for name, difference in differences(p, found, wanted).items():
        assert difference <= allowed, f"{name} differs by {difference:.2e} ({allowed:.0e} allowed): {p}, {way}"
    return outcomes
