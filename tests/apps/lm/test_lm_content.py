"""Checkpoints that are whole, with the right seal, and hold what no run writes: an error, never a traceback."""

from __future__ import annotations

import copy

import pytest
import torch
from lm_runs import save, tiny

from fastrnn.apps import lm
from fastrnn.apps.cli import main
from fastrnn.apps.lm import checkpoint

#: Values that are wrong for most entries of a checkpoint.
STRANGE = {
    "none": None,
    "text": "x",
    "number": 1.5,
    "negative": -1,
    "huge": 10**30,
    "nan": float("nan"),
    "true": True,
    "list": [1],
    "empty list": [],
    "dict": {"a": 1},
    "empty dict": {},
    "tensor": torch.zeros(2, 3),
    "tensors": [torch.zeros(2, 3)],
    "sparse": torch.eye(3).to_sparse(),
    "list of text": ["x"],
}
#: Entries for which such a value is right, in every run or in this one.
RIGHT = {
    ("states", "none"),
    ("best", "none"),
    ("seconds", "number"),
    ("seconds", "negative"),
    ("seconds", "huge"),
}
#: Entries that sampling does not read.
UNREAD = ("optimizer", "step", "epoch", "chunk", "states", "random", "log", "best", "seconds", "text")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of runs, one for each optimiser; the last one of a cell of Python."""
    found = {}
    for name, changes in {
        "adam": {},
        "sgd": {"optimizer": "sgd", "momentum": 0.5, "cell": "gru", "dtype": "bfloat16"},
        "rmsprop": {"optimizer": "rmsprop", "cell": "rnn_tanh", "dtype": "float64"},
        "gallery": {"cell": "one_state", "unit": "character"},
    }.items():
        folder = tmp_path_factory.mktemp(name)
        lm.train(tiny(folder, steps=4, checkpoint_every=0, validate_every=0, **changes))
        found[name] = folder / "run" / "step-00000004.pt"
    return found


def resumed(path, capsys) -> str:
    """Return the error message of the command line when it resumes from a checkpoint that it rejects."""
    capsys.readouterr()
    status = main(["train", "--resume", str(path), "--steps", "6"])
    captured = capsys.readouterr()
    assert status in (1, 2), captured
    assert captured.err.startswith("fastrnn train: error: "), captured
    assert captured.err.count("\n") == 1, captured
    return captured.err


def sampled(path, capsys) -> int:
    status = main(["sample", str(path), "--length", "3"])
    captured = capsys.readouterr()
    if status:
        assert captured.err.startswith("fastrnn sample: error: checkpoint: "), captured
    return status


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("part", sorted(checkpoint._KEYS - {"format", "version"}))
def test_a_part_of_another_kind(folders, tmp_path, capsys, part, kind):
    if (part, kind) in RIGHT:
        pytest.skip("right")
    content = checkpoint.read(folders["adam"])
    path = tmp_path / "step-00000004.pt"
    save({**content, part: STRANGE[kind]}, path)
    assert "Traceback" not in resumed(path, capsys)
    assert sampled(path, capsys) in ((0, 1) if part in UNREAD else (1,))


def inside(content, *path):
    """A container within a copy of the content."""
    for key in path:
        content = content[key]
    return content


def changed(content, path, value):
    """A copy with another value at a place; `value` may be a function of the one there."""
    content = copy.deepcopy(content)
    place = inside(content, *path[:-1])
    place[path[-1]] = value(place[path[-1]]) if callable(value) else value
    return content


def without(content, path):
    content = copy.deepcopy(content)
    del inside(content, *path[:-1])[path[-1]]
    return content


WRONG = {
    "state shape": (("states", 0), lambda s: s[:, :2]),
    "state width": (("states", 0), lambda s: s[..., :2]),
    "state layers": (("states", 0), lambda s: s[:1]),
    "state dimensions": (("states", 0), lambda s: s[0]),
    "state dtype": (("states", 0), lambda s: s.long()),
    "state complex": (("states", 0), lambda s: s.cfloat()),
    "one state more": (("states",), lambda s: [*s, s[0]]),
    "one state less": (("states",), lambda s: s[1:]),
    "state on meta": (("states", 0), lambda s: s.to("meta")),
    "weight shape": (("model", "head.bias"), lambda w: w[:-1]),
    "weight dtype": (("model", "head.bias"), lambda w: w.long()),
    "weight complex": (("model", "head.bias"), lambda w: w.cfloat()),
    "weight half": (("model", "head.bias"), lambda w: w.half()),
    "weight on meta": (("model", "head.bias"), lambda w: w.to("meta")),
    "weight a number": (("model", "head.bias"), 1.0),
    "groups": (("optimizer", "param_groups"), lambda g: g[:1]),
    "group without parameters": (("optimizer", "param_groups", 0, "params"), []),
    "parameters of text": (("optimizer", "param_groups", 0, "params"), lambda p: ["x"] * len(p)),
    "decay": (("optimizer", "param_groups", 0, "weight_decay"), "x"),
    "decay of another run": (("optimizer", "param_groups", 0, "weight_decay"), 0.25),
    "optimizer state": (("optimizer", "state"), [1]),
    "a parameter's state": (("optimizer", "state", 0), 5),
    "loss of text": (("log", "loss"), ["x"]),
    "no losses": (("log", "loss"), []),
    "log position": (("log", "bytes"), "x"),
    "log steps": (("log", "steps"), None),
    "random": (("random", "cpu"), lambda r: [r[0][:-1]]),
    "random dtype": (("random", "cpu"), lambda r: [r[0].float()]),
    "random text": (("random", "cpu"), ["x"]),
    "best": (("best",), [1.0]),
    "step": (("step",), 5),
    "chunk": (("chunk",), 10**6),
    "epoch": (("epoch",), 3),
    "vocabulary": (("vocabulary", "unit"), 5),
    "hidden": (("options", "hidden"), 5),
    "hidden text": (("options", "hidden"), "x"),
    "layers": (("options", "layers"), 3),
    "batch": (("options", "batch"), 3),
    "cell": (("options", "cell"), "nas"),
    "options by number": (("options",), lambda o: {1: 2}),
}
SHAPES = {
    "adam": ("exp_avg", "exp_avg_sq", "step"),
    "sgd": ("momentum_buffer",),
    "rmsprop": ("square_avg", "step"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("run", ["adam", "sgd", "rmsprop", "gallery"])
def test_a_wrong_value(folders, tmp_path, capsys, run, name):
    path = tmp_path / "step-00000004.pt"
    content = checkpoint.read(folders[run])
    if name == "one state less" and len(content["states"]) == 1:
        pytest.skip("the same as no state")
    save(changed(content, *WRONG[name]), path)
    resumed(path, capsys)
    sampled(path, capsys)


@pytest.mark.parametrize("run", SHAPES)
def test_a_wrong_state_of_the_optimizer(folders, tmp_path, capsys, run):
    content = checkpoint.read(folders[run])
    path = tmp_path / "step-00000004.pt"
    for key in SHAPES[run]:
        place = ("optimizer", "state", 0, key)
        for value in (lambda t: torch.zeros(5), lambda t: "x", lambda t: t.cfloat(), lambda t: t.to("meta")):
            save(changed(content, place, value), path)
            assert "does not match its options" in resumed(path, capsys)
        if len(SHAPES[run]) > 1:
            save(without(content, place), path)
            assert "does not match its options" in resumed(path, capsys)


@pytest.mark.parametrize("run", ["adam", "sgd", "rmsprop", "gallery"])
def test_an_unchanged_one_goes_on(folders, tmp_path, capsys, run):
    path = tmp_path / "step-00000004.pt"
    save(checkpoint.read(folders[run]), path)
    assert main(["train", "--resume", str(path), "--steps", "6"]) == 0
    assert sampled(path, capsys) == 0


def test_a_best_one_of_another_kind_does_not_stop_the_others(folders, tmp_path, capsys):
    """The best checkpoint is read to order the files of a folder."""
    save(checkpoint.read(folders["adam"]), tmp_path / "step-00000004.pt")
    save({**checkpoint.read(folders["adam"]), "step": "x"}, tmp_path / "best.pt")
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000004.pt"
