"""Check that every C++ source of ``fastrnn._cuda`` compiles against the oldest supported torch.

    python tools/check_oldest_torch.py FOLDER

The build of ``make cuda-check`` uses the newest torch. This compiles the same host sources, without generating code,
with the headers of torch 2.11.0 and Python 3.12. The headers are taken from torch's wheel, which is downloaded into
FOLDER once; neither that torch nor that Python is installed or run. Without Python 3.12, it prints a note and exits
with 0.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build_checks
import cuda_checks
import pythons
import torch_files

ROOT = Path(__file__).resolve().parent.parent
TORCH, PYTHON = "2.11.0", "3.12"
SOURCES = ("csrc/ops/*.cpp", "csrc/ops/cuda/*.cpp", "csrc/cuda/*.cpp")
FLAGS = ["-fsyntax-only", "-std=c++20", "-w", "-DFASTRNN_ISA_CUDA=1", "-DFASTRNN_ISA_NAME=cuda"]


def sources() -> list[Path]:
    return [path for pattern in SOURCES for path in sorted(ROOT.glob(pattern))]


def compile_errors(compiler: list[str], includes: list[Path], files: list[Path], jobs: int) -> list[str]:
    """Compile the files, and return the compiler's first errors for each one that fails."""
    command = [*compiler, *FLAGS, *(f"-I{folder}" for folder in includes)]

    def compile_one(path: Path) -> str:
        done = subprocess.run([*command, str(path)], capture_output=True, text=True)
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
        return "" if done.returncode == 0 else "\n".join(lines[:5] or [f"{path}: no output"])

    with ThreadPoolExecutor(jobs) as pool:
        return [text for text in pool.map(compile_one, files) if text]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile the sources of fastrnn._cuda against the oldest torch.")
    parser.add_argument("folder", type=Path, help="folder for torch's headers")
    args = parser.parse_args(argv)
    python = pythons.find(PYTHON)
    if python is None:
        print(f"torch {TORCH} was NOT checked: Python {PYTHON} with its headers was not found")
        return 0
    compiler = build_checks.check_all()
    try:
        toolkit = cuda_checks.require_toolkit(compiler)
        torch = torch_files.headers(TORCH, args.folder, PYTHON, cuda=True)
    except (torch_files.TorchFilesError, cuda_checks.LackError) as problem:
        print(f"fastrnn: {problem}", file=sys.stderr)
        return 1
    includes = [ROOT / "csrc", *torch_files.include_folders(torch), python.include]
    includes += [Path(folder) for folder in toolkit.includes]
    files = sources()
    errors = compile_errors(list(compiler.command), includes, files, int(os.environ.get("MAX_JOBS", "2")))
    for text in errors:
        print(text, file=sys.stderr)
    against = f"torch {TORCH} and Python {PYTHON}"
    print(
        f"{len(files) - len(errors)} of {len(files)} sources compile against {against} ({shlex.join(compiler.command)})"
    )
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
