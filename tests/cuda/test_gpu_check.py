"""The parts of benchmarks/gpu_check.sh that can be tried without a GPU."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench_cases import made_up_results

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not (BENCHMARKS / "gpu_check.sh").is_file(), reason="needs a checkout")

# As torch writes it.
NINJA = """\
ninja_required_version = 1.3
cxx = cp

flags = a$$b
more =

rule compile
  command = $cxx $in $out && echo '$flags' $more >$out.d
  depfile = $out.d
  deps = gcc

build {0}/objects/one.o: compile {0}/one.cpp
build {0}/objects/two.o: compile {0}/two.cpp
"""


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ninja(folder, *arguments):
    command = [sys.executable, str(BENCHMARKS / "plain_ninja.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_without_ninja(tmp_path):
    (tmp_path / "build.ninja").write_text(NINJA.format(tmp_path))
    for name in ("one", "two"):
        (tmp_path / f"{name}.cpp").write_text(name)
    done = ninja(tmp_path, "-v", "-j", "2")
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "objects" / "two.o").read_text() == "two"
    assert (tmp_path / "objects" / "one.o.d").read_text() == "a$b\n"
    assert ninja(tmp_path, "--version").stdout.startswith("1.")


def test_without_ninja_a_failure_is_one(tmp_path):
    (tmp_path / "build.ninja").write_text(NINJA.format(tmp_path))
    (tmp_path / "one.cpp").touch()
    done = ninja(tmp_path, "-v")
    assert done.returncode != 0
    assert "two.cpp" in done.stdout


def test_summary(tmp_path, capsys):
    figures = [{"name": "grid.sync", "blocks": 132, "bytes": 0, "microseconds": 1.234}]
    figures.append({"name": "counter exchange", "blocks": 8, "bytes": 8192, "microseconds": 2.0})
    barriers = {"gpu": "A GPU", "multiprocessors": 132, "figures": figures}
    (tmp_path / "barriers.json").write_text(json.dumps(barriers))
    results = made_up_results()
    (tmp_path / "bench.json").write_text(json.dumps(results.as_dict()))
    summary = load("gpu_summary")
    assert summary.main(tmp_path) == 1  # the made-up results have a row that failed
    said = capsys.readouterr().out
    assert "A GPU, 132 multiprocessors" in said
    assert "| grid.sync | 132 | 0 | 1.23 |" in said
    assert "counter exchange" not in said
    assert "| lstm float32 | 2/2 | 2.83× (2.00–4.00) |" in said
    assert "- gru 1x1x64: FAILED parity" in said
    del results.rows[2]
    (tmp_path / "bench.json").write_text(json.dumps(results.as_dict()))
    assert summary.main(tmp_path) == 0


def test_summary_of_nothing(tmp_path, capsys):
    assert load("gpu_summary").main(tmp_path) == 0
    assert capsys.readouterr().out == ""
