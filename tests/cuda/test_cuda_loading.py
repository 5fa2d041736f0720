"""The parts of the GPU support that need no GPU: loading, overriding, explaining, warnings and errors."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from dropin_cases import B, H, I, T, same
from torch._subclasses.fake_tensor import FakeTensorMode

import fastrnn
from fastrnn import _gpu, _ops, _paths, cuda
from fastrnn._call import Call, Wanted
from fastrnn.apps.cli import format_info
from fastrnn.apps.info import collect
from fastrnn.functional import LayerWeights, sequence
from fastrnn.modules import _checks, _streams

NOT_BUILT = "the CUDA kernels are not built"


class Kernels:
    """In place of fastrnn._cuda."""

    __file__ = "/somewhere/_cuda.so"

    def __init__(self, problem: str = ""):
        self.name, self.asked, self.problem = "auto", [], problem

    def set_driver(self, name: str) -> None:
        self.name = name

    def driver(self) -> str:
        return self.name

    def device_problem(self, device: int) -> str:
        return self.problem

    def explain(self, *arguments):
        self.asked.append(arguments)
        return {
            "driver": "grid",
            "possible": True,
            "reason": "because",
            "format": "bfloat16",
            "unit_slices": 32,
            "row_slices": 2,
            "units": 16,
            "rows": 8,
            "shared_bytes": 1000,
        }

    def build_info(self):
        return {"architectures": "sm_80, sm_90", "toolkit": "13.0", "torch_version": "2.14", "cells": "gru, lstm"}


@pytest.fixture
def absent(monkeypatch):
    monkeypatch.setattr(_gpu, "module", None)
    monkeypatch.setattr(_gpu, "reason", NOT_BUILT)


@pytest.fixture
def present(monkeypatch):
    module = Kernels()
    monkeypatch.setattr(_gpu, "module", module)
    monkeypatch.setattr(_gpu, "reason", "")
    monkeypatch.setattr(_gpu, "_reasons", {})
    return module


@pytest.mark.parametrize("name", _gpu.DRIVERS)
def test_driver_from_the_environment(name):
    assert _gpu.driver_of(name) == (name, "")


def test_a_wrong_driver_in_the_environment():
    assert _gpu.driver_of(None) == _gpu.driver_of("") == ("auto", "")
    name, problem = _gpu.driver_of("fast")
    assert name == "auto"
    assert problem == "FASTRNN_CUDA_DRIVER: expected one of auto, stepwise, grid, cluster, got 'fast'; using auto"


def test_a_wrong_driver_in_the_environment_is_a_warning():
    environment = {**os.environ, "FASTRNN_CUDA_DRIVER": "fast"}
    code = "import fastrnn; print('imported')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)
    assert done.stdout.split() == ["imported"]
    assert "FASTRNN_CUDA_DRIVER: expected one of auto, stepwise, grid, cluster, got 'fast'" in done.stderr


LOAD_ERRORS = {
    "missing": (ModuleNotFoundError("No module named 'fastrnn._cuda'", name="fastrnn._cuda"), "12.8", NOT_BUILT),
    "torch of the CPU": (ImportError("libc10_cuda.so: no such file"), None, "but this torch is built for the CPU"),
    "another torch": (
        ImportError("undefined symbol: x"),
        "12.8",
        r"build them again for this torch \(undefined symbol",
    ),
    "no runtime": (ImportError("libcudart.so.13: cannot open"), "13.0", "cannot be loaded.*libcudart.so.13"),
}


@pytest.mark.parametrize("name", LOAD_ERRORS)
def test_kernels_that_do_not_load(monkeypatch, name):
    error, toolkit, message = LOAD_ERRORS[name]

    def fail(_):
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)
    monkeypatch.setattr(torch.version, "cuda", toolkit)
    module, reason = _gpu._load()
    assert module is None
    assert re.search(message, reason)


def test_settings_without_kernels(absent):
    assert not cuda.is_available()
    for call in (cuda.get_driver, lambda: cuda.set_driver("grid"), lambda: cuda.explain("lstm", 4, 8)):
        with pytest.raises(RuntimeError, match=f"fastrnn.cuda: {NOT_BUILT}"):
            call()
    with pytest.raises(RuntimeError, match=NOT_BUILT), cuda.driver("grid"):
        pass
    with pytest.raises(ValueError, match="driver: expected one of auto, stepwise, grid, cluster, got 'fast'"):
        cuda.set_driver("fast")


def test_settings(present):
    cuda.set_driver("stepwise")
    assert cuda.get_driver() == present.name == "stepwise"
    with cuda.driver("cluster"):
        assert cuda.get_driver() == "cluster"
        with pytest.raises(ValueError, match="got 'fast'"), cuda.driver("fast"):
            pass
    assert cuda.get_driver() == "stepwise"
    with pytest.raises(KeyError), cuda.driver("grid"):
        raise KeyError
    assert cuda.get_driver() == "stepwise"


WRONG = {
    "cell": (("ltsm", 4, 8), {}, "cell: expected one of .*, got 'ltsm'"),
    "batch": (("lstm", 0, 8), {}, "batch: expected a positive integer, got 0"),
    "hidden": (("lstm", 4, 1.5), {}, "hidden: expected a positive integer, got 1.5"),
    "steps": (("lstm", 4, 8), {"steps": -1}, "steps: expected a positive integer, got -1"),
    "dtype": (("lstm", 4, 8), {"dtype": torch.int8}, "dtype: expected one of torch.float32.*, got torch.int8"),
    "driver": (("lstm", 4, 8), {"driver": "fast"}, "driver: expected one of auto.*, got 'fast'"),
    "device": (("lstm", 4, 8), {"device": "cpu"}, "device: expected a GPU, got cpu"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_questions(present, monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    arguments, keywords, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        cuda.explain(*arguments, **keywords)


def test_an_explanation(present, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    told = cuda.explain("lstm", 16, 512, dtype=torch.bfloat16, backward=True)
    assert present.asked == [(3, "lstm", 100, 16, 512, "bfloat16", False, True, "auto")]
    assert told.blocks == (32, 2)
    assert str(told) == "grid (bfloat16, 2 x 32 blocks of 16 units and 8 rows): because"
    cuda.explain("gru", 1, 2, driver="cluster", device=1, steps=7, projection=True)
    assert present.asked[1] == (1, "gru", 7, 1, 2, "float32", True, False, "cluster")
    impossible = cuda.Explanation("grid", False, "too large", "float32", (0, 0), 0, 0, 0)
    assert str(impossible) == "grid is not possible: too large"
    present.problem = "the kernels are built for sm_80"
    with pytest.raises(RuntimeError, match=r"fastrnn\.cuda: the kernels are built for sm_80"):
        cuda.explain("gru", 1, 2, device=2)


def test_no_gpu_to_explain(present, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="expected a GPU, got none visible to torch"):
        cuda.explain("lstm", 4, 8)


def on_a_gpu(*shapes):
    """Tensors that say they are on a GPU."""
    return [torch.empty(shape, device="cuda") for shape in shapes]


def test_fused_on_a_gpu_without_kernels(absent, monkeypatch):
    _paths._warned.clear()
    monkeypatch.setitem(_paths._WAYS, "reference", lambda *_: "the reference")
    with FakeTensorMode():
        x, w_ih, w_hh = on_a_gpu((4, 5, 3), (8, 3), (8, 2))
        weights = LayerWeights(w_ih, w_hh)
        with pytest.raises(RuntimeError, match=f'backend="fused": no kernels for torch.float32 on cuda, {NOT_BUILT}'):
            sequence("lstm", x, weights, backend="fused")
        with pytest.warns(UserWarning, match=f"on cuda, {NOT_BUILT}; using the plain-torch reference"):
            assert sequence("lstm", x, weights) == "the reference"


def test_fused_on_a_gpu_that_is_too_old(present):
    present.problem = "the kernels are built for sm_80, cuda:0 is older"
    with FakeTensorMode():
        x, w_ih, w_hh = on_a_gpu((4, 5, 3), (8, 3), (8, 2))
        assert not _gpu.takes(x)
        with pytest.raises(RuntimeError, match="built for sm_80, cuda:0 is older"):
            sequence("lstm", x, LayerWeights(w_ih, w_hh), backend="fused")


def test_the_compiler_is_told_of_the_gpu(present):
    """The operators' shapes, for tensors on a GPU."""
    with FakeTensorMode(), torch.no_grad():
        x, w_ih, w_hh, b_ih, b_hh = on_a_gpu((4, 5, 3), (6, 3), (6, 2), 6, 6)
        y, (h,) = sequence("gru", x, LayerWeights(w_ih, w_hh, b_ih, b_hh), backend="fused")
        assert y.is_cuda
        assert (y.shape, h.shape) == ((4, 5, 2), (5, 2))
        call = Call("gru", x, LayerWeights(w_ih, w_hh, b_ih, b_hh))
        y, finals, saved = _ops.forward(call, True)
        assert all(t.is_cuda for t in (y, *finals, *saved))
        grads = _ops.backward(call, [y, *finals], y, saved, Wanted(*[True] * 5)).fixed[:5]
        assert [g.shape for g in grads] == [t.shape for t in (x, w_ih, w_hh, b_ih, b_hh)]
        assert all(g.is_cuda for g in grads)


