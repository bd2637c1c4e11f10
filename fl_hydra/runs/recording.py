"""A run that this process writes: owned, resumed or started, its rows and checkpoints, its end."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_hydra.config import Config, check_device
from fl_hydra.errors import UserError
from fl_hydra.files import CorruptFile
from fl_hydra.runs.checkpoint import Checkpoint, Checkpoints, check_fits
from fl_hydra.runs.conditions import Conditions, Wish, environment
from fl_hydra.runs.ended import find, known_outcome, refuse_foreign
from fl_hydra.runs.failure import ERROR, ForeignRun, explain, is_out_of_memory, write_traceback
from fl_hydra.runs.folder import METRICS, SUMMARY, RowsFile, RunFolder, as_json, not_finite, rows_of
from fl_hydra.runs.following import follower_of
from fl_hydra.runs.identity import describe, run_folder, run_hash
from fl_hydra.runs.milestones import next_evaluation, row_of_pause
from fl_hydra.runs.outcome import Outcome
from fl_hydra.runs.ownership import OwnershipLost, RunBusy
from fl_hydra.runs.reader_files import ReaderFiles
from fl_hydra.runs.sections import join_section
from fl_hydra.runs.summary import FORMAT, SEAL, seal
from fl_hydra.runs.weights import parts_of, weights_sha256
from fl_hydra.training.client_files import files_of
from fl_hydra.training.experiment import Experiment

if TYPE_CHECKING:
    from fl_hydra.training.evaluation import Metrics
    from fl_hydra.training.packed_run import PackedRun
    from fl_hydra.training.trainer import Trainer


class Recording:
    """One run while it is written: `begin`, `look` and `restore`, then `record` and `save` again and again, and `conclude`.

    `outcome` is None until it has ended, one way or another.
    """

    def __init__(self, config: Config, experiment: Experiment, warn: Callable[[str], None]) -> None:
        self.config, self.experiment, self.warn = config, experiment, warn
        self.folder = RunFolder(run_folder(experiment, Path(config.outputs)))
        self.outcome: Outcome | None = None
        self.checkpoints = Checkpoints(self.folder.checkpoints, self.folder.check, warn)
        self.metrics = RowsFile(self.folder, METRICS, warn)
        self.reader_files = ReaderFiles(self.folder, warn)
        self.wish = Wish.of(config, None, "cpu")
        """The conditions that it is to be trained under."""
        self.begun: Conditions | None = None
        """Those that it was trained under so far; None before its first checkpoint."""
        self.row: Metrics = {}
        """The last row of metrics."""
        self.due = 0
        """Samples at which the next row of metrics is due."""
        self._references: dict[int, Mapping[int, Any]] = {}
        """The client state that each kept checkpoint refers to."""
        self._seconds = 0.0
        """Spent on it before this process."""
        self._since = time.monotonic()
        self._follower = follower_of(config, experiment, self.folder.path, warn)

    # Before training

    def begin(self, ownerships: ExitStack) -> None:
        """Find the run's result, or become its only writer.

        Raises:
            UserError: the device is not there.
            OSError: nothing can be written.
        """
        outputs = Path(self.config.outputs)
        check_device(self.config.device, self.config.engine)
        if self.config.section is not None:
            join_section(self.config.section, self.folder.path, outputs, self.warn)
        self.outcome = known_outcome(self.experiment, outputs, self.warn)
        if self.outcome is not None:
            return
        try:
            ownerships.enter_context(self.folder.owned(self.warn))
        except RunBusy as error:
            self.outcome = Outcome("busy", self.folder.path, {}, str(error), trained=False)
            return
        # Another process may have finished it between the look and the lock.
        self.outcome = find(self.experiment, outputs, self.warn)
        if self.outcome is None:
            (self.folder.path / ERROR).unlink(missing_ok=True)
            if self.config.resume is not None:
                from fl_hydra.runs.resume_from_wandb import bring

                bring(self.config, self.experiment, self.folder.path, self.checkpoints, self.warn)

    def look(self, device: str) -> Checkpoint | None:
        """The newest checkpoint that can be read, and with it the conditions that the run is to be trained under.

        Raises:
            ForeignRun: it is another run's.
            OSError: it cannot be read now.
        """
        checkpoint = self.checkpoints.newest()
        if checkpoint is not None:
            refuse_foreign(self.experiment, self.folder.path, checkpoint.run, checkpoint.config)
        self.begun = None if checkpoint is None else checkpoint.conditions
        self.wish = Wish.of(self.config, self.begun, device)
        return checkpoint

    def pause_if_reached(self, checkpoint: Checkpoint | None) -> None:
        """Note that the run has paused, if it has reached the point at which it is to pause. This needs no training."""
        if checkpoint is None or self.config.until is None:
            return
        try:
            rows = rows_of(checkpoint.metrics.encode())
        except CorruptFile:
            return  # it is given up where the run is restored
        if (row := row_of_pause(rows, self.config.until, self.experiment.budget)) is not None:
            self.metrics.restore(checkpoint.metrics.encode())
            self._pause(row, trained=False)

    def restore(self, trainer: Trainer, run: int) -> bool:
        """Continue from the newest intact checkpoint, or start.

        Returns:
            Whether the run continues in this trainer. If a checkpoint cannot be used, and the one before it was written under other
            conditions, it does not.

        Raises:
            ForeignRun: a checkpoint is another run's.
            OSError: a file cannot be read now, which is no reason to give up what is in it.
        """
        trainer.runs[run].watch_files(self.folder.check)
        planned, fresh = self.wish, trainer.checkpoint(run)
        while True:
            checkpoint = self.look(trainer.device.type)
            if self.wish != planned:
                return False
            if checkpoint is None:
                self._start()
                break
            if self._resume(checkpoint, trainer, run, fresh):
                break
        self._since = time.monotonic()
        self.due = next_evaluation(trainer.runs[run].samples, self.experiment.budget, self.experiment.points)
        self._tell_follower(checkpoint)
        return True

    def _start(self) -> None:
        if self.metrics.found:
            self.warn(f"{self.folder.path}: there are rows of metrics but no checkpoint to continue from; training starts again")
        self.metrics.restore(b"")
        self.reader_files.restore(b"", self.reader_files.environments)

    def _resume(self, checkpoint: Checkpoint, trainer: Trainer, run: int, fresh: dict[str, Any]) -> bool:
        """Restore a trainer's run from a checkpoint; False if the checkpoint cannot be used, which leaves the trainer fresh."""
        try:
            check_fits(checkpoint.trainer, fresh)
            rows = rows_of(checkpoint.metrics.encode())
            trainer.restore(checkpoint.trainer, run)
        except OSError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            trainer.restore(fresh, run)
            self.checkpoints.give_up(checkpoint.round, error)
            return False
        self.metrics.restore(checkpoint.metrics.encode())
        self.reader_files.restore(checkpoint.timings.encode(), checkpoint.environments)
        self.row = rows[-1] if rows else {}
        self._seconds = checkpoint.seconds
        self._references = {checkpoint.round: checkpoint.trainer["clients"]}
        return True

    def describe(self, trainer: Trainer, run: int, now: Conditions, together: int, trains: bool) -> None:
        """Write what the run is and what it is trained with, for the reader.

        Args:
            now: the present conditions.
            together: how many runs train.
            trains: whether this one trains, or is only repaired.
        """
        files, present = self.reader_files, environment(now, together)
        if trains and present not in files.environments:
            files.environments.append(present)
        files.describe(self.config, self.experiment, trainer.runs[run].shards)

    # While it trains

    @property
    def seconds(self) -> float:
        """Spent on the run, by this process and those before it."""
        return self._seconds + time.monotonic() - self._since

    def record(self, row: Metrics, together: int) -> None:
        """Append a row of metrics.

        Raises:
            OwnershipLost, OSError: it was not written.
        """
        self.row = row
        self.due = next_evaluation(int(row["samples"] or 0), self.experiment.budget, self.experiment.points)
        timing = {"round": row["round"], "samples": row["samples"], "seconds": round(self.seconds, 3)}
        self.reader_files.add_timing(timing | ({"together": together} if together > 1 else {}))
        self.metrics.append(row)  # last: if it fails, the checkpoint that is tried once more has both rows

    def save(self, trainer: Trainer, run: int) -> None:
        """Write a checkpoint.

        Raises:
            OwnershipLost, OSError: it was not written.
        """
        self.folder.check()  # before client state is written, too
        checkpoint = Checkpoint(
            run=run_hash(self.experiment),
            config=describe(self.experiment),
            conditions=Conditions.now(trainer),
            environments=self.reader_files.environments,
            trainer=trainer.checkpoint(run),
            metrics=self.metrics.content.decode(),
            timings=self.reader_files.timings.content.decode(),
            seconds=self.seconds,
        )
        kept = self.checkpoints.save(checkpoint)
        self._references[checkpoint.round] = checkpoint.trainer["clients"]
        self._references = {round: clients for round, clients in self._references.items() if round in kept}
        if len(self._references) == len(kept):  # else a kept checkpoint of an earlier process may refer to more
            trainer.runs[run].collect_files(list(self._references.values()))
        self._tell_follower(checkpoint)

    def _tell_follower(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is None:
            self._follower.held(b"")
        else:
            path = self.checkpoints.path(checkpoint.round)
            self._follower.held(self.metrics.content, path, checkpoint.round, files_of(checkpoint.trainer["clients"]))

    # Its end

    def verdict(self, packed_run: PackedRun) -> tuple[str, str] | None:
        """How the run has ended, and why if it is not finished; None if it continues."""
        if bad := not_finite(self.row):
            narrow = ", or precision=bf16 or fp32: fp16 overflows above 65,504" if self.experiment.precision == "fp16" else ""
            return "diverged", f"{' and '.join(bad)} not finite at round {self.row['round']}; try a smaller optimizer.lr{narrow}"
        if packed_run.finished:
            return "finished", ""
        pauses = self.row and row_of_pause([self.row], self.config.until, self.experiment.budget) is not None
        return ("paused", "") if pauses else None

    def conclude(self, trainer: Trainer, run: int, status: str, reason: str, asked_to_stop: int | None) -> None:
        """Write summary.json, after a last look at what it vouches for; a run that pauses has none.

        Raises:
            OwnershipLost, OSError: it was not written.
        """
        if status == "paused":
            self._pause(self.row, trained=True, asked_to_stop=asked_to_stop)
            return
        self.metrics.settle()
        self.reader_files.settle()
        parts = parts_of(trainer, run)
        summary = {
            "status": status,
            "reason": reason,
            "run": run_hash(self.experiment),
            "parameters": trainer.group.layout.size if len(trainer.groups) == 1 else [each.rows.layout.size for each in trainer.groups],
            "metrics": self.row,
            "weights_sha256": weights_sha256(parts),
            **({} if parts.keys() == {"model"} else {"weights_parts": parts}),
            "metrics_sha256": hashlib.sha256(self.metrics.content).hexdigest(),
            "config": describe(self.experiment),
            "beside_sha256": self.reader_files.digests(),
            "format": FORMAT,
        }
        self.folder.write(SUMMARY, as_json({**summary, SEAL: seal(summary)}))
        self.checkpoints.forget_damaged()
        self.end(status, reason, asked_to_stop or 0)

    def _pause(self, row: Metrics, trained: bool, asked_to_stop: int | None = None) -> None:
        reason = f"at round {row['round']}, as until={self.config.until:.6g} says; the same command without it continues"
        self.outcome = Outcome("paused", self.folder.path, row, reason, trained, asked_to_stop or 0)
        self._follower.ended("paused")

    def end(self, status: str, reason: str, signal_number: int = 0) -> None:
        """Note how the run ended, if it has not."""
        if self.outcome is None:
            self.outcome = Outcome(status, self.folder.path, self.row, reason, signal_number=signal_number)
            self._follower.ended(status)

    def fail(self, error: Exception) -> None:
        """Note that the run ended with an error, in one line; its traceback goes into error.txt."""
        if self.outcome is not None:
            return
        try:
            self.folder.check()
        except OwnershipLost as lost:
            error = lost  # whatever followed from that
        except OSError:
            pass
        reason = explain(error, self.folder.path, kept=bool(self.checkpoints.rounds()))
        path = self.folder.path / ERROR
        mine = not isinstance(error, ForeignRun | OwnershipLost)
        if mine and write_traceback(error, path) and not isinstance(error, OSError):
            reason += f" (details in {path})"
        self.end("failed", reason)


@contextmanager
def alone(recording: Recording, rescue: Callable[[], None] | None = None) -> Iterator[None]:
    """What goes wrong in writing a run ends that run; those that train beside it go on.

    Args:
        recording: of the run.
        rescue: saves what is in memory, which is tried once more before the run is given up because a file could not be written.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if rescue is not None and isinstance(error, OSError):
            with suppress(Exception):
                rescue()
        recording.fail(error)
