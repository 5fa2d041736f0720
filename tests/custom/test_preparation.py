"""Kernels of a custom cell are made wherever a call needs them, whichever way it comes; or the call raises."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import fastrnn
from fastrnn import _C, _ops
from fastrnn._call import Call, Wanted
from fastrnn.functional import LayerWeights, hidden_gradients, sequence

ROOT = Path(fastrnn.__file__).parent.parent
DEFINED = """
import torch
import fastrnn
from fastrnn import _C, _ops
from fastrnn.functional import LayerWeights, hidden_gradients, sequence

@fastrnn.cell(gates="f u")
def one_state(x, r, s):
    f = torch.sigmoid(x.f + r.f)
    return f * s.h + torch.tanh(x.u + r.u)

name = one_state.kernels
def given(dtype):
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4, dtype=dtype)
    return x, LayerWeights(torch.randn(10, 4, dtype=dtype), torch.randn(10, 5, dtype=dtype))
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs code in a process of its own."""
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=240,
        cwd="/",
    )


def passes(code: str, **environment: str) -> str:
    done = python(DEFINED + textwrap.dedent(code), **environment)
    assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
    return done.stdout


WAYS = {
    "hidden_gradients": "found = hidden_gradients(name, x, w, None, torch.ones(3, 2, 5, dtype=dtype))",
    "operator": "found = torch.ops.fastrnn.sequence_forward(name, x, *w, [], None, None, None, False, False)[0]",
    "eager": "found = _ops.layer(_ops.Call(name, x, w))[0]",
}


@pytest.mark.parametrize("before", ["", "one_state.build(torch.float32)"], ids=["never called", "another dtype"])
@pytest.mark.parametrize("way", WAYS)
def test_a_missing_kernel_is_made(way, before):
    code = f"""
    {before}
    dtype = torch.float64
    x, w = given(dtype)
    {WAYS[way]}
    right = sequence(name, x, w, backend="reference")[0]
    if {way == "hidden_gradients"}:
        assert found.shape == right.shape and bool(found.isfinite().all()) and bool((found != 0).any())
    else:
        torch.testing.assert_close(found, right)
    """
    passes(code)


def test_where_nothing_can_be_compiled_the_call_raises(tmp_path):
    code = f"""
    for way in {list(WAYS.values())!r}:
        for dtype in (torch.float32, torch.float64):
            x, w = given(dtype)
            for _ in range(2):
                try:
                    exec(way)
                except RuntimeError as error:
                    print(error)
                else:
                    raise AssertionError(f"no error: {{way}}")
    """
    text = passes(code, CXX="/no/such/compiler", FASTRNN_CACHE=str(tmp_path))
    assert text.count("cell: expected kernels of one_state_") == 4 * len(WAYS)
    assert "expected a C++ compiler, found none (/no/such/compiler)" in text


def test_backward_in_another_instruction_set():
    sets = _C.capabilities()
    if len(sets) < 2:
        pytest.skip("one instruction set")
    passes(
        f"""
        torch.set_default_dtype(torch.float64)
        x, w = given(torch.float64)
        x.requires_grad_()
        y = sequence(name, x, w)[0]
        _C.set_capability({sets[0]!r})
        y.sum().backward()
        right = x.grad.clone()
        x.grad = None
        sequence(name, x, w, backend="reference")[0].sum().backward()
        torch.testing.assert_close(right, x.grad)
        found = torch.ops.fastrnn.sequence_forward(name, x, *w, [], None, None, None, False, False)[0]
        torch.testing.assert_close(found, y)
        """
    )


def test_threads_and_a_fork():
    """A child of fork does not wait for a lock that another thread of its parent held."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork")
    passes(
        """
        import os, threading, time
        from fastrnn.custom import build

        forward = torch.ops.fastrnn.sequence_forward
        found = []
        x, w = given(torch.float32)
        def work():
            found.append(forward(name, x, *w, [], None, None, None, False, False)[0])
        entered, go_on = threading.Event(), threading.Event()
        library = build.library
        def slow(*arguments):
            entered.set()
            go_on.wait()
            return library(*arguments)
        build.library = slow
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        entered.wait()
        child = os.fork()
        if child == 0:
            build.library = library
            work()
            os._exit(0 if found[0].isfinite().all() else 1)
        deadline = time.monotonic() + 120
        while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        if done[0] == 0:
            os.kill(child, 9)
        go_on.set()
        for thread in threads:
            thread.join()
        assert done[0] == child and done[1] == 0, done
        assert len(found) == 4 and all(torch.equal(y, found[0]) for y in found)
        """
    )


def test_an_exported_program_in_another_process(tmp_path):
    path = tmp_path / "program.pt2"
    code = f"""
    network = one_state(4, 5).eval()
    with torch.no_grad():
        program = torch.export.export(network, (torch.randn(3, 2, 4),))
    torch.export.save(program, {str(path)!r})
    """
    passes(code)
    load = f"""
    program = torch.export.load({str(path)!r}).module()
    x = torch.randn(3, 2, 4)
    try:
        print("computed", tuple(program(x)[0].shape))
    except ValueError as error:
        print(error)
    """
    assert "computed (3, 2, 5)" in passes(load)
    undefined = "import torch\nimport fastrnn\n" + textwrap.dedent(load)
    done = python(undefined)  # the kernels of the first process are in the cell cache
    assert "computed (3, 2, 5)" in done.stdout, done.stderr
    done = python(undefined, FASTRNN_CACHE=str(tmp_path / "empty"))
    assert done.returncode == 0, done.stderr
    assert "a custom cell: import the module that defines it first" in done.stdout


def calls(name: str):
    x, w = torch.randn(3, 2, 4), LayerWeights(torch.randn(8, 4), torch.randn(8, 2))
    call = Call(name, x, w)
    on_meta = Call(name, x.to("meta"), LayerWeights(w.w_ih.to("meta"), w.w_hh.to("meta")))
    y, saved = torch.randn(3, 2, 2), [torch.empty(0, 0)] * 4
    my = y.to("meta")
    return {
        "sequence": lambda: sequence(name, x, w),
        "hidden_gradients": lambda: hidden_gradients(name, x, w, None, None),
        "eager": lambda: _ops.layer(call),
        "forward": lambda: _ops.forward(call, True),
        "forward on meta": lambda: _ops.forward(on_meta, True),
        "backward": lambda: _ops.backward(call, [y], y, saved, Wanted(*[True] * 11)),
        "backward on meta": lambda: _ops.backward(on_meta, [my], my, saved, Wanted(*[True] * 11)),
        "traits": lambda: _ops.traits_of(name),
        "constants": lambda: _C.cell_traits(name),
    }


UNKNOWN = {
    "ltsm": "cell: expected one of gru, lstm, rnn_relu, rnn_tanh, got 'ltsm'",
    "one_state_0123456789ab": "got 'one_state_0123456789ab', a custom cell: import the module that defines it first",
    "": "cell: expected one of gru, lstm, rnn_relu, rnn_tanh, got ''",
}


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("way", calls(""))
def test_an_unknown_cell(way, name):
    with pytest.raises(ValueError, match=UNKNOWN[name]):
        calls(name)[way]()


@pytest.mark.parametrize("bound", [-1.0, float("nan"), float("inf")])
def test_a_wrong_bound(bound):
    call = Call("lstm", torch.randn(3, 2, 4), LayerWeights(torch.randn(8, 4), torch.randn(8, 2)), clip=bound)
    y, _, saved = _ops.forward(call._replace(clip=0.0), True)
    with pytest.raises(ValueError, match="clip: expected a positive number"):
        _ops.backward(call, [y], y, saved, Wanted(x=True))
