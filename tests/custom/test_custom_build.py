"""Kernels of cells of Python are compiled, found again, and done without where they cannot be compiled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

import fastrnn
from fastrnn.custom import build

#: A process of its own: defines a cell, runs it, and says how long that took and what was warned of.
PROGRAM = """
import sys, time, warnings
import torch
import fastrnn

@fastrnn.cell(gates="a")
def small(x, r, s):
    return torch.tanh(x.a + FACTOR * r.a)

torch.manual_seed(0)
network, x = small(3, 4), torch.randn(5, 2, 3)
right = network(x, backend="reference")[0]
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    begin = time.perf_counter()
    network(x), network(x)
    print("seconds", time.perf_counter() - begin)
    torch.testing.assert_close(network(x)[0], right)
for w in seen:
    print("warned", w.message)
try:
    network(x, backend="fused")
except RuntimeError as error:
    print("raised", error)
"""


@pytest.fixture
def run(tmp_path, unoptimised):
    """Starts the program with its own cache folder, which is `run.cache`."""
    file = tmp_path / "program.py"

    def start(factor: float = 2.0, **environment) -> subprocess.Popen:
        file.write_text(PROGRAM.replace("FACTOR", str(factor)))
        paths = os.pathsep.join([str(Path(fastrnn.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
        settings = {"PYTHONPATH": paths, "FASTRNN_CACHE": str(start.cache), "CXX": unoptimised, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, str(file)],
            env=os.environ | settings | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    start.cache = tmp_path / "cache"
    return start


def result(process: subprocess.Popen) -> dict[str, str]:
    out, problems = process.communicate(timeout=120)
    assert process.returncode == 0, problems
    lines = [line.split(" ", 1) for line in out.splitlines()]
    assert [kind for kind, _ in lines].count("warned") <= 1
    return dict(lines)


def files(run) -> set[Path]:
    return set(run.cache.glob("*"))


def test_cache_goes_by_content(run):
    assert set(result(run())) == {"seconds"}
    (first,) = files(run)
    assert float(result(run())["seconds"]) < 1
    assert files(run) == {first}
    result(run(3.0))  # the same name, another function
    assert len(files(run)) == 2
    # a damaged file, which would end the process that loads it, is built anew
    first.write_bytes(first.read_bytes()[:5000])
    assert set(result(run())) == {"seconds"}
    assert float(result(run())["seconds"]) < 1


def test_two_processes_at_once(run):
    both = [run(), run()]
    for process in both:
        assert set(result(process)) == {"seconds"}
    assert not [f for f in files(run) if f.name.startswith(".build")]


def test_killed_build(run):
    process = run()
    deadline = time.monotonic() + 60
    while not list(run.cache.glob(".build-*/*.cpp")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not list(run.cache.glob("*.so"))
    assert set(result(run())) == {"seconds"}


def test_no_compiler(run):
    found = result(run(CXX="/nonexistent"))
    assert "expected a C++ compiler, found none (/nonexistent)" in found["warned"]
    assert "plain torch" in found["warned"]
    assert found["raised"].startswith('backend="fused": small')


def test_compiler_that_fails(run, tmp_path):
    compiler = tmp_path / "c++"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "fatal error: out of luck" >&2\nexit 1\n')
    compiler.chmod(0o755)
    found = result(run(CXX=str(compiler)))
    assert "fatal error: out of luck" in found["warned"]
    assert "out of luck" in found["raised"]
    assert not files(run)


def test_no_place(run, tmp_path):
    (tmp_path / "file").write_text("")
    found = result(run(FASTRNN_CACHE=str(tmp_path / "file" / "cache")))
    assert "FASTRNN_CACHE" in found["warned"]
    if os.geteuid():  # the superuser writes everywhere
        (tmp_path / "locked").mkdir(mode=0o555)
        assert "FASTRNN_CACHE" in result(run(FASTRNN_CACHE=str(tmp_path / "locked")))["warned"]


def test_build_says_why(monkeypatch):
    @fastrnn.cell(gates="a")
    def never_built(x, r, s):
        return torch.tanh(x.a + 0.125 * r.a)

    monkeypatch.setenv("CXX", "/nonexistent")
    build.compiler.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"never_built: expected a C\+\+ compiler, found none"):
            never_built.build()
    finally:
        build.compiler.cache_clear()


def test_source_and_explanation():
    @fastrnn.cell(gates="a", parameters="w")
    def shown(x, r, s, p):
        return torch.tanh(x.a + p.w * r.a)

    assert "struct shown_" in shown.source()
    assert "dp.w" in shown.explain()
    assert "tanh" in shown.explain()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert shown(2, 3)(torch.randn(4, 1, 2), backend="reference")[0].shape == (4, 1, 3)
