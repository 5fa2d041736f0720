"""Builds one wheel for each Python, which serves all versions of torch in `torch_files.TORCHES`.

    python tools/build_wheels.py [--pythons 3.11 3.12] [--torches 2.13.0] [--out dist]

No torch is installed or run, and a Python needs only its headers. The kernels are compiled once, the operators once for
each torch, the module once for each torch and Python (tools/native_build.py). Every wheel is checked when it is made
(tools/check_wheel.py). docs/design/0008-wheels.md says why it is done so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import build_checks
import build_progress
import check_wheel
import native_build
import pythons
import torch_files

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def find_pythons(versions: Sequence[str]) -> list[pythons.Interpreter]:
    found = []
    for version in versions:
        python = pythons.find(version)
        if python is None:
            build_checks.fail(
                f"Python {version} with its headers was not found: install it, or leave it out (--pythons)"
            )
        found.append(python)
    return found


def find_torches(versions: Sequence[str], folder: Path, python: str, compiler: list[str]) -> list[native_build.Torch]:
    """The torches to compile against, of which only headers and names are kept below `folder`."""
    libraries = torch_files.stand_ins(folder / "stand-ins", compiler)
    found = []
    for version in versions:
        try:
            include = torch_files.headers(version, folder, python)
        except torch_files.TorchFilesError as error:
            build_checks.fail(str(error))
        found.append(native_build.Torch(version, torch_files.include_folders(include), libraries))
    return found


def build_libraries(
    folder: Path,
    compiler: build_checks.Compiler,
    torches: Sequence[native_build.Torch],
    interpreters: Sequence[pythons.Interpreter],
    jobs: int,
) -> dict[str, list[Path]]:
    """Compile everything; return the libraries of each Python's wheel."""
    # With these a build on a newer system is one for manylinux_2_28.
    old_glibc, old_libstdcxx = (ROOT / "csrc" / "wheel" / name for name in ("old_glibc.h", "old_libstdcxx.cpp"))
    build = native_build.Build(
        folder, compiler, ["-g0"], ["-Wl,--strip-all"], ["-include", str(old_glibc)], [old_libstdcxx]
    )
    libraries = {}
    for interpreter in interpreters:
        python = native_build.Python([interpreter.include], interpreter.suffix)
        libraries[interpreter.version] = [build.kernels, *(build.add_part(torch, python) for torch in torches)]
    with build_progress.only_progress():
        if not build.run(jobs):
            build_checks.fail("compiling the kernels failed: the compiler's first error is above")
    return libraries


def make_wheel(
    interpreter: pythons.Interpreter, libraries: Sequence[Path], arch: str, out: Path, scratch: Path
) -> Path:
    """Put libraries and package into a wheel; return its path."""
    shutil.rmtree(scratch, ignore_errors=True)
    prebuilt = scratch / "libraries"
    prebuilt.mkdir(parents=True)
    for library in libraries:
        shutil.copy2(library, prebuilt)
    tag = f"{interpreter.tag}-{interpreter.tag}-{torch_files.PLATFORMS[arch]}"
    command = [sys.executable, "-W", "ignore", "setup.py", "--quiet", "build", "--build-base", str(scratch / "build")]
    command += ["egg_info", "--egg-base", str(scratch), "build_ext", "--prebuilt", str(prebuilt)]
    command += ["bdist_wheel", "--tag", tag, "--bdist-dir", str(scratch / "wheel"), "--dist-dir", str(scratch)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        build_checks.fail(f"making the wheel for Python {interpreter.version} failed:\n{done.stdout}{done.stderr}")
    out.mkdir(parents=True, exist_ok=True)
    target = out / wheels[0].name
    shutil.move(wheels[0], target)
    return target


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build wheels that serve several versions of torch.")
    parser.add_argument("--pythons", nargs="+", default=PYTHONS, metavar="VERSION")
    parser.add_argument("--torches", nargs="+", default=torch_files.TORCHES, metavar="VERSION")
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the wheels (dist)")
    parser.add_argument("--build", type=Path, default=ROOT / "build", help="folder of what is kept between builds")
    args = parser.parse_args(argv)
    build_checks.check_platform()
    build_checks.check_ninja()
    if sys.platform != "linux":
        build_checks.fail("wheels are built on Linux alone; elsewhere build from source, see docs/getting-started.md")
    interpreters = find_pythons(args.pythons)
    compiler = build_checks.find_compiler(ROOT)
    if compiler.arch not in torch_files.PLATFORMS or not compiler.openmp_compile:
        build_checks.fail(f"wheels need gcc for x86-64 or ARM, got {compiler.version} for {compiler.arch}: set CXX")
    torches = find_torches(args.torches, args.build / "torch", args.pythons[-1], compiler.command)
    jobs = int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))
    folder = args.build / f"wheels-{compiler.arch}"
    libraries = build_libraries(folder, compiler, torches, interpreters, jobs)
    for interpreter in interpreters:
        scratch = args.build / "wheel-scratch"
        wheel = make_wheel(interpreter, libraries[interpreter.version], compiler.arch, args.out, scratch)
        problems = check_wheel.problems(wheel, args.torches, interpreter.suffix, args.build / "torch")
        for problem in problems:
            print(f"fastrnn: {wheel.name}: {problem}", file=sys.stderr)
        if problems:
            return 1
        print(f"{wheel} {wheel.stat().st_size / 1e6:.1f} MB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
