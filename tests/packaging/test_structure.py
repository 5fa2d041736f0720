"""Rules for imports: the library imports none of its applications, and no imports form a cycle."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fastrnn

PACKAGE = Path(fastrnn.__file__).parent


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def in_apps(name: str) -> bool:
    return name == "fastrnn.apps" or name.startswith("fastrnn.apps.")


# `python -m fastrnn` is the command line.
CORE = [name for name in FILES if not in_apps(name) and name != "fastrnn.__main__"]

# Extension modules: `from fastrnn import _C` needs nothing of fastrnn/__init__.py.
COMPILED = {"_C", "_cuda"}


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
    """All statements that run when a module is loaded: none inside functions or for type checkers only."""
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or is_type_checking(node):
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from statements(handler.body)


def imported(name: str, nodes: Iterator[ast.AST]) -> set[str]:
    """Modules of fastrnn that import statements name; of ``from a import b`` a.b if that is a module, else a."""
    package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            submodules = {f"{base}.{alias.name}" for alias in node.names} & FILES.keys()
            found |= submodules
            if {alias.name for alias in node.names if f"{base}.{alias.name}" not in submodules} - COMPILED:
                found.add(base)
    return {module for module in found if module.split(".")[0] == "fastrnn"}


def tree(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", CORE)
def test_core_imports_nothing_of_the_apps(name):
    """Imports inside functions and for type checkers count, and so do module names given to import_module."""
    assert sorted(filter(in_apps, imported(name, ast.walk(tree(name))))) == []
    strings = [n.value for n in ast.walk(tree(name)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    assert [text for text in strings if in_apps(text)] == []


def test_importing_fastrnn_loads_no_app():
    code = "import sys, fastrnn, fastrnn.inspect, fastrnn.gallery;"
    code += "print([name for name in sys.modules if 'fastrnn.apps' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_importing_fastrnn_does_not_load_the_compiler():
    """torch._dynamo takes as long to load as torch itself."""
    code = "import sys, fastrnn; print([name for name in sys.modules if name.startswith('torch._dynamo.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected components with more than one module."""
    reachable = {}
    for start in edges:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for target in edges[waiting.pop()] - seen:
                seen.add(target)
                waiting.append(target)
        reachable[start] = seen
    found: list[set[str]] = []
    for name in edges:
        group = {other for other in reachable[name] if name in reachable[other]}
        if len(group) > 1 and group not in found:
            found.append(group)
    return found


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [{"a", "b", "c"}]
    assert circles({"a": {"b"}, "b": set()}) == []


def test_core_files_import_each_other_in_no_circle():
    edges = {name: imported(name, statements(tree(name).body)) & set(CORE) for name in CORE}
    assert circles(edges) == []


def test_lists_of_imports_are_complete():
    """The checks above see what there is: the command line imports applications, functional.py cells."""
    assert any(map(in_apps, imported("fastrnn.__main__", ast.walk(tree("fastrnn.__main__")))))
    assert "fastrnn.cells" in imported("fastrnn.functional", statements(tree("fastrnn.functional").body))
