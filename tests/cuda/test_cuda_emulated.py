"""The CUDA kernels on the CPU, forward and backward by every driver, against float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from emulated import DRIVERS, FORMATS, KB, Machine, library
from emulated_problems import LaunchError, Problem, Way, check, exact, run

from fastrnn.cells import CELLS

LAYOUTS = ("plain", "packed", "lengths", "reset", "lengths+reset")
# With rounding a relu may be on the other side of its corner: that cell is tested with whole numbers.
SMOOTH = [cell for cell in CELLS if cell != "rnn_relu"]
PERSISTENT = [fmt for fmt in FORMATS if fmt != "float64"]
EVERY = [(fmt, driver) for fmt in FORMATS for driver in DRIVERS[1:] if fmt != "float64" or driver == "stepwise"]
IDS = ["-".join(pair) for pair in EVERY]
HIDDEN, BATCH, STEPS = (1, 5, 8, 13, 24, 40), (1, 3, 8, 9, 17, 33, 70), (1, 2, 5)


@pytest.fixture(scope="module")
def kernels():
    return library()


def some_sizes(start: int, count: int) -> list[tuple[int, int, int]]:
    """Some (T, B, H) of all, others for every start; the first 42 have every pair of B and H."""
    numbers = range(start * count, start * count + count)
    return [(STEPS[(n + n // 42) % 3], BATCH[n % 7], HIDDEN[n % 6]) for n in numbers]


@pytest.mark.parametrize(("fmt", "driver"), EVERY, ids=IDS)
@pytest.mark.parametrize("cell", SMOOTH)
def test_sizes(kernels, cell, fmt, driver):
    for seed, (T, B, H) in enumerate(some_sizes(EVERY.index((fmt, driver)), 14)):
        check(kernels, Problem(cell, T, B, H, fmt, seed=seed), Way(driver, seed=seed))


@pytest.mark.parametrize(("fmt", "driver"), EVERY, ids=IDS)
def test_whole_numbers_exactly(kernels, fmt, driver):
    """No rounding anywhere: a number at a wrong place of a fragment, or left out, is seen at once."""
    for seed, (T, B, H) in enumerate(some_sizes(0, 42)):
        layout = LAYOUTS[seed % 5]
        p = Problem("rnn_relu", T, B, H, fmt, layout=layout, reverse=seed % 2 == 1, whole=True, seed=seed)
        largest = max(t.abs().max().item() for t in exact(p, kernels.numbers("rnn_relu")).values() if t.numel())
        assert largest <= 256
        check(kernels, p, Way(driver, seed=seed), tolerance=0)


@pytest.mark.parametrize(("fmt", "driver"), EVERY, ids=IDS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_layouts(kernels, cell, fmt, driver):
    for seed, (layout, reverse) in enumerate(itertools.product(LAYOUTS, [False, True])):
        for T, B, H in ((5, 9, 13), (2, 35, 8), (1, 3, 5)):
            check(
                kernels, Problem(cell, T, B, H, fmt, layout=layout, reverse=reverse, seed=seed), Way(driver, seed=seed)
            )


@pytest.mark.parametrize(("fmt", "driver"), [("float32", d) for d in DRIVERS[1:]], ids=DRIVERS[1:])
@pytest.mark.parametrize("cell", SMOOTH)
def test_what_may_be_left_out(kernels, cell, fmt, driver):
    names = ["bias", "initial", "grad_y", "grad_final", "want_initial"]
    for seed, values in enumerate(itertools.product([False, True], repeat=len(names))):
        p = Problem(cell, 3, 9, 13, fmt, layout=LAYOUTS[seed % 5], seed=seed, **dict(zip(names, values, strict=True)))
        check(kernels, p, Way(driver, seed=seed))


@pytest.mark.parametrize("fmt", FORMATS)
def test_projection(kernels, fmt):
    for seed, (layout, reverse) in enumerate(itertools.product(LAYOUTS, [False, True])):
        for T, B, H, P in ((5, 9, 13, 4), (2, 3, 5, 1), (1, 17, 8, 7), (3, 2, 5, 11)):
            p = Problem("lstm", T, B, H, fmt, P, layout=layout, reverse=reverse, seed=seed)
            check(kernels, p, Way("stepwise", seed=seed))


@pytest.mark.parametrize("fmt", PERSISTENT)
@pytest.mark.parametrize("driver", ["grid", "cluster"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_slices(kernels, cell, driver, fmt):
    """Ways to cut that the plan would not choose: any number of units, passes of 32 rows, idle warps, short ends."""
    slices = [(1, 1), (1, 3), (2, 1), (2, 2), (3, 1), (3, 2), (5, 1), (8, 1), (4, 2)]
    for seed, cut in enumerate(slices):
        for T, B, H in ((3, 70, 13), (2, 33, 40)):
            way = Way(driver, cut, warps_deep=(0, 1, 3)[seed % 3], seed=seed)
            outcomes = check(kernels, Problem(cell, T, B, H, fmt, layout=LAYOUTS[seed % 5], seed=seed), way)
            assert {o.row_slices for o in outcomes} == {cut[1]}


COMPILED = [(fmt, driver) for fmt in ("bfloat16", "float16") for driver in ("grid", "cluster")] + [("tf32", "cluster")]
H100 = Machine(132, 227 * KB, 16)


@pytest.mark.parametrize(("fmt", "driver"), COMPILED, ids=["-".join(pair) for pair in COMPILED])
@pytest.mark.parametrize("cell", SMOOTH)
def test_kernels_compiled_for_a_tiling(kernels, cell, fmt, driver):
    """Whole and partial tiles of units and rows, in every layout and direction."""
    sizes = [(8, 128), (1, 65), (13, 100), (16, 96)] if driver == "cluster" else [(8, 40), (1, 25), (13, 37), (16, 48)]
    for seed, (layout, reverse, (B, H)) in enumerate(itertools.product(LAYOUTS, [False, True], sizes)):
        p = Problem(cell, STEPS[seed % 3] + 1, B, H, fmt, layout=layout, reverse=reverse, seed=seed)
        outcomes = check(kernels, p, Way(driver, machine=H100, seed=seed))
        assert {o.compiled for o in outcomes} == {128 if driver == "cluster" else 48}


@pytest.mark.parametrize(("fmt", "driver"), COMPILED, ids=["-".join(pair) for pair in COMPILED])
def test_compiled_kernels_with_whole_numbers(kernels, fmt, driver):
    for seed, (B, H) in enumerate(
        itertools.product((5, 8, 16), (65, 96, 128) if driver == "cluster" else (25, 32, 48))
    ):
        p = Problem("rnn_relu", 3, B, H, fmt, layout=LAYOUTS[seed % 5], reverse=seed % 2 == 1, whole=True, seed=seed)
        outcomes = check(kernels, p, Way(driver, machine=H100, seed=seed), tolerance=0)
        assert {o.compiled for o in outcomes} == {128 if driver == "cluster" else 48}


@pytest.mark.parametrize(
    ("cell", "B", "H", "fmt", "layout", "compiled"),
    [
        ("lstm", 16, 512, "bfloat16", "plain", 512),
        ("lstm", 13, 500, "float16", "lengths+reset", 512),
        ("gru", 9, 400, "bfloat16", "packed", 512),
        ("rnn_tanh", 8, 512, "float16", "plain", 512),
        ("gru", 16, 256, "tf32", "reset", 256),
        ("rnn_tanh", 5, 200, "bfloat16", "lengths", 256),
        ("lstm", 8, 256, "float16", "plain", 256),
    ],
)
def test_kernels_compiled_for_a_gpu(kernels, cell, B, H, fmt, layout, compiled):
    p = Problem(cell, 3, B, H, fmt, layout=layout, reverse=layout == "reset")
    outcomes = check(kernels, p, Way(machine=H100))
    assert {(DRIVERS[o.driver], o.compiled) for o in outcomes} == {("cluster", compiled)}


@pytest.mark.parametrize(("fmt", "driver"), EVERY, ids=IDS)
def test_order_of_threads_is_no_matter(kernels, fmt, driver):
    p = Problem("gru", 4, 9, 40, fmt, layout="lengths+reset", seed=3)
    for slices in [None] if driver == "stepwise" else [(5, 1), None]:
        if slices is None and driver == "cluster":
            p = Problem("gru", 4, 9, 80, fmt, layout="lengths+reset", seed=3)
        first, _ = run(kernels, p, Way(driver, slices))
        for seed in range(1, 17):
            again, _ = run(kernels, p, Way(driver, slices, seed=seed))
            for name, value in first.items():
                assert torch.equal(value.nan_to_num(7), again[name].nan_to_num(7)), (name, slices, seed)


@pytest.mark.parametrize(("fmt", "driver"), EVERY, ids=IDS)
def test_inference(kernels, fmt, driver):
    for cell, layout in itertools.product(SMOOTH, LAYOUTS):
        p = Problem(cell, 3, 9, 13, fmt, layout=layout)
        trained, _ = run(kernels, p, Way(driver))
        found, _ = run(kernels, p, Way(driver), training=False)
        for name in ["y", *(f"final{s}" for s in range(len(CELLS[cell].states)))]:
            assert torch.equal(found[name], trained[name]), name
        assert torch.equal(found["gates"].nan_to_num(7), p.inputs["wx"].nan_to_num(7))


@pytest.mark.parametrize("machine", [Machine(3, 24 * KB, 0), Machine(4, 20 * KB, 2), Machine(8, 16 * KB, 8, busy=5)])
@pytest.mark.parametrize("fmt", PERSISTENT)
def test_small_machines(kernels, fmt, machine):
    drivers = set()
    for seed, (T, B, H) in enumerate(some_sizes(1, 14)):
        for cell in ("lstm", "rnn_tanh"):
            outcomes = check(kernels, Problem(cell, T, B, H, fmt, seed=seed), Way(machine=machine, seed=seed))
            drivers |= {DRIVERS[o.driver] for o in outcomes}
    assert len(drivers) > 1


def test_blocks_that_are_not_there_at_once(kernels):
    """A launch that waits for all blocks is refused by the machine, clusters take turns."""
    p, machine = Problem("lstm", 2, 9, 40), Machine(4)
    with pytest.raises(LaunchError, match="error 720"):
        run(kernels, p, Way("grid", (5, 1), machine=machine))
    with pytest.raises(LaunchError, match="error 1:"):
        run(kernels, p, Way("cluster", (5, 1), machine=machine))
    check(kernels, p, Way("cluster", (3, 5), machine=machine))


@pytest.mark.parametrize("driver", DRIVERS[1:])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_every_access(cell, driver):
    """Races, reads of what nothing wrote, and accesses outside of buffers, whatever the order of the threads."""
    kernels = library(True)
    for fmt in PERSISTENT:
        for seed, (layout, (T, B, H)) in enumerate(
            zip(
                [*LAYOUTS, *LAYOUTS[::2]],
                [(3, 9, 13), (2, 3, 24), (3, 35, 5), (1, 8, 8), (2, 5, 17), (3, 8, 40), (4, 5, 70), (3, 7, 128)],
                strict=True,
            )
        ):
            slices = None if driver == "stepwise" else ((3, 1), (1, 2), (2, 2), None, (8, 1), None, None, None)[seed]
            p = Problem(cell, T, B, H, fmt, layout=layout, reverse=seed % 2 == 1, seed=seed)
            check(kernels, p, Way(driver, slices, seed=seed))
