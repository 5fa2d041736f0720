"""Check the output of ``nvcc -Xptxas -v``: fail if a hot kernel spills registers to local memory.

    python tools/check_spills.py BUILD_LOG... --architectures sm_80,sm_90a

Hot kernels are those whose name contains ``persistent_entry``. The log must contain some of every cell for every
architecture, since a log of a build that compiled nothing proves nothing.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import generate_units

HOT = "persistent_entry"

_ENTRY = re.compile(r"Compiling entry function '([^']+)' for '([^']+)'")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_LOCAL = re.compile(r"(\d+) bytes (?:lmem|cumulative stack size)")


@dataclass
class Kernel:
    """A kernel for one architecture; sizes in bytes per thread, including those of the functions that it calls."""

    name: str
    architecture: str
    registers: int = 0
    stack: int = 0
    spill_stores: int = 0
    spill_loads: int = 0

    @property
    def clean(self) -> bool:
        return not (self.stack or self.spill_stores or self.spill_loads)

    def describe(self) -> str:
        return (
            f"{demangle(self.name)} for {self.architecture}: {self.stack} bytes of stack, "
            f"spills of {self.spill_stores} bytes stored and {self.spill_loads} loaded, {self.registers} registers"
        )


def parse(text: str) -> list[Kernel]:
    """Return every kernel in the log, in order."""
    kernels: list[Kernel] = []
    for line in text.splitlines():
        entry = _ENTRY.search(line)
        if entry:
            kernels.append(Kernel(entry.group(1), entry.group(2)))
            continue
        if not kernels:
            continue
        kernel = kernels[-1]
        memory = _MEMORY.search(line)
        if memory:
            stack, stores, loads = map(int, memory.groups())
            kernel.stack = max(kernel.stack, stack)
            kernel.spill_stores += stores
            kernel.spill_loads += loads
        registers = _REGISTERS.search(line)
        if registers:
            kernel.registers = int(registers.group(1))
            kernel.stack = max([kernel.stack, *map(int, _LOCAL.findall(line))])
    return kernels


def missing(kernels: Iterable[Kernel], cells: Iterable[str], architectures: Iterable[str]) -> list[str]:
    """List the kernels that the log should contain but does not."""
    found = list(kernels)
    pairs = [(cell, architecture) for architecture in architectures for cell in cells]
    return [
        f"no hot kernel of {cell} for {architecture} in the log"
        for cell, architecture in pairs
        # In a mangled name, the length of an identifier precedes it.
        if not any(f"{len(cell)}{cell}E" in kernel.name and kernel.architecture == architecture for kernel in found)
    ]


def demangle(name: str) -> str:
    program = shutil.which("c++filt")
    if program is None:
        return name
    done = subprocess.run([program, name], capture_output=True, text=True)
    return done.stdout.strip().replace("fastrnn::cuda::", "") or name


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fail if a hot kernel spills registers, according to ptxas.")
    parser.add_argument("logs", type=Path, nargs="+", help="output of a build with -Xptxas -v")
    parser.add_argument("--architectures", default="sm_80,sm_90a", help="those of the log (default: sm_80,sm_90a)")
    parser.add_argument("--csrc", type=Path, default=generate_units.ROOT / "csrc", help="folder of the C++ sources")
    args = parser.parse_args(argv)
    kernels = parse("\n".join(path.read_text(encoding="utf-8", errors="replace") for path in args.logs))
    hot = [kernel for kernel in kernels if HOT in kernel.name]
    problems = missing(hot, generate_units.find_cells(args.csrc), args.architectures.split(","))
    problems += [kernel.describe() for kernel in hot if not kernel.clean]
    for problem in problems:
        print(f"fastrnn: {problem}", file=sys.stderr)
    spilling = sum(not kernel.clean for kernel in hot)
    most = max((kernel.registers for kernel in hot), default=0)
    print(
        f"{len(hot)} hot kernels, {f'{spilling} spill' if spilling else 'all without spills'}, at most {most} registers"
    )
    others = [kernel for kernel in kernels if HOT not in kernel.name]
    print(f"{sum(not kernel.clean for kernel in others)} of {len(others)} other kernels use local memory")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
