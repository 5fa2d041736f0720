"""float32 products of factors in one or two bfloat16 parts, where torch's settings allow them, and only there."""

from __future__ import annotations

import pytest
import torch
from problems import LAYOUTS, Problem, error

import fastrnn
from fastrnn import _C
from fastrnn.cells import CELLS

# By precision: the instruction sets with products of their own for it, and the largest error of a product of two
# factors that are rounded so, relative to the sum of its terms' absolute values.
IN_PARTS = {"high": ("amx",), "medium": ("avx512_bf16", "amx")}
LARGEST_ERROR = {"highest": 2**-20, "high": 2**-15, "medium": 2**-7}
SHAPES = {"small": (9, 3, 5, 7), "ragged": (7, 19, 33, 70), "long": (60, 8, 40, 48), "large": (5, 40, 300, 272)}
LENGTH, BATCH, INPUTS, HIDDEN = 2, 96, 160, 144  # large enough for every product to be made of parts


def needs(precision):
    """The instruction set that computes in this precision; skips where the processor has none."""
    found = [name for name in IN_PARTS[precision] if name in _C.capabilities()]
    if not found:
        pytest.skip(f"this processor has nothing for {precision!r}")
    _C.set_capability(found[-1])


def forget_settings():
    torch.set_float32_matmul_precision("highest")
    for setting in (torch.backends.mkldnn.rnn, torch.backends.mkldnn.matmul, torch.backends.mkldnn, torch.backends):
        setting.fp32_precision = "none"


@pytest.fixture(autouse=True)
def _restored():
    yield
    forget_settings()


def run(problem, precision):
    torch.set_float32_matmul_precision(precision)
    return problem.run()


def rectified_products():
    """A network whose products are sums of positive numbers, and its products from the numbers it had, by name: as they
    came out, and the factors they are made of. The step's derivative is one, and nothing is added.
    """
    torch.manual_seed(0)
    net = fastrnn.RNN(INPUTS, HIDDEN, nonlinearity="relu", bias=False)
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.rand_like(weight))
    x = torch.rand(LENGTH, BATCH, INPUTS, requires_grad=True)
    with torch.no_grad():
        x[1:] = 0
    y, _ = net(x)
    gradient = torch.rand_like(y)
    gradient[0] = 0
    y.backward(gradient)
    last = gradient[1]  # nothing else reaches the last step
    passed = (last.double() @ net.weight_hh_l0.double()).float()
    return {
        "input": (y[0], x[0], net.weight_ih_l0.t()),
        "recurrence": (y[1], y[0], net.weight_hh_l0.t()),
        "gradient of the input": (x.grad[1], last, net.weight_ih_l0),
        "gradient of w_hh": (net.weight_hh_l0.grad, last.t(), y[0]),
        "gradient of w_ih": (net.weight_ih_l0.grad, passed.t(), x[0]),
    }


def rounded_to(x, bits):
    """To so many bits of mantissa, ties to even."""
    integer, drop = x.detach().clone().view(torch.int32), 23 - bits
    half = (1 << (drop - 1)) - 1 + (integer >> drop & 1)
    return ((integer + half) >> drop << drop).view(torch.float32)


@pytest.mark.parametrize("precision", LARGEST_ERROR)
def test_largest_error_of_products(precision):
    torch.set_float32_matmul_precision(precision)
    for name, (found, a, b) in rectified_products().items():
        exact = a.detach().double() @ b.detach().double()
        # w_ih's gradient is that of a step back, whose product has an error of its own.
        allowed = LARGEST_ERROR[precision] * (2 if name == "gradient of w_ih" else 1)
        assert ((found.double() - exact).abs() <= allowed * exact).all(), name


def test_high_is_better_than_tf32():
    torch.set_float32_matmul_precision("high")
    for name, (found, a, b) in rectified_products().items():
        if name == "gradient of w_ih":
            continue
        exact = a.detach().double() @ b.detach().double()
        tf32 = rounded_to(a, 10).double() @ rounded_to(b, 10).double()
        assert error(found.detach(), exact) <= error(tf32, exact) / 8, name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
def test_error_of_a_network(cell, shape, layout):
    """The error of a sequence, outputs and gradients, stays near that of one product with rounded factors."""
    projected = 20 if layout == "plain" and shape != "small" and CELLS[cell].projectable else 0
    sizes = (*SHAPES[shape], projected, layout)
    exact = Problem(cell, *sizes).run()
    for precision, allowed in (("high", 2**-12), ("medium", 2**-3)):  # relu may switch
        found = run(Problem(cell, *sizes, dtype=torch.float32), precision)
        for name, value in exact.items():
            assert error(found[name], value) <= allowed, (precision, name)


