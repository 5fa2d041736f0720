"""A process that checks cases, one per line of JSON; a crash ends it and not the fuzzer.

`python -m tests.fuzz.worker differential` answers each line with one line: a list of problems.
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
    """Return the errors in the case of a record, including an exception of the check itself."""
    fuzzer = importlib.import_module(f"{__package__}.{target}")
    try:
        return fuzzer.check(fuzzer.Case(**record))
    except Exception:
        return [f"the check failed: {traceback.format_exc(limit=-6)}"]


def serve(target: str) -> None:
    """Answer cases in a child process; when it ends, fork another child of this process, which has only imported.

    A line that is not a record ends the child without an answer, so that the next case runs in a fresh process.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # printed text does not mix with answers
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
    """Return the fields of a case that differ from their defaults."""
    return {f.name: getattr(case, f.name) for f in dataclasses.fields(case) if getattr(case, f.name) != f.default}


if __name__ == "__main__":
    serve(sys.argv[1])
