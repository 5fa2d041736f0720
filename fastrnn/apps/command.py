"""Exit of a command: exit statuses, and one-line messages for user errors and failures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping


def guarded(
    command: str, run: Callable[[], int], options: Mapping[str, str], failures: tuple[type[Exception], ...]
) -> int:
    """Run a command.

    Args:
        command: its name.
        run: runs it and returns its exit status.
        options: command-line names of arguments; messages of ValueError and TypeError begin with the argument's name.
        failures: exceptions that are not user errors.

    Returns:
        the exit status: 2 for a wrong argument, 1 for a failure, 130 after Ctrl-C.
    """
    try:
        return run()
    except BrokenPipeError:
        raise  # handled by fastrnn.apps.cli
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
    """Return an error's message for a user of the command line; without numbers for errors of the operating system."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error).removeprefix("fastrnn: ")


def _say(line: str) -> None:
    """Print a line on standard error in one call, because several processes may write to it."""
    print(f"{line}\n", end="", file=sys.stderr)