@pytest.mark.parametrize("precision", IN_PARTS)
@pytest.mark.parametrize("cell", CELLS)
def test_precision_is_read_at_each_call(cell, precision):
    """Highest is plain float32, bitwise equal whatever was set before; the others differ."""
    needs(precision)
    p = Problem(cell, 6, 40, 96, 64, dtype=torch.float32)
    first, other, again = (run(p, name)["y"] for name in ("highest", precision, "highest"))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def old(value):
    return lambda: torch.set_float32_matmul_precision(value)


def new(**values):
    """By the names of the settings behind torch.backends: all, mkldnn, rnn, matmul."""

    def set_them():
        places = {"all": torch.backends, "mkldnn": torch.backends.mkldnn}
        for name, value in values.items():
            place = places[name] if name in places else getattr(torch.backends.mkldnn, name)
            place.fp32_precision = value

    return set_them


SETTINGS = {
    "nothing": ("highest", lambda: None),
    "high": ("high", old("high")),
    "medium": ("medium", old("medium")),
    "all tf32": ("high", new(all="tf32")),
    "all bf16": ("medium", new(all="bf16")),
    "mkldnn bf16": ("medium", new(mkldnn="bf16")),
    "rnn tf32": ("high", new(rnn="tf32")),
    "rnn bf16": ("medium", new(rnn="bf16")),
    "matmul bf16": ("medium", new(matmul="bf16")),
    "rnn ieee, matmul bf16": ("highest", new(rnn="ieee", matmul="bf16")),
    "rnn bf16, matmul ieee": ("medium", new(rnn="bf16", matmul="ieee")),
    "all bf16, rnn ieee": ("highest", new(all="bf16", rnn="ieee")),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_of_torch(setting):
    precision, choose = SETTINGS[setting]
    if precision != "highest":
        needs(precision)
    p = Problem("gru", 4, 33, 64, 64, dtype=torch.float32)
    wanted = run(p, precision)
    forget_settings()
    choose()
    for name, found in p.run().items():
        assert torch.equal(found, wanted[name]), name


@pytest.mark.parametrize(
    ("capability", "precision"), [(c, p) for p in IN_PARTS for c in _C.capabilities() if c not in IN_PARTS[p]]
)
def test_other_instruction_sets_compute_in_float32(capability, precision):
    _C.set_capability(capability)
    p = Problem("lstm", 6, 40, 96, 64, dtype=torch.float32)
    assert torch.equal(run(p, "highest")["y"], run(p, precision)["y"])


@pytest.mark.parametrize("precision", IN_PARTS)
@pytest.mark.parametrize("cell", CELLS)
def test_bits_do_not_depend_on_threads(cell, precision):
    needs(precision)
    for shape in ((12, 37, 96, 80), (4, 70, 512, 256)):
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for split in ("rows", "units"):
                _C.set_split(split)
                found.append(run(Problem(cell, *shape, dtype=torch.float32), precision)["y"])
        assert all(torch.equal(y, found[0]) for y in found[1:])


@pytest.mark.parametrize("precision", LARGEST_ERROR)
@pytest.mark.parametrize("cell", CELLS)
def test_infinite_and_huge_numbers(cell, precision):
    """The result is infinite or NaN where the exact one is: the split parts alone would give ∞ - ∞ for ∞·w."""
    inputs = [float("inf"), float("-inf"), float("nan"), 3.4e38, -3.4e38, 1e-40]
    for value in inputs:
        p = Problem(cell, 3, 34, 64, 48, dtype=torch.float32, initial=False)
        exact = Problem(cell, 3, 34, 64, 48, initial=False)
        with torch.no_grad():
            p.x[0, 5, 7] = exact.x[0, 5, 7] = torch.tensor(value)
        found, wanted = run(p, precision)["y"], run(exact, "highest")["y"]
        assert torch.equal(found.isnan(), wanted.isnan()), value
        finite = ~wanted.isnan() & (wanted.abs() < 1e30)
        near = 0.05 if precision == "medium" else 1e-4
        assert torch.allclose(found[finite].double(), wanted[finite], rtol=near, atol=near), value


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", CELLS)
def test_state_that_overflows_in_16_bits(cell, dtype):
    """An infinite input row stays the affair of its own row."""
    p = Problem(cell, 4, 20, 32, 40, dtype=dtype)
    wanted = p.run()["y"]
    with torch.no_grad():
        p.x[1, 3] = float("inf")
    found = p.run()["y"]
    others = torch.arange(20) != 3
    assert torch.equal(found[:, others], wanted[:, others])
