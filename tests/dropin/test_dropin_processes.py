"""Modules in other processes: forked, spawned, in DataLoader workers, under DistributedDataParallel."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import os
import tempfile

import pytest
import torch
from dropin_cases import H, I, gradients, pair, same
from torch import nn

import fastrnn

STEPS, ROWS = 20, 32  # enough work for several threads


def work(module, x, queue=None):
    """Sums of outputs and gradients as plain numbers, which any process can send."""
    if queue is not None:
        torch.set_num_threads(1)  # as DataLoader's workers do: GNU OpenMP hangs in a forked process, with torch's too
    y = module(x)[0]
    found = [y.detach().sum().item(), *(g.sum().item() for g in gradients(module, y).values())]
    if queue is not None:
        queue.put(found)
    return found


class Encoded(torch.utils.data.Dataset):
    """A data set that runs a network, as feature extractors do."""

    def __init__(self, module, x):
        self.module, self.x = module, x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        with torch.no_grad():
            return self.module(self.x[index])[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("name", ["LSTM", "GRU"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_another_process_computes_the_same(name, method):
    module = getattr(fastrnn, name)(I, H, 2)
    x = torch.randn(STEPS, ROWS, I)
    expected = work(module, x)  # the threads of this process have worked before the other begins
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    if method == "spawn":
        module.share_memory()
    process = context.Process(target=work, args=(module, x, queue))
    process.start()
    process.join(60)
    alive = process.is_alive()
    if alive:
        process.kill()
    assert not alive, "the other process hangs"
    assert process.exitcode == 0
    assert queue.get() == pytest.approx(expected, rel=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_in_the_workers_of_a_data_loader():
    module = fastrnn.GRU(I, H)
    x = torch.randn(4, STEPS, ROWS, I)
    expected = torch.stack([module(one)[0] for one in x])
    loader = torch.utils.data.DataLoader(Encoded(module, x), batch_size=2, num_workers=2, timeout=60)
    same(torch.cat(list(loader)), expected.detach())


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_distributed_data_parallel():
    theirs, ours = pair("LSTM", I, H, 2, bidirectional=True)
    with tempfile.TemporaryDirectory() as folder:
        torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=0, world_size=1)
        try:
            x = torch.randn(STEPS, ROWS, I)
            found = []
            for module in (theirs, ours):
                parallel = nn.parallel.DistributedDataParallel(module)
                parallel(x)[0].square().sum().backward()
                found.append([p.grad for p in module.parameters()])
            same(found[1], found[0], rtol=1e-3, atol=1e-3)
        finally:
            torch.distributed.destroy_process_group()


def train_on_a_share(rank, ranks, folder, name, queue, done):
    """Two steps of training on this rank's rows; rank 0 sends the parameters."""
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # later, with the group initialised, it keeps gloo's threads until the end
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=ranks)
    try:
        parameters = train_on_rows(name, slice(rank * ROWS // ranks, (rank + 1) * ROWS // ranks), distributed=True)
        if rank == 0:
            queue.put([p.tolist() for p in parameters])
    finally:
        gc.collect()
        # gloo aborts the process now and then if the other leaves during a collective operation, its barrier included.
        done.wait(60)
        torch.distributed.destroy_process_group()
        done.wait(60)


def train_on_rows(name, rows, distributed):
    torch.manual_seed(5)  # the same weights and data everywhere
    module = getattr(fastrnn, name)(I, H, 2)
    x, target = torch.randn(STEPS, ROWS, I)[:, rows], torch.randn(STEPS, ROWS, H)[:, rows]
    model = nn.parallel.DistributedDataParallel(module) if distributed else module
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x)[0], target).backward()
        optimizer.step()
    return [p.detach() for p in module.parameters()]


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_two_processes_train_as_one_with_twice_the_batch(name):
    expected = train_on_rows(name, slice(0, ROWS), distributed=False)
    context = multiprocessing.get_context("spawn")
    queue, done = context.SimpleQueue(), context.Barrier(2)
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=train_on_a_share, args=(r, 2, folder, name, queue, done)) for r in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
            if process.is_alive():
                process.kill()
        assert [process.exitcode for process in processes] == [0, 0]
        found = queue.get()
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(torch.tensor(a), b, rtol=1e-4, atol=1e-6)
