"""csrc/cuda/plan.cpp: which driver runs a call, and how a persistent one is cut into blocks."""

from __future__ import annotations

import itertools

import pytest
from emulated import DRIVERS, KB, Machine, Outcome, Sizes, library
from emulated_problems import random_sizes

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
H100 = Machine(132, 227 * KB, 16)
MACHINES = [H100, Machine(108, 163 * KB, 0), Machine(14, 227 * KB, 8), Machine(1, 48 * KB, 0), Machine(8, 40 * KB, 4)]


def choose(sizes: Sizes, driver: str = "auto", machine: Machine = H100) -> Outcome:
    return library().choose(sizes, driver, machine)


def check_tiling(sizes: Sizes, machine: Machine, found: Outcome) -> None:
    """All units and rows exactly once, by warps and memory that there are, on a machine that holds all blocks."""
    assert found.units * found.unit_slices >= sizes.H > found.units * (found.unit_slices - 1)
    assert found.rows * found.row_slices >= sizes.B > found.rows * (found.row_slices - 1)
    gates = GATES[sizes.cell]
    assert found.matrix_rows % 8 == 0
    assert found.matrix_rows >= found.units * (1 if sizes.backward else gates)
    assert found.depth >= sizes.H * (gates if sizes.backward else 1)
    assert found.depth * {"bfloat16": 2, "float16": 2}.get(sizes.fmt, 4) % (16 if sizes.fmt == "float32" else 64) == 0
    assert found.warps_across * found.warps_deep <= 8
    assert found.warps_deep >= 1
    assert found.warps_across * 32 >= found.matrix_rows
    assert 0 < found.shared_bytes <= machine.shared_bytes
    assert found.cluster == (DRIVERS[found.driver] == "cluster")
    if found.cluster:
        assert found.unit_slices <= machine.largest_cluster
        assert found.unit_slices <= machine.processors
    else:
        assert found.unit_slices * found.row_slices <= machine.processors


@pytest.mark.parametrize("machine", MACHINES, ids=range(len(MACHINES)))
def test_every_choice_fits(machine):
    for sizes, driver in itertools.product(random_sizes(200), DRIVERS):
        found = choose(sizes, driver, machine)
        assert found.message() != ""
        if driver in ("auto", "stepwise"):
            assert found.possible
        if not found.possible:
            continue
        assert driver in ("auto", DRIVERS[found.driver])
        if DRIVERS[found.driver] != "stepwise":
            check_tiling(sizes, machine, found)


def choose_steps(steps: int, sizes: Sizes) -> Outcome:
    return library().choose(sizes, "auto", H100, steps)


def test_auto_is_a_cluster_if_it_fits_then_the_grid_then_stepwise():
    for sizes in [s for s in random_sizes(200) if s.B <= 512]:
        possible = {driver for driver in DRIVERS[1:] if choose(sizes, driver).possible}
        first = next(driver for driver in ("cluster", "grid", "stepwise") if driver in possible)
        found = choose(sizes)
        assert DRIVERS[found.driver] == first
        assert found.tiling() == choose(sizes, first).tiling()


