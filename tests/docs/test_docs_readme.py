"""The README: each piece of its code runs, its commands are understood, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from pages import ROOT, blocks, load_script

from fastrnn.apps import cli

PAGE = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_code_runs_as_it_stands():
    """All blocks in their order, in a fresh interpreter that has nothing but Python."""
    code = [block for kind, block in blocks(PAGE) if kind == "python"]
    text = "\n".join(block.lstrip("\n") for block in code)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(code) >= 9


def test_the_speed_figure_is_that_of_the_table():
    """In the first screen, and with every number of the table below."""
    figure = load_script("speed_figure")
    page = PAGE.read_text(encoding="utf-8")
    assert page[: page.index("docs/speed.svg")].count("\n") < 20
    drawn = figure.TARGET.read_text(encoding="utf-8")
    rows = figure.rows_of(page)
    assert len(rows) == 8
    for shape, ratios in rows:
        assert f">{shape.split(',')[0]}" in drawn
        for ratio in ratios:
            assert f">{ratio:.3g}×<" in drawn, "docs/speed.svg is old: python benchmarks/speed_figure.py"


def test_commands_are_understood():
    """Every command line of fastrnn: its options are those that there are."""
    text = PAGE.read_text(encoding="utf-8")
    commands = re.findall(r"^(?:\$ |python -m )?fastrnn (\w+.*)$", text, re.MULTILINE)
    for command in commands:
        argv = shlex.split(command, comments=True)
        cli._parser(argv[0]).parse_args(argv)  # ends the process where it does not understand
    assert {command.split()[0] for command in commands} == {
        "info",
        "bench",
        "train",
        "sample",
        "inspect",
        "gradflow",
        "demo",
    }


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", PAGE.read_text(encoding="utf-8"))
    assert [link for link in links if not link.startswith("https:") and not (ROOT / link).exists()] == []
    folders = re.findall(r"`((?:csrc|fastrnn|docs|benchmarks)/[\w/.]*)`", PAGE.read_text(encoding="utf-8"))
    assert [name for name in folders if not (ROOT / name).exists()] == []
    assert len(links) > 8
    assert len(folders) > 12
