"""The log of a run: a CSV file, and TensorBoard's if it is asked for."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Any

from fastrnn.apps.lm.errors import CheckpointError, TrainingError

NAME = "log.csv"
COLUMNS = (
    "step",
    "epoch",
    "characters",
    "loss",
    "bits_per_character",
    "validation_loss",
    "validation_bits_per_character",
    "learning_rate",
    "gradient_norm",
    "characters_per_second",
    "seconds",
)


class CsvLog:
    """Rows of numbers in a file, written at once. ``position`` is how many bytes belong to the run.

    Args:
        path: the file; it is made with a heading if it is not there.
        position: where a resumed run goes on; what comes after it is cut off. None for a new run.

    Raises:
        CheckpointError: the file is shorter than that.
        TrainingError: it cannot be written, another run writes to it, or where a new one would begin is a file that is
            no such log.
    """

    def __init__(self, path: Path, position: int | None = None) -> None:
        self._path = path
        try:
            there = path.stat().st_size if path.exists() else 0
            if position is not None and 0 < there < position:
                raise CheckpointError(
                    f"log: expected at least {position} bytes in {path}, as at the checkpoint, got {there}; "
                    "move it away to begin a new one"
                )
            if position is None and there and path.is_file():
                self._check_own()
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._begin(position if position is not None and there else 0, there)
        except BaseException:
            self._file.close()  # and with it the lock
            raise

    def _begin(self, position: int, there: int) -> None:
        self._lock()
        self.position = position
        try:
            if there:
                self._file.truncate(position)
        except OSError as error:
            raise self._failed(error) from error
        if position == 0:
            self._append(",".join(COLUMNS))

    def _check_own(self) -> None:
        """What a run without checkpoints has left may go, a file of somebody else's not."""
        heading = (",".join(COLUMNS) + "\n").encode()
        with open(self._path, "rb") as file:
            begin = file.read(len(heading))
        if not heading.startswith(begin):
            raise TrainingError(f"log: expected no {self._path} or the log of a run, got another file")

    def _lock(self) -> None:
        """For as long as the file is open: two runs would mix their rows."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"log: {self._path} is in use by another run") from None
        except OSError:  # not every file system has locks
            pass

    def write(self, row: dict[str, float | int | None]) -> None:
        """One row; a column that is None or missing stays empty. Numbers are written so that they are read back equal.

        Raises:
            TrainingError: it cannot be written.
        """
        values = [row.get(name) for name in COLUMNS]
        self._append(",".join("" if value is None else repr(value) for value in values))

    def sync(self) -> None:
        """To the disk: a checkpoint must not know of more rows than there are."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            if not self._path.is_file():  # a pipe or a device has no disk
                return
            raise self._failed(error) from error

    def close(self) -> None:
        self._file.close()

    def _append(self, line: str) -> None:
        data = (line + "\n").encode()
        try:
            written = self._file.write(data)
            while written < len(data):  # the rest says why
                written += self._file.write(data[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self.position)  # no half of a row
            raise self._failed(error) from error
        self.position += len(data)

    def _failed(self, error: OSError) -> TrainingError:
        return TrainingError(f"log: could not write {self._path}: {error.strerror or error}")


class TensorBoardLog:
    """The same numbers for TensorBoard.

    Raises:
        ValueError: the package is not installed.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ValueError(
                "tensorboard: expected the package tensorboard, which is not installed: pip install tensorboard"
            ) from None
        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, row: dict[str, float | int | None]) -> None:
        for name, value in row.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, row["step"])

    def text(self, step: int, text: str) -> None:
        self._writer.add_text("sample", f"```\n{text}\n```", step)

    def close(self) -> None:
        self._writer.close()
