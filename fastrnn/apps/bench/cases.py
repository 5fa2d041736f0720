"""Cases to be measured. Letters: B batch rows, T time steps, I input size, H hidden size.

A shape is written ``BxTxH`` (then I = H) or ``BxTxIxH``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

CLASS_NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn": "RNN"}  # in an engine's namespace; RNN uses its default, tanh
CELLS = tuple(CLASS_NAMES)
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
DTYPES = ("float32", "float64", "bfloat16", "float16")
DEVICES = ("cpu", "cuda")

# Kinds of calls that are timed together as a block, with the metrics of each.
BLOCKS = {"train": ("forward", "backward", "total"), "inference": ("inference",), "stream": ("stream",)}
METRICS = (*BLOCKS["train"], *BLOCKS["inference"])


@dataclass(frozen=True)
class Shape:
    """Sizes of a case, for any cell."""

    batch: int
    steps: int
    input_size: int
    hidden_size: int
    layers: int = 1
    bidirectional: bool = False
    packed: bool = False  # batch rows of different lengths in a PackedSequence
    last: bool = False  # the loss depends on the last output only, as in sequence classification

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def label(self) -> str:
        """``BxTxH`` or ``BxTxIxH``, followed by the shape's other properties."""
        sizes = (self.batch, self.steps, *dict.fromkeys((self.input_size, self.hidden_size)))
        special = {
            f"{self.layers} layers": self.layers > 1,
            "both ways": self.bidirectional,
            "packed": self.packed,
            "last output": self.last,
        }
        return " ".join(["x".join(map(str, sizes)), *(word for word, present in special.items() if present)])

    def lengths(self) -> list[int]:
        """Return the length of each batch row (B): T for all, or for packed input decreasing evenly from T to T/4."""
        if not self.packed or self.batch == 1:
            return [self.steps] * self.batch
        fall = 0.75 * self.steps / (self.batch - 1)
        return [max(1, round(self.steps - fall * row)) for row in range(self.batch)]


