"""The compiled modules that this installation has, and the choice among them.

``fastrnn/_lib`` holds the library of the kernels and, on it, a module for each torch and Python that is served: torch's
C++ interface changes with its minor version, and so does Python's. A build from source makes one module, a wheel has
one for each version of torch. tools/native_build.py writes them.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

FOLDER = Path(__file__).parent / "_lib"
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))
_NAME = re.compile(r"torch(?P<torch>\d+\.\d+)(?P<suffix>\.(?:cpython-(?P<python>\d+))?.*)")


class Part(NamedTuple):
    """A compiled module: the minor version of its torch, the suffix of its Python's modules, and its file."""

    torch: str
    suffix: str
    path: Path

    @property
    def python(self) -> str:
        """The minor version of Python, such as ``3.11``, or an empty string if the suffix does not tell."""
        numbers = _match(self.path)["python"]
        return f"{numbers[0]}.{numbers[1:]}" if numbers else ""


def _match(path: Path) -> re.Match[str]:
    found = _NAME.fullmatch(path.name)
    assert found is not None
    return found


def parts() -> list[Part]:
    """Return all compiled modules of this installation, those of the oldest torch first."""
    found = [(path, _NAME.fullmatch(path.name)) for path in FOLDER.glob("torch*")]
    known = [Part(match["torch"], match["suffix"], path) for path, match in found if match is not None]
    return sorted(known, key=lambda part: (_numbers(part.torch), part.suffix))


def minor(torch_version: str) -> str:
    """Return the part of a version of torch that its C++ interface depends on: ``2.13`` of ``2.13.1+cpu``."""
    return ".".join(torch_version.split(".")[:2])


def find(torch_version: str) -> Part | None:
    """Return the module for a version of torch and this Python, or None."""
    wanted = minor(torch_version)
    return next((part for part in parts() if part.torch == wanted and part.suffix == SUFFIX), None)


def load(name: str) -> ModuleType:
    """Load the module for the torch that runs, under a name that ends in ``_C``.

    Raises:
        ImportError: there is none, or it cannot be loaded.
    """
    import torch  # its libraries have to be there first

    part = find(str(torch.__version__))
    if part is None:
        raise ModuleNotFoundError(f"no compiled module for torch {torch.__version__} in {FOLDER}", name=name)
    loader = importlib.machinery.ExtensionFileLoader(name, str(part.path))
    spec = importlib.util.spec_from_file_location(name, part.path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")]
