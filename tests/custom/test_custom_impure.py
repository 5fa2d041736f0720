"""Steps that are not the same each time they are run are refused: a kernel would repeat what the first run drew."""

from __future__ import annotations

import itertools
import random
import threading
import time

import numpy as np
import pytest
import torch

import fastrnn

_generator = np.random.default_rng(1)
_count = itertools.count()
_seen: list = []


def noise(x, r, s):
    return torch.tanh(x.a + r.a) + 0.1 * torch.randn(())


def uniform(x, r, s):
    return x.a * float(torch.rand(1))


def rarely_another(x, r, s):
    return x.a * torch.bernoulli(torch.tensor(0.999999))


def drawn_in_python(x, r, s):
    return x.a + random.gauss(0, 1)


def branch_by_chance(x, r, s):
    return x.a if random.random() < 0.999999 else r.a


def drawn_by_numpy(x, r, s):
    return x.a + float(np.random.standard_normal())  # noqa: NPY002


def drawn_by_a_generator(x, r, s):
    return x.a * float(_generator.random())


def drawn_by_torchs_generator(x, r, s):
    return x.a * float(torch.rand((), generator=torch.Generator().manual_seed(time.time_ns())))


def counter(x, r, s):
    return x.a * next(_count)


def clock(x, r, s):
    return x.a + time.perf_counter()


def memory(x, r, s):
    _seen.append(x.a)
    return sum(_seen[1:], _seen[0])


def product_of_noise(x, r, s):
    return x.a + r.a(s.h * torch.rand(()))


def another_operation(x, r, s):
    return torch.tanh(x.a) if next(_count) % 2 else torch.sigmoid(x.a)


def dead_draw(x, r, s):
    """The reference would draw in every step, and the kernels not."""
    torch.rand(())
    return x.a


STEPS = [value for value in list(globals().values()) if getattr(value, "__module__", "") == __name__]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_is_refused_and_leaves_the_random_numbers_as_they_were(step):
    torch.manual_seed(5)
    random.seed(5)
    expected = torch.rand(3).tolist(), random.random()
    torch.manual_seed(5)
    random.seed(5)
    with pytest.raises(
        fastrnn.CellError, match=r"expected a step that computes the same each time .*`inputs=`"
    ) as caught:
        fastrnn.cell(gates="a")(step)
    assert str(caught.value).startswith(f"{__file__}:{step.__code__.co_firstlineno}: ")
    assert (torch.rand(3).tolist(), random.random()) == expected


def test_what_is_the_same_twice_is_not_refused():
    table = {"factor": 0.5}

    def step(x, r, s):
        scale = torch.tensor(table["factor"])
        fixed = torch.rand((), generator=torch.Generator().manual_seed(1))
        nan = float("nan") if table["factor"] < 0 else -0.0
        return torch.where(x.a < nan, scale * x.a, fixed * r.a) + time.altzone * 0.0

    before = torch.get_rng_state()
    cell = fastrnn.cell(gates="a")(step)
    assert torch.equal(before, torch.get_rng_state())
    assert "0.5" in cell.explain()


def test_constants_that_are_no_numbers_are_equal():
    fastrnn.cell(gates="a")(lambda x, r, s: torch.maximum(x.a, float("nan") * r.a))


@pytest.mark.parametrize("run", [0, 1])
def test_another_thread_may_draw_in_one_of_the_runs(run):
    runs = itertools.count()

    def step(x, r, s):
        if next(runs) == run:
            thread = threading.Thread(target=lambda: (torch.rand(()), random.random()))
            thread.start()
            thread.join()
        return torch.tanh(x.a + r.a)

    fastrnn.cell(gates="a")(step)
