"""``fastrnn bench``: a run from options to files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrnn.apps.bench.arguments import FULL_ROUNDS, QUICK_MODEL_STEPS, QUICK_ROUNDS, add_arguments
from fastrnn.apps.bench.cases import QUICK_SHAPES, make_cases, make_step_cases, parse_shapes

if TYPE_CHECKING:
    from fastrnn.apps.bench.language_model import ModelSettings
    from fastrnn.apps.bench.modes import Mode
    from fastrnn.apps.bench.runner import Settings

__all__ = ["add_arguments", "make_settings", "run"]

FULL_BLOCK, QUICK_BLOCK = 0.03, 0.01


def make_settings(args: argparse.Namespace) -> Settings:
    """The run that the options describe."""
    from fastrnn.apps.bench.runner import Settings
    from fastrnn.apps.bench.scaling import QUICK_ROUNDS as SCALING_QUICK_ROUNDS
    from fastrnn.apps.bench.scaling import ROUNDS as SCALING_ROUNDS

    short = args.quick or args.busy is not None
    cuda = args.device == "cuda"
    shapes = args.shapes or (QUICK_SHAPES if short else parse_shapes("cuda" if cuda else "standard"))
    full, quick = (SCALING_ROUNDS, SCALING_QUICK_ROUNDS) if args.scaling else (FULL_ROUNDS, QUICK_ROUNDS)
    table = args.busy is None and not args.scaling
    steps = table and not args.no_steps and not cuda and "float32" in args.dtype
    return Settings(
        cases=tuple(make_cases(args.cells, shapes, args.dtype, args.device)),
        candidate=args.engine,
        peers=args.peers,
        threads=args.threads,
        precision=args.precision,
        rounds=args.repeats or (quick if args.quick else full),
        block_seconds=QUICK_BLOCK if args.quick else FULL_BLOCK,
        seed=args.seed,
        memory=table,
        model=None if args.no_lm or not table or cuda else _model_settings(args),
        steps=tuple(make_step_cases(args.cells)) if steps else (),
        device=args.device,
    )


def _model_settings(args: argparse.Namespace) -> ModelSettings:
    from fastrnn.apps.bench.language_model import ModelSettings

    model = ModelSettings()
    steps = args.lm_steps or (QUICK_MODEL_STEPS if args.quick else model.steps)
    return replace(model, steps=steps, block=min(model.block, max(1, steps // 6)))


def run(args: argparse.Namespace) -> int:
    """Run the benchmark that the parsed options describe; returns the exit status."""
    settings = make_settings(args)
    if args.list:
        for case in (*settings.cases, *settings.steps):
            print(case.name)
        return 0
    try:
        _check_device(args)
        text = _text(args, settings)
        args.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"fastrnn bench: error: {error}", file=sys.stderr)
        return 2

    from fastrnn.apps.bench import environment, modes
    from fastrnn.apps.bench.client import WorkerDiedError, WorkerError

    facts = environment.collect(args.device)
    _warn_if_busy(facts)
    mode: modes.Mode
    if args.busy is not None:
        mode = modes.BusyMode(settings, facts, args.busy)
    elif args.scaling:
        mode = modes.ScalingMode(settings, facts, args.quick)
    else:
        mode = modes.TableMode(settings, facts, text)
    try:
        mode.measure()
        mode.results.complete = True
    except KeyboardInterrupt:
        print("interrupted: writing what was measured", file=sys.stderr)
    except (WorkerError, WorkerDiedError) as error:
        print(f"fastrnn bench: error: cannot start: {error}", file=sys.stderr)
        return 1
    _write(mode, args)
    if not mode.results.complete:
        return 130
    return 1 if mode.results.problems else 0


def _check_device(args: argparse.Namespace) -> None:
    """Raises ValueError, naming the option, if the device is not there or is asked for what only the CPU does."""
    if args.device == "cpu":
        return
    for option, given in (("--peers", args.peers), ("--busy", args.busy is not None), ("--scaling", args.scaling)):
        if given:
            raise ValueError(f"argument {option}: expected --device cpu, found {args.device}")
    import torch

    if not torch.cuda.is_available():
        raise ValueError("argument --device: expected a GPU that torch can use, found none")


def _text(args: argparse.Namespace, settings: Settings) -> bytes:
    """The language model's text. Raises ValueError, naming the option, if it is too short."""
    if settings.model is None:
        return b""
    from fastrnn.apps.bench.language_model import minimum_bytes, read_text

    text = read_text(args.text)
    if len(text) < minimum_bytes(settings.model):
        where = "argument --text" if args.text else "the standard library's sources (use --text FILE or --no-lm)"
        raise ValueError(f"{where}: expected at least {minimum_bytes(settings.model)} bytes, found {len(text)}")
    return text


def _warn_if_busy(facts: dict[str, Any]) -> None:
    load, cores = facts["load"], facts["cpu"]["usable_cpus"]
    if load is not None and load > 0.5 * cores:
        print(f"note: the machine is busy (load {load}, {cores} cores); expect a wide spread", file=sys.stderr)


def _write(mode: Mode, args: argparse.Namespace) -> None:
    """Files and the tables on standard output."""
    from rich.console import Console

    from fastrnn.apps.bench import plot

    document = json.dumps(mode.results.as_dict(), indent=1, ensure_ascii=False) + "\n"
    written = [args.out / f"{mode.name}.json", args.out / f"{mode.name}.md"]
    written[0].write_text(document, encoding="utf-8")
    written[1].write_text(mode.markdown(), encoding="utf-8")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(document, encoding="utf-8")
        written.append(args.json)
    # A pipe has no width of its own; the table needs about this much.
    console = Console() if sys.stdout.isatty() else Console(width=190)
    mode.show(console)
    if not plot.available():
        print(plot.INSTALL, file=sys.stderr)
    elif mode.has_picture:
        pictures: Sequence[Path] = [args.out / f"{mode.name}.svg", args.out / f"{mode.name}.png"]
        pictures = [*pictures, args.plot] if args.plot else pictures
        for picture in pictures:
            picture.parent.mkdir(parents=True, exist_ok=True)
        mode.draw(pictures)
        written += pictures
    console.print("written: " + ", ".join(map(str, written)), markup=False, highlight=False, soft_wrap=True)
