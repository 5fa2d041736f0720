"""Kernels that were built for another torch are not used: its binary interface changes with the minor version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastrnn
from fastrnn import _C, _gpu, _missing
from fastrnn._missing import KernelsMissingError, check_torch

ROOT = Path(fastrnn.__file__).parent.parent
BUILT = _C.build_info()["torch_version"]


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
    assert f"the compiled kernels are built for torch {BUILT} and this is torch {running}: build them" in error
    assert "pip install --no-build-isolation" in error
    assert error.count("\n") == 1
    check_record(record)
    assert f"built for torch {BUILT} and this is torch {running}" in table
    assert "build command" in table


def check_record(text: str) -> None:
    """Check the output of ``info --json`` where the kernels are built for another torch."""
    found = json.loads(text)["extension"]
    assert not found["built"]
    assert f"built for torch {BUILT}" in found["error"]
    assert found["build"]["torch_version"] == BUILT


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


OWN_NAME = "_C" + sysconfig.get_config_var("EXT_SUFFIX")


def test_the_file_says_what_it_was_built_for(tmp_path, monkeypatch):
    """Also where it cannot be loaded: for another torch it lacks a symbol."""
    error = ImportError("undefined symbol: _ZN3c10")
    assert _missing.why(error).startswith("the compiled kernels cannot be loaded (undefined symbol: _ZN3c10)")
    compiled = Path(_C.__file__).read_bytes().replace(f"torch {BUILT}".encode(), b"torch 2.3.9")
    (tmp_path / OWN_NAME).write_bytes(compiled)
    monkeypatch.setattr(_missing, "_PACKAGE", tmp_path)
    found = _missing.why(error)
    assert found == f"the compiled kernels are built for torch 2.3.9 and this is torch {torch.__version__}"


def test_kernels_for_another_python(tmp_path, monkeypatch):
    monkeypatch.setattr(_missing, "_PACKAGE", tmp_path)
    error = ModuleNotFoundError("No module named 'fastrnn._C'", name="fastrnn._C")
    assert _missing.why(error).startswith("the compiled kernels are not built")
    for minor in (39, 8):
        (tmp_path / f"_C.cpython-3{minor}-x86_64-linux-gnu.so").write_bytes(b"")
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    found = _missing.why(error)
    assert found == f"the compiled kernels are built for Python 3.8 and 3.39 and this is Python {own}"


@pytest.mark.parametrize(
    ("noted", "origin"),
    [
        ('{"url": "file:///home/some%20one/fastrnn"}', "/home/some one/fastrnn"),
        ('{"url": "https://example.org/fastrnn.whl"}', "https://example.org/fastrnn.whl"),
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
