"""torch.ops.fastrnn_emulated: the operators of csrc/ops/cuda on the CPU, built over the emulator of tests/cuda.

A CPU tensor stands for one on a GPU, and the kernels run in the emulator; the code between torch and the kernels is
the one that runs on a GPU. The build is kept in build/cuda_ops and redone only when a file that it includes has
changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import emulated
import torch

from fastrnn import _C, _ops, _paths
from fastrnn.custom import build_cuda

ROOT = Path(__file__).resolve().parents[2]
OWN = ROOT / "tests" / "cuda_ops"
#: The emulated GPU's compute capability, times ten.
CAPABILITY = 90
#: Sources that depend on the runtime or the GPU itself; tests/cuda_ops replaces them.
REPLACED = ("graphs.cpp", "machine.cpp", "module.cpp")
#: Sources of the emulator that only its own tests call.
NOT_NEEDED = ("library.cpp", "mistakes.cpp")
CELLS = ("gru", "lstm", "rnn_tanh")


def load() -> None:
    """Build and load the library. Raises emulated.BuildError."""
    if not hasattr(torch.ops.fastrnn_emulated, "sequence_forward"):
        torch.ops.load_library(str(build()))


def build() -> Path:
    compiler = emulated.tools()
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import build_checks
    finally:
        sys.path.remove(str(ROOT / "tools"))
    torch_include = Path(build_checks.find_torch_include())
    binding = sorted(p for folder in ("ops", "ops/cuda") for p in (ROOT / "csrc" / folder).glob("*.cpp"))
    binding = [p for p in binding if p.name not in REPLACED]
    binding += sorted(OWN.glob("*.cpp"))
    plain = [*emulated.HOST, ROOT / "csrc" / "cuda" / "registry.cpp"]
    plain += [*(p for p in sorted((ROOT / "tests" / "cuda").glob("*.cpp")) if p.name not in NOT_NEEDED)]
    includes = [f"-I{OWN / 'include'}", f"-isystem{torch_include}"]
    includes += [f"-isystem{torch_include / 'torch' / 'csrc' / 'api' / 'include'}"]
    # The kernels of custom cells, in shared objects of their own (load_own), call the emulator.
    flags = [
        *(f for f in emulated.FLAGS if f != "-fvisibility=hidden"),
        f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}",
    ]
    command = [*compiler.command, *flags]
    key = repr((command, includes, compiler.version, torch.__version__, CELLS))
    folder = ROOT / "build" / "cuda_ops" / hashlib.sha256(key.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes at once
        units = emulated.generated(folder / "units", CELLS)
        units.append(registry(folder / "units"))
        libraries = [f"-L{torch_include.parent / 'lib'}", "-lc10", "-ltorch_cpu", "-Wl,--no-undefined"]
        text = ninja_file(command, [*units, *plain], binding, [*includes, "-O0", "-g0"], libraries)
        ninja = folder / "build.ninja"
        if not ninja.is_file() or ninja.read_text() != text:
            ninja.write_text(text)
        done = subprocess.run(["ninja", "-j2"], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise emulated.BuildError(done.stdout + done.stderr)
    return folder / "cuda_ops.so"


def registry(folder: Path) -> Path:
    """Write the table of the built-in cells with tools/generate_units.py, as for a GPU."""
    entries = "".join(f'{{"{cell}", &table<{k}>}}, ' for k, cell in enumerate(CELLS))
    path = folder / "emulated_registry.cpp"
    text = (
        '#include "cuda/registry.h"\n#include "tables.h"\nnamespace fastrnn::cuda {\ntemplate <int k>\n'
        "const CellKernels* table() {\n  return &all_tables()[k];\n}\n"
        f"const RegistryEntry kRegistry[] = {{{entries}{{nullptr, nullptr}}}};\n}}\n"
    )
    if not path.is_file() or path.read_text() != text:
        path.write_text(text)
    return path


def load_own(name: str, header: str, formats: int) -> None:
    """Compile a custom cell for the emulator, from the sources that nvcc gets, and load it, unless that has been done.

    formats: a bit for each of emulated.FORMATS.
    """
    if formats & ~torch.ops.fastrnn_emulated.formats(name, CAPABILITY) == 0:
        return
    whole = build()  # the library that the kernels call
    compiler = emulated.tools()
    files = build_cuda.sources(name, header, formats)
    command = [*compiler.command, *emulated.FLAGS, "-I.", "-shared", "-x", "c++", "cell.cu", "-x", "none", str(whole)]
    key = repr((command, compiler.version, files, build_cuda.build.headers_digest("cuda"), whole.stat().st_mtime_ns))
    folder = ROOT / "build" / "cuda_ops" / f"{name}_{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "cell.so").is_file():
            for file, text in files.items():
                (folder / file).write_text(text)
            done = subprocess.run([*command, "-o", "new.so"], cwd=folder, capture_output=True, text=True)
            if done.returncode != 0:
                raise emulated.BuildError(done.stdout + done.stderr)
            (folder / "new.so").rename(folder / "cell.so")
    torch.ops.fastrnn_emulated.load_cell(str(folder / "cell.so"), CAPABILITY)


def ninja_file(
    command: list[str], plain: list[Path], binding: list[Path], extra: list[str], libraries: list[str]
) -> str:
    """Write build.ninja. `extra`: flags of sources that include torch; `libraries`: flags of the linker."""

    def escape(path: object) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    def quoted(flags: list[str]) -> str:
        return " ".join(f"'{flag}'" for flag in flags).replace("$", "$$")

    compiler = quoted(command)
    lines = ["rule compile", f"  command = {compiler} $extra -MMD -MF $out.d -c $in -o $out"]
    lines += [
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {compiler} -shared $in {quoted(libraries)} -o $out",
    ]
    objects = [f"{number}_{path.stem}.o" for number, path in enumerate((*plain, *binding))]
    for name, path in zip(objects, (*plain, *binding), strict=True):
        lines.append(f"build {name}: compile {escape(path)}")
        if path in binding:
            lines.append(f"  extra = {quoted(extra)}")
    return "\n".join([*lines, f"build cuda_ops.so: link {' '.join(objects)}", ""])


def runs() -> dict[str, int]:
    """Return the number of sequences that each driver ran."""
    return dict(zip(emulated.DRIVERS, torch.ops.fastrnn_emulated.runs(), strict=True))


@contextlib.contextmanager
def instead() -> Iterator[None]:
    """Make fastrnn compute with these operators, as it computes with those for tensors on a GPU."""
    ours = torch.ops.fastrnn_emulated
    names = ("sequence_forward", "layer_backward", "layer")
    before = {name: getattr(_ops, name) for name in names}
    _ops.sequence_forward = ours.sequence_forward.default
    _ops.layer_backward = ours.layer_backward.default
    _ops.layer = lambda *_: None
    prepared, _paths._prepared = _paths._prepared, lambda *_: ""  # custom cells: load_own
    _C.set_fast_path(False)
    ours.set_poison(True)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(_ops, name, value)
        _paths._prepared = prepared
        _C.set_fast_path(True)
        ours.set_driver("auto")
        ours.limit_machine(0, 0, 0)
        ours.set_refusing(False)
        ours.set_poison(False)
