"""Cells of Python on the GPU's kernels, over the emulator: no GPU is needed. All gradients, against float64.

What nvcc gets to compile is compiled here by the C++ compiler, loaded as on a GPU and run by the binding's operators.
"""

from __future__ import annotations

import cuda_ops
import custom_cells
import custom_loops as loops
import emulated
import pytest
import torch
from emulated_problems import Problem as Drawn
from emulated_problems import Way
from emulated_problems import run as run_drawn
from problems import LAYOUTS, error
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from fastrnn import gallery
from fastrnn.custom.build_cuda import FORMATS

ROUNDING = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 4e-2, torch.float16: 6e-3}
#: One product of h, with rows for every gate and for some, per-unit parameters, one to four states.
ONE = {
    "lstm": custom_cells.lstm,
    "gru": custom_cells.gru,
    "rnn_tanh": custom_cells.rnn_tanh,
    "mixed": custom_cells.mixed,
    "nas": gallery.CELLS["nas"],
    "slstm": gallery.CELLS["slstm"],
    "zoneout": gallery.CELLS["zoneout_lstm"],
}
#: Two products, one of another vector alone, none.
OTHER = {
    "reset_before": loops.reset_before,
    "multiplicative": loops.multiplicative,
    "mixed_rows": loops.mixed,
    "only_second": loops.only_second,
    "independent": loops.independent,
    "sru": gallery.CELLS["sru"],
}
ALL = ONE | OTHER


@pytest.fixture(autouse=True)
def ops():
    try:
        cuda_ops.load()
    except SystemExit as problem:
        pytest.skip(str(problem))
    with cuda_ops.instead():
        yield torch.ops.fastrnn_emulated


def network(cell, inputs: int, hidden: int, dtype: torch.dtype = torch.float64, **options):
    """A network whose weights are drawn in float32, so that one in float64 has the same, and its kernels."""
    cuda_ops.load_own(cell.kernels, cell.source(), FORMATS[dtype])
    g = torch.Generator().manual_seed(3)
    found = cell(inputs, hidden, dtype=torch.float64, **options).eval()  # masks have their means then
    with torch.no_grad():
        for p in found.parameters():
            p.copy_((2 * torch.rand(p.shape, generator=g, dtype=torch.float64) - 1) * hidden**-0.5)
    return found.to(dtype)


