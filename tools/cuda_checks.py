"""Checks before the CUDA kernels are built: torch must be built for CUDA, and nvcc be of the same CUDA version.

``FASTRNN_BUILD_CUDA`` decides what a lack means: ``auto`` (the default) omits the kernels and prints the reason in one
line, ``1`` ends the build with that reason, ``0`` skips the checks.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import build_checks

DEFAULT_ARCHITECTURES = "8.0;9.0a+PTX"
LOWEST = (8, 0)  # the first with bfloat16 and tf32 in tensor cores
STANDARD = "-std=c++17"
# Headers that torch's CUDA headers include. A toolkit may lack those of the libraries, which torch's wheels contain.
HEADERS = ("cuda_runtime_api.h", "cublas_v2.h", "cublasLt.h", "cusparse.h", "cusolverDn.h")

PROBE = """
#include <cuda_runtime.h>
#include <cuda_fp16.h>
#include <type_traits>
template <class T> __global__ void probe(T* x) { static_assert(std::is_arithmetic_v<T>); x[threadIdx.x] = 0; }
void launch(float* x) { probe<<<1, 32>>>(x); }
"""


class LackError(Exception):
    """A missing requirement and its remedy, in one sentence."""


class Toolkit(NamedTuple):
    home: Path
    version: tuple[int, int]
    includes: list[str]  # folders, first that of the toolkit
    architectures: list[str]  # nvcc's options
    host: str  # the C++ compiler that nvcc uses, a path

    def nvcc_flags(self) -> list[str]:
        """Return the compiler flags of every CUDA source."""
        flags = ["-O3", STANDARD, "--expt-relaxed-constexpr", "-Xcompiler=-fvisibility=hidden", f"-ccbin={self.host}"]
        return flags + self.architectures

    def library_folders(self) -> list[str]:
        return [str(folder) for folder in (self.home / "lib64", self.home / "lib") if folder.is_dir()]

    def describe(self) -> str:
        codes = [flag.rpartition("code=")[2] for flag in self.architectures]
        return f"CUDA {self.version[0]}.{self.version[1]} for {', '.join(codes)}"


def find_toolkit(compiler: build_checks.Compiler) -> Toolkit | None:
    """Return the toolkit to build the CUDA kernels with, None to omit them. Call after `build_checks.check_all`."""
    request = build_checks.cuda_request()
    if request == "0":
        return None
    try:
        return require_toolkit(compiler)
    except LackError as lack:
        if request == "1":
            build_checks.fail(f"FASTRNN_BUILD_CUDA=1, but {lack}")
        print(f"fastrnn: without CUDA kernels: {lack}", flush=True)
        return None


def require_toolkit(compiler: build_checks.Compiler) -> Toolkit:
    """Return the toolkit, after a trial compilation. Raises LackError."""
    import torch

    wanted = torch_cuda_version(torch)
    home = toolkit_home()
    version = nvcc_version(home / "bin" / "nvcc")
    if version[0] != wanted[0]:
        raise LackError(
            f"nvcc in {home} is CUDA {version[0]}.{version[1]} and torch {torch.__version__} is built for CUDA "
            f"{wanted[0]}.{wanted[1]}: install the CUDA {wanted[0]} toolkit and set CUDA_HOME to its folder"
        )
    includes = include_folders(home, Path(torch.__file__).parent.parent, wanted[0])
    flags = architecture_flags(os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or DEFAULT_ARCHITECTURES)
    found = Toolkit(home, version, includes, flags, host_compiler(compiler))
    try_probe(found)
    return found


def torch_cuda_version(torch: object) -> tuple[int, int]:
    """Return the CUDA version that torch is built for. Raises LackError if it is built for none."""
    version = getattr(torch, "version", None)
    cuda = getattr(version, "cuda", None)
    if not cuda:
        built_for = "ROCm" if getattr(version, "hip", None) else "the CPU"
        raise LackError(
            f"torch {getattr(torch, '__version__', '')} is built for {built_for}: install torch's CUDA build, "
            "see https://pytorch.org/get-started/locally"
        )
    major, minor = [*str(cuda).split("."), "0"][:2]
    return int(major), int(minor)


def toolkit_home() -> Path:
    """Return the toolkit's folder: CUDA_HOME, else that of the nvcc on PATH, else the usual one. Raises LackError."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        given = os.environ.get(name, "").strip()
        if given:
            if (Path(given) / "bin" / "nvcc").is_file():
                return Path(given).resolve()
            raise LackError(f"{name}={given} has no bin/nvcc: set {name} to the CUDA toolkit's folder, or unset it")
    on_path = shutil.which("nvcc")
    usual = Path("/usr/local/cuda")
    homes = [home_of(on_path)] if on_path else []
    for home in [*homes, usual]:
        if (home / "bin" / "nvcc").is_file():
            return home.resolve()
    if on_path:
        raise LackError(f"the toolkit of {on_path} was not found: set CUDA_HOME to its folder")
    raise LackError("nvcc was not found: install the CUDA toolkit of torch's version and set CUDA_HOME to its folder")


