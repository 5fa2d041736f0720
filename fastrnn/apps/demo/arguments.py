"""Command-line options of ``fastrnn demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = (
    "Check three layers against torch.nn and time them, then a custom cell against itself as a loop in PyTorch; "
    "draw a figure. Takes less than a minute. Exit status: 0 if all went well, 1 if a check failed, 3 if times are "
    "unreliable."
)
PICTURES = (".png", ".svg", ".pdf")


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in PICTURES or path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file name ending in {', '.join(PICTURES)}, got {text!r}")
    return path


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``fastrnn demo``."""
    parser.description = DESCRIPTION
    picture = "file for the figure, if matplotlib is installed; default: fastrnn-demo.png"
    parser.add_argument("--picture", type=_picture, default=Path("fastrnn-demo.png"), metavar="PATH", help=picture)
    parser.add_argument("--threads", type=_positive, metavar="N", help="default: that of torch, 1 under load")
