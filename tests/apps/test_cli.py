"""The command line: what it prints, how it ends, and that it works without compiled kernels."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fastrnn.apps.info
import fastrnn.apps.inspect
import fastrnn.apps.lm
from fastrnn._missing import KernelsMissingError
from fastrnn._version import __version__
from fastrnn.apps import cli
from fastrnn.apps.cli import format_info, main

ROOT = Path(__file__).parents[2]

SECTIONS = ("fastrnn", "extension", "cpu", "threads", "python", "torch", "libraries", "cuda")


def run_module(*args: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "fastrnn", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd)


def without_extension(monkeypatch: pytest.MonkeyPatch, error: ImportError) -> None:
    def fail(name: str) -> None:
        raise error

    monkeypatch.setattr(fastrnn.apps.info.importlib, "import_module", fail)


def test_info_as_json_has_every_section():
    done = run_module("info", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert tuple(found) == SECTIONS
    assert found["fastrnn"]["version"] == __version__


def test_info_names_versions_and_libraries(capsys):
    import torch

    assert main(["info"]) == 0
    lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines() if line)
    assert lines["fastrnn"].strip().startswith(__version__)
    assert lines["torch"].strip().startswith(torch.__version__)
    assert lines["CUDA kernels"].strip()


def test_chosen_instruction_set_is_among_those_available():
    extension = fastrnn.apps.info.collect()["extension"]
    if not extension["built"]:
        pytest.skip(extension["error"])
    assert extension["capability"] in extension["capabilities"]
    assert "baseline" in extension["capabilities"]
    assert extension["build"]["compiler"]


def test_one_openmp_runtime_serves_torch_and_the_kernels():
    done = run_module("info", "--json")
    runtimes = json.loads(done.stdout)["libraries"]["openmp"]
    assert len(runtimes) <= 1, runtimes


def test_collect_prints_nothing(capsys):
    fastrnn.apps.info.collect()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_missing_kernels_are_named_with_the_command_that_builds_them(monkeypatch, tmp_path):
    monkeypatch.setattr(fastrnn._parts, "FOLDER", tmp_path)
    without_extension(monkeypatch, ModuleNotFoundError("No module named 'fastrnn._C'", name="fastrnn._C"))
    found = fastrnn.apps.info.collect()
    text = format_info(found)
    assert not found["extension"]["built"]
    assert "not built" in text
    assert "pip install --no-build-isolation" in text


def test_kernels_that_do_not_load_are_told_from_missing_ones(monkeypatch):
    without_extension(monkeypatch, ImportError("undefined symbol: _ZN3c10"))
    text = format_info(fastrnn.apps.info.collect())
    assert "undefined symbol: _ZN3c10" in text
    assert "cannot be loaded" in text
    assert "build command" in text


def test_kernels_built_for_another_torch_are_pointed_out():
    found = fastrnn.apps.info.collect()
    found["extension"] = {
        "built": True,
        "path": "_C.so",
        "capability": "baseline",
        "capabilities": ["baseline"],
        "capability_override": None,
        "build": {"compiler": "gcc 12.2", "torch_version": "2.1.0"},
    }
    assert "built for torch 2.1.0, rebuild" in format_info(found)


def test_version():
    done = run_module("--version")
    assert done.returncode == 0
    assert done.stdout.strip() == f"fastrnn {__version__}"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["foo"], "invalid choice: 'foo'"),
        ([], "required: COMMAND"),
        (["info", "--yaml"], "unrecognized arguments: --yaml"),
    ],
)
def test_wrong_arguments_end_with_status_2(args, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["bnech"], "bench"),
        (["bench", "--shpaes", "2x3x4"], "--shapes"),
        (["bench", "--shpaes=2x3x4"], "--shapes"),
        (["sample", "run", "--temprature", "3"], "--temperature"),
        (["inspect", "run", "text", "--syntax", "pyhton"], "python"),
    ],
)
def test_what_may_have_been_meant(args, meant, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.rstrip().endswith(f"did you mean {meant}?")
    if len(args) > 1:
        assert error.startswith(f"usage: fastrnn {args[0]} ")


def test_nothing_is_suggested_where_nothing_is_near(capsys):
    with pytest.raises(SystemExit):
        main(["info", "--quicksand"])
    assert "did you mean" not in capsys.readouterr().err


COMMAND = """import sys
from _fastrnn_command import main
try:
    sys.exit(main())
