"""The CUDA kernels on the CPU: builds tests/cuda as a shared object and loads it; emulated_problems.py uses it.

The build is kept in build/emulated and redone only when a file that it includes has changed.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import hashlib
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
HOST = [ROOT / "csrc" / "cuda" / name for name in ("plan.cpp", "drivers.cpp")]
FLAGS = ["-O1", "-g1", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]
FLAGS += ["-DFASTRNN_CUDA_EMULATED", "-DFASTRNN_ISA_CUDA=1", "-DFASTRNN_ISA_NAME=cuda"]
FLAGS += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests' / 'cuda'}"]

FORMATS = ("float32", "float64", "bfloat16", "float16", "tf32")  # in the order of enum class Format
DRIVERS = ("auto", "stepwise", "grid", "cluster")  # in the order of enum class Driver
DTYPES = {"tf32": torch.float32, **{name: getattr(torch, name) for name in FORMATS[:4]}}
KB = 1024


class BuildError(RuntimeError):
    """The compiler failed."""


def tools():
    """Return tools/build_checks.py and the compiler that it finds; raises SystemExit if there is none."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import build_checks

        build_checks.check_ninja()
        return build_checks.find_compiler(build_checks.find_torch_include())
    finally:
        sys.path.remove(str(ROOT / "tools"))


def generated(folder: Path, cells: tuple[str, ...], own: Mapping[str, str] | None = None) -> list[Path]:
    """Write one unit per cell, and the list of them. own: headers of further cells, generated from Python."""
    texts, own = {}, own or {}
    for cell in (*cells, *own):
        header = f"own_{cell}.h" if cell in own else f"cells/{cell}.h"
        texts[f"table_{cell}.cpp"] = (
            f'#include "launcher.h"\n#include "{header}"\nnamespace fastrnn::cuda {{\n'
            f'CellKernels {cell}_table() {{ return cell_table<emulator::Launcher, {cell}>("{cell}"); }}\n}}\n'
        )
    declared = "".join(f"CellKernels {cell}_table();\n" for cell in (*cells, *own))
    listed = ", ".join(f"{cell}_table()" for cell in (*cells, *own))
    texts["tables.cpp"] = (
        f'#include "tables.h"\nnamespace fastrnn::cuda {{\n{declared}const std::vector<CellKernels>& all_tables() {{\n'
        f"  static const std::vector<CellKernels> tables = {{{listed}}};\n  return tables;\n}}\n}}\n"
    )
    folder.mkdir(parents=True, exist_ok=True)
    units = [folder / name for name in texts]
    texts |= {f"own_{cell}.h": header for cell, header in own.items()}
    for name, text in texts.items():
        if not (folder / name).is_file() or (folder / name).read_text() != text:
            (folder / name).write_text(text)
    return units


@functools.cache
def library(checked: bool = False, own: tuple[tuple[str, str], ...] = ()) -> Library:
    """Return the library, built if needed; skip the test where it cannot be built.

    checked: every memory access of a kernel is checked; only for two cells, which cover all relevant differences.
    own: custom cells instead of the built-in ones, (name, header) each.
    """
    if sys.platform != "linux":
        pytest.skip("the emulator runs on Linux only")
    try:
        if checked and not tools().version.startswith("gcc"):
            pytest.skip("clang does not instrument memset, where gcc reports each access")
        path = build(("gru", "lstm") if checked else None, checked, dict(own))
    except SystemExit as problem:
        pytest.skip(str(problem))
    return Library(path)


