"""A process that checks cases, one a line of JSON, so that a crash ends it and not the fuzzer.

`python -m tests.fuzz.worker differential` answers each line with one line: a list of what is wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import sys
import traceback


def check(target: str, record: dict) -> list[str]:
    """What is wrong with the case of a record, an error of the check itself included."""
    fuzzer = importlib.import_module(f"{__package__}.{target}")
    try:
        return fuzzer.check(fuzzer.Case(**record))
    except Exception:
        return [f"the check failed: {traceback.format_exc(limit=-6)}"]


def serve(target: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed does not mix with answers
    with contextlib.suppress(ImportError):
        import faulthandler

        faulthandler.enable()
    for line in sys.stdin:
        print(json.dumps(check(target, json.loads(line))), file=answers, flush=True)


def as_record(case) -> dict:
    """The fields of a case that differ from their defaults."""
    return {f.name: getattr(case, f.name) for f in dataclasses.fields(case) if getattr(case, f.name) != f.default}


if __name__ == "__main__":
    serve(sys.argv[1])
