"""Wheels: what is compiled for them, what is in them, and one that is made of this build's libraries and installed."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from pages import ROOT

from fastrnn import _parts

pytestmark = [
    pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs a checkout"),
    pytest.mark.skipif(sys.platform != "linux", reason="wheels are built on Linux"),
]
SUFFIX = ".cpython-311-x86_64-linux-gnu.so"
GCC = ["g++", "-shared", "-fPIC", "-x", "c++", "-"]


@pytest.fixture(autouse=True)
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))


def tool(name: str):
    return importlib.import_module(name)


def library(path: Path, source: str, *options: str) -> Path:
    subprocess.run([*GCC, "-o", str(path), *options], input=source, text=True, check=True)
    return path


@pytest.fixture
def native(tmp_path):
    """A build for two torches and two Pythons, none of which is there."""
    native_build, checks = tool("native_build"), tool("build_checks")
    compiler = checks.Compiler(["g++"], "gcc 12.2", "x86_64", ["-fopenmp"], ["-fopenmp"])
    build = native_build.Build(tmp_path / "a folder", compiler, ["-g0"], ["-Wl,--strip-all"])
    for version in ("2.11.0", "2.13.0"):
        for python in ("310", "311"):
            suffix = SUFFIX.replace("311", python)
            torch = native_build.Torch(version, [Path("/torch", version)], Path("/stand-ins"))
            build.add_part(torch, native_build.Python([Path("/python", python)], suffix))
    return build


def test_what_serves_several_versions_is_compiled_once(native):
    lines = native.text().splitlines()
    compiled = [line for line in lines if line.startswith("build ") and ": compile" in line]
    assert sum("kernel_lstm_avx2.cpp" in line for line in compiled) == 1
    assert sum("torch_operators.cpp" in line for line in compiled) == 2
    assert sum("torch_module.cpp" in line for line in compiled) == 4
    linked = [line for line in lines if ": link " in line]
    assert len(linked) == 5
    assert sum("torch2.11.cpython-310-" in line for line in linked) == 1


def test_operators_are_compiled_without_python(native):
    lines = native.text().splitlines()
    for number, line in enumerate(lines):
        if ": compile " in line:
            options = lines[number + 1]
            assert ("/python/" in options) == ("torch_module.cpp" in line)
            assert ("/torch/" in options) == ("torch_module.cpp" in line or "torch_operators.cpp" in line)


def test_no_library_names_a_runtime_of_openmp(native):
    text = native.text()
    assert "-fopenmp -I" in next(line for line in text.splitlines() if line.startswith("  command = "))
    options = [line for line in text.splitlines() if line.startswith("  options = ") and "-shared" in line]
    assert len(options) == 5
    assert not any("openmp" in line or "gomp" in line for line in options)


def test_paths_and_run_paths_are_as_ninja_wants_them(native):
    text = native.text()
    assert "a$ folder/kernels/team.o: compile" in text
    assert "-Wl,-rpath,$$ORIGIN" in text


def test_flags_of_the_environment_come_last(tmp_path, monkeypatch):
    native_build, checks = tool("native_build"), tool("build_checks")
    monkeypatch.setenv("CXXFLAGS", "-O0 '-DNAME=a b'")
    monkeypatch.setenv("LDFLAGS", "-Wl,--as-needed")
    text = native_build.Build(tmp_path, checks.Compiler(["g++"], "gcc 12.2", "x86_64", [], [])).text()
    assert "$options -O0 '-DNAME=a b' -MMD" in text
    assert "-Wl,--as-needed" in text


def test_every_source_of_the_cpu_part_is_in_a_unit(tmp_path):
    units = tool("generate_units")
    (operators,), (module,) = units.generate_operators(tmp_path), units.generate_module(tmp_path)
    for folder in ("ops", "ops/cpu", "python"):
        for source in (ROOT / "csrc" / folder).glob("*.cpp"):
            line = f'#include "{folder}/{source.name}"\n'
            assert (operators.read_text() + module.read_text()).count(line) == 1, line
    assert '"python/node.cpp"' in operators.read_text()
    assert '"python/module.cpp"' in module.read_text()


def test_ccache_is_put_in_front_once(tmp_path, monkeypatch):
    checks = tool("build_checks")
    for name in ("ccache", "compiler"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "g++").symlink_to("ccache")
    monkeypatch.setenv("PATH", str(tmp_path))
    ccache = str(tmp_path / "ccache")
    assert checks.with_ccache(["compiler", "-m64"]) == [ccache, "compiler", "-m64"]
    assert checks.with_ccache(["ccache", "compiler"]) == ["ccache", "compiler"]
    assert checks.with_ccache(["g++"]) == ["g++"]
    assert checks.without_ccache(["ccache", "compiler"]) == ["compiler"]
    assert checks.without_ccache(["g++"]) == ["g++"]
    monkeypatch.setenv("PATH", "")
    assert checks.with_ccache(["compiler"]) == ["compiler"]


def test_a_build_leaves_no_library_of_an_older_one(tmp_path):
    native_build = tool("native_build")
    there, built = tmp_path / "there", tmp_path / "built"
    for folder in (there, built):
        folder.mkdir()
    for name in ("same.so", "new.so"):
        (built / name).write_text(name)
    (there / "same.so").write_text("same.so")
    os.utime(there / "same.so", (1, 1))
    (there / "new.so").write_text("old")
    (there / "torch2.9.so").write_text("old")
    native_build.install([built / "same.so", built / "new.so"], there)
    assert sorted(path.name for path in there.iterdir()) == ["new.so", "same.so"]
    assert (there / "same.so").stat().st_mtime == 1
    assert (there / "new.so").read_text() == "new.so"


def torch_wheel(path: Path, scratch: Path, cuda: bool = True) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("torch/include/ATen/old.h", "struct Old {};\n")
        archive.write(library(scratch / "libc10.so", "void defined_here() {}"), "torch/lib/libc10.so")
        archive.writestr("torch/lib/libtorch.so", "")
        if cuda:
            archive.writestr("torch/include/c10/cuda/impl/cuda_cmake_macros.h", "")
    return path


def test_of_torch_only_headers_and_names_are_kept(tmp_path):
    files = tool("torch_files")
    folder, scratch = tmp_path / "kept", tmp_path / "scratch"
    for path in (folder, scratch):
        path.mkdir()
    files.extract(torch_wheel(scratch / "torch.whl", scratch), folder / "torch-2.11.0", cuda=True)
    assert [path.name for path in folder.iterdir()] == ["torch-2.11.0"]
    assert sorted(path.name for path in (folder / "torch-2.11.0").iterdir()) == ["include", "names.txt.gz"]
    assert (files.headers("2.11.0", folder) / "ATen" / "old.h").is_file()
    assert "_Z12defined_herev" in files.defined_names("2.11.0", folder)
    wheel = torch_wheel(scratch / "cpu.whl", scratch, cuda=False)
    with pytest.raises(files.TorchFilesError, match="expected a torch built for CUDA"):
        files.extract(wheel, folder / "none", cuda=True)
    assert not (folder / "none").exists()


def test_a_torch_that_cannot_be_downloaded(tmp_path, monkeypatch):
    files = tool("torch_files")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(files.TorchFilesError, match=r"torch 2\.11\.0 could not be downloaded: ERROR"):
        files.headers("2.11.0", tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("GLIBC_2.28", False),
        ("GLIBC_2.34", True),
        ("GLIBC_2.2.5", False),
        ("GLIBCXX_3.4.25", False),
        ("GLIBCXX_3.4.30", True),
        ("CXXABI_1.3.13", True),
        ("GLIBC_PRIVATE", True),
        ("OMP_1.0", True),
    ],
)
def test_versions_that_manylinux_promises(version, expected):
    assert tool("check_wheel").too_new(version) is expected


def test_what_is_wrong_with_a_library(tmp_path):
    check = tool("check_wheel")
    stand_ins = tool("torch_files").stand_ins(tmp_path / "stand-ins", ["gcc"])
    link = ["-Wl,--no-as-needed", "-L", str(stand_ins), "-lc10"]
    source = "void here(); void nowhere(); void use() { here(); nowhere(); }"
    module = library(tmp_path / "module.so", source, *link)
    found = list(check.library_problems(module, {"libc10.so"}, {"_Z4herev"}))
    assert found == ["module.so uses names that nothing defines: _Z7nowherev (1 in all)"]
    assert list(check.library_problems(module, {"libc10.so"}, {"_Z4herev", "_Z7nowherev"})) == []
    both = {"_Z4herev", "_Z7nowherev"}
    assert list(check.library_problems(module, set(), both)) == ["module.so is linked with libc10.so"]
    missing = list(check.library_problems(module, {"libc10.so", "libtorch_cpu.so"}, both))
    assert missing == ["module.so is not linked with libtorch_cpu.so"]
    moved = library(tmp_path / "moved.so", source, *link, "-Wl,-rpath,/opt/torch")
    assert list(check.library_problems(moved, {"libc10.so"}, both)) == ["moved.so has the run path /opt/torch"]
    threads = library(tmp_path / "threads.so", "extern int x;\nint x;", "-Wl,--no-as-needed", "-lgomp")
    assert list(check.library_problems(threads, set(), set())) == ["threads.so is linked with libgomp.so.1"]


def test_the_kernels_of_this_build_bind_to_the_openmp_runtime_of_torch():
    check = tool("check_wheel")
    kernels = _parts.FOLDER / "libfastrnn_kernels.so"
    libraries, run_path = check.needed(kernels)
    assert libraries <= check.SYSTEM
    assert run_path == ""
    assert "GOMP_parallel" in {name for name, _, _ in check.undefined(kernels)}
    module = next(iter(_parts.parts())).path
    libraries, run_path = check.needed(module)
    assert {"libfastrnn_kernels.so", "libtorch_cpu.so"} <= libraries
    assert not any("gomp" in name for name in libraries)
    assert run_path == "$ORIGIN"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel with the libraries of this build."""
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        own = tool("pythons").Interpreter(sys.executable, "3.11", Path(), _parts.SUFFIX)
        libraries = sorted(path for path in _parts.FOLDER.iterdir() if path.suffix == ".so")
        return tool("build_wheels").make_wheel(own, libraries, "x86_64", folder / "dist", folder / "scratch")


