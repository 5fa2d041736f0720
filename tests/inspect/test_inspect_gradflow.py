"""`fastrnn gradflow`: its numbers, its files, its errors."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import sys

import pytest
import torch
from lm_runs import tiny

import fastrnn
from fastrnn import inspect
from fastrnn.apps import inspect as pages
from fastrnn.apps import lm
from fastrnn.apps.cli import main
from fastrnn.inspect.initial import initialise, parsed

FIGURES = importlib.util.find_spec("matplotlib") is not None
SMALL = {"steps": 6, "hidden": 5, "batch": 3, "inputs": 4, "batches": 2}
OPTIONS = [part for name, size in SMALL.items() for part in ("--" + name, str(size))]


def test_numbers_of_a_comparison():
    runs = inspect.compare(["rnn_tanh", "lstm"], ["default", "orthogonal:1.5"], **SMALL, clip=0.5)
    assert [run.label for run in runs] == [
        f"{cell}, {init}" for cell in ("rnn_tanh", "lstm") for init in ("default", "orthogonal:1.5")
    ]
    for run in runs:
        states = ("h", "c") if run.cell == "lstm" else ("h",)
        assert tuple(run.norms) == states
        assert all(len(norms) == 7 for norms in run.norms.values())
        assert torch.tensor(run.heat).shape == (7, 5)
        assert run.norms["h"][0] == pytest.approx(math.sqrt(5) / 3)  # of a sum over five units, a third each row
        assert list(run.recurrent) == (["i", "f", "g", "o"] if run.cell == "lstm" else ["h"])
        assert len(run.step) == 5 * len(states)
        for before, after in zip(run.before, run.after, strict=True):
            assert after == pytest.approx(min(before, 0.5), rel=1e-5)
    radius = max(math.hypot(*value) for value in runs[3].recurrent["f"])
    assert radius == pytest.approx(1.5)


def test_a_comparison_is_the_same_again_and_leaves_torchs_generator_alone():
    state = torch.get_rng_state()
    first = inspect.compare(["gru"], **SMALL)[0].as_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert inspect.compare(["gru"], **SMALL)[0].as_dict() == first
    assert inspect.compare(["gru"], **SMALL, seed=1)[0].as_dict() != first


def test_initialisations():
    module = fastrnn.LSTM(3, 4, 2, dtype=torch.float64)
    initialise(module, "identity:0.7")
    assert torch.equal(module.weight_hh_l1, 0.7 * torch.eye(4, dtype=torch.float64).repeat(4, 1))
    assert not module.bias_ih_l0.any()
    initialise(module, "orthogonal")
    block = module.weight_hh_l0[4:8]
    torch.testing.assert_close(block @ block.T, torch.eye(4, dtype=torch.float64))
    initialise(module, "forget:2")
    assert (module.bias_ih_l0[4:8] + module.bias_hh_l0[4:8]).tolist() == [2, 2, 2, 2]
    assert module.bias_ih_l0[:4].abs().min() > 0
    from fastrnn.gallery import peephole_lstm

    own = peephole_lstm(3, 4)
    initialise(own, "forget:1")
    total = own.bias_ih_l0 + own.bias_hh_l0
    assert total.unflatten(0, (4, 4))[2].tolist() == [1, 1, 1, 1]  # gates z i f o
    for text in ("np_rnn", "chrono", "chrono:20", "forget"):
        initialise(fastrnn.GRU(3, 4), text)
    for text in ("xavier", "orthogonal:x", "default:1", "identity:inf"):
        with pytest.raises(ValueError, match="init: expected one of default, orthogonal, identity, np_rnn"):
            parsed(text)
    with pytest.raises(ValueError, match=r"init: forget: .*expected a cell with a gate f, got RNN"):
        initialise(fastrnn.RNN(3, 4), "forget")


def test_what_overflows_becomes_null(tmp_path):
    (run,) = inspect.compare(["rnn_relu"], ["orthogonal:1e9"], **{**SMALL, "steps": 80})
    found = run.as_dict()
    assert None in found["norms"]["h"]
    json.dumps(found, allow_nan=False)
    pytest.importorskip("matplotlib")
    pages.save_figure([run], [tmp_path / "a.png"])


def test_command_writes_figure_and_numbers(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    args = ["gradflow", "--cell", "rnn_tanh,lstm", "--init", "default,orthogonal", *OPTIONS, "--out", "flow.of.two"]
    assert main(args) == 0
    found = json.loads((tmp_path / "flow.of.two.json").read_text())
    assert [(run["cell"], run["init"]) for run in found] == [
        (cell, init) for cell in ("rnn_tanh", "lstm") for init in ("default", "orthogonal")
    ]
    assert found == [run.as_dict() for run in inspect.compare(["rnn_tanh", "lstm"], ["default", "orthogonal"], **SMALL)]
    assert (tmp_path / "flow.of.two.png").read_bytes().startswith(b"\x89PNG")
    drawing = (tmp_path / "flow.of.two.svg").read_text()
    assert "lstm, orthogonal: L = sum of the last h, mean over batch rows" in drawing
    assert "against lag" in drawing
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["flow.of.two.json: the numbers", "flow.of.two.png, flow.of.two.svg: the figure"]
    assert lines[2].startswith("rnn_tanh, default: ‖∂L/∂h‖ is 0.745 at the last step and ")


def test_the_figure_says_what_is_not_there(tmp_path):
    pytest.importorskip("matplotlib")
    runs = inspect.compare(["indrnn", "lstm"], **SMALL)
    runs.append(dataclasses.replace(runs[1], cell="overflown", step=[]))
    pages.save_figure(runs, [tmp_path / "a.svg"])
    drawing = (tmp_path / "a.svg").read_text()
    assert drawing.count("no matrix R") == 1
    assert drawing.count("not finite") == 1
    assert "largest |λ| 0<" not in drawing
    assert drawing.count("eigenvalues of the Jacobian, step 4") == 3  # of 6


def test_without_matplotlib_the_numbers_are_there_and_the_error_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["gradflow", *OPTIONS]) == 1
    assert (
        "matplotlib is not installed; install it with: python -m pip install 'fastrnn[plot]'" in capsys.readouterr().err
    )
    assert [path.name for path in tmp_path.iterdir()] == ["gradflow.json"]


def test_a_checkpoint(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lm.train(tiny(tmp_path))
    text = (tmp_path / "text.txt").read_bytes()
    run = pages.of_checkpoint("run", text, steps=9, batch=2, batches=3)
    assert run.clip == 1
    assert len(run.norms["c"]) == 10
    # The same by hand: L is the cross entropy of the last character, of the first two places.
    model, ids = lm.load("run"), torch.tensor(list(text))
    starts = torch.linspace(0, len(ids) - 10, 6).long()[:2]
    window = torch.stack([ids[s : s + 10] for s in starts], 1)
    logits = model(window[:-1])[0][-1].detach()
    assert run.value == pytest.approx(float(torch.nn.functional.cross_entropy(logits, window[-1])), rel=1e-5)
    if "matplotlib" in sys.modules:
        assert main(["gradflow", "run", "text.txt", "--steps", "9", "--batch", "2", "--batches", "3"]) == 0
        assert capsys.readouterr().out.splitlines()[2].startswith("lstm, step-00000012.pt: ‖∂L/∂h‖ ")
        assert json.loads((tmp_path / "gradflow.json").read_text())[0]["before"] == pytest.approx(run.before)


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["--cell", "lstn"], 2, "argument --cell: expected one of lstm, gru, rnn_tanh, rnn_relu, nas,"),
        (["--init", "he"], 2, "argument --init: expected one of default, orthogonal, identity, np_rnn"),
        (["--cell", "rnn_tanh", "--init", "forget"], 2, "argument --init: forget: module: expected a cell with"),
        (["--steps", "0"], 2, "argument --steps: expected at least 1, got 0"),
        (["--clip", "0"], 2, "argument --clip: expected more than 0, got 0"),
        (["nix.pt"], 2, "argument TEXT: expected a text file for the checkpoint to read, got none"),
        (["nix.pt", "nix.txt"], 1, "checkpoint: expected a file or a folder"),
    ],
)
def test_wrong_arguments(args, status, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["gradflow", *args]) == status
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_text_that_is_too_short(tmp_path):
    lm.train(tiny(tmp_path))
    with pytest.raises(ValueError, match="text: expected more than 9 units, the number of steps, got 9"):
        pages.of_checkpoint(tmp_path / "run", "123456789", steps=9)


def drawn(runs, monkeypatch, tmp_path, dark=False):
    """The figure that is saved."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **options: figures.append(self))
    pages.save_figure(runs, [tmp_path / "x.png"], dark)
    (figure,) = figures
    figure.canvas.draw()
    return figure


