"""Content of the benchmark's report."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from bench_cases import made_up_results

from fastrnn.apps.bench import environment, report

ROOT = Path(__file__).resolve().parents[3]


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


def test_report_shows_the_share_of_the_limit():
    found = made_up_results()
    lstm = found.rows[0]  # 1×1×64: R and W are read once, 128 KiB at 10 GB/s, in 1 ms; twice in training
    assert lstm.limit_share("inference") == pytest.approx(131072 / 1e10 / 0.001)
    text = report.to_markdown(found)
    row = next(line for line in text.splitlines() if line.startswith("| 1×1×64"))
    assert "| 1.3 % |" in row
    assert "| 2.6 % |" in row
    assert "products float32 10,000 GFLOP/s" in text
    assert found.as_dict()["rows"][0]["limit_share"]["inference"] == lstm.limit_share("inference")
    assert found.as_dict()["peaks"]["flops"] == {"float32": 1e13}


def test_report_has_a_table_of_single_steps():
    text = report.to_markdown(made_up_results())
    steps = text.split("## Single steps")[1]
    assert "| gru 1×1×64 | 2.00 ms | 1.00 ms | 2.00× (2.00–2.00) |" in steps
    assert "| gru 1×1×128 | 4.00 ms | 1.00 ms | 4.00× (4.00–4.00) |" in steps


def test_report_compares_with_each_peer_and_the_best():
    found = made_up_results(peers=["onnxruntime", "jax"])
    _, training, inference, means = report.to_markdown(found).split("## Other libraries: ")
    assert (
        "| lstm 1×1×64 | 2.00 ms | 1.00 ms | – | 4.00 ms | 2.00× (2.00–2.00) | 4.00× (JAX scan) | 2.6 % |" in training
    )
    assert "| 500 µs | 4.00 ms | 2.00× (2.00–2.00) | 0.50× (onnxruntime) |" in inference
    assert "| lstm float32 inference | 2 | 2.83× (2.00–4.00) | 0.50× (0.50–0.50) | 4.00× (4.00–4.00) |" in means
    assert "0.50×, lstm 1×1×64" in means
    best = {(one["cell"], one["metric"]): one["mean"] for one in found.summary() if one["against"] == "best peer"}
    wanted = {"total": pytest.approx(4.0), "inference": pytest.approx(0.5)}
    assert best == {(cell, metric): mean for cell in ("lstm", "all") for metric, mean in wanted.items()}


def test_a_peer_that_fails_shows_no_time_and_is_named():
    found = made_up_results(peers=["onnxruntime", "jax"])
    for row in found.rows[:2]:
        row.peers["jax"].fail("failed", "inference output: error 0.1")
        for times in row.seconds.values():
            times.pop("jax", None)
    text = report.to_markdown(found)
    assert "JAX scan FAILED parity: inference output: error 0.1 (lstm 1x1x64 …)" in text
    assert "| 500 µs | FAILED parity |" in text
    assert not [one for one in found.summary() if one["against"] == "jax"]
    assert found.as_dict()["rows"][0]["peers"]["jax"]["status"] == "failed"
    assert not any("JAX" in problem for problem in found.problems)  # not ours, so not the run's


def test_report_says_with_which_precision_it_ran():
    found = made_up_results()
    assert "set_float32_matmul_precision" not in report.to_markdown(found)
    found.settings = dataclasses.replace(found.settings, precision="high")
    said = "fastrnn ran with torch.set_float32_matmul_precision('high'), torch.nn with 'highest'"
    assert said in report.to_markdown(found)
    assert found.as_dict()["settings"]["precision"] == "high"


def test_json_keeps_no_speed_of_failed_rows():
    document = made_up_results().as_dict()
    json.dumps(document)
    good, _, bad, *_ = document["rows"]
    assert good["speedup"]["total"]["median"] == pytest.approx(2.0)
    assert bad["seconds"] == bad["speedup"] == {}
    assert bad["parity"]["failed"] == ["grad h_0"]
    assert len(document["problems"]) == 1
    assert document["environment"]["cpu"]["model"]


def test_failed_language_model_shows_no_speed():
    found = made_up_results()
    found.model.fail("failed", "loss curves differ")
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


@pytest.mark.parametrize("peers", [(), ("onnxruntime", "jax")])
def test_plot_is_drawn(tmp_path, peers):
    pytest.importorskip("matplotlib")
    from fastrnn.apps.bench import plot

    paths = [tmp_path / "bench.svg", tmp_path / "bench.png"]
    plot.save(made_up_results(peers=peers), paths)
    assert "FAILED parity" in paths[0].read_text()
    assert ("JAX scan" in paths[0].read_text()) == bool(peers)
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_environment_names_no_place():
    found = json.dumps(environment.collect())
    assert str(ROOT) not in found
    assert sys.executable not in found
