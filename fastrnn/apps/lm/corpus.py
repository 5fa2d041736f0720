"""The default text: the source of Python's own standard library, which needs no download."""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

_NOT_LIBRARY = {"site-packages", "dist-packages", "__pycache__"}


def library_files() -> list[Path]:
    """Return the standard library's ``*.py`` files, sorted by their path in its folder."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(_sources(root), key=lambda path: path.relative_to(root).parts)


def _sources(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_LIBRARY]
        # Files named _sysconfigdata… describe one machine's build and would make the text differ between machines.
        yield from (
            Path(folder, name) for name in files if name.endswith(".py") and not name.startswith("_sysconfigdata")
        )


def library_text() -> Path:
    """Return a file with all of the standard library's UTF-8 source, concatenated in sorted order.

    It is created once in fastrnn's cache (``FASTRNN_CACHE``), under a name with Python's version and a digest of the
    names, sizes and dates of the files.

    Raises:
        OSError: the cache cannot be written.
        ValueError: there are no sources.
    """
    from fastrnn.custom.cache import BuildError, private_folder

    root, files = Path(sysconfig.get_path("stdlib")), library_files()
    if not files:
        raise ValueError(f"file: expected a text file, got none, and no source of the standard library in {root}")
    digest = hashlib.sha256()
    for path in files:
        facts = path.stat()
        digest.update(f"{path.relative_to(root).as_posix()}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    try:
        folder = private_folder()
    except BuildError as error:
        raise OSError(f"cannot store the default text, give a FILE: {error}") from None
    target = folder / f"library-{platform.python_version()}-{digest.hexdigest()[:16]}.txt"
    if not target.is_file():
        _write(files, target)
    return target


def _write(files: list[Path], target: Path) -> None:
    """Write under another name first, so that no incomplete file is visible."""
    from fastrnn.custom.cache import working_folder

    with working_folder(target.parent) as folder:
        with open(folder / target.name, "wb") as file:
            for path in files:
                content = path.read_bytes()
                try:
                    content.decode()
                except UnicodeDecodeError:  # some tests of Python's own
                    continue
                file.write(content)
        os.replace(folder / target.name, target)
