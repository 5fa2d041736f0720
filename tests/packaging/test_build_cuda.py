"""The build of the CUDA kernels: where the toolkit is found, for which GPUs, what is left out, who spills registers.

The sentences of a build that was asked for CUDA and cannot have it are in test_build.py.
"""

import importlib
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs a checkout")

CPU = SimpleNamespace(command=["g++"])


@pytest.fixture
def checks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    for name in ("CUDA_HOME", "CUDA_PATH", "FASTRNN_BUILD_CUDA", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(name, raising=False)
    return importlib.import_module("cuda_checks")


@pytest.fixture
def spills(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("check_spills")


@pytest.fixture
def oldest(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("check_oldest_torch")


def write_program(file, body):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("8.0;9.0a+PTX", ["80,sm_80", "90a,sm_90a", "90,compute_90"]),
        ("8.0+PTX", ["80,sm_80", "80,compute_80"]),
        ("8.6 9.0", ["86,sm_86", "90,sm_90"]),
        ("10.0a, 12.0+ptx;", ["100a,sm_100a", "120,sm_120", "120,compute_120"]),
        ("9.0;9.0", ["90,sm_90"]),
    ],
)
def test_options_of_architectures(checks, text, codes):
    expected = [f"-gencode=arch=compute_{code.split(',')[0]},code={code.split(',')[1]}" for code in codes]
    assert checks.architecture_flags(text) == expected


@pytest.mark.parametrize("text", ["9", "90a", "9.0+", ";", "8.0;Ampere"])
def test_lists_of_architectures_that_are_none(checks, text):
    with pytest.raises(checks.LackError, match="expected a list such as"):
        checks.architecture_flags(text)


def test_cuda_home_comes_first(checks, tmp_path, monkeypatch):
    for name in ("one", "two"):
        write_program(tmp_path / name / "bin" / "nvcc", "exit 0")
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "two"))
    assert checks.toolkit_home() == tmp_path / "two"
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "one"))
    assert checks.toolkit_home() == tmp_path / "one"


def test_a_script_on_path_tells_where_its_toolkit_is(checks, tmp_path, monkeypatch):
    write_program(tmp_path / "cuda-13" / "bin" / "nvcc", f"echo '#$ TOP={tmp_path}/cuda-13/bin/..' >&2")
    write_program(tmp_path / "bin" / "nvcc", f'exec {tmp_path}/cuda-13/bin/nvcc "$@"')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert checks.toolkit_home() == tmp_path / "cuda-13"


def test_a_link_on_path_leads_to_its_toolkit(checks, tmp_path, monkeypatch):
    write_program(tmp_path / "cuda-13" / "bin" / "nvcc", "exit 1")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").symlink_to(tmp_path / "cuda-13" / "bin" / "nvcc")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert checks.toolkit_home() == tmp_path / "cuda-13"


@pytest.mark.parametrize("layout", ["cu13/include", "cusparse/include"])
def test_headers_come_from_torchs_wheels(checks, tmp_path, layout):
    home, wheels = tmp_path / "cuda", tmp_path / "site" / "nvidia" / layout
    for folder, headers in ((home / "include", checks.HEADERS[:1]), (wheels, checks.HEADERS[1:])):
        folder.mkdir(parents=True)
        for header in headers:
            (folder / header).touch()
    assert checks.include_folders(home, tmp_path / "site", 13) == [str(home / "include"), str(wheels)]


