"""The cell cache: a folder of the user's own with compiled kernels, which are verified before they are loaded.

A shared object is executed as soon as it is loaded. It therefore has to be a file of the current user, in a folder of
the current user, that nobody else may write, and its contents have to match the digest in its name. What is loaded is a
copy of the bytes that were verified: a file that is replaced or truncated later changes nothing, whereas a truncated
file that is mapped ends the process (SIGBUS).

A finished file gets its name by renaming, so that nothing is found half written, and two processes that build the same
at once both succeed. Nothing waits for a lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

_BUILD = ".build-"
_LOCK = ".lock"
_NAME = re.compile(r"\w+_[0-9a-f]{32}_[0-9a-f]{16}\.so")
#: Seconds after which a build folder is stale, unless its lock is held. A build takes 10 minutes at most.
BUILD_AGE = 3600
#: Seconds after which a library is stale that nobody has loaded: a cell that was changed, another version of fastrnn.
LIBRARY_AGE = 30 * 86400
_TOUCH = 86400  # seconds between two updates of a library's time
_OTHERS = stat.S_IWGRP | stat.S_IWOTH

_loads = itertools.count()


class BuildError(RuntimeError):
    """Kernels cannot be compiled: there is no compiler, it refuses, or there is no place to put the result."""


def cache_folder() -> Path:
    """``FASTRNN_CACHE``, or fastrnn's folder in the user's cache."""
    wanted = os.environ.get("FASTRNN_CACHE")
    if wanted:
        return Path(wanted)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastrnn"
    except RuntimeError as error:  # a user without a home
        raise BuildError(f"no place for kernels, set FASTRNN_CACHE: {error}") from None


def private_folder() -> Path:
    """The cache folder without symbolic links, created with mode 0700 if it is missing. A folder of the current user
    that others may write gets that mode.

    Raises:
        BuildError: it cannot be created, or somebody else can change what is in it.
    """
    place = cache_folder()
    try:
        _make(place)
        folder = place.resolve(strict=True)
        found = folder.stat()
        if found.st_uid != os.geteuid():
            raise _refused(place, f"one that belongs to user {found.st_uid}")
        if found.st_mode & _OTHERS:
            if found.st_mode & stat.S_ISVTX:  # such as /tmp, of which others depend on the mode
                raise _refused(place, "one that all users share")
            folder.chmod(0o700)
            if folder.stat().st_mode & _OTHERS:
                raise _refused(place, "one that others may write, on a file system that does not change modes")
        for ancestor in folder.parents:
            mode = ancestor.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                raise _refused(place, f"one inside {ancestor}, where everybody may rename it")
    except OSError as error:
        raise _no_place(place, error) from None
    return folder


def _make(folder: Path) -> None:
    """Creates a folder and those above it, with mode 0700 whatever the umask."""
    if folder.is_dir():
        return
    _make(folder.parent)
    try:
        folder.mkdir(0o700)
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        folder.chmod(0o700)


def _refused(place: Path, got: str) -> BuildError:
    return BuildError(
        f"FASTRNN_CACHE: expected a folder for kernels that only user {os.geteuid()} can change, got {place}, {got}"
    )


def _no_place(place: Path, error: OSError) -> BuildError:
    return BuildError(f"no place for kernels in {place} (FASTRNN_CACHE): {error}")


@dataclass(frozen=True)
class Library:
    """A shared object of the cache, verified.

    Attributes:
        path: the file.
        content: its bytes, as they were verified.
    """

    path: Path
    content: bytes = field(repr=False)

    def load(self, loader: Callable[[str], object]) -> None:
        """Loads the verified bytes, whatever the file has become.

        Args:
            loader: opens the shared object of a given path; raises ImportError.

        Raises:
            ImportError: it cannot be loaded.
        """
        problem: ImportError | None = None
        for copy in (_in_memory, _in_folder):
            try:
                with copy(self) as path:
                    try:
                        loader(path)
                        return
                    except ImportError as error:
                        problem = problem or ImportError(str(error).replace(path, str(self.path)))
            except OSError:
                continue
        if problem is not None:
            raise problem
        loader(str(self.path))  # where nothing can be written


@contextlib.contextmanager
def _in_memory(library: Library) -> Iterator[str]:
    """A copy in memory that nobody can change: a sealed memfd of Linux.

    The loader takes a path that it has seen before for the same library, also after the descriptor has been closed and
    its number used again. No two paths are equal here.
    """
    if sys.platform != "linux" or not hasattr(os, "memfd_create"):
        raise OSError("no files in memory")
    handle = os.memfd_create(library.path.name[:200], os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _write_all(handle, library.content)
        seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(handle, fcntl.F_ADD_SEALS, seals)
        yield f"/proc/self/fd/{'./' * next(_loads)}{handle}"
    finally:
        os.close(handle)


@contextlib.contextmanager
def _in_folder(library: Library) -> Iterator[str]:
    """A copy in a folder of its own, which is removed once it is loaded."""
    with working_folder(library.path.parent) as folder:
        yield str(_written(folder / library.path.name, library.content))


def _write_all(handle: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _written(file: Path, content: bytes) -> Path:
    """A new file that only its owner can read and write."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(handle, 0o600)
        _write_all(handle, content)
    finally:
        os.close(handle)
    return file


