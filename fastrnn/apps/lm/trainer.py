"""Training run: truncated backpropagation through time over rows of text.

A run is a function of its options and its text. A checkpoint holds its whole state, and a step reads nothing else, so
that a resumed run is bitwise identical to an uninterrupted one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrnn.apps.lm import checkpoint, corpus, events
from fastrnn.apps.lm.content import check_progress, check_states, in_a_line, load_optimizer, load_weights
from fastrnn.apps.lm.data import Rows, Text, fingerprint, open_text
from fastrnn.apps.lm.errors import CheckpointError, TextError, TrainingError
from fastrnn.apps.lm.logs import NAME, CsvLog, TensorBoardLog
from fastrnn.apps.lm.model import LanguageModel, States, autocast
from fastrnn.apps.lm.options import Options
from fastrnn.apps.lm.sampling import sample
from fastrnn.apps.lm.schedule import learning_rate, make_optimizer
from fastrnn.apps.lm.workers import Workers

Report = Callable[[events.Event], object]
Stop = Callable[[], bool]
_BITS = 1 / math.log(2)


def _in_another_process() -> TextError:
    return TextError("file: expected readable text in all processes, another process reports the reason")


class Trainer:
    """A run, from options or from a checkpoint's content; arguments and errors as for `fastrnn.apps.lm.train`."""

    def __init__(self, options: Options, content: dict[str, Any] | None, report: Report, stop: Stop) -> None:
        self.options, self._stop = options, stop
        self.workers = Workers(options.device)
        self._report: Report = report if self.workers.first else (lambda event: None)
        self.text = self._open_text(content)
        self.rows, self.validation_rows = self._make_rows()
        self.total = options.total_steps(self.rows.chunks)
        if self.total is not None and options.warmup >= self.total:
            raise ValueError(f"warmup: expected fewer steps than the run's {self.total}, got {options.warmup}")
        self._make_model()
        self.step = self.epoch = self.chunk = 0
        self.states: States | None = None
        self.loss_sum, self.loss_steps = torch.zeros((), dtype=torch.float64, device=self.workers.device), 0
        self.best: tuple[float, int] | None = None
        self.seconds, self.last_loss = 0.0, None
        self.folder = Path(options.out)
        self.log: CsvLog | None = None
        self.tensorboard: TensorBoardLog | None = None
        if content is not None:
            self._restore(content)
        position = None if content is None else content["log"]["bytes"]
        self._in_first(lambda: self._open_logs(position))
        self._since = self._lap = time.perf_counter()  # start of the run's time, and of the log's current interval
        self._lap_steps = 0
        self._saved: Path | None = None
        self._payload: tuple[int, bytes] | None = None

    def _open_text(self, content: dict[str, Any] | None) -> Text:
        if not self.workers.first:
            self.workers.wait()  # for the first process, which creates the default text
        path = Path(self.options.file) if self.options.file is not None else corpus.library_text()
        if self.workers.first:
            self.workers.wait()
        text = open_text(path, self.options.unit)
        self.fingerprint = fingerprint(path)
        if content is not None:
            same = content["text"] == self.fingerprint and content["vocabulary"] == text.vocabulary.as_dict()
            if not same:
                raise ValueError(f"file: expected the text of the resumed run, got another one in {path}")
        return text

    def _make_rows(self) -> tuple[Rows, Rows | None]:
        """Return the rows of the training text, and those of the validation text at its end."""
        options, text = self.options, self.text
        B, T, mine = options.batch, options.truncation, self.workers.mine(options.batch)
        held_out = int(text.length * options.validation)
        rows = Rows(text, 0, text.length - held_out, B, T, mine, options.seed)
        if not held_out:
            return rows, None
        what = "validation: of the file"
        return rows, Rows(
            text, text.length - held_out, text.length, B, min(T, max(1, (held_out - 1) // B)), mine, 0, what
        )

    def _make_model(self) -> None:
        options, workers = self.options, self.workers
        torch.manual_seed(options.seed)
        self.model = LanguageModel(options, self.text.vocabulary).to(workers.device)
        self.model.train()
        self.optimizer = make_optimizer(options, self.model)
        if workers.rank:  # the same weights, but other dropout masks
            torch.manual_seed((options.seed + workers.rank * 0x9E3779B97F4A7C15) % 2**64)
        module: Any = torch.compile(self.model) if options.compile else self.model
        self.network = workers.wrap(module)

    def _in_first(self, work: Callable[[], object]) -> None:
        """Run work that the first process does for all. If it fails, all processes end."""
        failure: Exception | None = None
        if self.workers.first:
            try:
                work()
            except (TrainingError, CheckpointError, ValueError, OSError) as error:
                failure = error
        if self.workers.most(int(failure is not None)):
            raise failure or TrainingError("the first process failed and reports the reason")

    def _open_logs(self, position: int | None) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = CsvLog(self.folder / NAME, position)
        try:
            if self.options.tensorboard:
                self.tensorboard = TensorBoardLog(self.folder / "tensorboard", self.step)
        except BaseException:
            self.log.close()
            raise

    def close(self) -> None:
        """Close the logs."""
        for log in (self.log, self.tensorboard):
            if log is not None:
                log.close()

    # The loop

    def run(self) -> events.Result:
        """Train to the end of the run, or until it is stopped."""
        options = self.options
        self._report(
            events.Started(
                options,
                self.text.path,
                self.text.length,
                self.text.vocabulary.size,
                sum(p.numel() for p in self.model.parameters()),
                self.step,
                self.total,
                self.rows.chunks,
                self.workers.size,
            )
        )
        try:
            stopped = self._loop()
        except TextError as error:  # in every process
            raise TextError(f"{error}; the last checkpoint is {self._save_last()}") from None
        saved = self._save_last()
        best = None if self.best is None else self.best[0]
        return events.Result(self.step, self.last_loss, best, saved, stopped)

    def _loop(self) -> bool:
        """Run steps up to the end of the run. Return True if it was stopped before."""
        while self.total is None or self.step < self.total:
            late = self.options.minutes is not None and self._elapsed() >= 60 * self.options.minutes
            chunk, problem = self._read()
            # All processes must end after the same step, whichever one was told to stop.
            ends = self.workers.most(3 if problem else 2 if self._stop() else int(late))
            if chunk is None or ends == 3:
                raise problem or _in_another_process()
            if ends:
                return ends == 2
            norm = self._train_step(*chunk)
            self._after_step(norm)
        return False

    def _read(self) -> tuple[tuple[Tensor, Tensor] | None, TextError | None]:
        """Return the next chunk, or why it cannot be read. No step starts if the text has been truncated anywhere."""
        try:
            self.text.file.check()
            return self.rows.chunk(self.epoch, self.chunk), None
        except TextError as error:
            return None, error

    def _train_step(self, inputs: Tensor, targets: Tensor) -> Tensor | None:
        """Make one update. Return the norm of the gradient before clipping, if a row of the log follows."""
        options, parameters = self.options, self.model.parameters
        inputs, targets = inputs.to(self.workers.device), targets.to(self.workers.device)
        rate = learning_rate(options, self.step, self.total)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with autocast(options, self.workers.device):
            logits, states = self.network(inputs, self.states)
            loss = self.model.loss(logits, targets)
        loss.backward()
        norm = None
        if any(self._due(self.step + 1)):
            norm = torch.nn.utils.get_total_norm([p.grad for p in parameters() if p.grad is not None])
        if options.clip_value:
            torch.nn.utils.clip_grad_value_(parameters(), options.clip_value)
        if options.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters(), options.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.loss_sum += loss.detach()
        self.loss_steps += 1
        self.step, self.chunk = self.step + 1, self.chunk + 1
        self.states = tuple(state.detach() for state in states)
        if self.chunk == self.rows.chunks:  # the rows start at other units in the next epoch
            self.epoch, self.chunk, self.states = self.epoch + 1, 0, None
        return norm

    def _due(self, step: int) -> tuple[bool, bool]:
        """Return whether the log, and whether validation, is due after a step."""
        options, last = self.options, step == self.total
        validates = self.validation_rows is not None and options.validate_every > 0
        return last or step % options.log_every == 0, validates and (last or step % options.validate_every == 0)

    def _after_step(self, norm: Tensor | None) -> None:
        """Do what is due after a step: the log, validation, a sample, checkpoints."""
        options = self.options
        self._lap_steps += 1
        logs, validates = self._due(self.step)
        if logs or validates:
            self._write_row(norm, logs, validates)
        if options.sample_every and (self.step == self.total or self.step % options.sample_every == 0):
            self._check_finite([])
            self._in_first(self._sample)
        if options.checkpoint_every and self.step % options.checkpoint_every == 0:
            self._save(checkpoint.path_of(self.folder, self.step))
        self._payload = None

    def _write_row(self, norm: Tensor | None, logs: bool, validates: bool) -> None:
        options = self.options
        units = options.batch * options.truncation
        now = time.perf_counter()
        row: dict[str, Any] = {
            "step": self.step,
            "epoch": self.step / self.rows.chunks,
            "characters": self.step * units,
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "gradient_norm": None if norm is None else float(norm),
            "characters_per_second": round(self._lap_steps * units / max(now - self._lap, 1e-9), 1),
            "seconds": round(self._elapsed(), 3),
        }
        validation = self.validate() if validates else math.nan  # before any change, because it may fail
        if logs:
            row["loss"] = float(self.workers.mean(self.loss_sum)) / self.loss_steps
            row["bits_per_character"] = row["loss"] * _BITS
            self.last_loss = row["loss"]
            self.loss_sum.zero_()
            self.loss_steps = 0
        if validates:
            row["validation_loss"] = validation
            row["validation_bits_per_character"] = row["validation_loss"] * _BITS
        better = validates and math.isfinite(row["validation_loss"])
        better = better and (self.best is None or row["validation_loss"] < self.best[0])
        if better:
            self.best = row["validation_loss"], self.step
        self._in_first(lambda: self._tell(events.Logged(row, self.total, better)))
        if logs and not math.isfinite(row["loss"]):
            raise self._diverged("a finite number", row["loss"])
        if better:
            self._save(self.folder / checkpoint.BEST)
        self._lap, self._lap_steps = time.perf_counter(), 0

    def _tell(self, event: events.Logged) -> None:
        for log in (self.log, self.tensorboard):
            if log is not None:
                log.write(event.row)
        self._report(event)

    def validate(self) -> float:
        """Return the mean loss in nats per unit over the first chunks of the validation text, from a zero state.

        Raises:
            TextError: the text cannot be read, in this process or another.
        """
        assert self.validation_rows is not None
        count = min(self.validation_rows.chunks, self.options.validation_chunks)
        total = torch.zeros((), dtype=torch.float64, device=self.workers.device)
        states: States | None = None
        problem: TextError | None = None
        self.model.eval()
        with torch.no_grad(), autocast(self.options, self.workers.device):
            for index in range(count):
                try:
                    chunk = self.validation_rows.chunk(0, index)
                except TextError as error:
                    problem = error
                    break
                inputs, targets = (ids.to(self.workers.device) for ids in chunk)
                # Not the compiled network: other shapes might make it recompile the training step, with other results.
                logits, states = self.model(inputs, states)
                total += self.model.loss(logits, targets)
        self.model.train()
        if self.workers.most(int(problem is not None)):
            raise problem or _in_another_process()
        return float(self.workers.mean(total)) / count

    def _sample(self) -> None:
        pieces = sample(self.model, length=self.options.sample_length, seed=self.options.seed + self.step)
        try:
            text = "".join(pieces)
        except TrainingError:
            raise self._diverged("finite logits", "infinity or NaN") from None
        self.model.train()
        self._report(events.Sampled(self.step, text))
        if self.tensorboard is not None:
            self.tensorboard.text(self.step, text)
        self._lap, self._lap_steps = time.perf_counter(), 0

    def _elapsed(self) -> float:
        return self.seconds + time.perf_counter() - self._since

    # Checkpoints

    def _save_last(self) -> Path:
        """Return the checkpoint of this step, written if necessary."""
        if self._saved is None or self._saved != checkpoint.path_of(self.folder, self.step):
            self._save(checkpoint.path_of(self.folder, self.step))
        assert self._saved is not None
        return self._saved

    def _save(self, path: Path) -> None:
        """Write the whole state of the run. Every process calls it, because each has some of the batch rows."""
        states = None if self.states is None else [torch.cat(self.workers.gather(s), 1) for s in self.states]
        random = {"cpu": self.workers.gather(torch.get_rng_state()), "cuda": []}
        if self.workers.device.type == "cuda":
            random["cuda"] = self.workers.gather(torch.cuda.get_rng_state(self.workers.device))
        losses = [float(loss) for loss in self.workers.gather(self.loss_sum)]
        if path.name != checkpoint.BEST:
            self._saved = path
        self._check_finite(losses)
        self._in_first(lambda: self._write(path, states, random, losses))

    def _write(self, path: Path, states: list[Tensor] | None, random: dict[str, Any], losses: list[float]) -> None:
        assert self.log is not None
        self.log.sync()
        if self._payload is None or self._payload[0] != self.step:
            own = None if self.options.file is None else str(self.text.path.resolve())
            content = {
                "options": self.options.as_dict() | {"file": own},
                "vocabulary": self.text.vocabulary.as_dict(),
                "text": self.fingerprint,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "epoch": self.epoch,
                "chunk": self.chunk,
                "states": states,
                "random": random,
                "log": {"bytes": self.log.position, "loss": losses, "steps": self.loss_steps},
                "best": None if self.best is None else list(self.best),
                "seconds": self._elapsed(),
            }
            self._payload = self.step, checkpoint.to_bytes(content)
        checkpoint.write(path, self._payload[1])
        if path.name != checkpoint.BEST:
            checkpoint.clean(self.folder, self.options.keep)
            self._report(events.Saved(self.step, path))

    def _check_finite(self, losses: list[float]) -> None:
        """Raise before a checkpoint with infinity or NaN would replace a valid one."""
        weights = all(bool(torch.isfinite(p).all()) for p in self.model.parameters())
        if not weights or not all(math.isfinite(loss) for loss in losses):
            raise self._diverged("finite weights and losses", "infinity or NaN")

    def _diverged(self, expected: str, got: object) -> TrainingError:
        checkpoints = checkpoint.numbered_in(self.folder)
        last = f"; the last checkpoint is {checkpoints[-1][1]}" if checkpoints else ""
        return TrainingError(f"loss: expected {expected}, got {got} at step {self.step}{last}")

    def _restore(self, content: dict[str, Any]) -> None:
        device, mine = self.workers.device, self.workers.mine(self.options.batch)
        try:
            check_progress(content, self.rows.chunks)
            check_states(content["states"], self.options, self.model.recurrent)
            load_weights(self.model, content["model"])
            load_optimizer(self.optimizer, content["optimizer"], used=content["step"] > 0)
            self.step, self.epoch, self.chunk = content["step"], content["epoch"], content["chunk"]
            if content["states"] is not None:
                self.states = tuple(s[:, mine.start : mine.stop].contiguous().to(device) for s in content["states"])
            losses = content["log"]["loss"]
            same = len(losses) == self.workers.size
            self.loss_sum += losses[self.workers.rank] if same else sum(losses) / len(losses)
            self.loss_steps, self.seconds = content["log"]["steps"], content["seconds"]
            self.best = None if content["best"] is None else (content["best"][0], content["best"][1])
            random = content["random"]
            if len(random["cpu"]) == self.workers.size:  # else the processes start new random sequences
                torch.set_rng_state(random["cpu"][self.workers.rank])
                if device.type == "cuda" and len(random["cuda"]) == self.workers.size:
                    torch.cuda.set_rng_state(random["cuda"][self.workers.rank], device)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"checkpoint: its content does not match its options: {in_a_line(error)}") from None
