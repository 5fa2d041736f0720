"""tools/check_steps.py: the step of a persistent kernel, found in a disassembly."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(not (ROOT / "tools" / "check_steps.py").is_file(), reason="needs a checkout")

NAME = "_ZN7fastrnn4cuda16persistent_entryINS0_17PersistentForwardINS0_4lstmENS0_11TensorCoresINS_8BFloat16E"
NAME += "NS0_11MmaBFloat16EEENS0_{through}EEEEvNT_4ArgsE"
GRID, CLUSTER = "11ThroughGrid", "14ThroughCluster"

#: Before the loop a fence; in it a wait, a product with a loop of its own, a way around the cell, a far branch back.
LINES = [
    "MEMBAR.ALL.GPU",
    "LDG.E.STRONG.GPU R17, desc[UR12][R22.64]",  # 0x10
    "@!P1 BRA 0x10",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "HMMA.16816.F32.BF16 R68, R76, R40, R68",  # 0x40
    "@P0 BRA 0x40",
    "@P2 BRA 0xa0",
    "MUFU.RCP R1, R2",
    "FMUL R1, R2, R3",
    "BRA 0xb0",
    "MOV R1, RZ",  # 0xa0
    "{extra}",  # 0xb0
    "REDG.E.ADD.STRONG.GPU desc[UR4][R2.64], R3",
    "@P3 CALL.REL.NOINC 0x130",
    "@P5 BRA 0x120",
    "STG.E.U16 desc[UR4][R2.64], R3",
    "@P6 BRA 0x120",
    "LDG.E.U16 R3, desc[UR4][R4.64]",
    "BRA 0x10",  # 0x120
    "EXIT",  # 0x130
]


@pytest.fixture
def steps(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("check_steps")


def sass(extra="NOP", through=GRID, architecture="sm_90a", sizes=""):
    lines = [f"code for {architecture}", f"\t\tFunction : {NAME.format(through=through + sizes)}"]
    for k, line in enumerate(LINES):
        lines.append(f"        /*{16 * k:04x}*/               {line.format(extra=extra)} ;     /* 0x0 */")
    return "\n".join(lines)


def only(steps, text):
    ((architecture, kernel, code),) = steps.disassembled(text)
    return architecture, kernel, steps.step_of(kernel, code)


def test_the_shortest_way_through_a_step(steps):
    architecture, kernel, step = only(steps, sass())
    assert (architecture, kernel.text) == ("sm_90a", "lstm bfloat16 grid forward")
    # Wait and its branch, barrier, product and its branch, branch, cell, and from 0xb0 on.
    shortest = 2 + 1 + 2 + 1 + 3 + 5
    expected = steps.Step(shortest, complete=shortest + 3, barriers=1, fences=0, subroutines=0, local=0)
    assert step == expected
    assert steps.problems_of(kernel, architecture, step) == []


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("RET.REL.NODEC R2 0x0", "0 subroutines"),
        ("STL [R1], R2", "0 accesses to local memory"),
        ("MEMBAR.SC.GPU", "0 fences"),
    ],
)
def test_what_must_not_be_in_a_cluster_s_step(steps, extra, words):
    text = sass(f"@P4 {extra}", CLUSTER).replace("REDG.E.ADD", "STAS.128")
    _, kernel, step = only(steps, text)
    (problem,) = steps.problems_of(kernel, "sm_90a", step)
    assert words in problem


def test_a_step_that_has_grown(steps, monkeypatch):
    monkeypatch.setitem(steps.LIMITS, ("grid", "forward", 0), (13, 16))
    architecture, kernel, step = only(steps, sass())
    problems = steps.problems_of(kernel, architecture, step)
    assert "at most 13 instructions on the shortest way" in problems[0]
    assert "got 14" in problems[0]
    assert "at most 16 instructions on the way that reads and stores" in problems[1]
    assert "got 17" in problems[1]


def test_a_kernel_of_known_sizes_has_its_own_limit(steps, monkeypatch):
    architecture, kernel, step = only(steps, sass(sizes="ENS0_5SizesILi8ELi16ELi1024EEE"))
    assert kernel.text == "lstm bfloat16 grid forward up to 1024 units"
    monkeypatch.setitem(steps.LIMITS, ("grid", "forward", 1024), (13, 100))
    (problem,) = steps.problems_of(kernel, architecture, step)
    assert "at most 13 instructions" in problem
    monkeypatch.delitem(steps.LIMITS, ("grid", "forward", 1024))
    assert "no entry" in steps.problems_of(kernel, architecture, step)[0]


def test_a_step_that_reads_nothing_is_a_problem(steps):
    architecture, kernel, step = only(steps, sass().replace("LDG.E.U16", "NOP"))
    assert "no step that reads and stores" in steps.problems_of(kernel, architecture, step)[0]


def test_a_step_that_is_not_found_is_a_problem(steps):
    architecture, kernel, step = only(steps, sass().replace("HMMA", "IMMA"))
    assert step is None
    assert "no step was found" in steps.problems_of(kernel, architecture, step)[0]


def test_without_the_programs_it_is_said(steps, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(steps, "program", lambda name: None)
    assert steps.main([str(tmp_path / "none.o")]) == 0
    assert "NOT checked" in capsys.readouterr().out


def test_no_kernel_is_a_problem(steps, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(steps, "disassemble", lambda objects: "")
    assert steps.main([str(tmp_path / "none.o")]) == 1
    assert "no persistent kernel" in capsys.readouterr().err
