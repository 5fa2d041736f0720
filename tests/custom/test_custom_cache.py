"""The cell cache: whose files are loaded, what is loaded of them, and what does not stay."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import fastrnn
from fastrnn.apps.lm import corpus
from fastrnn.custom import build, cache

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only the superuser gives files away")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The cache's folder, not created yet."""
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def umask():
    """Sets the umask for a test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


class Compiler:
    """Makes a file of these bytes; counts."""

    def __init__(self, content: bytes = b"kernels"):
        self.content, self.runs = content, 0

    def __call__(self, folder: Path) -> None:
        self.runs += 1
        (folder / "cell.so").write_bytes(self.content)


def library(compiler: Compiler, name: str = "cell", source: str = "") -> cache.Library:
    return cache.cached(name, {"cell.h": source}, ["flags"], compiler)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_where_the_cache_lies(monkeypatch, tmp_path):
    monkeypatch.delenv("FASTRNN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "fastrnn"
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "mine"))
    assert cache.cache_folder() == tmp_path / "mine"


@pytest.mark.parametrize("mask", [0, 0o022, 0o777], ids=oct)
def test_nobody_else_may_write_whatever_the_umask(monkeypatch, tmp_path, umask, mask):
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "new" / "cache"))
    umask(mask)
    file = library(Compiler()).path
    assert [mode(path) for path in (tmp_path / "new", file.parent, file)] == [0o700, 0o700, 0o600]
    compiler = Compiler()
    assert library(compiler).content == b"kernels"
    assert compiler.runs == 0


def test_a_compiler_and_a_cell_with_umask_0(folder, umask, monkeypatch, unoptimised):
    monkeypatch.setattr(build, "compiler", lambda: (unoptimised,))

    @fastrnn.cell(gates="a")
    def open_to_all(x, r, s):
        return torch.tanh(x.a + 0.34375 * r.a)

    umask(0)
    found = build.library(open_to_all.kernels, open_to_all.source(), fastrnn._C.capability(), torch.float32)
    assert (mode(folder), mode(found.path)) == (0o700, 0o600)
    open_to_all.build()


def test_the_default_text_with_umask_0(tmp_path, folder, umask, monkeypatch):
    (tmp_path / "source.py").write_text("pass\n")
    monkeypatch.setattr(corpus, "library_files", lambda: [tmp_path / "source.py"])
    monkeypatch.setattr(corpus.sysconfig, "get_path", lambda name: str(tmp_path))
    umask(0)
    assert corpus.library_text().read_text() == "pass\n"
    assert mode(folder) == 0o700
    assert len(list(folder.iterdir())) == 1
    folder.chmod(0o1777)
    with pytest.raises(
        OSError, match=r"default text, give a FILE: FASTRNN_CACHE: expected .*, one shared by all users"
    ):
        corpus.library_text()


@pytest.mark.parametrize("before", [0o777, 0o770, 0o757], ids=oct)
def test_a_folder_that_is_too_open_is_closed(folder, before):
    folder.mkdir()
    folder.chmod(before)
    library(Compiler())
    assert mode(folder) == 0o700


def test_a_folder_that_users_share_is_left_as_it_is_and_refused(folder):
    folder.mkdir()
    folder.chmod(0o1777)
    with pytest.raises(cache.BuildError, match=r"FASTRNN_CACHE: expected .* got .*/cache, one shared by all users"):
        library(Compiler())
    assert mode(folder) == 0o1777


def test_a_folder_that_others_can_rename_is_refused(monkeypatch, tmp_path):
    (tmp_path / "open").mkdir()
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "open" / "between" / "cache"))
    (tmp_path / "open").chmod(0o1777)
    library(Compiler())
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(
        cache.BuildError, match=r"FASTRNN_CACHE: expected .*, one inside .*/open, where any user can rename it"
    ):
        library(Compiler())
    (tmp_path / "link").symlink_to(tmp_path / "open" / "between")
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "link" / "cache"))
    with pytest.raises(cache.BuildError, match=r"got .*/link/cache, one inside .*/open"):
        library(Compiler())


@as_root
@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_of_another_user_is_refused(monkeypatch, tmp_path, linked):
    (tmp_path / "theirs").mkdir(mode=0o755)
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    (tmp_path / "link").symlink_to(tmp_path / "theirs")
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / ("link" if linked else "theirs")))
    compiler = Compiler()
    with pytest.raises(
        cache.BuildError, match=rf"FASTRNN_CACHE: expected .* user 0 .*, one that belongs to user {NOBODY}"
    ):
        library(compiler)
    assert compiler.runs == 0
    assert not list((tmp_path / "theirs").iterdir())


def test_a_cell_says_why_it_has_no_kernels(folder):
    @fastrnn.cell(gates="a")
    def refused(x, r, s):
        return torch.tanh(x.a + 0.359375 * r.a)

    folder.mkdir()
    folder.chmod(0o1777)
    with pytest.raises(RuntimeError, match=r"refused: FASTRNN_CACHE: expected a folder that only user"):
        refused.build()


def test_a_link_to_a_folder_of_ones_own(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    assert library(Compiler()).path.parent == tmp_path / "elsewhere"


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how in ("truncated", "empty", "other"):
        path.write_bytes({"truncated": content[:3], "empty": b"", "other": b"x" * len(content)}[how])
    elif how == "writable by others":
        path.chmod(0o646)
    elif how == "writable by the group":
        path.chmod(0o660)
    elif how == "of another user":
        os.chown(path, NOBODY, NOBODY)
    else:
        path.unlink()
        if how == "pipe":
            os.mkfifo(path)
        else:
            elsewhere = path.parent.parent / "elsewhere.so"
            elsewhere.write_bytes(content)
            path.symlink_to(elsewhere)


KINDS = ["truncated", "empty", "other", "writable by others", "writable by the group", "pipe", "link"]


@pytest.mark.parametrize("how", [*KINDS, pytest.param("of another user", marks=as_root)])
def test_what_is_not_ours_or_not_whole_is_built_anew(folder, how):
    first = library(Compiler())
    damage(first.path, how)
    compiler = Compiler()
    found = library(compiler)
    assert (found.path, found.content, compiler.runs) == (first.path, b"kernels", 1)
    status = found.path.lstat()
    assert (stat.S_ISREG(status.st_mode), status.st_uid, stat.S_IMODE(status.st_mode)) == (True, os.geteuid(), 0o600)
    assert library(compiler).content == b"kernels"
    assert compiler.runs == 1


def test_what_was_verified_is_what_is_loaded(folder):
    """Each load has a path of its own: the dynamic loader takes one that it knows for the library that it has."""
    paths = []

    def loader(path: str) -> None:
        for file in folder.glob("*.so"):
            os.truncate(file, 2)
        paths.append((path, Path(path).read_bytes()))

    for content in (b"one", b"other", b"third"):
        library(Compiler(content), source=content.decode()).load(loader)
    assert [content for _, content in paths] == [b"one", b"other", b"third"]
    assert len({path for path, _ in paths}) == 3
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_copy_of_what_was_verified_where_there_are_no_files_in_memory(folder, monkeypatch):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    test_what_was_verified_is_what_is_loaded(folder)

    def bad(path: str) -> None:
        raise ImportError(f"{path}: bad")

    with pytest.raises(ImportError, match=r"/cache/cell_\w+\.so: bad$"):
        library(Compiler(b"bad"), source="bad").load(bad)


#: Builds two cells, truncates their files before they are loaded and afterwards, and runs them.
TRUNCATING = """
import os, sys
from pathlib import Path
import torch
import fastrnn
from fastrnn import _C

