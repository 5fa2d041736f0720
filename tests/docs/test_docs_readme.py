"""The README: its code runs as it stands, its figure is that of its table, it is short."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from pages import ROOT, blocks, load_script

PAGE = ROOT / "README.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_code_runs_as_it_stands():
    """All blocks in their order, in a fresh interpreter that has nothing but Python."""
    code = [block for kind, block in blocks(PAGE) if kind == "python"]
    text = "\n".join(block.lstrip("\n") for block in code)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(code) >= 5


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


def test_it_is_short():
    assert len(PAGE.read_text(encoding="utf-8").splitlines()) <= 150
