"""Requirements of a build, checked before it starts.

Every missing requirement ends the build with one sentence that says what is missing and the command that helps:
SystemExit with a message is what pip, setuptools and a plain shell all show without a traceback.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import NamedTuple, NoReturn

MIN_TORCH = (2, 11)
MIN_GCC = 10
MIN_CLANG = 12
INSTALL = "pip install --no-build-isolation -e ."

# Only looked at while CXX is unset: the machine's default first, then versions that stand beside an old default.
CXX_CANDIDATES = ["c++", "g++", "clang++"]
CXX_CANDIDATES += [f"g++-{v}" for v in range(20, MIN_GCC - 1, -1)]
CXX_CANDIDATES += [f"clang++-{v}" for v in range(25, MIN_CLANG - 1, -1)]

# Says something about the library too: an old libstdc++ beside a new clang has no <span>.
PROBE = """
#include <concepts>
#include <span>
#ifdef _OPENMP
#include <omp.h>
extern "C" int probe_threads() { return omp_get_max_threads(); }
#endif
template <std::floating_point T> T first(std::span<const T> x) { return x[0]; }
extern "C" float probe_first(const float* x) { return first(std::span<const float>(x, 1)); }
"""


class Compiler(NamedTuple):
    command: list[str]
    version: str
    arch: str
    openmp_compile: list[str]
    openmp_link: list[str]


def fail(sentence: str) -> NoReturn:
    raise SystemExit(f"fastrnn: {sentence}")


def isolated_build() -> bool:
    """Return True in the temporary environment of pip, build or uv, where the installed torch is not visible."""
    markers = ("pip-build-env-", "build-env-", "builds-v0")
    return any(marker in path for path in [sys.prefix, *sys.path] for marker in markers)


def check_platform() -> None:
    if sys.platform == "win32":
        fail("the kernels build on Linux and macOS; on Windows install inside WSL: wsl --install")


def cuda_request() -> str:
    """Return the value of FASTRNN_BUILD_CUDA: ``0``, ``1`` or ``auto``."""
    request = os.environ.get("FASTRNN_BUILD_CUDA", "auto").strip().lower() or "auto"
    if request not in ("0", "1", "auto"):
        fail(f"FASTRNN_BUILD_CUDA must be 0, 1 or auto, not {request!r}: unset FASTRNN_BUILD_CUDA")
    return request


def check_torch() -> None:
    wanted = f"torch>={MIN_TORCH[0]}.{MIN_TORCH[1]}"
    if importlib.util.find_spec("torch") is None:
        if isolated_build():
            fail(
                "the build needs the torch that fastrnn will run with, and an isolated build cannot see it: "
                f"pip install '{wanted}' 'setuptools>=77' ninja && {INSTALL}"
            )
        fail(
            f"torch is missing from {sys.prefix}, and the kernels are compiled against it: "
            f"pip install '{wanted}' 'setuptools>=77' ninja && {INSTALL}"
        )
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways: OSError, ImportError, AttributeError
        lines = str(error).splitlines() or [type(error).__name__]
        fail(f"torch is installed but cannot be imported ({lines[0]}): pip install --force-reinstall '{wanted}'")
    version = str(torch.__version__)
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < MIN_TORCH:
        fail(f"torch {version} is too old: pip install --upgrade '{wanted}' && {INSTALL}")


def check_ninja() -> None:
    if shutil.which("ninja") is not None:
        return
    # The package's own program counts too: with `path/to/venv/bin/python` called directly it is not on PATH.
    scripts = Path(sysconfig.get_path("scripts"))
    if (scripts / "ninja").is_file():
        os.environ["PATH"] = os.pathsep.join([str(scripts), os.environ.get("PATH", "")])
        return
    fail(f"ninja is missing, and it runs the compiler: pip install ninja && {INSTALL}")


def pybind11_include(torch_include: Path) -> list[str]:
    """Return the folder of torch's own pybind11 if it has one, so that types match, else of the package."""
    if (torch_include / "pybind11" / "pybind11.h").is_file():
        return []
    if importlib.util.find_spec("pybind11") is None:
        fail(f"pybind11 is missing, and this torch brings no copy of it: pip install pybind11 && {INSTALL}")
    import pybind11

    return [pybind11.get_include()]


def check_python_headers() -> None:
    if any((Path(sysconfig.get_path(key)) / "Python.h").is_file() for key in ("include", "platinclude")):
        return
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    fail("Python.h is missing: " + system_command(f"python{version}-dev", f"python{version}-devel", "python"))


def system_command(apt: str, dnf: str, other: str) -> str:
    """Return the command with which this system installs a package."""
    if sys.platform == "darwin":
        return "xcode-select --install"
    if shutil.which("apt-get"):
        return f"sudo apt-get install {apt}"
    if shutil.which("dnf"):
        return f"sudo dnf install {dnf}"
    if shutil.which("pacman"):
        return f"sudo pacman -S {other}"
    return f"sudo apt-get install {apt} (Debian, Ubuntu) or sudo dnf install {dnf} (Fedora, RHEL)"


def predefined_macros(command: list[str]) -> dict[str, str] | None:
    """Return the compiler's predefined macros, or None if it does not run or is no C++ compiler."""
    for standard in (["-std=c++20"], []):  # an old compiler refuses the first, and can still tell its version
        try:
            done = subprocess.run(
                [*command, *standard, "-dM", "-E", "-x", "c++", "-"], input="", capture_output=True, text=True
            )
        except OSError:
            return None
        if done.returncode == 0:
            pairs = (line.split(None, 2)[1:] for line in done.stdout.splitlines() if line.startswith("#define "))
            macros = {pair[0]: pair[1] if len(pair) > 1 else "" for pair in pairs}
            return macros if "__cplusplus" in macros else None
    return None


