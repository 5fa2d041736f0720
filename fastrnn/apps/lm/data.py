"""Text in a file of any size, and the rows of a batch that read it side by side.

Letters: B rows, T steps of a chunk, V size of the vocabulary. A unit is a byte or a character.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastrnn.apps.lm.errors import TextError
from fastrnn.apps.lm.vocabulary import Bytes, Characters, Vocabulary

_BLOCK = 1 << 14  # bytes between two entries of the index of characters
_SCAN = 1 << 22  # bytes that are looked at at once, a multiple of _BLOCK
_SAMPLES, _SAMPLE = 64, 1 << 14
_WHOLE = 1 << 28  # files up to so many bytes are hashed as a whole


class File:
    """A file that is read in places.

    It is not mapped into memory: where a mapped file has been truncated, reading it ends the process (SIGBUS).

    Attributes:
        path: the file.
        size: its bytes when it was opened.

    Raises:
        ValueError: it is no file, or empty.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            problem = "which is no regular file" if path.exists() else "which does not exist"
            raise ValueError(f"file: expected a file with text, got {str(path)!r}, {problem}")
        self.path, self._handle = path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._handle)
        self.size = os.fstat(self._handle).st_size
        if self.size == 0:
            raise ValueError(f"file: expected a file with text, got {str(path)!r}, which is empty")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Bytes from ``start`` to before ``stop`` or the end, uint8.

        Raises:
            TextError: the file has become shorter, or cannot be read.
        """
        count = max(0, min(stop, self.size) - start)
        try:
            content = os.pread(self._handle, count, start)
            while len(content) < count:  # at most 2 GiB at once
                rest = os.pread(self._handle, count - len(content), start + len(content))
                if not rest:
                    raise self._shorter()
                content += rest
        except OSError as error:
            raise TextError(f"file: could not read {self.path}: {error.strerror or error}") from error
        return np.frombuffer(content, np.uint8)

    def check(self) -> None:
        """Raises:
        TextError: the file has become shorter.
        """
        if os.fstat(self._handle).st_size < self.size:
            raise self._shorter()

    def _shorter(self) -> TextError:
        found = os.fstat(self._handle).st_size
        return TextError(f"file: expected {self.size} bytes in {self.path}, as at the start of the run, got {found}")


class Text:
    """The units of a file, which is never read as a whole.

    Attributes:
        file: the file.
        path: where it is.
        vocabulary: its units.
        length: how many units it has.
    """

    def __init__(self, file: File, vocabulary: Vocabulary, length: int) -> None:
        self.file, self.path, self.vocabulary, self.length = file, file.path, vocabulary, length

    def read(self, start: int, count: int) -> np.ndarray:
        """Ids (count) from the unit ``start`` on, int64.

        Raises:
            TextError: the file has become shorter or is another one, or cannot be read.
        """
        raise NotImplementedError


class ByteText(Text):
    """Bytes, as they are."""

    def __init__(self, path: Path) -> None:
        file = File(path)
        super().__init__(file, Bytes(), file.size)

    def read(self, start: int, count: int) -> np.ndarray:
        return self.file.read(start, start + count).astype(np.int64)


class CharacterText(Text):
    """Characters of UTF-8. One pass over the file finds the vocabulary, and counts the characters before every block
    of 16 KiB, by which any character is found.

    Raises:
        ValueError: the file is not UTF-8.
    """

    def __init__(self, path: Path) -> None:
        file = File(path)
        seen = np.zeros(0x110000, bool)
        decoder = codecs.getincrementaldecoder("utf-8")()
        counts = []
        for start in range(0, file.size, _SCAN):
            part = file.read(start, start + _SCAN)
            final = start + _SCAN >= file.size
            try:
                characters = decoder.decode(part.tobytes(), final)
            except UnicodeDecodeError as error:
                where = start - len(error.object) + len(part) + error.start  # the decoder had bytes left before part
                raise ValueError(f"file: expected UTF-8 in {path}, got {error.reason} at byte {where}") from None
            seen[np.frombuffer(characters.encode("utf-32-le"), "<u4")] = True
            begins = _begins(part)
            counts += [int(np.count_nonzero(begins[k : k + _BLOCK])) for k in range(0, len(part), _BLOCK)]
        self._before = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        vocabulary = Characters("".join(map(chr, np.flatnonzero(seen))))
        super().__init__(file, vocabulary, int(self._before[-1]))

    def read(self, start: int, count: int) -> np.ndarray:
        try:
            first, last = self._find(start), self._find(start + count)
            ids = self.vocabulary.encode(self.file.read(first, last).tobytes().decode())
        except (ValueError, IndexError):  # other characters, or more of them in a block
            ids = np.empty(0, np.int64)
        if len(ids) != min(count, self.length - start):
            raise TextError(f"file: expected {self.path} as it was at the start of the run, got other characters in it")
        return ids

    def _find(self, index: int) -> int:
        """At which byte that character begins."""
        if index >= self.length:
            return self.file.size
        block = int(np.searchsorted(self._before, index, side="right")) - 1
        begins = np.flatnonzero(_begins(self.file.read(block * _BLOCK, (block + 1) * _BLOCK)))
        return block * _BLOCK + int(begins[index - self._before[block]])


def _begins(part: np.ndarray) -> np.ndarray:
    """Which bytes are the first ones of a character."""
    return (part & 0xC0) != 0x80


def open_text(path: str | os.PathLike[str], unit: str) -> Text:
    """The text of a file in bytes or characters.

    Raises:
        ValueError: it is no file, empty, or not UTF-8 where characters are wanted.
        OSError: it cannot be opened.
        TextError: it becomes shorter while it is read, or cannot be read.
    """
    return ByteText(Path(path)) if unit == "byte" else CharacterText(Path(path))


def fingerprint(path: Path) -> dict[str, Any]:
    """What tells a text from another: its bytes, and a hash of all of it; of one of more than 256 MiB that of 64 places
    evenly over the file and of its end.
    """
    content = File(path)
    size, length = content.size, _SAMPLE
    starts = [size * k // _SAMPLES for k in range(_SAMPLES)] + [max(0, size - _SAMPLE)]
    if size <= _WHOLE:
        starts, length = list(range(0, size, _SCAN)), _SCAN
    digest = hashlib.sha256()
    for start in starts:
        digest.update(content.read(start, start + length).tobytes())
    return {"bytes": size, "sha256": digest.hexdigest()}


class Rows:
    """B rows that read units ``first``…``last`` of a text side by side, T at a time.

    A row is ``chunks``·T units, B rows lie one behind the other, and each chunk goes on where the last one ended. What
    does not fill whole chunks is left over: less than B·(T+1) units. In epoch 0 the rows begin at ``first``; in every
    later epoch all of them are moved on by the same number of units, drawn from the seed and the epoch, between 0 and
    what is left over, so that other units begin a chunk.

    Args:
        batch: B.
        steps: T.
        mine: which of the B rows are read here.

    Raises:
        ValueError: there is not one chunk for every row.
    """

    def __init__(
        self, text: Text, first: int, last: int, batch: int, steps: int, mine: range, seed: int, what: str = "file"
    ) -> None:
        needed, found = batch * steps + 1, last - first
        if found < needed:
            raise ValueError(
                f"{what}: expected at least {needed} {text.vocabulary.units}, as {batch} rows of {steps} need, "
                f"got {found} in {text.path}"
            )
        self.chunks = (found - 1) // (batch * steps)
        self._text, self._first, self._steps, self._mine, self._seed = text, first, steps, mine, seed
        self._length = self.chunks * steps
        self._left_over = found - 1 - batch * self._length

    def offset(self, epoch: int) -> int:
        """By how much the rows are moved on in an epoch."""
        if epoch == 0:
            return 0
        digest = hashlib.sha256(f"{self._seed} {epoch}".encode()).digest()
        return int.from_bytes(digest[:16], "big") % (self._left_over + 1)

    def chunk(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Ids (T, rows read here), and those that follow them, of chunk 0…``chunks``-1."""
        start = self._first + self.offset(epoch) + index * self._steps
        ids = np.empty((self._steps + 1, len(self._mine)), np.int64)
        for column, row in enumerate(self._mine):
            ids[:, column] = self._text.read(start + row * self._length, self._steps + 1)
        return torch.from_numpy(ids[:-1]), torch.from_numpy(ids[1:])
