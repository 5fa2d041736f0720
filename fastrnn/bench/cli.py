"""``fastrnn bench``: options, and a run from start to files."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from fastrnn.bench.cases import CELLS, DTYPES, QUICK_SHAPES, SHAPE_NAMES, Shape, make_cases, parse_names, parse_shapes

if TYPE_CHECKING:
    from fastrnn.bench.language_model import ModelSettings
    from fastrnn.bench.results import Results
    from fastrnn.bench.runner import Settings

Parsed = TypeVar("Parsed")

DESCRIPTION = (
    "Check fastrnn against torch.nn and time the two in turns on this machine. Exit status: 0 if all went well, 1 if a "
    "row failed its check or could not run, 2 for wrong arguments, 130 if interrupted (what was measured is written)."
)
FULL_ROUNDS, QUICK_ROUNDS = 9, 3
FULL_BLOCK, QUICK_BLOCK = 0.03, 0.01
QUICK_MODEL_STEPS = 30


def _cells(text: str) -> tuple[str, ...]:
    return _checked(lambda: parse_names(text, CELLS))


def _dtypes(text: str) -> tuple[str, ...]:
    return _checked(lambda: parse_names(text, DTYPES))


def _shapes(text: str) -> tuple[Shape, ...]:
    return _checked(lambda: parse_shapes(text))


def _engine(text: str) -> str:
    from fastrnn.bench.engines import find_engine

    return _checked(lambda: find_engine(text).name)


def _checked(parse: Callable[[], Parsed]) -> Parsed:
    """Say a ValueError the way argparse wants to hear it, so that the option is named."""
    try:
        return parse()
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _at_least(lowest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = lowest - 1
        if value < lowest:
            raise argparse.ArgumentTypeError(f"expected a whole number of at least {lowest}, found {text!r}")
        return value

    return parse


def _readable_file(text: str) -> Path:
    path = Path(text)
    if not path.is_file() or not os.access(path, os.R_OK):
        raise argparse.ArgumentTypeError(f"expected a file that can be read, found {text!r}")
    return path


def _output_file(text: str) -> Path:
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file name, found the directory {text!r}")
    return path


def _picture(text: str) -> Path:
    from fastrnn.bench.plot import SUFFIXES

    path = _output_file(text)
    if path.suffix not in SUFFIXES:
        raise argparse.ArgumentTypeError(f"expected a name that ends in {', '.join(SUFFIXES)}; found {text!r}")
    return path


def _directory(text: str) -> Path:
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a directory or a new name, found the file {text!r}")
    return path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fastrnn bench``."""
    parser.description = DESCRIPTION
    what = parser.add_argument_group("what to measure")
    what.add_argument("--cells", type=_cells, default=CELLS, metavar="LIST", help=f"default: {','.join(CELLS)}")
    what.add_argument(
        "--shapes",
        type=_shapes,
        default=None,
        metavar="LIST",
        help=f"BxTxH, BxTxIxH (batch, time, input, hidden) or {', '.join(SHAPE_NAMES)}; default: standard",
    )
    what.add_argument(
        "--dtype", type=_dtypes, default=("float32",), metavar="LIST", help=f"of {', '.join(DTYPES)}; default: float32"
    )
    what.add_argument("--quick", action="store_true", help="few shapes, few rounds: done within a minute")
    what.add_argument(
        "--engine",
        type=_engine,
        default="fastrnn",
        metavar="NAME",
        help="what to compare with torch.nn: fastrnn, torch (which shows the noise of the method), or an importable "
        "module with LSTM, GRU and RNN; default: fastrnn",
    )
    what.add_argument("--list", action="store_true", help="list the rows and leave")
    how = parser.add_argument_group("how to measure")
    how.add_argument(
        "--threads", type=_at_least(1), metavar="N", help="threads of each engine; default: torch's choice"
    )
    how.add_argument(
        "--repeats",
        type=_at_least(1),
        metavar="N",
        help=f"rounds per row; default: {FULL_ROUNDS}, quick {QUICK_ROUNDS}",
    )
    how.add_argument("--seed", type=_at_least(0), default=0, metavar="N", help="of weights and data; default: 0")
    model = parser.add_argument_group("language model")
    model.add_argument("--no-lm", action="store_true", help="leave it out")
    model.add_argument(
        "--text", type=_readable_file, metavar="FILE", help="text to learn; default: the standard library's sources"
    )
    model.add_argument("--lm-steps", type=_at_least(1), metavar="N", help=f"default: 300, quick {QUICK_MODEL_STEPS}")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--out",
        type=_directory,
        default=Path("bench-out"),
        metavar="DIR",
        help="directory for bench.json, .md, .svg and .png; default: bench-out",
    )
    output.add_argument("--json", type=_output_file, metavar="PATH", help="write the JSON here too")
    output.add_argument("--plot", type=_picture, metavar="PATH", help="write the picture here too (.svg, .png, .pdf)")


