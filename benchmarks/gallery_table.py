"""Write docs/cells.md from the gallery: ``python benchmarks/gallery_table.py``."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "cells.md"
RESULTS = ROOT / "benchmarks" / "results"
NOTHING = "–"

TEXT = """\
# The gallery

Cells of the literature, each a few lines in [fastrnn/gallery/](../fastrnn/gallery/__init__.py). The docstring of each
names the paper, the shapes and the initialisation: [all of them](reference/gallery.md). Import the gallery with `from
fastrnn import gallery` (`import fastrnn` is not enough). `gallery.nas(input_size, hidden_size)` is a network;
`gallery.CELLS` has all cells by name. [Write your own cell](write-your-own-cell.md) explains how they are made.

In the equations, `*` is element-wise, σ is the sigmoid, and a prime marks a new value: h' is the new h. `k~` stands for
W_k·x + b_k + R_k·h + b_rk, for a gate k; in `nas`, `ak` is W_k·x + b_k and `mk` is R_k·h + b_rk. Where W, R and b have
no index, every gate has its own. LN(v; g, b) is layer normalisation of v with gain g and shift b. In `zoneout_lstm` and
`recurrent_dropout_lstm`, k, k_c and k_h are random masks; in `rate_noisy`, ξ is normally distributed noise and σ its
size. "Operations" is the number of element-wise multiply-adds for each unit and time step in the generated kernels,
forward + backward. It does not include the recurrent products, which need H multiply-adds for each gate with a matrix
R.

{measured}

{table}

This file is generated from the docstrings and from the figures of `benchmarks/cells.py`:
`python benchmarks/gallery_table.py`.
"""


def equations(doc: str) -> str:
    """Return the indented lines of a docstring's first block, joined."""
    found = re.search(r"(?:^ {8,}\S.*\n)+", doc, re.MULTILINE)
    if found is None:
        raise ValueError(f"no equations in {doc.splitlines()[0]!r}")
    return "; ".join(line.strip() for line in found[0].splitlines())


def operations(cell: Any) -> str:
    found = re.search(r"multiply-adds: (\d+) forward, (\d+) backward", cell.explain())
    return f"{found[1]} + {found[2]}" if found else NOTHING


def newest() -> dict[str, Any] | None:
    """Return the latest results of benchmarks/cells.py."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*cells*.json")]
    return max(found, key=lambda result: result["environment"]["date"], default=None)


def ratio(row: dict[str, Any] | None) -> str:
    """Format the speed-up over the loop, and over the better variant of torch.compile; *: of the step alone."""
    if row is None:
        return NOTHING
    speedups = {name: value["median"] for name, value in row["speedup"].items() if value}
    compiled = [value for name, value in speedups.items() if name.startswith("compiled")]
    text = " / ".join(f"{v:.2f}×" if v else NOTHING for v in (speedups.get("loop"), min(compiled, default=None)))
    return text + "*" * (bool(compiled) and "compiled" not in speedups)


def render() -> str:
    from fastrnn.apps.bench.environment import describe
    from fastrnn.gallery import CELLS

    result = newest()
    rows = {(row["cell"], tuple(row["shape"])): row for row in result["rows"]} if result else {}
    shapes = sorted({shape for _, shape in rows}) or [None]
    titles = [f"{'×'.join(map(str, shape))}" if shape else "measured" for shape in shapes]
    lines = ["| Cell | Equations | States | Gates | Parameters | Operations | " + " | ".join(titles) + " |"]
    lines.append("|---|---|---|---|---|---|" + "---|" * len(titles))
    for name, cell in CELLS.items():
        cells = [f"`{name}`", f"`{equations(cell.__doc__ or '')}`", " ".join(cell.states)]
        gates = " ".join(cell.gates)
        cells += [gates, " ".join(cell.parameters) or NOTHING, operations(cell)]
        cells += [ratio(rows.get((name, shape))) for shape in shapes]
        lines.append("| " + " | ".join(cells) + " |")
    measured = "There are no measured figures yet: `python benchmarks/cells.py`."
    if result:
        measured = textwrap.fill(
            "The last columns, one for each shape B×T×H, give two speed-ups in training (float32): over a loop in "
            "PyTorch and, after the slash, over the same loop with torch.compile. For the second, either the whole "
            "loop or only its step is compiled, and the faster one counts. With a *, only the step was compiled, as "
            "torch.compile takes minutes for a whole loop. A dash means not measured. Machine: "
            f"{describe(result['environment'])}.",
            120,
        )
    return TEXT.format(table="\n".join(lines), measured=measured)


def main() -> None:
    TARGET.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
