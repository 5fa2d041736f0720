"""Runs that were interrupted, and go on as if they had not been."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from lm_runs import arguments, rows, start, tiny, wait_for_rows

from fastrnn.apps import lm
from fastrnn.apps.lm import checkpoint


def stop_after(steps):
    """A wish to stop before a further step."""
    asked = [0]

    def stop():
        asked[0] += 1
        return asked[0] > steps

    return stop


def interrupted(tmp_path, places, **changes):
    """The logs of a run, and of the same one stopped at these steps and resumed."""
    options = tiny(tmp_path, **changes)
    whole = lm.train(options)
    parts = tiny(tmp_path, **(changes | {"out": str(tmp_path / "parts")}))
    for before, place in zip([None, *places], places, strict=False):
        stop = stop_after(place - (before or 0))
        result = lm.train(parts, stop=stop) if before is None else lm.resume(parts.out, stop=stop)
        assert (result.step, result.stopped) == (place, True)
    last = lm.resume(parts.out)
    assert (last.step, last.loss, last.best) == (whole.step, whole.loss, whole.best)
    return rows(tmp_path / "run"), rows(tmp_path / "parts")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cell": "gru", "unit": "character", "layers": 3, "dropout": 0.4, "dropout_embedding": 0.2},
        {"cell": "rnn_tanh", "embedding": 0, "dropout_output": 0.3, "optimizer": "sgd", "momentum": 0.9},
        {"cell": "gru", "dropout_recurrent": 0.5, "dropout": 0.2},
        {"cell": "zoneout_lstm", "optimizer": "rmsprop", "schedule": "cosine", "warmup": 5},
        {"engine": "torch", "dropout": 0.5, "optimizer": "adamw", "schedule": "linear"},
        {"dtype": "bfloat16", "dropout": 0.2, "tied": True},
        {"dtype": "float64", "truncation": 40, "validation": 0.2},
        {"log_every": 4, "validate_every": 6, "sample_every": 3, "sample_length": 5},
        {"compile": True, "dropout": 0.3},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())) or "usual",
)
def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path, changes):
    whole, parts = interrupted(tmp_path, [1, 7, 20], **({"steps": 30, "batch": 20, "truncation": 23} | changes))
    assert whole == parts
    assert len(whole) >= 8


def test_epochs_are_crossed(tmp_path):
    whole, _ = interrupted(tmp_path, [0, 7, 8], steps=12, batch=20, truncation=43)
    assert float(whole[-1]["epoch"]) > 1


def test_kill_9_at_any_moment_loses_no_row_and_doubles_none(tmp_path):
    chance = random.Random(time.time_ns())
    out = tmp_path / "run"
    options = tiny(tmp_path, steps=10**6)
    first = start("train", *arguments(options))
    wait_for_rows(out, chance.randint(5, 60), first)
    first.kill()
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    again = start("train", "--resume", "--out", str(out))
    wait_for_rows(out, len(rows(out)) + chance.randint(1, 40), again)
    again.kill()
    again.communicate()

    result = lm.resume(out, steps=len(rows(out)) + 20)
    whole = tmp_path / "whole"
    lm.train(tiny(tmp_path, steps=result.step, out=str(whole)))
    found = rows(out)
    assert found == rows(whole)
    assert [int(row["step"]) for row in found] == list(range(1, result.step + 1))


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_run_cleanly(tmp_path, number, status):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the tests run where it is ignored, as under nohup, and so does what they start")
    out = tmp_path / "run"
    process = start("train", *arguments(tiny(tmp_path, steps=10**6, checkpoint_every=0)))
    wait_for_rows(out, 3, process)
    process.send_signal(number)
    try:
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status, errors
    step = int(rows(out)[-1]["step"])
    (file,) = out.glob("step-*.pt")
    assert file.name == f"step-{step:08d}.pt"
    assert output.splitlines()[-1] == f"stopped after {step:,} steps; resume with: fastrnn train --resume {file}"
    assert errors == "stopping after this step; Ctrl-C again stops at once\n"
    assert lm.resume(out, steps=step + 2).step == step + 2


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    # A step of this takes many seconds.
    options = tiny(tmp_path, hidden=700, batch=8, truncation=600, layers=4, checkpoint_every=0)
    process = start("train", *arguments(options))
    assert process.stdout is not None
    assert process.stderr is not None
    while not process.stdout.readline().startswith("run:"):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith("stopping after this step")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGINT
    assert not list((tmp_path / "run").glob("*.pt"))


def test_a_reader_that_leaves_stops_the_run_with_a_checkpoint(tmp_path):
    process = start("train", *arguments(tiny(tmp_path, steps=10**6, checkpoint_every=0)))
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 1
    assert errors == ""
    assert len(list((tmp_path / "run").glob("step-*.pt"))) == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_output_that_cannot_be_written_stops_the_run_with_a_checkpoint(tmp_path):
    out = str(tmp_path / "run")
    with open("/dev/full", "w") as full:
        found = subprocess.run(
            [sys.executable, "-m", "fastrnn", "train", *arguments(tiny(tmp_path, steps=10**6, checkpoint_every=0))],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert found.returncode == 1
    assert found.stderr == "fastrnn train: standard output: No space left on device\n"
    assert lm.resume(out, steps=2).step == 2


def test_what_may_change_and_what_may_not(tmp_path):
    lm.train(tiny(tmp_path))
    out = tmp_path / "run"
    for name, value in (("hidden", 10), ("seed", 1), ("optimizer", "sgd"), ("batch", 8), ("unit", "character")):
        with pytest.raises(ValueError, match=f"{name}: expected .* as in the run that is resumed, got {value!r}"):
            lm.resume(out, **{name: value})
    with pytest.raises(TypeError, match="stepps: expected an option"):
        lm.resume(out, stepps=3)
    assert lm.resume(out, steps=14, log_every=2, keep=1, hidden=9).step == 14
    assert [path.name for path in sorted(out.glob("step-*"))] == ["step-00000014.pt"]
    assert [int(row["step"]) for row in rows(out)] == [*range(1, 13), 14]


def test_another_text_is_refused(tmp_path):
    lm.train(tiny(tmp_path))
    text = tmp_path / "text.txt"
    content = text.read_bytes()
    text.write_bytes(content.replace(b"cell", b"bell"))
    with pytest.raises(ValueError, match="file: expected the text of the resumed run"):
        lm.resume(tmp_path / "run", steps=14)
    (tmp_path / "moved").write_bytes(content)
    assert lm.resume(tmp_path / "run", steps=14, file=str(tmp_path / "moved")).step == 14


def test_nothing_is_overwritten_unasked(tmp_path):
    options = tiny(tmp_path)
    lm.train(options)
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(ValueError, match="out: expected a folder without checkpoints"):
        lm.train(options)
    early = tmp_path / "run" / "step-00000006.pt"
    with pytest.raises(ValueError, match="out: expected a folder without other or later checkpoints"):
        lm.resume(early)
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    # Elsewhere it is the same run from there on, with a log of its own.
    lm.resume(early, out=str(tmp_path / "other"))
    assert rows(tmp_path / "other") == rows(tmp_path / "run")[6:]


def test_the_best_is_not_overwritten_and_can_be_resumed(tmp_path):
    """The last step is the best, and no other checkpoint was written before it."""
    lm.train(tiny(tmp_path, checkpoint_every=0))
    out = tmp_path / "run"
    whole, best = rows(out), (out / "best.pt").read_bytes()
    (out / "step-00000012.pt").unlink()
    with pytest.raises(ValueError, match=r"out: expected a folder without checkpoints for a new run, got .*best.pt"):
        lm.train(tiny(tmp_path))
    assert (out / "best.pt").read_bytes() == best
    with pytest.raises(ValueError, match=r"out: expected a folder without other or later checkpoints .*best.pt"):
        lm.resume(out, out=str(copied(out, tmp_path / "other")))
    assert lm.resume(out).step == 12
    assert rows(out) == whole


def copied(folder, to):
    shutil.copytree(folder, to)
    return to


def test_a_log_that_is_none_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    log = tmp_path / "run" / "log.csv"
    log.write_text("date,weight\n1,2\n")
    with pytest.raises(
        lm.TrainingError, match=r"log: expected no file or the log of a run at .*log.csv, got another file"
    ):
        lm.train(tiny(tmp_path))
    assert log.read_text() == "date,weight\n1,2\n"
    log.write_text("step,ep")  # a run that ended at once
    lm.train(tiny(tmp_path))
    assert len(rows(tmp_path / "run")) == 12


@pytest.mark.parametrize("validate_every", [0, 5])
def test_a_damaged_checkpoint_does_not_stand_in_the_way(tmp_path, validate_every):
    lm.train(tiny(tmp_path, validate_every=validate_every))
    out, whole = tmp_path / "run", rows(tmp_path / "run")
    last = out / "step-00000012.pt"
    last.write_bytes(last.read_bytes()[:-50])
    other = "best" if validate_every else "step-00000009"
    with pytest.raises(lm.CheckpointError, match=rf"is truncated, .*the newest other one is .*{other}\.pt"):
        lm.resume(out)
    assert lm.resume(out / f"{other}.pt").step == 12
    assert rows(out) == whole
    assert (out / "step-00000012.pt.damaged").is_file() is (validate_every == 0)
    assert lm.resume(out, steps=13).step == 13


def test_a_best_that_is_newer_than_the_others_is_gone_on_from(tmp_path):
    lm.train(tiny(tmp_path))
    out, whole = tmp_path / "run", rows(tmp_path / "run")
    assert checkpoint.read(out / "best.pt")["step"] == 12
    (out / "step-00000012.pt").unlink()
    with pytest.raises(ValueError, match=r"out: expected a folder without other or later checkpoints .*best\.pt"):
        lm.resume(out / "step-00000009.pt")
    begun = []
    lm.resume(out, lambda event: begun.append(event.step) if isinstance(event, lm.Started) else None, steps=14)
    assert begun == [12]
    assert rows(out)[:12] == whole


def test_elsewhere_the_best_is_that_of_the_new_folder(tmp_path):
    lm.train(tiny(tmp_path))
    file = tmp_path / "run" / "step-00000012.pt"
    result = lm.resume(file, out=str(tmp_path / "other"), steps=20)
    best = checkpoint.read(tmp_path / "other" / "best.pt")
    assert best["step"] > 12
    assert best["best"][0] == result.best


def test_another_end_takes_the_place_of_those_before(tmp_path):
    lm.train(tiny(tmp_path, steps=3))
    out = tmp_path / "run"
    assert lm.resume(out, steps=5).step == 5
    result = lm.resume(out, epochs=1)  # no longer 5 steps
    assert result.step > 5
    assert lm.Options(steps=5, minutes=1.0).changed({"epochs": 2}).total_steps(7) == 14
    assert lm.Options(steps=5, minutes=1.0).changed({"minutes": 2.0}).total_steps(7) == 5
    assert lm.Options(minutes=1.0).changed({"steps": 9}).minutes is None


def test_a_log_that_is_gone_begins_anew_and_a_shorter_one_is_refused(tmp_path):
    lm.train(tiny(tmp_path))
    log = tmp_path / "run" / "log.csv"
    log.write_bytes(log.read_bytes()[:-30])
    with pytest.raises(lm.CheckpointError, match="log: expected at least"):
        lm.resume(tmp_path / "run", steps=14)
    log.unlink()
    lm.resume(tmp_path / "run", steps=14)
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == [13, 14]


def test_two_runs_do_not_share_a_log(tmp_path):
    options = tiny(tmp_path)
    lm.train(options)
    errors = []

    def second(event):
        if isinstance(event, lm.Logged) and not errors:
            with pytest.raises(lm.TrainingError) as error:
                lm.resume(options.out, steps=20)
            errors.append(str(error.value))

    lm.resume(options.out, second, steps=15)
    assert errors == [f"log: {options.out}/log.csv is in use by another run"]
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == list(range(1, 16))


def test_the_library_prints_nothing_and_leaves_threads_and_signals_alone(tmp_path, capfd):
    import torch

    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    found = []
    lm.train(tiny(tmp_path, sample_every=6), report=found.append)
    assert capfd.readouterr() == ("", "")
    assert torch.get_num_threads() == threads
    assert signal.getsignal(signal.SIGINT) is handler
    assert [type(event).__name__ for event in found][:3] == ["Started", "Logged", "Logged"]
    assert {type(event) for event in found} == {lm.Started, lm.Logged, lm.Sampled, lm.Saved}
