"""float32 products by sums of bfloat16 parts, where torch allows it: as good as float32's, and only then."""

from __future__ import annotations

import pytest
import torch
from problems import LAYOUTS, Problem, error

from fastrnn import _C
from fastrnn.cells import CELLS

HAS_MATRIX_UNIT = "amx" in _C.capabilities()
needs_matrix_unit = pytest.mark.skipif(not HAS_MATRIX_UNIT, reason="this processor has no matrix unit")
SHAPES = {"small": (9, 3, 5, 7), "ragged": (7, 19, 33, 70), "long": (60, 8, 40, 48), "large": (5, 40, 300, 272)}


@pytest.fixture(autouse=True)
def _restored():
    yield
    torch.set_float32_matmul_precision("highest")


def run(problem, precision):
    torch.set_float32_matmul_precision(precision)
    return problem.run()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("cell", CELLS)
def test_error_of_high(cell, shape, layout):
    projected = 20 if layout == "plain" and shape != "small" and CELLS[cell].projectable else 0
    sizes = (*SHAPES[shape], projected, layout)
    exact = Problem(cell, *sizes).run()
    plain, high = Problem(cell, *sizes, dtype=torch.float32), Problem(cell, *sizes, dtype=torch.float32)
    wanted, found = run(plain, "highest"), run(high, "high")
    for name, value in exact.items():
        allowed = 4 * error(wanted[name], value) + 1e-7
        assert error(found[name], value) <= allowed, name


@needs_matrix_unit
@pytest.mark.parametrize("cell", CELLS)
def test_precision_is_read_at_each_call(cell):
    """Highest is plain float32, to the bit, whatever was set before; high and medium are not."""
    p = Problem(cell, 6, 40, 96, 64, dtype=torch.float32)
    first, high, medium, again = (run(p, name)["y"] for name in ("highest", "high", "medium", "highest"))
    assert torch.equal(first, again)
    assert not torch.equal(first, high)
    assert torch.equal(high, medium)


@needs_matrix_unit
def test_the_newer_setting():
    """torch.backends.mkldnn.matmul.fp32_precision, after which torch.get_float32_matmul_precision raises."""
    p = Problem("gru", 4, 33, 64, 64, dtype=torch.float32)
    wanted = run(p, "high")["y"]
    torch.set_float32_matmul_precision("highest")
    torch.backends.mkldnn.matmul.fp32_precision = "tf32"
    try:
        assert torch.equal(p.run()["y"], wanted)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "ieee"
    assert not torch.equal(p.run()["y"], wanted)


@needs_matrix_unit
@pytest.mark.parametrize("capability", [name for name in _C.capabilities() if name != "amx"])
def test_other_instruction_sets_compute_in_float32(capability):
    _C.set_capability(capability)
    p = Problem("lstm", 6, 40, 96, 64, dtype=torch.float32)
    assert torch.equal(run(p, "highest")["y"], run(p, "high")["y"])


@pytest.mark.parametrize("cell", CELLS)
def test_bits_do_not_depend_on_threads(cell):
    for shape in ((12, 37, 96, 80), (4, 70, 512, 256)):
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for split in ("rows", "units"):
                _C.set_split(split)
                found.append(run(Problem(cell, *shape, dtype=torch.float32), "high")["y"])
        assert all(torch.equal(y, found[0]) for y in found[1:])


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("cell", CELLS)
def test_infinite_and_huge_numbers(cell, precision):
    """Where the exact result is infinite or NaN, or a factor is, so it is here: parts alone would make ∞ - ∞ of ∞·w."""
    inputs = [float("inf"), float("-inf"), float("nan"), 3.4e38, -3.4e38, 1e-40]
    for value in inputs:
        p = Problem(cell, 3, 34, 64, 48, dtype=torch.float32, initial=False)
        exact = Problem(cell, 3, 34, 64, 48, initial=False)
        with torch.no_grad():
            p.x[0, 5, 7] = exact.x[0, 5, 7] = torch.tensor(value)
        found, wanted = run(p, precision)["y"], run(exact, "highest")["y"]
        assert torch.equal(found.isnan(), wanted.isnan()), value
        finite = ~wanted.isnan() & (wanted.abs() < 1e30)
        assert torch.allclose(found[finite].double(), wanted[finite], rtol=1e-4, atol=1e-5), value


@needs_matrix_unit
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
