"""The command line of the benchmark: what it understands and how it says that it does not."""

from __future__ import annotations

import pytest
from bench_cases import parse

from fastrnn.bench import cli


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--cells", "lsmt"], "argument --cells: expected a comma-separated list of lstm, gru, rnn; found 'lsmt'"),
        (["--shapes", "1x2"], "argument --shapes: expected BxTxH"),
        (["--dtype", "int8"], "argument --dtype: expected"),
        (["--threads", "0"], "argument --threads: expected a whole number of at least 1, found '0'"),
        (["--repeats", "x"], "argument --repeats: expected a whole number"),
        (["--lm-steps", "-3"], "argument --lm-steps: expected a whole number"),
        (["--text", "no-such-file"], "argument --text: expected a file that can be read"),
        (["--plot", "a.gif"], "argument --plot: expected a name that ends in .svg"),
        (["--engine", "no_such_module"], "argument --engine: expected one of torch, fastrnn"),
        (["--busy", "0"], "argument --busy: expected a whole number of at least 1"),
        (["--precision", "medium"], "argument --precision: invalid choice"),
        (["--out", __file__], "argument --out: expected a directory"),
    ],
)
def test_wrong_arguments_are_named(options, said, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*options)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_short_text_is_refused(tmp_path, capsys):
    short = tmp_path / "short.txt"
    short.write_text("too short")
    assert cli.run(parse("--text", short, "--out", tmp_path)) == 2
    assert "argument --text: expected at least" in capsys.readouterr().err


def test_list_runs_nothing(capsys):
    assert cli.run(parse("--list", "--cells", "gru", "--dtype", "float32,bfloat16")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 28
    assert lines[0] == "gru 1x1x64"
    assert lines[25].endswith("bfloat16")
    assert lines[-1] == "gru 1x1x128 step"
    assert cli.run(parse("--list", "--no-steps", "--cells", "gru")) == 0
    assert len(capsys.readouterr().out.splitlines()) == 13


def test_modes_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        parse("--busy", 2, "--scaling")
    assert "not allowed with" in capsys.readouterr().err