def home_of(nvcc: str) -> Path:
    """Return the folder of an nvcc's toolkit, as nvcc reports it: on PATH may be a script that calls another nvcc."""
    try:
        done = subprocess.run([nvcc, "--dryrun", "-x", "cu", os.devnull], capture_output=True, text=True)
        top = re.search(r"^#\$ TOP=(.+)$", done.stderr + done.stdout, re.MULTILINE)
    except OSError:
        top = None
    return Path(top.group(1).strip()) if top else Path(nvcc).resolve().parent.parent


def nvcc_version(nvcc: Path) -> tuple[int, int]:
    try:
        said = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True).stdout
    except OSError as error:
        raise LackError(f"{nvcc} cannot be run ({error.strerror}): install the CUDA toolkit again") from None
    release = re.search(r"release (\d+)\.(\d+)", said)
    if release is None:
        raise LackError(f"{nvcc} --version names no release: install the CUDA toolkit again")
    return int(release.group(1)), int(release.group(2))


def include_folders(home: Path, site: Path, major: int) -> list[str]:
    """Return the folders of all headers that torch's CUDA headers include: those of the toolkit and of wheels."""
    folders = [home / "include", site / "nvidia" / f"cu{major}" / "include"]
    folders += sorted((site / "nvidia").glob("*/include"))  # the wheels of CUDA 12 have a folder per library
    found = [str(folder) for folder in dict.fromkeys(folders) if folder.is_dir()]
    for header in HEADERS:
        if not any(Path(folder, header).is_file() for folder in found):
            raise LackError(
                f"{header} is neither in {home}/include nor in {site}/nvidia: install the libraries of the CUDA "
                f"{major} toolkit"
            )
    return found


def architecture_flags(text: str) -> list[str]:
    """Return nvcc's options for a list as in TORCH_CUDA_ARCH_LIST: ``8.0;9.0a+PTX``. Raises LackError.

    ``+PTX`` adds PTX, which newer GPUs compile when they load it; for 9.0a that of 9.0, as 9.0a's runs on no other GPU.
    """
    flags = []
    for entry in re.split(r"[;,\s]+", text.strip(" ;,")):
        parsed = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry, re.IGNORECASE)
        if parsed is None:
            raise LackError(f"TORCH_CUDA_ARCH_LIST has {entry!r}, expected a list such as {DEFAULT_ARCHITECTURES!r}")
        major, minor, suffix = parsed.group(1), parsed.group(2), parsed.group(3).lower()
        if (int(major), int(minor)) < LOWEST:
            raise LackError(f"TORCH_CUDA_ARCH_LIST has {entry!r}, and the kernels need compute capability 8.0 or newer")
        number = major + minor
        flags.append(f"-gencode=arch=compute_{number}{suffix},code=sm_{number}{suffix}")
        if parsed.group(4):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return list(dict.fromkeys(flags))


def host_compiler(compiler: build_checks.Compiler) -> str:
    """Return the compiler for nvcc, which takes a program alone: g++ for ``ccache g++ -m64``."""
    program = [word for word in compiler.command if not word.startswith("-")][-1]
    return shutil.which(program) or program


def try_probe(toolkit: Toolkit) -> None:
    """Compile a few lines for all architectures, to check that nvcc accepts the C++ compiler and the architectures."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "probe.cu")
        source.write_text(PROBE, encoding="utf-8")
        command = [str(toolkit.home / "bin" / "nvcc"), *toolkit.nvcc_flags()]
        command += ["-c", str(source), "-o", str(Path(scratch, "probe.o"))]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return
    said = (done.stderr + done.stdout).splitlines() or ["no output"]
    errors = [line for line in said if "error" in line or "fatal" in line] or said
    raise LackError(
        f"nvcc {toolkit.version[0]}.{toolkit.version[1]} with {toolkit.host} cannot compile a small kernel "
        f"({errors[0].strip()}): choose another compiler with CXX, or other GPUs with TORCH_CUDA_ARCH_LIST"
    )


def main() -> int:
    """Print the toolkit's folder, without importing torch; exit with status 1 and a message if there is none."""
    try:
        print(toolkit_home())
    except LackError as lack:
        print(f"fastrnn: {lack}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
