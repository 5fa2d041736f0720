"""Cells of the gallery against the same cells as loops in PyTorch: ``python benchmarks/cells.py --help``.

Training (forward + backward with all gradients) in float32. Engines, each in a process of its own, in turns:

- ``fastrnn``: the network of the cell, with fused kernels;
- ``loop``: one input product, then in each step a recurrent product and the cell's own function, with autograd;
- ``compiled``: that loop under ``torch.compile``, unrolled into one graph;
- ``compiled-step``: the loop in Python, its step under ``torch.compile``.

Compilation is not timed; an engine for which it takes longer than ``--compile-seconds`` is omitted with a note. Before
anything is timed, every engine's outputs and gradients are compared with the loop's in float64, by the rule that
`fastrnn bench` has for other libraries: 4 times the float32 loop's own error plus 16 units in the last place. The
median of three draws of weights and data counts, because in a chaotic network each engine's error is a matter of
chance.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ENGINES = ("fastrnn", "loop", "compiled", "compiled-step")
SHAPES = "1x100x128,16x100x256,64x50x512"
BLOCK_SECONDS = 0.03
DRAWS = 3
METRICS = ("forward", "backward", "total")


class Loop:
    """A network's layer as a loop that one would write by hand, with the network's weights."""

    def __init__(self, network: Any, compiled: str = "") -> None:
        import torch

        self.network = network
        options = {"fullgraph": True, "dynamic": False}
        self.step = torch.compile(self._step, **options) if compiled == "step" else self._step
        self.run = torch.compile(self._run, **options) if compiled == "loop" else self._run

    def _products(self, h: Any, w: Any, b: Any) -> dict[str, Any]:
        """Return the products of h, and functions for other vectors, with one product for all matrices of a vector."""
        import torch.nn.functional as F

        cell, H = self.network.cell, h.shape[-1]
        first, *others = cell.products
        products = dict.fromkeys((*cell.gates, *cell.matrices))
        cut = len(first) * H
        if first:
            products.update(zip(first, F.linear(h, w[:cut], b[:cut]).chunk(len(first), -1), strict=True))
        for group in others:
            rows, made = slice(cut, cut + len(group) * H), []

            def part(k: int, rows: Any = rows, made: Any = made, count: int = len(group)) -> Any:
                def product(vector: Any) -> Any:
                    if not made:
                        made.extend(F.linear(vector, w[rows], b[rows]).chunk(count, -1))
                    return made[k]

                return product

            products.update({name: part(k) for k, name in enumerate(group)})
            cut = rows.stop
        return products

    def _step(self, wx: Any, states: Any, w: Any, b: Any, parameters: Any) -> tuple:
        from fastrnn.custom.trace import CellError, Names

        cell, r = self.network.cell, self._products(states[0], w, b)
        found = [("x", cell.gates, wx.chunk(len(cell.gates), -1)), ("r", tuple(r), list(r.values()))]
        found += [("s", cell.states, states)] + ([("p", cell.parameters, parameters)] if parameters else [])
        new = cell.step(*(Names(*one, CellError) for one in found))
        return new if isinstance(new, tuple) else (new,)

    def _run(self, x: Any, states: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, parameters: Any) -> tuple:
        import torch
        import torch.nn.functional as F

        outputs = []
        for wx in F.linear(x, w_ih, b_ih).unbind():
            states = self.step(wx, states, w_hh, b_hh, parameters)
            outputs.append(states[0])
        return torch.stack(outputs), states

    def __call__(self, x: Any, states: Any) -> tuple:
        n = self.network
        parameters = tuple(getattr(n, f"{name}_l0") for name in n.cell.parameters)
        weights = (n.weight_ih_l0, n.weight_hh_l0, n.bias_ih_l0, n.bias_hh_l0)
        return self.run(x, tuple(s[0] for s in states), *weights, parameters)


class Workload:
    """One cell and shape in one engine, in the form that `fastrnn.apps.bench.process.time_training` times."""

    def __init__(self, engine: str, cell: str, shape: tuple[int, int, int], dtype: str = "float32") -> None:
        import torch

        from fastrnn.gallery import CELLS

        batch, steps, hidden = shape
        self.cell, self.dtype = CELLS[cell], getattr(torch, dtype)
        self.network = self.cell(hidden, hidden).to(self.dtype)

        def empty(*size: int) -> Any:
            return torch.empty(*size, dtype=self.dtype)

        self.data = empty(steps, batch, hidden).requires_grad_()
        self.states = tuple(empty(1, batch, hidden).requires_grad_() for _ in self.cell.states)
        self.gradients = (empty(steps, batch, hidden), *(empty(batch, hidden) for _ in self.cell.states))
        self.draw(1)
        compiled = {"compiled": "loop", "compiled-step": "step"}.get(engine, "")
        self.call = self._fused if engine == "fastrnn" else Loop(self.network, compiled)

    def draw(self, seed: int) -> None:
        """Draw other weights and data into the same tensors; float64 gets the values of float32."""
        import torch

        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed - 1)
        size = self.network.hidden_size
        self.network.load_state_dict(self.cell(size, size).state_dict())
        with torch.no_grad():
            for tensor in (self.data, *self.states, *self.gradients):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            for name, state in zip(self.cell.states, self.states, strict=True):
                if name == "n":  # a normaliser is a sum of positive gates
                    state.copy_(state.abs() + 0.5)

    def _fused(self, x: Any, states: Any) -> tuple:
        y, last = self.network(x, states if len(states) > 1 else states[0], backend="fused")
        return y, tuple(s[0] for s in (last if isinstance(last, tuple) else (last,)))

    def forward(self) -> Any:
        return self.call(self.data, self.states)

    def backward(self, outputs: Any) -> None:
        import torch

        y, states = outputs
        torch.autograd.backward((y, *states), self.gradients)

    def clear_gradients(self) -> None:
        for leaf in (*self.network.parameters(), self.data, *self.states):
            leaf.grad = None

    def draws(self) -> list[dict[str, Any]]:
        """Return `tensors` of several draws, and end with the first draw."""
        found = []
        for seed in range(DRAWS, 0, -1):
            self.draw(seed)
            found.append(self.tensors())
        return found

    def tensors(self) -> dict[str, Any]:
        """Return outputs and gradients by name."""
        self.clear_gradients()
        outputs = self.forward()
        self.backward(outputs)
        y, states = outputs
        named = {"output": y, "grad input": self.data.grad}
        for name, last, first in zip(self.network.cell.states, states, self.states, strict=True):
            named |= {f"{name}_n": last, f"grad {name}_0": first.grad}
        named |= {f"grad {name}": value.grad for name, value in self.network.named_parameters()}
        # The fused kernels return a zero gradient for parameters that the loop never uses.
        return {name: value.detach().numpy().copy() for name, value in named.items() if value is not None}


def serve(connection: Any, engine: str, threads: int | None) -> None:
    """Serve an engine in its process: (command, arguments) → (ok, answer), until the pipe closes."""
    os.setsid()  # so that processes of torch.compile end with it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from fastrnn.apps.bench.process import come_to_rest, time_training

    if threads is not None:
        torch.set_num_threads(threads)
    workload: Any = None
    while True:
        try:
            command, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer: Any = None
            if command == "prepare":
                workload = None
                torch.compiler.reset()
                workload = Workload(engine, *arguments)
                start = time.perf_counter()
                workload.tensors()
                first = time.perf_counter() - start
                answer = workload.draws(), first, min(time_training(workload, 1)["total"] for _ in range(3))
            elif command == "tensors":
                answer = Workload(engine, *arguments).draws()
            elif command == "block":
                time_training(workload, 1)
                answer = time_training(workload, *arguments)
            reply = (True, answer)
        except Exception as error:
            traceback.print_exc()
            reply = (False, f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}")
        come_to_rest()
        connection.send(reply)


class EngineError(Exception):
    """An engine cannot run a case, or takes too long to start."""


class Engine:
    """The parent's end of an engine's process, which starts on first use and again after it was killed."""

    def __init__(self, name: str, threads: int | None) -> None:
        self.name, self.threads = name, threads
        self.process: Any = None

    def call(self, command: str, *arguments: Any, seconds: float = 900) -> Any:
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.connection, other = context.Pipe()
            self.process = context.Process(target=serve, args=(other, self.name, self.threads), daemon=False)
            self.process.start()
            other.close()
            seconds += 20  # loading torch
        self.connection.send((command, arguments))
        try:
            if not self.connection.poll(seconds):
                self.close()
                raise EngineError(f"more than {seconds:.0f} s to {command}")
            ok, answer = self.connection.recv()
        except EOFError:
            self.close()
            raise EngineError("the process died") from None
        if not ok:
            raise EngineError(answer)
        return answer

    def close(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
            self.process.join()
            self.process = None


def middle(found: list[Any]) -> Any:
    """Return the median parity of several draws."""
    return sorted(found, key=lambda parity: (not parity.ok, parity.worst.used))[len(found) // 2]


def measure(engines: dict[str, Engine], cell: str, shape: tuple[int, int, int], options: Any) -> dict[str, Any]:
    """Measure one row: parity, then the rounds."""
    from fastrnn.apps.bench import ratios
    from fastrnn.apps.bench.parity import check_peer

    row: dict[str, Any] = {"cell": cell, "shape": list(shape), "engines": {}, "speedup": {}}
    exact = engines["loop"].call("tensors", cell, shape, "float64")
    found: dict[str, Any] = {}
    estimates: dict[str, float] = {}
    theirs: Any = None
    for name in sorted(engines, key=lambda n: n != "loop"):  # the loop first: the limits follow from its error
        entry = row["engines"][name] = {"status": "ok", "message": "", "seconds": {m: [] for m in METRICS}}
        limit = options.compile_seconds if name.startswith("compiled") else 900
        try:
            tensors, entry["first_call_seconds"], estimates[name] = engines[name].call(
                "prepare", cell, shape, seconds=limit
            )
        except EngineError as error:
            entry["status"], entry["message"] = "skipped", str(error)
            continue
        theirs = tensors if name == "loop" else theirs
        parity = middle(
            [
                check_peer({k: v for k, v in a.items() if k in e}, b, e)
                for a, b, e in zip(tensors, theirs, exact, strict=True)
            ]
        )
        entry["parity"] = parity.as_dict()
        if parity.ok:
            found[name] = entry
        else:
            entry["status"], entry["message"] = "failed", f"parity: {parity.worst.describe()}"
    names = list(found)
    calls = ratios.calls_per_block([estimates[name] for name in names], BLOCK_SECONDS) if names else 0
    row["calls_per_block"] = calls
    for number in range(options.rounds):
        first = number % max(len(names), 1)
        for name in names[first:] + names[:first]:
            for metric, value in engines[name].call("block", calls).items():
                found[name]["seconds"][metric].append(value)
    for name, entry in found.items():
        entry["median"] = {metric: ratios.median(values) for metric, values in entry["seconds"].items()}
        if name != "fastrnn" and "fastrnn" in found:
            speedup = ratios.compare_rounds(entry["seconds"]["total"], found["fastrnn"]["seconds"]["total"])
            row["speedup"][name] = dataclasses.asdict(speedup) if speedup else None
    return row


def table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Format the milliseconds of a training step, and in brackets their ratio to fastrnn's."""
    from fastrnn.apps.bench.report import format_seconds

    lines = ["| cell | B×T×H | " + " | ".join(names) + " |", "|---|---|" + "---:|" * len(names)]
    notes = []
    for row in rows:
        cells = []
        for name in names:
            entry = row["engines"][name]
            ratio = row["speedup"].get(name)
            text = format_seconds(entry["median"]["total"]) if entry["status"] == "ok" else entry["status"]
            cells.append(text + (f" ({ratio['median']:.2f}×)" if ratio else ""))
            if entry["message"]:
                notes.append(f"- {row['cell']} {'×'.join(map(str, row['shape']))}, {name}: {entry['message']}")
        lines.append(f"| {row['cell']} | {'×'.join(map(str, row['shape']))} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *notes]).rstrip()


def parse(arguments: list[str] | None) -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", default="", help="comma-separated names (default: all without random masks)")
    parser.add_argument("--shapes", default=SHAPES, help=f"comma-separated BxTxH (default: {SHAPES})")
    parser.add_argument("--engines", default=",".join(ENGINES), help=f"comma-separated; of {', '.join(ENGINES)}")
    parser.add_argument("--rounds", type=int, default=9, help="blocks of each engine (default: 9)")
    parser.add_argument("--threads", type=int, help="threads of each engine (default: torch's choice)")
    parser.add_argument("--compile-seconds", type=float, default=120, help="time limit of torch.compile")
    parser.add_argument("--out", type=Path, default=Path("bench-out/cells.json"), help="output file")
    options = parser.parse_args(arguments)
    from fastrnn.gallery import CELLS

    fixed = [name for name, cell in CELLS.items() if not cell.inputs]  # others draw random masks
    options.cells = options.cells.split(",") if options.cells else fixed
    options.engines = list(dict.fromkeys(["fastrnn", "loop", *options.engines.split(",")]))
    try:
        options.shapes = [tuple(int(n) for n in shape.split("x")) for shape in options.shapes.split(",")]
    except ValueError:
        parser.error(f"--shapes: expected BxTxH, got {options.shapes!r}")
    for what, given, known in (("cells", options.cells, fixed), ("engines", options.engines, ENGINES)):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"--{what}: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    if any(len(shape) != 3 or min(shape) < 1 for shape in options.shapes) or options.rounds < 1:
        parser.error("--shapes: expected BxTxH, --rounds: a positive number")
    return options


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    from fastrnn.apps.bench import environment

    engines = {name: Engine(name, options.threads) for name in options.engines}
    rows: list[dict[str, Any]] = []
    facts = environment.collect()
    facts["threads"] = options.threads or facts["threads"]
    result = {"environment": facts, "rounds": options.rounds, "compile_seconds": options.compile_seconds, "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        for cell in options.cells:
            for shape in options.shapes:
                print(f"{cell} {'x'.join(map(str, shape))}", file=sys.stderr, flush=True)
                rows.append(measure(engines, cell, shape, options))
                options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except KeyboardInterrupt:
        print("interrupted: writing the results so far", file=sys.stderr)
    finally:
        for engine in engines.values():
            engine.close()
    print(table(rows, options.engines))
    print(environment.describe(result["environment"]))
    return int(any(entry["status"] == "failed" for row in rows for entry in row["engines"].values()))


if __name__ == "__main__":
    sys.exit(main())