@pytest.mark.parametrize(
    ("sizes", "driver", "cut"),
    [  # units, unit slices, rows, row slices
        (Sizes("lstm", 16, 512, "bfloat16"), "cluster", (32, 16, 8, 2)),
        (Sizes("lstm", 64, 512, "bfloat16"), "cluster", (32, 16, 8, 8)),
        (Sizes("lstm", 1, 128, "bfloat16"), "cluster", (16, 8, 8, 1)),
        (Sizes("lstm", 1, 128), "cluster", (16, 8, 1, 1)),
        (Sizes("lstm", 16, 300, "bfloat16"), "cluster", (32, 10, 8, 2)),
        (Sizes("lstm", 1, 150, "tf32"), "cluster", (16, 10, 8, 1)),
        (Sizes("lstm", 128, 512, "bfloat16"), "cluster", (32, 16, 16, 8)),
        (Sizes("lstm", 16, 512, "bfloat16", backward=True), "cluster", (32, 16, 8, 2)),
        (Sizes("lstm", 16, 1024, "bfloat16"), "grid", (8, 128, 16, 1)),
        (Sizes("gru", 16, 768, "bfloat16"), "grid", (8, 96, 16, 1)),
        (Sizes("lstm", 16, 1536, "bfloat16"), "grid", (16, 96, 16, 1)),
        (Sizes("lstm", 16, 4096, "bfloat16"), "stepwise", (0, 0, 0, 0)),
    ],
)
def test_the_rule_on_an_h100(sizes, driver, cut):
    found = choose(sizes)
    assert DRIVERS[found.driver] == driver
    assert (found.units, found.unit_slices, found.rows, found.row_slices) == cut


def test_of_two_cuts_with_equal_tiles_the_one_on_fewer_multiprocessors():
    """Three groups have room, but 16 rows are two tiles of eight."""
    found = choose(Sizes("lstm", 16, 256, "bfloat16"), "grid", Machine(108, 163 * KB, 0))
    assert (found.unit_slices, found.rows, found.row_slices) == (32, 8, 2)


def test_thresholds_of_the_rule():
    small, large = Sizes("lstm", 16, 128, "bfloat16"), Sizes("lstm", 600, 1024, "bfloat16")
    assert DRIVERS[choose_steps(3, small).driver] == "cluster"
    assert DRIVERS[choose_steps(2, small).driver] == "stepwise"
    assert "the sequence is short" in choose_steps(2, small).message()
    assert DRIVERS[choose(large).driver] == "stepwise"
    assert "there are many rows" in choose(large).message()
    assert choose(large, "grid").possible


@pytest.mark.parametrize(
    ("sizes", "driver", "machine", "words"),
    [
        (Sizes("lstm", 4, 64, P=32), "grid", H100, "projection"),
        (Sizes("lstm", 4, 64, P=32), "cluster", H100, "projection"),
        (Sizes("lstm", 4, 64, "float64"), "grid", H100, "for this dtype"),
        (Sizes("lstm", 4, 64), "cluster", MACHINES[1], "no thread-block clusters"),
        (Sizes("lstm", 1 << 24, 64), "grid", H100, "more than 2^31 numbers"),
        (Sizes("lstm", 4, 4096), "grid", H100, "do not fit into shared memory"),
        (Sizes("lstm", 4, 4096), "cluster", H100, "do not fit into shared memory"),
        (Sizes("lstm", 4, 64), "grid", Machine(8, 227 * KB, 8, busy=8), "cannot hold all blocks"),
        (Sizes("lstm", 4, 64), "cluster", Machine(8, 227 * KB, 8, busy=8), "cannot hold all blocks"),
    ],
)
def test_why_a_driver_cannot_be_had(sizes, driver, machine, words):
    found = choose(sizes, driver, machine)
    assert not found.possible
    assert DRIVERS[found.driver] == driver
    assert words in found.message()
    instead = choose(sizes, "auto", machine)
    assert DRIVERS[instead.driver] != driver
    if DRIVERS[instead.driver] == "stepwise":
        assert words in instead.message()


def test_what_something_else_keeps_is_left_alone():
    for busy in range(1, 8):
        machine = Machine(8, 227 * KB, 8, busy)
        for driver in ("grid", "cluster"):
            found = choose(Sizes("lstm", 40, 64), driver, machine)
            assert found.possible
            blocks = found.unit_slices * (1 if driver == "cluster" else found.row_slices)
            assert blocks <= 8 - busy


def test_names_of_drivers():
    names = ["auto", "stepwise", "grid", "cluster"]
    assert [library().lib.emulated_driver(name.encode()) for name in names] == [0, 1, 2, 3]
    assert library().lib.emulated_driver(b"fastest") == -1
