"""Completes an environment: ``dev_env.py deps`` installs all that development needs and is missing, ``build`` what the
library needs, and builds it, ``bench`` also what the benchmark needs, ``wheels`` what building wheels needs: no torch.

``deps`` installs all missing requirements of development; ``build`` installs those of the library and builds it;
``bench`` installs those of the benchmark as well.

The Makefile runs this with the environment's own Python. Each run checks what is installed, in a fraction of a second,
and records nothing about it: it completes an environment made by hand or half finished, and leaves a complete one as
    is.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib
import importlib.metadata
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import build_checks
import native_build

ROOT = Path(__file__).resolve().parent.parent
# The torch to install if none is requested and none is installed. An installed one that pyproject.toml allows is kept.
DEFAULT_TORCH = "torch==2.13.0"
# The extras of pyproject.toml that each goal needs; deps: all of them.
EXTRAS = {"build": (), "bench": ("plot",), "docs": ("docs",), "wheels": ("wheels",)}
FLAG_VARIABLES = ("CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS")
CUDA_VARIABLES = ("FASTRNN_BUILD_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDA_HOME", "CUDA_PATH")


def main() -> int:
    parser = argparse.ArgumentParser(description="Complete the development environment that runs this program.")
    parser.add_argument("goal", choices=["deps", *EXTRAS])
    parser.add_argument("--torch", default="", help="requirement for torch, such as torch==2.14.1")
    args = parser.parse_args()
    os.chdir(ROOT)
    if args.goal not in ("deps", "wheels") and installed_version("torch") is None:
        check_machine()  # before gigabytes are fetched in vain
    ensure_pip()
    install_missing(args.torch, args.goal)
    if args.goal not in ("deps", "wheels"):
        build_if_changed()
    return 0


def run(command: list[str], advice: str = "") -> None:
    status = subprocess.run(command).returncode
    if status != 0:
        if advice:
            print(f"fastrnn: {advice}", file=sys.stderr)
        raise SystemExit(status)


def installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_machine() -> None:
    build_checks.check_platform()
    build_checks.cuda_request()
    build_checks.check_python_headers()
    build_checks.find_compiler(ROOT)


def ensure_pip() -> None:
    if importlib.util.find_spec("pip") is None:  # environments made by uv have none
        run([sys.executable, "-m", "ensurepip"], "pip is missing and cannot be added: python3 -m venv .venv")


def read_pyproject() -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        tomllib = importlib.import_module("pip._vendor.tomli")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def wanted_requirements(torch: str, goal: str) -> list[str]:
    """List the requirements of a goal, from pyproject.toml."""
    pyproject = read_pyproject()
    wanted = [*pyproject["build-system"]["requires"]]
    if goal != "wheels":
        wanted += pyproject["project"]["dependencies"]
    extras = pyproject["project"]["optional-dependencies"]
    for name in EXTRAS.get(goal, tuple(extras)):
        wanted += [line for line in extras[name] if not line.startswith("fastrnn[")]
    return [*wanted, torch] if torch else wanted


def is_missing(requirement: str) -> bool:
    # pip's copy of packaging, because no other package is certain to be installed yet.
    requirements = importlib.import_module("pip._vendor.packaging.requirements")
    try:
        parsed = requirements.Requirement(requirement)
    except requirements.InvalidRequirement:
        return True  # the path of a wheel: pip checks whether it is installed
    version = installed_version(parsed.name)
    return version is None or not parsed.specifier.contains(version, prereleases=True)


def install_missing(torch: str, goal: str) -> None:
    missing = [line for line in wanted_requirements(torch, goal) if is_missing(line)]
    if not missing:
        return
    if not torch and any(line.startswith("torch") for line in missing):
        missing.append(DEFAULT_TORCH)
    print("Installing " + ", ".join(missing), flush=True)
    if any(line.startswith("torch") for line in missing) and sys.platform == "linux":
        print("On Linux torch brings GBs of CUDA libraries unless pip is pointed to its CPU-only build", flush=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    advice = f"pip could not install this for Python {version}; with another: rm -rf .venv && make PYTHON=python3.12"
    run([sys.executable, "-m", "pip", "install", *missing], advice)
    importlib.invalidate_caches()


def extension_path() -> Path:
    """The compiled module for the torch of this environment."""
    torch = native_build.Torch(installed_version("torch") or "", [], ROOT)
    python = native_build.Python([], str(sysconfig.get_config_var("EXT_SUFFIX")))
    return ROOT / "fastrnn" / native_build.FOLDER / native_build.part_name(torch, python)


def fingerprint() -> str:
    """Hash everything that the extension depends on."""
    digest = hashlib.sha256()
    files = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    files += [ROOT / "setup.py", ROOT / "pyproject.toml"]
    files += [
        ROOT / "tools" / name for name in ("generate_units.py", "native_build.py", "build_checks.py", "cuda_checks.py")
    ]
    for path in sorted(files):
        digest.update(f"{path.relative_to(ROOT)}\n".encode())
        digest.update(path.read_bytes())
    for name in FLAG_VARIABLES + CUDA_VARIABLES:
        digest.update(f"{name}={os.environ.get(name)}\n".encode())
    digest.update(f"{sys.prefix} {sys.version} torch {installed_version('torch')}".encode())
    return digest.hexdigest()


def build_if_changed() -> None:
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    extension = extension_path()
    record = folder / f"{extension.name}.built.json"
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once would write the same objects
        state = fingerprint()
        # The time as well: somebody may have built another state by hand since.
        if not (extension.is_file() and read_record(record) == [state, extension.stat().st_mtime_ns]):
            print("Building the kernels", flush=True)
            run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"])
        install_package()  # in here, because pip writes the extension once more
        record.write_text(json.dumps([state, extension.stat().st_mtime_ns]))


def install_package() -> None:
    """Install the checkout and its `fastrnn` command, again whenever the metadata has changed."""
    record = Path(sys.prefix) / "fastrnn-installed.json"
    state = [str(ROOT), hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()]
    if installed_version("fastrnn") is not None and read_record(record) == state:
        return
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-build-isolation", "--no-deps", "--editable", "."])
    record.write_text(json.dumps(state))


def read_record(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    sys.exit(main())
