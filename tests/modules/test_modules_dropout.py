"""Dropout between layers: the same seed drops the same elements as with torch."""

from __future__ import annotations

import pytest
import torch
from dropin_cases import LAYERS, B, I, T, layer_pair, same_training
from torch.nn.utils.rnn import pack_padded_sequence

LOOSE = {"rtol": 1e-4, "atol": 1e-5}


def seeded(call):
    def run(module, x):
        torch.manual_seed(11)
        result = call(module, x)
        return result, torch.rand(3)  # the generator is left in the same state

    return run


@pytest.mark.parametrize("kind", list(LAYERS))
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("form", ["padded", "batch_first", "unbatched", "packed", "packed unsorted"])
def test_same_elements_are_dropped(kind, p, both, form):
    theirs, ours = layer_pair(kind, num_layers=3, dropout=p, bidirectional=both, batch_first=form == "batch_first")
    x = torch.randn(T, I) if form == "unbatched" else torch.randn(T, B, I)
    if form == "batch_first":
        x = x.transpose(0, 1)

    def call(module, x):
        if "packed" in form:
            x = pack_padded_sequence(x, [2, 5, 1, 4] if "unsorted" in form else [5, 4, 2, 1], enforce_sorted=False)
        return module(x)

    same_training(theirs, ours, seeded(call), x, **LOOSE)


@pytest.mark.parametrize("kind", list(LAYERS))
def test_only_in_training_and_as_it_is_now(kind):
    theirs, ours = layer_pair(kind, num_layers=2, dropout=0.5)
    x = torch.randn(T, B, I)
    for train, p in ((False, 0.5), (True, 0.9), (True, 0.0), (True, 0), (False, 1.0), (True, 1.0)):
        for module in (theirs, ours):
            module.train(train)
            module.dropout = p
        same_training(theirs, ours, seeded(lambda m, x: m(x)), x, **LOOSE)
    for module in (theirs, ours):
        module.dropout = 1.5
        with pytest.raises(RuntimeError, match=r"dropout probability has to be between 0 and 1, but got 1\.5"):
            module(x)


@pytest.mark.parametrize("kind", list(LAYERS))
def test_one_layer_draws_no_numbers(kind):
    with pytest.warns(UserWarning, match="dropout"):
        theirs, ours = layer_pair(kind, dropout=0.5)
    same_training(theirs, ours, seeded(lambda m, x: m(x)), torch.randn(T, B, I), **LOOSE)


@pytest.mark.parametrize("kind", list(LAYERS))
def test_wide_layers(kind):
    """Enough elements for the generator to take its vectorised path."""
    theirs, ours = layer_pair(kind, 16, 64, num_layers=2, dropout=0.25, bidirectional=True)
    same_training(theirs, ours, seeded(lambda m, x: m(x)), torch.randn(40, 8, 16), rtol=1e-3, atol=1e-4)
