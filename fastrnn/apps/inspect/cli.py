"""``fastrnn inspect`` and ``fastrnn gradflow``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from fastrnn.apps.command import guarded
from fastrnn.apps.inspect.reading import Track, read
from fastrnn.apps.lm.errors import CheckpointError
from fastrnn.apps.lm.model import LanguageModel
from fastrnn.apps.lm.sampling import load

#: Arguments named in errors, besides TEXT.
_NAMED = (
    *("unit", "begin", "limit", "top", "ranks", "syntax", "max_bytes", "threads"),
    *("cell", "init", "steps", "hidden", "inputs", "batch", "batches", "clip", "seed"),
)


def run_inspect(args: argparse.Namespace) -> int:
    """Write the page; return the exit status."""
    return _guarded("inspect", lambda: _inspect(args))


def run_gradflow(args: argparse.Namespace) -> int:
    """Write the figure; return the exit status."""
    return _guarded("gradflow", lambda: _gradflow(args))


def _guarded(command: str, run: Callable[[], int]) -> int:
    options = {name: "--" + name.replace("_", "-") for name in _NAMED} | {"text": "TEXT"}
    return guarded(command, run, options, (CheckpointError, ImportError, OSError))


def _threads(count: int) -> None:
    import torch

    if count < 1:
        raise ValueError(f"threads: expected at least 1, got {count}")
    torch.set_num_threads(count)


def _track(text: str) -> Track:
    layer, name, unit = text.split(":") if text.count(":") == 2 else ("", "", "")
    if not (layer.isdecimal() and unit.isdecimal() and int(layer) and int(unit)):
        raise ValueError(f"unit: expected LAYER:NAME:UNIT as in 2:c:17, counted from 1, got {text!r}")
    return Track(int(layer) - 1, name, int(unit) - 1)


def _text(model: LanguageModel, path: str, begin: int, limit: int | None) -> tuple[str | bytes, bool]:
    """Return the requested part of a file, in the model's units, and True if more text follows."""
    if begin < 0:
        raise ValueError(f"begin: expected at least 0, got {begin}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit: expected at least 1, got {limit}")
    if not Path(path).is_file():
        raise ValueError(f"text: expected a text file, got {path!r}, which is not a file")
    if model.vocabulary.unit == "byte":
        with open(path, "rb") as binary:
            binary.seek(begin)
            return binary.read(-1 if limit is None else limit), bool(binary.read(1))
    try:
        with open(path, encoding="utf-8", newline="") as file:
            file.read(begin)
            return file.read(-1 if limit is None else limit), bool(file.read(1))
    except UnicodeDecodeError as error:
        raise ValueError(f"text: expected UTF-8 in {path}: {error}") from None


def _inspect(args: argparse.Namespace) -> int:
    from fastrnn.apps.inspect.page import as_html, byte_symbol
    from fastrnn.apps.lm.checkpoint import newest
    from fastrnn.apps.lm.vocabulary import Characters

    _threads(args.threads)
    for name in ("ranks", "max_bytes"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(args, name)}")
    wanted = [_track(text) for text in args.unit]
    model = load(args.checkpoint)
    options, vocabulary = model.options, model.vocabulary
    text, more = _text(model, args.text, args.begin, args.limit)
    if not text and not args.begin:
        raise ValueError(f"text: expected some text, got {args.text}, which is empty")
    if not text:
        raise ValueError(f"begin: expected less than the length of {args.text} in {vocabulary.units}, got {args.begin}")
    reading = read(model, text, top=args.top, syntax=args.syntax)
    symbols = vocabulary.characters.__getitem__ if isinstance(vocabulary, Characters) else byte_symbol
    part = f"{vocabulary.units} {args.begin + 1:,} to {args.begin + len(text):,}" if more or args.begin else "all"
    what = f"{part} of {Path(args.text).name}"
    about = f"{options.cell} {options.layers}×{options.hidden} ({newest(args.checkpoint).name}) reads {what}"
    page = as_html(reading, about, tracks=wanted, symbols=symbols, ranks=args.ranks, max_bytes=args.max_bytes).encode(
        "utf-8"
    )
    Path(args.out).write_bytes(page)
    bits = float(reading.bits[1:].mean()) if reading.steps > 1 else float("nan")
    cost = f"{bits:.3f} bits per {vocabulary.unit}"
    print(f"{args.out} ({len(page):,} bytes): {len(text):,} {vocabulary.units} of text, {cost}")
    if len(page) > args.max_bytes:
        print(
            f"larger than --max-bytes {args.max_bytes}: the text, its predictions and one unit need this much; use "
            "--limit for less text"
        )
    if more:
        print(f"more text follows; continue with --begin {args.begin + len(text)}, or use --limit for more")
    return 0


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _gradflow(args: argparse.Namespace) -> int:
    from fastrnn.apps.inspect.checkpoint import of_checkpoint
    from fastrnn.apps.inspect.figure import save
    from fastrnn.apps.lm.checkpoint import newest
    from fastrnn.inspect.gradflow import compare

    _threads(args.threads)
    sizes = {"steps": args.steps, "batch": args.batch, "batches": args.batches}
    runs = []
    if args.checkpoint is not None:
        if args.text is None:
            raise ValueError("text: expected a text file for the checkpoint to read, got none")
        model = load(args.checkpoint)
        text, _ = _text(model, args.text, 0, 10_000_000)
        name = newest(args.checkpoint).name
        runs.append(of_checkpoint(args.checkpoint, text, clip=args.clip, name=name, **sizes))
    cells = args.cell or ("" if runs else "lstm")
    if cells:
        more = {"hidden": args.hidden, "inputs": args.inputs, "clip": 1.0 if args.clip is None else args.clip}
        runs += compare(_names(cells), _names(args.init), seed=args.seed, **sizes, **more)
    out = Path(args.out)
    numbers = out.with_name(out.name + ".json")
    numbers.write_text(json.dumps([run.as_dict() for run in runs]) + "\n", encoding="utf-8")
    print(f"{numbers}: the numbers")
    paths = [out.with_name(out.name + suffix) for suffix in (".png", ".svg")]
    save(runs, paths, args.dark)
    print(f"{paths[0]}, {paths[1]}: the figure")
    for run in runs:
        for state, norms in run.norms.items():
            ends = f"{norms[0]:.3g} at the last step and {norms[-1]:.3g} at lag {len(norms) - 1}"
            print(f"{run.label}: ‖∂L/∂{state}‖ is {ends}")
    return 0
