"""The cell cache: a private folder of the user with compiled kernels, which are verified before they are loaded.

Loading a shared object executes it. It therefore must be a file of the current user, in a folder of the current user,
not writable by anybody else, and its contents must match the digest in its name. The bytes that were verified are
copied and the copy is loaded: a file replaced or truncated later has no effect, whereas truncating a mapped file would
end the process with SIGBUS.

A finished file gets its name by renaming, so that no half-written file is ever visible, and two processes that build
the same kernels concurrently both succeed. No process waits for a lock.
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
#: Seconds after which a build folder is stale unless its lock is held. A build takes at most 10 minutes.
BUILD_AGE = 3600
#: Seconds after its last use when a library is stale: its cell or the version of fastrnn has changed.
LIBRARY_AGE = 30 * 86400
_TOUCH = 86400  # seconds between two updates of a library's time
_OTHERS = stat.S_IWGRP | stat.S_IWOTH

_loads = itertools.count()


class BuildError(RuntimeError):
    """Kernels cannot be compiled: no compiler, a compiler error, or no folder for the result."""


def cache_folder() -> Path:
    """Return ``FASTRNN_CACHE``, or fastrnn's folder in the user's cache."""
    wanted = os.environ.get("FASTRNN_CACHE")
    if wanted:
        return Path(wanted)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastrnn"
    except RuntimeError as error:  # a user without a home
        raise BuildError(f"no folder for kernels, set FASTRNN_CACHE: {error}") from None


def private_folder() -> Path:
    """Return the cache folder without symbolic links, creating it with mode 0700 if it is missing.

    A folder of the current user that others can write to is set to that mode.

    Raises:
        BuildError: it cannot be created, or another user can change its contents.
    """
    place = cache_folder()
    try:
        _make(place)
        folder = place.resolve(strict=True)
        status = folder.stat()
        if status.st_uid != os.geteuid():
            raise _not_private(place, f"one that belongs to user {status.st_uid}")
        if status.st_mode & _OTHERS:
            if status.st_mode & stat.S_ISVTX:  # such as /tmp, whose mode must not be changed
                raise _not_private(place, "one shared by all users")
            folder.chmod(0o700)
            if folder.stat().st_mode & _OTHERS:
                raise _not_private(place, "one writable by others, on a file system without modes")
        for ancestor in folder.parents:
            mode = ancestor.stat().st_mode
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                raise _not_private(place, f"one inside {ancestor}, where any user can rename it")
    except OSError as error:
        raise _unusable(place, error) from None
    return folder


def _make(folder: Path) -> None:
    """Create a folder and its parents, with mode 0700 regardless of the umask."""
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


def _not_private(place: Path, got: str) -> BuildError:
    return BuildError(f"FASTRNN_CACHE: expected a folder that only user {os.geteuid()} can change, got {place}, {got}")


def _unusable(place: Path, error: OSError) -> BuildError:
    return BuildError(f"cannot store kernels in {place} (FASTRNN_CACHE): {error}")


@dataclass(frozen=True)
class Library:
    """A verified shared object of the cache.

    Attributes:
        path: the file.
        content: its verified bytes.
    """

    path: Path
    content: bytes = field(repr=False)

    def load(self, loader: Callable[[str], object]) -> None:
        """Load the verified bytes, whatever has happened to the file since.

        Args:
            loader: opens the shared object at a given path; raises ImportError.

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
        loader(str(self.path))  # nothing can be written: load the file itself


@contextlib.contextmanager
def _in_memory(library: Library) -> Iterator[str]:
    """Create an immutable copy in memory: a sealed memfd of Linux.

    The dynamic loader returns the same library for a path that it has seen before, even after the descriptor was closed
    and its number reused. All paths made here are therefore distinct.
    """
    if sys.platform != "linux" or not hasattr(os, "memfd_create"):
        raise OSError("memfd is not supported")
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
    """Create a copy in a new folder, which is removed after loading."""
    with working_folder(library.path.parent) as folder:
        yield str(_written(folder / library.path.name, library.content))


def _write_all(handle: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(handle, rest) :]


def _written(file: Path, content: bytes) -> Path:
    """Write a new file that only its owner can read and write, and return it."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(handle, 0o600)
        _write_all(handle, content)
    finally:
        os.close(handle)
    return file


@contextlib.contextmanager
def working_folder(place: Path) -> Iterator[Path]:
    """Create a folder in the cache for a build in progress; `sweep` skips it while its lock is held."""
    with tempfile.TemporaryDirectory(prefix=_BUILD, dir=place, ignore_cleanup_errors=True) as name:
        lock = os.open(os.path.join(name, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield Path(name)
        finally:
            os.close(lock)


def sweep(folder: Path) -> None:
    """Remove the folders of builds that were killed, and libraries that have not been loaded for a long time."""
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
    except OSError:  # a file system without locks: decide by age
        return False
    finally:
        os.close(handle)
    return False


def cached(name: str, files: dict[str, str], parts: Sequence[str], compile_in: Callable[[Path], None]) -> Library:
    """Return a shared object from the cache, or compile it; its name has digests of its dependencies and contents.

    Args:
        name: the cell's name.
        files: the sources by name.
        parts: other dependencies of the result.
        compile_in: makes ``cell.so`` in a folder that contains the sources; raises BuildError.

    Raises:
        BuildError: it is not cached and cannot be built, or the cache is not private to the user.
    """
    digest = hashlib.sha256("\0".join((*files.values(), *parts)).encode()).hexdigest()[:32]
    folder, prefix = private_folder(), f"{name}_{digest}_"
    for file in sorted(folder.glob(f"{prefix}*.so")):
        content = _verified(file)
        if content is not None:
            return Library(file, content)
    return _build(folder, prefix, files, compile_in)


def libraries_of(name: str) -> list[Library]:
    """Return the verified libraries of a cell, the oldest first.

    Raises:
        BuildError: the cache is not private to the user.
    """
    if not name.isidentifier():
        return []
    own = re.compile(re.escape(name) + r"_[0-9a-f]{32}_[0-9a-f]{16}\.so")
    files = [file for file in private_folder().glob(f"{name}_*.so") if own.fullmatch(file.name)]
    libraries = []
    for file in files:
        with contextlib.suppress(OSError):
            time_of = file.stat().st_mtime
            content = _verified(file)
            if content is not None:
                libraries.append((time_of, Library(file, content)))
    return [library for _, library in sorted(libraries, key=lambda pair: pair[0])]


def _verified(file: Path) -> bytes | None:
    """Return the contents of an intact library file that only the current user can write, else None."""

    def opener(path: str, flags: int) -> int:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)

    try:
        with open(file, "rb", opener=opener) as opened:
            status = os.fstat(opened.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & _OTHERS:
                return None
            content = opened.read()
            if not file.name.endswith(f"_{_digest_of(content)}.so"):
                return None
            if time.time() - status.st_mtime > _TOUCH:
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
        raise _unusable(place, error) from None
