"""The axioms of PTX's memory consistency model, checked for every execution of a few short threads.

A program is a list of threads. A thread belongs to a block and is a list of operations in order; a waiting loop is
written as its last, successful read. Asynchronous copies are threads that another thread starts (`Thread.after`). Every
assignment of writes to reads and every order of the writes to each location is tried; those that the axioms allow are
executions. Not modelled: sc fences, mixed sizes, and values out of thin air.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

WEAK, RELAXED, ACQUIRE, RELEASE = "weak", "relaxed", "acquire", "release"
BLOCK, GPU = "block", "gpu"  # scopes; for threads of one cluster, its scope equals the GPU's


@dataclass(frozen=True)
class Op:
    """kind: read, write, add, fence or sync. name: of a read's result, or of the block's barrier."""

    kind: str
    place: str = ""
    value: int = 0
    order: str = WEAK
    name: str = ""
    scope: str = GPU


def read(place: str, name: str, order: str = WEAK) -> Op:
    return Op("read", place, order=order, name=name)


def write(place: str, value: int, order: str = WEAK) -> Op:
    return Op("write", place, value, order)


def add(place: str, order: str = RELAXED) -> Op:
    """Make an atomic addition of one."""
    return Op("add", place, 1, order)


def fence(scope: str = GPU) -> Op:
    return Op("fence", order="acq_rel", scope=scope)


def sync(name: str = "sync") -> Op:
    """Make a barrier of the block, which every thread that names it passes once."""
    return Op("sync", name=name)


@dataclass(frozen=True)
class Thread:
    """after: (thread, n) whose first n operations come before this asynchronous one's."""

    block: int
    ops: Sequence[Op]
    after: tuple[int, int] | None = None


@dataclass
class Event:
    number: int
    thread: int
    block: int
    op: Op
    at: int  # position in its thread; an addition's write follows its read
    reads: bool = False
    writes: bool = False

    @property
    def strong(self) -> bool:
        return self.op.kind == "fence" or ((self.reads or self.writes) and self.op.order != WEAK)


Relation = list[int]  # for each event a bit mask of the events that it is related to


def compose(a: Relation, b: Relation) -> Relation:
    out = []
    for row in a:
        reached = 0
        while row:
            low = row & -row
            reached |= b[low.bit_length() - 1]
            row ^= low
        out.append(reached)
    return out


def union(*relations: Relation) -> Relation:
    out = [0] * len(relations[0])
    for relation in relations:
        out = [x | y for x, y in zip(out, relation, strict=True)]
    return out


def closure(a: Relation) -> Relation:
    out = list(a)
    for k in range(len(out)):
        for i in range(len(out)):
            if out[i] >> k & 1:
                out[i] |= out[k]
    return out


def irreflexive(a: Relation) -> bool:
    return all(not row >> k & 1 for k, row in enumerate(a))


@dataclass
class Program:
    threads: Sequence[Thread]
    events: list[Event] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)  # read and write of each addition

    def __post_init__(self) -> None:
        self.places = sorted({op.place for thread in self.threads for op in thread.ops if op.place})
        for place in self.places:  # the initial value of memory, zero
            self._event(-1, -1, write(place, 0), 0, writes=True)
        for number, thread in enumerate(self.threads):
            for k, op in enumerate(thread.ops):
                if op.kind == "add":
                    first = self._event(number, thread.block, op, 2 * k, reads=True)
                    self.pairs.append((first, self._event(number, thread.block, op, 2 * k + 1, writes=True)))
                else:
                    self._event(number, thread.block, op, 2 * k, op.kind == "read", op.kind == "write")
        self.program_order = self.relation(self._before)
        self.strong = self.relation(self._morally_strong)
        self.barriers = self.relation(
            lambda a, b: a.op.kind == b.op.kind == "sync" and a.block == b.block and a.op.name == b.op.name
        )

    def _event(self, thread: int, block: int, op: Op, at: int, reads: bool = False, writes: bool = False) -> int:
        self.events.append(Event(len(self.events), thread, block, op, at, reads, writes))
        return len(self.events) - 1

    def relation(self, holds: Callable[[Event, Event], bool]) -> Relation:
        return [sum(1 << b.number for b in self.events if a is not b and holds(a, b)) for a in self.events]

    def _before(self, a: Event, b: Event) -> bool:
        if a.thread == -1 or b.thread == -1:
            return a.thread == -1 and b.thread != -1
        if a.thread == b.thread:
            return a.at < b.at
        after = self.threads[b.thread].after
        return after is not None and after[0] == a.thread and a.at < 2 * after[1]

    def _morally_strong(self, a: Event, b: Event) -> bool:
        if a.op.place and b.op.place and a.op.place != b.op.place:
            return False
        if self._before(a, b) or self._before(b, a):
            return True
        covered = a.block == b.block or (a.op.scope == GPU and b.op.scope == GPU)
        return a.strong and b.strong and covered

    def same_place(self, a: Event, b: Event) -> bool:
        return a.op.place == b.op.place != ""


