"""fastrnn.Stream: single steps with a copy of the weights and a state of its own."""

from __future__ import annotations

import pytest
import torch
from dropin_cases import LAYERS, layer_pair, random_hx, same
from torch import nn

import fastrnn

T, B, I, H = 5, 4, 3, 6  # noqa: E741 - letters as in the equations


def make(kind: str = "lstm", **options):
    return layer_pair(kind, I, H, **options)[1].eval()


def steps(module, xs, state=None):
    """y of each step by `module.step`, and the last state."""
    ys = []
    with torch.no_grad():
        for x in xs:
            y, state = module.step(x, state)
            ys.append(y)
    return ys, state


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("options", [{}, {"num_layers": 3}, {"bias": False}, {"num_layers": 2, "batch_first": True}])
@pytest.mark.parametrize("kind", LAYERS)
def test_bits_of_step(kind, options, dtype):
    module = make(kind, **options).to(dtype)
    xs = torch.randn(T, B, I, dtype=dtype)
    stream = fastrnn.Stream(module)
    assert stream.state is None
    wanted, state = steps(module, xs)
    found = [stream.step(x) for x in xs]
    same(found, wanted, rtol=0, atol=0)
    same(stream.state, state, rtol=0, atol=0)
    assert not found[0].requires_grad


@pytest.mark.parametrize("layers", [1, 2])
def test_projection(layers):
    module, xs = make(proj_size=2, num_layers=layers), torch.randn(T, B, I)
    stream = fastrnn.Stream(module, B)
    wanted, state = steps(module, xs)
    same([stream.step(x) for x in xs], wanted, rtol=0, atol=0)
    same(stream.state, state, rtol=0, atol=0)


@pytest.mark.parametrize("kind", LAYERS)
def test_large_and_many_rows(kind):
    module = layer_pair(kind, 70, 130)[1]
    for batch in (1, 8, 40):
        xs = torch.randn(3, batch, 70)
        stream = fastrnn.Stream(module)
        same([stream.step(x) for x in xs], steps(module, xs)[0], rtol=0, atol=0)


def test_one_row_without_a_batch():
    module, xs = make("gru"), torch.randn(T, I)
    stream = fastrnn.Stream(module)
    same([stream.step(x) for x in xs], steps(module, xs)[0], rtol=0, atol=0)
    assert stream.state.shape == (1, 1, H)
    assert stream.step(xs[:1]).shape == (1, H)


def test_state():
    module, xs = make(num_layers=2), torch.randn(T, B, I)
    hx = random_hx(module)
    stream = fastrnn.Stream(module, state=hx)
    same(stream.state, hx, rtol=0, atol=0)
    wanted, last = steps(module, xs, hx)
    same([stream.step(x) for x in xs], wanted, rtol=0, atol=0)
    stream.state[0].zero_()  # a copy
    same(stream.state, last, rtol=0, atol=0)
    stream.state = hx
    hx[0].add_(1)  # copied
    same(stream.step(xs[0]), wanted[0], rtol=0, atol=0)
    stream.state = None
    assert all(s.abs().sum() == 0 for s in stream.state)
    y = stream.step(xs[0])
    kept = y.clone()
    stream.step(xs[1])
    assert torch.equal(y, kept)


@pytest.mark.parametrize("rows", [None, 2, [0, 3], torch.tensor([1, 2]), torch.tensor([True, False, False, True])])
def test_reset(rows):
    module, xs = make(), torch.randn(T, B, I)
    for hx in (None, random_hx(module)):
        stream = fastrnn.Stream(module, B, hx)
        for x in xs:
            stream.step(x)
        before = stream.state
        stream.reset(rows)
        hit = torch.zeros(B, dtype=torch.bool)
        hit[slice(None) if rows is None else rows] = True
        for s, old, first in zip(stream.state, before, hx or (0, 0), strict=True):
            first = torch.zeros_like(old) if hx is None else first
            same(s, torch.where(hit[:, None], first, old), rtol=0, atol=0)
    with pytest.raises(IndexError):
        stream.reset(B)


def test_weights_are_a_copy_until_refreshed():
    module, x = make(), torch.randn(B, I)
    stream = fastrnn.Stream(module, B)
    wanted = module.step(x)[0]
    with torch.no_grad():
        module.weight_ih_l0.mul_(2)
    same(stream.step(x), wanted.detach(), rtol=0, atol=0)
    state = stream.state
    stream.refresh()
    same(stream.state, state, rtol=0, atol=0)
    same(stream.step(x), module.step(x, state)[0].detach(), rtol=0, atol=0)


def test_input_of_any_strides_and_under_modes():
    module, wide = make(), torch.randn(I, B).t()
    wanted = module.step(wide)[0].detach()
    for x in (wide, torch._neg_view(-wide), wide.clone().requires_grad_()):
        same(fastrnn.Stream(module).step(x), wanted, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        same(fastrnn.Stream(module).step(wide), wanted, rtol=0, atol=0)


def test_errors():
    with pytest.raises(TypeError, match=r"module: expected a fastrnn.LSTM, GRU or RNN, got LSTM"):
        fastrnn.Stream(nn.LSTM(I, H))
    with pytest.raises(ValueError, match="module: expected bidirectional=False"):
        fastrnn.Stream(make(bidirectional=True))
    with pytest.raises(TypeError, match="module: expected dense CPU weights"):
        fastrnn.Stream(make().to("meta"))
    with pytest.raises(ValueError, match="batch: expected a positive number"):
        fastrnn.Stream(make(), 0)
    module = make()
    stream = fastrnn.Stream(module, B)
    for bad in (torch.randn(B, I).double(), "x", torch.randn(B, I).to("meta"), None):
        with pytest.raises(TypeError, match=r"x: expected a dense CPU tensor of torch.float32, got"):
            stream.step(bad)
    for bad in (torch.randn(B + 1, I), torch.randn(B, I + 1), torch.randn(1, B, I), torch.randn(I)):
        with pytest.raises(ValueError, match=r"x: expected shape \(4, 3\), got"):
            stream.step(bad)
    with pytest.raises(ValueError, match=r"x: expected shape \('B', 3\)"):
        fastrnn.Stream(module).step(torch.randn(0, I))
    with pytest.raises(ValueError, match=r"state: expected shape \(1, 4, 6\)"):
        stream.state = (torch.zeros(1, 2, H), torch.zeros(1, 2, H))
    with pytest.raises(TypeError, match=r"state: expected 2 tensor"):
        stream.state = torch.zeros(1, B, H)
    with pytest.raises(TypeError, match="wrapped"):
        torch.vmap(stream.step)(torch.randn(2, B, I))
    module.weight_ih_l0 = nn.Parameter(torch.zeros(4 * H, I + 1))
    with pytest.raises(ValueError, match="module: expected weights of the shapes"):
        stream.refresh()
    module.double()
    with pytest.raises(TypeError, match="module: expected weights of"):
        stream.refresh()