def test_tensors_of_two_devices_are_not_plain(present, monkeypatch):
    monkeypatch.setattr(_checks, "is_of_compiler", lambda _: True)
    with FakeTensorMode():
        (x, w), other, cpu = on_a_gpu((2, 3), (4, 3)), torch.empty(4, 3, device="cuda:1"), torch.empty(4, 3)
        assert _checks.are_ordinary(x, None, [w])
        assert not _checks.are_ordinary(x, None, [w, other])
        assert not _checks.are_ordinary(x, None, [cpu])
        assert not _checks.are_ordinary(x, [cpu], [w])
        assert not _checks.are_ordinary(cpu, None, [w])
        assert _checks.are_ordinary(cpu, None, [cpu])
        assert not _checks.are_ordinary(x.double(), None, [w])
        with torch.autocast("cpu"):
            assert _checks.autocast_dtype(x) is None
            assert _checks.autocast_dtype(cpu) == torch.bfloat16
        present.problem = "too old"
        _gpu._reasons.clear()
        assert not _checks.are_ordinary(x, None, [w])


def test_the_words_for_what_is_expected(present, monkeypatch):
    cpu = "dense tensors of one floating-point dtype on the CPU"
    with FakeTensorMode():
        (x,) = on_a_gpu((2, 3))
        assert _checks.expected(torch.empty(2)) == _checks.expected(None) == cpu
        assert _checks.expected(x) == "dense tensors of one floating-point dtype on one GPU"
        monkeypatch.setattr(_gpu, "module", None)
        monkeypatch.setattr(_gpu, "reason", NOT_BUILT)
        assert _checks.expected(x) == f"{cpu}, as {NOT_BUILT}"


