"""A run that this process writes: its files, from the first look at its folder to its summary."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_hydra.config import Config, check_device
from fl_hydra.errors import UserError
from fl_hydra.files import CorruptFile
from fl_hydra.runs.checkpoint import Checkpoint, Checkpoints
from fl_hydra.runs.conditions import Conditions, Wish, environment
from fl_hydra.runs.ended import find, known_outcome, refuse_foreign
from fl_hydra.runs.failure import ForeignRun, explain, write_traceback
from fl_hydra.runs.folder import (
    CLIENTS,
    CONFIG,
    ENVIRONMENT,
    FORMAT,
    METRICS,
    SEAL,
    SUMMARY,
    TIMINGS,
    RowsFile,
    RunFolder,
    as_json,
    join_section,
    not_finite,
    rows_of,
    seal,
)
from fl_hydra.runs.holdings import holdings
from fl_hydra.runs.identity import describe, run_folder, run_hash
from fl_hydra.runs.outcome import Outcome
from fl_hydra.runs.ownership import OwnershipLost, RunBusy
from fl_hydra.sharding.base import Shards
from fl_hydra.tracking.follower import follow
from fl_hydra.tracking.trackers.base import Followed
from fl_hydra.training.experiment import Experiment

if TYPE_CHECKING:
    from fl_hydra.training.evaluation import Metrics
    from fl_hydra.training.packed_run import PackedRun
    from fl_hydra.training.trainer import Trainer

ERROR = "error.txt"


class Recording:
    """One run while it is written."""

    def __init__(self, config: Config, experiment: Experiment, warn: Callable[[str], None]) -> None:
        self.config, self.experiment, self.warn = config, experiment, warn
        self.folder = RunFolder(run_folder(experiment, Path(config.outputs)))
        self.outcome: Outcome | None = None
        self.checkpoints = Checkpoints(self.folder.checkpoints, self.folder.check, warn)
        self.metrics = RowsFile(self.folder, METRICS, warn)
        self.timings = RowsFile(self.folder, TIMINGS, warn)
        self.wish = Wish.of(config, None, "cpu")
        """The conditions that it is to be trained under."""
        self.begun: Conditions | None = None
        """Those that it was trained under so far; None before its first checkpoint."""
        self.row: Metrics = {}
        self.due = 0
        """Samples at which the next row of metrics is due."""
        self._environments: list[dict[str, Any]] = []
        self._beside: dict[str, bytes] = {}
        """What environment.json and config.yaml hold."""
        self._references: dict[int, Mapping[int, Any]] = {}
        """The client state that each kept checkpoint refers to."""
        self._seconds = 0.0
        """Spent on it before this process."""
        self._since = time.monotonic()
        self._noted = False
        self._follower = follow(config.tracker, self._followed(), warn)

    def _followed(self) -> Followed:
        """The run as a tracker is told of it."""
        config = self.config
        return Followed(
            folder=self.folder.path.absolute(),
            run=run_hash(self.experiment),
            name=self.folder.path.name,
            config=describe(self.experiment),
            group=config.section or config.study or config.algorithm.option,
            trial=config.study is not None,
            outputs=Path(config.outputs).absolute(),
        )

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

    def rest(self, checkpoint: Checkpoint | None) -> None:
        """Note that the run has paused, if it has come as far as it is to come now. Nothing need be trained to see that."""
        if checkpoint is None or self.config.until is None:
            return
        try:
            rows = rows_of(checkpoint.metrics.encode())
        except CorruptFile:
            return  # it is given up where the run is restored
        if (row := self._pause(rows)) is not None:
            self.metrics.restore(checkpoint.metrics.encode())
            self._pauses_at(row, False)

    def _pause(self, rows: list[Metrics]) -> Metrics | None:
        """The row that the run pauses at: the first that is due when the part `until` of its budget is done.

        None if it is not there, or if the run has diverged in it, which is an end.
        """
        if self.config.until is None:
            return None
        row = next((row for row in rows if (row["samples"] or 0) >= self.config.until * self.experiment.budget), None)
        return None if row is None or not_finite(row) else row

    def _pauses_at(self, row: Metrics, trained: bool, asked_to_stop: int | None = None) -> None:
        reason = f"at round {row['round']}, as until={self.config.until:.6g} says; the same command without it goes on"
        self.outcome = Outcome("paused", self.folder.path, row, reason, trained, asked_to_stop or 0)
        self._follower.ended("paused")

    def restore(self, trainer: Trainer, run: int) -> bool:
        """Go on from the newest sound checkpoint, or begin.

        Returns:
            Whether the run goes on in this trainer. If a checkpoint cannot be used, and the one before it was written under other
            conditions, it does not.

        Raises:
            ForeignRun: a checkpoint is another run's.
            OSError: a file cannot be read now, which is no reason to give up what is in it.
        """
        trainer.runs[run].clients.check = self.folder.check
        planned, fresh = self.wish, trainer.checkpoint(run)
        while True:
            checkpoint = self.look(trainer.device.type)
            if self.wish != planned:
                return False
            if checkpoint is None:
                if self.metrics.found:
                    self.warn(f"{self.folder.path}: there are rows of metrics and no checkpoint to go on from; training begins again")
                self.metrics.restore(b"")
                self._for_the_reader(partial(self.timings.restore, b""))
                break
            try:
                _check_fits(checkpoint.trainer, fresh)
                rows = rows_of(checkpoint.metrics.encode())
                trainer.restore(checkpoint.trainer, run)
            except OSError:
                raise
            except Exception as error:
                if _out_of_memory(error):
                    raise
                trainer.restore(fresh, run)  # nothing of it stays behind
                self.checkpoints.give_up(checkpoint.round, error)
                continue
            self.metrics.restore(checkpoint.metrics.encode())
            self._for_the_reader(partial(self.timings.restore, checkpoint.timings.encode()))
            self.row = rows[-1] if rows else {}
            self._seconds, self._environments = checkpoint.seconds, list(checkpoint.environments)
            self._references = {checkpoint.round: checkpoint.trainer["clients"]}
            break
        self._since = time.monotonic()
        self._schedule(trainer.runs[run].samples)
        if checkpoint is None:
            self._follower.held(b"")
        else:
            path = self.checkpoints.path(checkpoint.round)
            self._follower.held(self.metrics.content, path, checkpoint.round, checkpoint.trainer["clients"])
        return True

    def describe_environment(self, shards: Shards, now: Conditions, together: int, trains: bool) -> None:
        """Write what is for the reader alone: config.yaml, what clients hold, and what the run was begun and goes on with.

        Args:
            shards: what each client has.
            now: the present conditions.
            together: how many runs train.
            trains: whether this one does, or is only mended.
        """
        present = environment(now, together)
        if trains and present not in self._environments:
            self._environments.append(present)
        first, *others = self._environments
        self._beside = {
            ENVIRONMENT: as_json({**first, **({"continued_with": others} if others else {})}),
            CONFIG: self._composed(),
        }
        if self.experiment.K > 1:
            self._beside[CLIENTS] = (json.dumps(holdings(self.experiment, shards)) + "\n").encode()
        for name, content in self._beside.items():
            self._for_the_reader(partial(self.folder.write, name, content))

    def _composed(self) -> bytes:
        from omegaconf import OmegaConf

        content = {"run": run_hash(self.experiment), "resolved": describe(self.experiment)}
        composed = OmegaConf.merge(OmegaConf.create(content), {"config": OmegaConf.structured(self.config)})
        return OmegaConf.to_yaml(composed).encode()

    def _for_the_reader(self, write: Callable[[], None]) -> None:
        """Write what no result depends on: a failure is a note."""
        try:
            write()
        except OSError as error:
            if not self._noted:
                self.warn(f"{error.strerror or error}: {error.filename or self.folder.path}; the run goes on without it")
            self._noted = True

    def _schedule(self, samples: int) -> None:
        """The next row is due at the next of the points that divide the budget equally."""
        budget, points = self.experiment.budget, self.experiment.points
        passed = samples * points // budget
        self.due = min(budget, -(-(passed + 1) * budget // points))

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
        self._schedule(int(row["samples"] or 0))
        timing = {"round": row["round"], "samples": row["samples"], "seconds": round(self.seconds, 3)}
        self._for_the_reader(partial(self.timings.append, timing | ({"together": together} if together > 1 else {})))
        self.metrics.append(row)  # last: if it fails, the checkpoint that is tried once more has both rows

    def verdict(self, packed_run: PackedRun) -> tuple[str, str] | None:
        """How the run has ended, and why, where it is not finished; None if it goes on."""
        if bad := not_finite(self.row):
            narrow = ", or precision=bf16 or fp32: fp16 overflows above 65,504" if self.experiment.precision == "fp16" else ""
            return "diverged", f"{' and '.join(bad)} not finite at round {self.row['round']}; try a smaller optimizer.lr{narrow}"
        if packed_run.finished:
            return "finished", ""
        return ("paused", "") if self._pause([self.row] if self.row else []) is not None else None

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
            environments=self._environments,
            trainer=trainer.checkpoint(run),
            metrics=self.metrics.content.decode(),
            timings=self.timings.content.decode(),
            seconds=self.seconds,
        )
        kept = self.checkpoints.save(checkpoint)
        self._references[checkpoint.round] = checkpoint.trainer["clients"]
        self._references = {round: clients for round, clients in self._references.items() if round in kept}
        if len(self._references) == len(kept):  # else a kept checkpoint of an earlier process may refer to more
            trainer.runs[run].clients.collect(list(self._references.values()))
        self._follower.held(self.metrics.content, self.checkpoints.path(checkpoint.round), checkpoint.round, checkpoint.trainer["clients"])

    def conclude(self, trainer: Trainer, run: int, status: str, reason: str, asked_to_stop: int | None) -> None:
        """Write summary.json, after a last look at what it vouches for; a run that pauses has none.

        Raises:
            OwnershipLost, OSError: it was not written.
        """
        if status == "paused":
            self._pauses_at(self.row, True, asked_to_stop)
            return
        self.metrics.settle()
        self._for_the_reader(self.timings.settle)
        summary = {
            "status": status,
            "reason": reason,
            "run": run_hash(self.experiment),
            "parameters": trainer.group.layout.size,
            "metrics": self.row,
            "weights_sha256": hashlib.sha256(trainer.weights(run).contiguous().numpy().tobytes()).hexdigest(),
            "metrics_sha256": hashlib.sha256(self.metrics.content).hexdigest(),
            "config": describe(self.experiment),
            "beside_sha256": {
                name: hashlib.sha256(content).hexdigest() for name, content in {**self._beside, TIMINGS: self.timings.content}.items()
            },
            "format": FORMAT,
        }
        self.folder.write(SUMMARY, as_json({**summary, SEAL: seal(summary)}))
        self.checkpoints.forget_damaged()
        self.end(status, reason, asked_to_stop or 0)


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


def _out_of_memory(error: Exception) -> bool:
    from fl_hydra.training.engines import out_of_memory

    return isinstance(error, MemoryError) or out_of_memory(error)


def _check_fits(content: dict[str, Any], fresh: dict[str, Any]) -> None:
    """Compare what a checkpoint holds of a trainer with what it holds before its first round.

    Raises:
        CorruptFile: something is missing, or of another kind or shape.
    """
    import torch

    for name, value in fresh.items():
        if name not in content:
            raise CorruptFile(f"it has no {name}")
        other = content[name]
        if isinstance(value, torch.Tensor):
            like = isinstance(other, torch.Tensor) and (other.shape, other.dtype) == (value.shape, value.dtype)
        elif isinstance(value, dict):
            like = isinstance(other, dict)
            if like and name in ("state", "traffic"):  # what else is a dictionary grows from round to round
                _check_fits(other, value)
        elif isinstance(value, int | float):
            like = isinstance(other, int | float) and not (isinstance(value, int) and isinstance(other, float))
        else:  # None, until there is something
            like = True
        if not like:
            raise CorruptFile(f"its {name} is of another kind or shape")
