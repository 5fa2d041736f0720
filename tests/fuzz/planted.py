"""A fuzzer without a subject, with faults planted at certain sizes, for the driver's tests in test_fuzz.py."""

from __future__ import annotations

import ctypes
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A case that fails if `size` is 5 or more, with a message, or with a crash if `crash` is set."""

    size: int = 1
    crash: bool = False
    other: int = 0
    values: int = 0


def drawn(seed: int) -> Case:
    return Case(size=seed % 11, crash=seed % 2 == 1, other=seed, values=seed)


def simpler(case: Case) -> Iterator[Case]:
    if case.other:
        yield dataclasses.replace(case, other=0)
    for size in (case.size // 2, case.size - 1):
        if 0 < size < case.size:
            yield dataclasses.replace(case, size=size)


def check(case: Case) -> list[str]:
    if case.size < 5:
        return []
    if case.crash:
        ctypes.string_at(0)
    return [f"wrong in process {os.getpid() and 'of its own'}"]
