"""The operators on a GPU: parity by the project's rule, all drivers, formats and layouts, random shapes.

FASTRNN_CUDA_SHAPES says how many random shapes are tried, 1000 for all of them.
"""

from __future__ import annotations

import os
import random

import pytest
import torch
from accuracy import TORCH, rms, torch_run
from cuda_device import DRIVERS, GpuProblem, drivers_for, finish, needs_gpu, reset_gpu, runs
from problems import LAYOUTS, Problem, assert_same, error

import fastrnn
from fastrnn import _gpu
from fastrnn.cells import CELLS
from fastrnn.functional import LayerWeights, hidden_gradients, sequence

pytestmark = needs_gpu

SHAPES = [(1, 1, 1, 1), (1, 3, 2, 5), (5, 4, 3, 7), (6, 17, 5, 33), (3, 2, 40, 100), (7, 33, 17, 257)]  # T, B, I, H
FORMATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _exact_and_poisoned():
    cudnn, matmul = torch.backends.cudnn.rnn.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = torch.backends.cuda.matmul.fp32_precision = "ieee"
    _gpu.module.set_poison(True)
    yield
    finish()
    torch.backends.cudnn.rnn.fp32_precision, torch.backends.cuda.matmul.fp32_precision = cudnn, matmul
    reset_gpu()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", CELLS)
def test_stepwise_in_float64_equals_the_reference_on_the_cpu(cell, layout, reverse):
    fastrnn.cuda.set_driver("stepwise")
    for T, B, inputs, H in SHAPES:
        for P in {0, 3 if CELLS[cell].projectable and H > 3 else 0}:
            for with_all in (True, False):
                options = {"bias": with_all, "initial": with_all}
                found = GpuProblem(cell, T, B, inputs, H, P, layout, reverse, **options).run("fused")
                wanted = Problem(cell, T, B, inputs, H, P, layout, reverse, **options).run("reference")
                assert_same({k: v.cpu() for k, v in found.items()}, wanted, 1e-12)


def within_the_rule(found, theirs, exact, dtype: torch.dtype) -> None:
    """Errors at most twice those of torch in the same format, both against float64."""
    for name, right in exact.items():
        right = right.double().cpu()
        floor = 4 * torch.finfo(dtype).eps * max(rms(right), 1e-30)
        allowed = 2 * max(rms(theirs[name].double().cpu() - right), floor)
        mine = rms(found[name].double().cpu() - right)
        assert mine <= allowed, f"{name}: error {mine:.3e}, allowed {allowed:.3e}"


def against_cudnn(cell: str, shape: tuple[int, int, int, int], dtype: torch.dtype, projected: int = 0) -> None:
    T, B, H, inputs = shape
    cls, options = TORCH[cell]
    options = {**options, **({"proj_size": projected} if projected else {})}
    torch.manual_seed(T * 7 + B * 5 + H * 3 + inputs)
    module = cls(inputs, H, **options).to("cuda", dtype)
    exact_module = cls(inputs, H, **options).to("cuda", torch.float64)
    exact_module.load_state_dict(module.state_dict())
    widths = [projected or H, H][: 2 if cell == "lstm" else 1]

    def draw(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes).to("cuda", dtype)

    x, states = draw(T, B, inputs), [draw(1, B, w) * 0.5 for w in widths]
    seeds = [draw(T, B, widths[0]), *(draw(1, B, w) for w in widths)]
    exact = torch_run(exact_module, x.double(), [s.double() for s in states], [s.double() for s in seeds])
    theirs = torch_run(module, x, states, seeds)
    names = ["y", *(f"final {k}" for k in range(len(widths))), "dx", *(f"dinitial {k}" for k in range(len(widths)))]
    names += list(dict(module.named_parameters()))
    x, states = x.requires_grad_(), [s.requires_grad_() for s in states]
    weights = LayerWeights(*module.parameters())
    y, finals = sequence(cell, x, weights, [s[0] for s in states], backend="fused")
    outputs = (y, *(f.unsqueeze(0) for f in finals))
    ours = [*outputs, *torch.autograd.grad(outputs, [x, *states, *module.parameters()], seeds)]
    named = [dict(zip(names, values, strict=True)) for values in (ours, theirs, exact)]
    within_the_rule(*named, dtype)


@pytest.mark.parametrize("dtype", FORMATS, ids=str)
@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("cell", CELLS)
def test_error_is_at_most_twice_cudnns(cell, driver, dtype):
    for shape in ((7, 17, 33, 7), (33, 2, 100, 17), (2, 7, 257, 33), (50, 16, 512, 64), (20, 64, 128, 128)):
        T, B, H, inputs = shape
        if driver in drivers_for(Problem(cell, T, B, inputs, H, dtype=dtype)):
            with fastrnn.cuda.driver(driver):
                before = runs()[driver]
                against_cudnn(cell, shape, dtype)
                assert runs()[driver] == before + 2


