"""Whole runs of the benchmark at tiny sizes, and its worker processes. Nothing here depends on how fast anything is."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bench_cases import run, write_engine

from fastrnn import _C
from fastrnn.apps.bench import machine
from fastrnn.apps.bench.cases import METRICS, Case, Shape
from fastrnn.apps.bench.engines import ENGINES, find_engine
from fastrnn.apps.bench.process import INSTRUCTION_SETS, Worker, WorkerDiedError, WorkerError
from fastrnn.apps.bench.results import SIDES

OFF = ("--no-lm", "--no-steps")
ROOT = Path(__file__).resolve().parents[3]

# Engines that a test can inject: each is a module with LSTM, GRU and RNN.
BROKEN = """
import torch
from torch.nn import GRU, LSTM
class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, g):
        return g * 1.001
class RNN(torch.nn.RNN):  # right outputs, input gradients wrong by a thousandth
    def forward(self, x, hx=None):
        return super().forward(_Scaled.apply(x), hx)
class LSTM(torch.nn.LSTM):  # wrong from the start, but trains
    def reset_parameters(self):
        super().reset_parameters()
        self.weight_ih_l0.data.mul_(1.5)
"""
DYING = """
import os
from torch.nn import GRU, LSTM
class RNN:
    def __init__(self, *args, **kwargs):
        os.write(2, b"a last word\\n")
        os._exit(3)
"""
RAISING = """
from torch.nn import GRU, LSTM
def RNN(*args, **kwargs):
    raise NotImplementedError("no such cell")
"""


@pytest.fixture
def engine(tmp_path, monkeypatch):
    return functools.partial(write_engine, tmp_path, monkeypatch)


def test_whole_run(tmp_path, capsys):
    extra = tmp_path / "more" / "copy.json"
    options = ["--engine", "torch", "--cells", "lstm", "--shapes", "2x3x4", "--lm-steps", 6, "--json", extra]
    status, document, text = run(tmp_path, *options)
    assert status == (0 if document["trusted"] else 3), document["problems"]
    assert document["complete"]
    names = [row["case"]["name"] for row in document["rows"]]
    assert names == ["lstm 2x3x4", "lstm 1x1x64 step", "lstm 1x1x128 step"]
    for row in document["rows"][:1]:
        assert all(len(row["seconds"][metric][side]) == 3 for metric in METRICS for side in SIDES)
        assert set(row["speedup"]) == set(METRICS)
        if machine.can_measure_memory():
            assert all(0 <= size < 50 << 20 for size in row["peak_memory_bytes"].values())
    for row in document["rows"]:
        assert set(row["speedup"]) == set(row["limit_share"]) == set(row["bound_seconds"])
        assert all(share > 0 for share in row["limit_share"].values())
        kinds = {"train", "inference"} if "total" in row["seconds"] else {"stream"}
        assert set(row["lost_share"]) == kinds
        assert all(0 <= share <= 1 for sides in row["lost_share"].values() for s in sides.values() for share in s)
        assert all(value > 0 for sides in row["cpu_seconds"].values() for s in sides.values() for value in s)
    model = document["language_model"]
    assert model["losses"]["baseline"] == model["losses"]["candidate"]
    assert len(model["losses"]["baseline"]) == 6
    assert json.loads(extra.read_text()) == document
    assert "2×3×4" in text
    assert "2×3×4" in capsys.readouterr().out


def test_broken_engine_fails_and_has_no_speed(tmp_path, engine, capsys):
    name = engine("broken_engine", BROKEN)
    options = ["--engine", name, "--cells", "rnn,gru", "--shapes", "2x3x4", "--lm-steps", 4]
    status, document, text = run(tmp_path, *options)
    assert status == 1
    bad, good = document["rows"][:2]
    assert bad["status"] == "failed"
    assert bad["parity"]["failed"] == ["grad input"]
    assert bad["seconds"] == bad["speedup"] == {}
    assert good["status"] == "ok"
    assert document["language_model"]["status"] == "failed"
    assert document["language_model"]["speedup"] is None
    assert "rnn 2x3x4: FAILED parity, grad input: error 0.001" in text
    assert "FAILED parity" in capsys.readouterr().out


def test_dead_worker_is_reported_and_the_run_goes_on(tmp_path, engine):
    name = engine("dying_engine", DYING)
    status, document, _ = run(tmp_path, "--engine", name, "--cells", "rnn,gru", "--shapes", "2x3x4", *OFF)
    assert status == 1
    bad, good = document["rows"]
    assert bad["status"] == "error"
    assert "exit code 3" in bad["message"]
    assert "a last word" in bad["message"]
    assert document["problems"] == [f"rnn 2x3x4: ERROR, {bad['message']}"]
    assert good["status"] == "ok"


def test_interrupt_writes_what_there_is(tmp_path):
    out = tmp_path / "out"
    options = ["--engine", "torch", "--cells", "gru", "--shapes", "2x3x4", "--quick", "--threads", "1"]
    options += ["--no-steps", "--lm-steps", "100000", "--out", str(out)]
    program = (
        "import argparse, sys; from fastrnn.apps.bench import cli; parser = argparse.ArgumentParser();"
        "cli.add_arguments(parser); sys.exit(cli.run(parser.parse_args()))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *sys.path]))},
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("[1/"):
                break
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.stderr.close()
    document = json.loads((out / "bench.json").read_text())
    assert not document["complete"]
    assert [row["status"] for row in document["rows"]] == ["ok"]
    assert "interrupted" in (out / "bench.md").read_text()


# Workers


def test_worker_answers_errors_and_lives_on(engine):
    worker = Worker(engine("raising_engine", RAISING), threads=1)
    try:
        with pytest.raises(WorkerError, match="NotImplementedError: no such cell"):
            worker.call("prepare", case=Case("rnn", Shape(1, 1, 2, 2)), seed=0)
        estimates = worker.call("prepare", case=Case("gru", Shape(1, 1, 2, 2)), seed=0)
        assert set(estimates) == {"train", "inference"}
        assert min(estimates.values()) > 0
        worker.timeout = 0.0
        with pytest.raises(WorkerDiedError, match="no reply"):
            worker.call("block", kind="train", calls=10**9)
        assert not worker.alive
    finally:
        worker.kill()


def test_both_engines_of_the_project_can_be_found():
    assert find_engine("fastrnn") is ENGINES["fastrnn"]
    assert find_engine("torch.nn").build(Case("gru", Shape(1, 1, 2, 2)), 0).infer()
    assert find_engine("torch").label == "torch.nn"
    with pytest.raises(ValueError, match="expected one of"):
        find_engine("torch.no_such_part")


@pytest.mark.parametrize("precision", [None, "highest", "high"])
def test_worker_sets_the_precision_of_products(precision):
    worker = Worker("torch", threads=1, precision=precision)
    try:
        assert worker.wait_until_started()["precision"] == (precision or "highest")
    finally:
        worker.kill()


@pytest.mark.parametrize("isa", INSTRUCTION_SETS)
def test_worker_is_held_to_an_instruction_set(isa):
    if isa not in _C.capabilities():
        pytest.skip("this processor lacks it")
    worker = Worker("torch", threads=1, isa=isa)
    try:
        assert worker.wait_until_started()["torch_capability"] == isa.upper()
    finally:
        worker.kill()
    assert "ATEN_CPU_CAPABILITY" not in os.environ
