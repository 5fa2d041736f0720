"""Time single steps of an LSTM, B = 1, with matrices in float32, bfloat16 and int8, beside onnxruntime's.

    python benchmarks/narrow_streams.py --hidden 512,1024 --rounds 9 --json out.json

Each engine has a process of its own; they work in turns, in alternating order. Before it is timed, the outputs of an
engine are compared with those of torch.nn in float64 after 8 steps. onnxruntime and onnxscript have to be installed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: Largest root mean square of the error after 8 steps, relative to that of the outputs.
ALLOWED = {"onnxruntime float32": 1e-5, "stream float32": 1e-5, "stream bfloat16": 0.01}
ALLOWED |= {"onnxruntime int8": 0.05, "stream int8": 0.02}
STEPS, SECONDS = 8, 0.1


def make(engine: str, hidden: int, threads: int) -> tuple[Callable[[Any], Any], Any, Any]:
    """A function that takes the next step, 8 inputs, and the exact output after them."""
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    module = torch.nn.LSTM(hidden, hidden)
    inputs = torch.randn(STEPS, 1, hidden)
    exact = module.double()(inputs.double())[0][-1].detach()
    module.float()
    if engine.startswith("stream"):
        import fastrnn

        name = engine.split()[1]
        stream = fastrnn.Stream(fastrnn.convert(module), batch=1, weights=None if name == "float32" else name)
        return stream.step, inputs, exact
    return onnx_step(module, engine.endswith("int8"), hidden, threads), inputs.numpy(), exact


def onnx_step(module: Any, quantised: bool, hidden: int, threads: int) -> Callable[[Any], Any]:
    import numpy as np
    import onnxruntime
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    zeros = np.zeros((1, 1, hidden), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder) / "lstm.onnx", Path(folder) / "small.onnx"
        example = (torch.zeros(1, 1, hidden), (torch.zeros(1, 1, hidden), torch.zeros(1, 1, hidden)))
        names = {"input_names": ["x", "h", "c"], "output_names": ["y", "next_h", "next_c"]}
        torch.onnx.export(module, example, path, dynamo=False, **names)
        if quantised:
            quantize_dynamic(path, small, weight_type=QuantType.QInt8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(small if quantised else path, options)
    states = [zeros, zeros]

    def step(x: Any) -> Any:
        y, *states[:] = session.run(None, {"x": x[None], "h": states[0], "c": states[1]})
        return y[0]

    return step


def serve(connection: Any, engine: str, hidden: int, threads: int) -> None:
    """In the engine's process: the error after 8 steps, then the time of a step for each request."""
    import torch

    step, inputs, exact = make(engine, hidden, threads)
    for x in inputs:
        y = step(x)
    error = (torch.as_tensor(y).double() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    connection.send(error.item())
    while connection.recv():
        for _ in range(5):
            step(inputs[0])
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < SECONDS:
            step(inputs[0])
            count += 1
        connection.send(1e6 * (time.perf_counter() - begin) / count)


def measure(hidden: int, threads: int, rounds: int) -> dict[str, Any]:
    """Medians in microseconds, and the ratios of rounds to onnxruntime with as many bits."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    for engine in ALLOWED:
        pipes[engine], other = context.Pipe()
        processes.append(context.Process(target=serve, args=(other, engine, hidden, threads), daemon=True))
        processes[-1].start()
    errors = {engine: pipe.recv() for engine, pipe in pipes.items()}
    wrong = [engine for engine, error in errors.items() if not error <= ALLOWED[engine]]
    if wrong:
        raise SystemExit(f"wrong results, not timed: {', '.join(f'{e} ({errors[e]:.2g})' for e in wrong)}")
    times: dict[str, list[float]] = {engine: [] for engine in pipes}
    for turn in range(rounds):
        for engine in list(pipes)[:: 1 if turn % 2 == 0 else -1]:
            time.sleep(0.02)  # until the threads of the engine before have gone to sleep
            pipes[engine].send(True)
            times[engine].append(pipes[engine].recv())
    for pipe, process in zip(pipes.values(), processes, strict=True):
        pipe.send(False)
        process.join()
    beside = {"stream float32": "float32", "stream bfloat16": "float32", "stream int8": "int8"}
    ratios = {
        f"{engine} over onnxruntime {other}": statistics.median(
            a / b for a, b in zip(times[f"onnxruntime {other}"], times[engine], strict=True)
        )
        for engine, other in beside.items()
    }
    medians = {engine: round(statistics.median(values), 1) for engine, values in times.items()}
    return {"hidden": hidden, "errors": errors, "microseconds": medians, "ratios": ratios}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", default="512,1024", help="hidden sizes, comma-separated; default: 512,1024")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of each engine; default: all cores")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args(argv)
    found = [measure(int(hidden), args.threads, args.rounds) for hidden in args.hidden.split(",")]
    for row in found:
        geometric = math.prod(row["ratios"].values()) ** (1 / len(row["ratios"]))
        print(f"H = {row['hidden']}: {row['microseconds']} µs a step; geometric mean of the ratios {geometric:.2f}")
        for name, ratio in row["ratios"].items():
            print(f"  {name}: {ratio:.2f}")
    if args.json is not None:
        from fastrnn.apps.bench import environment

        result = {"environment": environment.collect(), "threads": args.threads, "rounds": args.rounds, "rows": found}
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
