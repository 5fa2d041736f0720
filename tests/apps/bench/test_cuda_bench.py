"""A whole run of the benchmark on a GPU, at tiny sizes."""

from __future__ import annotations

import pytest
import torch
from bench_cases import run

from fastrnn.apps.bench.cases import METRICS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_torch_against_itself(tmp_path, dtype):
    options = ["--device", "cuda", "--engine", "torch", "--shapes", "2x3x4", "--dtype", dtype]
    status, document, text = run(tmp_path, *options)
    assert status == 0, document["problems"]
    assert [row["case"]["device"] for row in document["rows"]] == ["cuda"] * 3
    for row in document["rows"]:
        assert set(row["seconds"]) == set(METRICS)
        assert row["limit_share"] == {}
        assert all(size > 0 for size in row["peak_memory_bytes"].values())
    assert document["environment"]["gpu"]["name"] in text
    assert f"## lstm, {dtype}, cuda" in text
    assert document["language_model"] is None
    assert not any(row["case"]["chunks"] for row in document["rows"])


def test_packed_and_both_ways(tmp_path):
    options = ["--device", "cuda", "--engine", "torch", "--cells", "gru", "--shapes", "packed,bidirectional"]
    status, document, _ = run(tmp_path, *options)
    assert status == 0, document["problems"]
