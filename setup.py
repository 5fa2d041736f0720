"""Builds fastrnn._C, the C++ kernels and their torch binding. All metadata is in pyproject.toml.

The kernels are compiled against the torch they run with, so torch is no build requirement that pip may fetch by itself:
install torch first, then ``pip install --no-build-isolation -e .``.

This file must stay readable for any Python, or an old one could not say that it is too old.
"""

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
from setuptools.command.dist_info import dist_info

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import build_checks  # noqa: E402 (needs the path above)
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


def torch_sources():
    """What is in the repository; paths relative to it, as setuptools wants them."""
    found = sorted(ROOT.glob("csrc/binding/*.cpp")) + sorted(ROOT.glob("csrc/cpu/*.cpp"))
    return [path.relative_to(ROOT).as_posix() for path in found]


class BuildKernels(build_ext):
    """Checks the machine, generates the kernel units, hands over to torch's BuildExtension (ninja).

    torch is imported in run() and not at the top, because making an sdist or reading the version needs no torch.
    """

    def finalize_options(self):
        self.asked_build_temp = self.build_temp
        super().finalize_options()

    def run(self):
        compiler = build_checks.check_all()
        if not torch_sources():
            build_checks.fail("csrc/ has no sources: use a complete checkout or sdist, git clone it again")
        os.environ["CXX"] = shlex.join(compiler.command)  # both torch and setuptools read it
        os.environ.setdefault("MAX_JOBS", str(usable_cpus()))
        if self.asked_build_temp is None:
            # An editable build would otherwise compile in a throw-away folder, and every build would be a full one.
            self.build_temp = str(ROOT / "build" / build_tag())
        try:
            units = generate_units.generate(Path(self.build_temp) / "units", compiler.arch)
        except ValueError as error:
            build_checks.fail(str(error))
        self.configure_extension(compiler, units)
        self.run_with_torch()

    def configure_extension(self, compiler, units):
        from torch.utils.cpp_extension import CppExtension

        (extension,) = self.extensions
        torch_part = CppExtension(extension.name, [])
        extension.include_dirs = [str(ROOT / "csrc")] + torch_part.include_dirs
        extension.include_dirs += build_checks.pybind11_include(build_checks.find_torch_include())
        extension.library_dirs = torch_part.library_dirs
        extension.libraries = torch_part.libraries
        extension.extra_compile_args = {"cxx": COMPILE_FLAGS + debug_flags() + compiler.openmp_compile}
        extension.extra_link_args = compiler.openmp_link
        # Only now, as this list goes into the sdist and the units do not.
        extension.sources += [str(u.relative_to(ROOT) if u.is_relative_to(ROOT) else u.absolute()) for u in units]
        print(
            "fastrnn: %s for %s, OpenMP %s"
            % (compiler.version, compiler.arch, "on" if compiler.openmp_compile else "off (kernels use one thread)")
        )

    def run_with_torch(self):
        """Runs torch's build_ext on this command's state."""
        from torch.utils.cpp_extension import BuildExtension

        command = BuildExtension(self.distribution)
        for name, value in vars(self).items():
            setattr(command, name, value)
        command.force = True  # ninja decides what is out of date, it knows the headers
        try:
            command.run()
        except (
            RuntimeError
        ):  # torch's answer when ninja stops; a traceback would push the compiler's words off the screen
            build_checks.fail("compiling the kernels failed: the compiler's first error is above")


class CheckedDistInfo(dist_info):
    """pip asks for the metadata first, and fetches all dependencies before it builds: say early what will not work."""

    def run(self):
        build_checks.check_all()
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
    ext_modules=[Extension("fastrnn._C", torch_sources(), language="c++")],
    cmdclass={"build_ext": BuildKernels, "dist_info": CheckedDistInfo},
)
