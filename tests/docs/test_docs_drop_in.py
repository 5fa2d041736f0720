"""The page on use in place of torch.nn: its code runs, and prints what it says."""

from __future__ import annotations

import pytest
from pages import ROOT, blocks

PAGE = ROOT / "docs" / "drop-in.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")


def test_code_runs(capsys):
    code = [block for kind, block in blocks(PAGE) if kind == "python"]
    for block in code:
        exec(compile(block, str(PAGE), "exec"), {"__name__": "page"})
    assert code
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("lstm: fast path")
    assert lines[2] == "gru: reference (plain torch operations, step by step); backend='reference'"