@dataclass(frozen=True)
class Case:
    """A cell, a shape and a dtype.

    With ``chunks`` it is a stream: that many passes without a graph, each from the final state of the previous one. A
    stream of single time steps (T = 1) calls the module's ``step`` if it has one.
    """

    cell: str
    shape: Shape
    dtype: str = "float32"
    chunks: int = 0
    device: str = "cpu"

    @property
    def name(self) -> str:
        suffix = "" if self.dtype == "float32" else f" {self.dtype}"
        kind = (" step" if self.shape.steps == 1 else f" stream of {self.chunks}") if self.chunks else ""
        return f"{self.cell} {self.shape.label}{suffix}{kind}" + ("" if self.device == "cpu" else f" {self.device}")

    @property
    def metrics(self) -> tuple[str, ...]:
        return BLOCKS["stream"] if self.chunks else METRICS

    @property
    def states(self) -> tuple[str, ...]:
        return ("h", "c") if self.cell == "lstm" else ("h",)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the output and the final states."""
        return ("output", *(f"{name}_n" for name in self.states))

    def tiny(self) -> Case:
        """Return the same kind of case at a negligible size."""
        small = {name: min(getattr(self.shape, name), 8) for name in ("batch", "steps", "input_size", "hidden_size")}
        return replace(self, shape=replace(self.shape, **small))

    def as_dict(self) -> dict[str, Any]:
        sizes = {"name": self.name, "cell": self.cell, "dtype": self.dtype, "device": self.device}
        return {**sizes, **asdict(self.shape), "chunks": self.chunks}


def _shape(text: str) -> Shape:
    """Parse ``BxTxH`` or ``BxTxIxH``. Raises ValueError."""
    if not re.fullmatch(r"\d+(?:x\d+){2,3}", text):
        raise ValueError(f"expected BxTxH, BxTxIxH or one of {', '.join(SHAPE_NAMES)}; got {text!r}")
    batch, steps, *sizes = map(int, text.split("x"))
    if min(batch, steps, *sizes) < 1:
        raise ValueError(f"expected sizes of at least 1, got {text!r}")
    return Shape(batch, steps, sizes[0], sizes[-1])


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(map(_shape, text.split()))


# From a single time step to shapes that use all cores.
SQUARE_SHAPES = _shapes("1x1x64 1x100x64 1x100x128 1x100x256 1x100x512 8x100x128 16x100x256 64x50x512 64x100x128")
QUICK_SHAPES = _shapes("1x1x64 1x100x128 16x100x256")
STEP_SHAPES = _shapes("1x1x64 1x1x128")  # single steps of a stream, which show the overhead of a call
# On a GPU torch.nn uses cuDNN, which has a fast path for float16 at suitable sizes and a slower one otherwise.
CUDA_SHAPES = (
    *_shapes("1x100x256 16x100x256 128x100x256 1x100x512 16x100x512 128x100x512 1x100x1024 16x100x1024 128x100x1024"),
    Shape(16, 100, 512, 512, layers=2),
    Shape(16, 100, 512, 512, bidirectional=True),
    Shape(16, 100, 512, 512, packed=True),
)
_NAMED_SHAPES = {
    "step": Shape(1, 1, 256, 256),  # streaming and control: one call per time step
    "narrow": Shape(16, 100, 80, 256),  # I ≠ H, the sizes of a speech front end
    "bidirectional": Shape(16, 100, 128, 128, layers=2, bidirectional=True),
    "packed": Shape(16, 100, 256, 256, packed=True),
    "last": Shape(16, 300, 128, 128, last=True),  # gradients of early time steps vanish
}
STANDARD_SHAPES = (*SQUARE_SHAPES, *_NAMED_SHAPES.values())
_GROUPS: dict[str, tuple[Shape, ...]] = {
    "standard": STANDARD_SHAPES,
    "quick": QUICK_SHAPES,
    "square": SQUARE_SHAPES,
    "cuda": CUDA_SHAPES,
    "cuda-float16": _shapes("16x100x256 64x100x256 16x100x512 64x100x512 16x100x1024 64x100x1024"),
    **{name: (shape,) for name, shape in _NAMED_SHAPES.items()},
}
SHAPE_NAMES = tuple(_GROUPS)


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Parse a comma-separated list of names and sizes, in order and without repeats. Raises ValueError."""
    groups = (_GROUPS.get(token) or (_shape(token),) for token in _tokens(text))
    return tuple(dict.fromkeys(shape for group in groups for shape in group))


def parse_names(text: str, allowed: Sequence[str]) -> tuple[str, ...]:
    """Parse a comma-separated list of names, each of which must be in ``allowed``. Raises ValueError otherwise."""
    names = tuple(dict.fromkeys(_tokens(text)))
    for name in names:
        if name not in allowed:
            raise ValueError(f"expected a comma-separated list of {', '.join(allowed)}; got {name!r}")
    return names


def _tokens(text: str) -> list[str]:
    tokens = [token.strip().lower().replace("×", "x") for token in text.split(",")]
    if not all(tokens):
        raise ValueError(f"expected a comma-separated list without empty entries, got {text!r}")
    return tokens


def make_cases(cells: Iterable[str], shapes: Iterable[Shape], dtypes: Iterable[str], device: str = "cpu") -> list[Case]:
    """Return every cell with every shape in every dtype, grouped by dtype, then cell."""
    cells, shapes = tuple(cells), tuple(shapes)
    return [Case(cell, shape, dtype, device=device) for dtype in dtypes for cell in cells for shape in shapes]


def make_step_cases(cells: Iterable[str]) -> list[Case]:
    """Return single steps of every cell, in float32."""
    return [Case(cell, shape, chunks=1) for cell in cells for shape in STEP_SHAPES]