def make_settings(args: argparse.Namespace) -> Settings:
    """The run that the options describe."""
    from fastrnn.bench.runner import Settings

    shapes = args.shapes or (QUICK_SHAPES if args.quick else parse_shapes("standard"))
    return Settings(
        cases=tuple(make_cases(args.cells, shapes, args.dtype)),
        candidate=args.engine,
        threads=args.threads,
        rounds=args.repeats or (QUICK_ROUNDS if args.quick else FULL_ROUNDS),
        block_seconds=QUICK_BLOCK if args.quick else FULL_BLOCK,
        seed=args.seed,
        model=None if args.no_lm else _model_settings(args),
    )


def _model_settings(args: argparse.Namespace) -> ModelSettings:
    from fastrnn.bench.language_model import ModelSettings

    model = ModelSettings()
    steps = args.lm_steps or (QUICK_MODEL_STEPS if args.quick else model.steps)
    return replace(model, steps=steps, block=min(model.block, max(1, steps // 6)))


def run(args: argparse.Namespace) -> int:
    """Run the benchmark that the parsed options describe; returns the exit status."""
    settings = make_settings(args)
    if args.list:
        for case in settings.cases:
            print(case.name)
        return 0
    try:
        text = _text(args, settings)
        args.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"fastrnn bench: error: {error}", file=sys.stderr)
        return 2

    from fastrnn.bench import environment
    from fastrnn.bench.client import WorkerDiedError, WorkerError
    from fastrnn.bench.results import Results

    results = Results(settings, environment.collect())
    _warn_if_busy(results)
    try:
        _measure(results, text)
        results.complete = True
    except KeyboardInterrupt:
        print("interrupted: writing what was measured", file=sys.stderr)
    except (WorkerError, WorkerDiedError) as error:
        print(f"fastrnn bench: error: cannot start: {error}", file=sys.stderr)
        return 1
    _write(results, args)
    if not results.complete:
        return 130
    return 1 if results.problems else 0


def _text(args: argparse.Namespace, settings: Settings) -> bytes:
    """The language model's text. Raises ValueError, naming the option, if it is too short."""
    if settings.model is None:
        return b""
    from fastrnn.bench.language_model import minimum_bytes, read_text

    text = read_text(args.text)
    if len(text) < minimum_bytes(settings.model):
        where = "argument --text" if args.text else "the standard library's sources (use --text FILE or --no-lm)"
        raise ValueError(f"{where}: expected at least {minimum_bytes(settings.model)} bytes, found {len(text)}")
    return text


def _warn_if_busy(results: Results) -> None:
    load, cores = results.environment["load"], results.environment["cpu"]["usable_cpus"]
    if load is not None and load > 0.5 * cores:
        print(f"note: the machine is busy (load {load}, {cores} cores); expect a wide spread", file=sys.stderr)


def _measure(results: Results, text: bytes) -> None:
    """Fill ``results`` row by row. KeyboardInterrupt passes through, with the workers gone."""
    from fastrnn.bench.progress import Reporter
    from fastrnn.bench.report import format_speedup
    from fastrnn.bench.runner import Runner, new_model_result

    settings = results.settings
    words = {"failed": "FAILED parity, ", "error": "ERROR, ", "skipped": "skipped, "}
    jobs = len(settings.cases) + (settings.model is not None)
    with Runner(settings) as runner, Reporter(jobs) as reporter:
        results.environment["threads"] = runner.start()["threads"]
        for case in settings.cases:
            reporter.begin(case.name)
            row = runner.run_case(case, reporter.note)
            results.cases.append(row)
            if row.status == "ok":
                training, inference = (format_speedup(row.speedup(metric)) for metric in ("total", "inference"))
                reporter.end(f"training {training}, inference {inference}")
            else:
                reporter.end(words[row.status] + row.message)
        if settings.model is not None:
            reporter.begin("language model")
            results.model = model = new_model_result(settings.model, text)
            try:
                runner.run_model(text, model, reporter.note)
            except KeyboardInterrupt:
                model.status, model.message = "interrupted", "interrupted"
                raise
            reporter.end(words.get(model.status, "") + (model.message or f"speed-up {format_speedup(model.speedup())}"))


def _write(results: Results, args: argparse.Namespace) -> None:
    """Files and the table on standard output."""
    from rich.console import Console

    from fastrnn.bench import plot
    from fastrnn.bench.report import print_report, to_markdown

    document = json.dumps(results.as_dict(), indent=1, ensure_ascii=False) + "\n"
    written = [args.out / "bench.json", args.out / "bench.md"]
    written[0].write_text(document, encoding="utf-8")
    written[1].write_text(to_markdown(results), encoding="utf-8")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(document, encoding="utf-8")
        written.append(args.json)
    # A pipe has no width of its own; the table needs about this much.
    console = Console() if sys.stdout.isatty() else Console(width=175)
    print_report(results, console)
    if plot.available():
        pictures = [args.out / "bench.svg", args.out / "bench.png", *([args.plot] if args.plot else [])]
        for picture in pictures:
            picture.parent.mkdir(parents=True, exist_ok=True)
        plot.save(results, pictures)
        written += pictures
    else:
        print(plot.INSTALL, file=sys.stderr)
    console.print("written: " + ", ".join(map(str, written)), markup=False, highlight=False, soft_wrap=True)
