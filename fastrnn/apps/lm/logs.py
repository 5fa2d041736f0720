"""Log of a run: a CSV file, and optionally one for TensorBoard."""

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
    """Log rows in a CSV file, written without buffering. ``position`` is the number of bytes that belong to the run.

    Args:
        path: the file; it is created with a heading if it does not exist.
        position: where a resumed run continues; later rows are removed. None for a new run.

    Raises:
        CheckpointError: the file is shorter than ``position``.
        TrainingError: it cannot be written, another run writes to it, or a new run would overwrite a file that is not a
            log.
    """

    def __init__(self, path: Path, position: int | None = None) -> None:
        self._path = path
        try:
            there = path.stat().st_size if path.exists() else 0
            if position is not None and 0 < there < position:
                raise CheckpointError(
                    f"log: expected at least {position} bytes in {path}, as at the checkpoint, got {there}; "
                    "move it to start a new one"
                )
            if position is None and there and path.is_file():
                self._check_own()
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise self._failed(error) from error
        try:
            self._begin(position if position is not None and there else 0, there)
        except BaseException:
            self._file.close()  # also releases the lock
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
        """Allow overwriting the log of an earlier run, but not any other file."""
        heading = (",".join(COLUMNS) + "\n").encode()
        with open(self._path, "rb") as file:
            begin = file.read(len(heading))
        if not heading.startswith(begin):
            raise TrainingError(f"log: expected no file or the log of a run at {self._path}, got another file")

    def _lock(self) -> None:
        """Lock the file while it is open: two runs would mix their rows."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TrainingError(f"log: {self._path} is in use by another run") from None
        except OSError:  # a file system without locks
            pass

    def write(self, row: dict[str, float | int | None]) -> None:
        """Write one row; a column that is None or missing stays empty. Numbers are read back equal.

        Raises:
            TrainingError: it cannot be written.
        """
        values = [row.get(name) for name in COLUMNS]
        self._append(",".join("" if value is None else repr(value) for value in values))

    def sync(self) -> None:
        """Sync to disk: a checkpoint must not refer to rows that were lost."""
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
            while written < len(data):  # writing the rest raises the reason
                written += self._file.write(data[written:])
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self.position)  # remove the incomplete row
            raise self._failed(error) from error
        self.position += len(data)

    def _failed(self, error: OSError) -> TrainingError:
        return TrainingError(f"log: could not write {self._path}: {error.strerror or error}")


class TensorBoardLog:
    """Log of the same numbers for TensorBoard.

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