def compiler_version(macros: dict[str, str]) -> tuple[str, bool]:
    """Return the compiler's name with its version, and True if it is new enough."""
    if "__clang_major__" in macros:
        major = int(macros["__clang_major__"])
        name = "Apple clang" if "__apple_build_version__" in macros else "clang"
        return f"{name} {major}.{macros.get('__clang_minor__', '0')}", major >= MIN_CLANG
    major = int(macros.get("__GNUC__", "0"))
    return f"gcc {major}.{macros.get('__GNUC_MINOR__', '0')}", major >= MIN_GCC


def target_arch(macros: dict[str, str]) -> str:
    """Return the target architecture, which differs from the host's in a cross-build."""
    if "__x86_64__" in macros:
        return "x86_64"
    return "aarch64" if "__aarch64__" in macros else "other"


def try_probe(command: list[str], compile_flags: list[str], link_flags: list[str]) -> str | None:
    """Return None if a shared library can be built, else the compiler's first error."""
    with tempfile.TemporaryDirectory() as scratch:
        source, library = Path(scratch, "probe.cpp"), Path(scratch, "probe.so")
        source.write_text(PROBE, encoding="utf-8")
        undefined = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        flags = ["-std=c++20", "-fPIC", "-shared", *compile_flags]
        done = subprocess.run(
            [*command, *flags, str(source), "-o", str(library), *undefined, *link_flags],
            capture_output=True,
            text=True,
        )
    if done.returncode == 0:
        return None
    errors = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or ["no output"]
    return errors[0].strip()


def find_openmp(command: list[str], version: str, torch_include: Path) -> tuple[list[str], list[str]]:
    """Flags for compiling and linking; empty ones where there is no OpenMP to share: then kernels run on one thread.

    torch's own runtime has to be it. On Linux that is gcc's, and code by clang needs LLVM's: with both in a process
    each has its own threads, and neither knows that the other's are at work.
    """
    if sys.platform == "linux" and version.startswith("clang"):
        return [], []
    if sys.platform == "darwin":
        # torch brings the runtime and loads it: linking another one would give the process two thread pools.
        compile_flags, link_flags = ["-Xclang", "-fopenmp", f"-I{torch_include}"], []
    else:
        compile_flags, link_flags = ["-fopenmp"], ["-fopenmp"]
    if try_probe(command, compile_flags, link_flags) is None:
        return compile_flags, link_flags
    return [], []


def find_compiler(torch_include: Path) -> Compiler:
    chosen = os.environ.get("CXX", "").strip()
    commands = [shlex.split(chosen)] if chosen else [[name] for name in CXX_CANDIDATES if shutil.which(name)]
    too_old = ""
    single: Compiler | None = None
    for command in commands:
        macros = predefined_macros(command)
        if macros is None:
            continue
        version, new_enough = compiler_version(macros)
        if not new_enough:
            too_old = too_old or f"{shlex.join(command)} is {version}"
            continue
        error = try_probe(command, [], [])
        if error is not None:
            fail(
                f"{shlex.join(command)} ({version}) cannot compile a small C++20 program ({error}): "
                + system_command("g++", "gcc-c++", "gcc")
            )
        found = Compiler(command, version, target_arch(macros), *find_openmp(command, version, torch_include))
        if found.openmp_compile:
            return found
        single = single or found  # a later one may serve all threads
    if single is not None:
        warn_of_one_thread(single)
        return single

    needed = f"fastrnn needs gcc {MIN_GCC} or clang {MIN_CLANG} or newer, for C++20"
    if too_old:
        helps = system_command("g++-12", "gcc-toolset-13-gcc-c++", "gcc")
        fail(f"{too_old}, and {needed}: {helps}, and then set CXX to the new compiler")
    helps = system_command("g++", "gcc-c++", "gcc")
    if chosen:
        fail(f"CXX={chosen} is not a C++ compiler that can be run ({needed}): unset CXX, or {helps}")
    fail(f"no C++ compiler was found ({needed}): {helps}")


def with_ccache(command: list[str]) -> list[str]:
    """The command, through ccache if that is installed and the command does not use it already."""
    wrapper = shutil.which("ccache")
    return command if wrapper is None or uses_ccache(command[0]) else [wrapper, *command]


def without_ccache(command: list[str]) -> list[str]:
    """The command without ccache in front of it, for tools that put it there themselves."""
    return command[1:] if len(command) > 1 and uses_ccache(command[0]) else command


def uses_ccache(program: str) -> bool:
    """Return True for ccache, and for a compiler's name that is a link to it."""
    return Path(os.path.realpath(shutil.which(program) or program)).name == "ccache"


def warn_of_one_thread(compiler: Compiler) -> None:
    name = f"{shlex.join(compiler.command)} ({compiler.version})"
    print(
        f"fastrnn: warning: {name} cannot share torch's OpenMP threads, so that the kernels will use one thread only; "
        "with gcc they use all: " + system_command("g++", "gcc-c++", "gcc") + ", and unset CXX",
        file=sys.stderr,
    )


def check_all() -> Compiler:
    """Everything but CUDA, in the order in which a person would mend it. Returns the compiler to use."""
    check_platform()
    cuda_request()
    check_torch()
    check_ninja()
    torch_include = find_torch_include()
    pybind11_include(torch_include)
    check_python_headers()
    return find_compiler(torch_include)


def find_torch_include() -> Path:
    import torch

    return Path(torch.__file__).parent / "include"
