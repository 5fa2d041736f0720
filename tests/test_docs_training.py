"""The page about training: code runs as it stands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "training.md"


@pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_code_of_the_page_runs():
    text = PAGE.read_text(encoding="utf-8")
    names: dict = {"__name__": "page"}
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    for found in blocks:
        line = text[: found.start(1)].count("\n")
        exec(compile("\n" * line + found.group(1), str(PAGE), "exec"), names)  # messages show the page's line
    assert len(blocks) > 10
    assert text.count("```") == 2 * len(blocks)


@pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")
def test_the_page_names_what_there_is():
    """Every public function of the two modules is on the page."""
    from fastrnn import init, training

    text = PAGE.read_text(encoding="utf-8")
    missing = [name for name in (*init.__all__, *training.__all__) if name not in text]
    assert missing == ["Chunk", "TruncatedBPTT"]  # what truncated_bptt hands out, by other names
