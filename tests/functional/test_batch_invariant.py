"""Batch-invariant results, and gradients of weights that have the same bits for any number of threads."""

from __future__ import annotations

import custom_cells
import pytest
import torch
from problems import Problem, error
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn import _C

LAYERS = {"LSTM": fastrnn.LSTM, "GRU": fastrnn.GRU, "RNN": fastrnn.RNN}
# T, B, I, H: from what small kernels take to what is cut into pieces.
SIZES = {"tiny": (5, 3, 4, 6), "odd": (7, 11, 33, 70), "large": (12, 40, 130, 150)}


@pytest.fixture(autouse=True)
def _invariant():
    with fastrnn.batch_invariant():
        yield
    assert not fastrnn.is_batch_invariant()


def network(kind, inputs, hidden, dtype, **options):
    torch.manual_seed(1)
    return LAYERS[kind](inputs, hidden, num_layers=2, dtype=dtype, **options)


def run(net, x, state=None, **keywords):
    """Output and gradient of the input, of a loss with another weight for every number."""
    x = x.detach().clone().requires_grad_()
    y, last = net(x, state, **keywords)
    torch.manual_seed(3)
    (y * torch.rand((*y.shape[:1], 1, *y.shape[2:]), dtype=y.dtype)).sum().backward()
    return y.detach(), x.grad, last


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_row_alone_and_in_a_batch(kind, size, dtype):
    T, B, I, H = SIZES[size]  # noqa: E741
    net, x = network(kind, I, H, dtype, bidirectional=True), torch.randn(T, B, I, dtype=dtype)
    y, dx, _ = run(net, x)
    for rows in ([0], [B - 1], [1, B - 2]):
        alone, dx_alone, _ = run(net, x[:, rows])
        assert torch.equal(alone, y[:, rows])
        assert torch.equal(dx_alone, dx[:, rows])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", LAYERS)
def test_whole_in_chunks_and_by_steps(kind, size):
    T, B, I, H = SIZES[size]  # noqa: E741
    net, x = network(kind, I, H, torch.float32), torch.randn(T, B, I)
    y, dx, _ = run(net, x)
    parts = x.detach().clone().requires_grad_()
    first, state = net(parts[:3])
    rest, _ = net(parts[3:], state)
    found = torch.cat([first, rest])
    torch.manual_seed(3)
    (found * torch.rand((*found.shape[:1], 1, *found.shape[2:]))).sum().backward()
    assert torch.equal(found, y)
    assert torch.equal(parts.grad, dx)
    state, stream = None, fastrnn.Stream(net, batch=B)
    for t in range(T):
        stepped, state = net.step(x[t], state)
        assert torch.equal(stepped, y[t])
        assert torch.equal(stream.step(x[t]), y[t])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", LAYERS)
def test_packed_padded_and_with_lengths(kind, size):
    T, B, I, H = SIZES[size]  # noqa: E741
    net, x = network(kind, I, H, torch.float32, bidirectional=True), torch.randn(T, B, I)
    lengths = torch.randint(1, T + 1, (B,))
    lengths[0] = T
    y, dx, _ = run(net, x, lengths=lengths)
    packed, _ = pad_packed_sequence(net(pack_padded_sequence(x, lengths, enforce_sorted=False))[0])
    assert torch.equal(packed, y)
    for b in range(B):
        n = int(lengths[b])
        alone, dx_alone, _ = run(net, x[:n, [b]])
        assert torch.equal(alone[:, 0], y[:n, b])
        torch.manual_seed(3)  # the loss's weights go by step: the first n are the same
        assert torch.equal(dx_alone[:, 0], dx[:n, b])


@pytest.mark.parametrize("kind", LAYERS)
def test_threads(kind):
    T, B, I, H = SIZES["large"]  # noqa: E741
    net, x = network(kind, I, H, torch.float32), torch.randn(T, B, I)
    found = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        net.zero_grad()
        y, dx, _ = run(net, x)
        found.append([y, dx, *(p.grad for p in net.parameters())])
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("kind", LAYERS)
def test_gradients_of_weights_do_not_depend_on_threads_at_any_time(kind):
    for T, B, I, H in ((12, 40, 130, 150), (30, 64, 256, 192), (1, 90, 300, 256)):  # noqa: E741
        net, x = network(kind, I, H, torch.float32), torch.randn(T, B, I)
        found = []
        fastrnn.set_batch_invariant(False)
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            net.zero_grad()
            run(net, x)
            found.append([p.grad for p in net.parameters()])
        fastrnn.set_batch_invariant(True)
        for other in found[1:]:
            assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize("precision", ["highest", "medium"])
