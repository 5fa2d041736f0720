"""benchmarks/gpu_run.sh and its parts, as far as they can be tried without a GPU."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

pytestmark = pytest.mark.skipif(not (BENCHMARKS / "gpu_run.sh").is_file(), reason="needs a checkout")

# As torch writes it.
NINJA = """\
ninja_required_version = 1.3
cxx = cp

flags = a$$b
more =

rule compile
  command = $cxx $in $out && echo '$flags' $more >$out.d
  depfile = $out.d
  deps = gcc

build {0}/objects/one.o: compile {0}/one.cpp
build {0}/objects/two.o: compile {0}/two.cpp
"""


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def ninja(folder, *arguments):
    command = [sys.executable, str(BENCHMARKS / "plain_ninja.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_without_ninja(tmp_path):
    (tmp_path / "build.ninja").write_text(NINJA.format(tmp_path))
    for name in ("one", "two"):
        (tmp_path / f"{name}.cpp").write_text(name)
    done = ninja(tmp_path, "-v", "-j", "2")
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "objects" / "two.o").read_text() == "two"
    assert (tmp_path / "objects" / "one.o.d").read_text() == "a$b\n"
    assert ninja(tmp_path, "--version").stdout.startswith("1.")


LINK = """
rule compile
  command = sleep 0.2 && echo $options >$out
rule link
  command = cat $in kernels.so >$out && echo '$options' >>$out
build part.so: link part.o | kernels.so
  options = -rpath,$$ORIGIN
build part.o: compile part.cpp
  options = -O2
build kernels.so: compile kernels.cpp
  options = -O3
