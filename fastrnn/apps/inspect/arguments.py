"""Command-line options of ``fastrnn inspect`` and ``fastrnn gradflow``."""

from __future__ import annotations

import argparse

#: `fastrnn.inspect.features.SYNTAXES`, whose module would import torch.
SYNTAXES = ("auto", "python", "c", "text")
INITIALISATIONS = (
    "default: the module's own; orthogonal:X: every recurrent matrix X times a random orthogonal one (default X: 1), "
    "whose eigenvalues all have modulus X; identity:X: X times the identity, zero biases (Le et al. 2015); np_rnn "
    "(Talathi and Vartak 2015); forget:X: the module's own with forget gate bias X (default: 1); chrono:X: gate biases "
    "for memory lengths up to X steps (default: 100; Tallec and Ollivier 2018)"
)
CHECKPOINT = "a checkpoint file, or a folder, whose newest checkpoint is used"

INSPECT = (
    "Write a self-contained web page that shows how a language model of fastrnn train reads a text: coloured by a "
    "unit's state or gate, with the units that track quotes, comments, indentation, …, the saturation of the gates, "
    "and the predictions at each place. Exit status: 0; 1 if the checkpoint cannot be read or the page cannot be "
    "written; 2 for wrong arguments or a missing text."
)
GRADFLOW = (
    "Draw the flow of gradients back through time: their norms against the lag, by time step and by unit, "
    "eigenvalues of R and of a step's Jacobian, and the effect of clipping; for new networks, or for a checkpoint of "
    "fastrnn train on a text. Writes PNG, SVG and the numbers as JSON. Exit status: 0; 1 if the checkpoint cannot be "
    "read, a file cannot be written, or matplotlib is missing (the JSON file is still written); 2 for wrong arguments "
    "or a missing text."
)


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fastrnn.apps.inspect.read` and `as_html`."""
    parser.description = INSPECT
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=CHECKPOINT)
    parser.add_argument("text", metavar="TEXT", help="the file to read")
    parser.add_argument("--out", default="inspect.html", metavar="FILE", help="the page (default: inspect.html)")
    parser.add_argument(
        "--unit",
        action="append",
        default=[],
        metavar="LAYER:NAME:UNIT",
        help="include this unit whatever it tracks, as in 2:c:17: layer and unit count from 1, NAME is a state or "
        "gate; may be repeated, the first unit is shown first",
    )
    parser.add_argument("--begin", type=int, default=0, metavar="N", help="bytes or characters to skip (default: 0)")
    limit = "bytes or characters to read (default: 20000)"
    parser.add_argument("--limit", type=int, default=20_000, metavar="N", help=limit)
    parser.add_argument(
        "--top", type=int, default=3, metavar="K", help="most likely next characters shown (default: 3)"
    )
    parser.add_argument("--ranks", type=int, default=5, metavar="N", help="units listed for a feature (default: 5)")
    parser.add_argument("--syntax", choices=SYNTAXES, default="auto", help="syntax of quotes and comments")
    parser.add_argument(
        "--max-bytes", type=int, default=1_000_000, metavar="N", help="limit for the page's size (default: 1000000)"
    )
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")


def add_gradflow_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `fastrnn.inspect.compare` and `fastrnn.apps.inspect.of_checkpoint`."""
    parser.description = GRADFLOW
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT", help=CHECKPOINT)
    parser.add_argument("text", nargs="?", metavar="TEXT", help="a text file for it to read (10 MB at most)")
    parser.add_argument(
        "--cell", metavar="NAMES", help="lstm, gru, rnn_tanh, rnn_relu, cells of the gallery; without checkpoint: lstm"
    )
    parser.add_argument("--init", default="default", metavar="NAMES", help=INITIALISATIONS.replace("%", "%%"))
    parser.add_argument("--steps", type=int, default=100, metavar="T", help="time steps (default: 100)")
    parser.add_argument("--hidden", type=int, default=64, metavar="H", help="hidden units (default: 64)")
    parser.add_argument("--inputs", type=int, default=16, metavar="I", help="input size (default: 16)")
    parser.add_argument("--batch", type=int, default=16, metavar="B", help="batch rows (default: 16)")
    parser.add_argument("--batches", type=int, default=20, metavar="N", help="batches for the norms (default: 20)")
    parser.add_argument(
        "--clip", type=float, metavar="X", help="norm to clip to (default: 1; for a checkpoint as in training)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of weights and input (default: 0)")
    parser.add_argument(
        "--out", default="gradflow", metavar="NAME", help="writes NAME.png, NAME.svg, NAME.json (default: gradflow)"
    )
    parser.add_argument("--dark", action="store_true", help="draw the figure on a dark background")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1)")
