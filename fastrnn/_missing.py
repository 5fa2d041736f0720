"""Error for fastrnn without its compiled part: the cause and the command that fixes it."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
import sysconfig
from pathlib import Path
from urllib.parse import unquote, urlsplit

_PACKAGE = Path(__file__).parent
#: Text in the compiled part that can be read without loading it; see csrc/python/module.cpp.
_BUILT_FOR = re.compile(rb"fastrnn kernels built for torch ([\w.+]+), Python [\w.+]+;")


class KernelsMissingError(ImportError):
    """The compiled kernels cannot be loaded; the message gives the remedy."""


def check_torch(built: str, kernels: str) -> None:
    """Raise KernelsMissingError unless kernels were built for this torch.

    torch's binary interface changes with its minor version. Another patch release or local build is compatible.

    Args:
        built: the version of torch that they were built for.
        kernels: their name in the message.
    """
    problem = _of_another_torch(built)
    if problem:
        raise KernelsMissingError(f"fastrnn: {kernels} {problem}: build them again with `{command()}`")


def _of_another_torch(built: str) -> str:
    """Return the problem with kernels built for a version of torch, or an empty string."""
    import torch  # here, because the command line parses its arguments without importing torch

    running = str(torch.__version__)
    if built.split(".")[:2] == running.split(".")[:2]:
        return ""
    return f"are built for torch {built} and this is torch {running}"


def why(error: ImportError) -> str:
    """Return why the compiled part cannot be imported: built for another Python or torch, broken, or missing."""
    own = _PACKAGE / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    if own.is_file():
        found = _BUILT_FOR.search(own.read_bytes())
        problem = _of_another_torch(found[1].decode()) if found else ""
        return f"the compiled kernels {problem or f'cannot be loaded ({error})'}"
    names = [re.match(r"_C\.cpython-3(\d+)", path.name) for path in _PACKAGE.glob("_C.*")]
    versions = " and ".join(f"3.{minor}" for minor in sorted({int(name[1]) for name in names if name}))
    if versions:
        running = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"the compiled kernels are built for Python {versions} and this is Python {running}"
    return f"the compiled kernels are not built ({error})"


def command() -> str:
    """Return the command that rebuilds the kernels of this installation, from its source."""
    checkout = _PACKAGE.parent
    if (checkout / "setup.py").is_file():
        return f"{sys.executable} -m pip install --no-build-isolation -e {checkout}"
    return f"{sys.executable} -m pip install --no-build-isolation --no-deps --force-reinstall {_origin()}"


def _origin() -> str:
    """Return the path or address that pip installed fastrnn from, as recorded by pip."""
    try:
        noted = importlib.metadata.distribution("fastrnn").read_text("direct_url.json")
        address = urlsplit(json.loads(noted or "{}")["url"])
    except (importlib.metadata.PackageNotFoundError, KeyError, ValueError):
        return "PATH_OF_ITS_SOURCE"
    return unquote(address.path) if address.scheme == "file" else address.geturl()