def intersect(a: Relation, b: Relation) -> Relation:
    return [x & y for x, y in zip(a, b, strict=True)]


def synchronizes(p: Program, observed: Relation) -> Relation:
    """Relate the first operation of a release pattern to the last of an acquire pattern that observes it."""

    def releases(a: Event, b: Event) -> bool:  # a release pattern from a to the strong write b
        if not (b.writes and b.strong):
            return False
        in_order = a.number == b.number or bool(p.program_order[a.number] >> b.number & 1)
        if a.op.kind == "fence":
            return in_order
        return a.writes and a.op.order == RELEASE and in_order and p.same_place(a, b)

    def acquires(a: Event, b: Event) -> bool:
        if not (a.reads and a.strong):
            return False
        in_order = a.number == b.number or bool(p.program_order[a.number] >> b.number & 1)
        if b.op.kind == "fence":
            return in_order
        return b.reads and b.op.order == ACQUIRE and in_order and p.same_place(a, b)

    def with_itself(holds: Callable[[Event, Event], bool]) -> Relation:
        return [sum(1 << b.number for b in p.events if holds(a, b)) for a in p.events]

    patterns = compose(compose(with_itself(releases), observed), with_itself(acquires))
    return intersect(patterns, p.strong)


def allowed(p: Program, sources: dict[int, int], orders: Sequence[Sequence[int]]) -> bool:
    """Decide whether the axioms allow these sources of reads and these orders of writes."""
    n = len(p.events)
    read_from, coherence, additions = [0] * n, [0] * n, [0] * n
    for reader, writer in sources.items():
        read_from[writer] |= 1 << reader
    for order in orders:
        for k, writer in enumerate(order):
            coherence[writer] |= sum(1 << later for later in order[k + 1 :])
    for reader, writer in p.pairs:
        additions[reader] |= 1 << writer
    from_reads = [0] * n
    for reader, writer in sources.items():
        from_reads[reader] = coherence[writer] & ~(1 << reader)
    for reader, writer in p.pairs:  # atomicity: no write in between
        if from_reads[reader] & sum(1 << w for w in range(n) if coherence[w] >> writer & 1 and w != writer):
            return False
    observed = closure(union(intersect(read_from, p.strong), additions))
    base = closure(union(p.program_order, synchronizes(p, observed), p.barriers))
    cause = union(base, compose(observed, base))
    for a, b in itertools.permutations([e for e in p.events if e.writes], 2):
        if p.same_place(a, b) and cause[a.number] >> b.number & 1 and not coherence[a.number] >> b.number & 1:
            return False
    in_place = p.relation(lambda a, b: p.same_place(a, b) and bool(p.program_order[a.number] >> b.number & 1))
    per_place = intersect(union(read_from, coherence, from_reads), p.strong)
    if not irreflexive(closure(union(per_place, in_place))):
        return False
    return irreflexive(compose(union(read_from, from_reads), cause))


def executions(threads: Sequence[Thread]) -> Iterator[dict[str, int]]:
    """Yield the values that the reads of each allowed execution return, by their names."""
    p = Program(threads)
    readers = [e for e in p.events if e.reads]
    writers = {place: [e.number for e in p.events if e.writes and e.op.place == place] for place in p.places}
    added = {writer: reader for reader, writer in p.pairs}
    orders = [[(first, *rest) for rest in itertools.permutations(others)] for first, *others in writers.values()]
    for chosen in itertools.product(*(writers[e.op.place] for e in readers)):
        sources = {e.number: writer for e, writer in zip(readers, chosen, strict=True)}

        def value(writer: int, sources: dict[int, int] = sources, depth: int = 0) -> int | None:
            if writer not in added:
                return p.events[writer].op.value
            before = None if depth > len(added) else value(sources[added[writer]], sources, depth + 1)
            return None if before is None else before + p.events[writer].op.value

        values = {e.op.name: value(sources[e.number]) for e in readers if e.op.name}
        if any(found is None for found in values.values()):
            continue
        if any(allowed(p, sources, order) for order in itertools.product(*orders)):
            yield {name: found for name, found in values.items() if found is not None}


def possible(threads: Sequence[Thread], outcome: Callable[[dict[str, int]], bool]) -> bool:
    """Decide whether some execution has this outcome."""
    return any(outcome(values) for values in executions(threads))
