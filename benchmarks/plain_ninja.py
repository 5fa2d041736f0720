"""Run the build.ninja that torch writes, on a machine without ninja: ``plain_ninja.py [-v] [-j JOBS]``.

Compiles everything, whether or not it is up to date. Supports only what torch writes: variables, rules with a
command, and ``build OUT: RULE IN``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

VERSION = "1.13.0"


def read(text: str) -> tuple[dict[str, str], dict[str, str], list[tuple[str, str, str]]]:
    """Return variables, commands by rule, and (output, rule, inputs) of all builds."""
    variables: dict[str, str] = {}
    commands: dict[str, str] = {}
    builds: list[tuple[str, str, str]] = []
    rule = ""
    for line in re.sub(r"\$\n\s*", "", text).splitlines():
        if line.startswith("rule "):
            rule = line.split()[1]
        elif line.startswith("  command = "):
            commands[rule] = line.partition(" = ")[2]
        elif line.startswith("build "):
            found = re.fullmatch(r"build (.+?): (\w+) (.+)", line)
            if found is None:
                raise ValueError(f"expected 'build OUT: RULE IN', got {line!r}")
            builds.append((found.group(1), found.group(2), found.group(3)))
        elif re.match(r"\w+ =", line):
            name, _, value = line.partition("=")
            variables[name.strip()] = value.strip()
    return variables, commands, builds


def expand(text: str, variables: dict[str, str]) -> str:
    """Replace ``$name`` and ``$$``; a variable that is not defined is empty."""
    return re.sub(r"\$(\$|\w+)", lambda m: "$" if m[1] == "$" else expand(variables.get(m[1], ""), variables), text)


def main(arguments: list[str]) -> int:
    if "--version" in arguments:
        print(VERSION)
        return 0
    jobs = int(arguments[arguments.index("-j") + 1]) if "-j" in arguments else None
    variables, commands, builds = read(Path("build.ninja").read_text(encoding="utf-8"))

    def run(build: tuple[str, str, str]) -> int:
        output, rule, inputs = build
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        command = expand(commands[rule], {**variables, "out": output, "in": inputs})
        done = subprocess.run(command, shell=True, capture_output=True, text=True)
        print(f"{command}\n{done.stdout}{done.stderr}", flush=True)
        return done.returncode

    with ThreadPoolExecutor(jobs) as pool:
        return max(pool.map(run, builds), default=0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
