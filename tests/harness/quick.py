"""The quick subset, ``pytest -m quick``: a case of each test function, more of the central ones, none of the slow ones.

New tests join the subset by themselves. Which case of a parametrised function is taken follows from the
function's name, so that the cases of different functions spread over cells, layouts, dtypes and instruction sets.
"""

from __future__ import annotations

import ast
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]

#: Functions with more than one case in the subset, and their number, by file and name.
CASES: dict[str, dict[str, int]] = {
    "cuda/test_cuda_emulated.py": {"test_layouts": 6, "test_sizes": 6},
    "custom/test_custom_module.py": {"test_whole_sequences": 4},
    "custom/test_gallery.py": {"test_computes_what_the_paper_says": 4},
    "dropin/test_dropin_calls.py": {
        "test_cells": 8,
        "test_layouts_of_input_and_states": 8,
        "test_results_and_gradients": 40,
    },
    "dropin/test_dropin_errors.py": {"test_call": 16, "test_construction": 8},
    "dropin/test_dropin_formats.py": {"test_autocast": 8, "test_no_less_accurate_than_torch": 8},
    "functional/test_autograd.py": {"test_gradcheck": 10, "test_gradgradcheck": 4},
    "functional/test_raw_operators.py": {"test_fake_calls_raise_where_real_ones_do": 8, "test_opcheck": 4},
    "functional/test_recompute.py": {"test_equals_the_ordinary_call": 5},
    "functional/test_tokens.py": {"test_equals_embedding_first": 5},
    "functional/test_transforms.py": {"test_per_sample_gradients": 5},
    "kernels/test_kernels.py": {"test_fused_equals_reference": 60},
    "kernels/test_parity.py": {"test_on_every_instruction_set": 8},
    "kernels/test_small.py": {"test_right_against_float64": 12},
    "modules/test_modules_keywords.py": {"test_lengths_do_what_packing_does": 8},
    "modules/test_fast_path.py": {"test_layers_have_the_bits_of_the_usual_way": 12},
    "modules/test_stream.py": {"test_bits_of_step": 8},
    "modules/test_tokens_modules.py": {"test_modules": 8},
}