def test_auto_leaves_cuda_out_and_says_why(checks, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert checks.find_toolkit(CPU) is None
    said = capsys.readouterr().out
    assert said.startswith("fastrnn: without CUDA kernels: torch ")
    assert said.count("\n") == 1
    assert "is built for the CPU" in said


def test_auto_says_when_toolkit_and_torch_disagree(checks, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    write_program(tmp_path / "bin" / "nvcc", "echo 'Cuda compilation tools, release 12.6, V12.6.1'")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert checks.find_toolkit(CPU) is None
    assert f"nvcc in {tmp_path} is CUDA 12.6 and torch" in capsys.readouterr().out


def test_zero_does_not_look(checks, monkeypatch, capsys):
    monkeypatch.setenv("FASTRNN_BUILD_CUDA", "0")
    monkeypatch.setattr(checks, "require_toolkit", None)
    assert checks.find_toolkit(CPU) is None
    assert capsys.readouterr().out == ""


def test_sdist_has_all_sources(tmp_path):
    command = [sys.executable, "-W", "ignore", "setup.py", "--quiet", "egg_info", "--egg-base", str(tmp_path)]
    subprocess.run([*command, "sdist", "--dist-dir", str(tmp_path)], cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        found = {name.split("/", 1)[1] for name in file.getnames() if "/" in name}
    for pattern in ("csrc/**/*.h", "csrc/**/*.cpp", "csrc/**/*.cu", "tools/*.py", "fastrnn/**/*.py"):
        assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob(pattern)} <= found, pattern


# Output of ptxas for a kernel, as nvcc 13.0 passes it on.
ENTRY = """\
ptxas info    : 31 bytes gmem
ptxas info    : Compiling entry function '{name}' for '{architecture}'
ptxas info    : Function properties for {name}
    {stack} bytes stack frame, {stores} bytes spill stores, {loads} bytes spill loads
ptxas info    : Used 98 registers, used 1 barriers, {more}680 bytes cmem[0]
ptxas info    : Compile time = 107.075 ms
"""
PERSISTENT = "_ZN7fastrnn4cuda16persistent_entryINS0_18PersistentBackwardINS0_{cell}EEEEvNT_4ArgsE"
STEP = "_ZN7fastrnn4cuda10step_entryINS0_8StepwiseINS0_{cell}EfE7ForwardEEEvNT_4ArgsEl"


def said(name, architecture, stack=0, stores=0, loads=0, more=""):
    return ENTRY.format(name=name, architecture=architecture, stack=stack, stores=stores, loads=loads, more=more)


def log_of(tmp_path, *parts, cells=("lstm",)):
    (tmp_path / "cells").mkdir(exist_ok=True)
    for cell in cells:
        (tmp_path / "cells" / f"{cell}.h").touch()
    log = tmp_path / "build.log"
    log.write_text("[1/2] nvcc -c lstm.cu\n" + "".join(parts) + "[2/2] c++ -c plan.cpp\n")
    return ["--csrc", str(tmp_path), str(log)]


GOOD = [said(PERSISTENT.format(cell="4lstm"), architecture) for architecture in ("sm_80", "sm_90a")]


def test_kernels_without_spills_pass(spills, tmp_path, capsys):
    step = said(STEP.format(cell="4lstm"), "sm_80", stack=16)
    assert spills.main(log_of(tmp_path, *GOOD, step)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "2 hot kernels, all without spills, at most 98 registers",
        "1 of 1 other kernels use local memory",
    ]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"stores": 24, "loads": 32}, "spills of 24 bytes stored and 32 loaded"),
        ({"stack": 8}, "8 bytes of stack"),
        ({"more": "48 bytes cumulative stack size, "}, "48 bytes of stack"),
    ],
)
def test_a_hot_kernel_that_uses_local_memory_fails(spills, tmp_path, capsys, bad, words):
    spilling = said(PERSISTENT.format(cell="4lstm"), "sm_90a", **bad)
    assert spills.main(log_of(tmp_path, *GOOD, spilling)) == 1
    error = capsys.readouterr().err
    assert words in error
    assert "persistent_entry" in error
    assert "for sm_90a" in error


def test_functions_that_a_kernel_calls_count_as_its_own(spills, tmp_path, capsys):
    memory = "0 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads"
    called = f"ptxas info    : Function properties for _Z4slowv\n    {memory}\n"
    assert spills.main(log_of(tmp_path, *GOOD, called)) == 1
    assert "spills of 4 bytes" in capsys.readouterr().err


def test_a_log_in_which_nothing_was_compiled_fails(spills, tmp_path, capsys):
    assert spills.main(log_of(tmp_path)) == 1
    assert "no hot kernel of lstm for sm_80 in the log" in capsys.readouterr().err


def test_every_cell_must_be_there_for_every_architecture(spills, tmp_path, capsys):
    gru = said(PERSISTENT.format(cell="3gru"), "sm_80")
    assert spills.main(log_of(tmp_path, *GOOD, gru, cells=("lstm", "gru"))) == 1
    assert capsys.readouterr().err == "fastrnn: no hot kernel of gru for sm_90a in the log\n"


def test_what_the_oldest_torch_has_not_is_an_error(oldest, tmp_path):
    (tmp_path / "headers" / "ATen").mkdir(parents=True)
    (tmp_path / "headers" / "ATen" / "old.h").write_text("struct Old {};\n")
    good, bad, missing = (tmp_path / name for name in ("good.cpp", "bad.cpp", "missing.cpp"))
    good.write_text("#include <ATen/old.h>\nOld old;\n")
    bad.write_text("#include <ATen/old.h>\nNew it;\n")
    missing.write_text("#include <ATen/new.h>\n")
    errors = oldest.compile_errors(["g++"], [tmp_path / "headers"], [good, bad, missing], 2)
    assert len(errors) == 2
    assert "New" in errors[0]
    assert "ATen/new.h" in errors[1]


def test_every_source_of_the_binding_is_compiled_against_the_oldest_torch(oldest):
    names = {path.relative_to(ROOT).as_posix() for path in oldest.sources()}
    binding = [
        path for path in (ROOT / "csrc").rglob("*.cpp") if path.parent.name == "cuda" or path.parent.name == "ops"
    ]
    assert {path.relative_to(ROOT).as_posix() for path in binding} == names


def test_without_the_oldest_python_it_is_said(oldest, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    write_program(tmp_path / "python3.12", "exit 127")  # pyenv's stand-in for a version that is not chosen
    assert oldest.main([str(tmp_path)]) == 0
    assert "was NOT checked: Python 3.12" in capsys.readouterr().out
