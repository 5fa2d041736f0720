"""Check the prose of the repository: ``python tools/check_prose.py``; prints one line for each problem.

Pages are the Markdown files of the checkout outside tests. Public docstrings are checked in full; private docstrings
and the comments of Python and C++ files for the terms and for headless first lines.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import re
import sys
import textwrap
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = (
    *(f"fastrnn{n}" for n in ("", ".functional", ".init", ".training", ".custom", ".gallery", ".inspect", ".cuda")),
    "fastrnn.apps.lm",
    "fastrnn.apps.inspect",
)
LIMIT = 120  # characters in a line, as for code
#: Folders with sources, and file name suffixes by language.
SOURCES = ("fastrnn", "tools", "tests", "benchmarks", "examples", "csrc")
CPP = (".h", ".cpp", ".cu")
#: Files that contain the wrong terms on purpose: this list, and examples of problems in its test.
QUOTING = ("tools/check_prose.py", "tests/docs/test_prose.py")

#: Terms that have a better one, and the better one.
TERMS = {
    r"number formats?": "dtype",
    r"cells? of (?:one's|your|their|a user's) own": "custom cell",
    r"numbers? (?:of|for) each (?:hidden )?unit": "per-unit parameter",
    r"nearest cache|first-level cache": "L1 cache",
    r"second-level cache": "L2 cache",
    r"third-level cache": "L3 cache",
    r"products? behind": "recurrent product",
    r"products? around": "input product",
    r"crowded": "contended",
    r"modest": "thread limit",
    r"short way": "fast path",
    r"plain forms?|twins?": "fallback, plain PyTorch reference",
    r"what arrived": "gradient from later steps",
    r"Python's lock": "Python GIL",
    r"(?:to the|bit for) bit": "bitwise equal, same bits",
}
#: A first line that begins so is a clause without a head, or has no subject.
HEADLESS = re.compile(r"(?:What|Whether|How|Of|That which|Who|Whose|Where|When|Why|So that)\b")
#: A third person at the beginning of a function's first line; an imperative is wanted.
THIRD_PERSON = re.compile(
    r"(?!(?:Pass|Access|Process|Express|Biases|Gates|Eigenvalues|Names|Vectors)\b)[A-Z][a-z]+[^s\W]s\b"
)


class Problem(NamedTuple):
    """A problem of one line."""

    place: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.place}:{self.line}: {self.message}"


class Docstring(NamedTuple):
    """A public docstring, unindented, and where it begins."""

    name: str
    text: str
    of_function: bool


def main() -> int:
    problems = [*page_problems(), *docstring_problems(), *source_problems()]
    for problem in problems:
        print(problem)
    return bool(problems)


def pages() -> list[Path]:
    listed = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "csrc").rglob("*.md")]
    return sorted([*listed, *(ROOT / "examples").glob("*.md"), ROOT / "benchmarks" / "README.md"])


def page_problems() -> Iterator[Problem]:
    for path in pages():
        text = path.read_text(encoding="utf-8")
        place = str(path.relative_to(ROOT))
        yield from (Problem(place, line, message) for line, message in lint_page(path, text))


def lint_page(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Line and message of each problem of a page."""
    prose = "".join(without_code(text))
    yield from wrong_terms(prose)
    if "matrix unit" in prose and "AMX" not in prose:
        yield 1, "matrix unit: expected AMX beside its first mention"
    yield from dead_links(path, prose)
    yield from broken_code(text)
    for number, line in enumerate(prose.splitlines(), 1):
        if len(line) > LIMIT and not line.lstrip().startswith("|"):
            yield number, f"expected at most {LIMIT} characters, got {len(line)}"


def without_code(text: str) -> Iterator[str]:
    """The lines of a page, those of code blocks empty."""
    inside = False
    for line in text.splitlines(keepends=True):
        fence = line.startswith("```")
        yield "\n" if inside or fence else line
        inside ^= fence


def wrong_terms(prose: str) -> Iterator[tuple[int, str]]:
    text = re.sub(r"`[^`\n]*`", lambda code: " " * len(code[0]), prose)
    for pattern, better in TERMS.items():
        spaced = pattern.replace(" ", r"\s+")
        for found in re.finditer(rf"\b(?:{spaced})\b", text, re.IGNORECASE):
            yield line_of(text, found.start()), f"{' '.join(found[0].split())!r}: write {better!r}"


def dead_links(path: Path, prose: str) -> Iterator[tuple[int, str]]:
    for found in re.finditer(r"\]\(<?(?!https?:|mailto:)([^)#>]*)(?:#([^)>]*))?>?\)", prose):
        target = (path.parent / found[1]).resolve() if found[1] else path
        if not target.is_file():
            yield line_of(prose, found.start()), f"link to a file that is not there: {found[1]}"
        elif found[2] and found[2] not in anchors(prose if target == path else target.read_text(encoding="utf-8")):
            yield line_of(prose, found.start()), f"link to a section that is not there: {found[1]}#{found[2]}"


