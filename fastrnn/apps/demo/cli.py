"""``fastrnn demo``, from options to terminal output and a figure."""

from __future__ import annotations

import argparse
import inspect
import itertools
import os
from collections.abc import Iterable, Sequence

import torch
from rich.console import Console
from rich.markup import escape

from fastrnn.apps.bench import environment
from fastrnn.apps.bench.cli import UNTRUSTED_STATUS
from fastrnn.apps.bench.report import format_seconds, multiply_signs
from fastrnn.apps.demo import comparisons, picture
from fastrnn.apps.demo.comparisons import Comparison

BAR = 36  # columns of the longer bar


def run(args: argparse.Namespace) -> int:
    """Measure, print and draw; return the exit status."""
    console = Console(highlight=False)
    threads = threads_of(args.threads)
    if threads is not None:
        torch.set_num_threads(threads)
    console.print("[bold]fastrnn[/bold]: training steps, forward and backward, in float32")
    console.print(escape(environment.describe(environment.collect())), style="dim")
    if threads != args.threads:
        console.print("one thread, because this machine is under load", style="dim")
    console.print()
    compared = list(_shown(console, comparisons.layers(threads)))
    console.print("[bold]A custom cell[/bold], a few lines of Python compiled to fused kernels:")
    console.print(escape(_source()), style="cyan")
    compared += _shown(console, [comparisons.cell()])
    return _end(console, compared, args)


def threads_of(wanted: int | None) -> int | None:
    """Choose one thread by default if the machine is under load: several would wait for each other."""
    if wanted is not None or not hasattr(os, "getloadavg"):
        return wanted
    return 1 if os.getloadavg()[0] > (os.cpu_count() or 1) / 2 else None


def _source() -> str:
    """Return the cell's source without docstring and annotations."""
    text = inspect.getsource(comparisons.one_state.step)
    lines = text.replace(": Any", "").replace(" -> Any", "").splitlines()
    quoted = [k for k, line in enumerate(lines) if '"""' in line]
    return "\n".join(f"    {line}" for line in (*lines[: quoted[0]], *lines[quoted[-1] + 1 :]))


def _shown(console: Console, comparisons: Iterable[Comparison]) -> Iterable[Comparison]:
    for one in comparisons:
        for line in lines_of(one):
            console.print(line)
        console.print()
        yield one


def lines_of(one: Comparison) -> list[str]:
    """Format a comparison for the terminal: parity and two bars."""
    parity = "" if one.error is None else f"  largest error against float64 {one.error:.1f} times that of {one.other}"
    head = f"[bold]{escape(multiply_signs(one.name))}[/bold]{parity}"
    if one.seconds is None:
        return [head, f"  [red]{escape(one.problem)}[/red]"]
    slow, fast = one.seconds
    longest, width = max(one.seconds), max(len(one.other), len("fastrnn"))
    bars = ["█" * max(1, round(BAR * s / longest)) for s in one.seconds]
    ratio = f"[bold]{slow / fast:.1f}×[/bold]{' (doubtful)' if one.doubts else ''}"
    return [
        head,
        f"  {one.other:>{width}} [bright_black]{bars[0]}[/bright_black] {format_seconds(slow)}",
        f"  {'fastrnn':>{width}} [blue]{bars[1]}[/blue] {format_seconds(fast)}  {ratio}",
    ]


def _end(console: Console, compared: Sequence[Comparison], args: argparse.Namespace) -> int:
    doubts = list(itertools.chain.from_iterable(one.doubts for one in compared))
    if doubts:
        console.print(f"The times are unreliable: {escape('; '.join(dict.fromkeys(doubts)))}.", style="bold red")
    if picture.available():
        picture.save(compared, args.picture)
        console.print(f"figure: {escape(str(args.picture))}", soft_wrap=True)
    else:
        console.print("no figure: matplotlib is not installed")
    console.print("more: fastrnn bench, fastrnn --help; in a checkout docs/write-your-own-cell.md")
    if any(one.error is not None and one.seconds is None for one in compared):
        return 1
    return UNTRUSTED_STATUS if doubts else 0
