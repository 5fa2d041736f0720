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
from fastrnn import _C, _gpu
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


@pytest.mark.parametrize("running", [other(1), other(-1), other(10), "3.0.0", "1.13.1", other(1) + "a0+git1234"])
def test_another_minor_version(running):
    code = "import fastrnn\ntry:\n    fastrnn.LSTM(3, 4)\nexcept ImportError as error:\n    print(type(error), error)"
    done = python(running, code)
    assert done.returncode == 0, done.stderr
    assert "KernelsMissingError" in done.stdout
    assert f"the compiled kernels are built for torch {BUILT} and this is torch {running}: build them" in done.stdout
    assert "pip install --no-build-isolation" in done.stdout
    assert done.stdout.count("\n") == 1
    done = python(running, "from fastrnn.apps.cli import main\nmain(['info', '--json'])")
    found = json.loads(done.stdout)["extension"]
    assert not found["built"]
    assert f"built for torch {BUILT}" in found["error"]
    assert found["build"]["torch_version"] == BUILT
    done = python(running, "from fastrnn.apps.cli import main\nmain(['info'])")
    assert f"built for torch {BUILT} and this is torch {running}" in done.stdout
    assert "to build them" in done.stdout


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


def test_the_comparison():
    check_torch(torch.__version__, "x")
    with pytest.raises(KernelsMissingError, match=r"fastrnn: x are built for torch 2\.1 and this is torch "):
        check_torch("2.1", "x")
