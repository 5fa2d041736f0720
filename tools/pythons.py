"""Pythons of this machine other than the one that runs: where they are, and what compiling for them needs."""

from __future__ import annotations

import glob
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple


class Interpreter(NamedTuple):
    """A Python of this machine."""

    program: str
    version: str  # minor version, such as ``3.11``
    include: Path
    suffix: str  # of extension modules

    @property
    def tag(self) -> str:
        """As wheels call it, such as ``cp311``."""
        return "cp" + self.version.replace(".", "")


_ASK = """
import json, sys, sysconfig
print(json.dumps([sys.executable, "%d.%d" % sys.version_info[:2], sysconfig.get_path("include"),
                  sysconfig.get_config_var("EXT_SUFFIX")]))
"""


def find(version: str) -> Interpreter | None:
    """Return a Python of a minor version that has its headers, or None.

    It is looked for on PATH, among those of pyenv, and where the containers of manylinux have them.
    """
    pyenv = os.environ.get("PYENV_ROOT", str(Path.home() / ".pyenv"))
    tag = "cp" + version.replace(".", "")
    candidates = [shutil.which(f"python{version}"), f"/opt/python/{tag}-{tag}/bin/python"]
    candidates += sorted(glob.glob(f"{pyenv}/versions/{version}.*/bin/python"), reverse=True)
    for program in candidates:
        found = ask(program) if program and Path(program).exists() else None
        if found is not None and found.version == version and (found.include / "Python.h").is_file():
            return found
    return None


def ask(program: str) -> Interpreter | None:
    """Return what a Python says of itself, or None if it does not run."""
    done = subprocess.run([program, "-c", _ASK], capture_output=True, text=True)
    if done.returncode != 0:  # pyenv's stand-in for a version that is not chosen
        return None
    executable, version, include, suffix = json.loads(done.stdout)
    return Interpreter(executable, version, Path(include), suffix)
