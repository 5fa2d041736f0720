"""Competitors for the cores: that they come, that they go, and what is reported of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from bench_cases import run, write_engine

from fastrnn.apps.bench import cli, report, runner
from fastrnn.apps.bench.cases import Case, Shape
from fastrnn.apps.bench.results import Results, Row, Settings


def is_gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_competitors_work_and_are_gone_afterwards():
    with runner.busy_processes(2) as processes:
        assert len(processes) == 2
        pids = [process.pid for process in processes]
        assert all(process.poll() is None for process in processes)
    assert all(map(is_gone, pids))


def test_competitors_are_gone_after_an_error():
    pids = []

    def fail():
        with runner.busy_processes(2) as processes:
            pids.extend(process.pid for process in processes)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert len(pids) == 2
    assert all(map(is_gone, pids))


def test_competitors_that_do_not_start_are_reported_and_gone(monkeypatch):
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(runner, "_COMPETITOR", "import time; print('no', flush=True); time.sleep(60)")
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    with pytest.raises(RuntimeError, match="expected a busy process to start"), runner.busy_processes(2):
        pass
    assert len(started) == 2
    assert all(is_gone(process.pid) for process in started)


def test_competitors_follow_their_parent():
    program = (
        "import os, signal; from fastrnn.apps.bench.runner import busy_processes; c = busy_processes(1);"
        "print(c.__enter__()[0].pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, timeout=120)
    deadline = time.monotonic() + 30
    while not is_gone(int(found.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert is_gone(int(found.stdout))


def test_slowdown_is_against_the_engines_own_quiet_time():
    samples = {
        "train": {
            "baseline": {"quiet": runner.sample([1.0, 1.0, 1.0]), "busy": runner.sample([2.0, 2.0, 11.0])},
            "candidate": {"quiet": runner.sample([0.1, 0.2, 0.3]), "busy": runner.sample([0.1, 0.3, 0.8])},
        }
    }
    row = Row(case=Case("gru", Shape(1, 2, 3, 3)), samples=samples)
    assert row.slowdown("train", "baseline", "median") == pytest.approx(2.0)
    assert row.slowdown("train", "baseline", "mean") == pytest.approx(5.0)
    assert row.slowdown("train", "candidate", "median") == pytest.approx(1.5)
    assert row.slowdown("train", "candidate", "mean") == pytest.approx(2.0)
    assert row.slowdown("inference", "candidate", "mean") is None
    results = Results(Settings((row.case,), mode="busy", competitors=3), {}, rows=[row])
    table, *_ = report.sections(results)
    assert table.title == "training beside 3 busy processes"
    assert table.rows[0] == ["gru 1×2×3", "1.00 s", "2.00× (5.00×)", "200 ms", "1.50× (2.00×)"]
    assert table.rows[1] == ["geometric mean", "–", "2.00× (5.00×)", "–", "1.50× (2.00×)"]
    assert len(table.header) == len(table.rows[0]) == len(table.rows[1])
    row.fail("failed", "")
    assert row.slowdown("train", "baseline", "mean") is None
    assert row.as_dict()["samples"] == {}


def test_busy_run(tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "SAMPLE_SECONDS", 0.02)
    options = ["--busy", 1, "--engine", "torch", "--cells", "gru", "--shapes", "2x3x4"]
    status, document, text = run(tmp_path, *options, name="busy")
    assert status == (0 if document["trusted"] else 3), document["problems"]
    assert document["complete"]
    assert document["settings"]["competitors"] == 1
    (row,) = document["rows"]
    for kind in ("train", "inference"):
        for side in ("baseline", "candidate"):
            found = row["samples"][kind][side]
            assert found["quiet"]["calls"] >= 3
            assert 0 < found["busy"]["median"] <= found["busy"]["highest"]
            assert found["busy"]["mean"] > 0
    assert "gru 2×3×4" in text
    assert document["environment"]["cpu"]["model"]


def test_wrong_engine_is_not_timed(tmp_path, monkeypatch):
    source = "from torch.nn import GRU, LSTM\nclass RNN(GRU):\n    pass\n"
    name = write_engine(tmp_path, monkeypatch, "another_cell", source)
    options = ["--busy", 1, "--engine", name, "--cells", "rnn", "--shapes", "2x3x4"]
    status, document, text = run(tmp_path, *options, name="busy")
    assert status == 1
    assert document["rows"][0]["status"] == "failed"
    assert document["rows"][0]["samples"] == {}
    assert "FAILED parity" in text