def test_formats_under_autocast_on_a_gpu():
    with FakeTensorMode():
        (x,) = on_a_gpu((2, 3))
        for target in (torch.float16, torch.bfloat16):
            for cell in ("lstm", "gru", "rnn_tanh"):
                assert _checks.run_dtype(cell, target, x, (x,), False) == target
                assert _checks.run_dtype(cell, target, x.to(target), None, False) == target
        assert _checks.run_dtype("lstm", torch.float16, x.double(), None, False) == torch.float64


def test_lengths_of_a_gpu_are_not_read():
    with FakeTensorMode():
        (lengths,) = (torch.empty(4, dtype=torch.int32, device="cuda"),)
        found = _checks.as_lengths(lengths, 5, 4, lengths.device)
        assert found.dtype == torch.int64
        with pytest.raises(ValueError, match=r"lengths: expected shape \(3,\)"):
            _checks.as_lengths(lengths, 5, 3, lengths.device)
    with pytest.raises(ValueError, match="from 0 to 5"):
        _checks.as_lengths([1, 6], 5, 2, torch.device("cuda"))


def test_info_without_kernels(absent):
    found = collect()
    assert found["cuda"]["fastrnn_kernels"] == {"built": False, "error": NOT_BUILT}
    lines = dict(line.split("  ", 1) for line in format_info(found).splitlines() if line)
    assert lines["CUDA kernels"].strip() == NOT_BUILT


