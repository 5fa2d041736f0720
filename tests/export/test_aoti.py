"""Programs that leave the model behind: AOTInductor packages, exported programs, one that does not need fastrnn."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from problems import Problem
from torch import nn

import fastrnn
from fastrnn import _ops, gallery
from fastrnn.functional import sequence

T, B, I, H = 5, 3, 4, 6  # noqa: E741


class Models(nn.Module):
    """Every kind of layer, with and without initial states."""

    def __init__(self):
        super().__init__()
        self.lstm = fastrnn.LSTM(I, H, 2, proj_size=3, bidirectional=True)
        self.gru = fastrnn.GRU(I, H, batch_first=True)
        self.rnn = fastrnn.RNN(I, H)
        self.custom = gallery.one_state(I, H)

    def forward(self, x, h, lengths):
        y, (last, cells) = self.lstm(x, lengths=lengths)
        return y, last, cells, *self.gru(x), *self.rnn(x, h), *self.rnn(x), *self.custom(x), *self.custom(x, h)


def arguments(steps: int = T, batch: int = B) -> tuple:
    lengths = torch.arange(batch) % steps + 1
    return torch.randn(steps, batch, I), torch.randn(1, batch, H), lengths


def exported(model: nn.Module) -> torch.export.ExportedProgram:
    steps, batch = torch.export.Dim("steps", min=2), torch.export.Dim("batch", min=2)
    shapes = ({0: steps, 1: batch}, {1: batch}, {0: batch})
    with torch.no_grad():
        return torch.export.export(model, arguments(), dynamic_shapes=shapes)


def run_python(program: str, *arguments: Path) -> str:
    """In a new process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(fastrnn.__file__).parents[1])}
    command = [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


COMPARE = """
import sys
import torch
{imports}
call = {load}
for inputs, right in torch.load(sys.argv[2]):
    found = call(*inputs)
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a, b)
    print(len(found))
"""


def cases(model: nn.Module, path: Path) -> None:
    """Inputs of several sizes and their outputs."""
    with torch.no_grad():
        given = [arguments(), arguments(7, 2)]
        torch.save([(inputs, model(*inputs)) for inputs in given], path)


@pytest.mark.skipif(shutil.which("c++") is None, reason="AOTInductor needs a C++ compiler")
def test_package_in_a_process_that_does_not_know_the_model(tmp_path):
    model = Models().eval()
    package = torch._inductor.aoti_compile_and_package(exported(model), package_path=str(tmp_path / "models.pt2"))
    cases(model, tmp_path / "cases.pt")
    program = COMPARE.format(imports="import fastrnn", load="torch._inductor.aoti_load_package(sys.argv[1])")
    assert run_python(program, Path(package), tmp_path / "cases.pt").split() == ["13", "13"]


def test_exported_program_in_a_process_that_does_not_know_the_model(tmp_path):
    model = Models().eval()
    torch.export.save(exported(model), tmp_path / "models.pt2")
    cases(model, tmp_path / "cases.pt")
    program = COMPARE.format(imports="import fastrnn", load="torch.export.load(sys.argv[1]).module()")
    assert run_python(program, tmp_path / "models.pt2", tmp_path / "cases.pt").split() == ["13", "13"]


def test_convert_to_torch_gives_a_program_that_does_not_need_fastrnn(tmp_path):
    model = nn.Sequential(fastrnn.LSTM(I, H, 2, batch_first=True)).eval()
    x = torch.randn(B, T, I)
    with torch.no_grad():
        y, states = model(x)
        program = torch.export.export(fastrnn.convert(model, to="torch"), (x,))
    torch.export.save(program, tmp_path / "plain.pt2")
    torch.save([((x,), (y, states))], tmp_path / "cases.pt")
    text = COMPARE.format(imports="", load="torch.export.load(sys.argv[1]).module()")
    text += "\nassert 'fastrnn' not in sys.modules"
    assert run_python(text, tmp_path / "plain.pt2", tmp_path / "cases.pt").split() == ["2"]


def operator_arguments(p: Problem, states: object) -> tuple:
    return (p.cell, p.x.detach(), *(w if w is None else w.detach() for w in p.weights), states)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_none_and_an_empty_list_are_no_initial_states(cell):
    p = Problem(cell, T, B, I, H, initial=False)
    right = sequence(cell, p.x, p.weights, backend="reference")[0].detach()
    zeros = [torch.zeros(B, H, dtype=torch.float64) for _ in range(2 if cell == "lstm" else 1)]
    results: list[list[torch.Tensor]] = []
    for states in (None, [], (), zeros):
        y, finals, saved = _ops.sequence_forward(*operator_arguments(p, states), None, None, None, False, True)
        torch.testing.assert_close(y, right, rtol=1e-12, atol=1e-12)
        _, x, w_ih, w_hh, _, _, w_hr, _ = operator_arguments(p, states)
        grads = (torch.ones_like(y), [None] * len(finals))
        rest = (y, saved, None, None, None, False)
        every = _ops.layer_backward(cell, *grads, x, w_ih, w_hh, w_hr, states, *rest, [True] * 11)
        results.append([y, *finals, *every])
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-12, atol=1e-12)


def test_program_saved_with_an_empty_list_of_states():
    """As `torch.export` wrote them while the schema had no None."""

    class Old(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = fastrnn.GRU(I, H)

        def forward(self, x):
            m = self.gru
            weights = (m.weight_ih_l0, m.weight_hh_l0, m.bias_ih_l0, m.bias_hh_l0, None)
            return torch.ops.fastrnn.sequence_forward("gru", x, *weights, [], None, None, None, False, False)[0]

    model, x, file = Old(), torch.randn(T, B, I), io.BytesIO()
    torch.export.save(torch.export.export(model, (x,)), file)
    file.seek(0)
    torch.testing.assert_close(torch.export.load(file).module()(x), model.gru(x)[0])


def test_states_that_only_a_subclass_can_read():
    p = Problem("gru", T, B, I, H)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.zeros(B, H, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="states: expected ordinary tensors"):
        _ops.sequence_forward(*operator_arguments(p, [fake]), None, None, None, False, False)


def test_cell_that_nobody_knows(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path))
    custom = "nobody_0123456789ab"
    (tmp_path / f"{custom}_{'0' * 32}_{'0' * 16}.so").write_bytes(b"not a library")
    p = Problem("gru", T, B, I, H)
    for name in ("nobody", "../nobody", "no body*", custom, f"../{custom}"):
        expected = "FASTRNN_CACHE" if name.endswith(custom) else "cell: expected one of"
        with pytest.raises(ValueError, match=expected):
            _ops.sequence_forward(name, *operator_arguments(p, None)[1:], None, None, None, False, False)
