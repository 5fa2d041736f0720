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
    """The standard library's ``*.py`` files, sorted by their parts below its folder."""
    root = Path(sysconfig.get_path("stdlib"))
    return sorted(_sources(root), key=lambda found: found.relative_to(root).parts)


def _sources(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_LIBRARY]
        # Files named _sysconfigdata… describe one machine's build and would make the text differ between machines.
        yield from (
            Path(folder, name) for name in files if name.endswith(".py") and not name.startswith("_sysconfigdata")
        )


def library_text() -> Path:
    """One file with all of the standard library's source that is UTF-8, file after file in sorted order.

    It is made once and kept in fastrnn's cache (``FASTRNN_CACHE``), under a name made of Python's version and of the
    names, sizes and dates of the files.

    Raises:
        OSError: the cache cannot be written.
        ValueError: there are no sources.
    """
    from fastrnn.custom.cache import BuildError, private_folder

    root, files = Path(sysconfig.get_path("stdlib")), library_files()
    if not files:
        raise ValueError(f"file: expected a text, as there is no source of the standard library in {root}")
    digest = hashlib.sha256()
    for path in files:
        facts = path.stat()
        digest.update(f"{path.relative_to(root).as_posix()}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    try:
        folder = private_folder()
    except BuildError as error:
        raise OSError(f"no place for the default text, name a FILE: {error}") from None
    target = folder / f"library-{platform.python_version()}-{digest.hexdigest()[:16]}.txt"
    if not target.is_file():
        _write(files, target)
    return target


def _write(files: list[Path], target: Path) -> None:
    """Under another name first, so that nobody finds half of it."""
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
