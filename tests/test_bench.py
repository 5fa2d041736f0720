"""The benchmark: what it parses, computes, refuses to show and writes. Nothing here depends on how fast anything is."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fastrnn.bench import cli, environment, language_model, memory, parity, ratios, report
from fastrnn.bench.cases import CELLS, STANDARD_SHAPES, Case, Shape, make_cases, parse_names, parse_shapes
from fastrnn.bench.client import Worker, WorkerDiedError, WorkerError
from fastrnn.bench.engines import ENGINES, ModuleEngine, find_engine
from fastrnn.bench.results import Results
from fastrnn.bench.runner import METRICS, SIDES, CaseResult, Settings, new_model_result

ROOT = Path(__file__).resolve().parent.parent

# Engines that a test can inject: each is a module with LSTM, GRU and RNN.
BROKEN = """
import torch
from torch.nn import GRU, LSTM
class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()
    @staticmethod
    def backward(ctx, g):
        return g * 1.001
class RNN(torch.nn.RNN):  # right outputs, input gradients wrong by a thousandth
    def forward(self, x, hx=None):
        return super().forward(_Scaled.apply(x), hx)
class LSTM(torch.nn.LSTM):  # wrong from the start, but trains
    def reset_parameters(self):
        super().reset_parameters()
        self.weight_ih_l0.data.mul_(1.5)
"""
DYING = """
import os
from torch.nn import GRU, LSTM
class RNN:
    def __init__(self, *args, **kwargs):
        os.write(2, b"a last word\\n")
        os._exit(3)
"""
RAISING = """
from torch.nn import GRU, LSTM
def RNN(*args, **kwargs):
    raise NotImplementedError("no such cell")
