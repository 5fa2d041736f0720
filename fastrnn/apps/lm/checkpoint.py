"""Checkpoints, written atomically.

A checkpoint is a dictionary of numbers, strings, lists and tensors in torch's own format, which ``torch.load`` reads
with ``weights_only=True``, followed by a digest of the file. It holds the whole state of a run:

==============  ==================================================================================================
``format``      ``"fastrnn language model"``; ``version``: 1
``options``     the run's options, by name
``vocabulary``  ``unit``, and ``characters`` in order if the unit is the character
``text``        ``bytes`` and ``sha256`` of the file (`fastrnn.apps.lm.data.fingerprint`)
``model``       the weights, by name
``optimizer``   the optimiser's ``state_dict``
``step``        number of updates; ``epoch`` and ``chunk`` of the next chunk
``states``      of all B batch rows, (L, B, H) each; None at the start of an epoch
``random``      states of the random number generators: ``cpu`` and ``cuda``, one for each process
``log``         ``bytes`` of the file; ``loss`` of each process, summed over the ``steps`` since the last line
``best``        lowest validation loss so far and its step, or None
``seconds``     time used so far
==============  ==================================================================================================
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from fastrnn.apps.lm.content import problem_of
from fastrnn.apps.lm.errors import CheckpointError
from fastrnn.apps.lm.options import Options

FORMAT, VERSION = "fastrnn language model", 1
BEST = "best.pt"
_SEAL = b"sha256 "
_NAME = re.compile(r"step-(\d{8,})\.pt")
_MALFORMED = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError)
_KEYS = {"format", "version", "options", "vocabulary", "text", "model", "optimizer", "step", "epoch", "chunk"}
_KEYS |= {"states", "random", "log", "best", "seconds"}


def path_of(folder: Path, step: int) -> Path:
    """Return the checkpoint's path after that many steps."""
    return folder / f"step-{step:08d}.pt"


def numbered_in(folder: Path) -> list[tuple[int, Path]]:
    """Return step and file of the checkpoints in a folder, the oldest first, without the best."""
    if not folder.is_dir():
        return []
    matches = [(_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((int(match[1]), path) for match, path in matches if match)


def all_in(folder: Path) -> list[tuple[int, Path]]:
    """Return the same with the best, before that of its own step; an unreadable best sorts first."""
    best, numbered = folder / BEST, numbered_in(folder)
    if not best.is_file():
        return numbered
    try:
        step = int(read(best)["step"])
    except CheckpointError:
        step = -1
    return sorted([(step, best), *numbered], key=lambda entry: entry[0])


def to_bytes(content: dict[str, Any]) -> bytes:
    """Serialise a checkpoint in memory, because torch's own writer is not safe against a write that fails."""
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **content}, buffer)
    return sealed(buffer.getvalue())


def sealed(archive: bytes) -> bytes:
    """Add the SHA-256 of a zip archive, such as a file of torch's, as its comment.

    The archive's own checksums do not cover its directory, and torch does not verify them.
    """
    body = archive[:-2] + len(_SEAL + bytes(64)).to_bytes(2, "little")  # ends with the comment's length
    return body + _SEAL + hashlib.sha256(body).hexdigest().encode()


def is_whole(path: Path) -> bool:
    """Return True if a file exists and is intact.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return _is_whole(path.read_bytes())
    except FileNotFoundError:  # another process has renamed it
        return False
    except OSError as error:
        raise CheckpointError(f"checkpoint: could not read {path}: {error.strerror or error}") from error


def _is_whole(content: bytes) -> bool:
    body, seal = content[: -len(_SEAL) - 64], content[-len(_SEAL) - 64 :]
    return seal == _SEAL + hashlib.sha256(body).hexdigest().encode()


def write(path: Path, payload: bytes) -> None:
    """Write the payload atomically: to another file, which is synced to disk and renamed.

    Raises:
        CheckpointError: it cannot be written. A previous file is unchanged.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise CheckpointError(f"checkpoint: could not write {path}: {error.strerror or error}") from error


def _sync_folder(folder: Path) -> None:
    """Sync a folder, without which a rename is not durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clean(folder: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and files left by interrupted writes."""
    for _, path in numbered_in(folder)[:-keep]:
        path.unlink(missing_ok=True)
    for path in folder.glob("*.pt.tmp"):
        path.unlink(missing_ok=True)


def put_aside(path: Path) -> None:
    """Rename a file that is not a valid checkpoint."""
    with contextlib.suppress(OSError):  # another process was faster, or the folder is not writable
        path.replace(path.with_name(path.name + ".damaged"))


def newest(path: str | os.PathLike[str]) -> Path:
    """Return the file itself, or the newest checkpoint of a folder, which may be the best.

    Raises:
        CheckpointError: there is none.
    """
    place = Path(path)
    if place.is_dir():
        checkpoints = all_in(place)
        if not checkpoints:
            raise CheckpointError(f"checkpoint: expected step-….pt in the folder {place}, got none")
        return checkpoints[-1][1]
    if not place.is_file():
        raise CheckpointError(f"checkpoint: expected a file or a folder with checkpoints, but {place} does not exist")
    return place


def read(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, on the CPU. No code in the file is executed.

    Raises:
        CheckpointError: it cannot be read, is truncated, damaged or of another kind.
    """
    try:
        payload = path.read_bytes()
        if not _is_whole(payload):
            raise CheckpointError(f"checkpoint: {path} is truncated, damaged or not a checkpoint{_others(path)}")
        content = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"checkpoint: could not read {path}: {error.strerror or error}") from error
    except (*_MALFORMED, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()
        raise CheckpointError(
            f"checkpoint: {path} is not a checkpoint of a language model ({reason[0][:200] if reason else error!r})"
            f"{_others(path)}"
        ) from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint: {path} is not a checkpoint of a language model from `fastrnn train`")
    if content.get("version") != VERSION:
        raise CheckpointError(
            f"checkpoint: expected format version {VERSION} in {path}, got {content.get('version')!r}"
        )
    missing = sorted(_KEYS - set(content))
    if missing:
        raise CheckpointError(f"checkpoint: {path} has no {', '.join(missing)}")
    if problem := problem_of(content):
        raise CheckpointError(f"checkpoint: {path} is not a checkpoint of a language model ({problem})")
    return content


def options_of(content: dict[str, Any], path: Path) -> Options:
    """Return the options in a checkpoint."""
    try:
        return Options(**content["options"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint: {path} has options that this version does not support: {error}") from None


def _others(path: Path) -> str:
    others = [] if path.name == BEST else [other for _, other in all_in(path.parent) if other != path]
    return f"; the newest other one is {others[-1]}" if others else ""