@pytest.mark.parametrize("dtype", [*FORMATS, torch.float64], ids=str)
def test_with_a_projection(dtype):
    for shape, projected in (((7, 17, 33, 7), 17), ((33, 2, 100, 17), 7), ((17, 7, 257, 2), 100)):
        against_cudnn("lstm", shape, dtype, projected)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("cell", CELLS)
def test_tf32_where_torch_allows_it(cell, driver):
    problem = GpuProblem(cell, 20, 16, 32, 256, dtype=torch.float32)
    if driver not in drivers_for(problem) or torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("not on this GPU")
    exact = GpuProblem(cell, 20, 16, 32, 256).run("reference")
    with fastrnn.cuda.driver(driver):
        assert error(problem.run()["y"], exact["y"]) < 1e-6
        torch.backends.cuda.matmul.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = "tf32"
        assert 1e-6 < error(problem.run()["y"], exact["y"]) < 3e-3
        against_cudnn(cell, (20, 16, 256, 32), torch.float32)


def draw_problem(g: random.Random) -> dict:
    """Sizes from one to beyond a block's, the awkward ones among them."""

    def size(most: int) -> int:
        return g.choice(
            [1, 2, 7, 8, 9, 16, 17, 31, 33, 64, 100, 127, 128, 129, 257, 512, 600, 1024, 1100, g.randint(1, most)]
        )

    while True:
        T, B, I, H = min(size(60), 60), min(size(128), 128), min(size(300), 300), min(size(1500), 1500)  # noqa: E741
        if T * B * H * (H + I) <= 4e9:
            break
    cell = g.choice(list(CELLS))
    P = g.randint(1, H) if CELLS[cell].projectable and g.random() < 0.1 else 0
    return {
        "cell": cell,
        "steps": T,
        "batch": B,
        "inputs": I,
        "hidden": H,
        "projected": 0 if P == H else P,
        "layout": g.choice(LAYOUTS),
        "reverse": g.random() < 0.4,
        "bias": g.random() < 0.8,
        "initial": g.random() < 0.7,
        "seed": g.randint(0, 10**6),
    }


