"""Compilation of a cell's header into kernels for a GPU, with nvcc, stored in the cell cache.

A shared object holds a cell's kernels for one compute capability and one dtype. `fastrnn._cuda` loads it and runs it
with the drivers of the built-in cells, so kernels are available only if `fastrnn._cuda` is built and can run.
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

#: For each dtype the bits of enum Format in csrc/cuda/kernels.h. float32 may also be multiplied as tf32, depending on
#: torch's setting at each call.
FORMATS = {torch.float32: 1 | 1 << 4, torch.float64: 1 << 1, torch.bfloat16: 1 << 2, torch.float16: 1 << 3}
COMPILE: tuple[str, ...] = (
    "-O3",
    "-std=c++17",
    "--expt-relaxed-constexpr",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-w",
)
MAX_STATES = 4  # csrc/cuda/args.h
LOWEST = (8, 0)  # the first with bfloat16 and tf32 tensor cores

_missing: dict[tuple[str, torch.dtype, tuple[int, int]], str] = {}
_ready: set[tuple[str, torch.dtype, torch.device]] = set()  # loaded kernels are never unloaded


def prepare(name: str, header: str, dtype: torch.dtype, device: torch.device) -> str:
    """Ensure that a cell has kernels for a GPU and dtype; return the problem or an empty string.

    Args:
        name: the name of the cell's struct in ``header``.
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
    except (RuntimeError, AssertionError) as error:  # a fake tensor on a GPU that does not exist
        return f"no kernels on {device.type}, {str(error).splitlines()[0]}"
    key, text = (name, dtype, capability), str(dtype).removeprefix("torch.")
    with build.lock_of(f"{name} on a GPU"):
        if key in _missing:
            return _missing[key]
        try:
            if not _gpu.module.has_kernels(name, text, index):
                major, minor = capability
                load = functools.partial(_gpu.module.load_cell, capability=10 * major + minor)
                library(name, header, capability, dtype).load(load)
        except (BuildError, ImportError) as error:
            _missing[key] = f"no kernels on {device.type}, {error}"
            return _missing[key]
        if device.index is not None:
            _ready.add((name, dtype, device))
    return ""


def forget(name: str) -> None:
    """Allow another attempt for kernels of a cell that could not be built."""
    for key in [k for k in list(_missing) if k[0] == name]:
        _missing.pop(key, None)


def library(name: str, header: str, capability: tuple[int, int], dtype: torch.dtype) -> Library:
    """Return the shared object of a cell's kernels, from the cache or built now.

    Raises:
        BuildError: it is not in the cache and cannot be built.
    """
    if capability < LOWEST:
        lowest, got = ".".join(map(str, LOWEST)), ".".join(map(str, capability))
        raise BuildError(f"expected compute capability {lowest} or higher, got {got}")
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
    """Return all source files of a shared object, by name."""
    unit = (
        f"#define FASTRNN_ISA_CUDA 1\n#define FASTRNN_ISA_NAME cuda\n#define FASTRNN_FORMATS {formats}\n"
        f'#define FASTRNN_CELL_HEADER "cell.h"\n#define FASTRNN_CELL_NAME {name}\n#include "cuda/custom_unit.h"\n'
    )
    return {"cell.h": header, "cell.cu": unit}


def architecture(capability: tuple[int, int]) -> str:
    """Return the architecture's name for nvcc; 9.0 is 90a, which enables its specific instructions."""
    return f"{capability[0]}{capability[1]}{'a' if capability == (9, 0) else ''}"


def host_compiler() -> str:
    """Return the path of the C++ compiler for host code; for ``ccache g++ -m64`` that of g++."""
    program = [word for word in build.compiler() if not word.startswith("-")][-1]
    return shutil.which(program) or program


@functools.cache
def toolkit() -> Path:
    """Return nvcc: that of CUDA_HOME or CUDA_PATH, on PATH, of NVIDIA's Python packages, or in the default folder.

    Raises:
        BuildError: nvcc is not found, or its CUDA version does not match torch's.
    """
    wanted = (torch.version.cuda or "").partition(".")[0]
    nvcc = _find_nvcc(wanted)
    release = re.search(r"release (\d+)\.(\d+)", build.compiler_version((str(nvcc),)))
    if release is None:
        raise BuildError(f"{nvcc} --version reports no release")
    if release.group(1) != wanted:
        version = ".".join(release.groups())
        raise BuildError(
            f"{nvcc} has CUDA {version} but torch has {torch.version.cuda}: set CUDA_HOME to a matching toolkit"
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
    raise BuildError("nvcc not found: install the CUDA toolkit of torch's version and set CUDA_HOME to its folder")


def _packages() -> Path:
    """Return the folder of NVIDIA's Python packages, next to torch."""
    return Path(torch.__file__).resolve().parent.parent / "nvidia"


def runtime(nvcc: Path) -> list[str]:
    """Return nvcc's options for the CUDA runtime: dynamic linking with the library that torch has loaded.

    The Python packages have no unversioned file, which nvcc would look for, so the file is passed by name.
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
