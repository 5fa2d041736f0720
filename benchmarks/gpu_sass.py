"""What nvcc made of the persistent kernels: registers and spills, and instructions counted, from a built library.

cuobjdump (of the CUDA toolkit, or the copy in triton's package) takes the library apart; no GPU is needed. `expected`
says how often each instruction that matters stands in a kernel's code, from the kernels' source alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from gpu_plan import COLUMN_TILES, FORMATS, ROOT, ROW_TILES

# csrc/cuda/exchange.h: Load::kInFlight; csrc/cuda/product.h: kLoads.
IN_FLIGHT = {"grid": 8, "cluster": 4}
LOADS = {True: 1, False: 2}

_FORMAT = {"MmaBFloat16": "bfloat16", "MmaFloat16": "float16", "MmaTf32": "tf32", "PlainFloat": "float32"}
_KERNEL = re.compile(r"Persistent(Forward|Backward)INS0_\d+([a-z_]+?)ENS0_\d+(TensorCores|PlainFloat)")
_USED = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")


@dataclass(frozen=True, order=True)
class Kernel:
    """A persistent kernel of a cell, by its place in the tables of csrc/cuda/kernels.h."""

    cell: str
    fmt: str
    driver: str
    backward: bool

    @property
    def text(self) -> str:
        return f"{self.cell} {self.fmt} {self.driver} {'backward' if self.backward else 'forward'}"


@dataclass
class Code:
    """Of one kernel for one architecture: from the resource table, and from the disassembly if that was asked for."""

    registers: int = 0
    stack: int = 0  # bytes of a thread; what is spilled lies there
    counts: Counter[str] = field(default_factory=Counter)  # of instructions, by `KINDS`
    loop: Counter[str] = field(default_factory=Counter)  # of those in the loop over time


#: Instructions that are counted, by a pattern for their names.
KINDS = {
    "mma": r"HMMA\.",
    "fma": r"FFMA",
    "fresh loads": r"LDG\.E\.128\.STRONG\.GPU",
    "fences": r"MEMBAR\.",
    "announcements": r"REDG?\.",
    "polls": r"(LDG?|LD)\.E\.STRONG\.GPU",
    "block barriers": r"BAR\.SYNC",
    "cluster arrivals": r"UCGABAR_ARV",
    "cluster waits": r"UCGABAR_WAIT",
    "copies past registers": r"(LDGSTS|UTMA|UBLKCP)",
    "local memory": r"(LDL|STL)",
}


def cuobjdump() -> Path | None:
    """The program: of CUDA_HOME, on PATH, or in triton's package."""
    places = [Path(home) / "bin" / "cuobjdump" for home in (os.environ.get("CUDA_HOME"),) if home]
    on_path = shutil.which("cuobjdump")
    places += [Path(on_path)] if on_path else []
    site = Path(sysconfig.get_paths()["purelib"])
    places.append(site / "triton" / "backends" / "nvidia" / "bin" / "cuobjdump")
    return next((place for place in places if place.is_file()), None)


def built_libraries() -> list[Path]:
    """What FASTRNN_GPU_OBJECTS names (paths with colons between them), else the extension in this checkout."""
    named = os.environ.get("FASTRNN_GPU_OBJECTS", "")
    if named:
        return [Path(part) for part in named.split(":")]
    return sorted((ROOT / "fastrnn").glob("_cuda*.so"))


def kernel_of(mangled: str) -> Kernel | None:
    found = _KERNEL.search(mangled)
    if found is None or "persistent_entry" not in mangled:
        return None
    fmt = next(name for key, name in _FORMAT.items() if key in mangled)
    driver = "cluster" if "ThroughCluster" in mangled else "grid"
    return Kernel(found.group(2), fmt, driver, found.group(1) == "Backward")


def resources(text: str, architecture: str) -> dict[Kernel, Code]:
    """Out of what ``cuobjdump --dump-resource-usage`` says."""
    found: dict[Kernel, Code] = {}
    current, kernel = "", None
    for line in text.splitlines():
        arch = re.match(r"arch = (\S+)", line)
        if arch:
            current = arch.group(1)
        elif "Function" in line:
            kernel = kernel_of(line)
        used = _USED.search(line)
        if used and kernel is not None and current == architecture:
            registers, stack, _, local = map(int, used.groups())
            found[kernel] = Code(registers, stack + local)
    return found


