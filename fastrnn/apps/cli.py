"""The command line: ``fastrnn info``, ``demo``, ``bench``, ``train``, ``sample``, ``inspect`` and ``gradflow``."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from fastrnn._missing import KernelsMissingError
from fastrnn._version import __version__
from fastrnn.apps.command import in_words


def main(argv: Sequence[str] | None = None, before_command: Callable[[], Any] | None = None) -> int:
    """Run one command and return the exit status.

    Args:
        argv: the arguments; None: those of the process.
        before_command: called once the arguments have been parsed successfully.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    # Each command's options are defined in its own module, imported only for that command.
    wanted = next((arg for arg in argv if not arg.startswith("-")), None)
    try:
        parser = _parser(wanted)
        args, unknown = parser.parse_known_args(argv)
        chosen = getattr(args, "parser", parser)
        if unknown:
            chosen.error(f"unrecognized arguments: {' '.join(unknown)}")
        if chosen is parser:
            parser.error("the following arguments are required: COMMAND")
        if before_command is not None:
            before_command()
        status: int = args.command(args)
        sys.stdout.flush()
    except BrokenPipeError:  # `fastrnn info | head`: the pipe is closed; nothing may be written at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KernelsMissingError as error:
        print(f"fastrnn: error: {in_words(error)}", file=sys.stderr)
        return 1
    return status


