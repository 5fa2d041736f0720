"""Threads that have to share their cores with other programs: the same results, whoever computes them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from problems import LAYOUTS, Problem

import fastrnn
from fastrnn import _C
from fastrnn.cells import CELLS


@pytest.fixture(autouse=True)
def _restored():
    yield
    _C.set_patience(5e-4)
    _C.set_contention(False)


def assert_same_bits(found, wanted):
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", CELLS)
def test_first_thread_goes_on_alone(cell, layout, threads):
    """Without patience the team breaks up at the second barrier of every sequence."""
    torch.set_num_threads(threads)
    for projected in {0, 5 if CELLS[cell].projectable else 0}:
        p = Problem(cell, 9, 4, 3, 70, projected, layout)
        _C.set_split("units")
        wanted = p.run()
        _C.set_patience(0)
        assert_same_bits(p.run(), wanted)
        _C.set_patience(5e-4)


@pytest.mark.parametrize("threads", [8, 9, 16, 64])
@pytest.mark.parametrize("split", ["rows", "units"])
@pytest.mark.parametrize("cell", CELLS)
def test_more_threads_than_cores(cell, split, threads):
    """Teams with one and several groups of members, some of them without work, all waiting for cores."""
    before = torch.get_num_threads()
    p = Problem(cell, 12, 20, 9, 300, layout="packed")
    torch.set_num_threads(1)
    wanted = p.run()
    try:
        torch.set_num_threads(threads)
        _C.set_split(split)
        _C.set_patience(60)  # no team breaks up
        for _ in range(3):
            _C.set_contention(False)  # nor does a call before keep the next from starting threads
            assert_same_bits(p.run(), wanted)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (40, 8, 130, 96), (100, 1, 256, 256)], ids=str)
def test_contention_does_not_change_bits(shape, dtype):
    """Large enough that products are cut into pieces, which one thread then computes by itself."""
    torch.set_num_threads(2)
    T, B, inputs, H = shape
    p = Problem("lstm", T, B, inputs, H, dtype=dtype)
    wanted = p.run()
    _C.set_contention(True)
    assert_same_bits(p.run(), wanted)
    assert torch.get_num_threads() == 2


def test_own_number_of_threads_is_kept():
    torch.set_num_threads(2)
    _C.set_contention(True)
    Problem("gru", 3, 2, 4, 5).run()
    with pytest.raises(RuntimeError, match="dtype"):
        torch.ops.fastrnn.sequence_forward(
            "gru",
            torch.zeros(2, 1, 3),
            torch.zeros(6, 3),
            torch.zeros(6, 2).double(),
            None,
            None,
            None,
            [],
            None,
            None,
            None,
            False,
            False,
        )
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_two_directions_at_once(name, training):
    """Each direction on a thread of its own: the same bits and gradients as one after the other."""
    torch.set_num_threads(2)
    module = getattr(fastrnn, name)(40, 96, num_layers=2, bidirectional=True)
    x = torch.randn(50, 3, 40, requires_grad=training)
    found = []
    for at_once in (True, False):
        _C.set_fast_path(at_once)
        with torch.set_grad_enabled(training):
            y, _ = module(x)
        grads = torch.autograd.grad(y.sin().sum(), [x, *module.parameters()]) if training else ()
        found.append((y, *grads))
    _C.set_fast_path(True)
    for ours, wanted in zip(*found, strict=True):
        assert torch.equal(ours, wanted)


def test_two_directions_in_inference_mode():
    torch.set_num_threads(2)
    module = fastrnn.GRU(64, 96, bidirectional=True)
    x = torch.randn(100, 1, 64)
    wanted, _ = module(x)
    with torch.inference_mode():
        y, h = module(x)
        assert y.is_inference()
        assert h.is_inference()
    assert torch.equal(y, wanted)


def test_failure_of_one_of_two_directions():
    """An exception in a second thread reaches the caller."""
    torch.set_num_threads(2)
    module = fastrnn.LSTM(64, 96, bidirectional=True)
    module.weight_hh_l0_reverse = torch.nn.Parameter(torch.randn(384, 95))
    with pytest.raises(RuntimeError, match="expected"):
        module(torch.randn(100, 1, 64))
    assert torch.get_num_threads() == 2


FLUSHES = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor keeps subnormal numbers")


def keeps_subnormal_numbers() -> bool:
    return bool((torch.full((4,), 1e-39) * 1.0).any())


@FLUSHES
@pytest.mark.parametrize("caller", [True, False])
def test_all_threads_flush_subnormal_numbers_and_are_left_as_they_were(caller):
    """torch.set_flush_denormal is the calling thread's alone, and those of the pool are older than it."""
    torch.set_num_threads(3)
    p = Problem("rnn_relu", 4, 6, 3, 70, dtype=torch.float32)
    with torch.no_grad():
        for weight in (*p.weights[:2], *p.states, p.x):
            weight.zero_()
        for bias in p.weights[2:4]:
            bias.fill_(1e-39)
    found = {}
    _C.set_split("rows")
    p.run()  # now the pool has its threads
    try:
        torch.set_flush_denormal(caller)
        for split in ("none", "rows", "units"):
            _C.set_split(split)
            found[split] = p.run()
        assert keeps_subnormal_numbers() != caller
    finally:
        torch.set_flush_denormal(False)
    for split, values in found.items():
        assert not values["y"].any(), split
        assert_same_bits(values, found["none"])
    kept = torch.full((1 << 20,), 1e-39) * 1.0  # large enough for all threads of the pool
    assert kept.all()


@FLUSHES
def test_threads_that_a_call_makes_keep_subnormal_numbers_afterwards():
    """A new thread begins in the mode of the one that makes it."""
    code = """import torch, fastrnn
torch.set_num_threads(2)
fastrnn.LSTM(64, 64)(torch.randn(50, 8, 64))[0].sum().backward()
assert (torch.full((1 << 20,), 1e-39) * 1.0).all()"""
    subprocess.run([sys.executable, "-c", code], check=True)


@FLUSHES
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_gradients_that_vanish_go_to_zero_at_once(kind):
    """The loss on the last output of many steps; the effect on all others is below the least normal number."""
    module = getattr(fastrnn, kind)(8, 16)
    x = torch.randn(400, 4, 8, requires_grad=True)
    exact = getattr(fastrnn, kind)(8, 16).double()
    exact.load_state_dict(module.state_dict())
    x64 = x.detach().double().requires_grad_()
    for net, given in ((module, x), (exact, x64)):
        net(given)[0][-1].sum().backward()
    least = torch.finfo(torch.float32).tiny
    assert not ((x.grad != 0) & (x.grad.abs() < least)).any()
    assert not x.grad[0].any()
    assert x64.grad[0].any()
    torch.testing.assert_close(x.grad.double(), x64.grad, rtol=1e-4, atol=1e-7)
    for parameter, of_exact in zip(module.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad.double(), of_exact.grad, rtol=1e-4, atol=1e-6)
    assert keeps_subnormal_numbers()


@FLUSHES
def test_subnormal_numbers_of_float16_are_kept():
    """They are normal ones in float32, in which the kernels compute."""
    module = fastrnn.RNN(4, 8, nonlinearity="relu").half()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(0)
        module.bias_ih_l0.fill_(3e-7)
        y, _ = module(torch.zeros(3, 2, 4).half())
    assert torch.equal(y, torch.full_like(y, 3e-7))
