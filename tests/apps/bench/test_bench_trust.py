"""A benchmark that was disturbed says so everywhere, gives no summary, and ends with a status of its own."""

from __future__ import annotations

import io
import json
import re
import time

import pytest
from bench_cases import made_up_results, parse
from rich.console import Console

from fastrnn.apps.bench import cli, effort, machine, plot, report, runner, trust
from fastrnn.apps.bench.effort import Effort, measured
from fastrnn.apps.bench.results import SIDES


def crowded(found):
    """Two rows ran with other processes: a third of the time was theirs."""
    for row in found.rows[:2]:
        row.lost = {"train": {"baseline": [0.01] * 9, "candidate": [0.33] * 9}}


def spread(found):
    """The rounds of a row are far apart: 2.5 to 3450 times as fast."""
    found.rows[0].seconds["total"]["baseline"] = [0.0025, 0.01, 0.1, 1, 2, 3, 3.2, 3.4, 3.45]


def impossible(found):
    """A peak that was measured while something else ran: 1591 % of the limit."""
    found.rows[0].bounds["inference"] = 15.91 * found.rows[0].median("inference", "candidate")


def model_spread(found):
    found.model.seconds["baseline"] = [0.1, 0.2, 0.9, 3.0]


def model_crowded(found):
    found.model.lost = [0.4] * 4


DISTURBANCES = {
    crowded: "other processes took 33 % of its time",
    spread: "rounds of total differ by",
    impossible: "1591 % of the machine's limit",
    model_spread: "language model: its blocks differ",
    model_crowded: "language model: other processes took 40 %",
}


def shown(found):
    """Return the text written to the terminal."""
    console = Console(file=io.StringIO(), width=400)
    report.show(found, console)
    return console.file.getvalue()


@pytest.mark.parametrize("disturb", DISTURBANCES, ids=lambda f: f.__name__)
def test_every_output_says_so(disturb):
    found, reason = made_up_results(), DISTURBANCES[disturb]
    disturb(found)
    document, text = found.as_dict(), report.to_markdown(found)
    assert document["trusted"] is False
    assert any(reason in line for line in document["doubts"])
    assert document["summary"] == []
    for output in (text, shown(found)):
        assert report.UNTRUSTED in output
        assert reason in output
        assert "Summary" not in output
    assert text.splitlines()[2].startswith(f"**{report.UNTRUSTED}: ")  # at once below the title
    assert json.loads(found.to_json())["trusted"] is False


def test_a_quiet_run_is_trusted():
    found = made_up_results()
    for row in found.rows:
        row.lost = {"train": {side: [0.02] * 8 + [0.9] for side in SIDES}}  # one disturbed round of nine is none
    found.model.lost = [0.01, 0.0, 0.3, 0.0]
    assert found.doubts == []
    assert found.as_dict()["trusted"] is True
    assert report.UNTRUSTED not in report.to_markdown(found) + shown(found)
    assert len(found.summary()) > 3


def test_rows_in_doubt_are_marked():
    found = made_up_results()
    spread(found)
    lines = [line for line in report.to_markdown(found).splitlines() if line.startswith("| 1")]
    assert "| ok (1.5) ? |" in lines[0]
    assert "| ok (1.5) |" in lines[1]
    document = found.as_dict()
    assert [bool(row["doubts"]) for row in document["rows"]] == [True, False, False, False, False]


@pytest.mark.skipif(not plot.available(), reason="no matplotlib")
def test_the_figure_says_so(tmp_path):
    for name, disturb in (("quiet", lambda found: None), ("spread", spread)):
        found = made_up_results()
        disturb(found)
        plot.save(found, [tmp_path / f"{name}.svg"])
    assert report.UNTRUSTED in (tmp_path / "spread.svg").read_text()
    assert report.UNTRUSTED not in (tmp_path / "quiet.svg").read_text()


@pytest.mark.skipif(not plot.available(), reason="no matplotlib")
def test_the_figure_can_be_read_on_a_phone(tmp_path):
    """400 points wide at most, so that a phone shows its letters as large as a page's; also with a long warning."""
    found = made_up_results(peers=["onnxruntime", "jax"])
    spread(found)
    crowded(found)
    plot.save(found, [tmp_path / "figure.svg"])
    text = (tmp_path / "figure.svg").read_text()
    assert float(re.search(r'<svg [^>]*?width="([\d.]+)pt"', text)[1]) < 400
    assert min(float(size) for size in re.findall(r"font(?:-size)?: (?:\w+ )?([\d.]+)px", text)) >= 7
    assert "1×1×64 ?" in text


