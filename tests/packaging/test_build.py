"""The build: generated units, what is rebuilt, and the sentence for everything that can be missing.

The sentences are checked by running setup.py for real in a bare environment: torch, setuptools and compilers that are
missing or old are put in its way as small stand-ins on PYTHONPATH and PATH.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT, load_script

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs a checkout")


units = load_script("generate_units", "tools")
ISAS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")


@pytest.fixture
def csrc(tmp_path):
    cells = tmp_path / "csrc" / "cells"
    cells.mkdir(parents=True)
    (cells / "lstm.h").touch()
    (cells / "gru.h").touch()
    (cells / "README.md").touch()
    return tmp_path / "csrc"


def names(paths):
    return sorted(path.name for path in paths)


def test_one_unit_for_every_cell_and_instruction_set(csrc, tmp_path):
    written = units.generate(tmp_path / "out", "x86_64", csrc)
    expected = [f"kernel_{cell}_{isa}.cpp" for cell in ("gru", "lstm") for isa in ISAS]
    expected += [f"kernel_products_{isa}.cpp" for isa in ISAS]
    assert names(written) == sorted([*expected, "kernel_registry.cpp"])
    assert (tmp_path / "out" / "kernel_lstm_avx512.cpp").read_text().splitlines()[1:] == [
        "#define FASTRNN_ISA_AVX512 1",
        "#define FASTRNN_ISA_NAME avx512",
        '#define FASTRNN_CELL_HEADER "cells/lstm.h"',
        "#define FASTRNN_CELL_NAME lstm",
        '#include "cpu/unit.h"',
    ]


def test_registry_names_each_pair_twice(csrc, tmp_path):
    units.generate(tmp_path / "out", "aarch64", csrc)
    assert (tmp_path / "out" / "kernel_registry.cpp").read_text().splitlines()[1:] == [
        '#include "cpu/registry.h"',
        "",
        "FASTRNN_DECLARE_CELL(gru, baseline)",
        "FASTRNN_DECLARE_CELL(lstm, baseline)",
        "",
        "FASTRNN_REGISTRY_BEGIN",
        "FASTRNN_REGISTER_CELL(gru, baseline)",
        "FASTRNN_REGISTER_CELL(lstm, baseline)",
        "FASTRNN_REGISTRY_END",
        "",
        "FASTRNN_DECLARE_PRODUCTS(baseline)",
        "",
        "FASTRNN_PRODUCTS_BEGIN",
        "FASTRNN_REGISTER_PRODUCTS(baseline)",
        "FASTRNN_PRODUCTS_END",
    ]


@pytest.mark.parametrize("arch", ["x86_64", "AMD64"])
def test_names_of_the_same_architecture(arch):
    assert units.instruction_sets(arch) == ISAS


@pytest.mark.parametrize("arch", ["aarch64", "arm64", "riscv64"])
def test_other_architectures_have_the_baseline_alone(arch):
    assert units.instruction_sets(arch) == ("baseline",)


def test_unchanged_files_are_not_written_again(csrc, tmp_path):
    for path in units.generate(tmp_path / "out", "x86_64", csrc):
        os.utime(path, (1, 1))
    (csrc / "cells" / "new_cell.h").touch()
    again = units.generate(tmp_path / "out", "x86_64", csrc)
    rewritten = names(path for path in again if path.stat().st_mtime != 1)
    assert rewritten == sorted(
        ["kernel_registry.cpp", *(f"kernel_new_cell_{i}.cpp" for i in units.instruction_sets("x86_64"))]
    )


def test_units_of_a_removed_cell_go_away(csrc, tmp_path):
    units.generate(tmp_path / "out", "aarch64", csrc)
    (csrc / "cells" / "gru.h").unlink()
    units.generate(tmp_path / "out", "aarch64", csrc)
    assert names((tmp_path / "out").iterdir()) == [
        "kernel_lstm_baseline.cpp",
        "kernel_products_baseline.cpp",
        "kernel_registry.cpp",
    ]


def test_one_unit_for_every_cell_on_a_gpu(csrc, tmp_path):
    written = units.generate_cuda(tmp_path / "out", csrc)
    assert names(written) == ["cuda_gru.cu", "cuda_lstm.cu", "cuda_registry.cpp"]
    assert (tmp_path / "out" / "cuda_gru.cu").read_text().splitlines()[1:] == [
        "#define FASTRNN_ISA_CUDA 1",
        "#define FASTRNN_ISA_NAME cuda",
        '#define FASTRNN_CELL_HEADER "cells/gru.h"',
        "#define FASTRNN_CELL_NAME gru",
        '#include "cuda/cell_unit.h"',
    ]
    assert (tmp_path / "out" / "cuda_registry.cpp").read_text().splitlines()[1:] == [
        '#include "cuda/registry.h"',
        "",
        "FASTRNN_DECLARE_CELL(gru)",
        "FASTRNN_DECLARE_CELL(lstm)",
        "",
        "FASTRNN_REGISTRY_BEGIN",
        "FASTRNN_REGISTER_CELL(gru)",
        "FASTRNN_REGISTER_CELL(lstm)",
        "FASTRNN_REGISTRY_END",
    ]


def test_units_of_a_processor_and_of_a_gpu_share_a_folder(csrc, tmp_path):
    first = units.generate(tmp_path / "out", "aarch64", csrc)
    second = units.generate_cuda(tmp_path / "out", csrc)
    (csrc / "cells" / "gru.h").unlink()
    kept = [*units.generate(tmp_path / "out", "aarch64", csrc), *units.generate_cuda(tmp_path / "out", csrc)]
    assert names((tmp_path / "out").iterdir()) == names(kept)
    assert len(kept) == len(first) + len(second) - 2


def test_a_header_whose_name_is_no_namespace_is_refused(csrc, tmp_path):
    (csrc / "cells" / "my-cell.h").touch()
    with pytest.raises(ValueError, match=r"my-cell\.h.*C\+\+ identifier"):
        units.generate(tmp_path / "out", "x86_64", csrc)


def test_generator_as_a_program(csrc, tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "generate_units.py"), str(tmp_path / "out"), "--arch", "aarch64"]
    done = subprocess.run([*command, "--csrc", str(csrc)], capture_output=True, text=True, check=True)
    assert len(done.stdout.splitlines()) == 4


# The sentences. Each run uses an environment in which only what the case names is wrong.


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """A Python without any packages."""
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder / "bin" / "python"


@pytest.fixture
def site(tmp_path):
    """A folder for PYTHONPATH, where setuptools is real and torch is a stand-in of a good version."""
    import setuptools

    folder = tmp_path / "site"
    folder.mkdir()
    packages = Path(setuptools.__file__).parent.parent
    for part in [packages / "_distutils_hack", *packages.glob("setuptools*")]:
        (folder / part.name).symlink_to(part)
    write_module(folder / "torch", "2.13.0")
    (folder / "torch" / "include" / "pybind11").mkdir(parents=True)
    (folder / "torch" / "include" / "pybind11" / "pybind11.h").touch()
    return folder


@pytest.fixture
def path(tmp_path):
    """A folder for PATH: a ninja and nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    write_program(folder / "ninja", "exit 0")
    return folder


