"""The quick subset and the folders of the tests: nothing is forgotten, and every entry of the lists names something."""

from __future__ import annotations

import ast
import itertools
from collections import Counter

import pytest
import quick


def test_entries_name_files_and_functions():
    for table in (quick.CASES, quick.SLOW):
        for file, names in table.items():
            path = quick.TESTS / file
            assert path.is_file(), f"tests/harness/quick.py lists {file}, which does not exist"
            unknown = set(names or ()) - quick.functions_of(path)
            assert not unknown, f"tests/harness/quick.py lists functions that {file} does not have: {sorted(unknown)}"


def test_no_function_is_both_slow_and_central():
    for file, names in quick.CASES.items():
        slow = quick.SLOW.get(file, set())
        assert slow is not None, file
        assert not slow & set(names), file


def test_every_folder_has_quick_tests():
    quick_in: Counter[str] = Counter()
    for path in quick.files():
        file = path.relative_to(quick.TESTS).as_posix()
        slow = quick.SLOW.get(file, set())
        quick_in[file.rpartition("/")[0]] += 0 if slow is None else len(quick.functions_of(path) - slow)
    assert not [folder for folder, count in quick_in.items() if count == 0]


def test_names_of_test_files_are_unique():
    """As pytest imports them by their names alone."""
    names = Counter(path.name for path in quick.files())
    assert not [name for name, count in names.items() if count > 1]


def test_test_modules_do_not_import_each_other():
    for path in quick.files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("test_")], f"{path}: share it in tests/harness"


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_cases_are_spread(count):
    for wanted in (0, 1, 3, 7, 1000):
        cases = quick.chosen(count, wanted, "test_something")
        assert len(cases) == min(count, wanted)
        assert cases == sorted(set(cases))
        assert all(0 <= case < count for case in cases)
        if len(cases) > 1:
            assert max(b - a for a, b in itertools.pairwise(cases)) <= -(-count // len(cases))