#: Functions that are left out because a case takes more than about two seconds, by file; None: the whole file.
SLOW: dict[str, set[str] | None] = {
    "apps/bench/test_bench_busy.py": {
        "test_busy_run",
        "test_competitors_follow_their_parent",
        "test_wrong_engine_is_not_timed",
    },
    "apps/bench/test_bench_limits.py": {"test_peaks_are_measured_for_every_format_and_size"},
    "apps/bench/test_bench_peers.py": None,
    "apps/bench/test_bench_report.py": {"test_plot_is_drawn"},
    "apps/bench/test_bench_runs.py": None,
    "apps/bench/test_bench_scaling.py": {"test_scaling_run"},
    "apps/lm/test_lm_cli.py": {
        "test_other_commands_do_not_load_the_models",
        "test_sample_streams_and_ends_quietly_with_its_reader",
    },
    "apps/lm/test_lm_resume.py": None,
    "apps/lm/test_lm_truncated.py": None,
    "apps/lm/test_lm_workers.py": None,
    "apps/test_cli.py": {
        "test_a_reader_that_stops_early_is_no_error",
        "test_info_does_not_load_the_benchmarks",
        "test_instruction_set_from_the_environment",
        "test_one_openmp_runtime_serves_torch_and_the_kernels",
        "test_version",
        "test_wrong_arguments_show_no_traceback",
    },
    "custom/test_custom_build.py": {
        "test_cache_goes_by_content",
        "test_compiler_that_fails",
        "test_killed_build",
        "test_no_compiler",
        "test_no_place",
        "test_two_processes_at_once",
    },
    "custom/test_custom_cache.py": {
        "test_a_compiler_and_a_cell_with_umask_0",
        "test_a_library_that_is_truncated_when_it_is_loaded",
        "test_what_a_killed_build_leaves_is_swept",
    },
    "custom/test_custom_random.py": {"test_kernels"},
    "custom/test_custom_random_stages.py": {"test_kernels", "test_symbolic_gradient"},
    "custom/test_gallery.py": {"test_is_not_loaded_with_the_library"},
    "custom/test_preparation.py": None,
    "cuda/test_cuda_custom.py": {
        "test_a_shared_object_of_another_version",
        "test_every_access_of_a_persistent_kernel",
        "test_every_access_of_the_stepwise_kernels",
        "test_kernels_are_of_one_compute_capability",
    },
    "cuda/test_cuda_emulated.py": {"test_every_access"},
    "cuda/test_cuda_loading.py": {"test_a_wrong_driver_in_the_environment_is_a_warning"},
    "cuda/test_gpu_run.py": {
        "test_a_step_that_fails_or_hangs_loses_nothing_of_the_others",
        "test_all_steps_together_have_a_limit",
        "test_built_libraries_are_taken_along",
        "test_libraries_that_cannot_be_imported_are_built_beside_the_steps",
        "test_without_kernels_what_needs_none_is_run",
    },
    "docs/test_docs_guide.py": {"test_code_of_the_page_runs"},
    "docs/test_docs_lm.py": {"test_code_of_the_page_runs"},
    "docs/test_examples.py": None,
    "dropin/test_dropin_identity.py": {"test_a_class_of_a_notebook_travels_by_value"},
    "dropin/test_dropin_processes.py": None,
    "dropin/test_dropin_transforms.py": {"test_compile_with_our_keywords"},
    "dropin/test_patched_torch_nn.py": {"test_a_process_in_which_torch_nn_was_patched_first"},
    "export/test_aoti.py": None,
    "export/test_compiled.py": {"test_packed_ids", "test_packed_with_initial_states"},
    "export/test_onnx.py": {"test_import_does_not_load_onnx"},
    "fuzz/test_fuzz.py": {
        "test_a_command_reruns_a_case",
        "test_arguments_are_read_only_under_guard_pages",
        "test_guard_pages_end_the_process",
    },
    "functional/test_projection.py": {"test_one_answer"},
    "kernels/test_native.py": None,
    "kernels/test_parity.py": {"test_error_is_at_most_twice_torchs"},
    "modules/test_quantize.py": {"test_whatever_is_imported_first"},
    "packaging/test_build_cuda.py": {"test_sdist_has_all_sources"},
    "packaging/test_torch_version.py": {
        "test_another_minor_version",
        "test_another_patch_release_or_local_build",
        "test_info_alone_under_another_minor_version",
    },
    "training/test_training_distributed.py": None,
}


def chosen(count: int, wanted: int, name: str) -> list[int]:
    """Return `wanted` of `count` indices, evenly spaced from a start that follows from the name."""
    wanted = min(count, wanted)
    start = zlib.crc32(name.encode()) % count
    return sorted({(start + k * count // wanted) % count for k in range(wanted)}) if wanted else []


def mark(items: Sequence[pytest.Item]) -> None:
    """Give the marker ``quick`` to the tests of the subset."""
    functions: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        file = item.path.relative_to(TESTS).as_posix()
        functions.setdefault((file, getattr(item, "originalname", None) or item.name), []).append(item)
    for (file, name), cases in functions.items():
        slow = SLOW.get(file, set())
        if slow is not None and name not in slow:
            for index in chosen(len(cases), CASES.get(file, {}).get(name, 1), name):
                cases[index].add_marker(pytest.mark.quick)


def files() -> Iterable[Path]:
    """Yield all test modules."""
    return sorted(TESTS.rglob("test_*.py"))


def functions_of(file: Path) -> set[str]:
    """Return the names of the test functions of a file, including those in classes."""
    return {
        node.name
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test")
    }
