"""A random call of a raw operator or an entry point of the extension, as a flat record of primitive values."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields

from fastrnn import _C

SIZES = (1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65, 100)
OPERATORS = ("sequence_forward", "layer_backward", "layer", "stream")
CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


@dataclass(frozen=True)
class OperatorCase:
    """One call."""

    operator: str = "sequence_forward"
    cell: str = "lstm"
    clip: float = 0.0
    T: int = 2
    B: int = 2
    I: int = 2  # noqa: E741 - the letter of the equations
    H: int = 2
    P: int = 0
    layers: int = 1  # of a stream
    layout: str = "padded"  # packed
    lengths: bool = False
    reset: bool = False
    restart: bool = False  # states after a reset differ from the first ones
    w_ih: bool = True
    b_ih: bool = True
    b_hh: bool = True
    states: bool = True
    reverse: bool = False
    training: bool = True
    strides: int = 0  # seed of the tensors' strides; 0: contiguous
    placing: int = 0  # seed of the end that touches a guard page; 0: the end
    grads: int = 0  # seed of the subset of incoming gradients; 0: all
    wanted: int = 2047
    dtype: str = "float64"
    capability: str = ""
    split: str = "auto"
    threads: int = 1
    invalid: int = 0  # seed of mutations; 0: none
    mutations: int = 1
    values: int = 0

    def __str__(self) -> str:
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"OperatorCase({', '.join(changed)})"


def drawn(seed: int) -> OperatorCase:
    """Return the case of a seed."""
    r = random.Random(seed)

    def chance(p: float) -> bool:
        return r.random() < p

    def size() -> int:
        return r.choice(SIZES[:7] if small else SIZES)

    small = chance(0.6)
    hidden = size()
    return allowed(
        OperatorCase(
            operator=r.choice(OPERATORS),
            cell=r.choice(CELLS),
            clip=r.choice((0.5, 0.01, 1e3)) if chance(0.1) else 0.0,
            T=r.choice((1, 1, 2, 3, 7, 17)) if chance(0.9) else 33,
            B=0 if chance(0.04) else size(),
            I=size(),
            H=hidden,
            P=r.randint(1, 2 * hidden) if chance(0.3) else 0,
            layers=r.choice((1, 1, 2, 3)),
            layout="packed" if chance(0.25) else "padded",
            lengths=chance(0.25),
            reset=chance(0.25),
            restart=chance(0.5),
            w_ih=chance(0.85),
            b_ih=chance(0.8),
            b_hh=chance(0.8),
            states=chance(0.7),
            reverse=chance(0.4),
            training=chance(0.7),
            strides=seed + 1 if chance(0.4) else 0,
            placing=seed + 1 if chance(0.5) else 0,
            grads=seed + 1 if chance(0.5) else 0,
            wanted=2047 if chance(0.3) else 127 if chance(0.3) else r.randint(0, 2047),
            dtype=r.choice(("float32", "float32", "float64", "bfloat16", "float16")),
            capability=r.choice(_C.capabilities()),
            split=r.choice(("auto", "auto", "none", "rows", "units")),
            threads=r.choice((1, 1, 2, 3, 4)),
            invalid=seed + 1 if chance(0.5) else 0,
            mutations=r.choice((1, 1, 2, 3)),
            values=seed % (1 << 31),
        )
    )


def allowed(case: OperatorCase) -> OperatorCase:
    """Return `case` without combinations that are not supported."""
    out: dict[str, object] = {}
    if case.cell != "lstm":
        out["P"] = 0
    if case.layout == "packed":
        out.update(lengths=False, reset=False, B=max(1, case.B))
    if case.operator == "stream":
        out.update(layout="padded", lengths=False, reset=False, w_ih=True, reverse=False, training=False, clip=0.0)
        out.update(B=max(1, case.B), wanted=2047, grads=0, split="auto")
    else:
        out["layers"] = 1
    if not out.get("reset", case.reset):
        out["restart"] = False
    if not case.invalid:
        out["mutations"] = 1
    return dataclasses.replace(case, **out)


def simpler(case: OperatorCase) -> Iterator[OperatorCase]:
    """Yield cases with one field at or nearer to its simplest value."""
    for field in fields(case):
        value = getattr(case, field.name)
        if value == field.default or field.name in ("values", "invalid"):
            continue
        options: list[object] = [field.default]
        if field.name in ("T", "B", "I", "H", "P", "layers"):
            options += [1, value // 2, value - 1]
        for option in options:
            if option == value or (field.name in ("T", "I", "H", "layers") and option == 0):
                continue
            candidate = allowed(dataclasses.replace(case, **{field.name: option}))
            if _measure(candidate) < _measure(case):
                yield candidate


def _measure(case: OperatorCase) -> tuple[int, int]:
    changed = sum(getattr(case, f.name) != f.default for f in fields(case) if f.name not in ("values", "invalid"))
    return changed, case.T + case.B + case.I + case.H + case.P + case.layers
