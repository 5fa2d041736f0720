"""Builds fastrnn._C, the C++ kernels and their torch binding, and fastrnn._cuda, those for GPUs, where there is what
they need (tools/cuda_checks.py). All metadata is in pyproject.toml.

The kernels are compiled against the torch they run with, so torch is no build requirement that pip may fetch by itself:
install torch first, then ``pip install --no-build-isolation -e .``.

This file must stay readable for any Python, or an old one could not say that it is too old.
"""

import contextlib
import os
import shlex
import sys

if sys.version_info < (3, 10):
    raise SystemExit(
        "fastrnn: Python %d.%d is too old, fastrnn needs Python 3.10 or newer: "
        "python3.11 -m venv .venv && . .venv/bin/activate" % sys.version_info[:2]
    )

import platform
from pathlib import Path

import setuptools

# As in pyproject.toml, which an older one refuses with two pages of complaints.
if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(
        "fastrnn: setuptools %s is too old: pip install --upgrade 'setuptools>=77' ninja && "
        "pip install --no-build-isolation -e ." % setuptools.__version__
    )

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import build_checks  # noqa: E402 (needs the path above)
import build_progress  # noqa: E402
import cuda_checks  # noqa: E402
import generate_units  # noqa: E402

COMPILE_FLAGS = [
    "-O3",
    "-std=c++20",
    "-fvisibility=hidden",
    "-ffp-contract=off",  # the same results on every instruction set: fused multiply-add only where the code says so
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wno-maybe-uninitialized",  # gcc 12 finds these two hundreds of times in its own AVX-512 headers
    "-Wno-uninitialized",
]
# The host's part of the CUDA kernels counts as one more instruction set.
CUDA_MACROS = ["-DFASTRNN_ISA_CUDA=1", "-DFASTRNN_ISA_NAME=cuda"]
CUDA_LIBRARIES = ["cudart", "c10_cuda", "torch_cuda"]


def sources(*patterns):
    """What is in the repository; paths relative to it, as setuptools wants them."""
    found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return [path.relative_to(ROOT).as_posix() for path in found]


def cpu_sources():
    return sources("csrc/python/*.cpp", "csrc/ops/*.cpp", "csrc/ops/cpu/*.cpp", "csrc/cpu/*.cpp")


def cuda_sources():
    return sources("csrc/ops/*.cpp", "csrc/ops/cuda/*.cpp", "csrc/cuda/*.cpp", "csrc/cuda/*.cu")


