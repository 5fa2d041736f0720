"""Check the time step of the persistent CUDA kernels in the disassembly of built objects, and fail if it has grown.

    python tools/check_steps.py OBJECT...

For every persistent kernel, this finds the loop over time and in it the shortest path through a step: from a wait
through the product, a unit's cell and the sending of the operand to the next wait. It checks the number of instructions
on the path, and in the loop the block's barriers and fences, subroutines (of divisions) and local memory. The
disassemblers, cuobjdump and nvdisasm, come from the CUDA toolkit or from triton's package; without them, it prints a
note and exits with 0.
"""

from __future__ import annotations

import argparse
import heapq
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

#: Instructions on the path through a step of a bfloat16 LSTM, and on that which reads the unit's inputs and stores its
#: results too, by driver, direction and the largest hidden size that the kernel was compiled for (0: any): the best so
#: far, plus 3 %. With known sizes the path has the whole product, else one block of its depth.
LIMITS = {
    ("cluster", "forward", 0): (398, 437),
    ("cluster", "backward", 0): (415, 461),
    ("cluster", "forward", 128): (218, 239),
    ("cluster", "backward", 128): (158, 195),
    ("cluster", "forward", 256): (228, 249),
    ("cluster", "backward", 256): (176, 218),
    ("cluster", "forward", 512): (247, 263),
    ("cluster", "backward", 512): (206, 239),
    ("grid", "forward", 0): (426, 465),
    ("grid", "backward", 0): (434, 481),
    ("grid", "forward", 1024): (294, 340),
    ("grid", "backward", 1024): (594, 637),
}
#: Barriers of the block in the loop over time, by driver (one is between passes of 32 rows), and fences of the GPU.
BARRIERS = {"cluster": 3, "grid": 4}
FENCES = {"cluster": 0, "grid": 1}

WAIT = r"SYNCS\.PHASECHK|(LDG?|LD)\.E\.STRONG\.GPU$"
PRODUCT = r"HMMA|FFMA"
SEND = r"STAS|REDG?\.E\.ADD"
STORE = r"STG\.E"
READ = r"LDG\.E(\.U16)?(\.CONSTANT)?$"

_KERNEL = re.compile(r"Persistent(?:Pushed)?(Forward|Backward)INS0_\d+([a-z_]+?)ENS0_\d+(TensorCores|PlainFloat)")
_SIZES = re.compile(r"SizesILi\d+ELi\d+ELi(\d+)E")
_FORMATS = {"MmaBFloat16": "bfloat16", "MmaFloat16": "float16", "MmaTf32": "tf32", "PlainFloat": "float32"}
_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P[T\d]+\s+)?([A-Z][A-Z0-9_.]*)\s*([^;]*);")


class Instruction(NamedTuple):
    address: int
    name: str
    operands: str
    conditional: bool

    @property
    def target(self) -> int | None:
        """Return the target address of a branch, None otherwise; ptxas also writes branches as CALL.REL.NOINC."""
        branches = self.name.startswith(("BRA", "CALL.REL.NOINC"))
        found = re.search(r"0x([0-9a-f]+)", self.operands) if branches else None
        return int(found.group(1), 16) if found else None

    @property
    def falls_through(self) -> bool:
        if self.name.split(".")[0] in ("EXIT", "RET", "JMP", "BRX"):
            return self.conditional
        return not self.name.startswith("BRA") or self.conditional or "P" in self.operands.split("0x")[0]


class Kernel(NamedTuple):
    cell: str
    dtype: str
    driver: str
    direction: str
    hidden: int  # the largest size that it was compiled for; 0: any

    @property
    def text(self) -> str:
        sizes = f" up to {self.hidden} units" if self.hidden else ""
        return f"{self.cell} {self.dtype} {self.driver} {self.direction}{sizes}"


@dataclass
class Block:
    """Instructions that are executed one after the other, and the blocks that may follow them."""

    code: list[Instruction]
    next: list[int]

    def has(self, pattern: str) -> bool:
        return any(re.match(pattern, line.name) for line in self.code)


def program(name: str) -> Path | None:
    """Return the path of a program of the toolkit: in CUDA_HOME, on PATH, or in triton's package."""
    home = os.environ.get("CUDA_HOME")
    on_path = shutil.which(name)
    places = [Path(home) / "bin" / name] if home else []
    places += [Path(on_path)] if on_path else []
    places.append(Path(sysconfig.get_paths()["purelib"]) / "triton" / "backends" / "nvidia" / "bin" / name)
    return next((place for place in places if place.is_file()), None)