@pytest.mark.parametrize("capability", _C.capabilities())
def test_every_instruction_set(capability, precision):
    _C.set_capability(capability)
    torch.set_float32_matmul_precision(precision)
    try:
        for kind, options in (("LSTM", {"proj_size": 20}), ("GRU", {}), ("RNN", {})):
            net, x = network(kind, 40, 60, torch.float32, **options), torch.randn(6, 34, 40)
            keywords = {"clip_state_gradient": 0.5} if kind == "GRU" else {}
            y, dx, _ = run(net, x, **keywords)
            for split in ("rows", "units"):
                _C.set_split(split)
                alone, dx_alone, _ = run(net, x[:, 7:9], **keywords)
                assert torch.equal(alone, y[:, 7:9])
                assert torch.equal(dx_alone, dx[:, 7:9])
            assert torch.equal(net.step(x[0])[0], y[0])
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("capability", _C.capabilities())
@pytest.mark.parametrize(
    "shape", [(1, 1, 3, 5), (9, 5, 37, 21), (3, 19, 1030, 33), (70, 17, 20, 40), (2, 130, 64, 260)]
)
def test_products_of_every_size_are_as_exact_as_others(shape, capability, dtype):
    """Odd sizes, depths around a chunk of 1024, rows in several blocks: outputs and all gradients."""
    _C.set_capability(capability)
    with fastrnn.batch_invariant(False):
        exact = Problem("lstm", *shape).run()
        others = Problem("lstm", *shape, dtype=dtype).run()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for name, found in Problem("lstm", *shape, dtype=dtype).run().items():
            rounding = 1e-6 if dtype is torch.float32 else 1e-14
            assert error(found, exact[name]) <= 2 * error(others[name], exact[name]) + rounding, name


def test_restarts_and_single_cells():
    net, x = network("GRU", 12, 20, torch.float32), torch.randn(9, 6, 12)
    reset = torch.rand(9, 6) < 0.3
    y, dx, _ = run(net, x, reset=reset)
    alone, dx_alone, _ = run(net, x[:, 2:4], reset=reset[:, 2:4])
    assert torch.equal(alone, y[:, 2:4])
    assert torch.equal(dx_alone, dx[:, 2:4])
    cell, rows = fastrnn.LSTMCell(12, 20), torch.randn(30, 12)
    assert all(map(torch.equal, cell(rows[4:5]), (s[4:5] for s in cell(rows))))


def test_ids_and_a_cell_in_python():
    torch.manual_seed(0)
    embedding = torch.nn.Embedding(9, 20)
    net, ids = fastrnn.GRU(20, 24), torch.randint(0, 9, (8, 6))
    y, _ = net(ids, embedding=embedding)
    assert torch.equal(net(embedding(ids))[0], y)
    assert torch.equal(net(ids[:, 2:3], embedding=embedding)[0], y[:, 2:3])
    custom, x = custom_cells.mixed(20, 24), torch.randn(8, 6, 20)
    whole = custom(x)[0]
    assert torch.equal(custom(x[:, 4:5])[0], whole[:, 4:5])
    assert torch.equal(custom.step(x[0])[0], whole[0])


def test_compiled():
    net, x = fastrnn.LSTM(10, 12), torch.randn(6, 5, 10)
    compiled = torch.compile(lambda x: net(x)[0], fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), net(x)[0])
    assert torch.equal(compiled(x[:, :1]), net(x)[0][:, :1])


def test_calls_that_are_not_batch_invariant_raise():
    with pytest.raises(RuntimeError, match="batch_invariant: expected float32 or float64, got BFloat16"):
        fastrnn.GRU(3, 4, dtype=torch.bfloat16)(torch.randn(2, 1, 3, dtype=torch.bfloat16))
    with pytest.raises(RuntimeError, match="batch_invariant: expected kernels on the CPU, got the path 'reference'"):
        fastrnn.GRU(3, 4)(torch.randn(2, 1, 3), backend="reference")
    net, x = fastrnn.GRU(3, 4), torch.randn(2, 2, 3, requires_grad=True)
    (first,) = torch.autograd.grad(net(x)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"batch_invariant: .*second derivative"):
        first.sum().backward()
    with pytest.raises(TypeError, match="on: expected a bool, got int"):
        fastrnn.set_batch_invariant(1)
