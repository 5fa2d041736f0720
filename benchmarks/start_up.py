"""Time `import fastrnn` and `import torch`, and `fastrnn --help`: python benchmarks/start_up.py

Medians; each runs in processes of its own, in turns. The command must be installed.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 9
COMMAND = str(Path(sys.executable).with_name("fastrnn"))
PROGRAMS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "import fastrnn": [sys.executable, "-c", "import fastrnn"],
    "fastrnn --help": [COMMAND, "--help"],
    "fastrnn bench --help": [COMMAND, "bench", "--help"],
    "fastrnn train --nonesuch": [COMMAND, "train", "--nonesuch"],
}


def seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, capture_output=True, check=False)
    return time.perf_counter() - begin


def main() -> None:
    times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for _ in range(ROUNDS + 1):  # the first one fills the file cache
        for name, command in PROGRAMS.items():
            times[name].append(seconds(command))
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    for name, median in medians.items():
        print(f"{name:<26}{median:6.2f} s")
    print(f"fastrnn adds {medians['import fastrnn'] - medians['import torch']:.2f} s to torch")


if __name__ == "__main__":
    main()
