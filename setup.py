"""Builds the C++ kernels and their torch binding (tools/native_build.py), and the CUDA kernels (fastrnn._cuda) where
there is what they need (tools/cuda_checks.py). All metadata is in pyproject.toml.

The binding is compiled against the torch it runs with, so torch is no build requirement that pip may fetch by itself:
install torch first, then ``pip install --no-build-isolation -e .``. tools/build_wheels.py compiles for several torches
itself and calls this file to make wheels of the result: ``build_ext --prebuilt FOLDER bdist_wheel --tag TAG``.

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
import sysconfig
from pathlib import Path

import setuptools

# As in pyproject.toml, which an older one refuses with two pages of complaints.
if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(
        "fastrnn: setuptools %s is too old: pip install --upgrade 'setuptools>=77' ninja && "
        "pip install --no-build-isolation -e ." % setuptools.__version__
    )

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import build_checks  # noqa: E402 (needs the path above)
import build_progress  # noqa: E402
import cuda_checks  # noqa: E402
import generate_units  # noqa: E402
import native_build  # noqa: E402

# The host's part of the CUDA kernels counts as one more instruction set.
CUDA_MACROS = ["-DFASTRNN_ISA_CUDA=1", "-DFASTRNN_ISA_NAME=cuda"]
CUDA_LIBRARIES = ["cudart", "c10_cuda", "torch_cuda"]


def sources(*patterns):
    """Return the files that match, relative to the repository, as setuptools requires."""
    found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return [path.relative_to(ROOT).as_posix() for path in found]


def cpu_sources():
    return sources("csrc/python/*.cpp", "csrc/ops/*.cpp", "csrc/ops/cpu/*.cpp", "csrc/cpu/*.cpp")


def cuda_sources():
    return sources("csrc/ops/*.cpp", "csrc/ops/cuda/*.cpp", "csrc/cuda/*.cpp", "csrc/cuda/*.cu")


class BuildKernels(build_ext):
    """Checks the machine and builds the libraries. torch's BuildExtension (ninja) compiles the CUDA kernels.

    torch is imported in run() and not at the top, because making an sdist or reading the version needs no torch.
    """

    user_options = build_ext.user_options + [("prebuilt=", None, "take the CPU libraries from this folder")]

    asked_prebuilt = None  # of all instances: bdist_wheel makes another one, which has not seen the command line

    def initialize_options(self):
        super().initialize_options()
        self.prebuilt = BuildKernels.asked_prebuilt
        self.installed = []

    def finalize_options(self):
        BuildKernels.asked_prebuilt = self.prebuilt
        self.asked_build_temp = self.build_temp
        super().finalize_options()

    def run(self):
        if self.prebuilt is not None:
            self.install(sorted(Path(self.prebuilt).iterdir()))
            return
        compiler = build_checks.check_all()
        toolkit = cuda_checks.find_toolkit(compiler)
        if not cpu_sources() or not cuda_sources():
            build_checks.fail("csrc/ has no sources: use a complete checkout or sdist, git clone it again")
        os.environ.setdefault("MAX_JOBS", str(usable_cpus()))
        if self.asked_build_temp is None:
            # An editable build would otherwise compile in a throw-away folder, and every build would be a full one.
            self.build_temp = str(ROOT / "build" / build_tag())
        self.build_cpu(compiler)
        if toolkit:
            cuda = self.extensions[1]
            # Both torch and setuptools read it. torch puts ccache in front by itself.
            os.environ["CXX"] = shlex.join(build_checks.without_ccache(compiler.command))
            self.configure_cuda(cuda, toolkit)
            self.run_with_torch(cuda, Path(self.build_temp) / "cuda", "the CUDA kernels")

    def build_cpu(self, compiler):
        import torch

        if self.distribution.verbose or not compiler.openmp_compile:
            openmp = "on" if compiler.openmp_compile else "off (kernels use one thread)"
            print("fastrnn: %s for %s, OpenMP %s" % (compiler.version, compiler.arch, openmp), flush=True)
        include = build_checks.find_torch_include()
        includes = [include, include / "torch" / "csrc" / "api" / "include"]
        includes += [Path(folder) for folder in build_checks.pybind11_include(include)]
        own_torch = native_build.Torch(str(torch.__version__), includes, include.parent / "lib")
        paths = dict.fromkeys(sysconfig.get_path(key) for key in ("include", "platinclude"))
        own_python = native_build.Python([Path(path) for path in paths], sysconfig.get_config_var("EXT_SUFFIX"))
        try:
            build = native_build.Build(Path(self.build_temp), compiler, debug_flags())
        except ValueError as error:
            build_checks.fail(str(error))
        part = build.add_part(own_torch, own_python)
        with build_progress.only_progress() if not self.distribution.verbose else contextlib.nullcontext():
            succeeded = build.run(int(os.environ["MAX_JOBS"]))
            if not succeeded:
                build_checks.fail("compiling the kernels failed: the compiler's first error is above")
        self.install([build.kernels, part])

    def install(self, libraries):
        """Install the libraries into the package, in the checkout or in the build folder."""
        package = ROOT / "fastrnn" if self.inplace else Path(self.build_lib) / "fastrnn"
        self.installed = native_build.install(libraries, package / native_build.FOLDER)
        for old in package.glob("_C.*.so"):  # of an earlier layout; Python would prefer it to _C.py
            old.unlink()

    def get_outputs(self):
        return [str(path) for path in self.installed] + [
            path for path in super().get_outputs() if Path(path).name.startswith("_cuda") and Path(path).is_file()
        ]

    def get_output_mapping(self):
        """Return no files to link: the libraries of an editable installation are in the checkout."""
        return {}

    def add_units(self, extension, generate, *arguments):
        """Add generated units, late because the list of sources goes into the sdist and the units do not."""
        try:
            units = generate(Path(self.build_temp) / "units", *arguments)
        except ValueError as error:
            build_checks.fail(str(error))
        extension.sources += [str(u.relative_to(ROOT) if u.is_relative_to(ROOT) else u.absolute()) for u in units]

    def configure_cuda(self, extension, toolkit):
        from torch.utils import cpp_extension

        cpp_extension.CUDA_HOME = str(toolkit.home)  # its own guess takes a script on PATH for the toolkit's nvcc
        os.environ["TORCH_DONT_CHECK_COMPILER_ABI"] = "1"  # a table of compilers; this one was tried out
        torch_part = cpp_extension.CppExtension(extension.name, [])
        extension.include_dirs = [str(ROOT / "csrc")] + torch_part.include_dirs
        extension.include_dirs += build_checks.pybind11_include(build_checks.find_torch_include())
        self.add_units(extension, generate_units.generate_cuda)
        extension.include_dirs += toolkit.includes
        extension.library_dirs = torch_part.library_dirs + toolkit.library_folders()
        extension.libraries = torch_part.libraries + CUDA_LIBRARIES
        flags = ["-O3"] + native_build.FLAGS + debug_flags() + CUDA_MACROS
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
    """Copies the headers of the kernels into the package: custom cells (fastrnn.cell) are compiled from them."""

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


class TaggedWheel(bdist_wheel):
    """bdist_wheel for a Python other than the running one."""

    user_options = bdist_wheel.user_options + [("tag=", None, "python, abi and platform: cp311-cp311-linux_x86_64")]

    def initialize_options(self):
        super().initialize_options()
        self.tag = None

    def get_tag(self):
        return super().get_tag() if self.tag is None else tuple(self.tag.split("-"))


class CheckedDistInfo(dist_info):
    """Checks requirements when pip asks for the metadata, before it downloads dependencies and builds."""

    def run(self):
        compiler = build_checks.check_all()
        if build_checks.cuda_request() == "1":
            cuda_checks.find_toolkit(compiler)
        super().run()


def build_tag():
    """Return a name for the build folder that differs by Python, platform and torch."""
    import torch

    return "-".join([sys.implementation.cache_tag, sys.platform, platform.machine(), "torch" + torch.__version__])


def usable_cpus():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def debug_flags():
    """Return -g0 unless -g is requested: Python's own flags often contain it, which doubles build time and size."""
    asked = os.environ.get("CFLAGS", "") + " " + os.environ.get("CXXFLAGS", "")
    return [] if "-g" in asked else ["-g0"]


setup(
    ext_modules=[
        Extension("fastrnn._C", cpu_sources(), language="c++"),
        Extension("fastrnn._cuda", cuda_sources(), language="c++"),
    ],
    cmdclass={
        "build_ext": BuildKernels,
        "build_py": BuildPython,
        "bdist_wheel": TaggedWheel,
        "dist_info": CheckedDistInfo,
    },
)