def instructions(text: str) -> dict[Kernel, list[tuple[int, str, str]]]:
    """Address, name and operands of every instruction, out of what ``cuobjdump -sass`` says."""
    found: dict[Kernel, list[tuple[int, str, str]]] = {}
    lines: list[tuple[int, str, str]] | None = None
    for line in text.splitlines():
        if "Function :" in line:
            kernel = kernel_of(line)
            lines = found.setdefault(kernel, []) if kernel is not None else None
        elif lines is not None:
            parsed = _LINE.match(line)
            if parsed:
                lines.append((int(parsed.group(1), 16), parsed.group(2), parsed.group(3)))
    return found


def count(code: list[tuple[int, str, str]]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for _, name, _ in code:
        for kind, pattern in KINDS.items():
            counts[kind] += re.match(pattern, name) is not None
    return counts


def step_loop(code: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """The loop over time: the smallest one (a branch back, and its target) that holds the products and a wait.

    Of kernels without products of their own kind, those that hold most multiplications: the cell has some, too.
    """

    def addresses(*kinds: str) -> list[int]:
        return [address for address, name, _ in code if any(re.match(KINDS[kind], name) for kind in kinds)]

    products, waits = addresses("mma") or addresses("fresh loads"), addresses("polls", "cluster waits")
    least = len(products) or 0.8 * len(addresses("fma"))
    products = products or addresses("fma")
    best: tuple[int, int] | None = None
    for end, name, operands in code:
        target = re.search(r"0x([0-9a-f]+)", operands)
        if not (name.startswith("BRA") and target and products):
            continue
        begin = int(target.group(1), 16)
        holds = sum(begin <= at <= end for at in products) >= least and any(begin <= at <= end for at in waits)
        if holds and (best is None or end - begin < best[1] - best[0]):
            best = (begin, end)
    return [line for line in code if best is not None and best[0] <= line[0] <= best[1]]


def read(libraries: list[Path], architecture: str, disassemble: bool) -> dict[Kernel, Code]:
    """All persistent kernels of a library. Raises RuntimeError where there is no cuobjdump or it fails."""
    program = cuobjdump()
    if program is None:
        raise RuntimeError("there is no cuobjdump: set CUDA_HOME to a CUDA toolkit that has it")
    found: dict[Kernel, Code] = {}
    for library in libraries:
        found |= resources(_run(program, "--dump-resource-usage", str(library)), architecture)
        if disassemble:
            for kernel, code in instructions(_run(program, "-sass", "-arch", architecture, str(library))).items():
                found[kernel].counts, found[kernel].loop = count(code), count(step_loop(code))
    return found


def _run(program: Path, *arguments: str) -> str:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{program} {' '.join(arguments)}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def ahead(driver: str, tensor: bool, tiles: int) -> int:
    """product.h: multiply_tiles: blocks of the depth whose operand is asked for before the first is used."""
    return max(1, IN_FLIGHT[driver] // (tiles * LOADS[tensor]))


def expected(kernel: Kernel) -> dict[str, int]:
    """How often instructions stand in the code. Products are unrolled for one to four column tiles."""
    tensor, grid = FORMATS[kernel.fmt].tensor, kernel.driver == "grid"
    blocks = sum(ahead(kernel.driver, tensor, n) * n for n in range(1, COLUMN_TILES + 1))  # times column tiles
    # Forward: the first operand, then one in the loop; backward: in the loop alone. Clusters meet once before.
    arrivals = (1 if kernel.backward else 2) + (0 if grid else 1)
    return {
        "mma": blocks * 2 * ROW_TILES if tensor else 0,
        "fresh loads": blocks * LOADS[tensor] if grid else 0,
        "announcements": arrivals if grid else 0,
        "fences": arrivals,
        "polls": 1 if grid else 0,
        "cluster arrivals": 0 if grid else arrivals,
        "cluster waits": 0 if grid else 2,
        "copies past registers": 0,
        "local memory": 0,
    }


def expected_in_a_step(kernel: Kernel) -> dict[str, int]:
    """The same of the loop over time: one fence, one arrival, one wait, and every product."""
    grid, everything = kernel.driver == "grid", expected(kernel)
    once = {"fences": 1, "announcements": int(grid), "polls": int(grid)}
    once |= {"cluster arrivals": int(not grid), "cluster waits": int(not grid)}
    return everything | once
