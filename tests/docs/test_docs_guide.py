"""The guide: code of its pages runs, commands are understood, and the reference has every public name."""

from __future__ import annotations

import importlib
import re
import shlex
import shutil

import pytest
from pages import ROOT, run_code

from fastrnn.apps import cli

DOCS = ROOT / "docs"
PAGES = [
    "getting-started",
    "migrating",
    "sequences",
    "streaming",
    "precision",
    "performance",
    "troubleshooting",
    "deployment",
]
PUBLIC = [
    "",
    ".functional",
    ".init",
    ".training",
    ".custom",
    ".gallery",
    ".inspect",
    ".cuda",
    ".apps.lm",
    ".apps.inspect",
]
COMMANDS = {"info", "bench", "train", "sample", "inspect", "gradflow", "demo"}

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="not in a checkout")


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
@pytest.mark.parametrize("page", PAGES)
def test_code_of_the_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    assert run_code(DOCS / f"{page}.md") > 0


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(DOCS.glob("*.md"))], ids=lambda path: path.stem)
def test_commands_are_understood(path):
    """Every command line of fastrnn: its options are those that there are."""
    for command in commands(path.read_text(encoding="utf-8")):
        argv = shlex.split(command, comments=True)
        cli._parser(argv[0]).parse_args(argv)  # ends the process where it does not understand


def commands(text: str) -> list[str]:
    """Command lines of fastrnn in blocks without a language."""
    blocks = re.findall(r"^```(\S*)\n(.*?)^```$", text.replace("\\\n", " "), re.MULTILINE | re.DOTALL)
    shell = "".join(block for kind, block in blocks if not kind)
    return re.findall(r"^(?:\$ |python -m )?fastrnn (\w+.*)$", shell, re.MULTILINE)


def test_the_readme_names_every_command():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert {command.split()[0] for command in commands(text)} == COMMANDS


@pytest.mark.parametrize("module", PUBLIC)
def test_the_reference_has_every_public_name(module):
    text = "".join(path.read_text(encoding="utf-8") for path in sorted((DOCS / "reference").glob("*.md")))
    documented = set(re.findall(r"^\.\. [\w:]+:: (fastrnn[\w.]*)(?:\(.*)?$", text, re.MULTILINE))
    missing = [name for name in public_names(f"fastrnn{module}") if f"fastrnn{module}.{name}" not in documented]
    left_out = {
        ".custom": ["CellError", "cell"],
        ".apps.lm": ["Event"],
    }  # the same as fastrnn's; the union of the others
    assert missing == left_out.get(module, [])


def public_names(module: str) -> list[str]:
    found = importlib.import_module(module)
    if module == "fastrnn.functional":
        return ["LayerWeights", "sequence", "lstm", "gru", "rnn", "hidden_gradients"]
    if module == "fastrnn.gallery":
        return dir(found)
    return [name for name in found.__all__ if name not in ("cuda", "functional", "init", "training")]