@pytest.mark.parametrize(("disturb", "status"), [(lambda found: None, 0), (spread, 3)], ids=["quiet", "spread"])
def test_exit_status(tmp_path, monkeypatch, capsys, disturb, status):
    def run(results, text):
        made_up = made_up_results()
        disturb(made_up)
        results.rows = [row for row in made_up.rows if row.ok]

    monkeypatch.setattr(runner, "run", run)
    assert cli.run(parse("--out", tmp_path, "--quick", "--no-lm")) == status
    assert (report.UNTRUSTED in capsys.readouterr().out) == bool(status)


def test_precision_high_may_exceed_the_limit_of_ordinary_products():
    found = made_up_results()
    row = found.rows[0]
    row.bounds = {"total": 2 * row.median("total", "candidate")}
    assert trust.doubts_of_row(row)
    assert not trust.doubts_of_row(row, "high")


def test_calls_alone_that_were_disturbed_in_the_busy_mode():
    found = made_up_results()
    row = found.rows[0]
    row.samples = {"train": {"baseline": {"quiet": {"calls": 9, "median": 0.001, "mean": 0.004, "highest": 0.1}}}}
    assert trust.doubts_of_row(row) == ["train of baseline alone took 4.0× its median on average"]


def test_ratio_of_the_language_model_is_the_quotient_of_the_figures_beside_it():
    found = made_up_results()
    found.model.block_steps = [2, 2, 2, 1]
    found.model.seconds = {"baseline": [0.21, 0.29, 0.22, 0.13], "candidate": [0.11, 0.10, 0.19, 0.05]}
    paces = [found.model.characters_per_second(side) for side in SIDES]
    speedup = found.model.speedup()
    assert speedup.median == pytest.approx(paces[1] / paces[0])
    assert speedup.interval[0] <= speedup.median <= speedup.interval[1]
    (line,) = [line for line in report.to_markdown(found).splitlines() if line.startswith("Characters per second")]
    assert f"torch.nn {paces[0]:,.0f}, fastrnn {paces[1]:,.0f}; speed-up {paces[1] / paces[0]:.2f}×" in line


def test_disturbed_rounds_are_timed_again():
    """The rounds that are kept are those of the first attempt without doubts, or of the last one."""

    class Alternating(runner.Runner):
        blocks = 0

        def _call(self, row, side, command, **arguments):
            self.blocks += 1
            wait = 0.5 if self.blocks <= 2 * 3 else 0.0  # the first attempt: three rounds of two sides
            return {"total": 0.002, "forward": 0.001, "backward": 0.001}, Effort(1.0, 1.0, wait)

    found = made_up_results()
    row, settings = found.rows[0], found.settings
    timing = Alternating(runner.replace(settings, rounds=3, quick=True))
    timing._time_rounds(row, {"train": dict.fromkeys(SIDES, 0.002)})
    assert timing.blocks == 12
    assert row.lost == {"train": {side: [0.0] * 3 for side in SIDES}}
    assert row.seconds["total"] == {side: [0.002] * 3 for side in SIDES}
    assert row.cpu_speedup("total").median == 1.0


def test_time_that_others_took():
    assert Effort(wall=2.0, cpu=1.5, waited=0.0).lost(threads=2) == 0.25
    assert Effort(wall=2.0, cpu=2.0, waited=2.0).lost(threads=2) == 0.5
    assert Effort(wall=1.0, cpu=1.0, waited=5.0).lost(threads=2) == 1.0
    assert Effort(wall=1.0, cpu=1.001, waited=0.0).lost(threads=1) == 0.0
    _, asleep = measured(lambda: time.sleep(0.05))
    assert asleep.wall >= 0.05
    assert asleep.lost(1) > 0.8


def test_without_schedstat(monkeypatch, tmp_path):
    monkeypatch.setattr(effort, "_TASKS", tmp_path / "missing")
    _, found = measured(lambda: None)
    assert found.waited == 0.0


def test_the_higher_of_two_measurements_of_the_peaks():
    first, second = machine.Peaks(2, {"float32": 1.0}, {8: 5.0}), machine.Peaks(2, {"float32": 3.0}, {8: 4.0})
    assert first.higher(second) == machine.Peaks(2, {"float32": 3.0}, {8: 5.0})
