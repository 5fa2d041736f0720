"""Output of a build: its units by name and count, and the compiler's messages only when it fails."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pages import ROOT, load_script

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs a checkout")

OUTPUT = r"""
running build_ext
W0000 cpp_extension.py: There are no g++ version bounds defined
[1/3] g++ -MMD -MF /x/avx2_lstm.o.d -I/x/csrc -c -c /x/build/units/kernel_lstm_avx2.cpp -o /x/avx2_lstm.o -O3
[2/3] nvcc -c -c /x/csrc/cuda/unit.cu -o /x/unit.o
note: a remark of the compiler
[3/3] ccache g++ -c /x/csrc/cpu/team.cpp -o /x/team.o
g++ -shared /x/team.o -o _C.so
"""
PROGRAM = """
import os, subprocess, sys
sys.path.insert(0, {tools!r})
import build_progress
output, fails = {output!r}, {fails}
with build_progress.only_progress():
    print("a line of Python's own")
    sys.stderr.write("a warning\\n")
    subprocess.run([sys.executable, "-c", "import sys; sys.stdout.write(" + repr(output) + ")"], check=True)
    if fails:
        raise SystemExit("stopped")
print("afterwards")
"""


def run(fails):
    program = PROGRAM.format(tools=str(ROOT / "tools"), output=OUTPUT, fails=fails)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)


def test_units_by_name_and_count_and_nothing_else():
    done = run(fails=False)
    assert done.stdout == "[1/3] kernel_lstm_avx2\n[2/3] unit\n[3/3] team\nafterwards\n"
    assert done.stderr == ""
    assert done.returncode == 0


def test_the_compilers_words_when_it_fails():
    done = run(fails=True)
    assert done.stdout == "[1/3] kernel_lstm_avx2\n[2/3] unit\n[3/3] team\n"
    assert "note: a remark of the compiler" in done.stderr
    assert "a warning" in done.stderr
    assert "a line of Python's own" in done.stderr
    assert done.stderr.endswith("stopped\n")
    assert done.returncode == 1


def test_each_goal_installs_what_it_needs(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    environment = load_script("dev_env", "tools")
    build, bench, every = (
        {line.split(">")[0].split("=")[0].split("<")[0] for line in environment.wanted_requirements("", goal)}
        for goal in ("build", "bench", "deps")
    )
    assert bench - build == {"matplotlib"}
    assert {"torch", "numpy", "rich", "setuptools", "ninja"} <= build
    assert not build & {"pytest", "mypy", "ruff", "onnxruntime", "clang-format"}
    assert {"pytest", "mypy", "ruff", "matplotlib"} <= every
    assert environment.wanted_requirements("torch==2.14.1", "build")[-1] == "torch==2.14.1"
