"""Conversion of text to ids and back: bytes, or the characters of a text."""

from __future__ import annotations

import codecs
from typing import Any, Protocol

import numpy as np


class Decoder(Protocol):
    """Converts ids to text one by one."""

    def feed(self, unit: int) -> str:
        """Return the text completed by this id: often one character, sometimes none."""


class Bytes:
    """All 256 bytes; an id is the byte's value. Text is UTF-8."""

    unit, units = "byte", "bytes"
    size = 256

    def encode(self, text: str, name: str = "text") -> np.ndarray:
        """Return the ids (N) of a text; bytes that the command line could not decode are restored."""
        return np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8).astype(np.int64)

    def decoder(self) -> Decoder:
        return _ByteDecoder()

    def as_dict(self) -> dict[str, Any]:
        return {"unit": "byte"}


class _ByteDecoder:
    """Holds the bytes of an incomplete character; invalid UTF-8 becomes U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, unit: int) -> str:
        return self._decoder.decode(bytes((unit,)))


class Characters:
    """The characters of a text; an id is the index of a character in their order.

    Args:
        characters: each once, in increasing order of code points.
    """

    unit, units = "character", "characters"

    def __init__(self, characters: str) -> None:
        points = np.frombuffer(characters.encode("utf-32-le"), "<u4")
        if not len(points) or bool((points[1:] <= points[:-1]).any()):
            raise ValueError("characters: expected distinct characters in increasing order")
        self.characters, self.size = characters, len(points)
        self._ids = np.full(int(points[-1]) + 1, -1, np.int64)
        self._ids[points] = np.arange(self.size)

    def encode(self, text: str, name: str = "text") -> np.ndarray:
        """Return the ids (N) of a text, which errors call ``name``.

        Raises:
            ValueError: a character is not in the vocabulary.
        """
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        ids = self._ids[np.minimum(points, len(self._ids) - 1)]
        ids = np.where(points < len(self._ids), ids, -1)
        if len(ids) and int(ids.min()) < 0:
            raise ValueError(
                f"{name}: expected characters of the vocabulary ({self.size}), got {text[int(ids.argmin())]!r}"
            )
        return ids

    def decoder(self) -> Decoder:
        return _CharacterDecoder(self.characters)

    def as_dict(self) -> dict[str, Any]:
        return {"unit": "character", "characters": self.characters}


class _CharacterDecoder:
    def __init__(self, characters: str) -> None:
        self._characters = characters

    def feed(self, unit: int) -> str:
        return self._characters[unit]


Vocabulary = Bytes | Characters


def from_dict(description: dict[str, Any]) -> Vocabulary:
    """Return the vocabulary that `as_dict` described."""
    return Bytes() if description["unit"] == "byte" else Characters(description["characters"])
