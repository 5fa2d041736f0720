"""``fastrnn bench``: command-line options, and a run from the options to the output files."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrnn.apps.bench import cases
from fastrnn.apps.bench.engines import ENGINES, INSTALL, PEERS, find_engine

if TYPE_CHECKING:
    from fastrnn.apps.bench.results import Results, Settings

DESCRIPTION = (
    "Check fastrnn against torch.nn and time the two alternately on this machine. Exit status: 0 if all went well, 1 "
    "if a row failed its check or could not run, 2 for wrong arguments, 3 if the times are unreliable (other load, a "
    "wide spread, faster than the machine's limit), 130 if interrupted (finished measurements are written)."
)
UNTRUSTED_STATUS = 3
FULL_ROUNDS, QUICK_ROUNDS, SCALING_ROUNDS = 9, 3, 5
FULL_BLOCK, QUICK_BLOCK = 0.03, 0.01
QUICK_MODEL_STEPS = 30
SAMPLE_SECONDS = 1.5  # for each engine, alone and with busy processes
PICTURES = (".svg", ".png", ".pdf")


def _checked(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """Turn a ValueError into argparse's error, which names the option."""

    def checked(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


def _names(allowed: tuple[str, ...]) -> Callable[[str], Any]:
    return _checked(lambda text: cases.parse_names(text, allowed))


@_checked
def _engine(text: str) -> str:
    if text in PEERS:
        raise ValueError(f"expected an engine of torch modules, got {text!r}; use --peers for it")
    return find_engine(text).name


@_checked
def _peers(text: str) -> tuple[str, ...]:
    installed = tuple(name for name in PEERS if ENGINES[name].installed())
    names = cases.parse_names(text, PEERS) if text else installed
    missing = [name for name in names or PEERS if name not in installed]
    if missing:
        raise ValueError(f"not installed: {', '.join(missing)}; install them with: {INSTALL}")
    return names


def _at_least(lowest: int) -> Callable[[str], Any]:
    @_checked
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < lowest:
            raise ValueError(f"expected a whole number of at least {lowest}, got {text!r}")
        return int(text)

    return parse


def _path(expected: str, is_right: Callable[[Path], bool]) -> Callable[[str], Any]:
    @_checked
    def parse(text: str) -> Path:
        if not is_right(Path(text)):
            raise ValueError(f"expected {expected}, got {text!r}")
        return Path(text)

    return parse


_readable = _path("a readable file", lambda path: path.is_file() and os.access(path, os.R_OK))
_output = _path("a file name, not a directory", lambda path: not path.is_dir())
_directory = _path("a directory or a new name", lambda path: path.is_dir() or not path.exists())
_picture = _path("a file name ending in .svg, .png or .pdf", lambda path: path.suffix in PICTURES and not path.is_dir())


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fastrnn bench``."""
    parser.description = DESCRIPTION
    modes = parser.add_argument_group("instead of the table").add_mutually_exclusive_group()
    what, how = parser.add_argument_group("what to measure"), parser.add_argument_group("how to measure")
    model, output = parser.add_argument_group("language model"), parser.add_argument_group("output")
    natural, positive = _at_least(0), _at_least(1)
    busy = "time each engine alone and next to N processes that each keep a core busy, and report the slowdown"
    modes.add_argument("--busy", type=positive, metavar="N", help=busy)
    scaling = "time per time step against hidden size, batch size, length and threads, with a figure"
    modes.add_argument("--scaling", action="store_true", help=scaling)
    default = f"default: {','.join(cases.CELLS)}"
    what.add_argument("--cells", type=_names(cases.CELLS), default=cases.CELLS, metavar="LIST", help=default)
    device = "device of both engines; cuda: only the table, without peers; default: cpu"
    what.add_argument("--device", choices=cases.DEVICES, default="cpu", help=device)
    shapes = f"BxTxH, BxTxIxH (batch, time, input, hidden) or {', '.join(cases.SHAPE_NAMES)}; default: standard or cuda"
    what.add_argument("--shapes", type=_checked(cases.parse_shapes), metavar="LIST", help=shapes)
    dtypes = f"one or more of {', '.join(cases.DTYPES)}; default: float32"
    what.add_argument("--dtype", type=_names(cases.DTYPES), default=("float32",), metavar="LIST", help=dtypes)
    precision = "torch.set_float32_matmul_precision in fastrnn's process; torch.nn's stays at highest"
    what.add_argument("--precision", choices=("highest", "high", "medium"), default="highest", help=precision)
    isa = "limit all engines to an instruction set, by their own switches; onnxruntime has none and is excluded"
    what.add_argument("--isa", choices=("avx2", "avx512"), help=isa)
    what.add_argument("--quick", action="store_true", help="few shapes, few rounds: about a minute on a quiet machine")
    engine = (
        "engine to compare with torch.nn: fastrnn, torch (which shows the noise of the method), or an importable "
        "module with LSTM, GRU and RNN; default: fastrnn"
    )
    what.add_argument("--engine", type=_engine, default="fastrnn", metavar="NAME", help=engine)
    peers = "other libraries too, float32: onnxruntime, openvino (forward), jax; without LIST all that are installed"
    what.add_argument("--peers", type=_peers, nargs="?", const="", default=(), metavar="LIST", help=peers)
    what.add_argument("--no-steps", action="store_true", help="skip the single steps")
    what.add_argument("--list", action="store_true", help="list the rows and exit")
    how.add_argument("--threads", type=positive, metavar="N", help="threads of each engine; default: torch's default")
    rounds = f"rounds per row; default: {FULL_ROUNDS}, quick {QUICK_ROUNDS}"
    how.add_argument("--repeats", type=positive, metavar="N", help=rounds)
    how.add_argument("--seed", type=natural, default=0, metavar="N", help="seed of weights and data; default: 0")
    model.add_argument("--no-lm", action="store_true", help="skip it")
    text = "training text; default: the standard library's sources"
    model.add_argument("--text", type=_readable, metavar="FILE", help=text)
    model.add_argument("--lm-steps", type=positive, metavar="N", help=f"default: 300, quick {QUICK_MODEL_STEPS}")
    out = "directory for bench.json, bench.md, bench.svg and bench.png (busy.*, scaling.* with these modes); "
    out += "default: bench-out"
    output.add_argument("--out", type=_directory, default=Path("bench-out"), metavar="DIR", help=out)
    output.add_argument("--json", type=_output, metavar="PATH", help="also write the JSON here")
    output.add_argument("--plot", type=_picture, metavar="PATH", help="also write the figure here (.svg, .png, .pdf)")


def make_settings(args: argparse.Namespace) -> Settings:
    """Convert the options to the settings of a run."""
    from fastrnn.apps.bench.language_model import ModelSettings
    from fastrnn.apps.bench.results import Settings

    mode = "scaling" if args.scaling else "bench" if args.busy is None else "busy"
    table, cuda = mode == "bench", args.device == "cuda"
    default = cases.QUICK_SHAPES if args.quick or mode == "busy" else cases.parse_shapes("cuda" if cuda else "standard")
    rows = cases.make_cases(args.cells, args.shapes or default, args.dtype, args.device)
    if table and not (args.no_steps or cuda) and "float32" in args.dtype:
        rows += cases.make_step_cases(args.cells)
    model = None
    if table and not (args.no_lm or cuda):
        steps = args.lm_steps or (QUICK_MODEL_STEPS if args.quick else ModelSettings.steps)
        model = ModelSettings(steps=steps, block=min(ModelSettings.block, max(1, steps // 6)))
    same_name = ("threads", "precision", "isa", "device", "seed", "quick")
    return Settings(
        cases=tuple(rows),
        mode=mode,
        candidate=args.engine,
        peers=tuple(name for name in args.peers if args.isa is None or name != "onnxruntime"),
        rounds=args.repeats or (QUICK_ROUNDS if args.quick else SCALING_ROUNDS if args.scaling else FULL_ROUNDS),
        block_seconds=QUICK_BLOCK if args.quick else FULL_BLOCK,
        memory=table,
        model=model,
        competitors=args.busy or 0,
        sample_seconds=SAMPLE_SECONDS,
        **{name: getattr(args, name) for name in same_name},
    )


def run(args: argparse.Namespace) -> int:
    """Run the benchmark with the parsed options; return the exit status."""
    settings = make_settings(args)
    if args.list:
        print("\n".join(case.name for case in settings.cases))
        return 0
    try:
        _check_device(args)
        text = _text(args, settings)
        args.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        print(f"fastrnn bench: error: {error}", file=sys.stderr)
        return 2

    from fastrnn.apps.bench import environment, runner
    from fastrnn.apps.bench.results import Results

    results = Results(settings, environment.collect(args.device, args.isa))
    load, cores = results.environment["load"], results.environment["cpu"]["usable_cpus"]
    if load is not None and load > 0.5 * cores:
        print(f"note: the machine is under load ({load} on {cores} cores); expect a wide spread", file=sys.stderr)
    try:
        runner.run(results, text)
        results.complete = True
    except KeyboardInterrupt:
        print("interrupted: writing the finished measurements", file=sys.stderr)
    except runner.FAILURES as error:
        print(f"fastrnn bench: error: cannot start: {error}", file=sys.stderr)
        return 1
    _write(results, args)
    if not results.complete:
        return 130
    return 1 if results.problems else UNTRUSTED_STATUS if results.doubts else 0


def _check_device(args: argparse.Namespace) -> None:
    """Raise ValueError, naming the option, if the device is missing or does not support an option."""
    if args.device == "cpu":
        return
    for option, given in (("--peers", args.peers), ("--busy", args.busy is not None), ("--scaling", args.scaling)):
        if given:
            raise ValueError(f"argument {option}: expected --device cpu, got {args.device}")
    import torch

    if not torch.cuda.is_available():
        raise ValueError("argument --device: expected a GPU available to torch, got none")


def _text(args: argparse.Namespace, settings: Settings) -> bytes:
    """Return the language model's text. Raises ValueError, naming the option, if it is too short."""
    if settings.model is None:
        return b""
    from fastrnn.apps.bench.language_model import read_text

    text, minimum = read_text(args.text), settings.model.minimum_bytes
    if len(text) < minimum:
        where = "argument --text" if args.text else "the standard library's sources (use --text FILE or --no-lm)"
        raise ValueError(f"{where}: expected at least {minimum} bytes, got {len(text)}")
    return text


def _write(results: Results, args: argparse.Namespace) -> None:
    """Write the files, and the tables to standard output."""
    from rich.console import Console

    from fastrnn.apps.bench import plot, report

    # A pipe has no width; the table needs about this much.
    console = Console() if sys.stdout.isatty() else Console(width=200)
    report.show(results, console)
    name, document = results.settings.mode, results.to_json()
    texts = {args.out / f"{name}.json": document, args.out / f"{name}.md": report.to_markdown(results)}
    texts |= {args.json: document} if args.json else {}
    pictures = [args.out / f"{name}.svg", args.out / f"{name}.png", *([args.plot] if args.plot else [])]
    if not plot.available():
        print(plot.INSTALL, file=sys.stderr)
    if name == "busy" or not plot.available():
        pictures = []
    for path in (*texts, *pictures):
        path.parent.mkdir(parents=True, exist_ok=True)
    for path, content in texts.items():
        path.write_text(content, encoding="utf-8")
    if pictures:
        plot.save(results, pictures)
    written = ", ".join(map(str, (*texts, *pictures)))
    console.print(f"written: {written}", markup=False, highlight=False, soft_wrap=True)
