"""Truncated BPTT under DistributedDataParallel: two processes train as one with twice the batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
T, B, V = 24, 4, 7  # V tokens

PROGRAM = """
import sys
import torch
from torch import nn
import fastrnn
from fastrnn.training import truncated_bptt


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.rnn = fastrnn.LSTM(5, 8, 2, learn_initial_state=True)
        self.head = nn.Linear(8, 7)

    def forward(self, ids, state, reset=None, initial=None):
        y, state = self.rnn(ids, state, embedding=self.embedding, reset=reset, initial=initial)
        return self.head(y), state


def train(rank, size, wrap):
    torch.manual_seed(0)
    model = Model().double()
    model.rnn.clip_state_gradient = 0.001 * size  # of a mean over fewer rows every row's gradient is larger
    model = wrap(model)
    ids = torch.randint(7, (25, 4))
    reset = torch.rand(24, 4) < 0.1
    rows = slice(rank * 4 // size, (rank + 1) * 4 // size)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    losses = []
    for _ in range(2):
        chunks = truncated_bptt(model, ids[:-1, rows], ids[1:, rows], steps=8, window=16, reset=reset[:, rows])
        for chunk in chunks:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(chunk.output.flatten(0, 1), chunk.target.flatten())
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return torch.stack(losses), {name: p.detach() for name, p in model.named_parameters()}
"""

#: A model that knows no resets is called for rows that restart apart from the others.
PLAIN = PROGRAM.replace(", reset=None, initial=None)", ")").replace(", reset=reset, initial=initial)", ")")

WORKER = """
import gc
import torch._dynamo  # imported later, by DistributedDataParallel, it keeps gloo's threads alive to the end
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

distributed.init_process_group("gloo")
rank, size = distributed.get_rank(), distributed.get_world_size()
# Only the first chunks start from the learned states, so that others leave parameters without a gradient.
losses, weights = train(rank, size, lambda m: DistributedDataParallel(m, find_unused_parameters=True))
distributed.all_reduce(losses)
if rank == 0:
    torch.save((losses / size, {name.removeprefix("module."): w for name, w in weights.items()}), sys.argv[1])
gc.collect()
distributed.barrier()  # gloo aborts now and then where one leaves while the other still talks to it
distributed.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
@pytest.mark.skipif(sys.platform != "linux", reason="gloo's addresses")
@pytest.mark.parametrize("program", [PROGRAM, PLAIN], ids=["resets in the model", "rows apart"])
def test_two_processes_are_one_with_twice_the_batch(tmp_path, program):
    assert ("initial=initial" in program) is (program is PROGRAM)
    (tmp_path / "worker.py").write_text(program + WORKER, encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    found = subprocess.run(
        [*command, str(tmp_path / "worker.py"), str(tmp_path / "out.pt")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert found.returncode == 0, found.stderr[-3000:]
    losses, weights = torch.load(tmp_path / "out.pt")
    names: dict = {}
    exec(program, names)
    expected, expected_weights = names["train"](0, 1, lambda model: model)
    assert len(losses) == 6
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-9)
    assert losses[-1] < losses[0]
    for name, w in expected_weights.items():
        torch.testing.assert_close(weights[name], w, rtol=1e-8, atol=1e-9)
