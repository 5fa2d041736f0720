"""Runs whose text becomes shorter while they read it: an error and a checkpoint, and no signal."""

from __future__ import annotations

import os
import re

import pytest
import torch.distributed as dist
from lm_runs import arguments, rows, start, tiny, wait_for_rows

from fastrnn.apps import lm
from fastrnn.apps.lm import data


def truncated(process, out, text, size):
    """Truncates the text after some steps. Returns the exit status and what the process has to say."""
    wait_for_rows(out, 4, process)
    os.truncate(text, size)
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, errors


@pytest.mark.parametrize("unit", ["byte", "character"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_text_that_becomes_shorter_ends_the_run_with_a_checkpoint(tmp_path, unit, share):
    changes = {"unit": unit, "checkpoint_every": 0, "validate_every": 0}  # the next test cuts during a validation
    options = tiny(tmp_path, steps=10**6, **changes)
    out, text = tmp_path / "run", tmp_path / "text.txt"
    content = text.read_bytes()
    size = min(int(share * len(content)), len(content) - 1)
    status, errors = truncated(start("train", *arguments(options)), out, text, size)
    assert status == 1, errors
    step = int(rows(out)[-1]["step"])
    (file,) = out.glob("step-*.pt")
    assert file.name == f"step-{step:08d}.pt"
    assert errors == (
        f"fastrnn train: error: file: expected {len(content)} bytes in {text}, as at the start of the run, got {size}; "
        f"the last checkpoint is {file}\n"
    )
    with pytest.raises(ValueError, match="file: expected"):
        lm.resume(out, steps=step + 9)
    text.write_bytes(content)
    lm.resume(out, steps=step + 9)
    whole = tmp_path / "whole"
    lm.train(tiny(tmp_path, steps=step + 9, out=str(whole), **changes))
    assert rows(out) == rows(whole)


def test_a_text_that_becomes_shorter_during_validation(tmp_path, monkeypatch):
    """The step before is in the checkpoint, and its loss in the next row of the log."""
    options = tiny(tmp_path, validation=0.3, validation_chunks=1000, steps=12, validate_every=5)
    text, out = tmp_path / "text.txt", tmp_path / "run"
    content = text.read_bytes()
    read = lm.trainer.Trainer.validate

    def validate(trainer):
        os.truncate(text, len(content) - 500)
        return read(trainer)

    monkeypatch.setattr(lm.trainer.Trainer, "validate", validate)
    problem = rf"file: expected {len(content)} bytes .*; the last checkpoint is .*step-00000005.pt"
    with pytest.raises(lm.TrainingError, match=problem):
        lm.train(options)
    monkeypatch.undo()
    text.write_bytes(content)
    lm.resume(out)
    whole = tmp_path / "whole"
    lm.train(tiny(tmp_path, validation=0.3, validation_chunks=1000, steps=12, validate_every=5, out=str(whole)))
    right = {row["step"]: row for row in rows(whole)}
    assert [row["step"] for row in rows(out)] == [step for step in right if step != "5"]
    for row in rows(out):
        if row["step"] != "6":
            assert row == right[row["step"]]


def test_a_text_that_becomes_shorter_before_the_first_step(tmp_path, monkeypatch, capsys):
    from fastrnn.apps.cli import main

    options = tiny(tmp_path)
    fingerprint = data.fingerprint

    def shortened(path):
        os.truncate(path, 7)
        return fingerprint(path)

    monkeypatch.setattr(lm.trainer, "fingerprint", shortened)
    assert main(["train", *arguments(options)]) == 1
    assert re.fullmatch(
        r"fastrnn train: error: file: expected \d+ bytes in .*, as at the start of the run, got 7; the last checkpoint "
        r"is .*step-00000000.pt\n",
        capsys.readouterr().err,
    )


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo")
def test_all_processes_end_with_the_same_step(tmp_path):
    """The first one's rows are still there."""
    options = tiny(tmp_path, steps=10**6, checkpoint_every=0, validate_every=0)
    out, text = tmp_path / "run", tmp_path / "text.txt"
    content = text.read_bytes()
    status, errors = truncated(start("train", *arguments(options), processes=2), out, text, len(content) * 3 // 4)
    assert status == 1, errors
    assert errors.count("fastrnn train: error: file: ") == 2, errors
    step = int(rows(out)[-1]["step"])
    assert [path.name for path in out.glob("step-*")] == [f"step-{step:08d}.pt"]
    text.write_bytes(content)
    assert lm.resume(out, steps=step + 2).step == step + 2
