"""Checkpoints: whole or not there, and refused when they are not what they should be."""

from __future__ import annotations

import dataclasses
import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch
from lm_runs import rows, save, tiny

from fastrnn.apps import lm
from fastrnn.apps.lm import checkpoint, trainer
from fastrnn.apps.lm.logs import CsvLog


@pytest.fixture
def run(tmp_path):
    """The folder of a finished run."""
    lm.train(tiny(tmp_path))
    return tmp_path / "run"


def test_the_last_ones_and_the_best_are_kept(run):
    assert sorted(path.name for path in run.iterdir()) == [
        "best.pt",
        "log.csv",
        *(f"step-{step:08d}.pt" for step in (6, 9, 12)),
    ]
    validated = {int(row["step"]): float(row["validation_loss"]) for row in rows(run) if row["validation_loss"]}
    assert list(validated) == [5, 10, 12]
    best = checkpoint.read(run / "best.pt")
    assert (best["best"][1], best["step"]) == (min(validated, key=validated.get),) * 2
    assert best["best"][0] == min(validated.values())


def test_everything_is_data(run):
    found = torch.load(run / "step-00000012.pt", weights_only=True)
    assert found["format"] == "fastrnn language model"
    assert set(found) == checkpoint._KEYS
    assert found["log"] == {"bytes": (run / "log.csv").stat().st_size, "loss": [0.0], "steps": 0}
    assert lm.Options(**found["options"]) == tiny(run.parent)


def refused(path, message):
    """Says so whichever way it is used, and leaves the file alone."""
    before = path.read_bytes() if path.is_file() else None
    for use in (lm.load, lm.resume):
        with pytest.raises(lm.CheckpointError, match=message) as error:
            use(path)
        assert path.name in str(error.value)
    assert before is None or path.read_bytes() == before


@pytest.mark.parametrize("share", [0.0, 0.001, 0.4, 0.999])
def test_a_file_cut_short(run, share):
    path = run / "step-00000012.pt"
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, "is truncated, damaged or not a checkpoint; the newest other one is .*best.pt")


def test_a_damaged_bit_anywhere_is_found(run):
    path = run / "step-00000012.pt"
    content = path.read_bytes()
    chance = random.Random(0)
    for place in [*range(-100, 0), *(chance.randrange(len(content)) for _ in range(200))]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(lm.CheckpointError, match="is truncated, damaged or not a checkpoint"):
            checkpoint.read(path)
    refused(path, "is truncated, damaged or not a checkpoint; the newest other one is .*best.pt")


def test_foreign_files(run, tmp_path):
    path = tmp_path / "other.pt"
    for content in (b"text", b"\x80\x04N.", pickle.dumps({"a": 1})):
        path.write_bytes(content)
        refused(path, "is truncated, damaged or not a checkpoint")
    torch.save({"weight": torch.zeros(3)}, path)
    refused(path, "is truncated, damaged or not a checkpoint")
    for content in ({"weight": torch.zeros(3)}, [1, 2]):
        save(content, path)
        refused(path, "is not a checkpoint of a language model from")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")
    path.write_bytes(checkpoint.sealed(path.read_bytes()))
    refused(path, "is not a checkpoint of a language model")
    refused(tmp_path / "none.pt", "does not exist")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "got none")


class _Opens:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_code_in_a_file_is_not_run(run, tmp_path):
    content = checkpoint.read(run / "best.pt")
    save({**content, "states": _Opens(tmp_path / "opened")}, tmp_path / "evil.pt")
    refused(tmp_path / "evil.pt", "is not a checkpoint of a language model")
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "expected format version 1 .*, got 2"),
        ({"options": {"hiden": 3}}, "options that this version does not support"),
        ({"options": lm.Options(hidden=5, out="x").as_dict()}, "match its (own )?options"),
        ({"model": {}}, "match its (own )?options"),
    ],
    ids=["version", "options", "sizes", "weights"],
)
def test_parts_that_do_not_fit(run, change, message):
    path = run / "step-00000012.pt"
    content = checkpoint.read(path)
    if "hidden" in change.get("options", ()):
        change = {"options": content["options"] | {"hidden": 5}}
    save({**content, **change}, path)
    for use in (lm.load, lambda found: lm.resume(found, steps=14)):
        with pytest.raises(lm.CheckpointError, match=message):
            use(path)


