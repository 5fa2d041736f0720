"""Captured graphs of the step-wise driver, on a GPU."""

from __future__ import annotations

import pytest
import torch
from cuda_device import finish, needs_gpu, reset_gpu

import fastrnn
from fastrnn import _gpu

pytestmark = needs_gpu


@pytest.fixture(autouse=True)
def _stepwise():
    fastrnn.cuda.set_driver("stepwise")
    _gpu.module.forget_graphs()
    yield
    finish()
    _gpu.module.set_graphs(True)
    _gpu.module.forget_graphs()
    reset_gpu()


def train(module, x: torch.Tensor, hx) -> list[torch.Tensor]:
    module.zero_grad()
    y, last = module(x, hx)
    ends = last if isinstance(last, tuple) else (last,)
    (y.square().sum() + sum(end.sum() for end in ends)).backward()
    return [y.detach(), *(end.detach() for end in ends), *(p.grad.clone() for p in module.parameters())]


def states_for(module, batch: int, x: torch.Tensor):
    h = torch.randn(1, batch, module.proj_size or module.hidden_size, dtype=x.dtype, device="cuda")
    if not isinstance(module, fastrnn.LSTM):
        return h
    return h, torch.randn(1, batch, module.hidden_size, dtype=x.dtype, device="cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("steps", [31, 32, 40, 101])
@pytest.mark.parametrize(
    ("module_class", "options"),
    [(fastrnn.LSTM, {}), (fastrnn.GRU, {}), (fastrnn.RNN, {}), (fastrnn.LSTM, {"proj_size": 6})],
)
def test_the_same_bits_with_and_without(module_class, options, steps, dtype):
    torch.manual_seed(steps)
    module = module_class(7, 20, **options).to("cuda", dtype)
    x = [torch.randn(steps, 5, 7, dtype=dtype, device="cuda") for _ in range(3)]
    states = [states_for(module, 5, x[0]) for _ in range(3)]
    _gpu.module.set_graphs(False)
    wanted = [train(module, *call) for call in zip(x, states, strict=True)]
    _gpu.module.set_graphs(True)
    captured, run = _gpu.module.graph_counts()
    found = [train(module, *call) for call in zip(x, states, strict=True)]
    assert _gpu.module.graph_counts() == ((captured + 2, run + 4) if steps >= 32 else (captured, run))
    for mine, theirs in zip(found, wanted, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert torch.equal(a, b)


def test_other_lengths_of_the_same_graph():
    module = fastrnn.GRU(4, 12).cuda()
    lengths = torch.tensor([50, 0, 33], device="cuda")
    for steps in (64, 50, 96, 33):
        x = torch.randn(steps, 3, 4, device="cuda")
        _gpu.module.set_graphs(False)
        wanted = module(x, lengths=lengths.clamp(max=steps))
        _gpu.module.set_graphs(True)
        for a, b in zip(module(x, lengths=lengths.clamp(max=steps)), wanted, strict=True):
            assert torch.equal(a, b)


def test_not_within_a_graph_of_the_caller():
    module = fastrnn.GRU(4, 12).cuda()
    x = torch.randn(64, 3, 4, device="cuda")
    with torch.no_grad():
        for _ in range(3):
            wanted = module(x)[0]
        run = _gpu.module.graph_counts()[1]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = module(x)[0]
        assert _gpu.module.graph_counts()[1] == run
        graph.replay()
    assert torch.equal(y, wanted)


def test_two_streams_have_graphs_of_their_own():
    module = fastrnn.RNN(4, 12).cuda()
    x = torch.randn(64, 3, 4, device="cuda")
    streams = [torch.cuda.Stream() for _ in range(2)]
    with torch.no_grad():
        wanted = module(x)[0]
        torch.cuda.synchronize()
        found = []
        for _ in range(4):
            for stream in streams:
                with torch.cuda.stream(stream):
                    found.append(module(x)[0])
        torch.cuda.synchronize()
    assert all(torch.equal(y, wanted) for y in found)
