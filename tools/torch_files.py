"""Headers of a torch that is not installed, to compile against, and the names that its libraries define.

Both are taken from torch's wheel, which pip downloads once; neither that torch nor its Python is run. Headers do not
depend on the Python. Libraries to link with are stand-ins: shared objects with the right name and nothing in them, as
an extension finds torch's own in the process that loads it. So that a missing name is found before that, the names that
torch's libraries define are kept in a list (`defined_names`), with which tools/check_wheel.py compares.
"""

from __future__ import annotations

import gzip
import os
import platform
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

#: The torches that wheels serve: the first release of every minor version, as later ones have what it has.
TORCHES = ("2.11.0", "2.12.0", "2.13.0", "2.14.0", "2.15.0")
#: The libraries that fastrnn's module needs, and with them all names that it may use.
LIBRARIES = ("libc10.so", "libtorch_cpu.so", "libtorch_python.so")
PLATFORMS = {"x86_64": "manylinux_2_28_x86_64", "aarch64": "manylinux_2_28_aarch64"}
_NAMES = "names.txt.gz"
_CUDA_HEADER = "c10/cuda/impl/cuda_cmake_macros.h"


class TorchFilesError(Exception):
    """A reason why the files of a torch cannot be had, in one sentence."""


def headers(version: str, folder: Path, python: str = "3.12", cuda: bool = False) -> Path:
    """Return the include folder of a torch, below `folder`; download its wheel if need be.

    Args:
        version: such as ``2.11.0``.
        python: whose wheel is taken.
        cuda: refuse a torch that is built for the CPU alone.

    Raises:
        TorchFilesError: there is no such wheel, or it has not what is wanted.
    """
    return _files(version, folder, python, cuda) / "include"


def defined_names(version: str, folder: Path, python: str = "3.12") -> frozenset[str]:
    """Return the names that the libraries of a torch define, with the arguments of `headers`."""
    with gzip.open(_files(version, folder, python, cuda=False) / _NAMES, "rt", encoding="utf-8") as file:
        return frozenset(file.read().split())


def _files(version: str, folder: Path, python: str, cuda: bool) -> Path:
    kept = folder / f"torch-{version}"
    if not kept.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"Downloading the headers of torch {version}", flush=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            extract(download_wheel(version, Path(scratch), python), kept, cuda)
    return kept


def download_wheel(version: str, folder: Path, python: str) -> Path:
    """Download torch's wheel of a version for a Python. Raises TorchFilesError."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    machine = PLATFORMS.get(platform.machine(), PLATFORMS["x86_64"])
    command += ["--python-version", python, "--platform", machine, f"torch=={version}", "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("torch-*.whl"))
    if done.returncode != 0 or not wheels:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise TorchFilesError(f"torch {version} could not be downloaded: {last}")
    return wheels[0]


def extract(wheel: Path, folder: Path, cuda: bool = False) -> None:
    """Leave `folder` with the headers and names of a wheel, or untouched. Raises TorchFilesError."""
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        files = archive.namelist()
        if cuda and f"torch/include/{_CUDA_HEADER}" not in files:
            raise TorchFilesError(f"{wheel.name}: expected a torch built for CUDA, got one without its headers")
        archive.extractall(scratch, [name for name in files if name.startswith("torch/include/")])
        kept = Path(scratch, "torch", "include").rename(Path(scratch, "include")).parent
        names: set[str] = set()
        for library in LIBRARIES:
            if f"torch/lib/{library}" in files:
                names |= names_of(Path(archive.extract(f"torch/lib/{library}", scratch)))
                Path(scratch, "torch", "lib", library).unlink()
        with gzip.open(kept / _NAMES, "wt", encoding="utf-8") as file:
            file.write("\n".join(sorted(names)))
        folder.mkdir()
        for name in ("include", _NAMES):
            (kept / name).rename(folder / name)


def names_of(library: Path) -> set[str]:
    """Return the names that a shared library defines for others."""
    command = ["nm", "--dynamic", "--defined-only", "--format=posix", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {line.split(None, 1)[0].partition("@")[0] for line in done.stdout.splitlines() if line.strip()}


def stand_ins(folder: Path, compiler: list[str]) -> Path:
    """Make libraries with the names of torch's and nothing in them; return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for library in LIBRARIES:
        if not (folder / library).is_file():
            command = [*compiler, "-shared", "-nostdlib", f"-Wl,-soname,{library}", "-x", "c", os.devnull]
            subprocess.run([*command, "-o", str(folder / library)], check=True)
    return folder


def include_folders(include: Path) -> list[Path]:
    """Return the folders that torch's headers are included from."""
    return [include, include / "torch" / "csrc" / "api" / "include"]
