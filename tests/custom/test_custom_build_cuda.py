"""Kernels of cells of Python for GPUs: when nvcc is run and how, what is kept, doing without. No GPU, no real nvcc."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastrnn
from fastrnn import _gpu, _paths, cuda
from fastrnn.custom import build, build_cuda, cache
from fastrnn.functional import LayerWeights, sequence

ROOT = Path(__file__).resolve().parents[2]
GPU = torch.device("cuda", 0)


@fastrnn.cell(gates="a")
def small(x, r, s):
    return torch.tanh(x.a + 0.375 * r.a)


@fastrnn.cell(gates="a")
def other(x, r, s):
    return torch.tanh(x.a + 0.625 * r.a)


class Kernels:
    """In place of fastrnn._cuda: on a GPU of compute capability 9.0."""

    def __init__(self):
        self.loaded, self.problem = [], ""

    def device_problem(self, device: int) -> str:
        return self.problem

    def has_kernels(self, cell: str, dtype: str, device: int) -> bool:
        name = f"#define FASTRNN_CELL_NAME {cell}\n"
        return any(name in content and text == dtype for content, _, text in self.loaded)

    def load_cell(self, path: str, capability: int) -> None:
        content = Path(path).read_text()
        if content.startswith("bad"):
            raise ImportError(f"{path}: it is of another version of fastrnn")
        bits = int(re.search(r"FORMATS (\d+)", content).group(1))
        (dtype,) = [str(d).removeprefix("torch.") for d, formats in build_cuda.FORMATS.items() if formats == bits]
        self.loaded.append((content, capability, dtype))


#: Writes what it is given to compile, and the arguments, to the file that it is to make; counts its runs.
NVCC = """#!/bin/sh
[ "$1" = --version ] && echo "Cuda compilation tools, release RELEASE, VRELEASE.88" && exit 0
echo run >>"LOG"
ANSWER
for argument; do [ "$last" = -o ] && out=$argument; last=$argument; done
cat cell.cu >"$out"
echo "$@" >>"$out"
"""


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine with a GPU and a toolkit: `gpu.nvcc(…)` makes another one, `gpu.runs()` counts."""
    module = Kernels()
    monkeypatch.setattr(_gpu, "module", module)
    monkeypatch.setattr(_gpu, "reason", "")
    monkeypatch.setattr(_gpu, "_reasons", {})
    monkeypatch.setattr(build_cuda, "_missing", {})
    monkeypatch.setattr(build_cuda, "_ready", set())
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: module.capability)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "cache"))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    module.capability, log = (9, 0), tmp_path / "log"

    def nvcc(folder: Path = tmp_path / "cuda", release: str = "13.0", answer: str = "") -> Path:
        text = NVCC.replace("RELEASE", release).replace("LOG", str(log)).replace("ANSWER", answer)
        write_program(folder / "bin" / "nvcc", text)
        forget()
        return folder

    module.nvcc, module.runs = nvcc, lambda: len(log.read_text().splitlines()) if log.is_file() else 0
    monkeypatch.setenv("CUDA_HOME", str(nvcc()))
    yield module
    forget()


def forget() -> None:
    """Clear the caches of results that are computed once per process."""
    for function in (build.compiler, build.compiler_version, build.headers_digest, build_cuda.toolkit):
        function.cache_clear()


