"""The kernels without torch: tests/native/check_kernels.cpp, built here for this compiler, plainly and with sanitizers.
check_team.cpp: when threads that work together part.

Objects are kept in build/native and compiled again only when a file that they include has changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "tests" / "native"

pytestmark = pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="needs a checkout")

FLAGS = ["-O1", "-g1", "-std=c++20", f"-I{ROOT / 'csrc'}", "-ffp-contract=off"]
# Stopped by the first report. The checks left out cost most of the compile time and look for what no kernel does; in
# return for the parameter below gcc needs 15 seconds for a unit instead of three minutes.
ADDRESS = ["-fsanitize=address,undefined", "-fno-sanitize=null,object-size,vptr,pointer-overflow"]
ADDRESS += ["-fno-sanitize-recover=all"]
CALLS = ["--param", "asan-instrumentation-with-call-threshold=0"]
# Each difference between cells (states, projection, separate gradients) and between instruction sets at least once.
FEW_UNITS = {("lstm", "baseline"), ("lstm", "avx512"), ("gru", "baseline"), ("gru", "avx2")}


@pytest.fixture(scope="module")
def tools():
    """The modules of tools/, and the compiler that the extension is built with."""
    sys.path.insert(0, str(ROOT / "tools"))
    import build_checks
    import generate_units

    try:
        build_checks.check_ninja()
        compiler = build_checks.find_compiler(build_checks.find_torch_include())
    except SystemExit as problem:
        pytest.skip(str(problem))
    openmp = [] if sys.platform == "darwin" else compiler.openmp_compile  # there torch brings the runtime
    yield SimpleNamespace(units=generate_units, build_checks=build_checks, compiler=compiler, openmp=openmp)
    sys.path.remove(str(ROOT / "tools"))


def build(tools, flags: list[str], pairs: set[tuple[str, str]] | None = None, team: Path | None = None) -> Path:
    """Builds check_kernels with these flags in a folder of its own, and returns the folder.

    pairs: cells and instruction sets to build, all if None. team: stands in for csrc/cpu/team.cpp.
    """
    command = [*tools.compiler.command, *flags]
    name = hashlib.sha256(repr((command, tools.compiler.version, pairs and sorted(pairs))).encode()).hexdigest()[:16]
    folder = ROOT / "build" / "native" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        sources = unit_sources(tools, folder / "units", pairs)
        sources += sorted(p for p in (ROOT / "csrc" / "cpu").glob("*.cpp") if team is None or p.name != "team.cpp")
        sources += [NATIVE / "check_kernels.cpp", *([team] if team else [])]
        tools.units.write_if_changed(folder / "build.ninja", ninja_file(command, sources))
        done = subprocess.run(["ninja", "-j2"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return folder


def unit_sources(tools, folder: Path, pairs: set[tuple[str, str]] | None) -> list[Path]:
    every = tools.units.generate(folder, tools.compiler.arch)
    if pairs is None:
        return every
    registry = folder / "registry_of_few.cpp"
    lines = (folder / "kernel_registry.cpp").read_text().splitlines()
    named = [(re.search(r"_CELL\((\w+), (\w+)\)", line), line) for line in lines]
    kept = [line for match, line in named if match is None or match.groups() in pairs]
    tools.units.write_if_changed(registry, "\n".join([*kept, ""]))
    wanted = {f"kernel_{cell}_{isa}" for cell, isa in pairs}
    return [path for path in every if path.stem in wanted or path.stem.startswith("kernel_products")] + [registry]


def ninja_file(command: list[str], sources: list[Path]) -> str:
    def escape(path: object) -> str:
        return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    compiler = " ".join(f"'{part}'" for part in command).replace("$", "$$")
    lines = [
        "rule compile",
        f"  command = {compiler} -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    lines += ["rule link", f"  command = {compiler} $in -o $out"]
    objects = [f"{path.stem}.o" for path in sources]
    lines += [f"build {name}: compile {escape(path)}" for name, path in zip(objects, sources, strict=True)]
    return "\n".join([*lines, f"build check_kernels: link {' '.join(objects)}", ""])


def run(folder: Path, *arguments: str) -> list[str]:
    """Lines that the program printed. What a sanitizer says ends it with an error."""
    environment = {**os.environ, "UBSAN_OPTIONS": "print_stacktrace=1", "TSAN_OPTIONS": "halt_on_error=1"}
    environment["OMP_WAIT_POLICY"] = "passive"  # there are more threads than cores: one that spins holds up the others
    done = subprocess.run(
        [folder / "check_kernels", *arguments], capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def need_sanitizer(tools, tmp_path: Path, flags: list[str]) -> None:
    """Skips where the compiler has no runtime for it, or this system does not let it run."""
    source, program = tmp_path / "empty.cpp", tmp_path / "empty"
    source.write_text("int main() { return 0; }\n")
    command = [*tools.compiler.command, *flags, str(source), "-o", str(program)]
    for step in (command, [str(program)]):
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode != 0:
            reason = (done.stderr.splitlines() or ["no output"])[0]
            pytest.skip(f"{tools.compiler.version} cannot build or run programs with {flags[0]} here: {reason}")


def test_every_kernel(tools):
    lines = run(build(tools, [*FLAGS, *tools.openmp]))
    assert [line.split(":")[0] for line in lines] == list(tools.units.instruction_sets(tools.compiler.arch))
    for line in lines:
        assert ": passed, " in line or "this processor lacks it" in line
    assert "passed" in lines[0]


def test_what_is_around_the_matrix_unit(tools):
    """Its kernels with the unit's instructions replaced by products on vectors, where a processor has these."""
    if "amx" not in tools.units.instruction_sets(tools.compiler.arch):
        pytest.skip("this architecture has no matrix unit")
    pairs = {(cell, isa) for cell in ("lstm", "gru") for isa in ("baseline", "avx512", "amx")}
    lines = run(build(tools, [*FLAGS, *tools.openmp, "-DFASTRNN_EMULATE_MATRIX_UNIT"], pairs), "--quick")
    assert lines[-1].startswith("amx: ")
    assert ": passed, " in lines[-1] or "this processor lacks it" in lines[-1]


