"""Installs wheels into clean environments, each with one torch, and runs a quick test there without a compiler.

    python tools/try_wheels.py [--wheels dist] [--cells 3.11:2.13.0 3.11:2.15.0]

A cell of the matrix is a Python and a torch. The default: every wheel of the folder with the oldest and the newest
torch. An environment is kept (build/wheel-envs), as torch's wheel and CUDA libraries are several GB. torch comes from
where pip is told to look; `--with-compiler` leaves PATH alone, to try custom cells.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pythons
import torch_files

ROOT = Path(__file__).resolve().parent.parent


def run(command: Sequence[str | Path], **environment: str) -> tuple[bool, str]:
    """Return whether a command succeeded, and what it said."""
    names = dict(os.environ, **environment)
    for name in ("PYTHONPATH", "CXX"):
        names.pop(name, None)
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=names, cwd=ROOT / "build"
    )
    return done.returncode == 0, done.stdout + done.stderr


def try_cell(wheel: Path, version: str, torch: str, folder: Path, with_compiler: bool) -> str:
    """Run the quick test of one cell; return what is wrong, or an empty string."""
    interpreter = pythons.find(version)
    if interpreter is None:
        return f"Python {version} was not found"
    environment = folder / f"py{version}-torch{torch}"
    python = environment / "bin" / "python"
    if not python.exists():
        succeeded, said = run([interpreter.program, "-m", "venv", environment])
        if not succeeded:
            return said
    succeeded, said = run([python, "-m", "pip", "install", "--quiet", f"torch=={torch}", "numpy", "rich"])
    if not succeeded:
        return f"torch {torch} could not be installed: {said.strip().splitlines()[-1]}"
    begin = time.monotonic()
    install: list[str | Path] = [
        python,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--force-reinstall",
        wheel.resolve(),
    ]
    succeeded, said = run(install)
    if not succeeded:
        return said
    print(f"  installed in {time.monotonic() - begin:.1f} s", flush=True)
    path = {} if with_compiler else {"PATH": str(environment / "bin")}
    minor = ".".join(torch.split(".")[:2])
    succeeded, said = run([python, ROOT / "tools" / "wheel_smoke.py", minor], **path)
    if succeeded:
        print(said, end="", flush=True)
    return "" if succeeded else said


def wheel_of(folder: Path, version: str) -> Path | None:
    """The newest wheel for a Python."""
    tag = "cp" + version.replace(".", "")
    found = sorted(folder.glob(f"fastrnn-*-{tag}-{tag}-*.whl"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def default_cells(folder: Path) -> list[str]:
    tags = {match[1] for path in folder.glob("fastrnn-*.whl") if (match := re.search(r"-cp3(\d+)-", path.name))}
    ends = (torch_files.TORCHES[0], torch_files.TORCHES[-1])
    return [f"3.{minor}:{torch}" for minor in sorted(tags, key=int) for torch in ends]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Try wheels in clean environments, without a compiler.")
    parser.add_argument("--wheels", type=Path, default=ROOT / "dist", help="folder of the wheels (dist)")
    parser.add_argument("--cells", nargs="+", metavar="PYTHON:TORCH", help="such as 3.11:2.13.0")
    parser.add_argument("--environments", type=Path, default=ROOT / "build" / "wheel-envs")
    parser.add_argument("--with-compiler", action="store_true", help="leave PATH as it is")
    args = parser.parse_args(argv)
    (ROOT / "build").mkdir(exist_ok=True)
    cells = args.cells or default_cells(args.wheels)
    failed = [] if cells else [f"no wheel in {args.wheels}"]
    for cell in cells:
        version, _, torch = cell.partition(":")
        print(f"Python {version}, torch {torch}", flush=True)
        wheel = wheel_of(args.wheels, version)
        folder = args.environments.absolute()
        problem = try_cell(wheel, version, torch, folder, args.with_compiler) if wheel else "there is no wheel"
        if problem:
            print(problem, file=sys.stderr, flush=True)
            failed.append(cell)
    print(f"{len(cells) - len(failed)} of {len(cells)} passed" + (f", failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
