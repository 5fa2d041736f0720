"""Files that an earlier version wrote load, and compute what they did: state_dicts, pickles, checkpoints.

`saved_before` has each module's pickle and ``state_dict``, made before the call object; ``results.pt`` an input and the
outputs.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

import fastrnn
from fastrnn import gallery
from fastrnn.apps.cli import main

FOLDER = Path(__file__).parent / "saved_before"
MADE = {
    "lstm": lambda: fastrnn.LSTM(3, 4, 2, bidirectional=True, proj_size=2),
    "gru": lambda: fastrnn.GRU(3, 4, learn_initial_state=True),
    "rnn": lambda: fastrnn.RNN(3, 4, nonlinearity="relu", batch_first=True),
    "lstm_cell": lambda: fastrnn.LSTMCell(3, 4),
    "gru_cell": lambda: fastrnn.GRUCell(3, 4),
    "custom": lambda: gallery.peephole_lstm(3, 4, 2),
}


def saved_results():
    found = torch.load(FOLDER / "results.pt")
    return found["x"], found["results"]


def output(module, x):
    found = module(x[0] if "Cell" in type(module).__name__ else x)
    while isinstance(found, tuple):
        found = found[0]
    return found


@pytest.mark.parametrize("name", MADE)
def test_modules(name):
    x, results = saved_results()
    made = MADE[name]()
    made.load_state_dict(torch.load(FOLDER / f"{name}.pt"))
    for module in (made, pickle.loads((FOLDER / f"{name}.pickle").read_bytes())):
        assert type(module) is type(made)
        torch.testing.assert_close(output(module, x), results[name])


def test_a_stream():
    x, results = saved_results()
    stream = pickle.loads((FOLDER / "stream.pickle").read_bytes())
    torch.testing.assert_close(stream.step(x[1]), results["stream"])


def test_a_language_model(capsys):

    main(["sample", str(FOLDER / "language_model.pt"), "--length", "20", "--seed", "1"])
    assert capsys.readouterr().out == "390923834\n6427230311"
