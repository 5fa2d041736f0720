"""The gate before the clock: what it lets pass, what it refuses and what it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from bench_cases import tensors

from fastrnn.apps.bench import parity
from fastrnn.apps.bench.cases import CELLS, Case, Shape


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [Shape(3, 7, 5, 6, layers=2, bidirectional=True), Shape(3, 7, 5, 6, packed=True)])
def test_parity_passes_the_same_and_catches_a_wrong_element(shape, dtype):
    for cell in CELLS:
        case = Case(cell, shape, dtype)
        ours, theirs = tensors(case), tensors(case, "float32" if dtype == "float64" else None)
        exact = tensors(case, "float64")
        verdict = parity.check_parity(ours, theirs, exact, dtype)
        assert verdict.ok, verdict.worst.describe()
        assert verdict.tensors == len(exact)
        wrong = dict(ours)
        wrong["grad weight_hh_l0"] = ours["grad weight_hh_l0"].copy()
        wrong["grad weight_hh_l0"][2, 3] += 0.2 * np.abs(ours["grad weight_hh_l0"]).max()
        verdict = parity.check_parity(wrong, theirs, exact, dtype)
        assert verdict.failed == ("grad weight_hh_l0",)
        assert "grad weight_hh_l0: error" in verdict.worst.describe()


def test_parity_names_every_kind_of_tensor():
    names = set(tensors(Case("lstm", Shape(2, 3, 4, 5))))
    outputs = {f"{kind}{name}" for kind in ("", "inference ") for name in ("output", "h_n", "c_n")}
    gradients = {f"grad {name}" for name in ("input", "h_0", "c_0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0")}
    assert outputs | gradients | {"parameter weight_ih_l0", "grad bias_hh_l0"} <= names


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda found: found.pop("grad input"), "missing"),
        (lambda found: found.update(output=found["output"][1:]), "shape"),
        (lambda found: found["h_n"].fill(math.nan), "error inf"),
        (lambda found: found.update({"parameter bias_ih_l0": found["parameter bias_ih_l0"] + 1e-9}), "parameter"),
    ],
)
def test_parity_refuses(change, problem):
    case = Case("gru", Shape(2, 3, 4, 4))
    theirs, exact = tensors(case), tensors(case, "float64")
    ours = {name: value.copy() for name, value in theirs.items()}
    ours["parameter bias_ih_l0"] = ours["parameter bias_ih_l0"].astype(np.float64)
    change(ours)
    verdict = parity.check_parity(ours, theirs, exact, "float32")
    assert not verdict.ok
    assert problem in verdict.worst.describe()


def scaled_error(times):
    """Outputs whose error is so many times torch.nn's own, and what they are compared with."""
    case = Case("lstm", Shape(4, 30, 16, 16))
    theirs, exact = tensors(case), tensors(case, "float64")
    ours = {
        name: value if name.startswith("parameter ") else (exact[name] + times * (value - exact[name]))
        for name, value in theirs.items()
    }
    return ours, theirs, exact


def test_error_ratio_is_told_and_high_precision_has_more_room():
    far = scaled_error(30.0)
    verdict = parity.check_parity(*far, "float32")
    assert not verdict.ok
    assert 20 < verdict.ratio <= 30.01
    assert verdict.as_dict()["error_ratio"] == verdict.ratio
    name, own = max(
        ((name, parity.check_tensor(name, *far, "float32", 2.0, 4.0).baseline_error) for name in far[1]),
        key=lambda found: found[1],
    )
    # One that is beyond twice torch's error and the floor, but within four times.
    times = 3.0 + 4.0 * parity.EPSILON["float32"] / own
    ours, theirs, exact = ({name: found[name]} for found in scaled_error(times))
    assert not parity.check_parity(ours, theirs, exact, "float32").ok
    assert parity.check_parity(ours, theirs, exact, "float32", parity.FACTORS["high"]).ok


def test_peers_are_judged_by_what_they_have():
    ours, theirs, exact = scaled_error(2.0)
    outputs = {name: value for name, value in ours.items() if name.startswith("inference ")}
    verdict = parity.check_peer(outputs, theirs, exact)
    assert verdict.ok
    assert verdict.tensors == 3
    rounded = {name: torch.tensor(value).bfloat16().double().numpy() for name, value in outputs.items()}
    assert not parity.check_peer(rounded, theirs, exact).ok
    del outputs["inference c_n"]
    verdict = parity.check_peer(outputs, theirs, exact)
    assert verdict.failed == ("inference c_n",)
    assert "missing" in verdict.worst.describe()