@pytest.mark.skipif(not FIGURES, reason="no matplotlib")
def test_axes_of_the_figure(monkeypatch, tmp_path):
    """One scale for all heat maps, Re and Im, whole numbers for steps, units and batches."""
    runs = inspect.compare(["rnn_tanh", "lstm"], ["default", "orthogonal:1.5"], **SMALL)
    runs[0].heat[3][2] = 0.0  # has no logarithm
    axes = drawn(runs, monkeypatch, tmp_path).get_axes()
    heats = [axis for axis in axes if axis.images]
    assert len(heats) == len(runs)
    assert len({axis.images[0].get_clim() for axis in heats}) == 1
    low, high = heats[0].images[0].get_clim()
    values = torch.tensor([run.heat for run in runs])
    assert high == pytest.approx(values.max().log10().item(), abs=1e-5)
    assert low == pytest.approx(max(values[values > 0].min().log10().item(), high - 12), abs=1e-5)
    assert sum((axis.get_xlabel(), axis.get_ylabel()) == ("Re λ", "Im λ") for axis in axes) == 2 * len(runs)
    counted = [axis for axis in axes if axis.get_xlabel().split(":")[0] in ("time", "lag", "batch")]
    assert len(counted) == 2 + 2 * len(runs)
    for tick in [t for axis in counted for t in axis.get_xticks()] + [t for axis in heats for t in axis.get_yticks()]:
        assert tick == round(tick)


@pytest.mark.skipif(not FIGURES, reason="no matplotlib")
def test_a_figure_light_on_dark(monkeypatch, tmp_path):
    from matplotlib.colors import to_rgb

    runs = inspect.compare(["gru"], **SMALL)
    for dark in (False, True):
        figure = drawn(runs, monkeypatch, tmp_path, dark)
        assert (sum(to_rgb(figure.get_facecolor())) < 1) == dark
        texts = [text for axis in figure.get_axes() for text in (axis.title, axis.xaxis.label, *axis.get_xticklabels())]
        assert all((sum(to_rgb(text.get_color())) > 2) == dark for text in texts)
        lines = [line for axis in figure.get_axes() for line in axis.lines]
        ground = figure.get_facecolor()
        assert all(
            sum(abs(a - b) for a, b in zip(to_rgb(line.get_color()), ground, strict=False)) > 0.4 for line in lines
        )
