"""One run from its configuration to its result: found finished, continued or started, and never lost."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fl_hydra.config import ENGINES, Config, check_device, resolve
from fl_hydra.errors import UserError
from fl_hydra.runs.checkpoint import Checkpoints
from fl_hydra.runs.folder import SEAL, RunBusy, RunFolder, join_section, seal
from fl_hydra.runs.identity import describe, run_folder, run_hash
from fl_hydra.runs.interruption import Interrupted, Interruption
from fl_hydra.training.experiment import Experiment

if TYPE_CHECKING:
    from fl_hydra.training.trainer import Metrics, Trainer


class Reporter(Protocol):
    """Who is told how a run, or several that train together, are getting on."""

    def started(self, runs: Sequence[tuple[Experiment, Path, int, float]]) -> None: ...
    def advanced(self, round: int, done: float) -> None: ...
    def evaluated(self, rows: Sequence[Metrics]) -> None: ...
    def warn(self, message: str) -> None: ...
    def ended(self) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `finished`, `diverged`, `failed`, `busy` or `interrupted`, with the reason where it is not finished.

    metrics: the last row. trained: whether anything was trained now, or the result was there already.
    signal_number: of the signal that asked to stop, if one came; a run that was in its last round ends all the same.
    """

    status: str
    folder: Path
    metrics: Metrics
    reason: str = ""
    trained: bool = True
    signal_number: int = 0

    @property
    def objective(self) -> float:
        """What a search maximises: the final validation accuracy; 0 for a run that has none."""
        return float(self.metrics.get("val/acc") or 0.0) if self.status == "finished" else 0.0


def find(experiment: Experiment, outputs: Path) -> Outcome | None:
    """The result of a run that has ended before; None if it has to be trained."""
    folder = RunFolder(run_folder(experiment, outputs))
    summary = folder.summary()
    if summary is None:
        return None
    return Outcome(summary["status"], folder.path, summary["metrics"], summary.get("reason", ""), trained=False)


def execute(config: Config, reporter: Reporter) -> Outcome:
    """Run a configuration, or find its result.

    Raises:
        UserError: the configuration cannot be run; nothing was written.
    """
    return execute_together([config], reporter)[0]


def execute_together(configs: Sequence[Config], reporter: Reporter) -> list[Outcome]:
    """Run configurations of one shape (:func:`fl_hydra.runs.packing.shape`) as rows of one training, each in its own folder.

    What is finished is found, what another process writes is left to it, and what ends early leaves the others going on.

    Raises:
        UserError: a configuration cannot be run; nothing was written.
    """
    executions: dict[Path, _Execution] = {}
    folders = []
    for config in configs:
        experiment = resolve(config)
        folder = RunFolder(run_folder(experiment, Path(config.outputs)))
        folders.append(folder.path)
        executions.setdefault(folder.path, _Execution(config, experiment, folder, reporter))
    try:
        with ExitStack() as locks:
            for execution in executions.values():
                with _alone(execution):
                    execution.begin(locks)
            waiting = [execution for execution in executions.values() if execution.outcome is None]
            if waiting:
                _train(waiting, reporter)
    except Interrupted as error:
        reason = f"stopped by {error}; everything up to the last checkpoint is kept: run the same command again to go on"
        for execution in executions.values():
            execution.end("interrupted", reason, error.signal_number)
    except UserError:
        raise
    except Exception as error:
        for execution in executions.values():
            if execution.outcome is None:
                execution.end("failed", _explain(error, execution.folder))
    finally:
        reporter.ended()
    return [outcome for folder in folders if (outcome := executions[folder].outcome) is not None]


def _explain(error: Exception, folder: RunFolder) -> str:
    """One line for a failure; the traceback goes into error.txt, if there is room for it."""
    try:
        (folder.path / "error.txt").write_text("".join(traceback.format_exception(error)))
    except OSError:
        pass  # the disk is full, which is then what the line says
    if isinstance(error, OSError):
        way_out = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "mend that"
        where = error.filename or folder.path
        kept = "the last checkpoint is kept: " if any(folder.checkpoints.glob("round-*.pt")) else ""
        return f"{error.strerror or error}: {where}; {kept}{way_out}, then run the same command again"
    what = " ".join(str(error).split()) or type(error).__name__
    return f"{type(error).__name__}: {what[:300]} (details in {folder.path / 'error.txt'})"


@lru_cache(maxsize=1)
def _default_threads() -> int:
    """The threads that PyTorch takes by itself, read before any run has changed them."""
    import torch

    return torch.get_num_threads()