def kernel_of(mangled: str) -> Kernel | None:
    found = _KERNEL.search(mangled)
    if found is None or "persistent_entry" not in mangled:
        return None
    dtype = next(name for key, name in _FORMATS.items() if key in mangled)
    driver = "cluster" if re.search("ThroughCluster|PersistentPushed", mangled) else "grid"
    sizes = _SIZES.search(mangled)
    return Kernel(found.group(2), dtype, driver, found.group(1).lower(), int(sizes.group(1)) if sizes else 0)


def disassembled(text: str) -> Iterator[tuple[str, Kernel, list[Instruction]]]:
    """Yield architecture, kernel and code from the output of ``cuobjdump -sass``."""
    architecture, kernel = "", None
    code: list[Instruction] = []
    for line in [*text.splitlines(), "Function : end"]:
        arch = re.match(r"\s*(?:arch =|code for|\.target)\s+(sm_\w+)", line)
        if arch:
            architecture = arch.group(1)
        if "Function :" in line:
            if kernel is not None:
                yield architecture, kernel, code
            kernel, code = kernel_of(line), []
        parsed = _LINE.match(line)
        if parsed and kernel is not None:
            address, predicate, name, operands = parsed.groups()
            code.append(Instruction(int(address, 16), name, operands, predicate is not None))


def blocks_of(code: list[Instruction]) -> list[Block]:
    place = {line.address: k for k, line in enumerate(code)}
    ends = [k for k, line in enumerate(code) if line.target is not None or not line.falls_through]
    targets = {place[line.target] for line in code if line.target in place}
    starts = sorted({0, *targets, *(k + 1 for k in ends if k + 1 < len(code))})
    number = {start: n for n, start in enumerate(starts)}
    blocks = []
    for start, end in zip(starts, [*starts[1:], len(code)], strict=True):
        last = code[end - 1]
        following = [number[place[last.target]]] if last.target in place else []
        if last.falls_through and end < len(code):
            following.append(number[end])
        blocks.append(Block(code[start:end], following))
    return blocks


def way_through(blocks: list[Block], stops: Iterable[str]) -> list[int] | None:
    """Find the shortest path, in instructions, from a block with the first stop past all others in order and back."""
    first, *others = stops
    best: tuple[int, list[int]] | None = None
    for start in (n for n, block in enumerate(blocks) if block.has(first)):
        found = _shortest(blocks, start, others)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    return best[1] if best else None


def _shortest(blocks: list[Block], start: int, others: list[str]) -> tuple[int, list[int]] | None:
    """Find the path with Dijkstra's algorithm; a state is a block and the number of stops passed."""
    queue: list[tuple[int, int, int, list[int]]] = [(len(blocks[start].code), start, 0, [start])]
    seen = set()
    while queue:
        length, at, passed, way = heapq.heappop(queue)
        if (at, passed) in seen:
            continue
        seen.add((at, passed))
        while passed < len(others) and blocks[at].has(others[passed]):
            passed += 1
        for follower in blocks[at].next:
            if follower == start and passed == len(others):
                return length, way
            if follower != start:
                longer = length + len(blocks[follower].code)
                heapq.heappush(queue, (longer, follower, passed, [*way, follower]))
    return None


def loop_of(blocks: list[Block], way: list[int]) -> list[Instruction]:
    """Return the instructions of the loop over time: those that a step can reach and that lead to one."""

    def reached(start: int, following: list[list[int]]) -> set[int]:
        found, left = {start}, [start]
        while left:
            for n in following[left.pop()]:
                if n not in found:
                    found.add(n)
                    left.append(n)
        return found

    before: list[list[int]] = [[] for _ in blocks]
    for n, block in enumerate(blocks):
        for follower in block.next:
            before[follower].append(n)
    inside = reached(way[0], [block.next for block in blocks]) & reached(way[0], before)
    return [line for n in sorted(inside) for line in blocks[n].code]


class Step(NamedTuple):
    instructions: int
    complete: int | None  # with reading and storing; None: not found
    barriers: int
    fences: int
    subroutines: int
    local: int


