"""Checks a wheel without installing it: its files, what its libraries need, and that every name they use is there.

    python tools/check_wheel.py WHEEL...

A module of the wheel is linked with stand-ins of torch's libraries, so the linker cannot say that a name is missing.
Here each name that it uses is looked up in the list of those that the torch in question defines.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import native_build
import torch_files

ROOT = Path(__file__).resolve().parent.parent
#: The newest version of each library's names that manylinux_2_28 promises.
PROMISED = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 25), "CXXABI": (1, 3, 11), "GCC": (8, 0, 0)}
SYSTEM = {"libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0"}
SYSTEM |= {"ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
#: Names that nobody has to define: the runtime of OpenMP is whichever torch has loaded; weak ones may be missing.
_OPENMP = re.compile(r"(GOMP|omp)_\w+")
_PYTHON = re.compile(r"_?Py[A-Z_]\w*")
# U or w, and the name with the version that is wanted of it, if any.
_UNDEFINED = re.compile(r"^(\S+?)(?:@+(\S+))? ([Uwv])\b")


def undefined(library: Path) -> list[tuple[str, str, bool]]:
    """Return the names that a library uses and does not define: (name, its version or "", whether it is weak)."""
    command = ["nm", "--dynamic", "--undefined-only", "--format=posix", "--with-symbol-versions", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = (_UNDEFINED.match(line) for line in done.stdout.splitlines())
    return [(match[1], match[2] or "", match[3] != "U") for match in found if match]


def needed(library: Path) -> tuple[set[str], str]:
    """Return the libraries that a library is linked with, and its run path."""
    done = subprocess.run(["readelf", "--dynamic", "--wide", str(library)], capture_output=True, text=True, check=True)
    names = set(re.findall(r"\(NEEDED\).*\[(.*)\]", done.stdout))
    return names, "".join(re.findall(r"\((?:RUNPATH|RPATH)\).*\[(.*)\]", done.stdout))


def too_new(version: str) -> bool:
    """Return True if manylinux_2_28 has no such version of a name, as ``GLIBC_2.34``."""
    library, _, numbers = version.partition("_")
    if not re.fullmatch(r"[\d.]+", numbers):
        return True
    return tuple(int(n) for n in numbers.split(".")) > PROMISED.get(library, ())


def library_problems(library: Path, allowed: set[str], defined: frozenset[str] | set[str]) -> Iterator[str]:
    """Problems of a library that may use certain other libraries and names."""
    libraries, run_path = needed(library)
    if wrong := sorted(libraries - allowed - SYSTEM):
        yield f"{library.name} is linked with {', '.join(wrong)}"
    if missing := sorted(allowed - libraries):
        yield f"{library.name} is not linked with {', '.join(missing)}"
    if run_path not in ("", "$ORIGIN"):
        yield f"{library.name} has the run path {run_path}"
    names = undefined(library)
    if wrong := sorted({f"{name}@{version}" for name, version, _ in names if version and too_new(version)}):
        yield f"{library.name} needs what manylinux_2_28 has not: {', '.join(wrong)}"
    missing = [name for name, version, weak in names if not version and not weak and name not in defined]
    if missing := sorted(name for name in missing if not _OPENMP.fullmatch(name) and not _PYTHON.fullmatch(name)):
        yield f"{library.name} uses names that nothing defines: {', '.join(missing[:5])} ({len(missing)} in all)"


def file_problems(files: Sequence[str], libraries: set[str]) -> Iterator[str]:
    """Files of a wheel that are missing, or should not be there."""
    sources = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("fastrnn/**/*.py")]
    headers = [path for part in ("cpu", "cuda", "simd") for path in ROOT.glob(f"csrc/{part}/*.h")]
    headers_inside = [f"fastrnn/{path.relative_to(ROOT).as_posix()}" for path in headers]
    expected = {*sources, *headers_inside, "_fastrnn_command.py", "fastrnn/py.typed"}
    expected |= {f"fastrnn/{native_build.FOLDER}/{name}" for name in libraries}
    if missing := sorted(expected - set(files)):
        yield f"{', '.join(missing[:5])} missing ({len(missing)} files)"
    compiled = [name for name in files if re.search(r"\.(so|o|a)(\.|$)", name)]
    if extra := sorted(set(compiled) - expected):
        yield f"{', '.join(extra)} should not be there"


def problems(wheel: Path, torches: Sequence[str], suffix: str, folder: Path) -> list[str]:
    """Return all that is wrong with a wheel for versions of torch and the Python with that suffix of modules.

    Args:
        folder: where `torch_files` keeps what it knows of each torch.
    """
    python = native_build.Python([], suffix)
    parts = {native_build.part_name(native_build.Torch(torch, [], folder), python): torch for torch in torches}
    libraries = {native_build.KERNELS, *parts}
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as scratch:
        found = list(file_problems(archive.namelist(), libraries))
        for name in archive.namelist():
            if name.startswith(f"fastrnn/{native_build.FOLDER}/"):
                archive.extract(name, scratch)
        there = Path(scratch, "fastrnn", native_build.FOLDER)
        kernels = there / native_build.KERNELS
        if not kernels.is_file():
            return found
        found += library_problems(kernels, set(), set())
        for name, torch in parts.items():
            if (there / name).is_file():
                defined = torch_files.defined_names(torch, folder) | torch_files.names_of(kernels)
                found += library_problems(there / name, {native_build.KERNELS, *torch_files.LIBRARIES}, defined)
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Check wheels that tools/build_wheels.py has made.")
    parser.add_argument("wheels", type=Path, nargs="+")
    parser.add_argument("--torches", nargs="+", default=torch_files.TORCHES, metavar="VERSION")
    parser.add_argument("--torch-files", type=Path, default=ROOT / "build" / "torch", help="folder (build/torch)")
    args = parser.parse_args(argv)
    failed = False
    for wheel in args.wheels:
        with zipfile.ZipFile(wheel) as archive:
            names = [re.search(rf"/{native_build.FOLDER}/torch\d+\.\d+(\..*)$", name) for name in archive.namelist()]
        suffix = next((name[1] for name in names if name), ".so")
        found = problems(wheel, args.torches, suffix, args.torch_files)
        failed = failed or bool(found)
        print(f"{wheel.name}: {'; '.join(found) or 'passed'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
