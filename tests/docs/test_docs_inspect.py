"""The page about looking inside: its code runs, and it names every option with its default and every feature."""

from __future__ import annotations

import argparse
import re

import pytest
from lm_runs import tiny
from pages import ROOT, options, run_code

from fastrnn import inspect
from fastrnn.apps import lm
from fastrnn.apps.inspect.arguments import add_gradflow_arguments, add_inspect_arguments

PAGE = ROOT / "docs" / "looking-inside.md"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")


def test_code_of_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lm.train(tiny(tmp_path, out=str(tmp_path / "book")))
    assert run_code(PAGE) == 2
    assert len(capsys.readouterr().out.splitlines()) == 1 + 8 + 3 + 1


@pytest.mark.parametrize(
    ("section", "add"), [("inspect CHECKPOINT", add_inspect_arguments), ("gradflow`", add_gradflow_arguments)]
)
def test_every_option_and_its_default_is_there(section, add):
    text = PAGE.read_text(encoding="utf-8").split(f"## `fastrnn {section}")[1].split("\n## ")[0]
    found = options(text)
    parser = argparse.ArgumentParser(add_help=False)
    add(parser)
    expected = {
        action.option_strings[0]: str(action.default) if action.default else "–"
        for action in parser._actions
        if action.option_strings
    }
    set_when_run = {"--begin": "0", "--seed": "0", "--clip": "1"}
    expected |= {name: default for name, default in set_when_run.items() if name in expected}
    assert found == expected | ({"--cell": "lstm"} if "--cell" in expected else {})


def test_every_feature_is_there():
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([a-z ]+) \| ", text.split("**Features.**")[1].split("**Ranks.**")[0], re.MULTILINE)
    assert tuple(rows) == inspect.FEATURES