def test_info(present, monkeypatch):
    monkeypatch.setenv("FASTRNN_CUDA_DRIVER", "grid")
    cuda.set_driver("grid")
    lines = dict(line.split("  ", 1) for line in format_info(collect()).splitlines() if line)
    assert lines["CUDA kernels"].strip() == "/somewhere/_cuda.so"
    assert lines["built for"].strip() == "sm_80, sm_90 (CUDA 13.0, torch 2.14)"
    assert lines["CUDA driver"].strip() == "grid (FASTRNN_CUDA_DRIVER=grid)"


def test_info_names_gpus_that_are_too_old():
    found = collect()
    found["cuda"]["fastrnn_kernels"] = {
        "built": True,
        "path": "_cuda.so",
        "driver": "auto",
        "build": Kernels().build_info(),
        "problems": ["", "the kernels are built for sm_80, cuda:1 is older"],
    }
    assert "warning" in format_info(found)
    assert "cuda:1 is older" in format_info(found)


class Recorder:
    """In place of streams: notes what is done in which order."""

    def __init__(self):
        self.log: list[str] = []

    def stream(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(name=name, wait_stream=lambda other: self.log.append(f"{name} waits for {other.name}"))

    def tensor(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(record_stream=lambda stream: self.log.append(f"{name} used by {stream.name}"))


def test_two_directions_fork_and_join(monkeypatch):
    notes = Recorder()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: notes.stream("current"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(notes.log.append(f"on {stream.name}")))
    monkeypatch.setattr(_streams, "_side_stream", lambda device: notes.stream("side"))

    def run(name: str):
        notes.log.append(name)
        return notes.tensor(name)

    def both(first):
        return _streams.both(
            first, lambda: run("back"), [notes.tensor("x"), None], lambda found: [found], torch.device("cuda", 0)
        )

    both(lambda: run("ahead"))
    fork = ["side waits for current", "on side", "back", "x used by side"]
    assert notes.log == [*fork, "ahead", "current waits for side", "back used by current"]
    notes.log.clear()

    def fail():
        raise KeyError

    with pytest.raises(KeyError):
        both(fail)
    assert notes.log == [*fork, "current waits for side"]


def test_only_plain_work_on_a_gpu_is_forked():
    assert not _streams.apply(torch.empty(2))
    with FakeTensorMode():
        assert not _streams.apply(torch.empty(2, device="cuda"))


def test_directions_are_computed_as_before():
    """One direction after the other where they are not forked; with CPU tensors, outside the fast path."""
    net = fastrnn.GRU(I, H, num_layers=2, bidirectional=True)
    x = torch.randn(T, B, I)
    same(net(x, lengths=[T] * B), net(x))


def test_the_operators_are_those_of_the_dispatcher():
    for name in ("sequence_forward", "layer_backward"):
        registered = "CUDA: registered" in torch._C._dispatch_dump(f"fastrnn::{name}")
        assert registered == (_gpu.module is not None)
    assert _ops.sequence_forward is torch.ops.fastrnn.sequence_forward.default


@pytest.mark.skipif(_gpu.module is None, reason="needs the CUDA kernels, but no GPU")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}])
def test_a_module_on_a_gpu_is_traced_to_its_operators(options, strict):
    with FakeTensorMode(allow_non_fake_inputs=True):
        net = fastrnn.GRU(I, H, device="cuda", **options)
        program = torch.export.export(net, (torch.empty(T, B, I, device="cuda"),), strict=strict)
    graphs = [m.graph for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    calls = [str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"]
    count = 4 if options else 1
    assert calls.count("fastrnn.sequence_forward.default") == count
    assert not [name for name in calls if name.startswith("aten.gru")]