def test_instruction_sets_share_no_function(tools):
    """The linker keeps one of several weak functions of a name: it might be one that this processor cannot run."""
    if sys.platform != "linux" or shutil.which("nm") is None:
        pytest.skip("reads ELF objects with nm")
    folder = build(tools, [*FLAGS, *tools.openmp])
    for isa in tools.units.instruction_sets(tools.compiler.arch)[1:]:
        for path in sorted(folder.glob(f"kernel_*_{isa}.o")):
            symbols = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout.splitlines()
            code = [line.split(None, 2)[2] for line in symbols if re.match(r"[0-9a-f]+ [TWu] ", line)]
            assert code, path.name
            assert [name for name in code if f"fastrnn::{isa}::" not in name] == []


def test_memory_and_undefined_behaviour(tools, tmp_path):
    need_sanitizer(tools, tmp_path, ADDRESS)
    calls = CALLS if tools.compiler.version.startswith("gcc") else []
    lines = run(build(tools, [*FLAGS, *tools.openmp, *ADDRESS, *calls], FEW_UNITS), "--quick")
    assert "passed" in lines[0]


def test_no_race_between_threads(tools, tmp_path):
    need_sanitizer(tools, tmp_path, ["-fsanitize=thread"])
    pairs = {("lstm", "baseline"), ("gru", "baseline")}
    lines = run(build(tools, [*FLAGS, "-fsanitize=thread"], pairs, NATIVE / "team_threads.cpp"), "--quick")
    assert "passed" in lines[0]


def test_when_a_team_breaks_up(tools, tmp_path):
    sources = [NATIVE / "check_team.cpp", NATIVE / "team_threads.cpp", ROOT / "csrc" / "cpu" / "contention.cpp"]
    program = tmp_path / "check_team"
    command = [*tools.compiler.command, *FLAGS, "-pthread", *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_clang_understands_the_sources(tools, tmp_path):
    """Kernels built with gcc also compile with clang, if it is installed: this finds code that only gcc accepts."""
    clang = next((found for name in ("clang++", "clang++-14") if (found := shutil.which(name))), None)
    if clang is None or tools.compiler.version.startswith("clang"):
        pytest.skip("no second compiler")
    if tools.build_checks.try_probe([clang], [], []) is not None:
        pytest.skip(f"{clang} has no standard library that it can use")
    sources = tools.units.generate(tmp_path, tools.compiler.arch) + sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))
    command = [clang, "-fsyntax-only", "-Wall", "-Werror", "-std=c++20", f"-I{ROOT / 'csrc'}", *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
