"""Cells of Python on a GPU: compiled by nvcc for it, against plain torch in float64, all gradients."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import custom_cells
import custom_loops as loops
import pytest
import torch
from cuda_device import finish, needs_gpu, reset_gpu, runs
from problems import error
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import _gpu, gallery
from fastrnn.custom import build, build_cuda

pytestmark = needs_gpu

#: By name; those in ONE have a product of h alone, which the persistent drivers run.
ONE = {"lstm": custom_cells.lstm, "mixed": custom_cells.mixed, "slstm": gallery.CELLS["slstm"]}
OTHER = {"multiplicative": loops.multiplicative, "only_second": loops.only_second, "sru": gallery.CELLS["sru"]}
CELLS = ONE | OTHER
ROUNDING = {torch.float64: 1e-11, torch.float32: 1e-5, torch.bfloat16: 5e-2}
#: sLSTM divides by a sum of gates: in bfloat16 its gradients have fewer digits, on the CPU too.
CASES = [(n, d) for n, d in itertools.product(CELLS, ROUNDING) if d != torch.bfloat16 or n in ("lstm", "mixed")]
PERSISTENT = [(name, dtype) for name, dtype in CASES if name in ONE and dtype != torch.float64]


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    """All at once, as a call would one after the other."""
    capability = torch.cuda.get_device_capability()
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for name, dtype in CASES:
                pool.submit(build_cuda.library, CELLS[name].kernels, CELLS[name].source(), capability, dtype)
        build_cuda.toolkit()
    except build.BuildError as problem:
        pytest.skip(str(problem))


@pytest.fixture(autouse=True)
def _exact_and_poisoned():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    _gpu.module.set_poison(True)
    yield
    finish()
    torch.backends.cuda.matmul.fp32_precision = before
    reset_gpu()


def network(cell, dtype: torch.dtype, hidden: int = 40, **options):
    """With weights of the dtype, also where it computes in float64."""
    torch.manual_seed(5)
    return cell(6, hidden, **options).to(dtype).to("cuda")


def run(net, x, states, how: dict, backend: str) -> dict[str, torch.Tensor]:
    """Outputs, and the gradients of all that has one."""
    dtype = next(net.parameters()).dtype
    leaves = [t.detach().to("cuda", dtype).requires_grad_() for t in (x, *states)]
    x, *states = leaves
    if "packed" in how:
        x, how = pack_padded_sequence(x, how["packed"], enforce_sorted=False), {}
    y, last = net(x, tuple(states) if len(states) > 1 else states[0], backend=backend, **how)
    y = y.data if isinstance(y, PackedSequence) else y
    outputs = [y, *(last if isinstance(last, tuple) else (last,))]
    g = torch.Generator().manual_seed(1)
    seeds = [torch.randn(o.shape, generator=g).to("cuda", dtype) for o in outputs]
    named = dict(net.named_parameters())
    grads = torch.autograd.grad(outputs, [*leaves, *named.values()], seeds, materialize_grads=True)
    names = ["x", *net.cell.states, *named]
    return {f"output {k}": o.detach() for k, o in enumerate(outputs)} | dict(zip(names, grads, strict=True))


def layouts(T: int, B: int) -> list[dict]:
    g = torch.Generator().manual_seed(2)
    lengths, reset = torch.randint(0, T + 1, (B,), generator=g), torch.rand(T, B, generator=g) < 0.3
    packed = torch.randint(1, T + 1, (B,), generator=g)
    return [{}, {"lengths": lengths.cuda()}, {"reset": reset.cuda(), "lengths": lengths.cuda()}, {"packed": packed}]


def check(cell, dtype: torch.dtype, T: int, B: int, **options) -> None:
    net = network(cell, dtype, **options)
    exact = network(cell, dtype, **options).double()
    g = torch.Generator().manual_seed(3)
    rows = net.num_layers * (2 if net.bidirectional else 1)
    x, *states = (
        torch.rand(shape, generator=g).to(dtype)
        for shape in ((T, B, 6), *[(rows, B, net.hidden_size)] * len(cell.states))
    )
    for how in layouts(T, B):
        found, wanted = run(net, x, states, how, "fused"), run(exact, x, states, how, "reference")
        for name, right in wanted.items():
            small = right.numel() == 0 or right.abs().max().item() < 1e-9  # zero but for rounding
            off = found[name].double().abs().sum().item() if small else error(found[name], right)
            assert off <= ROUNDING[dtype], f"{cell.name}, {how.keys()}: {name}: error {off:.2e}"


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_equals_plain_torch(name, dtype):
    before = sum(runs().values())
    for T, B in ((1, 3), (7, 17), (40, 5)):
        check(CELLS[name], dtype, T, B)
    check(CELLS[name], dtype, 5, 4, num_layers=2, bidirectional=True)
    assert sum(runs().values()) > before


@pytest.mark.parametrize("driver", ["stepwise", "grid", "cluster"])
@pytest.mark.parametrize(("name", "dtype"), PERSISTENT, ids=str)
def test_every_driver(name, driver, dtype):
    told = [
        fastrnn.cuda.explain(ONE[name].kernels, 17, 40, dtype=dtype, backward=b, driver=driver) for b in (False, True)
    ]
    if not all(t.possible for t in told):
        pytest.skip(str(told[0]))
    with fastrnn.cuda.driver(driver):
        before = runs()[driver]
        check(ONE[name], dtype, 7, 17)
        assert runs()[driver] > before


@pytest.mark.parametrize("name", CELLS)
def test_long_sequences_of_the_stepwise_driver(name):
    """The same bits in every call, and the weights of the call at hand."""
    with fastrnn.cuda.driver("stepwise"):
        net = network(CELLS[name], torch.float32)
        x = torch.randn(70, 6, 6, device="cuda")
        first = [net(x)[0].detach() for _ in range(3)]
        assert all(torch.equal(first[0], again) for again in first[1:])
        assert error(first[0], network(CELLS[name], torch.float32).double()(x.double(), backend="reference")[0]) < 1e-5
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(0.5)
            assert error(net(x)[0], net(x, backend="reference")[0]) < 1e-5


def test_built_ahead():
    """A compiled cell is loaded once and available to every further call."""

    @fastrnn.cell(gates="a")
    def later(x, r, s):
        return torch.tanh(x.a + 0.75 * r.a)

    assert not _gpu.module.has_kernels(later.kernels, "float32", torch.cuda.current_device())
    later.build(torch.float32, "cuda")
    assert _gpu.module.has_kernels(later.kernels, "float32", torch.cuda.current_device())
    assert not _gpu.module.has_kernels(later.kernels, "float64", torch.cuda.current_device())
