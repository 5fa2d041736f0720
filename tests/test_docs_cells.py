"""The pages about cells: code runs as it stands, what it prints is what is shown, the table is that of the gallery."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "write-your-own-cell.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_code_of_the_page_runs():
    text = PAGE.read_text(encoding="utf-8")
    names: dict = {"__name__": "page"}
    printed, shown = "", []
    for found in re.finditer(r"^```(python|text)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        kind, block = found.groups()
        if kind == "text":
            shown.append(block)
            assert block == printed, "what is shown is not what the code before it prints"
            continue
        output, line = io.StringIO(), text[: found.start(2)].count("\n")
        with contextlib.redirect_stdout(output):
            exec(compile("\n" * line + block, str(PAGE), "exec"), names)  # messages show the page's line
        printed = output.getvalue()
    assert len(shown) == 1


def test_table_is_that_of_the_gallery():
    path = ROOT / "benchmarks" / "gallery_table.py"
    spec = importlib.util.spec_from_file_location("gallery_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.TARGET.read_text(encoding="utf-8")
    assert found == module.render(), "docs/cells.md is old: python benchmarks/gallery_table.py"
