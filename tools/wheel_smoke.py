"""Run in an environment with nothing but a wheel of fastrnn and torch: a quick test of the installation.

    python wheel_smoke.py MINOR_VERSION_OF_TORCH

Every layer against torch.nn, forward and backward; a custom cell, which has no kernels without a compiler; what
``fastrnn info`` says; one runtime of OpenMP.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

import fastrnn


def check_layer(name: str, threads: int, **options: object) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    expected = getattr(torch.nn, name)(24, 40, num_layers=2, **options)
    layer = getattr(fastrnn, name)(24, 40, num_layers=2, **options)
    layer.load_state_dict(expected.state_dict())
    x = torch.randn(13, 6, 24, requires_grad=True)
    copy = x.detach().clone().requires_grad_()
    y, reference = layer(x)[0], expected(copy)[0]
    torch.testing.assert_close(y, reference)
    weight = torch.randn_like(y)
    (y * weight).sum().backward()
    (reference * weight).sum().backward()
    torch.testing.assert_close(x.grad, copy.grad, rtol=1e-4, atol=1e-5)
    for own, other in zip(layer.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-4, atol=1e-4)
    explained = str(fastrnn.explain(layer, x))
    assert "C++ fast path" in explained or "kernels" in explained, explained


def check_custom_cell() -> str:
    """A custom cell gives the values of its step, with kernels where there is a compiler, else without them."""

    @fastrnn.cell(gates="f u")
    def one_state(x, r, s):  # type: ignore[no-untyped-def]
        return torch.sigmoid(x.f + r.f) * s.h + torch.tanh(x.u + r.u)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network: Any = one_state(input_size=5, hidden_size=7)
        x = torch.randn(4, 3, 5)
        y, _ = network(x)
        network.backend = "reference"
        expected, _ = network(x)
        network.backend = "auto"
    torch.testing.assert_close(y, expected)
    return "compiled" if "kernels" in str(fastrnn.explain(network, x)).splitlines()[0] else "without kernels"


def check_info(version: str) -> None:
    command = [sys.executable, "-m", "fastrnn", "info", "--json"]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found["extension"]["built"], found["extension"]
    assert Path(found["extension"]["path"]).name.startswith(f"torch{version}."), found["extension"]["path"]
    assert found["extension"]["build"]["torch_version"].startswith(f"{version}."), found["extension"]["build"]
    assert len(found["libraries"]["openmp"]) == 1, found["libraries"]["openmp"]
    print(f"  kernels: {found['extension']['path']}, {found['extension']['capability']}")
    print(f"  OpenMP:  {found['libraries']['openmp'][0]}")


def main() -> int:
    version = sys.argv[1]
    assert torch.__version__.startswith(f"{version}."), torch.__version__
    assert Path(fastrnn.__file__).parents[1] != Path(__file__).parents[1], fastrnn.__file__  # not that of the checkout
    for name in ("LSTM", "GRU", "RNN"):
        for threads in (1, 2):
            check_layer(name, threads)
            check_layer(name, threads, bidirectional=True)
    check_layer("LSTM", 1, proj_size=9)
    cell = check_custom_cell()
    compiler = shutil.which("c++") or shutil.which("g++")
    print(f"  custom cell: {cell}, compiler on PATH: {compiler or 'none'}")
    check_info(version)
    return 0


if __name__ == "__main__":
    sys.exit(main())
