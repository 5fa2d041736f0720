"""A random call of a module as a flat record of primitive values.

`drawn` makes it from a seed. A record can be printed, stored, and simplified field by field: each field's default is
its simplest value.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from fastrnn import _C

SIZES = (1, 2, 3, 5, 7, 8, 16, 17, 31, 33, 64, 65, 100, 128)
TORCH_KINDS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
CUSTOM_KINDS = ("peephole_lstm", "nas", "one_state", "mut1", "layer_norm_gru", "multiplicative_lstm", "slstm", "indrnn")
MODES = ("train", "no_grad", "inference", "step", "stream", "double", "vjp", "jvp", "vmap", "grad_vmap")
TRANSFORMS = ("double", "vjp", "jvp", "vmap", "grad_vmap")
EXTRAS = ("deepcopy", "pickle", "state_dict", "functional_call", "weight_norm", "update", "checkpoint", "reentrant")
SPECIALS = ("nan x", "inf x", "nan state", "inf state", "nan weight", "inf weight", "nan seed")


@dataclass(frozen=True)
class Case:
    """One call. A field named like an argument of a module, or of its `forward`, is that argument."""

    kind: str = "lstm"
    form: str = "layers"  # cell: a single step; functional: fastrnn.functional
    T: int = 2
    B: int = 2
    I: int = 2  # noqa: E741 - the letter of the equations
    H: int = 2
    P: int = 0
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    dropout: float = 0.0
    learned: bool = False
    layout: str = "padded"  # unbatched, packed, packed unsorted
    lengths: bool = False
    reset: bool = False
    initial: bool = False
    vocabulary: int = 0
    hx: str = ""  # given, strided, expanded; empty: none
    x: str = "plain"  # strided, transposed, offset, expanded
    dtype: str = "float64"
    autocast: str = ""
    capability: str = ""
    split: str = "auto"
    threads: int = 1
    mode: str = "train"
    evaluation: bool = False
    requires: int = 0  # seed of the subset of leaves that require a gradient; 0: all
    outputs: int = 0  # seed of the subset of outputs in the loss; 0: all
    accumulate: bool = False  # backward() twice into .grad, in place of autograd.grad
    recompute: int = 0  # -1: True
    clip: float = 0.0
    backend: str = "auto"
    extra: str = ""
    special: str = ""
    invalid: int = 0  # seed of a mutation of the arguments
    values: int = 0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not isinstance(getattr(self, field.name), type(field.default)):
                raise TypeError(f"{field.name}: expected {type(field.default).__name__}")

    def __str__(self) -> str:
        changed = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"Case({', '.join(changed)})"

    @property
    def custom(self) -> bool:
        """Return True if the cell is one of the gallery."""
        return self.kind not in TORCH_KINDS

    @property
    def packed(self) -> bool:
        return self.layout.startswith("packed")

    @property
    def batch(self) -> int:
        """Return the rows of the batch; an unbatched call has one."""
        return 1 if self.layout == "unbatched" else self.B

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def work(self) -> int:
        """Return roughly the number of multiplications of a forward pass."""
        return self.T * max(1, self.batch) * self.layers * self.directions * self.H * (self.H + self.I) * 4


def drawn(seed: int) -> Case:
    """Return the case of a seed."""
    r = random.Random(seed)
    while True:
        case = allowed(_drawn(r, seed))
        if case.work <= (3e6 if case.mode in TRANSFORMS or case.extra == "compile" else 4e7) and case.T * case.H <= 2e4:
            return case


def _drawn(r: random.Random, seed: int) -> Case:
    def chance(p: float) -> bool:
        return r.random() < p

    def one(*values):
        return r.choice(values)

    def rarely(default, *values, p=0.15):
        return r.choice(values) if chance(p) else default

    small = chance(0.5)
    sizes = SIZES[:8] if small else SIZES
    size = lambda: r.choice(sizes)  # noqa: E731
    hidden = size() if small or chance(0.9) else one(150, 200, 257, 300)
    return Case(
        kind=rarely(r.choice(TORCH_KINDS), *CUSTOM_KINDS, p=0.08),
        form=rarely("layers", "cell", "functional", p=0.25),
        T=one(1, 1, 2, 3, 5, 7, 12, 33, size()) if not small else one(1, 2, 3, 4),
        B=rarely(size(), 0, 1, 1, 1, p=0.35),
        I=size(),
        H=hidden,
        P=rarely(0, *range(1, max(2, hidden)), p=0.3),
        layers=one(1, 1, 1, 2, 3),
        bidirectional=chance(0.3),
        bias=chance(0.8),
        batch_first=chance(0.4),
        dropout=rarely(0.0, 0.3, 0.5, 1.0, p=0.2),
        learned=chance(0.15),
        layout=rarely("padded", "unbatched", "packed", "packed unsorted", p=0.4),
        lengths=chance(0.2),
        reset=chance(0.2),
        initial=chance(0.25),
        vocabulary=rarely(0, 1, 3, 10, 40, p=0.15),
        hx=one("", "", "given", "given", "strided", "expanded"),
        x=rarely("plain", "strided", "transposed", "offset", "expanded", p=0.35),
        dtype=one("float32", "float32", "float64", "float64", "bfloat16", "float16"),
        autocast=rarely("", "bfloat16", "float16", p=0.12),
        capability=r.choice(_C.capabilities()),
        split=one("auto", "auto", "none", "rows", "units"),
        threads=one(1, 1, 2, 3, 4),
        mode=one(*["train"] * 12, "no_grad", "no_grad", "inference", "step", "stream", *TRANSFORMS),
        evaluation=chance(0.2),
        requires=rarely(0, seed + 1, p=0.4),
        outputs=rarely(0, seed + 1, p=0.4),
        accumulate=chance(0.15),
        recompute=rarely(0, -1, 2, 3, 5, p=0.15),
        clip=rarely(0.0, 0.01, 0.1, 1.0, p=0.1),
        backend=rarely("auto", "fused", "reference", p=0.25),
        extra=rarely(rarely("", *EXTRAS, p=0.3), "compile", p=0.004),
        special=rarely("", *SPECIALS, p=0.06),
        invalid=rarely(0, seed + 1, p=0.1),
        values=seed % (1 << 31),
    )


def allowed(case: Case) -> Case:
    """Return `case` without combinations that are not supported; earlier rules have precedence over later ones."""
    for rule in (_by_form, _by_mode, _by_layout, _by_special):
        case = replace(case, **rule(case))
    return case


def _by_form(c: Case) -> dict[str, object]:
    out: dict[str, object] = {}
    if c.custom or c.kind != "lstm":
        out["P"] = 0
    if c.P >= c.H:
        out["P"] = 0
    if c.custom:
        out.update(form="layers", vocabulary=0, autocast="", invalid=0)
        if c.extra == "weight_norm":
            out["extra"] = ""
        if c.kind in ("slstm", "nas", "layer_norm_gru") and c.dtype == "float16":
            out["dtype"] = "float32"
    form = out.get("form", c.form)
    if form == "cell":
        out.update(T=1, layers=1, bidirectional=False, batch_first=False, dropout=0.0, P=0, lengths=False, reset=False)
        out.update(
            initial=False, recompute=0, clip=0.0, vocabulary=0, mode="train" if c.mode in ("step", "stream") else c.mode
        )
        out["layout"] = "unbatched" if c.layout == "unbatched" else "padded"
        if c.x == "transposed":
            out["x"] = "plain"
    if form == "functional":
        out.update(layers=1, bidirectional=False, batch_first=False, dropout=0.0, learned=False, autocast="", invalid=0)
        out.update(layout="packed" if c.packed else "padded")
    if c.layers == 1 and "layers" not in out:
        out["dropout"] = 0.0
    return out


def _by_mode(c: Case) -> dict[str, object]:
    out: dict[str, object] = {}
    if c.mode in ("step", "stream"):
        out.update(form="layers", bidirectional=False, batch_first=False, lengths=False, reset=False, initial=False)
        out.update(vocabulary=0, recompute=0, clip=0.0, invalid=0, extra="", evaluation=True, x="plain")
        out["layout"] = "unbatched" if c.layout == "unbatched" else "padded"
    if c.mode == "stream":
        out.update(autocast="", backend="auto", B=max(1, c.B))
        if c.custom:
            out["mode"] = "step"
    if c.mode == "step" and c.custom:
        out["backend"] = "auto"
    if c.mode in TRANSFORMS:
        out.update(autocast="", invalid=0, special="", accumulate=False, recompute=0)
        if c.dtype not in ("float32", "float64"):
            out["dtype"] = "float32"
        if c.extra not in ("", "deepcopy", "state_dict"):
            out["extra"] = ""
        if c.mode == "jvp":
            out["clip"] = 0.0
        if c.mode in ("vjp", "jvp") and c.packed:  # torch.nn cannot pack wrapped tensors
            out["layout"] = "padded"
        if c.mode in ("vmap", "grad_vmap"):
            out.update(layout="unbatched" if c.layout == "unbatched" else "padded", lengths=False)
            out.update(dropout=0.0, threads=1)
    if c.mode != "train":
        out["accumulate"] = False
        if c.extra in ("checkpoint", "reentrant"):
            out["extra"] = ""
    if c.invalid:
        out.update(mode="train", extra="", special="", lengths=False, reset=False, initial=False, recompute=0, clip=0.0)
        out.update(vocabulary=0, learned=False, accumulate=False, backend="auto")
    if c.extra == "compile":
        out.update(
            mode="train" if c.mode == "train" else "no_grad", special="", invalid=0, layout="padded", recompute=0
        )
        out.update(lengths=False, initial=False, autocast="", vocabulary=0, dropout=0.0, accumulate=False)
    return out


def _by_layout(c: Case) -> dict[str, object]:
    out: dict[str, object] = {}
    if c.packed:
        out.update(
            lengths=False,
            reset=False,
            initial=False,
            B=max(1, c.B),
            special="",
            recompute=0 if c.custom else c.recompute,
        )
    if c.packed and c.invalid:
        out["layout"] = "padded"  # torch.nn itself crashes on some of these
    if c.layout == "unbatched":
        out["batch_first"] = False
    if c.form == "functional" and c.hx == "" and c.initial:
        out["initial"] = False
    if c.form == "functional" and c.packed and c.layout != "packed":
        out["layout"] = "packed"
    if c.batch == 0:
        out.update(special="", x="plain")
    if c.vocabulary:
        out["x"] = "plain"
    if c.clip and c.autocast:
        out["clip"] = 0.0
    if c.autocast and c.dtype not in ("float32", "float64", c.autocast) and c.layout.startswith("packed"):
        out.update(vocabulary=0)  # the reference packs embedded ids, which torch does not support in these dtypes
    if c.autocast and c.dtype not in ("float32", "float64", c.autocast):
        out.update(
            lengths=False, reset=False, initial=False, learned=False, clip=0.0
        )  # torch's cat, of which the loop is made, takes no such mixture
    if c.autocast and c.dtype not in ("float32", c.autocast) and c.backend == "fused":
        out["backend"] = "auto"  # there, torch.nn's forward runs
    if c.clip and c.mode == "double":
        out["layers"] = (
            1  # second derivatives of clipped gradients: hooks and kernels differ in what they clip together
        )
    if c.clip and c.packed:
        out["dropout"] = 0.0  # the loop pads its rows, so its masks differ
    if c.initial and not (c.reset or not c.hx):
        out["initial"] = False
    if c.learned and c.extra == "weight_norm":
        out["learned"] = False
    if c.extra == "weight_norm" and (c.P or c.H) == 1:
        out["extra"] = ""  # the gradient of a direction in one dimension is zero, and torch's is noise
    if c.recompute == 1:
        out["recompute"] = 2
    return out


def _by_special(c: Case) -> dict[str, object]:
    out: dict[str, object] = {}
    if c.special:
        out.update(invalid=0, clip=0.0, dropout=0.0, lengths=False, reset=False, extra="", recompute=0, autocast="")
        if "state" in c.special and not c.hx:
            out["special"] = ""
        if c.custom:
            out["special"] = ""
    return out


def simpler(case: Case) -> Iterator[Case]:
    """Yield cases with one field at or nearer to its simplest value; the largest simplifications come first."""
    for field in fields(case):
        value = getattr(case, field.name)
        if value == field.default or field.name == "values":
            continue
        options: list[object] = [field.default]
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and field.name in ("T", "B", "I", "H", "P", "vocabulary")
        ):
            options += [1, value // 2, value - 1]
        for option in options:
            if option == value or (field.name in ("T", "I", "H") and option == 0):
                continue
            candidate = allowed(dataclasses.replace(case, **{field.name: option}))
            if candidate != case and measure(candidate) < measure(case):
                yield candidate


def measure(case: Case) -> tuple[int, int]:
    """Measure a case: a simpler one has a smaller measure."""
    changed = sum(getattr(case, f.name) != f.default for f in fields(case) if f.name != "values")
    return changed, case.T + case.B + case.I + case.H + case.P + case.vocabulary
