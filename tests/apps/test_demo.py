"""The demo: what it measures at tiny sizes, what it shows and draws, how it ends."""

from __future__ import annotations

import argparse
import os
import re
import shutil

import pytest

from fastrnn.apps.demo import arguments, cli, comparisons, picture
from fastrnn.apps.demo.comparisons import Comparison

GOOD = Comparison("LSTM 1x2x3", "torch.nn", (0.02, 0.005), 1.1)
WRONG = Comparison("GRU 1x2x3", "torch.nn", None, 9.9, "FAILED parity, grad h_0")
ABSENT = Comparison("custom cell 1x2x3", "a loop in PyTorch", problem="there is no C++ compiler")
DOUBTFUL = Comparison("LSTM 1x2x3", "torch.nn", (0.02, 0.005), 1.1, doubts=["other processes took 40 % of its time"])


def parse(*options):
    parser = argparse.ArgumentParser(prog="demo")
    arguments.add_arguments(parser)
    return parser.parse_args([str(option) for option in options])


def test_layers_are_checked_and_timed():
    (found,) = comparisons.layers(1, cases=(("gru", "2x3x4"),))
    assert (found.name, found.other, found.problem) == ("GRU 2x3x4", "torch.nn", "")
    assert found.error >= 0
    assert min(found.seconds) > 0


def test_what_would_take_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr(comparisons, "PATIENCE", -1.0)
    (found,) = comparisons.layers(1, cases=(("gru", "2x3x4"),))
    assert found.seconds is None
    assert "under load" in found.problem


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_the_cell_is_checked_and_timed():
    found = comparisons.cell((5, 2, 8))
    assert found.problem == ""
    assert found.error <= comparisons.FACTOR
    assert min(found.seconds) > 0


def test_a_wrong_cell_has_no_speed(monkeypatch):
    real = comparisons._results

    def wrong(network, x, backend):
        return [value * (1.001 if backend == "fused" else 1) for value in real(network, x, backend)]

    monkeypatch.setattr(comparisons, "_results", wrong)
    found = comparisons.cell((5, 2, 8))
    assert found.problem == "FAILED parity"
    assert found.seconds is None


@pytest.mark.parametrize(
    ("shown", "status", "said"),
    [
        ([GOOD], 0, "4.0×"),
        ([GOOD, ABSENT], 0, "there is no C++ compiler"),
        ([GOOD, WRONG], 1, "FAILED parity"),
        ([DOUBTFUL], 3, "unreliable: other processes took 40 %"),
    ],
)
def test_output_and_exit_status(tmp_path, monkeypatch, capsys, shown, status, said):
    monkeypatch.setattr(comparisons, "layers", lambda threads: iter(shown[:1]))
    monkeypatch.setattr(comparisons, "cell", lambda: shown[-1])
    target = tmp_path / "new" / "demo.svg"
    assert cli.run(parse("--picture", target)) == status
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert said in text
    assert "20.0 ms" in text
    assert "def one_state(x, r, s):" in text
    if picture.available():
        drawn = target.read_text()
        assert "LSTM 1×2×3" in drawn
        assert ("unreliable" in drawn) == (status == 3)


def test_bars_are_as_long_as_their_times():
    _, slow, fast = cli.lines_of(GOOD)
    assert slow.count("█") == cli.BAR == 4 * fast.count("█")


@pytest.mark.parametrize(("load", "wanted", "threads"), [(0.1, None, None), (900.0, None, 1), (900.0, 2, 2)])
def test_one_thread_beside_other_work(monkeypatch, load, wanted, threads):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load), raising=False)
    assert cli.threads_of(wanted) == threads


def test_wrong_options(capsys):
    for options, said in (
        (("--picture", "a.gif"), "expected a file name ending in .png"),
        (("--threads", "0"), "at least 1"),
    ):
        with pytest.raises(SystemExit):
            parse(*options)
        assert said in capsys.readouterr().err
