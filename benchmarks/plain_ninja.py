"""Runs a build.ninja, for a machine without ninja: ``plain_ninja.py [-v] [-j JOBS] [-C FOLDER]``.

Everything is built, whether or not it is up to date. Knows what torch and tools/native_build.py write and no more:
variables, rules with a command, and ``build OUT: RULE IN | NEEDED`` with variables of its own.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

VERSION = "1.13.0"


class Step(NamedTuple):
    output: str
    rule: str
    inputs: str
    needed: str  # what has to be there besides
    variables: dict[str, str]


def read(text: str) -> tuple[dict[str, str], dict[str, str], list[Step]]:
    """Variables, commands by rule, and all steps."""
    variables: dict[str, str] = {}
    commands: dict[str, str] = {}
    builds: list[Step] = []
    rule = ""
    for line in re.sub(r"\$\n\s*", "", text).splitlines():
        if line.startswith("rule "):
            rule = line.split()[1]
        elif line.startswith("  command = "):
            commands[rule] = line.partition(" = ")[2]
        elif line.startswith("build "):
            found = re.fullmatch(r"build (.+?): (\w+) (.+?)(?: \| (.+))?", line)
            if found is None:
                raise ValueError(f"expected 'build OUT: RULE IN', found {line!r}")
            builds.append(Step(found[1], found[2], found[3], found[4] or "", {}))
            rule = ""
        elif line.startswith("  ") and builds and not rule:
            name, _, value = line.partition("=")
            builds[-1].variables[name.strip()] = value.strip()
        elif re.match(r"\w+ =", line):
            name, _, value = line.partition("=")
            variables[name.strip()] = value.strip()
    return variables, commands, builds


def expand(text: str, variables: dict[str, str]) -> str:
    """Replace ``$name`` and ``$$``; a variable that is not defined is empty."""
    return re.sub(r"\$(\$|\w+)", lambda m: "$" if m[1] == "$" else expand(variables.get(m[1], ""), variables), text)


def in_order(builds: list[Step]) -> list[list[Step]]:
    """Groups of steps, each of which needs nothing but the groups before it."""
    groups: list[list[Step]] = []
    left = list(builds)
    while left:
        outputs = {step.output for step in left}
        ready = [step for step in left if not outputs & {*step.inputs.split(), *step.needed.split()}]
        if not ready:
            raise ValueError(f"{left[0].output} needs itself")
        groups.append(ready)
        left = [step for step in left if step not in ready]
    return groups


def main(arguments: list[str]) -> int:
    if "--version" in arguments:
        print(VERSION)
        return 0
    jobs = int(arguments[arguments.index("-j") + 1]) if "-j" in arguments else None
    if "-C" in arguments:
        os.chdir(arguments[arguments.index("-C") + 1])
    variables, commands, builds = read(Path("build.ninja").read_text(encoding="utf-8"))

    def run(step: Step) -> int:
        Path(step.output).parent.mkdir(parents=True, exist_ok=True)
        own = {**variables, **step.variables, "out": step.output, "in": step.inputs}
        command = expand(commands[step.rule], own)
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        print(f"{command}\n{done.stdout}{done.stderr}", flush=True)
        return done.returncode

    with ThreadPoolExecutor(jobs) as pool:
        for group in in_order(builds):
            status = max(pool.map(run, group))
            if status != 0:
                return status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
