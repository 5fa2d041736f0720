"""Several processes that train one model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from lm_runs import CLOCK, arguments, losses, rows, start, tiny, wait_for_rows

from fastrnn.apps import lm
from fastrnn.apps.lm.workers import Workers

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo")


def test_two_processes_have_the_curve_of_one_also_across_a_stop(tmp_path):
    changes = {"cell": "gru", "checkpoint_every": 0, "validation": 0.1}
    options = tiny(tmp_path, steps=10**6, **changes)
    out = tmp_path / "run"
    first = start("train", *arguments(options), processes=2)
    wait_for_rows(out, 7, first)
    first.send_signal(signal.SIGTERM)  # to the launcher, which tells both
    output, errors = first.communicate(timeout=60)
    assert "stopped after" in output, errors
    stopped_at = len(rows(out))
    assert [path.name for path in out.glob("step-*")] == [f"step-{stopped_at:08d}.pt"]

    steps = stopped_at + 15
    second = start("train", "--resume", str(out), "--steps", str(steps), processes=2)
    output, errors = second.communicate(timeout=120)
    assert second.returncode == 0, errors
    assert output.count(f"done after {steps:,} steps") == 1
    assert "processes: 2" in output

    alone = tmp_path / "alone"
    lm.train(tiny(tmp_path, out=str(alone), steps=steps, **changes))
    assert len(rows(out)) == steps
    assert losses(out) == pytest.approx(losses(alone), rel=1e-5)
    for ours, theirs in zip(rows(out), rows(alone), strict=True):
        for name in set(ours) - {"loss", *CLOCK}:
            assert (ours[name] == "") == (theirs[name] == "")
            assert ours[name] == "" or float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-4)
    # One process can resume a run that two processes have written.
    assert lm.resume(out, steps=steps + 3).step == steps + 3


def test_what_the_first_process_cannot_do_ends_both_with_a_line_each(tmp_path):
    (tmp_path / "run").write_text("no folder")
    process = start("train", *arguments(tiny(tmp_path)), processes=2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert errors.count("fastrnn train: error: ") == 2, errors
    assert errors.count("File exists") == 1
    assert errors.count("error: the first process failed and reports the reason") == 1


def test_rows_are_shared_out_evenly(monkeypatch):
    workers = Workers("cpu")
    assert (workers.rank, workers.size, workers.first) == (0, 1, True)
    assert workers.mine(5) == range(5)
    workers.rank, workers.size = 2, 3
    assert workers.mine(12) == range(8, 12)
    with pytest.raises(ValueError, match="batch: expected a multiple of the 3 processes, got 10"):
        workers.mine(10)


THREADS = """
import os
import torch
from torch import nn
from fastrnn.apps.lm.workers import Workers, process_group


def train():
    model = Workers("cpu").wrap(nn.Linear(3, 2))
    for _ in range(3):
        model(torch.ones(2, 3)).sum().backward()


with process_group():
    train()
names = {open(f"/proc/self/task/{thread}/comm").read().strip() for thread in os.listdir("/proc/self/task")}
assert not {name for name in names if "gloo" in name}, names
"""


@pytest.mark.skipif(sys.platform != "linux", reason="names of threads")
def test_no_thread_of_gloo_outlives_the_training(tmp_path):
    # One that still releases a tensor while the interpreter ends aborts the process, now and then.
    script = tmp_path / "training.py"
    script.write_text(THREADS, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
