"""benchmarks/gpu_tune.py without a GPU: what it measures, how it keeps that, and the fit, with made-up measurements."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from emulated import Machine, library
from emulated_problems import Problem, Way, run

import fastrnn
from fastrnn.custom import build_cuda

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if not (BENCHMARKS / "gpu_tune.py").is_file():
    pytest.skip("needs a checkout", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))
import gpu_fit  # noqa: E402
import gpu_meter  # noqa: E402
import gpu_plan  # noqa: E402
import gpu_points  # noqa: E402
import gpu_tune  # noqa: E402

#: As a machine might be: other numbers than those of plan.cpp.
TRUTH = {
    "kGridBarrier": 0.9, "kClusterBarrier": 0.62, "kLaunches": 4.2, "kAlone": 0.11, "kTensorRate": 1.7e6,
    "kPlainRate": 1.1e5, "kSharedRate": 1.6e5, "kOperandRate": 2.9e4, "kUnitRate": 3.1e3,
}  # fmt: skip


def made_up(point: gpu_points.Point, c=TRUTH, m: gpu_plan.Machine = gpu_plan.H100) -> float:
    if point.driver == gpu_points.LIBRARY:
        return 3.0
    t = point.tiling()
    if t is None:
        return gpu_plan.stepwise_time(point.problem, c)
    part = gpu_plan.parts(t, gpu_plan.FORMATS[point.fmt], c)
    spared = {"exchange": part.operand, "product": part.product, "unit": part.units, "wait": part.wait}
    return part.total * gpu_fit.waves(t, m) - spared.get(point.without, 0.0)


def measured(noise: float = 0.0, m: gpu_plan.Machine = gpu_plan.H100) -> list[gpu_fit.Measured]:
    r = random.Random(0)
    chosen = [p for p in gpu_points.points(m) if not p.without and p.driver != gpu_points.LIBRARY]
    return [
        gpu_fit.Measured(p.problem, p.tiling(), made_up(p, m=m) * (1 + noise * r.uniform(-1, 1))) for p in chosen
    ]  # fmt: skip


def test_points_are_each_once_and_the_aims_come_first():
    for machine in (gpu_plan.H100, gpu_plan.A100):
        found = list(gpu_points.points(machine))
        assert len(set(found)) == len(found)
        first = found[0]
        assert (first.cell, first.fmt, first.B, first.H, first.backward) == ("lstm", "bfloat16", 16, 512, False)
        assert {p.driver for p in found} >= {"grid", "stepwise", "cudnn"}
        assert ("cluster" in {p.driver for p in found}) == (machine is gpu_plan.H100)
        assert {p.without for p in found} == {"", *gpu_points.STAGES}
        for p in found:  # what is asked for is what the plan then cuts
            t = p.tiling()
            assert t is None or (t.unit_slices, t.row_slices) == (p.unit_slices, p.row_slices)
            assert t is None or t.shared_bytes <= machine.shared_bytes


def test_fit_finds_the_constants_behind_exact_measurements():
    start = gpu_plan.constants()
    assert start != TRUTH
    found = gpu_fit.fit(measured(), gpu_plan.H100, start)
    assert set(found.fitted) == set(TRUTH)
    assert found.constants == pytest.approx(TRUTH, rel=1e-6)
    assert found.worst < 1e-9


def test_fit_of_noisy_measurements():
    found = gpu_fit.fit(measured(noise=0.05), gpu_plan.H100, gpu_plan.constants())
    assert found.worst < 0.12
    assert found.median < 0.04
    for name in ("kGridBarrier", "kClusterBarrier", "kOperandRate", "kPlainRate"):
        assert found.constants[name] == pytest.approx(TRUTH[name], rel=0.1), name


def test_fit_leaves_alone_what_was_not_measured():
    start = gpu_plan.constants()
    found = gpu_fit.fit(measured(m=gpu_plan.A100), gpu_plan.A100, start)
    for name in ("kClusterBarrier", "kAlone"):
        assert name not in found.fitted
        assert found.constants[name] == start[name]
    assert found.constants["kGridBarrier"] == pytest.approx(TRUTH["kGridBarrier"], rel=1e-6)
    assert f"kAlone = {start['kAlone']:.3g};  // not measured" in gpu_fit.lines(found)
    with pytest.raises(ValueError, match="persistent"):
        gpu_fit.fit([s for s in measured() if s.tiling is None], gpu_plan.H100, start)


def test_fit_gives_no_negative_constant():
    """A step that takes less than its barrier: what cannot be positive stays as it was."""
    start = gpu_plan.constants()
    few = [dataclasses.replace(s, microseconds=0.2) for s in measured() if s.tiling is not None][:6]
    found = gpu_fit.fit(few, gpu_plan.H100, start)
    assert all(value > 0 for value in found.constants.values())


def test_lines_are_read_back_from_plan_cpp():
    found = gpu_fit.fit(measured(), gpu_plan.H100, gpu_plan.constants())
    read = gpu_plan.constants(gpu_fit.lines(found))
    assert read == pytest.approx(found.constants, rel=5e-3)


def test_measuring_stops_in_time_and_goes_on(tmp_path):
    path, now, asked = tmp_path / "out" / "tune.json", [0.0], []

    def meter(point):
        now[0] += 1
        asked.append(point)
        if point.driver == "cluster" and point.unit_slices == 16:
            raise gpu_points.CannotMeasureError("no room")
        return made_up(point)

    def clock():
        return now[0]

    everything = list(gpu_points.points(gpu_plan.H100))
    log = gpu_tune.Log(path, "A GPU")
    assert gpu_tune.measure(gpu_plan.H100, meter, log, 10, clock) == len(everything) - 10
    assert asked == everything[:10]
    again = gpu_tune.Log(path, "A GPU")
    assert again.found == log.found
    assert gpu_tune.measure(gpu_plan.H100, meter, again, 1e9, clock) == 0
    assert asked == everything
    reasons = {one["reason"] for one in again.found.values() if one["microseconds"] is None}
    assert reasons == {"no room"}
    assert not any(s.tiling is not None and s.tiling.cluster and s.tiling.unit_slices == 16 for s in again.measured())
    with pytest.raises(ValueError, match="A GPU"):
        gpu_tune.Log(path, "Another GPU")
    path.write_text('{"gpu": "A GPU", "measured": [1]}')
    with pytest.raises(ValueError, match="something else"):
        gpu_tune.Log(path, "A GPU")


def test_a_whole_run(tmp_path, capsys):
    path = tmp_path / "tune.json"
    options = ["--out", str(path), "--seconds", "1000"]
    assert gpu_tune.main(options, lambda: ("A GPU", gpu_plan.H100, made_up)) == 0
    said = capsys.readouterr().out
    document = json.loads(path.read_text())
    assert document["left"] == 0
    assert document["constants"] == pytest.approx(TRUTH, rel=1e-6)
    assert "constexpr double kOperandRate = 2.9e+04;" in said
    assert "lstm bfloat16 B=16 H=512 forward, grid" in said
    assert f"without wait {TRUTH['kGridBarrier']:.2f} µs less" in said
    assert "| lstm bfloat16 forward | 512 | 16 |" in said
    assert gpu_tune.main(["--out", str(path), "--seconds", "0"], lambda: ("B", gpu_plan.H100, made_up)) == 1
    assert "name another file" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available() and fastrnn.cuda.is_available(), reason="there is a GPU to measure on")
def test_without_a_gpu_one_sentence(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu_tune.py"), "--out", str(tmp_path / "tune.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("gpu_tune: expected ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "tune.json").exists()


@pytest.mark.parametrize("stage", gpu_points.STAGES)
def test_kernels_without_a_stage(stage):
    """They come to their end by both drivers, and count what the stage would have done no more."""
    whole = gpu_meter.without("rnn_tanh", "wait")[1].replace("without_wait", "whole").replace("kLeaveOut", "kNothing")
    parts = tuple(gpu_meter.without("rnn_tanh", one) for one in gpu_points.STAGES)
    kernels = library(own=(("rnn_tanh_whole", whole), *parts))
    for driver in ("grid", "cluster"):
        before, after = (run_alone(kernels, f"rnn_tanh_{name}", driver) for name in ("whole", f"without_{stage}"))
        changed = {key for key in before if before[key] != after[key]}
        assert (
            changed
            == {
                "exchange": {"fresh_bytes"} if driver == "grid" else {"pushed_bytes"},
                "product": {"fresh_bytes", "products"} if driver == "grid" else {"products"},
                "unit": set(),
                "wait": {"announcements"} if driver == "grid" else {"cluster_barriers", "block_barriers"},
            }[stage]
        )


def run_alone(kernels, cell: str, driver: str) -> dict[str, int]:
    """What is counted of forward and backward of such a cell; what it computes is not looked at."""
    p = Problem("rnn_tanh", 3, 9, 40, "bfloat16")
    p.cell = cell
    kernels.counted()
    run(kernels, p, Way(driver, (4, 2), machine=Machine(8)))
    return kernels.counted()


def test_a_cell_without_a_stage_is_a_source_for_nvcc():
    name, header = gpu_meter.without("lstm", "product")
    files = build_cuda.sources(name, header, build_cuda.FORMATS[torch.bfloat16])
    assert "struct lstm_without_product : lstm" in files["cell.h"]
    assert "FASTRNN_CELL_NAME lstm_without_product" in files["cell.cu"]
    assert (build_cuda.build.headers() / "cells" / "lstm.h").is_file()


class Clockless:
    """fastrnn._cuda as the meter sees it: remembers what was asked for."""

    def __init__(self, possible=True, slices=(8, 2)):
        self.possible, self.slices, self.asked = possible, slices, []

    def set_driver(self, name):
        self.asked.append(name)

    def set_slices(self, units, rows):
        self.asked.append((units, rows))

    def explain(self, *_):
        units, rows = self.slices
        return {"possible": self.possible, "reason": "no room", "unit_slices": units, "row_slices": rows}


@pytest.mark.parametrize(("module", "words"), [(Clockless(False), "no room"), (Clockless(slices=(4, 2)), "4 and 2")])
def test_meter_says_why_not_and_leaves_no_setting_behind(monkeypatch, module, words):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    meter = gpu_meter.Gpu(module)
    with pytest.raises(gpu_points.CannotMeasureError, match=words):
        meter(gpu_points.Point("lstm", "bfloat16", 16, 512, False, "grid", 8, 2))
    assert module.asked == ["grid", (8, 2), "auto", (0, 0)]


def test_a_step_is_the_difference_of_two_lengths():
    short, long = gpu_points.LENGTHS
    assert gpu_meter.median_step(lambda steps: 100 + 1.5 * steps) == pytest.approx(1.5)
    with pytest.raises(gpu_points.CannotMeasureError, match="no longer"):
        gpu_meter.median_step(lambda steps: 100.0)
    assert short < long
