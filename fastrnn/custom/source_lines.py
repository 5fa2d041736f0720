"""Place of an error in the source of a cell's step."""

from __future__ import annotations

import inspect
import itertools
import linecache
import sys
from collections.abc import Callable
from types import CodeType, FrameType

#: Columns of a line that a message shows.
WIDTH = 100


def place(step: Callable, error: BaseException | None = None) -> str:
    """File, line and text of the place in `step`, or in what it calls in its file: now, or where `error` came from."""
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
    file, inside = code.co_filename, any(f.f_code is code for f, _, _ in frames)
    mine = [(f.f_code, line, at) for f, line, at in frames if inside and f.f_code.co_filename == file]
    line, column = _position(*mine[0]) if mine else (code.co_firstlineno, 0)
    return f"{file}:{line}: `{excerpt(linecache.getline(file, line), column)}`"


def _position(code: CodeType, line: int, instruction: int) -> tuple[int, int]:
    """The line and the column of an instruction; column 0 where Python (3.10) does not know it."""
    if not hasattr(code, "co_positions"):
        return line, 0
    begin, _, column, _ = next(itertools.islice(code.co_positions(), instruction // 2, None), (None,) * 4)
    return line, (column or 0) if begin == line else 0


def excerpt(text: str, column: int = 0) -> str:
    """A source line without its indentation; of a long one the part around a column."""
    stripped = text.strip()
    column -= len(text) - len(text.lstrip())
    if len(stripped) <= WIDTH:
        return stripped
    begin = max(0, min(column - WIDTH // 3, len(stripped) - WIDTH))
    end = begin + WIDTH
    return ("… " if begin else "") + stripped[begin:end].strip() + (" …" if end < len(stripped) else "")
