"""Compiles a cell's header into kernels for a GPU, with nvcc, and keeps them in the cell cache.

A shared object holds a cell's kernels for GPUs of one compute capability and for one dtype. `fastrnn._cuda` loads it
and runs it by the drivers of the built-in cells, so there are kernels only where that is built and can run.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from pathlib import Path

import torch

from fastrnn import _gpu
from fastrnn.custom import build
from fastrnn.custom.cache import BuildError, Library, cached

#: By dtype, a bit for each of csrc/cuda/kernels.h: Format. float32 may be multiplied as tf32: torch's setting decides,
#: call by call.
FORMATS = {torch.float32: 1 | 1 << 4, torch.float64: 1 << 1, torch.bfloat16: 1 << 2, torch.float16: 1 << 3}
COMPILE: tuple[str, ...] = (
    "-O3",
    "-std=c++17",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-w",
)
MAX_STATES = 4  # csrc/cuda/args.h
LOWEST = (8, 0)  # the tensor cores' bfloat16 and tf32

_missing: dict[tuple[str, torch.dtype, tuple[int, int]], str] = {}
_ready: set[tuple[str, torch.dtype, torch.device]] = set()  # kernels that are loaded stay so


def prepare(name: str, header: str, dtype: torch.dtype, device: torch.device) -> str:
    """Sees to it that a cell has kernels for a GPU and dtype; why it has none, or an empty string.

    Args:
        name: of the cell's struct in ``header``.
    """
    if (name, dtype, device) in _ready:
        return ""
    if dtype not in FORMATS:
        return f"no kernels for {dtype}"
    problem = _gpu.problem(device)
    if problem:
        return f"no kernels on {device.type}, {problem}"
    try:
        index = torch.cuda.current_device() if device.index is None else device.index
        capability = torch.cuda.get_device_capability(index)
    except (RuntimeError, AssertionError) as error:  # a tensor that is a fake, of a GPU that is not there
        return f"no kernels on {device.type}, {str(error).splitlines()[0]}"
    asked, text = (name, dtype, capability), str(dtype).removeprefix("torch.")
    with build.lock_of(f"{name} on a GPU"):
        if asked in _missing:
            return _missing[asked]
        try:
            if not _gpu.module.has_kernels(name, text, index):
                major, minor = capability
                load = functools.partial(_gpu.module.load_cell, capability=10 * major + minor)
                library(name, header, capability, dtype).load(load)
        except (BuildError, ImportError) as error:
            _missing[asked] = f"no kernels on {device.type}, {error}"
            return _missing[asked]
        if device.index is not None:
            _ready.add((name, dtype, device))
    return ""


def forget(name: str) -> None:
    """Lets kernels of a cell that could not be had be tried again."""
    for asked in [a for a in list(_missing) if a[0] == name]:
        _missing.pop(asked, None)


def library(name: str, header: str, capability: tuple[int, int], dtype: torch.dtype) -> Library:
    """The shared object of a cell's kernels, out of the cache or built now.

    Raises:
        BuildError: it is not there and cannot be built.
    """
    if capability < LOWEST:
        raise BuildError(f"compute capability {capability[0]}.{capability[1]} is below {LOWEST[0]}.{LOWEST[1]}")
    nvcc, host = toolkit(), host_compiler()
    files = sources(name, header, FORMATS[dtype])
    flags = (*COMPILE, f"-gencode=arch=compute_{architecture(capability)},code=sm_{architecture(capability)}")
    version = build.compiler_version((str(nvcc),))
    parts = (build.headers_digest("cuda"), version, str(nvcc), build.compiler_version((host,)), host, *flags)
    command = [
        str(nvcc),
        *flags,
        f"-ccbin={host}",
        "-I.",
        f"-I{build.headers()}",
        "-shared",
        "cell.cu",
        "-o",
        "cell.so",
    ]
    return cached(name, files, parts, lambda folder: build.run([*command, *runtime(nvcc)], folder))


def sources(name: str, header: str, formats: int) -> dict[str, str]:
    """All files of a shared object, by name."""
    unit = (
        f"#define FASTRNN_ISA_CUDA 1\n#define FASTRNN_ISA_NAME cuda\n#define FASTRNN_FORMATS {formats}\n"
        f'#define FASTRNN_CELL_HEADER "cell.h"\n#define FASTRNN_CELL_NAME {name}\n#include "cuda/custom_unit.h"\n'
    )
    return {"cell.h": header, "cell.cu": unit}


def architecture(capability: tuple[int, int]) -> str:
    """As nvcc calls it. Compute capability 9.0 has instructions of its own under the name 90a."""
    return f"{capability[0]}{capability[1]}{'a' if capability == (9, 0) else ''}"


def host_compiler() -> str:
    """The C++ compiler for the host's part, a path: of ``ccache g++ -m64`` it is g++'s."""
    program = [word for word in build.compiler() if not word.startswith("-")][-1]
    return shutil.which(program) or program


@functools.cache
def toolkit() -> Path:
    """nvcc: that of CUDA_HOME or CUDA_PATH, on PATH, of NVIDIA's Python packages, or in the usual place.

    Raises:
        BuildError: there is none, or it is of another CUDA than torch.
    """
    wanted = (torch.version.cuda or "").partition(".")[0]
    nvcc = _find_nvcc(wanted)
    release = re.search(r"release (\d+)\.(\d+)", build.compiler_version((str(nvcc),)))
    if release is None:
        raise BuildError(f"{nvcc} --version names no release")
    if release.group(1) != wanted:
        found = ".".join(release.groups())
        raise BuildError(
            f"{nvcc} is of CUDA {found} and torch of {torch.version.cuda}: set CUDA_HOME to such a toolkit"
        )
    return nvcc


def _find_nvcc(major: str) -> Path:
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        home = os.environ.get(variable, "").strip()
        if home:
            if (Path(home) / "bin" / "nvcc").is_file():
                return Path(home) / "bin" / "nvcc"
            raise BuildError(f"{variable}={home} has no bin/nvcc")
    on_path = shutil.which("nvcc")
    if on_path:
        return Path(on_path)
    homes = [_packages() / f"cu{major}", _packages() / "cuda_nvcc", Path("/usr/local/cuda")]
    for folder in homes:
        if (folder / "bin" / "nvcc").is_file():
            return folder / "bin" / "nvcc"
    raise BuildError("there is no nvcc: install the CUDA toolkit of torch's version and set CUDA_HOME to its folder")


def _packages() -> Path:
    """Where NVIDIA's Python packages lie beside torch."""
    return Path(torch.__file__).resolve().parent.parent / "nvidia"


def runtime(nvcc: Path) -> list[str]:
    """nvcc's options for CUDA's runtime library: the one that torch has loaded, found again by its name.

    Not a copy inside the shared object. A Python package has no file without a version, which nvcc itself looks for.
    """
    home, packages = nvcc.resolve().parent.parent, _packages()
    folders = [home / "lib64", home / "lib", *sorted(home.glob("targets/*/lib"))]
    folders += [*sorted(packages.glob("cu[0-9]*/lib")), packages / "cuda_runtime" / "lib"]
    major = (torch.version.cuda or "").partition(".")[0]
    for folder in folders:
        file = folder / f"libcudart.so.{major}"
        if file.exists():
            return ["--cudart=none", f"-Xlinker={file}"]
    return ["--cudart=shared"]
