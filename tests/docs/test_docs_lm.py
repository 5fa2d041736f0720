"""The page about language models: its code runs, and it names every option with its default."""

from __future__ import annotations

import dataclasses

import pytest
from lm_runs import write_text
from pages import ROOT, options, run_code

from fastrnn.apps import lm
from fastrnn.apps.lm.arguments import flag

PAGE = ROOT / "docs" / "language-model.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")


def test_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path / "book.txt", 12000)
    assert run_code(PAGE) == 1
    assert capsys.readouterr().out.startswith("200 book/step-00000200.pt\n")


def test_every_option_and_its_default_is_there():
    found = options(PAGE.read_text(encoding="utf-8"))
    fields = {flag(field.name): field.default for field in dataclasses.fields(lm.Options) if field.name != "file"}
    assert set(found) == set(fields)
    for name, default in fields.items():
        if default is False:
            assert found[name] == "no"
        elif default is not None:
            assert found[name] == (default if isinstance(default, str) else f"{default:g}"), name
