"""A process that checks cases, one a line of JSON, so that a crash ends it and not the fuzzer.

`python -m tests.fuzz.worker differential` answers each line with one line: a list of what is wrong.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import importlib
import json
import os
import signal
import sys
import traceback
from typing import IO, NoReturn

FINISHED, FRESH = 100, 101  # exit statuses of a child: no more input; to be replaced


def check(target: str, record: dict) -> list[str]:
    """What is wrong with the case of a record, an error of the check itself included."""
    fuzzer = importlib.import_module(f"{__package__}.{target}")
    try:
        return fuzzer.check(fuzzer.Case(**record))
    except Exception:
        return [f"the check failed: {traceback.format_exc(limit=-6)}"]


def serve(target: str) -> None:
    """Answer cases in a child process; make a new child of this one, which has only imported, when it ends.

    A line that is not a record ends the child without an answer: the next case meets a fresh process.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed does not mix with answers
    faulthandler.enable()
    importlib.import_module(f"{__package__}.{target}")
    while True:
        child = os.fork()
        if child == 0:
            _serve_in_child(target, answers)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == FINISHED:
            return
        if code != FRESH:
            name = signal.Signals(-code).name if code < 0 else f"exit status {code}"
            print(json.dumps([f"crash: {name}"]), file=answers, flush=True)


def _serve_in_child(target: str, answers: IO[str]) -> NoReturn:
    lines = open(0, "rb", buffering=0)  # noqa: SIM115 - unbuffered: the next child reads on where this one ends
    for line in lines:
        if not line.strip():
            os._exit(FRESH)
        print(json.dumps(check(target, json.loads(line))), file=answers, flush=True)
    os._exit(FINISHED)


def as_record(case) -> dict:
    """The fields of a case that differ from their defaults."""
    return {f.name: getattr(case, f.name) for f in dataclasses.fields(case) if getattr(case, f.name) != f.default}


if __name__ == "__main__":
    serve(sys.argv[1])
