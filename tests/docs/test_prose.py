"""Prose for users: `tools/check_prose.py` finds nothing, and would find what it is for; examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import types

import pytest
import torch
from pages import ROOT, load_script

import fastrnn

pytestmark = pytest.mark.skipif(not (ROOT / "docs").is_dir(), reason="not in a checkout")

prose = load_script("check_prose", "tools") if (ROOT / "tools").is_dir() else None


def test_pages_and_public_docstrings_have_no_problems():
    assert [str(problem) for problem in (*prose.page_problems(), *prose.docstring_problems())] == []


def test_sources_have_no_problems():
    assert [str(problem) for problem in prose.source_problems()] == []


def test_there_is_something_to_check():
    assert len(prose.pages()) > 20
    assert len(list(prose.docstrings())) > 60


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("A cell of\none's own.\n", "\"cell of one's own\": write 'custom cell'"),
        ("The same, to the bit.\n", "'to the bit': write 'bitwise equal, same bits'"),
        ("Tiles of the matrix unit.\n", "matrix unit: expected AMX beside its first mention"),
        ("[page](nowhere.md)\n", "link to a file that is not there: nowhere.md"),
        ("[page](docs/training.md#nothing)\n", "link to a section that is not there: docs/training.md#nothing"),
        ("[here](#nothing)\n", "link to a section that is not there: #nothing"),
        ("```python\nx = (\n```\n", "code does not parse: '(' was never closed"),
        ("word " * 25, "expected at most 120 characters, got 125"),
    ],
)
def test_problem_of_a_page_is_found(text, message):
    assert [found for _, found in prose.lint_page(ROOT / "README.md", text)] == [message]


@pytest.mark.parametrize(
    "text",
    [
        "# Heading\n\n[here](#heading), [code](tools/check_prose.py), [web](https://example.org/x)\n",
        "`a cell of one's own` in code\n\n```\nfirst-level cache\n```\n",
        "| a table may be wide |" + " " * 120 + "|\n",
        "AMX (the matrix unit)\n",
    ],
)
def test_good_page_has_no_problem(text):
    assert list(prose.lint_page(ROOT / "README.md", text)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("What one layer did.", "first line: expected an imperative or a noun phrase, got 'What one layer did.'"),
        ("Whether it runs.", "first line: expected an imperative or a noun phrase, got 'Whether it runs.'"),
        ("Makes a cell.", "first line: expected an imperative, got 'Makes a cell.'"),
        ("Make a cell\nof a function.", "first line: expected one line that ends the sentence, got 'Make a cell'"),
        ("Make.\n\nOf any number format.", "'number format': write 'dtype'"),
        ("Make.\n\n>>> f(\n... 1\n1\n", "code does not parse: '(' was never closed"),
    ],
)
def test_problem_of_a_docstring_is_found(text, message):
    assert [found for _, found in prose.lint_docstring(prose.Docstring("f", text, True))] == [message]


def test_good_docstring_has_no_problem():
    text = "Return True if it runs.\n\nExample:\n    >>> f(\n    ...     1)\n    1\n"
    assert list(prose.lint_docstring(prose.Docstring("f", text, True))) == []
    assert list(prose.lint_docstring(prose.Docstring("F", "Passes of a cell.", False))) == []


@pytest.mark.parametrize(
    ("source", "problems"),
    [
        (
            '"""What is shared."""\n',
            [(1, "first line: expected an imperative or a noun phrase, got 'What is shared.'")],
        ),
        ("def _f():\n    '''Go.\n\n    To the bit.'''\n", [(4, "'To the bit': write 'bitwise equal, same bits'")]),
        (
            "x = 1\n# Of a kind of\n# number format.\n",
            [
                (2, "first line: expected an imperative or a noun phrase, got 'Of a kind of'"),
                (3, "'number format': write 'dtype'"),
            ],
        ),
        ("x = 1  # a twin\n", [(1, "'twin': write 'fallback, plain PyTorch reference'")]),
        ('x = "# a twin"\n', []),
    ],
)
def test_problem_of_a_python_file_is_found(source, problems):
    assert list(prose.lint_python(source)) == problems


def test_problem_of_a_comment_in_cpp_is_found():
    lines = [
        "// Adds.",
        "int a;",
        "  // Of the",
        "  // first-level cache",
        "int b;  // Whether",
        'auto c = "http://twin";',
    ]
    assert list(prose.lint_comments(prose.comment_blocks(lines, "//"))) == [
        (3, "first line: expected an imperative or a noun phrase, got 'Of the'"),
        (4, "'first-level cache': write 'L1 cache'"),
        (5, "first line: expected an imperative or a noun phrase, got 'Whether'"),
    ]


EXAMPLES = [docstring for docstring in prose.docstrings() if ">>>" in docstring.text] if prose else []


@pytest.mark.parametrize("docstring", EXAMPLES, ids=lambda docstring: docstring.name)
def test_example_of_a_docstring_runs(docstring):
    names = {"torch": torch, "fastrnn": fastrnn}
    test = doctest.DocTestParser().get_doctest(docstring.text, names, docstring.name, None, 0)
    importlib.import_module("fastrnn.inspect")  # an attribute of fastrnn once it is imported
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=report.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(report)


#: A gallery cell is called as `fastrnn.custom.Network` shows; the others need a GPU, or a trained model.
WITHOUT_EXAMPLES = ("fastrnn.gallery", "fastrnn.cuda", "fastrnn.apps.lm", "fastrnn.apps.inspect")


def test_public_classes_and_functions_have_examples():
    missing = []
    for docstring in prose.docstrings():
        parent, _, name = docstring.name.rpartition(".")
        in_module = parent == "fastrnn" or importlib.util.find_spec(parent) if parent.islower() else None
        if not in_module or parent in WITHOUT_EXAMPLES or ">>>" in docstring.text:
            continue
        if not isinstance(getattr(importlib.import_module(parent), name), types.ModuleType):
            missing.append(docstring.name)
    assert missing == []
