"""Error for fastrnn without its compiled part: the cause and the command that fixes it."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fastrnn import _parts

_PACKAGE = Path(__file__).parent


class KernelsMissingError(ImportError):
    """The compiled kernels cannot be loaded; the message gives the remedy."""


def check_torch(built: str, kernels: str) -> None:
    """Raise KernelsMissingError unless kernels were built for this torch.

    torch's binary interface changes with its minor version. Another patch release or local build is compatible.

    Args:
        built: the version of torch that they were built for.
        kernels: their name in the message.
    """
    running = _running_torch()
    if _parts.minor(built) != _parts.minor(running):
        problem = f"are built for torch {built} and this is torch {running}"
        raise KernelsMissingError(f"fastrnn: {kernels} {problem}: build them again with `{command()}`")


def why(error: ImportError) -> str:
    """Return why the compiled part cannot be imported: built for another Python or torch, broken, not there."""
    there = _parts.parts()
    own = [part for part in there if part.suffix == _parts.SUFFIX]
    running = _running_torch()
    if _parts.find(running):
        return f"the compiled kernels cannot be loaded ({error})"
    if own:
        versions = _listed(part.torch for part in own)
        return f"the compiled kernels are built for torch {versions} and this is torch {running}"
    versions = _listed(part.python for part in there if part.python)
    if versions:
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"the compiled kernels are built for Python {versions} and this is Python {python}"
    return f"the compiled kernels are not built (no module for torch {running} in {_parts.FOLDER})"


def remedy() -> str:
    """Return what to do about missing kernels, the end of a sentence."""
    if _is_checkout():
        return f"build them with `{command()}`"
    return f"install a fastrnn that serves them, or build them from source with `{command()}`"


def _running_torch() -> str:
    import torch  # here, as the command line reads its arguments without it

    return str(torch.__version__)


def _listed(versions: Iterable[str]) -> str:
    names = list(dict.fromkeys(versions))
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def _is_checkout() -> bool:
    return (_PACKAGE.parent / "setup.py").is_file()


def command() -> str:
    """Return the command that builds the kernels of this installation again, from where it came from."""
    if _is_checkout():
        return f"{sys.executable} -m pip install --no-build-isolation -e {_PACKAGE.parent}"
    return f"{sys.executable} -m pip install --no-build-isolation --no-deps --force-reinstall {_origin()}"


def _origin() -> str:
    """Return the path or address of the source that pip installed fastrnn from, as it has noted it."""
    try:
        noted = importlib.metadata.distribution("fastrnn").read_text("direct_url.json")
        address = urlsplit(json.loads(noted or "{}")["url"])
    except (importlib.metadata.PackageNotFoundError, KeyError, ValueError):
        return "PATH_OF_ITS_SOURCE"
    if address.path.endswith(".whl"):  # it has compiled files alone
        return "PATH_OF_ITS_SOURCE"
    return unquote(address.path) if address.scheme == "file" else address.geturl()