@pytest.mark.parametrize("number", range(int(os.environ.get("FASTRNN_CUDA_SHAPES", "40"))))
def test_random_shapes(number):
    g = random.Random(number)
    settings, dtype = draw_problem(g), g.choice([*FORMATS, torch.float64])
    exact = GpuProblem(**settings).run("reference")
    problem = GpuProblem(**settings, dtype=dtype)
    theirs = problem.run("reference")
    drivers = drivers_for(problem)
    for driver in {"auto", g.choice(drivers), drivers[-1]}:
        with fastrnn.cuda.driver(driver):
            found = problem.run("fused")
            finish()
        # The slope of relu jumps at zero, so that a rounding may change a gradient by all there is.
        names = [n for n in exact if settings["cell"] != "rnn_relu" or not n.startswith("d") or dtype == torch.float64]
        within_the_rule(found, theirs, {n: exact[n] for n in names}, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cell", CELLS)
def test_drivers_agree(cell, layout):
    for reverse in (False, True):
        problem = GpuProblem(cell, 9, 21, 5, 72, layout=layout, reverse=reverse, dtype=torch.float32)
        exact = GpuProblem(cell, 9, 21, 5, 72, layout=layout, reverse=reverse).run("reference")
        for driver in drivers_for(problem):
            with fastrnn.cuda.driver(driver):
                assert_same(problem.run("fused"), exact, 1e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_padding_may_hold_anything(cell, reverse):
    p = GpuProblem(cell, 6, 5, 3, 8, layout="lengths", reverse=reverse, dtype=torch.float32)
    for driver in drivers_for(p):
        with fastrnn.cuda.driver(driver):
            clean = p.run()
            with torch.no_grad():
                for b, n in enumerate(p.arguments["lengths"].tolist()):
                    p.x[n:, b] = float("nan")
            assert_same(p.run(), clean, 1e-6)


def test_lengths_out_of_bounds_read_nothing_else():
    """They are not checked on a GPU: more than T counts as T, less than none as none."""
    p = GpuProblem("lstm", 6, 4, 3, 8, layout="lengths", dtype=torch.float32)
    for driver in drivers_for(p):
        with fastrnn.cuda.driver(driver):
            p.arguments["lengths"] = torch.tensor([6, 0, 6, 3], device="cuda")
            wanted = p.run()
            p.arguments["lengths"] = torch.tensor([2**40, -(2**40), 7, 3], device="cuda")
            assert_same(p.run(), wanted, 0)


@pytest.mark.parametrize("form", ["int32 on the GPU", "on the CPU"])
def test_lengths_and_reset_in_other_forms(form):
    p = GpuProblem("gru", 6, 5, 3, 8, layout="lengths+reset")
    wanted = p.run()
    lengths, reset = p.arguments["lengths"], p.arguments["reset"]
    p.arguments["lengths"] = lengths.int() if "int32" in form else lengths.cpu()
    p.arguments["reset"] = reset.t().contiguous().t() if "int32" in form else reset.cpu()
    assert_same(p.run(), wanted, 0)
    assert_same(p.run("reference"), wanted, 1e-13)


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("cell", CELLS)
def test_same_bits_in_every_run(cell, driver):
    for H in (40, 512):
        p = GpuProblem(cell, 20, 48, 8, H, layout="lengths+reset", dtype=torch.float32)
        if driver not in drivers_for(p):
            continue
        with fastrnn.cuda.driver(driver):
            first = p.run()
            for _ in range(5):
                assert_same(p.run(), first, 0)


def test_hidden_gradients():
    found = []
    for kind, backend in ((GpuProblem, "fused"), (Problem, "fused")):
        p = kind("lstm", 6, 5, 4, 9, layout="packed")
        with torch.no_grad():
            y, _ = sequence("lstm", p.x, p.weights, p.states, backend=backend, **p.arguments)
        found.append(hidden_gradients("lstm", p.x, p.weights, p.states, p.seeds((y,))[0], **p.arguments))
    assert error(found[0].cpu(), found[1]) < 1e-13


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_as_in_the_reference(cell, value):
    p = GpuProblem(cell, 4, 3, 2, 5, dtype=torch.float32)
    for driver in drivers_for(p):
        with torch.no_grad(), fastrnn.cuda.driver(driver):
            p.x[1, 1, 0] = value
            fused, _ = sequence(cell, p.x, p.weights, p.states)
            wanted, _ = sequence(cell, p.x, p.weights, p.states, backend="reference")
        assert torch.equal(fused.isnan(), wanted.isnan())
        torch.testing.assert_close(fused, wanted, equal_nan=True)


def test_empty_batch():
    w = LayerWeights(*(torch.randn(*s, device="cuda").requires_grad_() for s in ((8, 3), (8, 2), (8,), (8,))))
    y, (h, c) = sequence("lstm", torch.randn(4, 0, 3, device="cuda"), w)
    assert y.shape == (4, 0, 2)
    assert h.shape == c.shape == (0, 2)
    y.sum().backward()
    assert all(t.grad.abs().sum() == 0 for t in w[:4])


def test_errors_name_the_argument_and_its_device():
    p = GpuProblem("lstm", 3, 2, 3, 4, dtype=torch.float32)
    device = p.x.device
    with pytest.raises(RuntimeError, match=rf"w_ih: expected a dense tensor on {device}, got Strided on cpu"):
        sequence("lstm", p.x, p.weights._replace(w_ih=p.weights.w_ih.cpu()))
    with pytest.raises(RuntimeError, match=r"w_hh: expected a dense tensor on .*got Strided on cpu"):
        sequence("lstm", p.x, p.weights._replace(w_hh=p.weights.w_hh.cpu()))
    with pytest.raises(RuntimeError, match=f"x: expected a dense tensor on {device}, got Strided on cpu"):
        sequence("lstm", p.x.cpu(), p.weights)
    with pytest.raises(ValueError, match="batch_sizes: expected a non-empty one-dimensional int64 tensor on the CPU"):
        sequence("lstm", p.x[0], p.weights, batch_sizes=torch.tensor([2], device="cuda"))
    with pytest.raises(ValueError, match="lengths: expected numbers from 0 to the 3 steps of the input, got 4"):
        sequence("lstm", p.x, p.weights, lengths=torch.tensor([4, 1]))


@pytest.mark.skipif(not os.environ.get("FASTRNN_CUDA_LARGE"), reason="FASTRNN_CUDA_LARGE: needs 30 GB of GPU memory")
def test_offsets_beyond_32_bits():
    T, B, H = 70_000, 64, 128  # 2.3e9 gates
    x = torch.randn(T, B, 8, device="cuda", dtype=torch.bfloat16)
    net = fastrnn.LSTM(8, H, device="cuda", dtype=torch.bfloat16)
    y, (h, _) = net(x)
    assert torch.equal(y[-1], h[0])
    tail, _ = net(x[-500:])  # states forget
    torch.testing.assert_close(tail[-1], y[-1], rtol=5e-2, atol=5e-2)
    y.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