def test_the_files_of_a_wheel(wheel):
    assert wheel.name.endswith("-cp311-cp311-manylinux_2_28_x86_64.whl")
    check, names = tool("check_wheel"), {path.name for path in _parts.FOLDER.iterdir()}
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        tags = archive.read(next(name for name in files if name.endswith("/WHEEL"))).decode()
    assert list(check.file_problems(files, names)) == []
    assert "Root-Is-Purelib: false" in tags
    assert "Tag: cp311-cp311-manylinux_2_28_x86_64" in tags
    assert list(check.file_problems(files, {*names, "torch2.99.so"})) == ["fastrnn/_lib/torch2.99.so missing (1 files)"]
    assert list(check.file_problems([*files, "fastrnn/x.o"], names)) == ["fastrnn/x.o should not be there"]


def test_an_installed_wheel_runs_without_a_compiler(wheel, tmp_path):
    """The test that `make check-wheels` runs in clean environments, here beside the packages of this one."""
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    empty = tmp_path / "bin"
    empty.mkdir()
    environment = {"PATH": str(empty), "PYTHONPATH": str(target), "HOME": str(tmp_path), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, str(ROOT / "tools" / "wheel_smoke.py"), _parts.minor(_parts.parts()[0].torch)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "custom cell: without kernels, compiler on PATH: none" in done.stdout
