"""The language model itself: engines, sizes, schedules, formats."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from lm_runs import losses, rows, tiny

from fastrnn.apps import lm
from fastrnn.apps.lm.model import LanguageModel
from fastrnn.apps.lm.options import CELLS, MAX_UNEMBEDDED
from fastrnn.apps.lm.schedule import learning_rate, make_optimizer
from fastrnn.apps.lm.vocabulary import Bytes, Characters


def curves(tmp_path, **changes):
    """The same run by both engines."""
    found = []
    for engine in ("fastrnn", "torch"):
        options = tiny(tmp_path, engine=engine, out=str(tmp_path / engine), **changes)
        lm.train(options)
        found.append(losses(tmp_path / engine))
    return found


@pytest.mark.parametrize("cell", [*CELLS, "min_gru"])
def test_engines_learn_the_same(tmp_path, cell):
    ours, theirs = curves(tmp_path, cell=cell, dtype="float64", checkpoint_every=0)
    assert len(ours) == 12
    assert ours == pytest.approx(theirs, rel=1e-10)
    assert len(set(ours)) == 12


@pytest.mark.parametrize(
    "changes",
    [
        {"embedding": 0},
        {"tied": True},
        {"tied": True, "embedding": 9},
        {"unit": "character", "layers": 1},
        {"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.3, "clip_norm": 0.0, "clip_value": 0.01},
        {"optimizer": "rmsprop", "weight_decay": 0.01},
        {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "cosine", "warmup": 4},
        {"dropout_recurrent": 0.4, "clip_norm": 0.1},
        {"dropout_embedding": 0.3, "dropout_output": 0.2},  # torch draws both masks, from the same seed
    ],
    ids=lambda changes: "-".join(changes),
)
def test_engines_learn_the_same_with_options(tmp_path, changes):
    ours, theirs = curves(tmp_path, checkpoint_every=0, **changes)
    assert ours == pytest.approx(theirs, rel=2e-5)


def test_both_engines_begin_with_the_same_weights(tmp_path):
    models = []
    for engine in ("fastrnn", "torch"):
        torch.manual_seed(3)
        models.append(LanguageModel(tiny(tmp_path, cell="gru", engine=engine), Bytes()))
    first, second = (model.state_dict() for model in models)
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert type(models[1].recurrent) is torch.nn.GRU


def test_tied_weights_are_one_matrix(tmp_path):
    model = LanguageModel(tiny(tmp_path, tied=True, embedding=5), Bytes())
    assert model.head.weight is model.embedding.weight
    assert model.projection.weight.shape == (5, 9)
    assert model(torch.zeros(3, 2, dtype=torch.int64))[0].shape == (3, 2, 256)


def test_without_embedding_ids_choose_columns_of_the_input_weights(tmp_path):
    model = LanguageModel(tiny(tmp_path, cell="rnn_tanh", layers=1, embedding=0), Characters("abc"))
    layer = model.recurrent
    hidden, _ = layer(torch.tensor([[2]]), embedding=model.rows())
    expected = torch.tanh(layer.weight_ih_l0[:, 2] + layer.bias_ih_l0 + layer.bias_hh_l0)
    assert torch.allclose(hidden[0, 0], expected, atol=1e-6)
    assert "identity" not in model.state_dict()
    many = Characters("".join(map(chr, range(0x100, 0x101 + MAX_UNEMBEDDED))))
    with pytest.raises(ValueError, match="embedding: expected more than 0"):
        LanguageModel(tiny(tmp_path, embedding=0), many)


def test_bfloat16_computes_in_it_and_keeps_float32_weights(tmp_path):
    lm.train(tiny(tmp_path, dtype="bfloat16"))
    found = losses(tmp_path / "run")
    lm.train(tiny(tmp_path, out=str(tmp_path / "float32")))
    single = losses(tmp_path / "float32")
    assert found != single
    assert found == pytest.approx(single, rel=2e-2)
    assert {p.dtype for p in lm.load(tmp_path / "run").parameters()} == {torch.float32}


def test_without_validation_there_is_no_best(tmp_path):
    for name, changes in (("a", {"validation": 0.0}), ("b", {"validate_every": 0})):
        result = lm.train(tiny(tmp_path, out=str(tmp_path / name), **changes))
        assert result.best is None
        assert not (tmp_path / name / "best.pt").exists()


def test_learning_lowers_the_loss(tmp_path):
    sizes = {"layers": 1, "hidden": 32, "batch": 8, "truncation": 25}
    options = tiny(tmp_path, **sizes, steps=300, learning_rate=0.02, checkpoint_every=0, log_every=30)
    result = lm.train(options)
    found = losses(tmp_path / "run")
    assert found[0] > 2.5
    # Words drawn from ten, 6.1 characters each with the blank: ln(10)/6.1 = 0.38 nats is the least there can be.
    assert result.loss == found[-1] < 0.5
    assert result.best < 0.6


def test_schedules():
    def rates(**changes):
        options = lm.Options(learning_rate=1.0, warmup=2, **changes)
        return [learning_rate(options, step, 10) for step in range(11)]

    constant = rates()
    linear, cosine = (rates(schedule=name, final_learning_rate=0.2) for name in ("linear", "cosine"))
    assert constant[:3] == linear[:3] == cosine[:3] == [0.5, 1.0, 1.0]
    assert constant[3:] == [1.0] * 8
    assert linear[6] == pytest.approx(0.6)
    assert cosine[6] == pytest.approx(0.6)
    assert [linear[10], cosine[10]] == pytest.approx([0.2, 0.2])
    assert cosine[4] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2)


def test_weight_decay_is_for_matrices(tmp_path):
    optimizer = make_optimizer(tiny(tmp_path, weight_decay=0.1), LanguageModel(tiny(tmp_path), Bytes()))
    decays = {(p.dim() > 1, group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert decays == {(True, 0.1), (False, 0.0)}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"hidden": 0}, ValueError, "hidden: expected at least 1, got 0"),
        ({"hidden": 2.5}, TypeError, "hidden: expected a whole number, got 2.5"),
        ({"hidden": True}, TypeError, "hidden: expected a whole number, got True"),
        ({"learning_rate": 0}, ValueError, "learning_rate: expected more than 0, got 0.0"),
        ({"learning_rate": math.nan}, ValueError, "learning_rate: expected a finite number"),
        ({"dropout": 1.5}, ValueError, "dropout: expected at most 1, got 1.5"),
        ({"dropout": 0.1, "layers": 1}, ValueError, "dropout: expected 0 with one layer"),
        ({"cell": "lstn"}, ValueError, "cell: expected one of lstm, gru, .*min_gru.*, got 'lstn'"),
        ({"optimizer": "adan"}, ValueError, "optimizer: expected one of adam, adamw, sgd, rmsprop, got 'adan'"),
        ({"tied": True, "embedding": 0}, ValueError, "tied: expected an embedding"),
        ({"dropout_embedding": 0.1, "embedding": 0}, ValueError, "dropout_embedding: expected 0"),
        ({"momentum": 0.9}, ValueError, "momentum: expected 0 with adam, got 0.9"),
        ({"schedule": "linear", "minutes": 1.0}, ValueError, "schedule: expected 'constant'"),
        ({"final_learning_rate": 0.1}, ValueError, "final_learning_rate: expected 0 with schedule 'constant', got 0.1"),
        ({"dropout_recurrent": 0.1, "cell": "indrnn"}, ValueError, "dropout_recurrent: expected 0 with indrnn"),
        ({"file": 3}, TypeError, "file: expected a string, got 3"),
    ],
)
def test_wrong_options(changes, error, message):
    with pytest.raises(error, match=message):
        lm.Options(**changes)


def test_ends_of_a_run():
    assert lm.Options().total_steps(7) == 3000
    assert lm.Options(epochs=3).total_steps(7) == 21
    assert lm.Options(epochs=3, steps=20).total_steps(7) == 20
    assert lm.Options(minutes=1.0).total_steps(7) is None
    assert all(field.metadata["help"] for field in dataclasses.fields(lm.Options))


def test_time_ends_a_run(tmp_path):
    result = lm.train(tiny(tmp_path, steps=None, minutes=0.01, validate_every=0, checkpoint_every=0))
    assert 0 < result.step < 100000
    assert not result.stopped
    assert lm.resume(tmp_path / "run").step == result.step  # there is no time left


def test_a_warmup_longer_than_the_run(tmp_path):
    with pytest.raises(ValueError, match="warmup: expected fewer steps than the run's 12, got 12"):
        lm.train(tiny(tmp_path, warmup=12))
    assert not (tmp_path / "run").exists()


def test_the_norm_in_the_log_is_that_before_clipping(tmp_path):
    """At the first step, whose gradient is the same however it is clipped."""
    found = []
    for number, clips in enumerate(((0.0, 0.0), (0.01, 0.0), (0.0, 1e-4), (0.01, 1e-4))):
        folder = tmp_path / str(number)
        lm.train(tiny(tmp_path, steps=1, out=str(folder), clip_norm=clips[0], clip_value=clips[1]))
        found.append(float(rows(folder)[0]["gradient_norm"]))
    assert found[0] > 0.02
    assert found == [found[0]] * 4


@pytest.mark.parametrize("device", ["tpu", "meta", "cuda:99"])
def test_no_such_device(tmp_path, device):
    with pytest.raises(ValueError, match="device: expected"):
        lm.train(tiny(tmp_path, device=device))


def test_texts_that_are_too_short(tmp_path):
    with pytest.raises(ValueError, match=r"file: expected at least 40001 bytes, for 40 batch rows of 1000 steps, got"):
        lm.train(tiny(tmp_path, batch=40, truncation=1000))
    with pytest.raises(ValueError, match=r"validation: of the file: expected at least .* bytes"):
        lm.train(tiny(tmp_path, batch=100, truncation=10, validation=0.01))
    assert not (tmp_path / "run").exists()
