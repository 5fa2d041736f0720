"""A cell is two files, its header and its plain PyTorch reference, which everything else finds by itself."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from fastrnn import _C
from fastrnn.cells import CELLS

ROOT = Path(__file__).resolve().parents[2]


def test_every_cell_has_both_files():
    assert {"lstm", "gru", "rnn_tanh", "rnn_relu"} <= set(CELLS)
    written = [name for name, spec in CELLS.items() if spec.prepare is None]  # fastrnn.cell adds others
    assert sorted(written) == sorted(_C.cells())


@pytest.mark.parametrize("name", CELLS)
def test_header_and_twin_say_the_same(name):
    spec = CELLS[name]
    traits = _C.cell_traits(name)
    gates, states = traits["gates"], traits["states"]
    assert (gates, states) == (spec.gates, len(spec.states))
    assert len(spec.gate_names) == gates
    assert traits["values"] >= 0
    new = spec.step(torch.randn(2, gates * 3), torch.randn(2, gates * 3), (torch.randn(2, 3),) * states)
    assert [s.shape for s in new] == [(2, 3)] * states
    assert spec.source


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="not in a checkout")
def test_no_driver_or_binding_knows_a_cell(name):
    generic = [*ROOT.glob("csrc/cpu/*"), *ROOT.glob("csrc/python/*"), *ROOT.glob("csrc/simd/*")]
    generic += [ROOT / "fastrnn" / f"{module}.py" for module in ("autograd", "reference", "_ops", "_vmap")]
    for path in generic:
        code = re.sub(r"//.*|#define.*", "", path.read_text(encoding="utf-8"))
        assert not re.search(rf"\b{name}\b", code), path
