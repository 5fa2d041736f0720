"""The options of ``fastrnn bench``, and what is checked of them before anything runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fastrnn.apps.bench.cases import CELLS, DEVICES, DTYPES, SHAPE_NAMES, Shape, parse_names, parse_shapes

Parsed = TypeVar("Parsed")

DESCRIPTION = (
    "Check fastrnn against torch.nn and time the two in turns on this machine. Exit status: 0 if all went well, 1 if a "
    "row failed its check or could not run, 2 for wrong arguments, 130 if interrupted (what was measured is written)."
)
FULL_ROUNDS, QUICK_ROUNDS = 9, 3
QUICK_MODEL_STEPS = 30
PRECISIONS = ("highest", "high")
ALL_PEERS = "installed"


def _cells(text: str) -> tuple[str, ...]:
    return _checked(lambda: parse_names(text, CELLS))


def _dtypes(text: str) -> tuple[str, ...]:
    return _checked(lambda: parse_names(text, DTYPES))


def _shapes(text: str) -> tuple[Shape, ...]:
    return _checked(lambda: parse_shapes(text))


def _engine(text: str) -> str:
    from fastrnn.apps.bench.engines import find_engine
    from fastrnn.apps.bench.peers import PEERS

    if text in PEERS:
        raise argparse.ArgumentTypeError(f"expected an engine of torch modules; for {text!r} use --peers")
    return _checked(lambda: find_engine(text).name)


def _peers(text: str) -> tuple[str, ...]:
    from fastrnn.apps.bench.peers import INSTALL, PEERS, installed

    if text == ALL_PEERS:
        names = tuple(name for name, engine in PEERS.items() if installed(engine))
        if not names:
            raise argparse.ArgumentTypeError(
                f"expected one of {', '.join(PEERS)} to be installed; get them with: {INSTALL}"
            )
        return names
    names = _checked(lambda: parse_names(text, tuple(PEERS)))
    missing = [name for name in names if not installed(PEERS[name])]
    if missing:
        raise argparse.ArgumentTypeError(f"not installed: {', '.join(missing)}; get them with: {INSTALL}")
    return names


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
    from fastrnn.apps.bench.plot import SUFFIXES

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
    _add_modes(parser)
    _add_what(parser.add_argument_group("what to measure"))
    _add_how(parser.add_argument_group("how to measure"))
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
        help="directory for bench.json, .md, .svg and .png (busy.*, scaling.*); default: bench-out",
    )
    output.add_argument("--json", type=_output_file, metavar="PATH", help="write the JSON here too")
    output.add_argument("--plot", type=_picture, metavar="PATH", help="write the picture here too (.svg, .png, .pdf)")


def _add_modes(parser: argparse.ArgumentParser) -> None:
    modes = parser.add_argument_group("instead of the table").add_mutually_exclusive_group()
    modes.add_argument(
        "--busy",
        type=_at_least(1),
        metavar="N",
        help="time each engine alone and beside N processes that keep a core busy; how much slower does it get?",
    )
    modes.add_argument(
        "--scaling",
        action="store_true",
        help="time per step against hidden size, batch size, length and threads, with a picture",
    )


def _add_what(what: argparse._ArgumentGroup) -> None:
    what.add_argument("--cells", type=_cells, default=CELLS, metavar="LIST", help=f"default: {','.join(CELLS)}")
    what.add_argument(
        "--device",
        choices=DEVICES,
        default="cpu",
        help="where both engines run; on cuda the table alone, without peers; default: cpu",
    )
    what.add_argument(
        "--shapes",
        type=_shapes,
        default=None,
        metavar="LIST",
        help=f"BxTxH, BxTxIxH (batch, time, input, hidden) or {', '.join(SHAPE_NAMES)}; default: standard or cuda",
    )
    what.add_argument(
        "--dtype", type=_dtypes, default=("float32",), metavar="LIST", help=f"of {', '.join(DTYPES)}; default: float32"
    )
    what.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="highest",
        help="torch.set_float32_matmul_precision in fastrnn's process; torch.nn's stays at highest",
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
    what.add_argument(
        "--peers",
        type=_peers,
        nargs="?",
        const=ALL_PEERS,
        default=(),
        metavar="LIST",
        help="other libraries too, float32: onnxruntime, openvino (forward), jax; without LIST all that are installed",
    )
    what.add_argument("--no-steps", action="store_true", help="leave out the single steps")
    what.add_argument("--list", action="store_true", help="list the rows and leave")


def _add_how(how: argparse._ArgumentGroup) -> None:
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