def anchors(text: str) -> set[str]:
    """The anchors that a code host makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", "".join(without_code(text)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_code(text: str) -> Iterator[tuple[int, str]]:
    for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        try:
            ast.parse(found[1])
        except SyntaxError as error:
            yield line_of(text, found.start(1)) + (error.lineno or 1) - 1, f"code does not parse: {error.msg}"


def line_of(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def docstring_problems() -> Iterator[Problem]:
    for docstring in docstrings():
        yield from (Problem(docstring.name, line, message) for line, message in lint_docstring(docstring))


def lint_docstring(docstring: Docstring) -> Iterator[tuple[int, str]]:
    """Line and message of each problem of a docstring."""
    first, _, rest = docstring.text.partition("\n")
    if HEADLESS.match(first):
        yield 1, f"first line: expected an imperative or a noun phrase, got {first!r}"
    if docstring.of_function and THIRD_PERSON.match(first):
        yield 1, f"first line: expected an imperative, got {first!r}"
    if rest and not rest.startswith("\n"):
        yield 1, f"first line: expected one line that ends the sentence, got {first!r}"
    yield from wrong_terms(docstring.text)
    for example in re.finditer(r"(?:^>>> .*\n(?:^\.\.\. .*\n)*)", textwrap.dedent(docstring.text), re.MULTILINE):
        source = re.sub(r"^(?:>>>|\.\.\.) ?", "", example[0], flags=re.MULTILINE)
        yield from broken_code(f"```python\n{source}```\n")


def source_problems() -> Iterator[Problem]:
    for path in sorted(file for folder in SOURCES for file in (ROOT / folder).rglob("*")):
        place = path.relative_to(ROOT).as_posix()
        if place in QUOTING or "__pycache__" in place:
            continue
        if path.suffix == ".py":
            problems = lint_python(path.read_text(encoding="utf-8"))
        elif path.suffix in CPP:
            problems = lint_comments(comment_blocks(path.read_text(encoding="utf-8").splitlines(), "//"))
        else:
            continue
        yield from (Problem(place, line, message) for line, message in problems)


def lint_python(source: str) -> Iterator[tuple[int, str]]:
    """Line and message of each problem in the docstrings and comments of a Python file."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                yield from lint_text(text, node.body[0].lineno)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    lines = [""] * (source.count("\n") + 1)
    for token in tokens:
        if token.type == tokenize.COMMENT:
            lines[token.start[0] - 1] = " " * token.start[1] + token.string.replace("#:", "# ", 1)
    yield from lint_comments(comment_blocks(lines, "#"))


def comment_blocks(lines: list[str], mark: str) -> Iterator[tuple[int, str]]:
    """First line and text of each block of comments: consecutive lines of comments only, or one comment after code."""
    block: list[str] = []
    for number, line in enumerate([*lines, ""], 1):
        code, found, text = line.partition(mark)
        if found and not code.strip():
            block.append(text.strip())
            continue
        if block:
            yield number - len(block), "\n".join(block)
            block = []
        if found and not code.endswith(":"):  # not an address
            yield number, text.strip()


def lint_comments(blocks: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for line, text in blocks:
        yield from lint_text(text, line)


def lint_text(text: str, begin: int) -> Iterator[tuple[int, str]]:
    """Line and message of each problem of a docstring or comment that begins on line ``begin``."""
    first = text.partition("\n")[0]
    if HEADLESS.match(first):
        yield begin, f"first line: expected an imperative or a noun phrase, got {first!r}"
    for line, message in wrong_terms(text):
        yield begin + line - 1, message


def docstrings() -> Iterator[Docstring]:
    """The docstrings of all public names, and of their public methods."""
    seen: set[int] = set()
    for name in PUBLIC:
        module = importlib.import_module(name)
        yield Docstring(name, inspect.cleandoc(module.__doc__ or ""), False)
        for key, value in public(module).items():
            if id(value) not in seen and callable(value):
                seen.add(id(value))
                yield from of_object(f"{name}.{key}", value)


def public(module: ModuleType) -> dict[str, Any]:
    """The public names of a module; without a list, what it defines and the names of its calls' arguments."""
    names = dir(module) if "__dir__" in vars(module) else getattr(module, "__all__", None)  # a gallery finds its cells
    if names is None:
        names = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        names = [key for key in (*names, "LayerWeights") if not key.startswith("_")]
    found = {key: getattr(module, key) for key in names}
    return {key: value for key, value in found.items() if not inspect.ismodule(value)}


def of_object(name: str, value: Any) -> Iterator[Docstring]:
    yield Docstring(name, inspect.cleandoc(value.__doc__ or ""), not inspect.isclass(value))
    if not inspect.isclass(value):
        return
    for key in dir(value):
        member = inspect.getattr_static(value, key)
        function = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
        ours = inspect.isfunction(function) and function.__module__.startswith("fastrnn")
        if ours and not key.startswith("_") and function.__doc__:
            yield Docstring(f"{name}.{key}", inspect.cleandoc(function.__doc__), not isinstance(member, property))


if __name__ == "__main__":
    sys.exit(main())
