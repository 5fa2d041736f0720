"""Texts, vocabularies, and the rows of a batch."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_runs import write_text

from fastrnn.apps.lm import corpus, data
from fastrnn.apps.lm.errors import TextError
from fastrnn.apps.lm.vocabulary import Bytes, Characters, from_dict


def all_of(rows, epoch):
    """Inputs and targets of an epoch, (B, units)."""
    found = [rows.chunk(epoch, k) for k in range(rows.chunks)]
    return (np.concatenate([part[k].numpy() for part in found]).T for k in (0, 1))


def test_rows_are_even_parts_of_the_text_and_targets_come_next(tmp_path):
    content = bytes(range(200)) + bytes(range(56))
    (tmp_path / "t").write_bytes(content)
    text = data.open_text(tmp_path / "t", "byte")
    rows = data.Rows(text, 10, 240, batch=3, steps=7, mine=range(3), seed=5)
    assert rows.chunks == 229 // 21
    length = rows.chunks * 7
    for epoch in range(4):
        inputs, targets = all_of(rows, epoch)
        offset = rows.offset(epoch)
        for row in range(3):
            start = 10 + offset + row * length
            assert inputs[row].tolist() == list(content[start : start + length])
            assert targets[row].tolist() == list(content[start + 1 : start + length + 1])
        assert 10 + offset + 3 * length + 1 <= 240
    assert rows.offset(0) == 0
    offsets = [rows.offset(epoch) for epoch in range(100)]
    left_over = 229 - 3 * length
    assert set(offsets) == set(range(left_over + 1))
    assert offsets == [data.Rows(text, 10, 240, 3, 7, range(3), 5).offset(epoch) for epoch in range(100)]
    assert offsets != [data.Rows(text, 10, 240, 3, 7, range(3), 6).offset(epoch) for epoch in range(100)]


def test_shares_of_the_rows_are_columns_of_the_whole(tmp_path):
    text = data.open_text(write_text(tmp_path / "t"), "byte")
    whole = data.Rows(text, 0, 3000, 6, 11, range(6), 1)
    for mine in (range(2), range(2, 6)):
        share = data.Rows(text, 0, 3000, 6, 11, mine, 1)
        for part, of in zip(share.chunk(2, 5), whole.chunk(2, 5), strict=True):
            assert part.tolist() == of[:, mine.start : mine.stop].tolist()


@pytest.mark.parametrize("unit", ["byte", "character"])
def test_the_shortest_text_and_one_unit_less(tmp_path, unit):
    needed = 4 * 7 + 1
    (tmp_path / "t").write_text("é→x" * needed, encoding="utf-8")
    text = data.open_text(tmp_path / "t", unit)
    assert data.Rows(text, 0, needed, 4, 7, range(4), 0).chunks == 1
    with pytest.raises(ValueError, match=f"at least 29 {unit}s.*got 28"):
        data.Rows(text, 0, needed - 1, 4, 7, range(4), 0)


@settings(max_examples=30, deadline=None)
@given(
    content=st.text(st.characters(codec="utf-8"), min_size=1, max_size=300),
    repeats=st.integers(1, 400),
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 50)), max_size=5),
)
def test_any_character_is_found(tmp_path_factory, content, repeats, places):
    content *= repeats
    path = tmp_path_factory.mktemp("characters") / "t"
    path.write_bytes(content.encode())
    text = data.open_text(path, "character")
    assert text.length == len(content)
    assert text.vocabulary.characters == "".join(sorted(set(content)))
    for share, count in [*places, (1.0, 1)]:
        start = min(int(share * len(content)), len(content) - 1)
        ids = text.read(start, count)
        assert "".join(text.vocabulary.characters[i] for i in ids) == content[start : start + count]


@pytest.mark.parametrize("before", [0, 1, data._BLOCK - 1, data._SCAN - 2, data._SCAN + data._BLOCK])
def test_characters_across_the_borders_of_blocks(tmp_path, before):
    content = "x" * before + "→é" * 10 + "𝄞"
    (tmp_path / "t").write_bytes(content.encode())
    text = data.open_text(tmp_path / "t", "character")
    start = max(0, before - 1)
    ids = text.read(start, text.length - start)
    assert "".join(text.vocabulary.characters[i] for i in ids) == content[start:]


@pytest.mark.parametrize("before", [0, 3, data._SCAN - 1, data._SCAN])
def test_what_is_not_utf8_is_pointed_out(tmp_path, before):
    (tmp_path / "t").write_bytes(b"x" * before + "é".encode() + b"\xff\xfe abc")
    with pytest.raises(ValueError, match=f"file: expected UTF-8 .* at byte {before + 2}"):
        data.open_text(tmp_path / "t", "character")
    (tmp_path / "t").write_bytes(b"x" * before + "é".encode()[:1])
    with pytest.raises(ValueError, match=f"file: expected UTF-8 .* at byte {before}"):
        data.open_text(tmp_path / "t", "character")


def test_a_large_file_is_not_read_as_a_whole(tmp_path):
    size = 1 << 40  # a hole of a tebibyte
    with open(tmp_path / "t", "wb") as file:
        file.truncate(size)
        file.seek(size - 5)
        file.write(b"abcde")
    text = data.open_text(tmp_path / "t", "byte")
    assert text.length == size
    assert text.read(size - 5, 5).tolist() == list(b"abcde")
    assert data.fingerprint(tmp_path / "t")["bytes"] == size


@pytest.mark.parametrize("unit", ["byte", "character"])
@pytest.mark.parametrize("left", [0, 1, 5000])
def test_a_file_that_becomes_shorter(tmp_path, unit, left):
    path = write_text(tmp_path / "t")
    text, size = data.open_text(path, unit), path.stat().st_size
    text.file.check()
    right = text.read(100, 50)
    os.truncate(path, left)
    problem = rf"file: expected {size} bytes in .*/t, as at the start of the run, got {left}$"
    for read in (text.file.check, lambda: text.read(text.length - 50, 50), lambda: text.read(0, text.length)):
        with pytest.raises(TextError, match=problem):
            read()
    if left > 1000 and unit == "byte":
        assert text.read(100, 50).tolist() == right.tolist()


def test_a_file_that_is_appended_to_or_deleted(tmp_path):
    path = write_text(tmp_path / "t")
    text = data.open_text(path, "byte")
    right = text.read(0, text.length)
    with open(path, "ab") as file:
        file.write(b"more")
    text.file.check()
    path.unlink()
    assert text.read(0, text.length + 100).tolist() == right.tolist()


@pytest.mark.parametrize("content", [b"\xff", b"Q", "é".encode()])
def test_a_file_that_is_overwritten_by_other_characters(tmp_path, content):
    """A run over characters rejects content that is not UTF-8 or not in its vocabulary; a run over bytes cannot."""
    path = write_text(tmp_path / "t")
    text = data.open_text(path, "character")
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.write(content * (size // len(content)) + b" " * (size % len(content)))
    problem = r"file: expected .*/t as it was at the start of the run, got other content"
    with pytest.raises(TextError, match=problem):
        text.read(text.length - 300, 300)


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    text = data.open_text(write_text(tmp_path / "t"), "byte")

    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(data.os, "pread", fail)
    with pytest.raises(TextError, match=r"file: could not read .*/t: Input/output error"):
        text.read(0, 10)


def test_fingerprint_tells_texts_apart(tmp_path):
    path = write_text(tmp_path / "t")
    before = data.fingerprint(path)
    content = bytearray(path.read_bytes())
    assert data.fingerprint(path) == before
    content[-1] ^= 1
    path.write_bytes(content)
    assert data.fingerprint(path) != before


@pytest.mark.parametrize(("make", "problem"), [(None, "does not exist"), (os.mkdir, "not a regular file")])
def test_no_file(tmp_path, make, problem):
    if make:
        make(tmp_path / "t")
    with pytest.raises(ValueError, match=problem):
        data.open_text(tmp_path / "t", "byte")


def test_empty_file(tmp_path):
    (tmp_path / "t").touch()
    with pytest.raises(ValueError, match="empty"):
        data.open_text(tmp_path / "t", "character")


def test_vocabularies_come_back_from_checkpoints():
    characters = Characters("\nab→")
    assert from_dict(characters.as_dict()).characters == characters.characters
    assert characters.encode("→b").tolist() == [3, 2]
    assert isinstance(from_dict(Bytes().as_dict()), Bytes)
    for text in ("c", "\x00", "𝄞"):
        with pytest.raises(ValueError, match="characters of the vocabulary"):
            characters.encode("a" + text)


def test_bytes_are_joined_to_characters():
    decoder = Bytes().decoder()
    pieces = [decoder.feed(unit) for unit in Bytes().encode("aé→").tolist()]
    assert pieces == ["a", "", "é", "", "", "→"]
    assert [decoder.feed(unit) for unit in (0xE2, 0x41, 0xFF, 0x42)] == ["", "�A", "�", "B"]


def test_default_text_is_the_library_and_made_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "cache"))
    files = corpus.library_files()[:40]
    monkeypatch.setattr(corpus, "library_files", lambda: files)
    path = corpus.library_text()
    assert path.read_bytes() == b"".join(file.read_bytes() for file in files)
    before = path.stat().st_mtime_ns
    assert corpus.library_text() == path
    assert path.stat().st_mtime_ns == before
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    monkeypatch.setattr(corpus, "library_files", lambda: files[1:])
    assert corpus.library_text() != path
