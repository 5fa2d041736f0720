"""benchmarks/gpu_model.py against csrc/cuda/plan.cpp, against what the emulator counts, and against built kernels."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from emulated import DRIVERS, KB, TILING, Machine, Sizes, library
from emulated_problems import Problem, Way, random_sizes, run

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
if not (BENCHMARKS / "gpu_model.py").is_file():
    pytest.skip("needs a checkout", allow_module_level=True)
sys.path.insert(0, str(BENCHMARKS))
import gpu_model  # noqa: E402
import gpu_plan  # noqa: E402
import gpu_sass  # noqa: E402

REPORT = BENCHMARKS / "results" / "gpu-model.json"
SMALL = gpu_plan.Machine("small", 14, 100 * KB, 8, "sm_90a", 228 * KB)


def both(sizes: Sizes, machine: gpu_plan.Machine, driver: str):
    """The choice of plan.cpp and that of gpu_plan.py."""
    emulated = Machine(machine.processors, machine.shared_bytes, machine.largest_cluster)
    problem = gpu_plan.Problem(sizes.cell, sizes.fmt, sizes.B, sizes.H, sizes.backward)
    found = library().choose(sizes, driver, emulated)
    return found, gpu_plan.choose(problem, machine, gpu_plan.constants(), driver)


@pytest.mark.parametrize("machine", [gpu_plan.H100, gpu_plan.A100, SMALL], ids=lambda m: m.name)
def test_the_plan_in_python_is_that_in_cpp(machine):
    sizes = [s for s in random_sizes(300) if s.cell in gpu_plan.CELLS and s.fmt in gpu_plan.FORMATS]
    sizes += [Sizes("lstm", B, H, "bfloat16") for B in gpu_model.BATCH for H in gpu_model.HIDDEN]
    assert len(sizes) > 150
    for s, driver in itertools.product(sizes, DRIVERS):
        found, ours = both(s, machine, driver)
        assert bool(found.possible) == (ours is not None), (s, driver)
        if ours is None:
            continue
        assert DRIVERS[found.driver] == ours.driver, (s, driver)
        assert found.microseconds == pytest.approx(ours.microseconds, rel=1e-12), (s, driver)
        if ours.tiling is not None:
            assert found.tiling() == {name: getattr(ours.tiling, name) for name in TILING}, (s, driver)


def test_constants_are_read_where_they_stand():
    assert set(gpu_plan.NAMES) <= set(gpu_plan.constants())
    text = "".join(f"constexpr double {name} = 2.5e1;  // x\n" for name in gpu_plan.NAMES)
    assert gpu_plan.constants(text) == dict.fromkeys(gpu_plan.NAMES, 25.0)
    with pytest.raises(ValueError, match="kUnitRate"):
        gpu_plan.constants("constexpr double kAlone = 1.0, kLaunches = 5.0;")


@pytest.mark.parametrize("driver", ["grid", "cluster"])
@pytest.mark.parametrize("fmt", gpu_plan.FORMATS)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_emulator_counts_what_the_model_says(cell, fmt, driver):
    """Barriers, products, and bytes of the exchange, read and written, of whole calls."""
    kernels = library(True)
    for T, B, H, processors in ((1, 3, 13, 2), (3, 9, 40, 4), (4, 35, 24, 3)):
        machine = Machine(processors, largest_cluster=4)
        p, way = Problem(cell, T, B, H, fmt), Way(driver, machine=machine)
        kernels.counted()
        _, outcomes = run(kernels, p, way, training=True)
        counted = kernels.counted()
        wanted: dict[str, int] = {}
        for backward, outcome in zip((False, True), outcomes, strict=True):
            values = {name: getattr(outcome, name) for name in TILING}
            tiling = gpu_plan.Tiling(**{**values, "cluster": bool(outcome.cluster)})
            call = gpu_plan.Problem(cell, fmt, B, H, backward)
            for name, n in gpu_model.call_counts(call, tiling, T).items():
                wanted[name] = wanted.get(name, 0) + n
        tensor = gpu_plan.FORMATS[fmt].tensor
        assert counted["products"] == wanted["products"]
        assert counted["announcements"] == wanted["announcements"]
        assert counted["cluster_barriers"] == wanted["cluster_barriers"]
        assert counted["block_barriers"] == wanted["block_barriers"]
        assert counted["pushed_bytes"] == (wanted["stored_bytes"] if driver == "cluster" else 0)
        assert counted["exchanged_bytes"] == (wanted["stored_bytes"] if driver == "grid" else 0)
        # Without tensor cores eight lanes of a warp ask for the same 16 bytes, which go through L2 once.
        assert counted["fresh_bytes"] == (wanted["loaded_bytes"] * (1 if tensor else 8) if driver == "grid" else 0)


def test_counts_by_hand():
    """LSTM, H = 1024, B = 16, bfloat16: 128 blocks of 8 units, each loads 16 rows of 1024 numbers."""
    p = gpu_plan.Problem("lstm", "bfloat16", 16, 1024, False)
    t = gpu_plan.cut(p, 128, 1, cluster=False)
    assert (t.units, t.unit_slices, t.matrix_rows, t.depth, t.warps_across, t.warps_deep) == (8, 128, 32, 1024, 1, 8)
    assert t.shared_bytes == 64 * KB + 8 * 16 * 36 * 4 + 2 * 16 * 8 * 4
    counts = gpu_model.step_counts(p, t)
    assert counts["loaded_bytes"] == 128 * 16 * 1024 * 2
    assert counts["stored_bytes"] == 16 * 1024 * 2
    assert counts["products"] == 128 * (32 // 16) * (16 // 8) * (1024 // 16)
    assert counts["block_barriers"] == 128 * 3


@pytest.mark.parametrize(
    ("machine", "registers", "shared", "blocks"),
    [
        (gpu_plan.H100, 255, 100 * KB, 1),  # 65 536 registers hold one block of 256 · 256
        (gpu_plan.H100, 128, 100 * KB, 2),
        (gpu_plan.H100, 129, 1 * KB, 1),  # registers are given in eights: 136
        (gpu_plan.H100, 64, 113 * KB, 2),  # with the kilobyte of each block exactly 228
        (gpu_plan.H100, 64, 113 * KB + 1, 1),
        (gpu_plan.H100, 32, 227 * KB, 1),
        (gpu_plan.A100, 32, 81 * KB, 2),
        (gpu_plan.H100, 16, 0, 8),  # 64 warps
    ],
)
def test_occupancy(machine, registers, shared, blocks):
    assert gpu_model.blocks_at_once(machine, registers, shared) == blocks


def test_the_report_is_that_of_these_sources():
    """Made again with benchmarks/gpu_model.py --out when plan.cpp has changed."""
    document = gpu_model.unpacked(REPORT.read_text(encoding="utf-8"))
    assert document["kind"] == "computed, not measured on a GPU"
    c = gpu_plan.constants()
    assert document["constants"] == c
    calls = {(f["gpu"], f["cell"], f["format"], f["backward"], f["B"], f["H"]): f for f in document["calls"]}
    assert len(calls) == len(document["calls"]) == 2 * 3 * 4 * 2 * len(gpu_model.BATCH) * len(gpu_model.HIDDEN)
    for (gpu, cell, fmt, backward, B, H), found in calls.items():
        machine = next(m for m in gpu_model.MACHINES if m.name == gpu)
        computed = gpu_model.row(machine, gpu_plan.Problem(cell, fmt, B, H, backward), c, {})
        assert computed == {name: found[name] for name in computed}
        assert found.get("local_bytes", 0) == 0
        assert found.get("blocks_a_processor", 1) >= 1
        if found["driver"] == "grid":  # all blocks of it are on the machine at once
            assert found["blocks"] <= machine.processors * found["blocks_a_processor"]
    made = REPORT.with_suffix(".md").read_text(encoding="utf-8")
    assert made == gpu_model.markdown(document)
    kernels = {(k["architecture"], k["cell"], k["fmt"], k["driver"], k["backward"]): k for k in document["kernels"]}
    assert len(kernels) == 3 * 4 * 2 * 3  # both drivers on 9.0, the grid on 8.0
    for (_, cell, fmt, driver, backward), found in kernels.items():
        check_code(gpu_sass.Kernel(cell, fmt, driver, backward), found["instructions"], found["in_a_step"])


def check_code(kernel: gpu_sass.Kernel, everywhere, in_a_step) -> None:
    for name, n in gpu_sass.expected(kernel).items():
        assert everywhere.get(name, 0) == n, (kernel.text, name)
    for name, n in gpu_sass.expected_in_a_step(kernel).items():
        assert in_a_step.get(name, 0) == n, (kernel.text, name, "in the loop")


@pytest.fixture(scope="module")
def built():
    code, reason = gpu_model.kernels_built(disassemble=True)
    if reason:
        pytest.skip(reason)
    return code


def test_built_kernels_are_as_the_report_says(built):
    """Registers depend on nvcc, so what they mean is compared: how many blocks a multiprocessor holds."""
    document = gpu_model.unpacked(REPORT.read_text(encoding="utf-8"))
    told = {(k["architecture"], gpu_sass.Kernel(k["cell"], k["fmt"], k["driver"], k["backward"])): k
            for k in document["kernels"]}  # fmt: skip
    seen = 0
    for machine in gpu_model.MACHINES:
        for kernel, code in built[machine.architecture].items():
            if kernel.driver == "cluster" and not machine.largest_cluster:
                continue
            check_code(kernel, code.counts, code.loop)
            assert code.stack == 0, kernel.text
            other = told.get((machine.architecture, kernel))
            if other is not None:
                seen += 1
                at_once = [gpu_model.blocks_at_once(machine, r, 0) for r in (code.registers, other["registers"])]
                assert at_once[0] == at_once[1], kernel.text
    assert seen > 0


NAME = "_ZN7fastrnn4cuda16persistent_entryINS0_17PersistentForwardINS0_8rnn_tanhENS0_11TensorCoresINS_8BFloat16E"
NAME += "NS0_11MmaBFloat16EEENS0_11ThroughGridEEEEEvNT_4ArgsE"
SASS = f"""\
		Function : {NAME}
        /*0000*/                   MEMBAR.ALL.GPU ;                                 /* 0x0 */
        /*0010*/                   LDG.E.STRONG.GPU R17, desc[UR12][R22.64] ;       /* 0x0 */
        /*0020*/              @!P1 LDG.E.128.STRONG.GPU R48, desc[UR12][R78.64] ;   /* 0x0 */
        /*0030*/                   HMMA.16816.F32.BF16 R68, R76, R40, R68 ;         /* 0x0 */
        /*0040*/              @!P0 BRA 0x0020 ;                                     /* 0x0 */
        /*0050*/               @P0 BRA 0x0010 ;                                     /* 0x0 */
"""


def test_reading_a_disassembly():
    kernel = gpu_sass.Kernel("rnn_tanh", "bfloat16", "grid", False)
    code = gpu_sass.instructions(SASS)[kernel]
    assert gpu_sass.count(code) == {
        **dict.fromkeys(gpu_sass.KINDS, 0), "mma": 1, "fresh loads": 1, "fences": 1, "polls": 1
    }  # fmt: skip
    assert [address for address, *_ in gpu_sass.step_loop(code)] == [0x10, 0x20, 0x30, 0x40, 0x50]
    used = "Fatbin elf code:\narch = sm_80\n Function _Zx:\n  REG:9 STACK:0 SHARED:0 LOCAL:0\narch = sm_90a\n"
    used += f" Function {NAME}:\n  REG:231 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:864\n"
    assert gpu_sass.resources(used, "sm_80") == {}
    found = gpu_sass.resources(used, "sm_90a")[kernel]
    assert (found.registers, found.stack) == (231, 8)