@contextlib.contextmanager
def working_folder(place: Path) -> Iterator[Path]:
    """A folder in the cache for what is not finished. While its lock is held, `sweep` leaves it alone."""
    with tempfile.TemporaryDirectory(prefix=_BUILD, dir=place, ignore_cleanup_errors=True) as name:
        lock = os.open(os.path.join(name, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Path(name)
        finally:
            os.close(lock)


def sweep(folder: Path) -> None:
    """Removes the folders of builds that were killed, and libraries that nobody has loaded for a long time."""
    now = time.time()
    for path in list(folder.iterdir()):
        with contextlib.suppress(OSError):
            age = now - path.lstat().st_mtime
            if path.name.startswith(_BUILD) and age > BUILD_AGE and not _is_locked(path / _LOCK):
                shutil.rmtree(path, ignore_errors=True)
            elif _NAME.fullmatch(path.name) and age > LIBRARY_AGE:
                path.unlink()


def _is_locked(file: Path) -> bool:
    """Return True if a running process holds the lock."""
    try:
        handle = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: the age decides
        return False
    finally:
        os.close(handle)
    return False


def cached(name: str, files: dict[str, str], parts: Sequence[str], compile_in: Callable[[Path], None]) -> Library:
    """A shared object out of the cache, or compiled now. Its name says all that it depends on, and its contents.

    Args:
        name: of the cell.
        files: the sources by name.
        parts: what the result depends on besides.
        compile_in: makes ``cell.so`` in a folder that holds the sources; raises BuildError.

    Raises:
        BuildError: it is not there and cannot be built, or the cache is not the user's own.
    """
    digest = hashlib.sha256("\0".join((*files.values(), *parts)).encode()).hexdigest()[:32]
    folder, prefix = private_folder(), f"{name}_{digest}_"
    for file in sorted(folder.glob(f"{prefix}*.so")):
        content = _verified(file)
        if content is not None:
            return Library(file, content)
    return _build(folder, prefix, files, compile_in)


def libraries_of(name: str) -> list[Library]:
    """The verified libraries of a cell, the oldest first.

    Raises:
        BuildError: the cache is not the user's own.
    """
    if not name.isidentifier():
        return []
    own = re.compile(re.escape(name) + r"_[0-9a-f]{32}_[0-9a-f]{16}\.so")
    files = [file for file in private_folder().glob(f"{name}_*.so") if own.fullmatch(file.name)]
    found = []
    for file in files:
        with contextlib.suppress(OSError):
            time_of = file.stat().st_mtime
            content = _verified(file)
            if content is not None:
                found.append((time_of, Library(file, content)))
    return [library for _, library in sorted(found, key=lambda pair: pair[0])]


def _verified(file: Path) -> bytes | None:
    """The contents of a library, if it is a file of the current user that nobody else may write, and undamaged."""

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)

    try:
        with open(file, "rb", opener=opener) as opened:
            found = os.fstat(opened.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & _OTHERS:
                return None
            content = opened.read()
            if not file.name.endswith(f"_{_digest_of(content)}.so"):
                return None
            if time.time() - found.st_mtime > _TOUCH:
                with contextlib.suppress(OSError):
                    os.utime(opened.fileno())
            return content
    except OSError:
        return None


def _digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _build(place: Path, prefix: str, files: dict[str, str], compile_in: Callable[[Path], None]) -> Library:
    try:
        sweep(place)
        with working_folder(place) as folder:
            for file, text in files.items():
                (folder / file).write_text(text, encoding="utf-8")
            compile_in(folder)
            content = (folder / "cell.so").read_bytes()
            target = place / f"{prefix}{_digest_of(content)}.so"
            os.replace(_written(folder / target.name, content), target)
            return Library(target, content)
    except OSError as error:
        raise _no_place(place, error) from None