def write_program(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def prepare(cell=small, dtype: torch.dtype = torch.float32) -> str:
    return build_cuda.prepare(cell.kernels, cell.source(), dtype, GPU)


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*.so"))


def test_compiled_once_for_the_gpu_at_hand(gpu, tmp_path):
    assert prepare() == prepare() == ""
    assert gpu.runs() == 1
    ((content, capability, dtype),) = gpu.loaded
    assert [content] == [file.read_text() for file in files(tmp_path)]
    assert (capability, dtype) == (90, "float32")
    assert f"#define FASTRNN_CELL_NAME {small.kernels}" in content
    assert "-gencode=arch=compute_90a,code=sm_90a" in content
    assert f"-I{build.headers()}" in content
    assert prepare(dtype=torch.bfloat16) == ""  # only when it is called
    assert [loaded[2] for loaded in gpu.loaded] == ["float32", "bfloat16"]


@pytest.mark.parametrize(("capability", "name"), [((8, 0), "80"), ((8, 6), "86"), ((9, 0), "90a"), ((12, 0), "120")])
def test_architectures(gpu, capability, name):
    gpu.capability = capability
    assert prepare() == ""
    content, number, _ = gpu.loaded[0]
    assert f"-gencode=arch=compute_{name},code=sm_{name}" in content
    assert number == 10 * capability[0] + capability[1]


def test_a_gpu_that_is_too_old(gpu):
    gpu.capability = (7, 5)
    assert prepare() == "no kernels on cuda, expected compute capability 8.0 or higher, got 7.5"
    assert gpu.runs() == 0


def test_another_process_finds_the_file(gpu, tmp_path):
    prepare()
    gpu.loaded.clear()
    build_cuda._ready.clear()
    assert prepare() == ""
    assert gpu.runs() == 1
    assert len(gpu.loaded) == 1
    # a damaged one, which would end the process that loads it, is built anew
    (file,) = files(tmp_path)
    file.write_text("bad")
    gpu.loaded.clear()
    build_cuda._ready.clear()
    assert prepare() == ""
    assert gpu.runs() == 2


def test_the_name_says_all_that_it_depends_on(gpu, tmp_path, monkeypatch):
    def name(cell=small, capability=(9, 0), dtype=torch.float32) -> str:
        return build_cuda.library(cell.kernels, cell.source(), capability, dtype).path.name

    found = [name(), name(other), name(capability=(8, 0)), name(dtype=torch.float16)]
    gpu.nvcc(release="13.1")
    found.append(name())
    gpu.nvcc()
    monkeypatch.setattr(build_cuda, "COMPILE", (*build_cuda.COMPILE, "-g"))
    found.append(name())
    monkeypatch.undo()
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "cuda"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    write_program(tmp_path / "c++", "#!/bin/sh\necho another compiler\n")
    monkeypatch.setenv("CXX", str(tmp_path / "c++"))
    forget()
    found.append(name())
    monkeypatch.delenv("CXX")
    folder = tmp_path / "csrc"
    shutil.copytree(build.headers(), folder)
    monkeypatch.setattr(build, "headers", lambda: folder)
    forget()
    before = gpu.runs()
    assert name() == found[0]  # the same headers in another place
    assert gpu.runs() == before
    with (folder / "cuda" / "unit.h").open("a") as file:
        file.write("// changed\n")
    forget()
    found.append(name())
    assert gpu.runs() == before + 1
    assert len({text.rsplit("_", 1)[0] for text in found}) == len(found)


def test_nvcc_that_fails(gpu, tmp_path):
    gpu.nvcc(answer='echo "cell.cu(3): error: out of luck" >&2; exit 2')
    reason = f"no kernels on cuda, {tmp_path}/cuda/bin/nvcc failed: cell.cu(3): error: out of luck"
    assert prepare() == prepare() == reason
    assert gpu.runs() == 1  # it would fail again
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(RuntimeError, match=r"small: no kernels on cuda, .*out of luck"):
        small.build(device="cuda")
    gpu.nvcc()
    small.build(device="cuda")
    assert len(gpu.loaded) == 1


def test_kernels_that_do_not_load(gpu):
    gpu.nvcc(answer="echo bad >cell.so; exit 0")
    assert re.fullmatch(r"no kernels on cuda, .*\.so: it is of another version of fastrnn", prepare())


def test_no_place(gpu, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTRNN_CACHE", str(tmp_path / "file" / "cache"))
    assert "cannot store kernels in" in prepare()
    assert "FASTRNN_CACHE" in prepare()


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes everywhere")
def test_a_cache_that_may_only_be_read(gpu, tmp_path):
    prepare()
    build_cuda._ready.clear()
    gpu.loaded.clear()
    (tmp_path / "cache").chmod(0o555)
    assert prepare() == ""
    assert "FASTRNN_CACHE" in prepare(other)


def test_a_cache_that_cannot_be_written(gpu, tmp_path, monkeypatch):
    """Files that are there are used, others are a problem; also for the superuser."""
    prepare()
    build_cuda._ready.clear()
    gpu.loaded.clear()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache.tempfile, "TemporaryDirectory", refuse)
    assert prepare() == ""
    assert prepare(other).startswith(
        f"no kernels on cuda, cannot store kernels in {tmp_path / 'cache'} (FASTRNN_CACHE)"
    )


def test_where_nvcc_is_looked_for(gpu, tmp_path, monkeypatch):
    one, two, three = (gpu.nvcc(tmp_path / name) for name in ("one", "two", "site/nvidia/cu13"))
    monkeypatch.setattr(build_cuda, "_packages", lambda: tmp_path / "site" / "nvidia")
    monkeypatch.setenv("CUDA_HOME", str(one))
    monkeypatch.setenv("CUDA_PATH", str(two))

    def found() -> Path:
        build_cuda.toolkit.cache_clear()
        return build_cuda.toolkit()

    assert found() == one / "bin" / "nvcc"
    monkeypatch.delenv("CUDA_HOME")
    assert found() == two / "bin" / "nvcc"
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    with pytest.raises(build.BuildError, match=f"CUDA_PATH={tmp_path} has no bin/nvcc"):
        found()
    monkeypatch.delenv("CUDA_PATH")
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{one / 'bin'}{os.pathsep}{path}")
    assert found() == one / "bin" / "nvcc"
    usual = [p for p in path.split(os.pathsep) if not (Path(p) / "nvcc").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(usual))
    assert found() == three / "bin" / "nvcc"


def test_no_nvcc(gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    build_cuda.toolkit.cache_clear()
    assert prepare() == f"no kernels on cuda, CUDA_HOME={tmp_path / 'nowhere'} has no bin/nvcc"


def test_nvcc_of_another_cuda(gpu):
    gpu.nvcc(release="12.8")
    assert re.search(r"nvcc has CUDA 12\.8 but torch has 13\.0: set CUDA_HOME", prepare())


def test_no_compiler_for_the_hosts_part(gpu, monkeypatch):
    monkeypatch.setenv("CXX", "/nonexistent")
    forget()
    assert prepare() == "no kernels on cuda, expected a C++ compiler, found none (/nonexistent)"


def test_runtime_of_the_toolkit_or_of_torch(gpu, tmp_path, monkeypatch):
    packages = tmp_path / "site" / "nvidia"
    monkeypatch.setattr(build_cuda, "_packages", lambda: packages)
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    assert build_cuda.runtime(nvcc) == ["--cudart=shared"]
    for folder in (packages / "cu13" / "lib", tmp_path / "cuda" / "lib64"):
        folder.mkdir(parents=True)
        (folder / "libcudart.so.13").touch()
        assert build_cuda.runtime(nvcc) == ["--cudart=none", f"-Xlinker={folder / 'libcudart.so.13'}"]


def test_formats_and_devices_without_kernels(gpu, monkeypatch):
    assert prepare(dtype=torch.complex64) == "no kernels for torch.complex64"
    gpu.problem = "the kernels are built for sm_80, cuda:0 is older"
    assert prepare() == "no kernels on cuda, the kernels are built for sm_80, cuda:0 is older"
    monkeypatch.setattr(_gpu, "module", None)
    monkeypatch.setattr(_gpu, "reason", "the CUDA kernels are not built")
    assert prepare() == "no kernels on cuda, the CUDA kernels are not built"
    assert gpu.runs() == 0


def on_a_gpu():
    """A layer's input and weights that say they are on a GPU."""
    x, w_ih, w_hh = (torch.empty(shape, device=GPU) for shape in ((4, 5, 3), (2, 3), (2, 2)))
    return x, LayerWeights(w_ih, w_hh)


def test_one_warning_and_plain_torch(gpu, monkeypatch):
    gpu.nvcc(answer='echo "error: out of luck" >&2; exit 2')
    _paths._warned.clear()
    monkeypatch.setitem(_paths._WAYS, "reference", lambda *_: "the reference")
    with FakeTensorMode():
        x, weights = on_a_gpu()
        with pytest.raises(RuntimeError, match=rf'backend="fused": {small.kernels}: no kernels on cuda, .*out of luck'):
            sequence(small.kernels, x, weights, backend="fused")
        with pytest.warns(UserWarning, match=r"out of luck; running it as plain torch, step by step"):
            assert sequence(small.kernels, x, weights) == "the reference"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert sequence(small.kernels, x, weights) == "the reference"


def test_the_operators_get_it(gpu):
    with FakeTensorMode(), torch.no_grad():
        x, weights = on_a_gpu()
        y, (h,) = sequence(small.kernels, x, weights, backend="fused")
        assert y.is_cuda
        assert (y.shape, h.shape) == ((4, 5, 2), (5, 2))
    assert len(gpu.loaded) == 1


def test_an_explanation(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu.driver = lambda: "auto"
    told = {"driver": "stepwise", "possible": True, "reason": "because", "format": "float32"}
    told |= dict.fromkeys(("unit_slices", "row_slices", "units", "rows", "shared_bytes"), 0)
    gpu.explain = lambda *_: dict(told)
    assert cuda.explain(small.kernels, 4, 8).driver == "stepwise"
    assert len(gpu.loaded) == 1  # a cell's kernels say what drivers there are
    gpu.nvcc(answer='echo "error: out of luck" >&2; exit 2')
    with pytest.raises(RuntimeError, match=rf"fastrnn\.cuda: {other.kernels}: no kernels on cuda, .*out of luck"):
        cuda.explain(other.kernels, 4, 8)


@pytest.mark.skipif(not (ROOT / "setup.py").is_file(), reason="needs a checkout")
def test_headers_are_in_the_package(tmp_path):
    """All that a cell's source includes, found from the folder that an installed package has."""
    command = [sys.executable, "setup.py", "--quiet", "build_py", "--build-lib", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "fastrnn" / "csrc"
    for first in ("cuda/custom_unit.h", "cpu/custom_unit.h", "cpu/unit.h"):
        seen, left = set(), [first]
        while left:
            name = left.pop()
            seen.add(name)
            text = (folder / name).read_text()
            left += [n for n in re.findall(r'#include "([^"]+/[^"]+)"', text) if n not in seen]
        assert len(seen) > 2
