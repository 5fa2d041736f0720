"""Human-readable features of a text at each place, for comparison with the units of a network.

A feature describes the text after the character at that place has been read: after an opening quotation mark it is
inside quotes, after the closing one outside. The lexer is simple and does not cover all rules of a language:

==============  ======================================================================================================
``python``      ``#`` begins a comment; strings in ``'``, ``"``, and three of either, with backslashes
``c``           ``//`` and ``/* */`` are comments; strings in ``"`` and ``'``, with backslashes
``text``        no comments; quotations in ``"`` (to the end of the paragraph at most), ``“ ”`` and ``« »``
==============  ======================================================================================================

Strings in single marks end with their line. ``auto`` is ``c`` if a tenth of the lines end with ``;``, ``{`` or ``}``,
else ``python`` if a tenth end with ``:`` or ``)`` or begin with ``#``, ``import`` or ``from``, else ``text``.

=====================  ===============================================================================================
inside quotes          yes or no
in a comment           yes or no
inside a word          yes or no: the character is a letter, a digit or ``_``
start of the line      yes or no: only blanks since the beginning of the line
number                 yes or no: the character is a digit, or a point between digits
position in the line   characters since the last line feed; 0 at the line feed
indentation            leading blanks of the line, a tab reaching to the next multiple of 8
bracket depth          open ``([{`` outside strings and comments; from 0 to 20
length of the word     characters of the word so far
=====================  ===============================================================================================
"""

from __future__ import annotations

import re

import numpy as np

SYNTAXES = ("auto", "python", "c", "text")
#: Boolean features, and numeric ones.
YES_OR_NO = ("inside quotes", "in a comment", "inside a word", "start of the line", "number")
NUMBERS = ("position in the line", "indentation", "bracket depth", "length of the word")
FEATURES = YES_OR_NO + NUMBERS

_TAB, _DEEPEST = 8, 20
_MARKS = {
    "python": ('"""', "'''", '"', "'"),
    "c": ('"', "'"),
    "text": ('"', "“", "«"),
}
_CLOSING = {"“": "”", "«": "»"}
_COMMENTS = {"python": {"#": "\n"}, "c": {"//": "\n", "/*": "*/"}, "text": {}}


def features_of(text: str, syntax: str = "auto") -> dict[str, np.ndarray]:
    """Return the features of each character by name: (N) bool for yes-or-no features, else float32.

    Args:
        text: N characters.
        syntax: one of `SYNTAXES`.

    Raises:
        ValueError: ``syntax`` is not one of them.

    Example:
        >>> int(fastrnn.inspect.features_of("x = 1  # one", "python")["in a comment"].sum())
        5
    """
    if syntax not in SYNTAXES:
        raise ValueError(f"syntax: expected one of {', '.join(SYNTAXES)}, got {syntax!r}")
    quoted, commented = lexed(text, guessed(text) if syntax == "auto" else syntax)
    features = {"inside quotes": quoted, "in a comment": commented}
    is_code = ~(quoted | commented)
    numbers = np.zeros((len(NUMBERS), len(text)), np.float32)
    starts, words, digits = (np.zeros(len(text), bool) for _ in range(3))
    column = indentation = depth = length = 0
    start = True
    for k, character in enumerate(text):
        if character == "\n":
            column, indentation, length, start = 0, 0, 0, True
        else:
            column += 1
            if start and character in " \t":
                indentation += 1 if character == " " else _TAB - indentation % _TAB
            else:
                start = False
        starts[k] = start
        words[k] = character.isalnum() or character == "_"
        length = length + 1 if words[k] else 0
        digits[k] = character.isdigit() or (
            character == "." and text[k - 1 : k].isdigit() and text[k + 1 : k + 2].isdigit()
        )
        if is_code[k] and character in "([{":
            depth = min(depth + 1, _DEEPEST)
        elif is_code[k] and character in ")]}":
            depth = max(depth - 1, 0)
        numbers[:, k] = column, indentation, depth, length
    features |= {"inside a word": words, "start of the line": starts, "number": digits}
    return features | dict(zip(NUMBERS, numbers, strict=True))


def guessed(text: str) -> str:
    """Guess the syntax of a text: ``c``, ``python`` or ``text``."""
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line]
    few = len(lines) / 10
    if lines and sum(line.endswith((";", "{", "}")) for line in lines) >= few:
        return "c"
    if lines and sum(bool(re.search(r"[:)]$|^(#|import |from )", line)) for line in lines) >= few:
        return "python"
    return "text"


def lexed(text: str, syntax: str) -> tuple[np.ndarray, np.ndarray]:
    """Return for each character whether quotes, and whether a comment, are open after it: two arrays (N) of bool."""
    quoted, commented = np.zeros(len(text), bool), np.zeros(len(text), bool)
    k = 0
    while k < len(text):
        mark = next((m for m in _MARKS[syntax] if text.startswith(m, k)), "")
        begin = next((m for m in _COMMENTS[syntax] if text.startswith(m, k)), "")
        if mark:
            end, closed = _end_of_quote(text, k + len(mark), mark, syntax)
            quoted[k : end - closed] = True
            k = end
        elif begin:
            close = _COMMENTS[syntax][begin]
            place = text.find(close, k + len(begin))
            end = len(text) if place < 0 else place + len(close)
            commented[k : end - (place >= 0)] = True
            k = end
        else:
            k += 1
    return quoted, commented


def _end_of_quote(text: str, k: int, mark: str, syntax: str) -> tuple[int, bool]:
    """Return the index after a quotation whose content begins at k, and True if it is closed there."""
    close = _CLOSING.get(mark, mark)
    while k < len(text):
        if text[k] == "\\" and syntax != "text":
            k += 2
        elif text.startswith(close, k):
            return k + len(close), True
        elif len(mark) == 1 and text[k] == "\n" and (syntax != "text" or text.startswith("\n", k + 1)):
            return k + 1, True
        else:
            k += 1
    return len(text), False
