"""One run from its configuration to its result: found finished, continued or started, and never lost."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import time
import traceback
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fl_hydra.config import ENGINES, Config, check_device, resolve
from fl_hydra.errors import UserError
from fl_hydra.runs.checkpoint import Checkpoints
from fl_hydra.runs.folder import RunBusy, RunFolder, join_section
from fl_hydra.runs.identity import describe, run_folder, run_hash
from fl_hydra.runs.interruption import Interrupted, Interruption
from fl_hydra.training.experiment import Experiment

if TYPE_CHECKING:
    from fl_hydra.training.trainer import Metrics, Trainer


class Reporter(Protocol):
    """Who is told how a run is getting on."""

    def started(self, experiment: Experiment, folder: Path, round: int) -> None: ...
    def advanced(self, round: int, samples: int) -> None: ...
    def evaluated(self, metrics: Metrics) -> None: ...
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
    experiment = resolve(config)
    outputs = Path(config.outputs)
    folder = RunFolder(run_folder(experiment, outputs))
    try:
        if config.section is not None:
            join_section(config.section, folder.path, outputs)
        if (found := find(experiment, outputs)) is not None:
            return found
        check_device(config.device)
        with folder.locked():
            # Another process may have finished it between the look and the lock.
            return find(experiment, outputs) or _Execution(config, experiment, folder, reporter).run()
    except RunBusy as error:
        return Outcome("busy", folder.path, {}, str(error), trained=False)
    except Interrupted as error:
        reason = f"stopped by {error}; everything up to the last checkpoint is kept: run the same command again to go on"
        return Outcome("interrupted", folder.path, {}, reason, signal_number=error.signal_number)
    except UserError:
        raise
    except Exception as error:
        return Outcome("failed", folder.path, {}, _explain(error, folder))
    finally:
        reporter.ended()


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
        self.checkpoints = Checkpoints(folder.checkpoints)
        self.length = 0
        """Bytes of metrics.jsonl that the next checkpoint answers for."""
        self.references: dict[int, dict[int, int]] = {}
        """The client state that each kept checkpoint refers to."""
        self.row: Metrics = {}
        self.seconds = 0.0

    def run(self) -> Outcome:
        (self.folder.path / "error.txt").unlink(missing_ok=True)
        with Interruption() as interruption:
            trainer = self._make_trainer()
            self._restore(trainer)
            self.reporter.started(self.experiment, self.folder.path, trainer.round)
            saved = began = time.monotonic()
            due = self._next_evaluation(trainer)
            while not trainer.finished:
                trainer.run_round()
                self.reporter.advanced(trainer.round, trainer.samples)
                if trainer.samples >= due:
                    due = self._next_evaluation(trainer)
                    self._evaluate(trainer, self.seconds + time.monotonic() - began)
                    if reason := self._diverged():
                        return self._conclude(trainer, "diverged", reason, interruption.requested)
                if interruption.requested or trainer.finished or time.monotonic() - saved >= self.config.checkpoint.seconds:
                    self._save(trainer, self.seconds + time.monotonic() - began)
                    saved = time.monotonic()
                    if not trainer.finished:
                        interruption.check()
            return self._conclude(trainer, "finished", "", interruption.requested)

    def _next_evaluation(self, trainer: Trainer) -> int:
        """Samples at which the next row is due: the next of the points that divide the budget equally."""
        budget, points = self.experiment.budget, self.experiment.points
        passed = trainer.samples * points // budget
        return min(budget, -(-(passed + 1) * budget // points))

    def _make_trainer(self) -> Trainer:
        import torch

        from fl_hydra.training.trainer import Trainer

        stored = self._stored_environment()
        torch.set_num_threads(self.config.threads or stored.get("threads") or _default_threads())
        device = self.config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        engine = stored.get("engine", "auto") if self.config.engine == "auto" else self.config.engine
        trainer = Trainer(self.experiment, engine=engine, device=device, client_folder=self.folder.checkpoints / "clients")
        environment = {
            "engine": trainer.engine.name,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else "cpu",
            "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            **{package: version(package) for package in ("fl-hydra", "torch", "numpy", "hydra-core")},
        }
        for key in ("engine", "threads", "device", "torch"):
            if key in stored and stored[key] != environment[key]:
                self.reporter.warn(
                    f"this run was begun with {key}={stored[key]} and goes on with {environment[key]}: "
                    "its figures stay right, but not the same bit by bit"
                )
        # What a run was begun with stays on top; every later start that differs is added.
        history = stored.pop("continued_with", [])
        if stored and environment not in (stored, *history):
            history.append(environment)
        self.folder.write_json("environment.json", {**(stored or environment), **({"continued_with": history} if history else {})})
        self._write_config()
        return trainer

    def _stored_environment(self) -> dict[str, Any]:
        """What the run was begun with; empty if it was not begun, or if the file was damaged."""
        try:
            stored = json.loads((self.folder.path / "environment.json").read_text())
            sound = stored["engine"] in ENGINES and isinstance(stored["threads"], int) and stored["threads"] >= 1
            return dict(stored) if sound else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _write_config(self) -> None:
        from omegaconf import OmegaConf

        from fl_hydra.files import write_atomically

        content = {"run": run_hash(self.experiment), "resolved": describe(self.experiment)}
        composed = OmegaConf.merge(OmegaConf.create(content), {"config": OmegaConf.structured(self.config)})
        write_atomically(self.folder.path / "config.yaml", OmegaConf.to_yaml(composed).encode())

    def _restore(self, trainer: Trainer) -> None:
        def use(content: dict[str, Any]) -> None:
            self.folder.cut_metrics(content["metrics_bytes"])
            trainer.restore(content["trainer"])
            self.length, self.row, self.seconds = content["metrics_bytes"], content["row"], content["seconds"]
            self.references = {trainer.round: content["trainer"]["clients"]}

        if not self.checkpoints.restore(use, self.reporter.warn):
            self.folder.cut_metrics(0)

    def _evaluate(self, trainer: Trainer, seconds: float) -> None:
        self.row = trainer.evaluate()
        self.length = self.folder.append(self.folder.metrics, self.row)
        self.folder.append(self.folder.timings, {"round": trainer.round, "samples": trainer.samples, "seconds": round(seconds, 3)})
        self.reporter.evaluated(self.row)

    def _diverged(self) -> str:
        bad = [
            name for name in ("train/loss", "val/loss", "test/loss") if self.row[name] is None and self.row[name[:-4] + "acc"] is not None
        ]
        return f"{' and '.join(bad)} not finite at round {self.row['round']}; try a smaller optimizer.lr" if bad else ""

    def _save(self, trainer: Trainer, seconds: float) -> None:
        content = trainer.checkpoint()
        kept = self.checkpoints.save(
            trainer.round, {"trainer": content, "metrics_bytes": self.length, "row": dict(self.row), "seconds": seconds}
        )
        self.references[trainer.round] = content["clients"]
        self.references = {round: clients for round, clients in self.references.items() if round in kept}
        if len(self.references) == len(kept):  # else a kept checkpoint of an earlier process may refer to more
            trainer.clients.collect(list(self.references.values()))

    def _conclude(self, trainer: Trainer, status: str, reason: str, asked_to_stop: int | None) -> Outcome:
        weights = trainer.state.model.cpu().contiguous().numpy()
        self.folder.write_json(
            "summary.json",
            {
                "status": status,
                "reason": reason,
                "run": run_hash(self.experiment),
                "parameters": trainer.layout.size,
                "metrics": self.row,
                "weights_sha256": hashlib.sha256(weights.tobytes()).hexdigest(),
                "metrics_sha256": hashlib.sha256(self.folder.metrics.read_bytes()).hexdigest(),
                "config": describe(self.experiment),
            },
        )
        return Outcome(status, self.folder.path, self.row, reason, signal_number=asked_to_stop or 0)
