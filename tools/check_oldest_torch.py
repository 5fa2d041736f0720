"""Check that every C++ source of ``fastrnn._cuda`` compiles against the oldest supported torch.

    python tools/check_oldest_torch.py FOLDER

The build of ``make cuda-check`` uses the newest torch. This compiles the same host sources, without generating code,
with the headers of torch 2.11.0 and Python 3.12. The headers are taken from torch's wheel, which is downloaded into
FOLDER once; neither that torch nor that Python is installed or run. Without Python 3.12, it prints a note and exits
with 0.
"""

from __future__ import annotations

import argparse
import glob
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import build_checks
import cuda_checks

ROOT = Path(__file__).resolve().parent.parent
TORCH, PYTHON = "2.11.0", "3.12"
SOURCES = ("csrc/ops/*.cpp", "csrc/ops/cuda/*.cpp", "csrc/cuda/*.cpp")
FLAGS = ["-fsyntax-only", "-std=c++20", "-w", "-DFASTRNN_ISA_CUDA=1", "-DFASTRNN_ISA_NAME=cuda"]


class CheckError(Exception):
    """A reason why the check cannot run, in one sentence."""


def python_include() -> Path | None:
    """Return the folder of Python 3.12's headers; None without such a Python on PATH or in pyenv."""
    on_path = shutil.which(f"python{PYTHON}")
    pyenv = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
    for program in [on_path, *sorted(glob.glob(f"{pyenv}/versions/{PYTHON}.*/bin/python"), reverse=True)]:
        if program is None:
            continue
        asked = [program, "-c", "import sysconfig; print(sysconfig.get_path('include'))"]
        said = subprocess.run(asked, capture_output=True, text=True)
        folder = Path(said.stdout.strip() or "missing")
        if said.returncode == 0 and (folder / "Python.h").is_file():
            return folder
    return None


def download_wheel(folder: Path) -> Path:
    """Download torch's wheel of that version for that Python, and return its path. Raises CheckError."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", PYTHON, "--platform", "manylinux_2_28_x86_64", f"torch=={TORCH}", "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("torch-*.whl"))
    if done.returncode != 0 or not wheels:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise CheckError(f"torch {TORCH} could not be downloaded: {last}")
    return wheels[0]


def extract_headers(wheel: Path, folder: Path) -> None:
    """Extract torch's include folder into `folder`, or nothing. Raises CheckError if torch is not built for CUDA."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        names = [name for name in archive.namelist() if name.startswith("torch/include/")]
        if not any(name.endswith("c10/cuda/impl/cuda_cmake_macros.h") for name in names):
            raise CheckError(f"{wheel.name}: expected a torch built for CUDA, got one without its headers")
        archive.extractall(scratch, names)
        Path(scratch, "torch", "include").rename(folder)


def torch_include(folder: Path) -> Path:
    """Return the include folder of that torch below `folder`, downloaded if needed. Raises CheckError."""
    include = folder / f"torch-{TORCH}"
    if not include.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"Downloading the headers of torch {TORCH}", flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            extract_headers(download_wheel(Path(scratch)), include)
    return include


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
    python = python_include()
    if python is None:
        print(f"torch {TORCH} was NOT checked: Python {PYTHON} with its headers was not found")
        return 0
    compiler = build_checks.check_all()
    try:
        toolkit = cuda_checks.require_toolkit(compiler)
        torch = torch_include(args.folder)
    except (CheckError, cuda_checks.LackError) as problem:
        print(f"fastrnn: {problem}", file=sys.stderr)
        return 1
    includes = [ROOT / "csrc", torch, torch / "torch" / "csrc" / "api" / "include", python]
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
