"""Command-line options of ``fastrnn train`` and ``fastrnn sample``."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from fastrnn.apps.lm.options import Options

TRAIN = (
    "Train a language model of bytes or characters on a text file, or resume a run. Exit status: 0 at the end of the "
    "run, 1 if it failed, 2 for wrong arguments, 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP: the current "
    "step is completed and a checkpoint written first. A second Ctrl-C stops at once. Several processes: torchrun "
    "--nproc-per-node N -m fastrnn train …"
)
SAMPLE = "Generate text with a model from fastrnn train. The same seed gives the same text."


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one argument for each option of a run; options that are not given are absent from the result."""
    parser.description = TRAIN
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="CHECKPOINT",
        help="resume the run of this checkpoint, or of the newest in this folder (default: that of --out); options "
        "of text, model and training are fixed, those of end and output may change",
    )
    groups: dict[str, Any] = {}
    for field in dataclasses.fields(Options):
        rules = field.metadata
        group = groups.setdefault(rules["group"], parser.add_argument_group(rules["group"]))
        text = rules["help"].replace("%", "%%")
        if field.name == "file":
            group.add_argument("file", nargs="?", metavar="FILE", default=argparse.SUPPRESS, help=text)
            continue
        more: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text + _default(field)}
        if rules["kind"] is bool:
            more["action"] = argparse.BooleanOptionalAction
        else:
            more |= {"type": rules["kind"], "choices": rules.get("choices")}
            if not more["choices"]:
                more["metavar"] = {int: "N", float: "X", str: "NAME"}[rules["kind"]]
        group.add_argument(flag(field.name), **more)


def flag(name: str) -> str:
    """Return the command-line name of an option."""
    return "FILE" if name == "file" else "--" + name.replace("_", "-")


def _default(field: dataclasses.Field) -> str:
    value = field.default
    if value is None:
        return ""
    return f" (default: {'no' if value is False else value})"


def given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a run that the user has given."""
    names = {field.name for field in dataclasses.fields(Options)}
    return {name: value for name, value in vars(args).items() if name in names}


def add_sample_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fastrnn.apps.lm.sample`."""
    parser.description = SAMPLE
    checkpoint = "a checkpoint file, or a folder, whose newest checkpoint is used"
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=checkpoint)
    parser.add_argument("--prime", default="", metavar="TEXT", help="text to continue, which is printed first")
    temperature = "divides the logits; 0: always the most likely byte or character (default: 1)"
    parser.add_argument("--temperature", type=float, default=1.0, metavar="X", help=temperature)
    parser.add_argument("--length", type=int, default=1000, metavar="N", help="bytes or characters (default: 1000)")
    parser.add_argument("--seed", type=int, metavar="N", help="default: a different text each time")
    parser.add_argument("--top-k", type=int, metavar="K", help="draw among the K most likely only")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
