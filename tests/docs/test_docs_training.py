"""The page about training: code runs as it stands."""

from __future__ import annotations

import shutil

import pytest
from pages import ROOT, run_code

PAGE = ROOT / "docs" / "training.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_code_of_the_page_runs():
    count = run_code(PAGE)
    assert count > 10
    assert PAGE.read_text(encoding="utf-8").count("```") == 2 * count


@pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")
def test_the_page_names_what_there_is():
    """Every public function of the two modules is on the page."""
    from fastrnn import init, training

    text = PAGE.read_text(encoding="utf-8")
    missing = [name for name in (*init.__all__, *training.__all__) if name not in text]
    assert missing == ["Chunk", "TruncatedBPTT"]  # what truncated_bptt hands out, by other names
