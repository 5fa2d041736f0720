"""Shared by the tests of the benchmark: options, whole runs, engines to inject, made-up results."""

from __future__ import annotations

import argparse
import dataclasses
import json

from fastrnn.apps.bench import cli, environment, language_model, machine, parity
from fastrnn.apps.bench.cases import METRICS, make_cases, make_step_cases, parse_shapes
from fastrnn.apps.bench.engines import ENGINES
from fastrnn.apps.bench.results import SIDES, ModelResult, Results, Row, Settings, Verdict

PEER_SECONDS = {"onnxruntime": 0.0005, "jax": 0.004}  # per call in a made-up row


def parse(*options):
    parser = argparse.ArgumentParser(prog="bench")
    cli.add_arguments(parser)
    return parser.parse_args([str(option) for option in options])


def run(tmp_path, *options, name="bench"):
    """Run the benchmark with few, tiny rounds; return exit status, JSON and Markdown."""
    out = tmp_path / "out"
    status = cli.run(parse("--out", out, "--quick", "--threads", 1, *options))
    return status, json.loads((out / f"{name}.json").read_text()), (out / f"{name}.md").read_text()


def tensors(case, dtype=None):
    """Return torch.nn's own tensors by name."""
    return ENGINES["torch"].build(case, 0, dtype).tensors()


def write_engine(folder, monkeypatch, name, source):
    """Write a module of that name and source where this process and its workers find it; return the name."""
    folder = folder / "engines"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    return name


def made_up_results(model=True, rounds=9, peers=()):
    """Make two rows with speed-ups of two and four, one that failed; two single steps; a language model."""
    cases = make_cases(["lstm", "gru"], parse_shapes("1x1x64,16x100x80x256"), ["float32"])[:3]
    steps = make_step_cases(["gru"])
    settings = Settings((*cases, *steps), rounds=rounds, peers=tuple(peers))
    found = Results(settings, environment.collect(), complete=True)
    read = {machine.recurrent_bytes(case): 1e10 if case.shape.hidden_size < 256 else 1e12 for case in settings.cases}
    found.peaks = machine.Peaks(2, {"float32": 1e13}, read)
    check = parity.TensorCheck("output", 1e-7, 1e-7, 1e-6)
    for given in (cases, steps):
        for number, case in enumerate(given):
            found.rows.append(_made_up_row(case, 0.002 * (number + 1), rounds, check, peers))
            found.rows[-1].bounds = machine.bounds(case, found.peaks)
    bad = dataclasses.replace(check, name="grad h_0", error=0.5)
    found.rows[2].judge(parity.Parity(bad, 9, ("grad h_0",)))
    found.rows[2].peers = {}
    if model:
        text = language_model.describe_text(b"some text")
        found.model = ModelResult(settings=language_model.ModelSettings(steps=8, block=2), text=text)
        for side, seconds in zip(SIDES, (0.2, 0.1), strict=True):
            found.model.losses[side] = [3.0 - 0.1 * step for step in range(8)]
            found.model.seconds[side] = [seconds] * 4
        found.model.block_steps = [2] * 4
        found.model.comparison = language_model.compare_curves(*found.model.losses.values())
    return found


def _made_up_row(case, slow, rounds, check, peers):
    seconds = {metric: {"baseline": [slow] * rounds, "candidate": [0.001] * rounds} for metric in case.metrics}
    row = Row(case=case, parity=parity.Parity(check, 9, (), 1.5), seconds=seconds)
    for name in peers:
        row.peers[name] = Verdict(parity=row.parity)
        for metric in ("inference", "stream", *(["total"] if name == "jax" else [])):
            if metric in seconds:
                seconds[metric][name] = [PEER_SECONDS[name]] * rounds
    if set(METRICS) <= set(case.metrics):
        row.memory = {"baseline": 3 << 20, "candidate": None}
    return row
