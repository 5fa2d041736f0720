"""Shows a build as one line for each unit, by name and count; what the compiler says only if the build fails."""

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import PurePath

# Ninja's line for a step, whose description is the command: "[3/37] c++ … -c /…/avx2_lstm.cpp -o …".
_STEP = re.compile(rb"^\[(\d+/\d+)\] (.*)$", re.DOTALL)
_SOURCE = re.compile(r"\s(?:-c|--cuda|-x\s+cu|-dc)\s+(\S+\.(?:cpp|cu|cc|c))")


def unit_of(command: str) -> str:
    """The name of the unit that a command compiles: its source, without folders and suffix."""
    found = _SOURCE.search(f" {command}")
    return PurePath(found[1]).stem if found else ""


class Progress:
    """Reads the output of a build line by line.

    Attributes:
        kept: what was no step, such as errors of the compiler: for a build that fails.
    """

    def __init__(self, show: Callable[[str], None]) -> None:
        self.show, self.kept = show, b""

    def line(self, text: bytes) -> None:
        step = _STEP.match(text.strip())
        unit = unit_of(step[2].decode(errors="replace")) if step else ""
        if step and unit:
            self.show(f"[{step[1].decode()}] {unit}\n")
        elif not step:
            self.kept += text


@contextlib.contextmanager
def only_progress() -> Iterator[Progress]:
    """Replace all that this process and its children write by one line for each unit; if an exception passes through,
    the rest follows on standard error.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    screen, errors = os.dup(1), os.dup(2)
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(writer)
    progress = Progress(lambda text: _write(screen, text.encode()))
    thread = threading.Thread(target=_read, args=(reader, progress))
    thread.start()
    failed = True
    try:
        yield progress
        failed = False
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(screen, 1)
        os.dup2(errors, 2)  # with these the pipe has no writer, and the thread comes to its end
        thread.join()
        if failed:
            _write(errors, progress.kept)
        os.close(screen)
        os.close(errors)


def _read(reader: int, progress: Progress) -> None:
    with open(reader, "rb") as lines:
        for text in lines:
            progress.line(text)


def _write(descriptor: int, text: bytes) -> None:
    while text:
        text = text[os.write(descriptor, text) :]
