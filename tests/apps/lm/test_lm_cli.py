"""``fastrnn train`` and ``fastrnn sample`` on the command line."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import pytest
from lm_runs import arguments, rows, start, tiny, write_text

from fastrnn.apps import lm
from fastrnn.apps.cli import main
from fastrnn.apps.lm.cli import printable


@pytest.fixture
def run(tmp_path):
    lm.train(tiny(tmp_path))
    return tmp_path / "run"


def test_lines_of_a_run(tmp_path, capsys):
    options = tiny(tmp_path, steps=10, log_every=4, sample_every=8, sample_length=20)
    assert main(["train", *arguments(options)]) == 0
    lines = capsys.readouterr().out.splitlines()
    size = (tmp_path / "text.txt").stat().st_size
    assert lines[0] == f"text: {tmp_path}/text.txt, {size:,} bytes, vocabulary 256"
    assert re.fullmatch(r"model: lstm 2×9, [\d,]+ parameters, float32, engine fastrnn", lines[1])
    assert re.fullmatch(rf"run: 10 steps, [\d,]+ per epoch, 4×11 bytes per step, in {tmp_path}/run", lines[2])
    number = r"[\d.,e-]+"
    loss = rf"  loss {number} nats, {number} bits/byte"
    validation = rf"  validation {number} bits/byte \(best\)"
    tail = rf"  lr 0.002  {number} bytes/s"
    assert re.fullmatch(rf"step 4/10  epoch {number}{loss}{tail}", lines[3])
    assert re.fullmatch(rf"step 5/10  epoch {number}{validation}{tail}", lines[4])
    assert re.fullmatch(rf"step 8/10  epoch {number}{loss}{tail}", lines[5])
    assert lines[6] == "--- sample after step 8"
    assert re.fullmatch(rf"step 10/10  epoch {number}{loss}{validation}{tail}", lines[lines.index("---") + 1])
    assert lines[-1] == f"done after 10 steps: {tmp_path}/run/step-00000010.pt"


def test_every_option_is_an_argument(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "fastrnn.apps.lm.runs.train",
        lambda options, *more: seen.append(options) or lm.Result(0, None, None, tmp_path, False),
    )
    changes = {"tied": True, "compile": True, "cell": "min_gru", "epochs": 3, "minutes": 0.5, "dropout": 0.25}
    options = tiny(tmp_path, seed=9, **changes)
    assert main(["train", *arguments(options)]) == 0
    assert seen == [options]
    names = {field.name for field in dataclasses.fields(lm.Options) if field.name != "file"}
    assert len(arguments(options)) == 2 * len(names) + 1 - sum(
        type(value) is bool for value in options.as_dict().values()
    )


def test_resume_goes_on_and_keeps_to_its_options(run, capsys):
    assert main(["train", "--resume", "--out", str(run), "--steps", "14"]) == 0
    assert "resumed after step 12\n" in capsys.readouterr().out
    assert main(["train", "--resume", str(run / "step-00000014.pt"), "--steps", "15", "--keep", "1"]) == 0
    assert [int(row["step"]) for row in rows(run)] == list(range(1, 16))
    assert main(["train", "--resume", str(run), "--hidden", "5"]) == 2
    assert "argument --hidden: expected 9 as in the run that is resumed, got 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["train", "nothing.txt"], 2, "argument FILE: expected a text file, got 'nothing.txt', which does not"),
        (["train", "--learning-rate", "0"], 2, "argument --learning-rate: expected more than 0, got 0.0"),
        (["train", "--cell", "lstn"], 2, "argument --cell: expected one of lstm, gru,"),
        (["train", "--device", "tpu"], 2, "argument --device: expected cpu, cuda or cuda:N, got 'tpu'"),
        (["train", "--resume", "nothing"], 1, "checkpoint: expected a file or a folder with checkpoints"),
        (["train", "--resume"], 1, "lm-out does not exist"),
        (["sample", "nothing.pt"], 1, "checkpoint: expected a file or a folder with checkpoints"),
        (["sample", ".", "--threads", "0"], 2, "argument --threads: expected at least 1, got 0"),
    ],
)
def test_errors_are_one_line(args, status, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(args) == status
    captured = capsys.readouterr()
    assert captured.err.startswith(f"fastrnn {args[0]}: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("args", [["train", "--hidden", "many"], ["train", "--unit", "word"], ["sample"]])
def test_arguments_that_cannot_be_read(args, capsys):
    with pytest.raises(SystemExit) as stop:
        main(args)
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"usage: fastrnn {args[0]}")


def test_help_names_the_exit_status(capsys):
    for command in ("train", "sample"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
    assert "130 after Ctrl-C" in capsys.readouterr().out.replace("\n", " ")


def test_tensorboard_that_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["train", *arguments(tiny(tmp_path, tensorboard=True))]) == 2
    assert "argument --tensorboard: expected the package tensorboard" in capsys.readouterr().err


def test_tensorboard_gets_the_numbers(tmp_path, monkeypatch):
    calls = []

    class Writer:
        def __init__(self, folder, purge_step):
            calls.append((folder, purge_step))

        def add_scalar(self, *args):
            calls.append(args)

        def add_text(self, *args):
            calls.append(args)

        def close(self):
            calls.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", type(sys)("tensorboard"))
    monkeypatch.setattr(sys.modules["torch.utils.tensorboard"], "SummaryWriter", Writer, raising=False)
    lm.train(tiny(tmp_path, tensorboard=True, sample_every=12, sample_length=3))
    assert calls[0] == (str(tmp_path / "run" / "tensorboard"), None)
    found = [(float(row["loss"]), int(row["step"])) for row in rows(tmp_path / "run")]
    assert [call[1:] for call in calls if call[0] == "loss"] == found
    assert [call[2] for call in calls if call[0] == "sample"] == [12]
    assert calls[-1] == "closed"
    calls.clear()
    lm.resume(tmp_path / "run", steps=14)
    assert calls[0][1] == 13


def test_sample_writes_the_prime_and_the_text(run, capfdbinary):
    command = ["sample", str(run), "--prime", "the é", "--length", "50", "--seed", "3", "--temperature", "0.8"]
    assert main([*command, "--top-k", "20"]) == 0
    expected = "".join(lm.sample(run, "the é", 50, seed=3, temperature=0.8, top_k=20))
    assert capfdbinary.readouterr().out.decode() == "the é" + expected


def test_a_prime_that_is_not_utf8_stays_as_it_is(run, capfdbinary):
    assert main(["sample", str(run), "--prime", "a\udcff", "--length", "0"]) == 0
    assert capfdbinary.readouterr().out == b"a\xff"


def test_sample_without_a_seed_is_another_each_time(run, capfdbinary):
    texts = set()
    for _ in range(2):
        assert main(["sample", str(run), "--length", "50"]) == 0
        texts.add(capfdbinary.readouterr().out)
    assert len(texts) == 2


def test_sample_streams_and_ends_quietly_with_its_reader(run):
    process = start("sample", str(run), "--length", str(10**9), "--prime", "x")
    assert process.stdout is not None
    assert process.stderr is not None
    assert len(process.stdout.read(500)) == 500
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 1


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b[2J\r\n\tb\x00é") == "a�[2J�\n\tb�é"


def test_other_commands_do_not_load_the_models():
    code = "import sys; from fastrnn.apps.cli import main; main(['info']); assert 'fastrnn.apps.lm' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_default_text(tmp_path, monkeypatch, capsys):
    from fastrnn.apps.lm import corpus

    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "cache"))
    sources = [write_text(tmp_path / name) for name in ("a.py", "b.py")]
    monkeypatch.setattr(corpus, "library_files", lambda: sources)
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(tmp_path))
    without_file = arguments(tiny(tmp_path, steps=2))[:-1]
    assert main(["train", *without_file]) == 0
    assert "cache/library-" in capsys.readouterr().out
    # It is made again where it has gone, and is the same text.
    (next((tmp_path / "cache").iterdir())).unlink()
    assert lm.resume(tmp_path / "run", steps=3).step == 3
