"""The pages about cells: code runs as it stands, what it prints is what is shown, the table is that of the gallery."""

from __future__ import annotations

import shutil

import pytest
from pages import ROOT, blocks, load_script, run_code

PAGE = ROOT / "docs" / "write-your-own-cell.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_code_of_the_page_runs():
    assert run_code(PAGE, shown=True) > 5
    assert sum(kind == "text" for kind, _ in blocks(PAGE)) == 1


def test_table_is_that_of_the_gallery():
    module = load_script("gallery_table")
    found = module.TARGET.read_text(encoding="utf-8")
    assert found == module.render(), "docs/cells.md is old: python benchmarks/gallery_table.py"