def test_an_unknown_vocabulary(run):
    path = run / "step-00000012.pt"
    save({**checkpoint.read(path), "vocabulary": {"unit": "word"}}, path)
    with pytest.raises(lm.CheckpointError, match="does not match its own options"):
        lm.load(path)


def test_missing_parts(run):
    path = run / "step-00000012.pt"
    content = checkpoint.read(path)
    del content["random"], content["log"]
    save(content, path)
    refused(path, "has no log, random")


def full_disk(path):
    """Make the next write to this path fail as on a full disk."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/full")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_loses_nothing(tmp_path):
    options = tiny(tmp_path)
    out = tmp_path / "run"

    def report(event):
        if isinstance(event, lm.Saved) and event.step == 6:
            full_disk(out / "step-00000009.pt.tmp")

    with pytest.raises(lm.CheckpointError, match=r"could not write .*step-00000009.pt: No space left on device"):
        lm.train(options, report)
    assert sorted(path.name for path in out.glob("step*")) == ["step-00000003.pt", "step-00000006.pt"]
    whole = tiny(tmp_path, out=str(tmp_path / "whole"))
    lm.train(whole)
    lm.resume(out)  # there is space again
    assert rows(out) == rows(tmp_path / "whole")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_under_the_log(tmp_path):
    (tmp_path / "run").mkdir()
    full_disk(tmp_path / "run" / "log.csv")
    with pytest.raises(lm.TrainingError, match=r"log: could not write .*log.csv: No space left on device"):
        lm.train(tiny(tmp_path))


def test_an_error_while_renaming_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "step-00000001.pt"
    checkpoint.write(path, b"old")

    def fails(*args):
        raise OSError(28, "No space left on device")

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint.os, name, fails)
            with pytest.raises(lm.CheckpointError, match="could not write"):
                checkpoint.write(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
    checkpoint.write(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_good_checkpoints(tmp_path):
    options = tiny(tmp_path, cell="rnn_relu", optimizer="sgd", learning_rate=1e30, clip_norm=0.0, checkpoint_every=1)
    with pytest.raises(lm.TrainingError, match=r"loss: expected .*finite"):
        lm.train(options)
    for _, path in checkpoint.numbered_in(tmp_path / "run"):
        assert all(bool(torch.isfinite(p).all()) for p in lm.load(path).parameters())


def test_a_model_that_has_diverged_is_not_sampled(tmp_path):
    """Between two rows of the log."""
    options = tiny(tmp_path, learning_rate=1e38, clip_norm=0.0, optimizer="sgd", log_every=100, validate_every=0)
    options = dataclasses.replace(options, sample_every=1, checkpoint_every=0, steps=20)
    with pytest.raises(lm.TrainingError, match=r"loss: expected finite .*, got infinity or NaN at step"):
        lm.train(options)


def test_a_validation_that_is_not_finite_is_not_the_best(tmp_path, monkeypatch):
    found = iter([float("nan"), 3.0, 2.5])
    monkeypatch.setattr(trainer.Trainer, "validate", lambda self: next(found))
    result = lm.train(tiny(tmp_path))
    assert result.best == 2.5
    assert checkpoint.read(tmp_path / "run" / "best.pt")["best"] == [2.5, 12]


def test_half_a_row_is_taken_back(tmp_path):
    log = CsvLog(tmp_path / "log.csv")
    log.write({"step": 1})
    before, file = (tmp_path / "log.csv").read_bytes(), log._file

    class Full:
        def write(self, data):
            if len(data) < 5:
                raise OSError(28, "No space left on device")
            return file.write(data[:-4])

        def __getattr__(self, name):
            return getattr(file, name)

    log._file = Full()
    with pytest.raises(lm.TrainingError, match="No space left on device"):
        log.write({"step": 2})
    assert (tmp_path / "log.csv").read_bytes() == before


def test_what_an_interrupted_write_left_is_removed(run):
    (run / "step-00000013.pt.tmp").write_bytes(b"half")
    lm.resume(run, steps=14)
    assert not list(run.glob("*.tmp"))
