"""The short table at the end of gpu_check.sh: ``gpu_summary.py FOLDER``. Exit status 1 if a row of a table is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FIGURES = ("counter barrier", "counter exchange", "grid.sync", "cluster barrier", "cluster exchange", "launch")


def read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def barriers(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['gpu']}, {found['multiprocessors']} multiprocessors; microseconds:", ""]
    lines += ["| | blocks | bytes | µs |", "|---|---:|---:|---:|"]
    for figure in found["figures"]:
        if figure["name"].startswith(FIGURES) and figure["bytes"] in (0, 32768):
            lines.append(
                f"| {figure['name']} | {figure['blocks']} | {figure['bytes']} | {figure['microseconds']:.2f} |"
            )
    return lines


def bench(found: dict[str, Any]) -> list[str]:
    """Geometric means of speed-ups against torch.nn, by number format and cell."""
    groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for one in found["summary"]:
        if one.get("against", "baseline") != "baseline":
            continue
        groups.setdefault((one["dtype"], one["cell"]), {})[one["metric"]] = one
    lines = ["| | rows | training | forward | backward | inference |", "|---|---:|---:|---:|---:|---:|"]
    for (dtype, cell), metrics in groups.items():
        total = metrics["total"]
        cells = [
            f"{metrics[name]['mean']:.2f}× ({metrics[name]['lowest']:.2f}–{metrics[name]['highest']:.2f})"
            for name in ("total", "forward", "backward", "inference")
        ]
        lines.append(f"| {cell} {dtype} | {total['rows']}/{total['of']} | {' | '.join(cells)} |")
    return lines + [f"- {problem}" for problem in found["problems"][:20]]


def main(folder: Path) -> int:
    wrong = False
    found = read(folder / "barriers.json")
    if found:
        print("\n".join(["", "## Barriers", "", *barriers(found)]))
    for name, title in (("bench", "cuDNN's standard algorithm"), ("bench-float16", "where cuDNN is persistent")):
        found = read(folder / f"{name}.json")
        if found:
            part = "" if found["complete"] else ", as many rows as time allowed"
            print("\n".join(["", f"## fastrnn against torch.nn: {title}{part}", "", *bench(found)]))
            wrong = wrong or bool(found["problems"])
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