"""


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """Write a module of that name and source where this process and its workers find it; returns the name."""

    def write(name, source):
        folder = tmp_path / "engines"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(folder)
        return name

    return write


def parse(*options):
    parser = argparse.ArgumentParser(prog="bench")
    cli.add_arguments(parser)
    return parser.parse_args([str(option) for option in options])


def run(tmp_path, *options):
    """Exit status and JSON of a run with few, tiny rounds."""
    out = tmp_path / "out"
    status = cli.run(parse("--out", out, "--quick", "--threads", 1, *options))
    return status, json.loads((out / "bench.json").read_text()), (out / "bench.md").read_text()


# Cases


def test_standard_shapes_cover_every_cell_and_kind():
    cases = make_cases(CELLS, STANDARD_SHAPES, ["float32"])
    assert len(cases) == len(CELLS) * 13 == len({case.name for case in cases})
    shapes = set(STANDARD_SHAPES)
    assert any(shape.packed for shape in shapes)
    assert any(shape.bidirectional and shape.layers == 2 for shape in shapes)
    assert any(shape.input_size != shape.hidden_size for shape in shapes)


def test_shapes_are_parsed():
    assert parse_shapes("2x3x4") == (Shape(2, 3, 4, 4),)
    assert parse_shapes("2x3x4x5, 2×3×4x5") == (Shape(2, 3, 4, 5),)
    assert parse_shapes("standard,step") == STANDARD_SHAPES
    assert parse_shapes("2x3x4x5")[0].label == "2x3x4x5"
    assert parse_shapes("packed")[0].label.endswith("packed")


@pytest.mark.parametrize("text", ["", "2x3", "1x2x3x4x5", "0x3x4", "ax2x3", "big", "2x3x4,,2x3x5", "-1x2x3"])
def test_wrong_shapes_say_what_was_expected(text):
    with pytest.raises(ValueError, match="expected"):
        parse_shapes(text)


def test_wrong_names_say_what_was_expected():
    assert parse_names("gru,lstm,gru", CELLS) == ("gru", "lstm")
    with pytest.raises(ValueError, match=r"lstm, gru, rnn; found 'lsmt'"):
        parse_names("lsmt", CELLS)


def test_packed_lengths_fall_and_reach_both_ends():
    lengths = Shape(16, 100, 8, 8, packed=True).lengths()
    assert lengths[0] == 100
    assert lengths[-1] == 25
    assert lengths == sorted(lengths, reverse=True)
    assert Shape(1, 7, 8, 8, packed=True).lengths() == [7]
    assert min(Shape(9, 1, 8, 8, packed=True).lengths()) == 1


# Statistics


def test_median_of_ratios_of_neighbours():
    # A machine that halves its pace in the middle changes every time, and no ratio.
    speedup = ratios.compare_rounds([2.0, 2.2, 4.0, 4.4, 4.0], [1.0, 1.0, 2.0, 2.0, 1.0])
    assert speedup.median == pytest.approx(2.2)
    assert speedup.interval == speedup.range == (2.0, 4.0)  # five rounds: no shorter interval has the confidence
    assert not speedup.uncertain


def test_one_lucky_round_is_no_speedup():
    assert ratios.compare_rounds([9.0, 9.0], [1.0, 1.0]) is None
    lucky = ratios.compare_rounds([1.0, 1.02, 5.0], [1.0, 1.0, 1.0])
    assert lucky.uncertain
    assert report.format_speedup(lucky).startswith("~")


def test_interval_leaves_out_what_the_confidence_allows():
    for count, cut in ((1, 0), (5, 0), (8, 0), (9, 1), (11, 1), (12, 2), (20, 5)):
        assert ratios.median_interval(range(count)) == (cut, count - 1 - cut)


def test_interval_has_its_confidence():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        low, high = ratios.median_interval(generator.exponential(size=9).tolist())
        hits += low <= math.log(2) <= high
    assert hits / 2000 > 0.945


def test_geometric_mean():
    assert ratios.geometric_mean([0.5, 2.0]) == pytest.approx(1.0)
    assert ratios.geometric_mean([]) is None
    assert ratios.median([3.0, 1.0, 2.0, 10.0]) == 2.5


def test_blocks_are_long_enough_for_the_fast_and_short_enough_for_the_slow():
    assert ratios.calls_per_block([0.001, 0.002], 0.03) == 30
    assert ratios.calls_per_block([0.0001, 0.01], 0.03) == 24
    assert ratios.calls_per_block([0.2, 0.5], 0.03) == 1


# Parity


def tensors(case, dtype=None):
    return ENGINES["torch"].build(case, 0, dtype).tensors()


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [Shape(3, 7, 5, 6, layers=2, bidirectional=True), Shape(3, 7, 5, 6, packed=True)])
def test_parity_passes_the_same_and_catches_a_wrong_element(shape, dtype):
    for cell in CELLS:
        case = Case(cell, shape, dtype)
        ours, theirs = tensors(case), tensors(case, "float32" if dtype == "float64" else None)
        exact = tensors(case, "float64")
        verdict = parity.check_parity(ours, theirs, exact, dtype)
        assert verdict.ok, verdict.worst.describe()
        assert verdict.tensors == len(exact)
        wrong = dict(ours)
        wrong["grad weight_hh_l0"] = ours["grad weight_hh_l0"].copy()
        wrong["grad weight_hh_l0"][2, 3] += 0.2 * np.abs(ours["grad weight_hh_l0"]).max()
        verdict = parity.check_parity(wrong, theirs, exact, dtype)
        assert verdict.failed == ("grad weight_hh_l0",)
        assert "grad weight_hh_l0: error" in verdict.worst.describe()


def test_parity_names_every_kind_of_tensor():
    names = set(tensors(Case("lstm", Shape(2, 3, 4, 5))))
    outputs = {f"{kind}{name}" for kind in ("", "inference ") for name in ("output", "h_n", "c_n")}
    gradients = {f"grad {name}" for name in ("input", "h_0", "c_0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0")}
    assert outputs | gradients | {"parameter weight_ih_l0", "grad bias_hh_l0"} <= names


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda found: found.pop("grad input"), "missing"),
        (lambda found: found.update(output=found["output"][1:]), "shape"),
        (lambda found: found["h_n"].fill(math.nan), "error inf"),
        (lambda found: found.update({"parameter bias_ih_l0": found["parameter bias_ih_l0"] + 1e-9}), "parameter"),
    ],
)
def test_parity_refuses(change, problem):
    case = Case("gru", Shape(2, 3, 4, 4))
    theirs, exact = tensors(case), tensors(case, "float64")
    ours = {name: value.copy() for name, value in theirs.items()}
    ours["parameter bias_ih_l0"] = ours["parameter bias_ih_l0"].astype(np.float64)
    change(ours)
    verdict = parity.check_parity(ours, theirs, exact, "float32")
    assert not verdict.ok
    assert problem in verdict.worst.describe()


# Language model


def test_streams_are_consecutive_and_start_again():
    streams = language_model.Streams(bytes(range(97, 123)) * 4, batch=2, chunk=10)
    assert streams.vocabulary == 26
    first, follows, anew = streams.next()
    assert anew
    assert first[:, 0].tolist() == list(range(10))
    assert torch.equal(first[1:], follows[:-1])
    second, _, anew = streams.next()
    assert not anew
    assert second[0].tolist() == follows[-1].tolist()
    for _ in range(3):
        streams.next()
    assert streams.next()[2]  # 52 characters a stream hold five chunks with their targets


def test_text_is_the_standard_library_and_repeats():
    text = language_model.read_text(None)
    assert text == language_model.read_text(None)
    assert 10**6 < len(text) <= language_model.MAX_BYTES
    assert b"import" in text
    described = language_model.describe_text(text)
    assert described["vocabulary"] == len(set(text))
    assert len(described["sha256"]) == 64


def test_curves_may_differ_by_rounding_only():
    curve = [4.0 - 0.01 * step for step in range(200)]
    assert language_model.compare_curves(curve, [loss * (1 + 1e-6) for loss in curve]).ok
    assert not language_model.compare_curves(curve, [loss * 1.001 for loss in curve]).ok
    assert not language_model.compare_curves(curve, [*curve[:-20], *[loss + 0.1 for loss in curve[-20:]]]).ok
    assert not language_model.compare_curves(curve, [math.nan, *curve[1:]]).ok


def test_warm_up_leaves_no_trace():
    settings = language_model.ModelSettings(batch=2, chunk=5, embedding=4, hidden=6)
    text = bytes(range(40, 80)) * 2
    cold, warm = (language_model.Training(find_engine("torch"), text, settings, 0) for _ in range(2))
    warm.warm_up()
    assert cold.run(3)[1] == warm.run(3)[1]


# Report


def made_up_results(model=True, rounds=9):
    """Two rows that are twice and three times as fast, one that failed; a language model."""
    cases = make_cases(["lstm", "gru"], parse_shapes("1x1x64,16x100x80x256"), ["float32"])
    settings = Settings(tuple(cases), rounds=rounds)
    found = Results(settings, environment.collect(), complete=True)
    check = parity.TensorCheck("output", 1e-7, 1e-7, 1e-6)
    for number, case in enumerate(cases[:3]):
        seconds = {
            name: dict(zip(SIDES, ([0.002 * (number + 1)] * rounds, [0.001] * rounds), strict=True)) for name in METRICS
        }
        row = CaseResult(case, parity=parity.Parity(check, 9, ()), seconds=seconds)
        row.memory = {"baseline": 3 << 20, "candidate": None}
        found.cases.append(row)
    bad = dataclasses.replace(check, name="grad h_0", error=0.5)
    found.cases[2].status, found.cases[2].message = "failed", bad.describe()
    found.cases[2].parity = parity.Parity(bad, 9, ("grad h_0",))
    if model:
        found.model = new_model_result(language_model.ModelSettings(steps=8, block=2), b"some text")
        for side, seconds in zip(SIDES, (0.2, 0.1), strict=True):
            found.model.losses[side] = [3.0 - 0.1 * step for step in range(8)]
            found.model.seconds[side] = [seconds] * 4
        found.model.block_steps = [2] * 4
        found.model.comparison = language_model.compare_curves(*found.model.losses.values())
    return found


def test_report_shows_speeds_and_hides_those_of_failed_rows():
    found = made_up_results()
    text = report.to_markdown(found)
    rows = [line for line in text.splitlines() if line.startswith("| 1")]
    assert "2.00× (2.00–2.00)" in rows[0]
    assert "4.00× (4.00–4.00)" in rows[1]
    assert "FAILED parity" in rows[2]
    assert "×" not in rows[2].replace("1×1×64", "")
    assert "grad h_0: error 0.5" in text
    assert "| all float32 | 2/3 | 2.83× (2.00–4.00)" in text
    assert "speed-up 2.00×" in text
    assert found.environment["torch"] in text
    assert "n/a" in rows[0]


def test_json_keeps_no_speed_of_failed_rows():
    document = made_up_results().as_dict()
    json.dumps(document)
    good, _, bad = document["cases"]
    assert good["speedup"]["total"]["median"] == pytest.approx(2.0)
    assert bad["seconds"] == bad["speedup"] == {}
    assert bad["parity"]["failed"] == ["grad h_0"]
    assert len(document["problems"]) == 1
    assert document["environment"]["cpu"]["model"]


def test_failed_language_model_shows_no_speed():
    found = made_up_results()
    found.model.status, found.model.message = "failed", "loss curves differ"
    assert "characters per second" not in report.to_markdown(found).lower()
    assert found.as_dict()["language_model"]["speedup"] is None
    assert any("language model: FAILED parity" in problem for problem in found.problems)


def test_too_few_rounds_show_times_but_no_speedup():
    text = report.to_markdown(made_up_results(rounds=2, model=False))
    assert "2.00 ms" in text
    assert "2.00×" not in text
    assert "too few" in text


def test_figures_have_three_digits():
    seconds = (8.4e-5, 1.381e-3, 0.9996e-3, 0.0, 2.5)
    assert [report.format_seconds(value) for value in seconds] == ["84.0 µs", "1.38 ms", "1.00 ms", "0 µs", "2.50 s"]
    assert [report.format_memory(size) for size in (None, 1000, 2 << 20, 99 << 20)] == ["n/a", "<1", "2.0", "99"]


def test_plot_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from fastrnn.bench import plot

    paths = [tmp_path / "bench.svg", tmp_path / "bench.png"]
    plot.save(made_up_results(), paths)
    assert "FAILED parity" in paths[0].read_text()
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_environment_names_no_place():
    found = json.dumps(environment.collect())
    assert str(ROOT) not in found
    assert sys.executable not in found


# Command line


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
    assert len(lines) == 26
    assert lines[0] == "gru 1x1x64"
    assert lines[-1].endswith("bfloat16")


# Whole runs


def test_whole_run(tmp_path, capsys):
    extra = tmp_path / "more" / "copy.json"
    options = ["--engine", "torch", "--cells", "lstm", "--shapes", "2x3x4", "--lm-steps", 6, "--json", extra]
    status, document, text = run(tmp_path, *options)
    assert status == 0, document["problems"]
    assert document["complete"]
    assert [row["case"]["name"] for row in document["cases"]] == ["lstm 2x3x4"]
    for row in document["cases"]:
        assert all(len(row["seconds"][metric][side]) == 3 for metric in METRICS for side in SIDES)
        assert set(row["speedup"]) == set(METRICS)
        if memory.available():
            assert all(0 <= size < 50 << 20 for size in row["peak_memory_bytes"].values())
    model = document["language_model"]
    assert model["losses"]["baseline"] == model["losses"]["candidate"]
    assert len(model["losses"]["baseline"]) == 6
    assert json.loads(extra.read_text()) == document
    assert "2×3×4" in text
    assert "2×3×4" in capsys.readouterr().out


def test_broken_engine_fails_and_has_no_speed(tmp_path, engine, capsys):
    name = engine("broken_engine", BROKEN)
    options = ["--engine", name, "--cells", "rnn,gru", "--shapes", "2x3x4", "--lm-steps", 4]
    status, document, text = run(tmp_path, *options)
    assert status == 1
    bad, good = document["cases"]
    assert bad["status"] == "failed"
    assert bad["parity"]["failed"] == ["grad input"]
    assert bad["seconds"] == bad["speedup"] == {}
    assert good["status"] == "ok"
    assert document["language_model"]["status"] == "failed"
    assert document["language_model"]["speedup"] is None
    assert "rnn 2x3x4: FAILED parity, grad input: error 0.001" in text
    assert "FAILED parity" in capsys.readouterr().out


def test_dead_worker_is_reported_and_the_run_goes_on(tmp_path, engine):
    name = engine("dying_engine", DYING)
    status, document, _ = run(tmp_path, "--engine", name, "--cells", "rnn,gru", "--shapes", "2x3x4", "--no-lm")
    assert status == 1
    bad, good = document["cases"]
    assert bad["status"] == "error"
    assert "exit code 3" in bad["message"]
    assert "a last word" in bad["message"]
    assert document["problems"] == [f"rnn 2x3x4: ERROR, {bad['message']}"]
    assert good["status"] == "ok"


def test_interrupt_writes_what_there_is(tmp_path):
    out = tmp_path / "out"
    options = ["--engine", "torch", "--cells", "gru", "--shapes", "2x3x4", "--quick", "--threads", "1"]
    options += ["--lm-steps", "100000", "--out", str(out)]
    program = (
        "import argparse, sys; from fastrnn.bench import cli; parser = argparse.ArgumentParser();"
        "cli.add_arguments(parser); sys.exit(cli.run(parser.parse_args()))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *sys.path]))},
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("[1/2]"):
                break
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.stderr.close()
    document = json.loads((out / "bench.json").read_text())
    assert not document["complete"]
    assert [row["status"] for row in document["cases"]] == ["ok"]
    assert "interrupted" in (out / "bench.md").read_text()


# Workers


def test_worker_answers_errors_and_lives_on(engine):
    worker = Worker(engine("raising_engine", RAISING), threads=1)
    try:
        with pytest.raises(WorkerError, match="NotImplementedError: no such cell"):
            worker.call("prepare", case=Case("rnn", Shape(1, 1, 2, 2)), seed=0)
        assert min(worker.call("prepare", case=Case("gru", Shape(1, 1, 2, 2)), seed=0)) > 0
        worker.timeout = 0.0
        with pytest.raises(WorkerDiedError, match="no answer"):
            worker.call("train_block", calls=10**9)
        assert not worker.alive
    finally:
        worker.kill()


def test_both_engines_of_the_project_can_be_found():
    assert find_engine("fastrnn") == ModuleEngine("fastrnn", "fastrnn", "fastrnn")
    assert find_engine("torch").label == "torch.nn"
    with pytest.raises(ValueError, match="expected one of"):
        find_engine("torch.no_such_part")
