"""Pages of the documentation: run their code and read their tables."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield kind and content of a page's blocks of Python and text.

    Empty lines precede the Python, so that messages show the page's line.
    """
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(python|text)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        kind, block = found.groups()
        yield kind, block if kind == "text" else "\n" * text[: found.start(2)].count("\n") + block


def run_code(page: Path, shown: bool = False) -> int:
    """Run a page's Python from top to bottom; with ``shown``, compare its text blocks with the output of the code.

    Returns:
        the number of blocks of Python.
    """
    names: dict[str, Any] = {"__name__": "page"}
    printed, count = "", 0
    for kind, block in blocks(page):
        if kind == "text":
            assert not shown or block == printed, "what is shown is not what the code before it prints"
            continue
        output = io.StringIO()
        with contextlib.redirect_stdout(output) if shown else contextlib.nullcontext():
            exec(compile(block, str(page), "exec"), names)
        printed, count = output.getvalue(), count + 1
    return count


def load_script(name: str, folder: str = "benchmarks") -> Any:
    """Load a script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(text: str) -> dict[str, str]:
    """Return the defaults by option, from tables with these as their first two columns."""
    found: dict[str, str] = {}
    for row in text.splitlines():
        if row.startswith("| `--"):
            names, defaults = row.split("|")[1:3]
            found |= zip(re.findall("`(.*?)`", names), defaults.strip().split(", "), strict=True)
    return found
