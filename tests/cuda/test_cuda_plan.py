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
        assert found.microseconds > 0
        if DRIVERS[found.driver] != "stepwise":
            check_tiling(sizes, machine, found)


def test_auto_takes_the_fastest_of_the_model():
    for sizes in random_sizes(200):
        each = {driver: choose(sizes, driver) for driver in DRIVERS[1:]}
        possible = {driver: found for driver, found in each.items() if found.possible}
        best = choose(sizes)
        assert best.microseconds == min(found.microseconds for found in possible.values())


def test_what_the_drivers_are_for():
    assert DRIVERS[choose(Sizes("lstm", 16, 128, "bfloat16")).driver] == "cluster"
    assert DRIVERS[choose(Sizes("lstm", 16, 1024, "bfloat16")).driver] == "grid"
    assert DRIVERS[choose(Sizes("lstm", 16, 4096, "bfloat16")).driver] == "stepwise"
    assert DRIVERS[choose(Sizes("lstm", 16, 128, "bfloat16"), machine=MACHINES[1]).driver] == "grid"


@pytest.mark.parametrize(
    ("sizes", "driver", "machine", "words"),
    [
        (Sizes("lstm", 4, 64, P=32), "grid", H100, "projection"),
        (Sizes("lstm", 4, 64, P=32), "cluster", H100, "projection"),
        (Sizes("lstm", 4, 64, "float64"), "grid", H100, "number format"),
        (Sizes("lstm", 4, 64), "cluster", MACHINES[1], "no thread-block clusters"),
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
