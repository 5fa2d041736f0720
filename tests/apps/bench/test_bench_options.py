"""The command line of the benchmark: what it understands and how it says that it does not."""

from __future__ import annotations

import pytest
import torch
from bench_cases import parse

from fastrnn.apps.bench import cli


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cells", "lsmt"], "argument --cells: expected a comma-separated list of lstm, gru, rnn; got 'lsmt'"),
        (["--shapes", "1x2"], "argument --shapes: expected BxTxH"),
        (["--dtype", "int8"], "argument --dtype: expected"),
        (["--threads", "0"], "argument --threads: expected a whole number of at least 1, got '0'"),
        (["--repeats", "x"], "argument --repeats: expected a whole number"),
        (["--lm-steps", "-3"], "argument --lm-steps: expected a whole number"),
        (["--text", "no-such-file"], "argument --text: expected a readable file"),
        (["--plot", "a.gif"], "argument --plot: expected a file name ending in .svg"),
        (["--engine", "no_such_module"], "argument --engine: expected one of torch, fastrnn"),
        (["--busy", "0"], "argument --busy: expected a whole number of at least 1"),
        (["--precision", "low"], "argument --precision: invalid choice"),
        (["--isa", "sse"], "argument --isa: invalid choice"),
        (["--out", __file__], "argument --out: expected a directory"),
        (["--device", "tpu"], "argument --device: invalid choice"),
    ],
)
def test_wrong_arguments_are_named(options, said, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*options)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_an_engine_that_cannot_be_held_is_left_out():
    assert cli.make_settings(parse("--isa", "avx2", "--peers", "onnxruntime")).peers == ()
    assert cli.make_settings(parse("--isa", "avx2")).isa == "avx2"


def test_short_text_is_refused(tmp_path, capsys):
    short = tmp_path / "short.txt"
    short.write_text("too short")
    assert cli.run(parse("--text", short, "--out", tmp_path)) == 2
    assert "argument --text: expected at least" in capsys.readouterr().err


def test_list_runs_nothing(capsys):
    assert cli.run(parse("--list", "--cells", "gru", "--dtype", "float32,bfloat16")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 30
    assert lines[0] == "gru 1x1x64"
    assert lines[27].endswith("bfloat16")
    assert lines[-1] == "gru 1x1x128 step"
    assert cli.run(parse("--list", "--no-steps", "--cells", "gru")) == 0
    assert len(capsys.readouterr().out.splitlines()) == 14


def test_modes_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        parse("--busy", 2, "--scaling")
    assert "not allowed with" in capsys.readouterr().err


def test_rows_on_a_gpu_are_listed_without_one(capsys):
    assert cli.run(parse("--list", "--device", "cuda", "--cells", "lstm", "--dtype", "bfloat16,float32")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "lstm 1x100x256 bfloat16 cuda"
    assert lines[-1] == "lstm 16x100x512 packed cuda"
    assert len(lines) == 24


@pytest.mark.parametrize("more", [("--busy", 1), ("--scaling",)])
def test_what_only_the_cpu_does(more, tmp_path, capsys):
    assert cli.run(parse("--device", "cuda", "--out", tmp_path, *more)) == 2
    assert f"argument {more[0]}: expected --device cpu, got cuda" in capsys.readouterr().err


def test_no_gpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.run(parse("--device", "cuda", "--out", tmp_path)) == 2
    assert "argument --device: expected a GPU available to torch, got none" in capsys.readouterr().err
