"""How a command of the command line ends: what its user did wrong, and what went wrong, in a line each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping


def guarded(
    command: str, run: Callable[[], int], options: Mapping[str, str], failures: tuple[type[Exception], ...]
) -> int:
    """Runs a command.

    Args:
        command: its name.
        run: gives its exit status.
        options: what the command line calls an argument; messages of ValueError and TypeError begin with its name.
        failures: errors that are not the user's.

    Returns:
        the exit status: 2 for a wrong argument, 1 for a failure, 130 after Ctrl-C.
    """
    try:
        return run()
    except BrokenPipeError:
        raise  # fastrnn.apps.cli knows what to do
    except KeyboardInterrupt:
        return 130
    except (ValueError, TypeError) as error:
        name, colon, rest = str(error).partition(":")
        message = f"argument {options[name]}:{rest}" if colon and name in options else str(error)
        _say(f"fastrnn {command}: error: {message}")
        return 2
    except failures as error:
        _say(f"fastrnn {command}: error: {in_words(error)}")
        return 1


def in_words(error: BaseException) -> str:
    """The message of an error for somebody who has not called a function: of the operating system's without numbers."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error).removeprefix("fastrnn: ")


def _say(line: str) -> None:
    """On standard error, at once: several processes may have something to say there."""
    print(f"{line}\n", end="", file=sys.stderr)
