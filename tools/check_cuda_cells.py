"""Compile custom cells with nvcc for sm_80 and sm_90a, link and load them; needs no GPU.

    python check_cuda_cells.py TESTS        # the folder with custom_cells.py

Called by `tools/check_cuda.sh`, in an environment that finds a build with CUDA kernels first. Compiles an LSTM in every
dtype; an LSTM, GRU and RNN written in Python, and cells with different features, in float32.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

CAPABILITIES = ((8, 0), (9, 0))
#: Per-unit parameters, a product for some gates, a second product, none, four states, inputs without weights.
GALLERY = ("peephole_lstm", "mut1", "multiplicative_lstm", "sru", "slstm", "zoneout_lstm")


def cells(tests: str) -> list[Any]:
    sys.path.insert(0, tests)
    import custom_cells  # type: ignore[import-not-found]

    from fastrnn import gallery

    own = (custom_cells.lstm, custom_cells.gru, custom_cells.rnn_tanh)
    return [*own, *(gallery.CELLS[name] for name in GALLERY)]


def main(tests: str) -> int:
    from fastrnn import _cuda
    from fastrnn.custom import build_cuda
    from fastrnn.custom.cache import BuildError

    def build(case: tuple[Any, torch.dtype, tuple[int, int]]) -> str:
        cell, dtype, capability = case
        name = f"{cell.name} in {dtype} for sm_{build_cuda.architecture(capability)}"
        try:
            load = functools.partial(_cuda.load_cell, capability=10 * capability[0] + capability[1])
            build_cuda.library(cell.kernels, cell.source(), capability, dtype).load(load)
        except (BuildError, ImportError) as error:
            return f"{name}: {error}"
        return ""

    found = cells(tests)
    cases = [(cell, torch.float32, capability) for cell, capability in itertools.product(found, CAPABILITIES)]
    others = [dtype for dtype in build_cuda.FORMATS if dtype != torch.float32]
    cases += [(found[0], dtype, capability) for dtype, capability in itertools.product(others, CAPABILITIES)]
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["FASTRNN_CACHE"] = cache  # an empty cache: earlier builds are not reused
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            problems = [problem for problem in pool.map(build, cases) if problem]
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        seconds = time.monotonic() - start
        print(f"{len(found)} custom cells compile, {len(cases)} shared objects in {seconds:.0f} s, and load")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