except SystemExit as end:
    print("status", end.code, "torch" if "torch" in sys.modules else "no torch")"""


def run_command(*args: str) -> str:
    command = [sys.executable, "-c", COMMAND, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("command", ["", "info", "demo", "bench", "train", "sample", "inspect", "gradflow"])
def test_help_and_mistakes_need_no_torch(command):
    words = command.split()
    assert run_command(*words, "--help") == "status 0 no torch"
    assert run_command(*words, "--nonesuch") == "status 2 no torch"
    if not words:
        assert run_command("--version") == "status 0 no torch"


@pytest.mark.parametrize("start", [["-m", "fastrnn"], ["-mfastrnn"], ["-Bm", "fastrnn"]], ids=" ".join)
@pytest.mark.parametrize(("words", "status"), [("--help", 0), ("--version", 0), ("bench --help", 0), ("--hepl", 2)])
def test_the_module_needs_no_torch_either(start, words, status):
    command = [sys.executable, "-X", "importtime", *start, *words.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == status, done.stderr
    assert "fastrnn.apps.cli" in done.stderr
    assert not re.search(r"\| +torch$", done.stderr, re.MULTILINE)
    if status:
        assert "unrecognized arguments: --hepl; did you mean --help?" in done.stderr


def test_other_modules_may_import_the_package_while_python_looks_for_them(tmp_path):
    """``python -m other`` with a package that imports fastrnn runs that module, with the library."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "__init__.py").write_text("import fastrnn\n")
    (tmp_path / "other" / "__main__.py").write_text("import fastrnn, sys\nprint(fastrnn.__version__, sys.argv[1:])\n")
    places = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-m", "other", "fastrnn", "--help"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": places}
    )
    assert done.stdout == f"{__version__} ['fastrnn', '--help']\n", done.stderr


def test_the_command_runs_the_library():
    assert run_command("info") == "status 0 torch"
    assert run_command("sample", "no/such/run").startswith("status 1")


def test_choices_known_without_the_library_are_those_of_the_library():
    from fastrnn.apps.inspect import arguments
    from fastrnn.inspect import features, initial

    assert arguments.SYNTAXES == features.SYNTAXES
    for name in initial.NAMES:
        assert name in arguments.INITIALISATIONS


def test_errors_of_the_operating_system_in_words(tmp_path, capsys):
    missing = tmp_path / "missing.txt"
    assert main(["train", str(missing), "--out", str(tmp_path / "run")]) in (1, 2)
    error = capsys.readouterr().err
    assert f"{missing}" in error
    assert "Errno" not in error


def test_an_error_names_the_program_once(monkeypatch, capsys):
    def missing(args):
        raise KernelsMissingError("fastrnn: no kernels")

    monkeypatch.setattr(cli, "_info", missing)
    assert main(["info"]) == 1
    assert capsys.readouterr().err == "fastrnn: error: no kernels\n"


def test_names_of_packages_are_imported_at_first_use():
    for package in (fastrnn.apps.lm, fastrnn.apps.inspect):
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="has no attribute 'nonesuch'"):
            package.nonesuch  # noqa: B018


def test_wrong_arguments_show_no_traceback():
    done = run_module("foo")
    assert done.returncode == 2
    assert done.stderr.startswith("usage: fastrnn")
    assert "Traceback" not in done.stderr


def test_info_does_not_load_the_benchmarks():
    code = "import sys; from fastrnn.apps.cli import main; main(['info']);"
    code += "assert not [name for name in sys.modules if name.startswith('fastrnn.apps.bench')]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_stops_early_is_no_error():
    shell = f"{sys.executable} -m fastrnn info | head -n 1"
    result = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert result.stderr == ""
    assert result.stdout.startswith("fastrnn")


@pytest.mark.parametrize("name", ["baseline", "avx3000"])
def test_instruction_set_from_the_environment(name):
    code = "import fastrnn._ops as o; print(o._C.capability())"
    environment = {**os.environ, "FASTRNN_CPU_CAPABILITY": name}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=120
    )
    if name == "baseline":
        assert result.stdout.split() == ["baseline"]
        assert result.stderr == ""
    else:
        assert "FASTRNN_CPU_CAPABILITY names an instruction set that is unknown" in result.stderr
