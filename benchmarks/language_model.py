"""Train the language model with fastrnn and with torch.nn over several seeds: validation loss, and time.

Every run is a `fastrnn train` in a process of its own, one at a time; the engines take turns, and the order changes
with the seed. Both start with the same weights and read the same data. Prints a table and writes JSON. Arguments after
``--`` are passed to `fastrnn train`::

    python benchmarks/language_model.py --out bench-out/lm.json book.txt -- --hidden 512 --dropout 0.3 --steps 2000

The speed-up is that of whole runs without start and validation: torch.nn's seconds per unit of text over fastrnn's, the
median over the seeds, whose two runs follow each other.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ENGINES = ("fastrnn", "torch")


def run(engine: str, seed: int, text: Path | None, options: list[str], out: Path) -> dict[str, Any]:
    """Train once; return the validation losses by step and the median speed in units of text per second."""
    command = [sys.executable, "-m", "fastrnn", "train", *([str(text)] if text else []), *options]
    command += ["--engine", engine, "--seed", str(seed), "--out", str(out), "--sample-every", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
    with open(out / "log.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    validation = {int(r["step"]): float(r["validation_loss"]) for r in rows if r["validation_loss"]}
    speeds = [float(r["characters_per_second"]) for r in rows if r["characters_per_second"]]
    return {
        "engine": engine,
        "seed": seed,
        "validation": validation,
        "best": min(validation.values()),
        "last": validation[max(validation)],
        "characters": int(rows[-1]["characters"]),
        "seconds": float(rows[-1]["seconds"]),
        "characters_per_second": statistics.median(speeds),
        "speeds": speeds,
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare the engines over the seeds for which both have run."""
    by_engine = {engine: {r["seed"]: r for r in runs if r["engine"] == engine} for engine in ENGINES}
    seeds = [seed for seed in by_engine["fastrnn"] if seed in by_engine["torch"]]
    found: dict[str, Any] = {"seeds": seeds}
    for engine, one in by_engine.items():
        for which in ("best", "last"):
            losses = [one[seed][which] for seed in seeds]
            deviation = statistics.stdev(losses) if len(losses) > 1 else None
            found[f"{engine}_{which}"] = {"mean": statistics.mean(losses), "deviation": deviation}
    ratios = [
        by_engine["fastrnn"][seed]["characters_per_second"] / by_engine["torch"][seed]["characters_per_second"]
        for seed in seeds
    ]
    found["speedup"] = {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
    return found


def table(runs: list[dict[str, Any]]) -> str:
    lines = ["| seed | engine | validation, best | last (nats) | characters/s |", "|---:|---|---:|---:|---:|"]
    for r in runs:
        numbers = f"{r['best']:.4f} | {r['last']:.4f} | {r['characters_per_second']:,.0f}"
        lines.append(f"| {r['seed']} | {r['engine']} | {numbers} |")
    return "\n".join(lines)


def main() -> int:
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, nargs="?", help="text file (default: that of fastrnn train)")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated (default: 0,1,2)")
    parser.add_argument("--out", type=Path, default=Path("bench-out/language-model.json"), help="output file")
    arguments, options = parser.parse_args(given[:cut]), given[cut + 1 :]
    from fastrnn.apps.bench import environment

    about = {"name": arguments.text.name, "bytes": arguments.text.stat().st_size} if arguments.text else None
    result: dict[str, Any] = {"environment": environment.collect(), "text": about, "options": options, "runs": []}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(int(s) for s in arguments.seeds.split(",")):
        for engine in ENGINES[:: -1 if number % 2 else 1]:
            with tempfile.TemporaryDirectory() as folder:
                result["runs"].append(run(engine, seed, arguments.text, options, Path(folder)))
            print(table(result["runs"][-1:]).splitlines()[-1], file=sys.stderr, flush=True)
        result["summary"] = summary(result["runs"])
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result["runs"]))
    print(json.dumps(result["summary"], indent=1))
    print(environment.describe(result["environment"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
