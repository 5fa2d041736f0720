"""Location of an error in the source of a cell's step."""

from __future__ import annotations

import inspect
import itertools
import linecache
import sys
from collections.abc import Callable
from types import CodeType, FrameType

#: Number of columns of a source line shown in a message.
WIDTH = 100


def place(step: Callable, error: BaseException | None = None) -> str:
    """Return file, line and text of the current place in `step` or its callees in the same file, or that of `error`."""
    code = inspect.unwrap(step).__code__
    frames: list[tuple[FrameType, int, int]] = []  # the innermost first: frame, line, instruction
    frame: FrameType | None = sys._getframe()
    while error is None and frame is not None:
        frames.append((frame, frame.f_lineno, frame.f_lasti))
        frame = frame.f_back
    trail = None if error is None else error.__traceback__
    while trail is not None:
        frames.insert(0, (trail.tb_frame, trail.tb_lineno, trail.tb_lasti))
        trail = trail.tb_next
    file, in_step = code.co_filename, any(f.f_code is code for f, _, _ in frames)
    mine = [(f.f_code, line, at) for f, line, at in frames if in_step and f.f_code.co_filename == file]
    line, column = _position(*mine[0]) if mine else (code.co_firstlineno, 0)
    return f"{file}:{line}: `{excerpt(linecache.getline(file, line), column)}`"


def _position(code: CodeType, line: int, instruction: int) -> tuple[int, int]:
    """Return line and column of an instruction; column 0 if unknown, as in Python 3.10."""
    if not hasattr(code, "co_positions"):
        return line, 0
    begin, _, column, _ = next(itertools.islice(code.co_positions(), instruction // 2, None), (None,) * 4)
    return line, (column or 0) if begin == line else 0


def excerpt(text: str, column: int = 0) -> str:
    """Return a source line without its indentation; for a long line the part around a column."""
    stripped = text.strip()
    column -= len(text) - len(text.lstrip())
    if len(stripped) <= WIDTH:
        return stripped
    begin = max(0, min(column - WIDTH // 3, len(stripped) - WIDTH))
    end = begin + WIDTH
    return ("… " if begin else "") + stripped[begin:end].strip() + (" …" if end < len(stripped) else "")
