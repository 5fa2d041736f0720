"""Compilation of a cell's header into kernels for the CPU.

A shared object holds a cell's kernels for one instruction set and dtype. It is stored in the cell cache
(`fastrnn.custom.cache`) under a name with a digest of everything it depends on: the header, the library's own headers,
compiler and options.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from fastrnn import _C
from fastrnn.custom.cache import BuildError, Library, cached, libraries_of

#: dtypes by number, as enum Format in csrc/cpu/args.h
FORMATS = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
# Further formats of instruction sets with bfloat16 products: float32 split into two parts, and into one.
_FLOAT32_TWO_PARTS, _FLOAT32_ONE_PART = 4, 5
_WITH_PARTS = {
    "avx512_bf16": {torch.float32: 1 << _FLOAT32_ONE_PART, torch.bfloat16: 1 << FORMATS[torch.bfloat16]},
    "amx": {
        torch.float32: 1 << _FLOAT32_TWO_PARTS | 1 << _FLOAT32_ONE_PART,
        torch.bfloat16: 1 << FORMATS[torch.bfloat16],
        torch.float16: 1 << FORMATS[torch.float16],
    },
}
# As fast as -O3, compiled in four fifths of its time. Cells with sums over the units gain from the vectoriser.
COMPILE: tuple[str, ...] = ("-O2", "-fpeel-loops", "-ftree-loop-vectorize", "-fvect-cost-model=dynamic")
COMPILE += ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
COMPILE += ("-g0", "-w")
TIMEOUT = 300  # seconds for one compiler run


_locks: dict[str, threading.Lock] = {}
if hasattr(os, "register_at_fork"):  # a lock held by another thread at the fork would never be released in the child
    os.register_at_fork(after_in_child=_locks.clear)


def lock_of(kernels: str) -> threading.Lock:
    """Return the lock for compiling and loading a cell's kernels: different cells in parallel, each cell once."""
    return _locks.setdefault(kernels, threading.Lock())


def headers() -> Path:
    """Return the folder of the kernels' headers: beside the package in a checkout, inside it once installed."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "csrc", package.parent / "csrc"):
        if (folder / "cpu" / "unit.h").is_file():
            return folder
    raise BuildError(f"expected the kernels' headers in {package / 'csrc'}, found none; reinstall fastrnn")


@functools.cache
def headers_digest(part: str) -> str:
    """Return a digest of the library's headers for a part, "cpu" or "cuda"."""
    digest, folder = hashlib.sha256(), headers()
    for path in sorted(p for name in (part, "simd") for p in (folder / name).glob("*.h")):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@functools.cache
def compiler() -> tuple[str, ...]:
    """Return the command of the C++ compiler: CXX, or the system's."""
    wanted = shlex.split(os.environ.get("CXX", ""))
    for command in [wanted] if wanted else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]):
            return tuple(command)
    raise BuildError(f"expected a C++ compiler, found none ({wanted[0] if wanted else 'c++, g++ or clang++'})")


@functools.cache
def compiler_version(command: tuple[str, ...]) -> str:
    try:
        return subprocess.run([*command, "--version"], capture_output=True, text=True, timeout=60, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{shlex.join(command)} cannot be run: {error}") from None


def instruction_sets(capability: str, dtype: torch.dtype) -> list[tuple[str, int]]:
    """Return the translation units for a dtype and `capability`, each an instruction set and the bits of its formats.

    Instruction sets with bfloat16 products build on the kernels of AVX-512.
    """
    bits = 1 << FORMATS[dtype]
    if capability not in _WITH_PARTS:
        return [(capability, bits)]
    units = [("avx512", bits)]
    if parts := _WITH_PARTS[capability].get(dtype):
        units.append((capability, parts))
    return units


def sources(name: str, header: str, capability: str, dtype: torch.dtype) -> dict[str, str]:
    """Return all source files of a shared object, by name."""
    units = instruction_sets(capability, dtype)
    files = {"cell.h": header}
    for isa, formats in units:
        files[f"{isa}.cpp"] = (
            f"#define FASTRNN_ISA_{isa.upper()} 1\n#define FASTRNN_ISA_NAME {isa}\n#define FASTRNN_FORMATS {formats}\n"
            f'#define FASTRNN_CELL_HEADER "cell.h"\n#define FASTRNN_CELL_NAME {name}\n#include "cpu/unit.h"\n'
        )
    entry = f"entry({name}, {units[-1][0]}, {capability})"
    files["table.cpp"] = f'#define FASTRNN_CUSTOM_CELLS(entry) {entry}\n#include "cpu/custom_unit.h"\n'
    return files


def library(name: str, header: str, capability: str, dtype: torch.dtype) -> Library:
    """Return the shared object of a cell's kernels, from the cache or built now.

    Raises:
        BuildError: it is not in the cache and cannot be built.
    """
    files = sources(name, header, capability, dtype)
    command = compiler()
    parts = (headers_digest("cpu"), compiler_version(command), *command, *COMPILE, _openmp(command) or "")
    return cached(name, files, parts, lambda folder: _compile(folder, list(files), command))


def load_cached(name: str) -> None:
    """Load a cell's cached kernels, for every dtype, for a program that holds only the cell's name.

    Args:
        name: `Cell.kernels`. Of several builds for one dtype, the newest is used last.
    """
    if not re.search(r"_[0-9a-f]{12}$", name):  # the digest in `Cell.kernels`
        return
    with contextlib.suppress(BuildError):  # the cache is unusable
        for found in libraries_of(name):
            with contextlib.suppress(ImportError):  # from another version, or for GPUs
                found.load(_C.load_cells)


@functools.cache
def _openmp(command: tuple[str, ...]) -> str | None:
    """Return the compiler option for OpenMP, None if the library itself is built without."""
    if _C.build_info()["openmp"] == "no":
        return None
    return "-fopenmp" if sys.platform != "darwin" else None


def _compile(folder: Path, files: Sequence[str], command: tuple[str, ...]) -> None:
    units = [file for file in files if file.endswith(".cpp")]
    openmp = _openmp(command)
    threads = [openmp] if openmp else []
    flags = (*COMPILE, "-I.", f"-I{headers()}", "-c")
    with ThreadPoolExecutor(len(units)) as pool:
        compiled = [pool.submit(run, [*command, *flags, unit, *threads], folder) for unit in units]
    for one in compiled:
        one.result()
    objects = [f"{Path(u).stem}.o" for u in units]
    extra = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
    run([*command, "-shared", *objects, "-o", "cell.so", *extra, *threads], folder)


def run(command: Sequence[str], folder: Path) -> None:
    """Run a compiler in a folder. Raise BuildError with its first error."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise BuildError(f"{command[0]} expected to finish within {TIMEOUT} seconds") from None
    if done.returncode:
        output = done.stderr + done.stdout  # nvcc writes errors to either stream
        first = next((line for line in output.splitlines() if "error" in line), output.strip()[:500])
        raise BuildError(f"{command[0]} failed: {first}")
