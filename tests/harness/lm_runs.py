"""Tiny language models for the tests: options, runs in processes of their own, and the contents of their logs."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fastrnn.apps import lm
from fastrnn.apps.lm import checkpoint

#: Columns that depend on the clock.
CLOCK = ("characters_per_second", "seconds")
WORDS = ("and", "the cell", "forgets", "état", "→", "a gate", "naïve", "opens", "∂L/∂h", "\n")


def write_text(path: Path, words: int = 900) -> Path:
    """Write a text with characters of one, two and three bytes."""
    found, value = [], 1
    for _ in range(words):
        value = value * 1103515245 + 12345 & 0x7FFFFFFF
        found.append(WORDS[(value >> 16) % len(WORDS)])
    path.write_text(" ".join(found), encoding="utf-8")
    return path


def tiny(folder: Path, **changes: Any) -> lm.Options:
    """Return the options of a run with steps of a few milliseconds, which writes its files to ``folder/run``."""
    text = folder / "text.txt"
    if not text.is_file():
        write_text(text)
    values: dict[str, Any] = {
        "file": str(text),
        "out": str(folder / "run"),
        "hidden": 9,
        "embedding": 7,
        "batch": 4,
        "truncation": 11,
        "steps": 12,
        "log_every": 1,
        "validate_every": 5,
        "validation_chunks": 2,
        "sample_every": 0,
        "checkpoint_every": 3,
        "threads": 1,
    }
    return lm.Options(**(values | changes))


def arguments(options: lm.Options) -> list[str]:
    """Format the options as arguments of ``fastrnn train``."""
    found = []
    for name, value in options.as_dict().items():
        if name == "file" or value is None:
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            found.append(f"--{option}" if value else f"--no-{option}")
        else:
            found += [f"--{option}", str(value)]
    return [*found, str(options.file)]


def start(*args: str, processes: int = 1) -> subprocess.Popen[str]:
    """Start ``fastrnn`` with these arguments, in one process or more."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m"]
    if processes > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    return subprocess.Popen(
        [*command, "fastrnn", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for_rows(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until the log has that many rows."""
    end = time.monotonic() + 120
    path = folder / "log.csv"
    while not path.is_file() or path.read_bytes().count(b"\n") < count + 1:
        if process.poll() is not None or time.monotonic() > end:
            process.kill()
            raise AssertionError("no such row: " + "".join(process.communicate()))
        time.sleep(0.005)


def rows(folder: Path) -> list[dict[str, str]]:
    """Return the log, without the columns that depend on the clock."""
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if name not in CLOCK} for row in csv.DictReader(file)]


def losses(folder: Path) -> list[float]:
    """Return the column ``loss``, where it has a value."""
    return [float(row["loss"]) for row in rows(folder) if row["loss"]]


def save(content, path):
    """Write a valid file with other content."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    path.write_bytes(checkpoint.sealed(buffer.getvalue()))