def build(cells: tuple[str, ...] | None = None, checked: bool = False, own: Mapping[str, str] | None = None) -> Path:
    """Build the shared object and return its path. checked: every memory access of a kernel is checked."""
    compiler = tools()
    cells = () if own else cells or tuple(sorted(path.stem for path in (ROOT / "csrc" / "cells").glob("*.h")))
    flags = [*FLAGS, *(["-DFASTRNN_MEMORY_CHECK=1"] if checked else [])]
    command = [*compiler.command, *flags]
    name = hashlib.sha256(repr((command, compiler.version, cells, checked, own or {})).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "emulated" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        units = generated(folder / "units", cells, own)
        host = [*HOST, *sorted((ROOT / "tests" / "cuda").glob("*.cpp"))]
        # The compiler's own instrumentation, which calls the functions in memory_check.cpp.
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


def _states(name: str) -> tuple[str, ...]:
    return tuple(f"{name}{s}" for s in range(4))


_WEIGHTS = ("w_hh", "w_hr", "b_hh", "parameters", *_states("initial"))
_FORWARD = ("gates", "extra", "cells", "unprojected", "y", *_states("final"))
_BACKWARD = ("grad_y", *_states("grad_final"), "da", "drh", "dparameters", *_states("grad_initial"))
_BACKWARD += (*_states("restarts"), "dh")


class Call(ctypes.Structure):
    """The struct of that name in tests/cuda/library.cpp."""

    _fields_ = (
        [("cell", ctypes.c_char_p)]
        + [(n, ctypes.c_int64) for n in ("format", "driver", "unit_slices", "row_slices", "warps_deep")]
        + [(n, ctypes.c_int64) for n in "TBHP"]
        + [(n, ctypes.c_void_p) for n in _POINTERS]
        + [(n, ctypes.c_int64) for n in ("reverse", "training")]
        + [(n, ctypes.c_void_p) for n in (*_WEIGHTS, *_FORWARD, *_BACKWARD)]
    )


COUNTED = ("block_barriers", "cluster_barriers", "announcements", "products")
COUNTED += ("fresh_bytes", "pushed_bytes", "push_phases", "exchanged_bytes")
TILING = ("units", "unit_slices", "rows", "row_slices", "matrix_rows", "depth", "warps_across", "warps_deep")
TILING += ("shared_bytes", "cluster", "compiled")


class Outcome(ctypes.Structure):
    _fields_ = [(n, ctypes.c_int64) for n in ("error", "driver", "possible", *TILING)] + [
        ("text", ctypes.c_char * 1000),
    ]

    def message(self) -> str:
        return self.text.decode()

    def tiling(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in TILING}


@dataclass(frozen=True)
class Machine:
    """An emulated GPU. largest_cluster 0: without clusters. busy: processors that other work occupies."""

    processors: int = 8
    shared_bytes: int = 227 * KB
    largest_cluster: int = 8
    busy: int = 0


@dataclass(frozen=True)
class Sizes:
    """The sizes on which the choice of a driver depends. P 0: no projection."""

    cell: str
    B: int
    H: int
    fmt: str = "float32"
    P: int = 0
    backward: bool = False


class Library:
    def __init__(self, path: Path):
        self.lib = ctypes.CDLL(str(path))
        self.lib.emulated_allocate.restype = ctypes.c_void_p
        self.lib.emulated_allocate.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64]
        self.lib.emulated_machine.argtypes = [ctypes.c_int64] * 5
        self.lib.emulated_choose.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p]
        self.lib.emulated_kernel.argtypes, self.lib.emulated_kernel.restype = [ctypes.c_int64], ctypes.c_char_p
        self.lib.emulated_run_kernel.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64]
        self.lib.emulated_run_kernel.restype = ctypes.c_int64
        self.lib.emulated_driver.restype = ctypes.c_int64

    def set_machine(self, m: Machine, seed: int) -> None:
        self.lib.emulated_machine(m.processors, m.shared_bytes, m.largest_cluster, m.busy, seed)

    def small_kernels(self) -> list[str]:
        """Return the names of the kernels in tests/cuda/mistakes.cpp."""
        names = []
        while (name := self.lib.emulated_kernel(len(names))) is not None:
            names.append(name.decode())
        return names

    def run_small(self, name: str, seed: int) -> tuple[int, str, Tensor]:
        """Run one of them; return the error, its message, and the 256 numbers that it left."""
        self.set_machine(Machine(), seed)
        out, text = torch.empty(256), ctypes.create_string_buffer(1000)
        error = self.lib.emulated_run_kernel(self.small_kernels().index(name), out.data_ptr(), text, 1000)
        return error, text.value.decode(), out

    def choose(self, p: Sizes, driver: str, machine: Machine, steps: int = 10) -> Outcome:
        """Return the choice of csrc/cuda/plan.cpp."""
        self.set_machine(machine, 0)
        call, outcome = Call(cell=p.cell.encode(), format=FORMATS.index(p.fmt), driver=DRIVERS.index(driver)), Outcome()
        call.T, call.B, call.H, call.P = steps, p.B, p.H, p.P or p.H
        call.w_hr = 1 if p.P else None
        self.lib.emulated_choose(ctypes.byref(call), p.backward, ctypes.byref(outcome))
        return outcome

    def buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, values: Tensor | None = None) -> Tensor:
        """Allocate a tensor in the emulated GPU's memory, until release(): full of NaN, or a copy of `values`."""
        count = max(1, int(torch.Size(shape).numel()))
        size = dtype.itemsize
        address = self.lib.emulated_allocate(name.encode(), count * size, size, values is not None)
        tensor = torch.frombuffer((ctypes.c_char * (count * size)).from_address(address), dtype=dtype)
        tensor = tensor[: torch.Size(shape).numel()].view(shape)
        return tensor if values is None else tensor.copy_(values)

    def counted(self) -> dict[str, int]:
        """Return the counters of the launches since the last call: emulator::Counted in tests/cuda/launcher.h."""
        values = (ctypes.c_int64 * len(COUNTED))()
        self.lib.emulated_counted(values)
        return dict(zip(COUNTED, values, strict=True))

    def release(self) -> None:
        self.lib.emulated_release()

    def numbers(self, cell: str) -> tuple[int, ...]:
        """Return G, S, K, the first product with a separate gradient, R, R2, Q."""
        values = (ctypes.c_int64 * 7)()
        assert self.lib.emulated_cell(cell.encode(), values), cell
        return tuple(values)
