"""The README: each piece of its code runs, its commands are understood, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
from typing import Any

import pytest
import torch
from pages import ROOT, blocks
from torch import nn

import fastrnn
from fastrnn.apps import cli

PAGE = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")


def left_to_the_reader() -> dict[str, Any]:
    """What a piece of code takes from elsewhere: a model, data, an optimizer."""
    T, B, I, H = 100, 3, 64, 8  # noqa: E741
    lstm, gru = fastrnn.LSTM(I, H), fastrnn.GRU(I, H)
    zeros = torch.zeros(1, B, H), torch.zeros(1, B, H)
    names = {"torch": torch, "fastrnn": fastrnn, "lstm": lstm, "gru": gru, "model": nn.Sequential(nn.LSTM(I, H))}
    names |= {"x": torch.randn(T, B, I), "frame": torch.randn(B, I), "state": zeros, "zeros": zeros, "h0": zeros[0][0]}
    names |= {"dones": torch.rand(T, B) < 0.1, "ids": torch.randint(5, (T, B)), "embedding": nn.Embedding(5, I)}
    names |= dict(zip(("w_ih", "w_hh", "b_ih", "b_hh"), gru.parameters(), strict=True))
    names |= {"inputs": torch.randn(T, B, I), "targets": torch.randn(T, B, 256), "loss": nn.functional.mse_loss}
    return names | {"optimizer": torch.optim.SGD(lstm.parameters(), lr=0.1), "__name__": "page"}


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_code_runs():
    code = [block for kind, block in blocks(PAGE) if kind == "python"]
    for block in code:
        exec(compile(block, str(PAGE), "exec"), left_to_the_reader())
    assert len(code) >= 9


def test_commands_are_understood():
    """Every command line of fastrnn: its options are those that there are."""
    text = PAGE.read_text(encoding="utf-8")
    commands = re.findall(r"^(?:\$ |python -m )?fastrnn (\w+.*)$", text, re.MULTILINE)
    for command in commands:
        argv = shlex.split(command, comments=True)
        cli._parser(argv[0]).parse_args(argv)  # ends the process where it does not understand
    assert {command.split()[0] for command in commands} == {"info", "bench", "train", "sample", "inspect", "gradflow"}


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text(encoding="utf-8"))
    assert [link for link in links if not link.startswith("https:") and not (ROOT / link).exists()] == []
    folders = re.findall(r"`((?:csrc|fastrnn|docs|benchmarks)/[\w/.]*)`", PAGE.read_text(encoding="utf-8"))
    assert [name for name in folders if not (ROOT / name).exists()] == []
    assert len(links) > 8
    assert len(folders) > 12
