"""benchmarks/cells.py and the table made of its figures, as far as nothing has to be timed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="not in a checkout")


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["peephole_lstm", "slstm", "multiplicative_lstm", "min_gru"])
def test_loop_has_all_that_the_network_has(name):
    """As a loop, not as kernels, which need a compiler: the check before the clock compares those."""
    workload = load("cells").Workload("loop", name, (2, 3, 4), "float64")
    found = workload.tensors()
    workload.call = lambda x, states: workload.network(x, states if len(states) > 1 else states[0], backend="reference")
    y, states = workload.forward()
    states = states if isinstance(states, tuple) else (states,)
    np.testing.assert_allclose(found["output"], y.detach().numpy(), rtol=1e-12)
    for state, last in zip(workload.network.cell.states, states, strict=True):
        np.testing.assert_allclose(found[f"{state}_n"], last[0].detach().numpy(), rtol=1e-12)
    assert {f"grad {key}" for key, p in workload.network.named_parameters() if p.numel()} <= set(found)


def test_arguments():
    parse = load("cells").parse
    options = parse(["--cells", "nas,slstm", "--shapes", "1x2x3", "--engines", "compiled"])
    assert (options.cells, options.shapes) == (["nas", "slstm"], [(1, 2, 3)])
    assert options.engines == ["fastrnn", "loop", "compiled"]  # what all others are measured against
    for wrong in (["--cells", "nothing"], ["--shapes", "1x2"], ["--rounds", "0"], ["--engines", "jax"]):
        with pytest.raises(SystemExit):
            parse(wrong)


def test_ratio_is_against_the_better_of_the_compiled():
    ratio = load("gallery_table").ratio
    speedup = {"loop": {"median": 3.0}, "compiled": {"median": 1.5}, "compiled-step": {"median": 2.0}}
    assert ratio({"speedup": speedup}) == "3.00× / 1.50×"
    assert ratio({"speedup": {"loop": {"median": 3.0}, "compiled-step": {"median": 2.0}}}) == "3.00× / 2.00×*"
    assert ratio({"speedup": {"loop": {"median": 3.0}}}) == "3.00× / –"
    assert ratio({"speedup": {"loop": None}}) == "– / –"
    assert ratio(None) == "–"
