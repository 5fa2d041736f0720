"""Compiles the CPU part with ninja: the kernels as a shared library, and on it a module for each torch and Python.

Three groups of objects, each compiled once for all that it serves:

- the kernels (csrc/cpu and the generated units): one library for every torch and Python;
- the operators and the autograd node (csrc/ops, and what of csrc/python knows no Python): once for each torch;
- the module (the rest of csrc/python): once for each torch and Python.

setup.py builds one module, tools/build_wheels.py those of all wheels. See docs/design/0008-wheels.md.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import build_checks
import generate_units

ROOT = Path(__file__).resolve().parent.parent
#: Folder of the libraries, below `fastrnn`. fastrnn/_parts.py reads the names.
FOLDER = "_lib"
KERNELS = "libfastrnn_kernels." + ("dylib" if sys.platform == "darwin" else "so")

#: The same results on every instruction set: fused multiply-add only where the code says so.
FLAGS = ["-std=c++20", "-fPIC", "-fwrapv", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno"]
FLAGS += ["-fno-trapping-math", "-DNDEBUG", "-Wall"]
# gcc 12 finds uses of uninitialized variables hundreds of times in its own AVX-512 headers.
FLAGS += ["-Wno-maybe-uninitialized", "-Wno-uninitialized"]
KERNEL_FLAGS = ["-O3"]
# The loops that are hot use vectors and only need unrolling. -O3 of gcc makes 36 % more code, which is not faster.
KERNEL_FLAGS_GCC = ["-O2", "-fpeel-loops"]
# Nothing of what faces torch is hot but one loop (csrc/ops/finite.cpp), which -O2 of gcc would not vectorise.
TORCH_FLAGS = ["-O2", "-ftree-loop-vectorize", "-DAT_PER_OPERATOR_HEADERS"]
TORCH_FLAGS_GCC = ["-fvect-cost-model=dynamic"]
TORCH_LIBRARIES = ("c10", "torch_cpu", "torch_python")


class Torch(NamedTuple):
    """A torch to compile against; it need not be installed."""

    version: str
    includes: Sequence[Path]
    libraries: Path  # a folder with TORCH_LIBRARIES or stand-ins of the same names

    @property
    def minor(self) -> str:
        """The part of the version that the binary interface depends on, such as ``2.13``."""
        return ".".join(re.findall(r"\d+", self.version)[:2])


class Python(NamedTuple):
    """A Python to compile against; only its headers are read."""

    includes: Sequence[Path]
    suffix: str  # of extension modules, such as ``.cpython-311-x86_64-linux-gnu.so``


def part_name(torch: Torch, python: Python) -> str:
    """The file of the module for a torch and a Python."""
    return f"torch{torch.minor}{python.suffix}"


class Build:
    """The ninja file of a build.

    Args:
        folder: for objects and results; what is up to date there is not compiled again.
        compiler: from `build_checks.find_compiler`.
        compile_flags: further ones, for all sources.
        link_flags: further ones, for all libraries.
        system_flags: further ones, for sources that call the system; the generated units do not.
        module_sources: further ones, linked into every module.
    """

    def __init__(
        self,
        folder: Path,
        compiler: build_checks.Compiler,
        compile_flags: Sequence[str] = (),
        link_flags: Sequence[str] = (),
        system_flags: Sequence[str] = (),
        module_sources: Sequence[Path] = (),
    ) -> None:
        self.folder, self.compiler = folder.absolute(), compiler
        command = build_checks.with_ccache(compiler.command)
        self._link_flags = [*link_flags, *_environment("LDFLAGS")]
        asked = _quoted(_environment("CPPFLAGS", "CFLAGS", "CXXFLAGS"))
        self._lines = ["ninja_required_version = 1.5"]
        for rule, flags in (("compile", system_flags), ("compile_unit", ())):
            own = [*FLAGS, *compile_flags, *flags, *compiler.openmp_compile, f"-I{ROOT / 'csrc'}"]
            cxx = f"{_quoted([*command, *own])} $options {asked}"
            self._lines += [f"rule {rule}", f"  command = {cxx} -MMD -MF $out.d -c $in -o $out"]
            self._lines += ["  depfile = $out.d", "  deps = gcc"]
        self._lines += ["rule link", f"  command = {_quoted(compiler.command)} $in -o $out $options"]
        self._operators: dict[str, str] = {}  # the object, by torch's version
        self._targets: list[Path] = []
        self._gcc = self.compiler.version.startswith("gcc")
        self._add_kernels()
        self._module_objects = self._compile(module_sources, "module", ["-O2"])

    @property
    def kernels(self) -> Path:
        return self.folder / "lib" / KERNELS

    def add_part(self, torch: Torch, python: Python) -> Path:
        """Add the module for a torch and a Python; return where it will be."""
        options = [*TORCH_FLAGS, *(TORCH_FLAGS_GCC if self._gcc else []), *(f"-I{folder}" for folder in torch.includes)]
        if torch.version not in self._operators:
            sources = generate_units.generate_operators(self.folder / "units")
            self._operators[torch.version] = self._compile(sources, f"torch-{torch.version}", options)
        sources = generate_units.generate_module(self.folder / "units")
        options += [f"-I{folder}" for folder in python.includes]
        module = self._compile(sources, f"torch-{torch.version}{python.suffix}", options)
        part = self.folder / "lib" / part_name(torch, python)
        libraries = ["-L", str(self.kernels.parent), "-lfastrnn_kernels", "-L", str(torch.libraries)]
        libraries += [f"-l{name}" for name in TORCH_LIBRARIES]
        if sys.platform == "darwin":
            link = ["-bundle", "-undefined", "dynamic_lookup", "-Wl,-rpath,@loader_path"]
        else:
            # Each is needed at run time, also a stand-in that defines nothing.
            link = ["-shared", "-Wl,-rpath,$ORIGIN", "-Wl,--no-as-needed"]
        objects = f"{self._operators[torch.version]} {module} {self._module_objects}"
        self._link(part, objects, [*link, *libraries], [self.kernels])
        return part

    def text(self) -> str:
        """The ninja file."""
        defaults = " ".join(_path(path) for path in self._targets)
        return "\n".join([*self._lines, f"default {defaults}", ""])

    def run(self, jobs: int) -> bool:
        """Compile what is out of date, and say of each step what is done; return True if all went well."""
        (self.folder / "build.ninja").write_text(self.text(), encoding="utf-8")
        command = ["ninja", "-C", str(self.folder), "-j", str(jobs), "-v"]
        return subprocess.run(command).returncode == 0

    def _add_kernels(self) -> None:
        units = generate_units.generate(self.folder / "units", self.compiler.arch)
        options = KERNEL_FLAGS_GCC if self._gcc else KERNEL_FLAGS
        objects = self._compile(sorted((ROOT / "csrc" / "cpu").glob("*.cpp")), "kernels", options)
        objects += " " + self._compile(units, "kernels", options, "compile_unit")
        if sys.platform == "darwin":
            link = ["-dynamiclib", "-install_name", f"@rpath/{KERNELS}", "-undefined", "dynamic_lookup"]
        else:
            # OpenMP's names stay open: what defines them is the runtime that torch has loaded, whatever its file.
            link = ["-shared", f"-Wl,-soname,{KERNELS}"]
        self._link(self.kernels, objects, link, [])

    def _compile(self, sources: Sequence[Path], folder: str, options: Sequence[str], rule: str = "compile") -> str:
        """Add the compilation of sources into a folder; return the objects, as ninja reads them."""
        objects = []
        for source in sources:
            target = _path(self.folder / folder / f"{source.stem}.o")
            self._lines += [f"build {target}: {rule} {_path(source)}", f"  options = {_quoted(options)}"]
            objects.append(target)
        return " ".join(objects)

    def _link(self, target: Path, objects: str, options: Sequence[str], needed: Sequence[Path]) -> None:
        after = f" | {' '.join(_path(path) for path in needed)}" if needed else ""
        self._lines += [f"build {_path(target)}: link {objects}{after}"]
        self._lines += [f"  options = {_quoted([*options, *self._link_flags])}"]
        self._targets.append(target)


def install(libraries: Sequence[Path], folder: Path) -> list[Path]:
    """Leave `folder` with these libraries and no others, and untouched those that are the same already.

    Others would be of an older build, and the kernels that they call may have changed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {path.name for path in libraries}
    for old in folder.iterdir():
        if old.name not in names:
            old.unlink()
    placed = []
    for library in libraries:
        target = folder / library.name
        if not target.is_file() or target.read_bytes() != library.read_bytes():
            # A process that has loaded the old file keeps it.
            new = folder / f"{library.name}.new"
            shutil.copy2(library, new)
            new.replace(target)
        placed.append(target)
    return placed


def _environment(*names: str) -> list[str]:
    return [flag for name in names for flag in shlex.split(os.environ.get(name, ""))]


def _quoted(command: Sequence[str]) -> str:
    return shlex.join(command).replace("$", "$$")


def _path(path: Path) -> str:
    """A path as ninja's build lines want it."""
    return re.sub(r"([$ :])", r"$\1", str(path.absolute()))
