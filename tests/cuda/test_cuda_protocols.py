"""The exchange of operands between the blocks of a group (csrc/cuda/exchange.h), under PTX's memory model.

Each protocol must forbid that a block reads an operand too early, or writes one while another still reads it; and each
of its parts must be needed: without it the model allows that.
"""

from __future__ import annotations

import pytest
from ptx_model import ACQUIRE, BLOCK, RELAXED, RELEASE, WEAK, Op, Thread, add, fence, possible, read, sync, write


def test_the_model_knows_message_passing():
    def passing(first: str, second: str) -> bool:
        writer = Thread(0, [write("data", 1), write("flag", 1, first)])
        reader = Thread(1, [read("flag", "flag", second), read("data", "data")])
        return possible([writer, reader], lambda r: r["flag"] == 1 and r["data"] == 0)

    assert not passing(RELEASE, ACQUIRE)
    assert passing(WEAK, WEAK)
    assert passing(RELEASE, RELAXED)
    assert passing(RELAXED, ACQUIRE)


def test_the_model_knows_coherence_and_atomicity():
    both = [Thread(0, [add("n")]), Thread(1, [add("n")]), Thread(2, [read("n", "a", RELAXED), read("n", "b", RELAXED)])]
    assert possible(both, lambda r: (r["a"], r["b"]) == (0, 2))
    assert not possible(both, lambda r: r["a"] > r["b"])
    wide = Thread(0, [write("data", 1), fence(BLOCK), write("flag", 1, RELAXED)])
    reader = [read("flag", "flag", ACQUIRE), read("data", "data")]
    stale = lambda r: r["flag"] == 1 and r["data"] == 0  # noqa: E731
    assert not possible([wide, Thread(0, reader)], stale)
    assert possible([wide, Thread(1, reader)], stale)


def kept(ops: list[Op | None]) -> list[Op]:
    return [op for op in ops if op is not None]


def grid_read(left_out: str = "") -> bool:
    """Return True if an old operand may be read: thread 1 of block 0 publishes, thread 0 announces; block 1 reads."""

    def unless(name: str, op: Op) -> Op | None:
        return None if left_out == name else op

    scope = BLOCK if left_out == "scope" else "gpu"
    order = RELAXED if left_out == "acquire" else ACQUIRE
    threads = [
        Thread(0, kept([write("h", 1), unless("sync before", sync())])),
        Thread(0, kept([unless("sync before", sync()), unless("fence", fence(scope)), add("counter")])),
        Thread(1, kept([add("counter"), read("counter", "n", order), unless("sync after", sync())])),
        Thread(1, kept([unless("sync after", sync()), read("h", "h")])),
    ]
    return possible(threads, lambda r: r["n"] == 2 and r["h"] == 0)


def grid_overwrite(left_out: str = "") -> bool:
    """Return True if a block may write operand n + 2 over n while block 1 reads it."""

    def unless(name: str, op: Op) -> Op | None:
        return None if left_out == name else op

    order = RELAXED if left_out == "acquire" else ACQUIRE
    threads = [
        Thread(1, kept([read("h", "h"), unless("sync before", sync())])),
        Thread(1, kept([unless("sync before", sync()), unless("fence", fence()), add("counter")])),
        Thread(0, kept([read("counter", "n", order), unless("sync after", sync())])),
        Thread(0, kept([unless("sync after", sync()), write("h", 2)])),
    ]
    return possible(threads, lambda r: r["n"] == 1 and r["h"] == 2)


GRID = ["fence", "sync before", "sync after", "acquire"]


def test_the_grid_s_barrier():
    assert not grid_read()
    assert not grid_overwrite()


@pytest.mark.parametrize("part", [*GRID, "scope"])
def test_no_part_of_the_grid_s_barrier_can_be_spared(part):
    assert grid_read(part)
    if part != "scope":
        assert grid_overwrite(part)


def test_the_grid_s_counter_with_a_third_block():
    """Announcements in between do not hide the first one: they are additions."""
    threads = [
        Thread(0, [write("h", 1), sync()]),
        Thread(0, [sync(), fence(), add("counter")]),
        Thread(2, [add("counter")]),
        Thread(1, [read("counter", "n", ACQUIRE), sync(), read("h", "h")]),
    ]
    assert not possible(threads, lambda r: r["n"] == 2 and r["h"] == 0)


def cluster_read(left_out: str = "") -> bool:
    """Return True if an old operand may be read: thread 1 of block 0 publishes, thread 0 pushes what it reads of that.

    The push is a thread of its own, after what its thread did before: a store, then a release of the barrier.
    """
    released = RELAXED if left_out == "release" else RELEASE
    awaited = RELAXED if left_out == "acquire" else ACQUIRE
    threads = [
        Thread(0, [read("seen", "seen")]),
        Thread(0, [write("h", 1), add("barrier", released)], after=(0, 1)),
        Thread(1, [read("barrier", "n", awaited), read("h", "h")]),
    ]
    return possible(threads, lambda r: r["n"] == 1 and r["h"] == 0)


def cluster_publish(left_out: str = "") -> bool:
    """Decide whether the thread that pushes may read an old value of its own block."""
    between = [] if left_out == "sync" else [sync()]
    threads = [Thread(0, [write("own", 1), *between, write("done", 1)]), Thread(0, [*between, read("own", "own")])]
    return possible(threads, lambda r: r["own"] == 0)


def cluster_overwrite(left_out: str = "") -> bool:
    """Decide whether a push of operand n + 2 may overwrite n while block 1 reads it.

    Block 1 reads n and passes the sync of its step; another of its threads pushes its part of n + 1. Block 0 awaits
    that before it pushes n + 2.
    """
    between = [] if left_out == "sync" else [sync()]
    released = RELAXED if left_out == "release" else RELEASE
    awaited = RELAXED if left_out == "acquire" else ACQUIRE
    threads = [
        Thread(1, [read("h", "h"), *between]),
        Thread(1, [*between, write("started", 1)]),
        Thread(1, [add("barrier", released)], after=(1, len(between) + 1)),
        Thread(0, [read("barrier", "n", awaited)]),
        Thread(0, [write("h", 2), add("next", RELEASE)], after=(3, 1)),
    ]
    return possible(threads, lambda r: r["n"] == 1 and r["h"] == 2)


def pushed_operand(buffers: int) -> bool:
    """Decide whether a block may overwrite its gradients of a step while one of its warps still multiplies them.

    Where sums are pushed (csrc/cuda/pushed.h) a block has one sync in a step, before its product: a warp that is slow
    with the product of step n may be passed by others, which write the operand that follows in the same buffer.
    """
    before, after = sync("before the product"), sync("before the next one")
    next_step = [after, write("own", 1)] if buffers == 2 else [write("own", 1), after]
    threads = [Thread(0, [before, read("own", "own"), after]), Thread(0, [before, *next_step])]
    return possible(threads, lambda r: r["own"] == 1)


def test_the_operand_of_pushed_sums_needs_two_buffers():
    assert not pushed_operand(2)
    assert pushed_operand(1)


def test_the_cluster_s_pushes():
    assert not cluster_read()
    assert not cluster_publish()
    assert not cluster_overwrite()


@pytest.mark.parametrize("part", ["release", "acquire"])
def test_pushes_need_release_and_acquire(part):
    assert cluster_read(part)
    assert cluster_overwrite(part)


def test_pushes_need_the_block_s_barrier():
    assert cluster_publish("sync")
    assert cluster_overwrite("sync")
