"""The fuzzers of tests/fuzz: a fixed choice of cases of each, and whether they find what is planted."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from fuzz import differential, differential_check, driver, known, operators, planted
from fuzz.case import Case
from fuzz.runs import run

#: Numbers of seeds that take some 25 seconds in one process.
SEEDS = {"differential": range(5000, 5080), "operators": range(5000, 5160)}
FUZZERS = {"differential": differential, "operators": operators}


def _takes_long(case) -> bool:
    """Return True for a case that compiles: a custom cell's kernels, or a function."""
    return getattr(case, "custom", False) or getattr(case, "extra", "") == "compile"


@pytest.mark.parametrize("target", FUZZERS)
def test_cases_of_fixed_seeds(target):
    worker, failures = driver.Worker(target), []
    for seed in SEEDS[target]:
        case = FUZZERS[target].drawn(seed)
        problems = [] if _takes_long(case) else worker.check(case)
        if problems and not known.reason(case, problems):
            failures.append(driver.report(target, seed, case, problems))
    worker.close()
    assert not failures, "\n".join(failures)


def test_a_seed_is_a_case():
    for fuzzer in FUZZERS.values():
        assert fuzzer.drawn(12345) == fuzzer.drawn(12345)
        assert len({fuzzer.drawn(seed) for seed in range(50)}) == 50


def test_simpler_cases_are_allowed_and_fewer():
    for fuzzer in FUZZERS.values():
        for seed in range(20):
            case = fuzzer.drawn(seed)
            for _ in range(200):
                case = next(iter(fuzzer.simpler(case)), None) or case
            assert not list(fuzzer.simpler(case))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["y", "d net.weight_hh_l0"])
def test_a_wrong_number_is_found(monkeypatch, dtype, name):
    def wrong(case, inputs, side, *arguments, **options):
        found = run(case, inputs, side, *arguments, **options)
        if side == "ours":
            found[name] = found[name] * (1 + {"float32": 1e-4, "float64": 1e-8}[dtype])
        return found

    case = Case(T=5, B=3, H=7, dtype=dtype)
    assert not differential.check(case)
    monkeypatch.setattr(differential_check, "run", wrong)
    problems = differential.check(case)
    assert len(problems) == 1
    assert problems[0].startswith(f"{name}: error")


def test_a_missing_gradient_is_found(monkeypatch):
    def wrong(case, inputs, side, *arguments, **options):
        found = run(case, inputs, side, *arguments, **options)
        return found | {"d x": None} if side == "ours" else found

    monkeypatch.setattr(differential_check, "run", wrong)
    assert differential.check(Case()) == ["d x: expected torch.float64 (2, 2, 2), got None"]


def test_a_missing_error_is_found(monkeypatch):
    case = Case(kind="gru", invalid=3)
    assert not differential.check(case)
    monkeypatch.setattr("fastrnn.GRU.forward", lambda *_: (torch.zeros(2, 2, 2), torch.zeros(1, 2, 2)))
    assert differential.check(case)[0].startswith("invalid call")


@pytest.mark.parametrize("at_end", [True, False])
def test_guard_pages_end_the_process(at_end):
    code = f"""
import ctypes, torch
from fuzz.guarded import Memory
with Memory() as memory:
    t = memory.place(torch.arange(7.0), at_end={at_end})
    memory.lock()
    assert t.sum() == 21
    print("inside", flush=True)
    ctypes.string_at(t.data_ptr() + (28 if {at_end} else -1), 1)
    print("outside", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=driver.ROOT / "tests")
    assert done.stdout == "inside\n"
    assert done.returncode < 0


def test_arguments_are_read_only_under_guard_pages():
    code = """
import torch
from fuzz.guarded import Memory
with Memory() as memory:
    t = memory.place(torch.ones(3), at_end=True)
    memory.lock()
    t.zero_()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=driver.ROOT / "tests")
    assert done.returncode < 0


@pytest.mark.parametrize("crash", [False, True])
def test_failures_and_crashes_are_simplified(crash):
    worker = driver.Worker("planted")
    case = planted.Case(size=40, crash=crash, other=3)
    problems = worker.check(case)
    assert problems[0].startswith("crash: SIGSEGV" if crash else "wrong")
    assert driver.minimised(planted, worker, case, problems)[0] == planted.Case(size=5, crash=crash)
    worker.refresh()
    assert worker.check(planted.Case(size=4)) == []
    worker.close()


def test_a_command_reruns_a_case():
    text = driver.report("differential", 7, Case(T=3), ["wrong"])
    assert "python -m tests.fuzz.differential --seed 7\n" in text
    assert """python -m tests.fuzz.differential --case '{"T": 3}'""" in text
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.differential", "--here", "--case", '{"T": 3}'],
        capture_output=True,
        text=True,
        cwd=driver.ROOT,
    )
    assert done.stdout.endswith("passed\n"), done.stderr