class _Execution:
    """A run that is being written by this process."""

    def __init__(self, config: Config, experiment: Experiment, folder: RunFolder, reporter: Reporter) -> None:
        self.config, self.experiment, self.folder, self.reporter = config, experiment, folder, reporter
        self.outcome: Outcome | None = None
        self.checkpoints = Checkpoints(folder.checkpoints)
        self.length = 0
        """Bytes of metrics.jsonl that the next checkpoint answers for."""
        self.references: dict[int, dict[int, int]] = {}
        """The client state that each kept checkpoint refers to."""
        self.row: Metrics = {}
        self.seconds = 0.0
        """Spent on it before this process."""
        self.due = 0
        """Samples at which the next row of metrics is due."""

    def begin(self, locks: ExitStack) -> None:
        """Find the run's result, or take its lock.

        Raises:
            UserError: the device is not there.
        """
        outputs = Path(self.config.outputs)
        if self.config.section is not None:
            join_section(self.config.section, self.folder.path, outputs)
        self.outcome = find(self.experiment, outputs)
        if self.outcome is not None:
            return
        check_device(self.config.device, self.config.engine)
        try:
            locks.enter_context(self.folder.locked())
        except RunBusy as error:
            self.outcome = Outcome("busy", self.folder.path, {}, str(error), trained=False)
            return
        # Another process may have finished it between the look and the lock.
        self.outcome = find(self.experiment, outputs)
        if self.outcome is None:
            (self.folder.path / "error.txt").unlink(missing_ok=True)

    def end(self, status: str, reason: str, signal_number: int = 0) -> None:
        """Note how the run ended, if it has not."""
        if self.outcome is None:
            self.outcome = Outcome(status, self.folder.path, self.row, reason, signal_number=signal_number)

    def stored_environment(self) -> dict[str, Any]:
        """What the run was begun with; empty if it was not begun, or if the file was damaged."""
        try:
            stored = json.loads((self.folder.path / "environment.json").read_text())
            sound = stored["engine"] in ENGINES and isinstance(stored["threads"], int) and stored["threads"] >= 1
            return dict(stored) if sound else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def write_environment(self, environment: dict[str, Any]) -> None:
        """Keep what the run was begun with on top, and add what it goes on with."""
        stored = self.stored_environment()
        for key in ("engine", "threads", "device", "torch"):
            if key in stored and stored[key] != environment[key]:
                self.reporter.warn(
                    f"this run was begun with {key}={stored[key]} and goes on with {environment[key]}: "
                    "its figures stay right, but not the same bit by bit"
                )
        history = stored.pop("continued_with", [])
        if stored and environment not in (stored, *history):
            history.append(environment)
        self.folder.write_json("environment.json", {**(stored or environment), **({"continued_with": history} if history else {})})

    def write_config(self) -> None:
        """Write config.yaml."""
        from omegaconf import OmegaConf

        from fl_hydra.files import write_atomically

        content = {"run": run_hash(self.experiment), "resolved": describe(self.experiment)}
        composed = OmegaConf.merge(OmegaConf.create(content), {"config": OmegaConf.structured(self.config)})
        write_atomically(self.folder.path / "config.yaml", OmegaConf.to_yaml(composed).encode())

    def restore(self, trainer: Trainer, run: int) -> None:
        """Go on from the newest sound checkpoint, if there is one."""

        def use(content: dict[str, Any]) -> None:
            self.folder.cut_metrics(content["metrics_bytes"])
            trainer.restore(content["trainer"], run)
            self.length, self.row, self.seconds = content["metrics_bytes"], content["row"], content["seconds"]
            self.references = {content["trainer"]["round"]: content["trainer"]["clients"]}

        if not self.checkpoints.restore(use, self.reporter.warn):
            self.folder.cut_metrics(0)
        self.schedule(trainer.members[run].samples)

    def schedule(self, samples: int) -> None:
        """The next row is due at the next of the points that divide the budget equally."""
        budget, points = self.experiment.budget, self.experiment.points
        passed = samples * points // budget
        self.due = min(budget, -(-(passed + 1) * budget // points))

    def record(self, row: Metrics, seconds: float, together: int) -> str:
        """Append a row of metrics; why the run has diverged, if it has."""
        self.row = row
        self.length = self.folder.append(self.folder.metrics, row)
        timing = {"round": row["round"], "samples": row["samples"], "seconds": round(self.seconds + seconds, 3)}
        self.folder.append(self.folder.timings, timing | ({"together": together} if together > 1 else {}))
        self.schedule(int(row["samples"] or 0))
        bad = [name for name in ("train/loss", "val/loss", "test/loss") if row[name] is None and row[name[:-4] + "acc"] is not None]
        return f"{' and '.join(bad)} not finite at round {row['round']}; try a smaller optimizer.lr" if bad else ""

    def save(self, trainer: Trainer, run: int, seconds: float) -> None:
        """Write a checkpoint."""
        content = trainer.checkpoint(run)
        round = trainer.members[run].round
        kept = self.checkpoints.save(
            round, {"trainer": content, "metrics_bytes": self.length, "row": dict(self.row), "seconds": self.seconds + seconds}
        )
        self.references[round] = content["clients"]
        self.references = {round: clients for round, clients in self.references.items() if round in kept}
        if len(self.references) == len(kept):  # else a kept checkpoint of an earlier process may refer to more
            trainer.members[run].clients.collect(list(self.references.values()))

    def conclude(self, trainer: Trainer, run: int, status: str, reason: str, asked_to_stop: int | None) -> None:
        """Write summary.json."""
        summary = {
            "status": status,
            "reason": reason,
            "run": run_hash(self.experiment),
            "parameters": trainer.layout.size,
            "metrics": self.row,
            "weights_sha256": hashlib.sha256(trainer.weights(run).contiguous().numpy().tobytes()).hexdigest(),
            "metrics_sha256": hashlib.sha256(self.folder.metrics.read_bytes()).hexdigest(),
            "config": describe(self.experiment),
            "format": 2,
        }
        self.folder.write_json("summary.json", {**summary, SEAL: seal(summary)})
        self.end(status, reason, asked_to_stop or 0)


def _train(executions: list[_Execution], reporter: Reporter) -> None:
    """Train runs together until each has an outcome.

    Raises:
        Interrupted: a signal asked to stop; what is not finished is saved.
    """
    with Interruption() as interruption:
        trainer = _make_trainer(executions, reporter)
        for run, execution in enumerate(executions):
            if execution.outcome is None:
                with _alone(execution):
                    execution.restore(trainer, run)
        executions = _end_finished(executions, trainer, interruption)
        reporter.started(
            [
                (execution.experiment, execution.folder.path, member.round, member.done)
                for execution, member in zip(executions, trainer.members, strict=True)
            ]
        )
        began = saved = time.monotonic()
        while executions:
            trainer.run_round()
            reporter.advanced(max(member.round for member in trainer.members), min(member.done for member in trainer.members))
            due = [run for run, execution in enumerate(executions) if trainer.members[run].samples >= execution.due]
            rows = trainer.evaluate(due) if due else []
            for run, row in zip(due, rows, strict=True):
                with _alone(executions[run]):
                    if reason := executions[run].record(row, time.monotonic() - began, len(executions)):
                        executions[run].conclude(trainer, run, "diverged", reason, interruption.requested)
            if rows:
                reporter.evaluated(rows)
            save_all = bool(interruption.requested) or time.monotonic() - saved >= executions[0].config.checkpoint.seconds
            for run, execution in enumerate(executions):
                if execution.outcome is None and (save_all or trainer.members[run].finished):
                    with _alone(execution):
                        execution.save(trainer, run, time.monotonic() - began)
            saved = time.monotonic() if save_all else saved
            executions = _end_finished(executions, trainer, interruption)
            if executions and save_all:
                interruption.check()


@contextmanager
def _alone(execution: _Execution) -> Iterator[None]:
    """What goes wrong in writing a run ends that run; those that train beside it go on."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        execution.end("failed", _explain(error, execution.folder))


def _end_finished(executions: list[_Execution], trainer: Trainer, interruption: Interruption) -> list[_Execution]:
    """Conclude the runs whose budget is spent; the ones that go on, which are then the trainer's only ones."""
    for run, execution in enumerate(executions):
        if execution.outcome is None and trainer.members[run].finished:
            with _alone(execution):
                execution.conclude(trainer, run, "finished", "", interruption.requested)
    going_on = [run for run, execution in enumerate(executions) if execution.outcome is None]
    if going_on and len(going_on) < len(executions):
        trainer.keep(going_on)
    return [executions[run] for run in going_on]


def _make_trainer(executions: list[_Execution], reporter: Reporter) -> Trainer:
    import torch

    from fl_hydra.training.trainer import Trainer

    config = executions[0].config
    stored = next((environment for execution in executions if (environment := execution.stored_environment())), {})
    stored = stored.get("continued_with", [stored])[-1]  # what it went on with last
    torch.set_num_threads(config.threads or stored.get("threads") or _default_threads())
    device = config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    trainer = Trainer(
        *(execution.experiment for execution in executions),
        engine=stored.get("engine", "auto") if config.engine == "auto" else config.engine,
        device=device,
        client_folders=[execution.folder.checkpoints / "clients" for execution in executions],
        rows_at_once=stored.get("rows_at_once") if stored.get("together", 1) == len(executions) else None,
        samples_at_once=stored.get("samples_at_once"),
        notify=reporter.warn,
    )
    environment = {
        "engine": trainer.engine_name,
        "rows_at_once": trainer.rows_at_once,
        "samples_at_once": trainer.samples_at_once,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else "cpu",
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{package: version(package) for package in ("fl-hydra", "torch", "numpy", "hydra-core")},
        **({"together": len(executions)} if len(executions) > 1 else {}),
    }
    for execution in executions:
        with _alone(execution):
            execution.write_environment(environment)
            execution.write_config()
    return trainer