class BuildKernels(build_ext):
    """Checks the machine, generates the kernel units, hands over to torch's BuildExtension (ninja).

    torch is imported in run() and not at the top, because making an sdist or reading the version needs no torch.
    """

    def finalize_options(self):
        self.asked_build_temp = self.build_temp
        super().finalize_options()

    def run(self):
        compiler = build_checks.check_all()
        toolkit = cuda_checks.find_toolkit(compiler)
        if not cpu_sources() or not cuda_sources():
            build_checks.fail("csrc/ has no sources: use a complete checkout or sdist, git clone it again")
        os.environ["CXX"] = shlex.join(compiler.command)  # both torch and setuptools read it
        os.environ.setdefault("MAX_JOBS", str(usable_cpus()))
        if self.asked_build_temp is None:
            # An editable build would otherwise compile in a throw-away folder, and every build would be a full one.
            self.build_temp = str(ROOT / "build" / build_tag())
        cpu, cuda = self.extensions
        self.extensions = [cpu, cuda] if toolkit else [cpu]
        self.configure_cpu(cpu, compiler)
        self.run_with_torch(cpu, Path(self.build_temp), "the kernels")
        if toolkit:
            self.configure_cuda(cuda, toolkit)
            self.run_with_torch(cuda, Path(self.build_temp) / "cuda", "the CUDA kernels")

    def add_units(self, extension, generate, *arguments):
        """Only now, as the list of sources goes into the sdist and the units do not."""
        try:
            units = generate(Path(self.build_temp) / "units", *arguments)
        except ValueError as error:
            build_checks.fail(str(error))
        extension.sources += [str(u.relative_to(ROOT) if u.is_relative_to(ROOT) else u.absolute()) for u in units]

    def configure(self, extension):
        """What every part needs of torch."""
        from torch.utils.cpp_extension import CppExtension

        torch_part = CppExtension(extension.name, [])
        extension.include_dirs = [str(ROOT / "csrc")] + torch_part.include_dirs
        extension.include_dirs += build_checks.pybind11_include(build_checks.find_torch_include())
        extension.library_dirs = torch_part.library_dirs
        extension.libraries = torch_part.libraries

    def configure_cpu(self, extension, compiler):
        self.configure(extension)
        self.add_units(extension, generate_units.generate, compiler.arch)
        extension.extra_compile_args = {"cxx": COMPILE_FLAGS + debug_flags() + compiler.openmp_compile}
        extension.extra_link_args = compiler.openmp_link
        if self.distribution.verbose or not compiler.openmp_compile:
            print(
                "fastrnn: %s for %s, OpenMP %s"
                % (compiler.version, compiler.arch, "on" if compiler.openmp_compile else "off (kernels use one thread)")
            )

    def configure_cuda(self, extension, toolkit):
        from torch.utils import cpp_extension

        cpp_extension.CUDA_HOME = str(toolkit.home)  # its own guess takes a script on PATH for the toolkit's nvcc
        os.environ["TORCH_DONT_CHECK_COMPILER_ABI"] = "1"  # a table of compilers; this one was tried out
        self.configure(extension)
        self.add_units(extension, generate_units.generate_cuda)
        extension.include_dirs += toolkit.includes
        extension.library_dirs = extension.library_dirs + toolkit.library_folders()
        extension.libraries = extension.libraries + CUDA_LIBRARIES
        flags = COMPILE_FLAGS + debug_flags() + CUDA_MACROS
        extension.extra_compile_args = {"cxx": flags, "nvcc": toolkit.nvcc_flags() + CUDA_MACROS}
        if self.distribution.verbose:
            print("fastrnn: %s" % toolkit.describe())

    def run_with_torch(self, extension, build_temp, what):
        """Runs torch's build_ext on this command's state, for one extension.

        Each has a folder of its own, because torch writes one file for ninja into it.
        """
        from torch.utils.cpp_extension import BuildExtension

        command = BuildExtension(self.distribution)
        for name, value in vars(self).items():
            setattr(command, name, value)
        command.extensions = [extension]
        command.build_temp = str(build_temp)
        command.force = True  # ninja decides what is out of date, it knows the headers
        quiet = not self.distribution.verbose
        try:
            with build_progress.only_progress() if quiet else contextlib.nullcontext():
                command.run()
        except RuntimeError:  # torch's answer when ninja stops; a traceback would push the compiler's words away
            build_checks.fail("compiling %s failed: the compiler's first error is above" % what)


class BuildPython(build_py):
    """Puts the kernels' headers beside the package: cells of a user's own are compiled from them (fastrnn.cell)."""

    def headers(self):
        paths = sources("csrc/cpu/*.h", "csrc/cuda/*.h", "csrc/simd/*.h")
        return [(path, os.path.join(self.build_lib, "fastrnn", *path.split("/"))) for path in paths]

    def run(self):
        super().run()
        if not self.editable_mode:  # then they are where they are
            for source, target in self.headers():
                self.mkpath(os.path.dirname(target))
                self.copy_file(str(ROOT / source), target, preserve_mode=False)

    def get_outputs(self, include_bytecode=1):
        return super().get_outputs(include_bytecode) + [target for _, target in self.headers()]


class CheckedDistInfo(dist_info):
    """pip asks for the metadata first, and fetches all dependencies before it builds: say early what will not work."""

    def run(self):
        compiler = build_checks.check_all()
        if build_checks.cuda_request() == "1":
            cuda_checks.find_toolkit(compiler)
        super().run()


def build_tag():
    """Objects of another Python or another torch must not be taken for these."""
    import torch

    return "-".join([sys.implementation.cache_tag, sys.platform, platform.machine(), "torch" + torch.__version__])


def usable_cpus():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def debug_flags():
    """Python's own flags often bring -g, which doubles build time and size; asked for by hand it stays."""
    asked = os.environ.get("CFLAGS", "") + " " + os.environ.get("CXXFLAGS", "")
    return [] if "-g" in asked else ["-g0"]


setup(
    ext_modules=[
        Extension("fastrnn._C", cpu_sources(), language="c++"),
        Extension("fastrnn._cuda", cuda_sources(), language="c++"),
    ],
    cmdclass={"build_ext": BuildKernels, "build_py": BuildPython, "dist_info": CheckedDistInfo},
)
