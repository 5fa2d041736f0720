"""Kernels that were built for another torch are not used: its binary interface changes with the minor version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastrnn
from fastrnn import _C, _gpu, _missing, _parts
from fastrnn._missing import KernelsMissingError, check_torch

ROOT = Path(fastrnn.__file__).parent.parent
BUILT = _C.build_info()["torch_version"]
MINOR = _parts.minor(BUILT)


def python(version: str, code: str) -> subprocess.CompletedProcess[str]:
    """Runs code under a torch that says it is of that version."""
    program = f"import torch\ntorch.__version__ = {version!r}\n{code}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment)


def other(minor: int) -> str:
    major, own, *_ = BUILT.split(".")
    return f"{major}.{int(own) + minor}.1"


def test_both_versions_are_recorded():
    assert _C.build_info()["python_version"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert BUILT.split(".")[:2] == torch.__version__.split(".")[:2]


BETWEEN = "----\n"
#: A module, `info --json` and `info` in one process.
REFUSED = f"""
import fastrnn
from fastrnn.apps.cli import main
try:
    fastrnn.LSTM(3, 4)
except ImportError as error:
    print(type(error), error)
print({BETWEEN!r}, end="", flush=True)
main(["info", "--json"])
print({BETWEEN!r}, end="", flush=True)
main(["info"])
"""


@pytest.mark.parametrize("running", [other(1), other(-1), other(10), "3.0.0", "1.13.1", other(1) + "a0+git1234"])
def test_another_minor_version(running):
    done = python(running, REFUSED)
    assert done.returncode == 0, done.stderr
    error, record, table = done.stdout.split(BETWEEN)
    assert "KernelsMissingError" in error
    assert f"the compiled kernels are built for torch {MINOR} and this is torch {running}: build them" in error
    assert "pip install --no-build-isolation" in error
    assert error.count("\n") == 1
    check_record(record)
    assert f"built for torch {MINOR} and this is torch {running}" in table
    assert "build command" in table


def check_record(text: str) -> None:
    """Check the output of ``info --json`` where the kernels are built for another torch."""
    found = json.loads(text)["extension"]
    assert not found["built"]
    assert f"built for torch {MINOR} and this is torch " in found["error"]
    assert "pip install" in found["command"]


def test_info_alone_under_another_minor_version():
    check_record(python(other(1), "from fastrnn.apps.cli import main\nmain(['info', '--json'])").stdout)


@pytest.mark.parametrize("suffix", [".99", ".99+cu130", ".0a0+git1234", ".0.dev20260101"])
def test_another_patch_release_or_local_build(suffix):
    running = ".".join(BUILT.split(".")[:2]) + suffix
    done = python(running, "import fastrnn\nprint(fastrnn.LSTM(3, 4)(torch.randn(5, 2, 3))[0].shape)")
    assert done.stdout.strip() == "torch.Size([5, 2, 4])"
    assert done.stderr == ""


def test_kernels_for_gpus(monkeypatch):
    versions = {}
    module = SimpleNamespace(build_info=lambda: versions)
    monkeypatch.setattr(_gpu.importlib, "import_module", lambda name: module)
    versions["torch_version"] = other(1)
    found, reason = _gpu._load()
    assert found is None
    running = torch.__version__
    assert reason.startswith(f"the CUDA kernels are built for torch {other(1)} and this is torch {running}: build them")
    versions["torch_version"] = BUILT
    assert _gpu._load() == (module, "")


ERROR = ModuleNotFoundError("No module named 'fastrnn._C'", name="fastrnn._C")
OWN = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def there(tmp_path, monkeypatch):
    """Lets the installation seem to have the compiled modules of these names and no others."""

    def put(*names: str) -> Path:
        for name in names:
            (tmp_path / name).write_bytes(b"")
        monkeypatch.setattr(_parts, "FOLDER", tmp_path)
        return tmp_path

    return put


def part(version: str) -> str:
    return f"torch{version}{_parts.SUFFIX}"


def test_the_module_is_chosen_by_the_minor_version_of_torch(there):
    folder = there(
        "libfastrnn_kernels.so", part("2.9"), part("2.11"), part("2.13"), "torch2.12.cpython-38-x86_64-linux-gnu.so"
    )
    assert [found.torch for found in _parts.parts()] == ["2.9", "2.11", "2.12", "2.13"]
    for version in ("2.11.0", "2.11.7+cu130", "2.11.0.dev20260101"):
        assert _parts.find(version).path == folder / part("2.11")
    assert _parts.find("2.12.0") is None  # of another Python
    assert _parts.find("2.1.1") is None
    assert _parts.find("3.11.0") is None


def test_the_module_in_use_is_that_of_this_torch():
    assert Path(_C.__file__) == _parts.find(torch.__version__).path
    assert _C.__name__ == "fastrnn._C"
    assert sys.modules["fastrnn._C"] is _C


def test_a_torch_that_no_module_serves(there):
    there(part("2.3"), part("2.4"), part("2.10"))
    with pytest.raises(ModuleNotFoundError, match="no compiled module for torch"):
        _parts.load("fastrnn._C")
    running = torch.__version__
    assert (
        _missing.why(ERROR) == f"the compiled kernels are built for torch 2.3, 2.4 and 2.10 and this is torch {running}"
    )
    there(part(MINOR))
    assert _missing.why(ImportError("no _ZN3c10")) == "the compiled kernels cannot be loaded (no _ZN3c10)"


def test_kernels_for_another_python(there):
    there()
    assert _missing.why(ERROR).startswith("the compiled kernels are not built")
    there(*(f"torch{MINOR}.cpython-3{minor}-x86_64-linux-gnu.so" for minor in (39, 8)))
    assert _missing.why(ERROR) == f"the compiled kernels are built for Python 3.39 and 3.8 and this is Python {OWN}"


def test_the_remedy_for_an_installation_from_a_wheel(monkeypatch, tmp_path):
    assert _missing.remedy() == f"build them with `{_missing.command()}`"
    monkeypatch.setattr(_missing, "_PACKAGE", tmp_path / "fastrnn")
    assert _missing.remedy().startswith("install a fastrnn that serves them, or build them from source with `")


@pytest.mark.parametrize(
    ("noted", "origin"),
    [
        ('{"url": "file:///home/some%20one/fastrnn"}', "/home/some one/fastrnn"),
        ('{"url": "https://example.org/fastrnn.tar.gz"}', "https://example.org/fastrnn.tar.gz"),
        ('{"url": "file:///home/fastrnn-0.1.0-cp311-cp311-linux_x86_64.whl"}', "PATH_OF_ITS_SOURCE"),
        (None, "PATH_OF_ITS_SOURCE"),
    ],
)
def test_the_command_names_where_fastrnn_came_from(monkeypatch, tmp_path, noted, origin):
    """No name that an index might give to somebody else's package."""
    monkeypatch.setattr(_missing, "_PACKAGE", tmp_path / "fastrnn")
    monkeypatch.setattr(
        _missing.importlib.metadata, "distribution", lambda name: SimpleNamespace(read_text=lambda file: noted)
    )
    assert _missing.command() == (
        f"{sys.executable} -m pip install --no-build-isolation --no-deps --force-reinstall {origin}"
    )


def test_the_comparison():
    check_torch(torch.__version__, "x")
    with pytest.raises(KernelsMissingError, match=r"fastrnn: x are built for torch 2\.1 and this is torch "):
        check_torch("2.1", "x")
