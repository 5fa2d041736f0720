"""Samples from language models."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from lm_runs import tiny

from fastrnn.apps import lm
from fastrnn.apps.lm.sampling import Chooser


@pytest.fixture(scope="module", params=["byte-lstm", "character-gru", "byte-min_gru"])
def folder(request, tmp_path_factory):
    """The folder of a run that has learned a little."""
    unit, cell = request.param.split("-")
    place = tmp_path_factory.mktemp(request.param)
    sizes = {"layers": 1, "hidden": 32, "batch": 8, "truncation": 25, "learning_rate": 0.02}
    lm.train(tiny(place, unit=unit, cell=cell, steps=120, validate_every=0, checkpoint_every=0, **sizes))
    return place / "run"


def text(*args, **options):
    return "".join(lm.sample(*args, **options))


def test_the_seed_makes_the_text(folder):
    model = lm.load(folder)
    first = text(model, "the ", 80, seed=3)
    assert first == text(model, "the ", 80, seed=3)
    assert first == text(folder, "the ", 80, seed=3)
    assert first != text(model, "the ", 80, seed=4)
    assert text(model, "the ", 80, seed=None) != text(model, "the ", 80, seed=None)
    assert text(model, "the ", 0) == ""


def by_forward(model, prime, length):
    """Greedy text by the whole network on the whole text, over and over."""
    ids = model.vocabulary.encode(prime).tolist()
    with torch.no_grad():
        for _ in range(length):
            ids.append(int(model(torch.tensor(ids).unsqueeze(1))[0][-1, 0].argmax()))
    return ids


@pytest.mark.parametrize("engine", ["fastrnn", "torch"])
def test_greedy_is_what_the_network_finds_likeliest(folder, engine):
    model = lm.load(folder, engine)
    decoder = model.vocabulary.decoder()
    expected = "".join(decoder.feed(unit) for unit in by_forward(model, "a gate", 40))
    assert "a gate" + text(model, "a gate", 40, temperature=0) == expected
    assert text(model, "a gate", 40, top_k=1) == text(model, "a gate", 40, temperature=0)
    assert text(model, "a gate", 40, temperature=1e-4) == text(model, "a gate", 40, temperature=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"embedding": 0, "dtype": "float64"},
        {"tied": True, "dropout": 0.5, "dropout_output": 0.5},
        {"cell": "rnn_relu", "dtype": "bfloat16", "layers": 3},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_greedy_of_other_models(tmp_path, changes):
    lm.train(tiny(tmp_path, steps=3, **changes))
    model = lm.load(tmp_path / "run")
    decoder = model.vocabulary.decoder()
    expected = "".join(decoder.feed(unit) for unit in by_forward(model, "état", 30))
    assert "état" + text(model, "état", 30, temperature=0) == expected


def test_the_prime_matters_and_is_not_given_out(folder):
    found = {text(folder, prime, 30, temperature=0) for prime in ("the cell forge", "a gate opens n", "\n", "")}
    assert len(found) == 3
    assert text(folder, "the cell forge", 3, temperature=0) == "ts "


def test_pieces_come_one_by_one(folder):
    endless = lm.sample(folder, length=10**9)
    # Two characters are one piece where the second shows that the first is none.
    assert {len(piece) for piece in itertools.islice(endless, 50)} <= {1, 2}
    assert torch.is_grad_enabled()


def test_draws_have_the_softmax_of_the_logits():
    logits = np.log(np.array([0.5, 0.1, 0.0001, 0.2, 0.1999]))

    def shares(temperature, top_k=None):
        choose = Chooser(temperature, 0, top_k)
        return np.bincount([choose(logits) for _ in range(20000)], minlength=5) / 20000

    error = 4 * np.sqrt(0.25 / 20000)
    assert np.abs(shares(1) - np.exp(logits)).max() < error
    sharper = np.exp(logits / 0.5)
    assert np.abs(shares(0.5) - sharper / sharper.sum()).max() < error
    assert np.abs(shares(1, 2) - np.array([0.5, 0, 0, 0.2, 0]) / 0.7).max() < error
    assert shares(0)[0] == 1
    assert shares(1, 99)[1] > 0


def test_bytes_that_are_no_text_and_half_characters(tmp_path, monkeypatch):
    lm.train(tiny(tmp_path, steps=1))
    model = lm.load(tmp_path / "run")
    given = iter(b"a\xc3\xa9\xff\xe2\x86\x92\xe2\x86")
    monkeypatch.setattr(Chooser, "__call__", lambda self, logits: next(given))
    assert list(lm.sample(model, length=9)) == ["a", "é", "�", "→"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": -1}, "length: expected at least 0, got -1"),
        ({"temperature": -0.5}, "temperature: expected at least 0, got -0.5"),
        ({"temperature": float("nan")}, "temperature: expected"),
        ({"top_k": 0}, "top_k: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected at least 0"),
    ],
)
def test_wrong_arguments_are_refused_at_the_call(folder, options, message):
    with pytest.raises(ValueError, match=message):
        lm.sample(folder, **options)


def test_unknown_characters_in_the_prime(tmp_path):
    lm.train(tiny(tmp_path, unit="character", steps=1))
    with pytest.raises(ValueError, match=r"prime: expected characters of the vocabulary \(23\), got '☃'"):
        lm.sample(tmp_path / "run", "état ☃")


def test_a_diverged_model_says_so(tmp_path):
    lm.train(tiny(tmp_path, steps=1))
    model = lm.load(tmp_path / "run")
    with torch.no_grad():
        model.head.bias.fill_(float("nan"))
    with pytest.raises(lm.TrainingError, match="model: expected finite logits"):
        text(model)


def test_loading_leaves_the_random_numbers_alone(folder):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    assert not lm.load(folder).training
    assert torch.equal(torch.rand(3), expected)
    with pytest.raises(ValueError, match="engine: expected 'fastrnn' or 'torch', got 'jax'"):
        lm.load(folder, "jax")