def step_of(kernel: Kernel, code: list[Instruction]) -> Step | None:
    """Find a kernel's time step; None if there is none: without tensor cores, the product may be in another loop."""
    blocks = blocks_of(code)
    product = "HMMA" if kernel.dtype != "float32" else "FFMA"
    cell = "MUFU" if kernel.cell == "lstm" else "FADD|FFMA|FMUL"
    # A kernel that pushes sums multiplies what the cell has computed.
    pushed = (kernel.driver, kernel.direction) == ("cluster", "backward") and kernel.hidden > 0
    stops = [WAIT, cell, product, SEND] if pushed else [WAIT, product, cell, SEND]
    way = way_through(blocks, stops)
    if way is None:
        return None
    complete = way_through(blocks, [*stops, STORE, READ])
    loop = loop_of(blocks, way)

    def count(pattern: str, lines: list[Instruction]) -> int:
        return sum(re.match(pattern, line.name) is not None for line in lines)

    def length(path: list[int]) -> int:
        return sum(len(blocks[n].code) for n in path)

    return Step(
        length(way),
        length(complete) if complete else None,
        count(r"BAR\.SYNC", loop),
        count(r"MEMBAR\.(SC|ALL)\.(GPU|SYS)", loop),
        count(r"RET", code),
        count(r"LDL|STL", code),
    )


def problems_of(kernel: Kernel, architecture: str, step: Step | None) -> list[str]:
    where = f"{kernel.text} for {architecture}"
    if step is None:
        return [f"{where}: no step was found in its code"]
    limits = [
        ("barriers of the block in the step loop", step.barriers, BARRIERS[kernel.driver]),
        ("fences for the whole GPU in the step loop", step.fences, FENCES[kernel.driver]),
        ("subroutines, such as that of a division", step.subroutines, 0),
        ("accesses to local memory", step.local, 0),
    ]
    if (kernel.cell, kernel.dtype) == ("lstm", "bfloat16"):
        if (kernel.driver, kernel.direction, kernel.hidden) not in LIMITS:
            return [f"{where}: LIMITS in tools/check_steps.py has no entry for this kernel"]
        shortest, complete = LIMITS[kernel.driver, kernel.direction, kernel.hidden]
        limits.append(("instructions on the shortest way through a step", step.instructions, shortest))
        if step.complete is None:
            return [f"{where}: no step that reads and stores was found in its code"]
        limits.append(("instructions on the way that reads and stores", step.complete, complete))
    return [f"{where}: expected at most {limit} {what}, got {got}" for what, got, limit in limits if got > limit]


def disassemble(objects: Iterable[Path]) -> str:
    cuobjdump, nvdisasm = program("cuobjdump"), program("nvdisasm")
    if cuobjdump is None or nvdisasm is None:
        raise FileNotFoundError("cuobjdump and nvdisasm were not found: set CUDA_HOME to a CUDA toolkit that has them")
    environment = {**os.environ, "PATH": f"{nvdisasm.parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    texts = []
    for path in objects:
        done = subprocess.run([cuobjdump, "-sass", path], capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            raise RuntimeError(f"{path}: {done.stderr.strip() or 'cuobjdump failed'}")
        texts.append(done.stdout)
    return "\n".join(texts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fail if the step of a persistent kernel has grown.")
    parser.add_argument("objects", type=Path, nargs="+", help="objects or libraries with CUDA code")
    try:
        text = disassemble(parser.parse_args(argv).objects)
    except FileNotFoundError as problem:
        print(f"The kernels' steps were NOT checked: {problem}")
        return 0
    except RuntimeError as problem:
        print(f"fastrnn: {problem}", file=sys.stderr)
        return 1
    problems, seen = [], 0
    for architecture, kernel, code in disassembled(text):
        if kernel.driver == "cluster" and architecture == "sm_80":
            continue  # never launched
        step = step_of(kernel, code)
        problems += problems_of(kernel, architecture, step)
        seen += 1
        if step is not None and (kernel.cell, kernel.dtype) == ("lstm", "bfloat16"):
            counts = f"{step.instructions} instructions ({step.complete} with reading and storing)"
            print(f"{kernel.text} for {architecture}: {counts}, {step.fences} fences a step")
    if not seen:
        problems.append("no persistent kernel was found")
    for text in problems:
        print(f"fastrnn: {text}", file=sys.stderr)
    print(f"{seen} persistent kernels disassembled")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
