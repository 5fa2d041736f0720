"""Text in a file of any size, and batch rows that read it in parallel.

Letters: B batch rows, T time steps of a chunk, V size of the vocabulary. A unit is a byte or a character.
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

_BLOCK = 1 << 14  # bytes between two entries of the character index
_SCAN = 1 << 22  # bytes read at a time, a multiple of _BLOCK
_SAMPLES, _SAMPLE = 64, 1 << 14
_WHOLE = 1 << 28  # largest file, in bytes, that is hashed as a whole


class File:
    """A file with random access.

    It is not mapped into memory: reading a mapped file that has been truncated ends the process (SIGBUS).

    Attributes:
        path: the file.
        size: its size in bytes when it was opened.

    Raises:
        ValueError: it is not a file, or empty.
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            problem = "which is not a regular file" if path.exists() else "which does not exist"
            raise ValueError(f"file: expected a text file, got {str(path)!r}, {problem}")
        self.path, self._handle = path, os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._handle)
        self.size = os.fstat(self._handle).st_size
        if self.size == 0:
            raise ValueError(f"file: expected a text file, got {str(path)!r}, which is empty")

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return the bytes from ``start`` to before ``stop`` or the end, as uint8.

        Raises:
            TextError: the file has been truncated, or cannot be read.
        """
        count = max(0, min(stop, self.size) - start)
        try:
            content = os.pread(self._handle, count, start)
            while len(content) < count:  # one call reads at most 2 GiB
                rest = os.pread(self._handle, count - len(content), start + len(content))
                if not rest:
                    raise self._shorter()
                content += rest
        except OSError as error:
            raise TextError(f"file: could not read {self.path}: {error.strerror or error}") from error
        return np.frombuffer(content, np.uint8)

    def check(self) -> None:
        """Check the file's size.

        Raises:
            TextError: the file has been truncated.
        """
        if os.fstat(self._handle).st_size < self.size:
            raise self._shorter()

    def _shorter(self) -> TextError:
        size = os.fstat(self._handle).st_size
        return TextError(f"file: expected {self.size} bytes in {self.path}, as at the start of the run, got {size}")


class Text:
    """The units of a file, which is never read as a whole.

    Attributes:
        file: the file.
        path: its path.
        vocabulary: its units.
        length: the number of units.
    """

    def __init__(self, file: File, vocabulary: Vocabulary, length: int) -> None:
        self.file, self.path, self.vocabulary, self.length = file, file.path, vocabulary, length

    def read(self, start: int, count: int) -> np.ndarray:
        """Return ``count`` ids from unit ``start`` on, int64.

        Raises:
            TextError: the file has been truncated or replaced, or cannot be read.
        """
        raise NotImplementedError


class ByteText(Text):
    """Text whose units are bytes."""

    def __init__(self, path: Path) -> None:
        file = File(path)
        super().__init__(file, Bytes(), file.size)

    def read(self, start: int, count: int) -> np.ndarray:
        return self.file.read(start, start + count).astype(np.int64)


class CharacterText(Text):
    """Text whose units are characters of UTF-8.

    One pass over the file determines the vocabulary and counts the characters before every block of 16 KiB, which
    serves as an index of characters.

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
                where = start - len(error.object) + len(part) + error.start  # the decoder held bytes from before part
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
        except (ValueError, IndexError):  # the file has changed
            ids = np.empty(0, np.int64)
        if len(ids) != min(count, self.length - start):
            raise TextError(f"file: expected {self.path} as it was at the start of the run, got other content")
        return ids

    def _find(self, index: int) -> int:
        """Return the byte at which that character begins."""
        if index >= self.length:
            return self.file.size
        block = int(np.searchsorted(self._before, index, side="right")) - 1
        begins = np.flatnonzero(_begins(self.file.read(block * _BLOCK, (block + 1) * _BLOCK)))
        return block * _BLOCK + int(begins[index - self._before[block]])


def _begins(part: np.ndarray) -> np.ndarray:
    """Return a mask of the bytes that begin a character."""
    return (part & 0xC0) != 0x80


def open_text(path: str | os.PathLike[str], unit: str) -> Text:
    """Open a text in bytes or characters.

    Raises:
        ValueError: it is not a file, empty, or not UTF-8 if the units are characters.
        OSError: it cannot be opened.
        TextError: it is truncated while it is read, or cannot be read.
    """
    return ByteText(Path(path)) if unit == "byte" else CharacterText(Path(path))


def fingerprint(path: Path) -> dict[str, Any]:
    """Return the size of a text and a hash that identifies it.

    The hash covers all of it; for a file of more than 256 MiB only 64 evenly spaced places and the end.
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
    """B batch rows that read units ``first``…``last`` of a text in parallel, T at a time.

    A row has ``chunks``·T units, the rows are consecutive parts of the text, and each chunk continues the previous one.
    Units that do not fill whole chunks are left over: fewer than B·(T+1). In epoch 0 the rows begin at ``first``; in
    every later epoch they are shifted by a number of units between 0 and the number left over, drawn from the seed and
    the epoch, so that chunks begin at other units.

    Args:
        batch: B.
        steps: T.
        mine: the rows that this process reads.

    Raises:
        ValueError: there is less than one chunk for every row.
    """

    def __init__(
        self, text: Text, first: int, last: int, batch: int, steps: int, mine: range, seed: int, what: str = "file"
    ) -> None:
        needed, available = batch * steps + 1, last - first
        if available < needed:
            raise ValueError(
                f"{what}: expected at least {needed} {text.vocabulary.units}, for {batch} batch rows of {steps} steps, "
                f"got {available} in {text.path}"
            )
        self.chunks = (available - 1) // (batch * steps)
        self._text, self._first, self._steps, self._mine, self._seed = text, first, steps, mine, seed
        self._length = self.chunks * steps
        self._left_over = available - 1 - batch * self._length

    def offset(self, epoch: int) -> int:
        """Return the shift of the rows in an epoch."""
        if epoch == 0:
            return 0
        digest = hashlib.sha256(f"{self._seed} {epoch}".encode()).digest()
        return int.from_bytes(digest[:16], "big") % (self._left_over + 1)

    def chunk(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Return the ids (T, rows of this process) of chunk 0…``chunks``-1, and the ids that follow them."""
        start = self._first + self.offset(epoch) + index * self._steps
        ids = np.empty((self._steps + 1, len(self._mine)), np.int64)
        for column, row in enumerate(self._mine):
            ids[:, column] = self._text.read(start + row * self._length, self._steps + 1)
        return torch.from_numpy(ids[:-1]), torch.from_numpy(ids[1:])