def problem(net, T: int, B: int, layout: str, seed: int = 0) -> tuple[list[Tensor], dict]:
    """x (T, B, I) and initial states in float64, and how the rows lie."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return 2 * torch.rand(shape, generator=g, dtype=torch.float64) - 1

    rows = net.num_layers * (2 if net.bidirectional else 1)
    states = [draw(rows, B, net.hidden_size) for _ in net.cell.states]
    if "n" in net.cell.states:  # a normaliser is a sum of positive gates
        states[net.cell.states.index("n")].abs_().add_(0.5)
    how = {}
    if "lengths" in layout:
        how["lengths"] = torch.randint(0, T + 1, (B,), generator=g)
    if "reset" in layout:
        how["reset"] = torch.rand(T, B, generator=g) < 0.4
    if layout == "packed":
        how["packed"] = torch.randint(1, T + 1, (B,), generator=g).clamp(max=T)
    return [draw(T, B, net.input_size), *states], how


def run(net, values: list[Tensor], how: dict, backend: str) -> dict[str, Tensor]:
    """Outputs, and the gradients of all that has one."""
    dtype = next(net.parameters()).dtype
    x, *states = leaves = [v.to(dtype).requires_grad_() for v in values]
    options = {name: value for name, value in how.items() if name != "packed"}
    given = pack_padded_sequence(x, how["packed"], enforce_sorted=False) if "packed" in how else x
    y, last = net(given, tuple(states) if len(states) > 1 else states[0], backend=backend, **options)
    outputs = [y.data if "packed" in how else y, *(last if isinstance(last, tuple) else (last,))]
    g = torch.Generator().manual_seed(1)
    seeds = [(2 * torch.rand(o.shape, generator=g, dtype=torch.float64) - 1).to(dtype) for o in outputs]
    named = dict(net.named_parameters())
    grads = torch.autograd.grad(outputs, [*leaves, *named.values()], seeds, allow_unused=True)
    names = ["x", *net.cell.states, *named]
    found = {f"output {k}": o.detach() for k, o in enumerate(outputs)}
    return found | {f"d{n}": g for n, g in zip(names, grads, strict=True) if g is not None}


def check(cell, T: int, B: int, I: int, H: int, dtype=torch.float64, layout: str = "plain", **options) -> None:  # noqa: E741
    net = network(cell, I, H, dtype, **options)
    values, how = problem(net, T, B, layout)
    values = [v.to(dtype).double() for v in values]
    found = run(net, values, how, "fused")
    wanted = run(net.to(torch.float64), values, how, "reference")
    for name, exact in wanted.items():
        if name not in found:  # no kernel says that a gradient is zero everywhere, or it would be counted
            assert not exact.any(), name
            continue
        assert found[name].shape == exact.shape, name
        # One that is zero but for rounding has no digits to compare.
        small = exact.abs().max().item() < 1e-9 if exact.numel() else True
        difference = found[name].double().abs().max().item() if small and exact.numel() else error(found[name], exact)
        assert difference <= ROUNDING[dtype], f"{cell.name}: {name}: error {difference:.2e}"


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layout", [*LAYOUTS])
@pytest.mark.parametrize("name", ALL)
def test_stepwise_equals_the_reference(ops, name, layout, bidirectional):
    ops.set_driver("stepwise")
    before = cuda_ops.runs()["stepwise"]
    for T, B, I, H in ((1, 1, 1, 1), (1, 3, 2, 5), (5, 4, 3, 7)):  # noqa: E741
        check(ALL[name], T, B, I, H, layout=layout, bidirectional=bidirectional)
    assert cuda_ops.runs()["stepwise"] == before + (12 if bidirectional else 6)


@pytest.mark.parametrize("driver", ["stepwise", "grid", "cluster"])
@pytest.mark.parametrize("name", ONE)
def test_every_driver_in_float32(ops, name, driver):
    ops.set_driver(driver)
    before = cuda_ops.runs()[driver]
    for layout in ("plain", "lengths+reset"):
        for T, B, I, H in ((1, 3, 2, 5), (4, 5, 3, 12)):  # noqa: E741
            check(ONE[name], T, B, I, H, torch.float32, layout)
    assert cuda_ops.runs()[driver] == before + 8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["lstm", "mixed", "multiplicative", "sru"])
def test_formats_of_16_bits(ops, name, dtype):
    for driver in ("stepwise", "grid") if name in ONE else ("auto",):
        ops.set_driver(driver)
        check(ALL[name], 4, 5, 3, 12, dtype, "packed")


def test_tf32_where_torch_allows_it(ops):
    net = network(custom_cells.gru, 3, 12, torch.float32)
    values, how = problem(net, 5, 4, "plain")
    ops.set_driver("grid")
    exact = run(network(custom_cells.gru, 3, 12), values, how, "reference")["output 0"]
    assert error(run(net, values, how, "fused")["output 0"], exact) < 1e-6
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        assert 1e-6 < error(run(net, values, how, "fused")["output 0"], exact) < 3e-3
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.parametrize("name", ["mixed", "multiplicative", "sru"])
def test_layers_without_biases(name):
    check(ALL[name], 4, 3, 2, 5, num_layers=2, bias=False, bidirectional=True, layout="lengths")


@pytest.mark.parametrize("name", ["gru", "mixed", "reset_before", "independent"])
def test_recompute_and_inference(name):
    net = network(ALL[name], 3, 5)
    values, how = problem(net, 9, 4, "reset")
    x, *states = values
    states = tuple(states) if len(states) > 1 else states[0]
    wanted = run(net, values, how, "reference")
    with torch.no_grad():
        assert error(net(x, states, **how, backend="fused")[0], wanted["output 0"]) < 1e-12
    found = net(x.requires_grad_(), states, **how, backend="fused", recompute=3)
    plain = net(x, states, **how, backend="reference")
    leaves = [x, *net.parameters()]
    grads = [torch.autograd.grad(y.sin().sum(), leaves, materialize_grads=True) for y, _ in (found, plain)]
    for a, b in zip(*grads, strict=True):
        assert error(a, b) < 1e-12


@pytest.mark.parametrize(("name", "reason"), [("multiplicative", "second product"), ("sru", "no recurrent product")])
def test_drivers_that_a_cell_cannot_have(ops, name, reason):
    net = network(ALL[name], 3, 5, torch.float32)
    ops.set_driver("grid")
    with pytest.raises(RuntimeError, match=f'"grid" can run, as it was asked for, but it cannot: .*{reason}'):
        net(torch.randn(2, 3, 3), backend="fused")


def test_sizes_that_do_not_fit(ops):
    cell = loops.mixed
    network(cell, 3, 5)
    x, w = torch.randn(2, 3, 15, dtype=torch.float64), torch.randn(11, 5, dtype=torch.float64)
    forward = ops.sequence_forward
    layout = (None, None, None, False, False)
    with pytest.raises(RuntimeError, match=r"w_hh: expected shape \[2·H \+ 1, P\], got \[10, 5\]"):
        forward(cell.kernels, x, None, w[:10], None, None, None, [], *layout)
    with pytest.raises(RuntimeError, match=r"b_hh: expected shape \[10\], got \[15\]"):
        forward(cell.kernels, x, None, w, None, x[0, 0], None, [], *layout)
    with pytest.raises(ValueError, match="cannot be used with a projection"):
        forward(cell.kernels, x, None, w, None, None, torch.randn(5, 5, dtype=torch.float64), [], *layout)
    with pytest.raises(RuntimeError, match=r"cell: expected kernels of .* for Half"):
        forward(cell.kernels, x.half(), None, w.half(), None, None, None, [], *layout)


def test_a_shared_object_of_another_version(ops, tmp_path):
    """A shared object of another version is rejected, and changes nothing."""
    (tmp_path / "other.c").write_text(
        "long fastrnn_cuda_cell_interface = 1; void* fastrnn_cuda_cell(void) { return 0; }"
    )
    command = [*emulated.tools().command, "-xc", "-shared", "-fPIC", "other.c", "-o", "other.so"]
    assert emulated.subprocess.run(command, cwd=tmp_path).returncode == 0
    with pytest.raises(RuntimeError, match="it is of another version of fastrnn"):
        ops.load_cell(str(tmp_path / "other.so"), cuda_ops.CAPABILITY)
    with pytest.raises(RuntimeError, match="cannot open shared object file"):
        ops.load_cell(str(tmp_path / "none.so"), cuda_ops.CAPABILITY)


def test_kernels_are_of_one_compute_capability(ops):
    cell = custom_cells.rnn_tanh
    network(cell, 3, 5)
    network(cell, 3, 5, torch.float32)
    assert ops.formats(cell.kernels, cuda_ops.CAPABILITY) & 0b10011 == 0b10011  # the second adds to the first
    assert ops.formats(cell.kernels, 80) == 0
    assert ops.formats("lstm", 80) == 0b11111  # the built-in ones are of all that the library is built for


HEADERS = tuple(
    (cell.kernels, cell.source()) for cell in (ALL[name] for name in ("mixed", "multiplicative", "only_second", "sru"))
)


@pytest.mark.parametrize("cell", [name for name, _ in HEADERS])
def test_every_access_of_the_stepwise_kernels(cell):
    """With every access to memory looked at, the same bits as without."""
    kernels, plain = emulated.library(True, HEADERS), emulated.library(False, HEADERS)
    for seed, layout in enumerate(LAYOUTS):
        p = Drawn(cell, 5, 4, 9, "float32", layout=layout, reverse=seed % 2 == 1, seed=seed)
        wanted, _ = run_drawn(plain, p, Way("stepwise", seed=seed))
        found, _ = run_drawn(kernels, p, Way("stepwise", seed=seed + 10))
        for name, value in wanted.items():
            assert torch.equal(value.nan_to_num(7), found[name].nan_to_num(7)), (name, layout)


@pytest.mark.parametrize("driver", ["grid", "cluster"])
def test_every_access_of_a_persistent_kernel(driver):
    """Races, reads of what nothing wrote, accesses outside of buffers; in a cell with per-unit parameters."""
    kernels, cell = emulated.library(True, HEADERS), ALL["mixed"].kernels
    for seed, cut in enumerate([(3, 1), (1, 2), (2, 2)]):
        for fmt in ("float32", "bfloat16"):
            p = Drawn(cell, 3, 9, 13, fmt, layout="lengths+reset", reverse=seed == 1, seed=seed)
            wanted, _ = run_drawn(kernels, p, Way("stepwise"))
            found, _ = run_drawn(kernels, p, Way(driver, cut, seed=seed))
            for name, value in wanted.items():
                rounding = 1e-5 if fmt == "float32" else 0.1
                torch.testing.assert_close(found[name], value, rtol=rounding, atol=rounding, equal_nan=True, msg=name)
