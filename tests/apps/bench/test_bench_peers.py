"""Other libraries as engines: that they compute what torch.nn computes, with the threads they are given."""

from __future__ import annotations

import importlib.util

import pytest
from bench_cases import parse, run, tensors

from fastrnn.apps.bench import parity
from fastrnn.apps.bench.cases import CELLS, Case, Shape
from fastrnn.apps.bench.engines import ENGINES, PEERS, find_engine
from fastrnn.apps.bench.process import Worker, WorkerError

SHAPES = (
    Shape(3, 7, 5, 6),
    Shape(1, 1, 9, 9),
    Shape(2, 5, 4, 6, layers=3),
    Shape(3, 6, 5, 7, layers=2, bidirectional=True),
    Shape(4, 9, 5, 6, packed=True),
    Shape(4, 9, 5, 6, bidirectional=True, packed=True),
)
INSTALLED = [name for name in PEERS if ENGINES[name].installed()]


@pytest.fixture(scope="module", params=list(PEERS))
def peer(request):
    """A peer's name and its process, with one thread."""
    if request.param not in INSTALLED:
        pytest.skip(f"{request.param} is not installed")
    worker = Worker(request.param, threads=1)
    yield request.param, worker
    worker.kill()


@pytest.mark.parametrize("cell", CELLS)
def test_peers_compute_the_same(peer, cell):
    name, worker = peer
    for shape in SHAPES:
        for case in (Case(cell, shape), Case(cell, shape, chunks=1)):
            metrics = find_engine(name).metrics(case)
            assert set(metrics) <= set(case.metrics)
            if not metrics:
                assert name == "jax"
                assert shape.packed
                continue
            found, _ = worker.call("tensors", case=case, seed=3, dtype=None)
            theirs, exact = (find_engine("torch").build(case, 3, dtype).tensors() for dtype in (None, "float64"))
            verdict = parity.check_peer(found, theirs, exact)
            assert verdict.ok, f"{case.name}: {verdict.worst.describe()}"
            assert ("stream output" in found) == bool(case.chunks)
            assert ("grad weight_hh_l0" in found) == ("total" in metrics)


def test_peers_are_timed_in_what_they_can_do(peer):
    name, worker = peer
    case = Case("lstm", Shape(2, 3, 4, 4))
    estimates = worker.call("prepare", case=case, seed=0)
    assert set(estimates) == ({"train", "inference"} if name == "jax" else {"inference"})
    for kind in estimates:
        times, effort = worker.call("block", kind=kind, calls=2)
        assert effort.wall > 0
        assert set(times) == {"total" if kind == "train" else kind}
        assert min(times.values()) > 0
    worker.call("release")
    assert worker.wait_until_started()["threads"] == 1
    assert worker.wait_until_started()["version"]
    with pytest.raises(WorkerError, match="language model"):
        worker.call("start_model", text=b"", settings=None, seed=0)


def test_wrong_weights_are_noticed(peer):
    name, worker = peer
    case = Case("gru", Shape(3, 7, 5, 6))
    found, _ = worker.call("tensors", case=case, seed=4, dtype=None)
    assert not parity.check_peer(found, tensors(case), tensors(case, "float64")).ok, name


def test_peers_have_float32_only():
    for engine in map(ENGINES.get, PEERS):
        assert engine.metrics(Case("lstm", Shape(1, 2, 3, 3), "bfloat16")) == ()
        assert engine.metrics(Case("lstm", Shape(1, 2, 3, 3), "float64")) == ()
    assert ENGINES["jax"].metrics(Case("rnn", Shape(1, 2, 3, 3))) == ("total", "inference")
    assert ENGINES["onnxruntime"].metrics(Case("rnn", Shape(1, 2, 3, 3))) == ("inference",)


def test_peers_that_are_not_installed_are_named(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for options in (["--peers"], ["--peers", "jax,openvino"]):
        with pytest.raises(SystemExit):
            parse(*options)
        said = capsys.readouterr().err
        assert "argument --peers" in said
        assert "make bench-peers" in said
    assert parse().peers == ()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--peers", "tensorflow"], "expected a comma-separated list of onnxruntime"),
        (["--engine", "jax"], "use --peers"),
    ],
)
def test_wrong_peers_are_refused(options, said, capsys):
    with pytest.raises(SystemExit):
        parse(*options)
    assert said in capsys.readouterr().err


@pytest.mark.skipif(not INSTALLED, reason="no peer is installed")
def test_run_with_peers(tmp_path):
    status, document, text = run(
        tmp_path, "--peers", "--cells", "rnn", "--shapes", "2x3x4,packed", "--repeats", 3, "--no-lm"
    )
    assert status == (0 if document["trusted"] else 3), document["problems"]
    assert document["settings"]["peers"] == INSTALLED
    square, packed, *_ = document["rows"]
    assert set(square["peers"]) == set(INSTALLED)
    assert "jax" not in packed["peers"]
    for name, peer in square["peers"].items():
        assert peer["status"] == "ok", peer["message"]
        assert peer["parity"]["ok"]
        assert len(square["seconds"]["inference"][name]) == 3
        assert set(peer["speedup"]) == ({"total", "inference"} if name == "jax" else {"inference"})
        assert document["environment"]["engines"][name]["threads"] == 1
    if document["trusted"]:
        assert {row["against"] for row in document["summary"]} == {"baseline", *INSTALLED, "best peer"}
    assert "## Other libraries" in text
    assert "against the best peer" in text