default part.so
"""


def test_without_ninja_a_library_is_linked_after_what_it_needs(tmp_path):
    (tmp_path / "build.ninja").write_text(LINK)
    done = subprocess.run([sys.executable, str(BENCHMARKS / "plain_ninja.py"), "-C", str(tmp_path)])
    assert done.returncode == 0
    assert (tmp_path / "part.so").read_text() == "-O2\n-O3\n-rpath,$ORIGIN\n"


def test_without_ninja_a_failure_is_one(tmp_path):
    (tmp_path / "build.ninja").write_text(NINJA.format(tmp_path))
    (tmp_path / "one.cpp").touch()
    done = ninja(tmp_path, "-v")
    assert done.returncode != 0
    assert "two.cpp" in done.stdout


@pytest.fixture
def gpu_run(tmp_path):
    """Runs gpu_run.sh in a made-up checkout with made-up steps; the kernels are a module that is there or not."""
    root = tmp_path / "checkout"
    (root / "benchmarks").mkdir(parents=True)
    (root / "benchmarks" / "gpu_run.sh").write_text((BENCHMARKS / "gpu_run.sh").read_text())
    (root / "fastrnn").mkdir()
    (root / "fastrnn" / "__init__.py").write_text("from fastrnn import _C\n")
    (root / "fastrnn" / "_C.py").touch()
    # Without site-packages: an editable installation of fastrnn would find the modules that are missing here.
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    python.chmod(0o755)

    def run(steps, seconds=30, call="A", rehearse="--rehearse", **environment):
        table = tmp_path / "steps.tsv"
        table.write_text("".join("\t".join(map(str, step)) + "\n" for step in steps))
        environment = {"OUT": str(tmp_path / "out"), "GPU_RUN_SECONDS": str(seconds), **environment}
        environment = {**os.environ, "PYTHON": str(python), "GPU_RUN_STEPS": str(table), **environment}
        command = ["bash", str(root / "benchmarks" / "gpu_run.sh"), call, *([rehearse] if rehearse else [])]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
        results = [line.split("\t") for line in done.stdout.splitlines() if line.count("\t") == 2]
        return done.returncode, {name: result for name, result, _ in results}, tmp_path / "out"

    run.root = root
    return run


def test_a_step_that_fails_or_hangs_loses_nothing_of_the_others(gpu_run):
    steps = [
        ("good", 20, "kernels", "echo done; echo more"),
        ("fails", 20, "-", "echo before; exit 3"),
        ("crashes", 20, "-", "echo before; kill -SEGV $$"),
        ("hangs", 3, "-", "echo before; trap : TERM; while true; do sleep 0.2; done"),
        ("left", 20, "-", "echo there is no such thing; exit 77"),
        ("last", 20, "kernels", "echo last"),
    ]
    status, results, out = gpu_run(steps, seconds=60)
    assert status == 1
    assert results["good"] == results["last"] == "passed"
    assert results["fails"] == "FAILED with status 3"
    assert results["crashes"].startswith("FAILED with status")
    assert results["hangs"] == "OUT OF TIME after 3 s"
    assert results["left"] == "left out: there is no such thing"
    for name in ("fails", "crashes", "hangs"):
        assert (out / f"{name}.log").read_text().startswith("before\n")
    assert (out / "good.log").read_text() == "done\nmore\n"
    told = (out / "steps.tsv").read_text()
    assert told.index("hangs\tstarted") < told.index("hangs\tOUT OF TIME") < told.index("last\tstarted")


def test_all_steps_together_have_a_limit(gpu_run):
    status, results, _ = gpu_run([("slow", 20, "-", "sleep 20"), ("none", 20, "-", "echo never")], seconds=4)
    assert status == 1
    assert results["slow"].startswith("OUT OF TIME after")
    assert results["none"] == "NO TIME"


def test_libraries_that_cannot_be_imported_are_built_beside_the_steps(gpu_run):
    (gpu_run.root / "fastrnn" / "_C.py").unlink()
    steps = [("facts", 20, "-", "test ! -e fastrnn/_C.py"), ("smoke", 20, "kernels", "test -e fastrnn/_C.py")]
    build = gpu_run.root / "build.sh"
    build.write_text("sleep 3; touch fastrnn/_C.py\n")
    status, results, _ = gpu_run(steps, seconds=60, GPU_RUN_BUILD=f"bash {build}")
    assert results == {"facts": "passed", "smoke": "passed"}
    assert status == 0


def test_without_kernels_what_needs_none_is_run(gpu_run):
    (gpu_run.root / "fastrnn" / "_C.py").unlink()
    steps = [("smoke", 20, "kernels", "echo never"), ("facts", 20, "-", "echo facts")]
    status, results, _ = gpu_run(steps, GPU_RUN_BUILD="false")
    assert status == 1
    assert results["smoke"].startswith("FAILED: no kernels: ")
    assert results["facts"] == "passed"


def test_built_libraries_are_taken_along(gpu_run, tmp_path):
    (tmp_path / "prebuilt").mkdir()
    (tmp_path / "prebuilt" / "_lib").mkdir()
    for name in ("made_up.so", "_lib/kernels.so"):
        (tmp_path / "prebuilt" / name).write_text("x")
    there = "test -e fastrnn/made_up.so && test -e fastrnn/_lib/kernels.so"
    status, results, _ = gpu_run([("there", 20, "kernels", there)], PREBUILT=str(tmp_path / "prebuilt"))
    assert results == {"there": "passed"}
    assert status == 0


@pytest.mark.parametrize(("call", "rehearse"), [("C", ""), ("A", "--rehearsal")])
def test_wrong_arguments(gpu_run, call, rehearse):
    status, results, _ = gpu_run([("one", 20, "-", "true")], call=call, rehearse=rehearse)
    assert status == 2
    assert not results


@pytest.mark.parametrize("call", ["A", "B"])
def test_the_steps_own_limits(call):
    """A call's steps fit into its time, but for some that end sooner; all calls together into twelve minutes."""
    text = (BENCHMARKS / "gpu_run.sh").read_text()
    body = text[text.index(f"steps_of_{call}()") :].split("\n}\n")[0]
    limits = [int(n) for n in re.findall(r"^ +[a-z]+ (\d+) (?:-|kernels) ", body, re.MULTILINE)]
    assert len(limits) >= 6
    assert sum(limits) <= {"A": 365, "B": 330}[call]


def test_parity_on_the_cpu_in_place_of_a_gpu(capsys):
    smoke = load("gpu_smoke")
    assert smoke.main(["--device", "cpu", "--random", "3"]) == 0
    assert capsys.readouterr().out.endswith("3 cases, 0 wrong\n")


def test_a_wrong_result_is_told(monkeypatch, capsys):
    smoke = load("gpu_smoke")
    monkeypatch.setattr(smoke, "error_of", lambda case, device: float("inf"))
    assert smoke.main(["--device", "cpu", "--random", "2"]) == 1
    assert capsys.readouterr().out.count("inf WRONG") == 2


def test_times_are_lines_of_json(tmp_path, monkeypatch):
    times = load("gpu_times")
    monkeypatch.setattr(times, "LENGTHS", (2, 4))
    assert times.main(["--device", "cpu", "--out", str(tmp_path / "times.jsonl")]) == 0
    rows = [json.loads(line) for line in (tmp_path / "times.jsonl").read_text().splitlines()]
    assert [row["engine"] for row in rows] == ["torch.nn", "auto"]
    assert set(rows[0]["microseconds"]) == {
        f"{name} {what}" for name in ("forward", "training") for what in ("T=2", "T=4", "step")
    }
