"""The emulator itself: kernels that are wrong in one way each must be found, and right ones left in peace."""

from __future__ import annotations

import re

import pytest
import torch
from emulated import library

SEEDS = range(20)
ALWAYS = {  # found for every seed: what is said
    "barrier in a branch": "block's barrier",
    "two barriers at once": r"comes to a barrier of the block while others wait at that of line \d+",
    "cluster barrier in a branch": "cluster's barrier",
    "arrives twice": "arrives at the cluster's barrier twice",
    "waits without arriving": "without having arrived",
    "leaves without waiting": "leaves between arriving at the cluster's barrier and waiting",
    "no such rank": "memory of rank 4 in a cluster of 4",
    "writes beside shared memory": "beside shared memory|outside of every buffer",
    "writes beside a buffer": "beside out|outside of every buffer",
    "reads 16 bytes askew": "16 bytes at once",
    "waits for too many": r"^deadlock: .* 63 threads wait at the block's barrier .* 1 threads wait for a counter",
    "product of half a warp": "product",
    "expects too many pushes": "^deadlock: .* wait for what others push",
}
CHECKED = {  # found for every seed where every access is looked at
    "no barrier before reading": "with no barrier in between|nothing has written",
    "no barrier before writing": "with no barrier in between",
    "does not await pushes": "with no barrier in between",
    "pushes before the reading": "with no barrier in between",
    "peer has left": "leaves before thread 0 of block 3 has written|whose block has left",
    "reads beside a buffer": "outside of every buffer",
    "reads what nothing wrote": "what nothing has written",
    "announces too early": "with no barrier in between|nothing has written",
    "does not wait for the counter": "with no barrier in between|nothing has written",
}
SOME = {"waits for too few": "with no barrier in between|nothing has written"}  # a matter of who comes last


@pytest.fixture(params=[False, True], ids=["plain", "checked"])
def checked(request):
    return request.param


def outcomes(name: str, checked: bool):
    return [library(checked).run_small(name, seed) for seed in SEEDS]


def test_every_small_kernel_is_tested(checked):
    names = library(checked).small_kernels()
    right = {name for name in names if name.startswith("right: ")}
    assert set(names) - right == {*ALWAYS, *CHECKED, *SOME, "registers exchanged"}


@pytest.mark.parametrize("name", ["barrier", "two barriers", "peer", "counter", "pushes"])
def test_right_kernels(name, checked):
    for error, text, out in outcomes(f"right: {name}", checked):
        assert (error, text) == (0, "")
        if "barrier" in name:
            assert torch.equal(out[:64], torch.arange(64.0).roll(-1))
        elif name == "pushes":
            assert out[:32].eq(7).all()
            assert out[100] == 8
        else:
            assert out[100 if name == "counter" else 0] == (3 if name == "counter" else 7)


@pytest.mark.parametrize(("name", "words"), ALWAYS.items())
def test_found_always(name, words, checked):
    for error, text, _ in outcomes(name, checked):
        assert error != 0
        assert re.search(words, text), text


@pytest.mark.parametrize(("name", "words"), CHECKED.items())
def test_found_by_looking_at_every_access(name, words):
    for error, text, _ in outcomes(name, True):
        assert error != 0
        assert re.search(words, text), text


def test_found_for_some_order():
    """Without looking at accesses a race shows in what comes out, in some order of the threads."""
    results = [out for _, _, out in outcomes("no barrier before reading", False)]
    assert any(not torch.equal(out[:64], torch.arange(64.0).roll(-1)) for out in results)
    for name in ("does not wait for the counter", "announces too early"):
        assert any(out[100] != 3 for _, _, out in outcomes(name, False)), name
    assert any("whose block has left" in text for _, text, _ in outcomes("peer has left", False))
    assert any(
        "no barrier in between" in text or "written" in text for _, text, _ in outcomes("waits for too few", True)
    )


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "tf32"])
def test_products_of_a_warp(kind):
    """Against the product itself: the lanes' places in a fragment are those of the PTX manual."""
    rows, columns, depth = torch.arange(16.0), torch.arange(8.0), torch.arange(16.0)
    left = rows.unsqueeze(1) + depth % 3
    right = columns - (depth % 2).unsqueeze(1)
    error, text, out = library().run_small(f"right: {kind} product", 0)
    assert (error, text) == (0, "")
    assert torch.equal(out[:128].view(16, 8), left @ right)


def test_exchanged_registers_give_another_product():
    _, _, right = library().run_small("right: float16 product", 0)
    error, _, wrong = library().run_small("registers exchanged", 0)
    assert error == 0
    assert not torch.equal(right, wrong)
