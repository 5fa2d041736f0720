"""Options of a training run: one list for the command line, the functions and the checkpoints."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
#: Steps of a run without a given end.
DEFAULT_STEPS = 3000
#: Largest vocabulary without an embedding, for which the first layer multiplies an identity matrix (V, V).
MAX_UNEMBEDDED = 4096


_FIXED = ("text", "model", "training")  # groups of options that a resumed run cannot change


def _option(group: str, kind: type, default: Any, text: str, **rules: Any) -> Any:
    """Define an option. Rules: ``choices``, ``low``, ``above``, ``high``, ``optional`` (None is allowed), ``fixed``."""
    metadata = {"fixed": group in _FIXED, **rules, "help": text, "kind": kind, "group": group}
    return dataclasses.field(default=default, metadata=metadata)


_text, _model, _training = (partial(_option, group) for group in _FIXED)
_machine, _end, _output = (partial(_option, group) for group in ("machine", "end", "output"))
_RATES = ("constant", "cosine", "linear")
_FORMATS = ("float32", "bfloat16", "float64")


@dataclass(frozen=True)
class Options:
    """Options of a run; None means no limit, or the default of torch.

    Raises:
        TypeError: a value is of the wrong type.
        ValueError: a value is out of range, or two values conflict.
    """

    # fmt: off
    file: str | None = _text(
        str, None, "training text; default: the source of Python's standard library", optional=True, fixed=False)
    unit: str = _text(str, "byte", "unit of prediction", choices=("byte", "character"))
    validation: float = _text(float, 0.05, "share of the text, at its end, for validation", low=0, high=0.9)

    cell: str = _model(str, "lstm", f"{', '.join(CELLS)}, or a cell of fastrnn.gallery")
    layers: int = _model(int, 2, "recurrent layers", low=1)
    hidden: int = _model(int, 256, "hidden units H of the layers", low=1)
    embedding: int = _model(int, 64, "width of the embedding; 0: none, one-hot input", low=0)
    tied: bool = _model(bool, False, "output layer with the embedding's weights, through a projection if widths differ")
    dropout: float = _model(float, 0.0, "dropout between layers", low=0, high=1)
    dropout_embedding: float = _model(float, 0.0, "dropout on the embedding", low=0, high=1)
    dropout_output: float = _model(float, 0.0, "dropout before the output layer", low=0, high=1)
    dropout_recurrent: float = _model(
        float, 0.0, "weight drop: dropout on the recurrent weights, one mask per chunk", low=0, high=1)
    engine: str = _model(
        str, "fastrnn", "torch: the same model on torch.nn, for comparison", choices=("fastrnn", "torch"))

    batch: int = _training(int, 32, "batch rows B: places of the text read in parallel", low=1)
    truncation: int = _training(int, 64, "time steps T of truncated backpropagation", low=1)
    optimizer: str = _training(str, "adam", "optimizer", choices=("adam", "adamw", "sgd", "rmsprop"))
    learning_rate: float = _training(float, 2e-3, "learning rate", above=0)
    momentum: float = _training(float, 0.0, "momentum of sgd and rmsprop", low=0, high=1)
    schedule: str = _training(str, "constant", "schedule of the learning rate", choices=_RATES)
    warmup: int = _training(int, 0, "steps of linear increase of the learning rate", low=0)
    final_learning_rate: float = _training(float, 0.0, "final value of cosine and linear", low=0)
    weight_decay: float = _training(float, 0.0, "weight decay, of matrices only", low=0)
    clip_norm: float = _training(float, 1.0, "limit for the gradient's norm; 0: none", low=0)
    clip_value: float = _training(float, 0.0, "limit for the gradient's elements; 0: none", low=0)
    dtype: str = _training(
        str, "float32", "dtype; bfloat16: autocast with float32 weights", choices=_FORMATS)
    seed: int = _training(int, 0, "seed of weights, dropout and data order", low=0, high=2**63 - 1)

    threads: int | None = _machine(int, None, "CPU threads; default: torch's default", optional=True, low=1)
    device: str = _machine(str, "cpu", "cpu, cuda or cuda:N")
    compile: bool = _machine(bool, False, "torch.compile")

    steps: int | None = _end(
        int, None, f"steps of the run; default: {DEFAULT_STEPS}, if no other end is given", optional=True, low=1)
    epochs: int | None = _end(int, None, "epochs of the run", optional=True, low=1)
    minutes: float | None = _end(
        float, None, "minutes of the run, including those before a resume", optional=True, above=0)

    log_every: int = _output(int, 100, "steps between lines of the log", low=1)
    validate_every: int = _output(int, 500, "steps between validations; 0: none", low=0)
    validation_chunks: int = _output(int, 50, "most chunks of B×T read by a validation", low=1)
    sample_every: int = _output(int, 500, "steps between samples; 0: none", low=0)
    sample_length: int = _output(int, 200, "length of a sample", low=1)
    checkpoint_every: int = _output(int, 500, "steps between checkpoints; 0: only at the end", low=0)
    keep: int = _output(int, 3, "checkpoints to keep, besides the best", low=1)
    out: str = _output(str, "lm-out", "folder of the log and the checkpoints")
    tensorboard: bool = _output(bool, False, "write a TensorBoard log besides the CSV file")
    # fmt: on

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _checked(field, getattr(self, field.name)))
        _check_together(self)

    def total_steps(self, steps_per_epoch: int) -> int | None:
        """Return the step at which the run ends, or None if only the time ends it."""
        ends = [self.steps] if self.steps is not None else []
        ends += [self.epochs * steps_per_epoch] if self.epochs is not None else []
        if not ends and self.minutes is None:
            return DEFAULT_STEPS
        return min(ends, default=None)

    def as_dict(self) -> dict[str, Any]:
        """Return all options by name: numbers, strings, bools and None."""
        return dataclasses.asdict(self)

    def changed(self, changes: dict[str, Any]) -> Options:
        """Return these options for a resumed run, with changes.

        Given steps or epochs replace all other ends.

        Raises:
            ValueError: a change is not allowed in a resumed run.
            TypeError: there is no such option.
        """
        fields = {field.name: field for field in dataclasses.fields(self)}
        if changes.get("steps") is not None or changes.get("epochs") is not None:
            changes = {**dict.fromkeys(("steps", "epochs", "minutes")), **changes}
        for name, value in changes.items():
            if name not in fields:
                raise TypeError(f"{name}: expected an option of a run, got another name")
            if fields[name].metadata["fixed"] and value != getattr(self, name):
                raise ValueError(
                    f"{name}: expected {getattr(self, name)!r} as in the run that is resumed, got {value!r}"
                )
        return dataclasses.replace(self, **changes)


def _checked(field: dataclasses.Field, value: Any) -> Any:
    name, rules = field.name, field.metadata
    kind = rules["kind"]
    if value is None and rules.get("optional"):
        return None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:
        words = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}[kind]
        raise TypeError(f"{name}: expected {words}, got {value!r}")
    choices = rules.get("choices")
    if choices and value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")
    low, high, above = rules.get("low"), rules.get("high"), rules.get("above")
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    if (low is not None and value < low) or (above is not None and value <= above):
        raise ValueError(
            f"{name}: expected {f'at least {low}' if above is None else f'more than {above}'}, got {value}"
        )
    if high is not None and value > high:
        raise ValueError(f"{name}: expected at most {high}, got {value}")
    return value


def _check_together(options: Options) -> None:
    if options.dropout and options.layers == 1:
        raise ValueError(f"dropout: expected 0 with one layer, as it applies between layers, got {options.dropout}")
    if options.embedding == 0 and options.tied:
        raise ValueError("tied: expected an embedding to tie the output layer to, got embedding 0")
    if options.embedding == 0 and options.dropout_embedding:
        raise ValueError(f"dropout_embedding: expected 0 with embedding 0, got {options.dropout_embedding}")
    if options.momentum and options.optimizer not in ("sgd", "rmsprop"):
        raise ValueError(f"momentum: expected 0 with {options.optimizer}, got {options.momentum}")
    if options.schedule == "constant" and options.final_learning_rate:
        raise ValueError(f"final_learning_rate: expected 0 with schedule 'constant', got {options.final_learning_rate}")
    if options.schedule != "constant" and options.minutes and options.steps is None and options.epochs is None:
        raise ValueError(
            f"schedule: expected 'constant' where only minutes end the run, got {options.schedule!r}; "
            "set steps or epochs"
        )
    if options.cell not in CELLS:
        from fastrnn.gallery import CELLS as GALLERY

        if options.cell not in GALLERY:
            raise ValueError(f"cell: expected one of {', '.join((*CELLS, *GALLERY))}, got {options.cell!r}")
        if options.dropout_recurrent and not GALLERY[options.cell].recurrent:
            raise ValueError(
                f"dropout_recurrent: expected 0 with {options.cell}, which has no recurrent matrix, got "
                f"{options.dropout_recurrent}"
            )