folder, real = Path(os.environ["FASTRNN_CACHE"]), _C.load_cells

def load(path):
    for file in folder.glob("*.so"):
        os.truncate(file, int(sys.argv[1]))
    real(path)
    for file in folder.glob("*.so"):
        os.truncate(file, 0)

_C.load_cells = load

@fastrnn.cell(gates="a")
def one(x, r, s):
    return torch.tanh(x.a + 0.71875 * r.a)

@fastrnn.cell(gates="a")
def two(x, r, s):
    return torch.sigmoid(x.a + 0.71875 * r.a)

for cell in (one, two):
    network, x = cell(3, 33), torch.randn(5, 2, 3)
    torch.testing.assert_close(network(x, backend="fused")[0], network(x, backend="reference")[0])
"""


@pytest.mark.parametrize("length", [0, 5000])
def test_a_library_that_is_truncated_when_it_is_loaded(folder, length, unoptimised):
    paths = os.pathsep.join([str(Path(fastrnn.__file__).parent.parent), os.environ.get("PYTHONPATH", "")])
    settings = {"PYTHONPATH": paths, "FASTRNN_CACHE": str(folder), "CXX": unoptimised, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TRUNCATING, str(length)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_a_killed_build_leaves_is_swept(folder):
    code = (
        "import os, signal\nfrom fastrnn.custom import cache\n"
        "cache.cached('cell', {}, ['killed'], lambda folder: os.kill(os.getpid(), signal.SIGKILL))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == -signal.SIGKILL
    (left,) = folder.glob(".build-*")
    library(Compiler(), source="soon")
    assert left.is_dir()  # it might be one that has only begun
    age(left, cache.BUILD_AGE + 60)
    library(Compiler(), source="later")
    assert not left.exists()


def test_the_folder_of_a_running_build_stays(folder):
    def compile_slowly(work: Path) -> None:
        age(work, cache.BUILD_AGE + 60)
        library(Compiler(), source="meanwhile")
        assert work.is_dir()
        (work / "cell.so").write_bytes(b"slow")

    assert cache.cached("cell", {}, ["slow"], compile_slowly).content == b"slow"
    (folder / ".build-none").mkdir()  # of a process that was killed before it had its lock
    age(folder / ".build-none", cache.BUILD_AGE + 60)
    with open(folder / ".build-none" / ".lock", "w") as lock:
        age(folder / ".build-none", cache.BUILD_AGE + 60)
        fcntl.flock(lock, fcntl.LOCK_EX)
        library(Compiler(), source="locked")
        assert (folder / ".build-none").is_dir()
    library(Compiler(), source="unlocked")
    assert not (folder / ".build-none").exists()


def test_libraries_that_nobody_loads_are_swept(folder):
    used, unused = library(Compiler(), source="used").path, library(Compiler(), source="unused").path
    other = folder / "notes.so"
    other.write_text("of somebody else's making")
    for path in (used, unused, other):
        age(path, cache.LIBRARY_AGE + 60)
    library(Compiler(), source="used")
    library(Compiler(), source="new")
    assert used.is_file()
    assert not unused.exists()
    assert other.is_file()