def write_module(folder: Path, version: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "__init__.py").write_text(f'__version__ = "{version}"\n')


def write_program(file: Path, body: str) -> None:
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


def compiler_that_says(file: Path, macros: str) -> None:
    write_program(file, f"/bin/cat <<'END'\n#define __cplusplus 201703L\n{macros}\nEND")


@pytest.fixture
def refusal(bare_python):
    """Runs the build, which has to fail with one line, and returns that line."""

    def run(site: Path, path: Path, **variables: str) -> str:
        return build_that_fails(bare_python, site, path, variables)

    return run


def build_that_fails(python: Path, site: Path, path: Path, variables: dict[str, str]) -> str:
    environment = {"PYTHONPATH": str(site), "PATH": str(path), **variables}
    # Warnings are those of the installed setuptools, and say nothing of ours.
    command = [str(python), "-W", "ignore", "setup.py", "--quiet", "build_ext", "--build-temp", str(site / "build")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("fastrnn: ")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def remove_torch(site: Path) -> None:
    (site / "torch").rename(site / "no_torch")


def test_missing_torch(refusal, site, path):
    remove_torch(site)
    sentence = refusal(site, path)
    assert "torch is missing" in sentence
    assert "pip install 'torch>=2.11'" in sentence
    assert "pip install --no-build-isolation -e ." in sentence


def test_missing_torch_in_an_isolated_build(refusal, site, path):
    remove_torch(site)
    isolated = site.parent / "pip-build-env-x1y2"
    site.rename(isolated)
    sentence = refusal(isolated, path)
    assert "isolated build" in sentence
    assert "--no-build-isolation" in sentence


def test_old_torch(refusal, site, path):
    write_module(site / "torch", "2.10.1+cu128")
    sentence = refusal(site, path)
    assert "torch 2.10.1+cu128 is too old" in sentence
    assert "pip install --upgrade 'torch>=2.11'" in sentence


def test_broken_torch(refusal, site, path):
    (site / "torch" / "__init__.py").write_text("raise OSError('libtorch_cpu.so: cannot open')\n")
    assert "cannot be imported (libtorch_cpu.so: cannot open)" in refusal(site, path)


def test_old_setuptools(refusal, site, path):
    (site / "setuptools").unlink()
    write_module(site / "setuptools", "65.5.0")
    assert "pip install --upgrade 'setuptools>=77'" in refusal(site, path)


def test_missing_ninja(refusal, site, path):
    (path / "ninja").unlink()
    assert "pip install ninja" in refusal(site, path)


def test_missing_pybind11(refusal, site, path):
    (site / "torch" / "include" / "pybind11" / "pybind11.h").unlink()
    assert "pip install pybind11" in refusal(site, path)


def test_missing_compiler(refusal, site, path):
    sentence = refusal(site, path)
    assert "no C++ compiler was found" in sentence
    assert "install" in sentence.split(":")[-1]


def test_old_compiler(refusal, site, path):
    compiler_that_says(path / "g++", "#define __GNUC__ 9\n#define __GNUC_MINOR__ 4")
    sentence = refusal(site, path)
    assert "g++ is gcc 9.4" in sentence
    assert "gcc 10 or clang 12" in sentence


def test_old_compiler_named_by_cxx(refusal, site, path):
    compiler_that_says(path / "old", "#define __GNUC__ 4\n#define __clang_major__ 11\n#define __clang_minor__ 0")
    assert "is clang 11.0" in refusal(site, path, CXX=str(path / "old"))


def test_cxx_that_is_no_compiler(refusal, site, path):
    write_program(path / "hello", "echo hello")
    sentence = refusal(site, path, CXX="hello")
    assert "CXX=hello is not a C++ compiler" in sentence


def compiler_that_works(file: Path, macros: str) -> None:
    """Whatever it is given to compile."""
    write_program(file, f"case \"$*\" in *-dM*) /bin/cat <<'END'\n#define __cplusplus 202002L\n{macros}\nEND\nesac")


CLANG = "#define __GNUC__ 4\n#define __clang_major__ 14\n#define __clang_minor__ 0"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch's OpenMP is that of clang")
def test_clang_does_without_openmp(path, monkeypatch, capsys):
    compiler_that_works(path / "c++", CLANG)
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.delenv("CXX", raising=False)
    checks = load_script("build_checks", "tools")
    compiler = checks.find_compiler(path)
    assert compiler.version == "clang 14.0"
    assert not compiler.openmp_compile
    assert not compiler.openmp_link
    warning = capsys.readouterr().err
    assert "c++ (clang 14.0) cannot share torch's OpenMP threads" in warning
    assert "one thread" in warning

    compiler_that_works(path / "g++", "#define __GNUC__ 12\n#define __GNUC_MINOR__ 2")
    assert checks.find_compiler(path).command == ["g++"]
    monkeypatch.setenv("CXX", "c++")
    assert checks.find_compiler(path).command == ["c++"]
    capsys.readouterr()


def test_compiler_without_a_standard_library(refusal, site, path):
    macros = "#define __GNUC__ 13\n#define __GNUC_MINOR__ 1"
    body = f"case \"$*\" in *-dM*) printf '#define __cplusplus 202002L\\n{macros}\\n';; "
    write_program(
        path / "g++", body.replace("\n", "\\n") + "*) echo 'fatal error: span: No such file' >&2; exit 1;; esac"
    )
    assert "cannot compile a small C++20 program (fatal error: span" in refusal(site, path)


def test_cuda_request(refusal, site, path):
    assert "FASTRNN_BUILD_CUDA must be 0, 1 or auto, not 'maybe'" in refusal(site, path, FASTRNN_BUILD_CUDA="maybe")


def good_compiler(path: Path) -> None:
    macros = "#define __GNUC__ 13\n#define __GNUC_MINOR__ 1\n#define __x86_64__ 1"
    write_program(
        path / "g++", f"case \"$*\" in *-dM*) /bin/cat <<'END'\n#define __cplusplus 202002L\n{macros}\nEND\n;; esac"
    )


def cuda_torch(site: Path, version: str) -> None:
    with (site / "torch" / "__init__.py").open("a") as file:
        file.write(f"class version:\n    cuda = {version!r}\n")


def toolkit(folder: Path, version: str, compiles: str = "exit 0") -> Path:
    """A CUDA toolkit with the headers that torch wants; what nvcc answers when it has to compile."""
    for part in ("bin", "include"):
        (folder / part).mkdir(parents=True)
    for header in ("cuda_runtime_api.h", "cublas_v2.h", "cublasLt.h", "cusparse.h", "cusolverDn.h"):
        (folder / "include" / header).touch()
    said = f"Cuda compilation tools, release {version}, V{version}.88"
    write_program(folder / "bin" / "nvcc", f"case \"$*\" in --version) echo '{said}';; *) {compiles};; esac")
    return folder


def test_cuda_with_a_torch_for_the_cpu(refusal, site, path):
    good_compiler(path)
    sentence = refusal(site, path, FASTRNN_BUILD_CUDA="1")
    assert "FASTRNN_BUILD_CUDA=1, but torch 2.13.0 is built for the CPU" in sentence
    assert "pytorch.org/get-started" in sentence


def test_cuda_home_without_nvcc(refusal, site, path):
    good_compiler(path)
    cuda_torch(site, "13.0")
    assert f"CUDA_HOME={site} has no bin/nvcc" in refusal(site, path, FASTRNN_BUILD_CUDA="1", CUDA_HOME=str(site))


def test_cuda_of_another_version(refusal, site, path):
    good_compiler(path)
    cuda_torch(site, "13.0")
    home = toolkit(site / "cuda", "12.4")
    sentence = refusal(site, path, FASTRNN_BUILD_CUDA="1", CUDA_HOME=str(home))
    assert f"nvcc in {home} is CUDA 12.4 and torch 2.13.0 is built for CUDA 13.0" in sentence
    assert "set CUDA_HOME" in sentence


def test_cuda_without_the_headers_of_its_libraries(refusal, site, path):
    good_compiler(path)
    cuda_torch(site, "13.0")
    home = toolkit(site / "cuda", "13.1")
    (home / "include" / "cusparse.h").unlink()
    assert "cusparse.h is neither in" in refusal(site, path, FASTRNN_BUILD_CUDA="1", CUDA_HOME=str(home))


def test_cuda_whose_nvcc_does_not_like_the_compiler(refusal, site, path):
    good_compiler(path)
    cuda_torch(site, "13.0")
    home = toolkit(site / "cuda", "13.1", "echo 'host_config.h: error: unsupported GNU version!' >&2; exit 1")
    sentence = refusal(site, path, FASTRNN_BUILD_CUDA="1", CUDA_HOME=str(home))
    assert f"with {path / 'g++'} cannot compile a small kernel (host_config.h: error: unsupported GNU" in sentence


@pytest.mark.parametrize(("text", "words"), [("7.5", "8.0 or newer"), ("Hopper", "expected a list such as")])
def test_cuda_architectures(refusal, site, path, text, words):
    good_compiler(path)
    cuda_torch(site, "13.0")
    home = toolkit(site / "cuda", "13.1")
    variables = {"CUDA_HOME": str(home), "TORCH_CUDA_ARCH_LIST": text}
    assert words in refusal(site, path, FASTRNN_BUILD_CUDA="1", **variables)


def test_version_is_written_once():
    from fastrnn._version import __version__

    assert __version__ not in (ROOT / "pyproject.toml").read_text()