class _Parser(argparse.ArgumentParser):
    """Argument parser whose errors suggest similar names."""

    def error(self, message: str) -> NoReturn:
        choice = re.match(r"unrecognized arguments: (.*)|.*invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice and choice[1] is not None:
            known = [name for name in self._option_string_actions if name.startswith("--")]
            words = [word.partition("=")[0] for word in choice[1].split() if word.startswith("-")]
            message += _did_you_mean(words, known)
        elif choice:
            message += _did_you_mean([choice[2]], [name.strip("' ") for name in choice[3].split(",")])
        super().error(message)


def _did_you_mean(words: Sequence[str], known: Sequence[str]) -> str:
    """Return the known names nearest to the words, as a question; empty if none is near."""
    near = [name for word in words for name in difflib.get_close_matches(word, known, 1, 0.7)]
    return f"; did you mean {' '.join(near)}?" if near else ""


def _parser(wanted: str | None) -> argparse.ArgumentParser:
    parser = _Parser(prog="fastrnn", description="Recurrent networks for PyTorch.")
    parser.add_argument("--version", action="version", version=f"fastrnn {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, run: Callable[[argparse.Namespace], int], summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        command.set_defaults(command=run, parser=command)
        return command

    info = add("info", _info, "show versions, libraries, instruction sets, threads, CUDA")
    info.add_argument("--json", action="store_true", help="print JSON")
    demo = add("demo", _demo, "demonstrate parity, speed and a custom cell in a minute, with a figure")
    bench = add("bench", _bench, "time fastrnn against other implementations")
    train = add("train", _train, "train a language model on a text file")
    sample = add("sample", _sample, "generate text with a model from train")
    inspect = add("inspect", _inspect, "show such a model's states and predictions on a text, as a web page")
    gradflow = add("gradflow", _gradflow, "draw the flow of gradients back through time")
    if wanted == "demo":
        from fastrnn.apps.demo.arguments import add_arguments as add_demo_arguments

        add_demo_arguments(demo)
    if wanted == "bench":
        from fastrnn.apps.bench.cli import add_arguments

        add_arguments(bench)
    if wanted in ("train", "sample"):
        from fastrnn.apps.lm.arguments import add_sample_arguments, add_train_arguments

        add_train_arguments(train)
        add_sample_arguments(sample)
    if wanted in ("inspect", "gradflow"):
        from fastrnn.apps.inspect.arguments import add_gradflow_arguments, add_inspect_arguments

        add_inspect_arguments(inspect)
        add_gradflow_arguments(gradflow)
    return parser


def _demo(args: argparse.Namespace) -> int:
    from fastrnn.apps.demo.cli import run

    return run(args)


def _bench(args: argparse.Namespace) -> int:
    from fastrnn.apps.bench.cli import run

    return run(args)


def _train(args: argparse.Namespace) -> int:
    from fastrnn.apps.lm.cli import run_train

    return run_train(args)


def _sample(args: argparse.Namespace) -> int:
    from fastrnn.apps.lm.cli import run_sample

    return run_sample(args)


def _inspect(args: argparse.Namespace) -> int:
    from fastrnn.apps.inspect.cli import run_inspect

    return run_inspect(args)


def _gradflow(args: argparse.Namespace) -> int:
    from fastrnn.apps.inspect.cli import run_gradflow

    return run_gradflow(args)


def _info(args: argparse.Namespace) -> int:
    from fastrnn.apps.info import collect

    facts = collect()
    print(json.dumps(facts, indent=2) if args.json else format_info(facts))
    return 0


def format_info(facts: dict[str, Any]) -> str:
    """Format the facts of `fastrnn.apps.info.collect` as lines of ``name  value``, in groups."""
    sections = [_fastrnn_lines(facts), _machine_lines(facts), _library_lines(facts), _cuda_lines(facts)]
    width = max(len(name) for section in sections for name, _ in section)
    return "\n\n".join("\n".join(f"{name:<{width}}  {value}" for name, value in section) for section in sections)


def _fastrnn_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    extension = facts["extension"]
    lines = [("fastrnn", f"{facts['fastrnn']['version']} ({facts['fastrnn']['path']})")]
    if not extension["built"]:
        return [*lines, ("kernels", extension["error"]), ("build command", extension["command"])]

    override = extension["capability_override"]
    chosen = extension["capability"] + (f" (FASTRNN_CPU_CAPABILITY={override})" if override else "")
    lines += [("kernels", extension["path"]), ("instruction set", chosen)]
    lines += [("available", ", ".join(extension["capabilities"]))]
    lines += [(f"built: {key}", str(value)) for key, value in sorted(extension["build"].items())]
    built_for = extension["build"].get("torch_version", "")
    if built_for and built_for.split("+")[0] != facts["torch"]["version"].split("+")[0]:
        lines.append(("warning", f"built for torch {built_for}, rebuild for torch {facts['torch']['version']}"))
    return lines


def _machine_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    cpu, threads, python = facts["cpu"], facts["threads"], facts["python"]
    limit = threads["OMP_NUM_THREADS"]
    count = f"{threads['torch']} (between operators: {threads['torch_interop']})"
    return [
        ("CPU", f"{cpu['model']} ({cpu['machine']}), {cpu['usable_cpus']} of {cpu['logical_cpus']} usable"),
        ("threads", count + (f", OMP_NUM_THREADS={limit}" if limit else "")),
        ("Python", f"{python['version']} ({python['executable']})"),
        ("platform", python["platform"]),
    ]


def _library_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    libraries = facts["libraries"]
    lines = [
        ("torch", f"{facts['torch']['version']} ({facts['torch']['path']})"),
        ("torch's CPU code", facts["cpu"]["torch_capability"]),
        ("BLAS", libraries["blas"]),
        ("oneDNN", libraries["onednn"] or "no"),
        ("OpenMP runtime", ", ".join(libraries["openmp"]) or "none loaded"),
    ]
    if len(libraries["openmp"]) > 1:
        lines.append(("warning", "more than one OpenMP runtime: their threads compete for the same cores"))
    return lines


def _cuda_lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    cuda = facts["cuda"]
    kernels = cuda["fastrnn_kernels"]
    lines = [
        ("torch's CUDA", cuda["torch_build"] or "none, torch is built for the CPU"),
        ("CUDA devices", ", ".join(cuda["devices"]) or "none"),
    ]
    if not kernels["built"]:
        return [*lines, ("CUDA kernels", kernels["error"])]
    build, override = kernels["build"], cuda["driver_override"]
    lines += [
        ("CUDA kernels", kernels["path"]),
        ("built for", f"{build['architectures']} (CUDA {build['toolkit']}, torch {build['torch_version']})"),
        ("CUDA driver", kernels["driver"] + (f" (FASTRNN_CUDA_DRIVER={override})" if override else "")),
    ]
    return lines + [("warning", problem) for problem in kernels["problems"] if problem]
