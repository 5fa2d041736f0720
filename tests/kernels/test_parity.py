"""The project's accuracy rule: our error is at most twice torch.nn's in the same dtype, both against float64.

Sizes are drawn from the awkward ones. The error of a tensor is the root mean square of its difference. Where a tensor
has few elements torch may be lucky, so its error counts as at least a few units in the last place.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

import pytest
import torch
from accuracy import TORCH, rms, run, torch_run
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import fastrnn
from fastrnn import _C
from fastrnn.functional import LayerWeights, sequence

SIZES = (1, 2, 7, 17, 33, 100, 257)
size = st.sampled_from(SIZES)


def draws_of(B: int, H: int, P: int = 0) -> int:
    """The error of a few numbers is luck, torch's as ours: where a result has few, those of many draws count as one."""
    return max(1, 64 // min(B * (P or H), H))


def small_enough(shape: tuple[int, int, int, int]) -> bool:
    """Long sequences have units enough for a single draw, except in the explicit example."""
    T, B, H, inputs = shape
    return T * B * H * (H + inputs) <= 3e7 and T * (H + inputs) <= 20000 and T * draws_of(B, H) <= 1000


shapes = st.tuples(size, size, size, size).filter(small_enough)


def relu_run(y, module: torch.nn.RNNBase, *arguments):
    """Run an RNN with ReLU, its kink passed as in `y`: at the kink, either side is equally right."""

    def step(x, states):
        w_ih, w_hh, b_ih, b_hh = module.parameters()
        h, outputs = states[0][0], []
        for t in range(len(x)):
            h = (x[t] @ w_ih.t() + b_ih + h @ w_hh.t() + b_hh) * (y[t] > 0)
            outputs.append(h)
        return torch.stack(outputs), h.unsqueeze(0)

    return run(step, module, *arguments)


def our_run(cell: str, module: torch.nn.RNNBase, *arguments):
    def step(x, states):
        y, finals = sequence(cell, x, LayerWeights(*module.parameters()), [s[0] for s in states], backend="fused")
        return y, tuple(f.unsqueeze(0) for f in finals)

    return run(step, module, *arguments)


def errors(cell: str, shape: tuple[int, int, int, int], dtype: torch.dtype, projected: int, draw: int):
    """(name, our error, torch's error, right) of every result, the last three as tensors."""
    T, B, H, inputs = shape
    cls, options = TORCH[cell]
    torch.manual_seed(T * 7 + B * 5 + H * 3 + inputs + 1000 * draw)
    module = cls(inputs, H, proj_size=projected, **options) if projected else cls(inputs, H, **options)
    module = module.to(dtype)
    exact_module = cls(inputs, H, **options, **({"proj_size": projected} if projected else {})).double()
    exact_module.load_state_dict(module.state_dict())
    widths = [projected or H, H][: 2 if cell == "lstm" else 1]
    x = torch.randn(T, B, inputs).to(dtype)
    states = [torch.randn(1, B, w).mul(0.5).to(dtype) for w in widths]
    seeds = [torch.randn(T, B, widths[0]).to(dtype), *(torch.randn(1, B, w).to(dtype) for w in widths)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch_run(module, x, states, seeds)
    ours = our_run(cell, module, x, states, seeds)
    wide = (exact_module, x.double(), [s.double() for s in states], [s.double() for s in seeds])
    if cell == "rnn_relu":
        exact = [relu_run(results[0], *wide) for results in (ours, theirs)]
    else:
        exact = [torch_run(*wide)] * 2
    names = ["y", *"hc"[: len(widths)], "dx", "dh0", "dc0"[: 3 * (len(widths) - 1)], *dict(module.named_parameters())]
    names = [n for n in names if n]
    for name, mine, other, right, theirs_right in zip(names, ours, theirs, *exact, strict=True):
        yield name, mine.double() - right, other.double() - theirs_right, right


def check(cell: str, shape: tuple[int, int, int, int], dtype: torch.dtype, projected: int = 0) -> None:
    _, B, H, _ = shape
    draws = draws_of(B, H, projected)
    if draws > 1:
        torch.set_num_threads(1)
    found = zip(*(errors(cell, shape, dtype, projected, draw) for draw in range(draws)), strict=True)
    for results in found:
        name = results[0][0]
        mine, theirs, right = (rms(torch.stack([result[k] for result in results])) for k in (1, 2, 3))
        allowed = 2 * max(theirs, 4 * torch.finfo(dtype).eps * max(right, 1e-30))
        assert mine <= allowed, f"{name}: error {mine:.3e}, torch's {theirs:.3e}"


# In CI, where results have to be repeatable, the draws are the same every time; elsewhere each run makes new ones.
limits = settings(
    derandomize=bool(os.environ.get("CI")),
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", TORCH)
@limits
@example(shape=(257, 1, 1, 1))  # in 16 bits W·x and its bias nearly cancel here: rounded once, not twice
@given(shape=shapes)
def test_error_is_at_most_twice_torchs(cell, dtype, shape):
    check(cell, shape, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("capability", _C.capabilities())
@pytest.mark.parametrize("cell", TORCH)
def test_on_every_instruction_set(capability, cell, dtype):
    _C.set_capability(capability)
    for shape in ((7, 17, 33, 7), (33, 2, 100, 17), (2, 7, 257, 33)):
        check(cell, shape, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_with_a_projection(dtype):
    for shape, projected in (((7, 17, 33, 7), 17), ((33, 2, 100, 17), 7), ((17, 7, 257, 2), 100)):
        check("lstm", shape, dtype, projected)


@pytest.mark.parametrize("cell", TORCH)
def test_float64_equals_torch(cell):
    cls, options = TORCH[cell]
    for T, B, H, inputs in ((7, 17, 33, 2), (17, 1, 100, 7), (1, 2, 257, 33)):
        module = cls(inputs, H, **options).double()
        n = 2 if cell == "lstm" else 1
        x, states = torch.randn(T, B, inputs).double(), [torch.randn(1, B, H).double() for _ in range(n)]
        seeds = [torch.randn(T, B, H).double(), *(torch.randn(1, B, H).double() for _ in range(n))]
        theirs = torch_run(module, x, states, seeds)
        for a, b in zip(our_run(cell, module, x, states, seeds), theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def medians(errors_of: Callable[[int], tuple[float, float]], draws: int = 15) -> tuple[float, float]:
    """Our error and torch's, in the median over draws."""
    found = torch.tensor([errors_of(draw) for draw in range(draws)], dtype=torch.float64)
    return tuple(found.median(0).values.tolist())


@pytest.mark.parametrize("capability", _C.capabilities())
@pytest.mark.parametrize(
    ("name", "sizes", "steps", "rows"),
    [
        ("LSTM", {"input_size": 5, "hidden_size": 33, "proj_size": 32, "num_layers": 2}, 33, 6),
        ("GRU", {"input_size": 7, "hidden_size": 20}, 12, 32),
        ("RNN", {"input_size": 5, "hidden_size": 33}, 20, 20),
    ],
)
def test_sums_over_time_have_no_long_chains(name, sizes, steps, rows, capability):
    """torch.nn adds up the gradient of w_hh step by step: partial sums of B products each."""
    _C.set_capability(capability)
    torch.set_num_threads(1)
    weight = f"weight_hh_l{sizes.get('num_layers', 1) - 1}"

    def errors_of(draw: int) -> tuple[float, float]:
        torch.manual_seed(draw)
        theirs = getattr(torch.nn, name)(**sizes)
        ours, exact = getattr(fastrnn, name)(**sizes), getattr(torch.nn, name)(**sizes).double()
        x = torch.randn(steps, rows, sizes["input_size"])
        found = []
        for module in (ours, theirs, exact):
            module.load_state_dict(theirs.state_dict())
            y, _ = module(x.to(module.weight_hh_l0.dtype))
            found.append(torch.autograd.grad(y.sum(), module.get_parameter(weight))[0].double())
        return rms(found[0] - found[2]), rms(found[1] - found[2])

    mine, other = medians(errors_of)
    assert mine <= 1.6 * other  # with chains over all rows 2 to 2.2 times


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("capability", _C.capabilities())
def test_deep_products_of_a_row_have_no_long_chains(capability, dtype):
    """A lane of a dot product adds up at most 128 products: so many small terms are lost beside a large one."""
    _C.set_capability(capability)
    depth, eps = 10_000, torch.finfo(dtype).eps
    w_ih = torch.full((17, depth), 0.375 * eps, dtype=dtype)
    w_ih[:, 0] = 1
    weights = LayerWeights(w_ih, torch.zeros(17, 17, dtype=dtype))
    y, _ = sequence("rnn_relu", torch.ones(1, 1, depth, dtype=dtype), weights, backend="fused")
    lost = (1 - y.double()) / eps + 0.375 * (depth - 1)
    rounding = 0.5 * depth / 128  # of the chains' sums, when they are added up
    assert lost.max() <= 0.375 * 128 + rounding
