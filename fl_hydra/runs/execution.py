"""Runs from their configurations to their results: found finished, continued or started, and never lost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from fl_hydra.config import Config
from fl_hydra.errors import UserError
from fl_hydra.interruption import Interrupted, Interruption
from fl_hydra.resolving import resolve
from fl_hydra.runs.conditions import Conditions, Wish
from fl_hydra.runs.failure import explain
from fl_hydra.runs.outcome import Outcome
from fl_hydra.runs.ownership import observe
from fl_hydra.runs.recording import Recording, alone
from fl_hydra.training.experiment import Experiment

if TYPE_CHECKING:
    from fl_hydra.training.evaluation import Metrics
    from fl_hydra.training.trainer import Trainer


class Reporter(Protocol):
    """Who is told how a run, or several that train together, are getting on."""

    def started(self, runs: Sequence[tuple[Experiment, Path, int, float]]) -> None: ...
    def advanced(self, round: int, done: float) -> None: ...
    def evaluated(self, rows: Sequence[Metrics]) -> None: ...
    def warn(self, message: str) -> None: ...
    def ended(self) -> None: ...


def execute(config: Config, reporter: Reporter) -> Outcome:
    """Run a configuration, or find its result.

    Raises:
        UserError: the configuration cannot be run; nothing was trained.
    """
    return execute_together([config], reporter)[0]


def execute_together(configs: Sequence[Config], reporter: Reporter) -> list[Outcome]:
    """Run configurations of one shape (:func:`fl_hydra.runs.packing.shape`) as rows of one training, each in its own folder.

    What is finished is found, what another process writes is left to it, and what ends early leaves the others going on. Runs that
    were begun under different conditions are trained one group after the other.

    Raises:
        UserError: a configuration cannot be run; nothing was trained.
    """
    recordings: dict[Path, Recording] = {}
    folders = []
    for config in configs:
        recording = Recording(config, resolve(config), reporter.warn)
        folders.append(recording.folder.path)
        recordings.setdefault(recording.folder.path, recording)
    try:
        with ExitStack() as ownerships:
            for folder in recordings:
                observe(folder)
            for recording in recordings.values():
                with alone(recording):
                    recording.begin(ownerships)
            waiting = [recording for recording in recordings.values() if recording.outcome is None]
            if waiting:
                _train(waiting, reporter)
    except Interrupted as error:
        reason = f"stopped by {error}; everything up to the last checkpoint is kept: run the same command again to go on"
        for recording in recordings.values():
            recording.end("interrupted", reason, error.signal_number)
    except UserError:
        raise
    except Exception as error:
        for recording in recordings.values():
            recording.fail(error)
    finally:
        reporter.ended()
    return [outcome for folder in folders if (outcome := recordings[folder].outcome) is not None]


def _train(recordings: list[Recording], reporter: Reporter) -> None:
    """Train runs, those under equal conditions together, until each has an outcome.

    Raises:
        Interrupted: a signal asked to stop; what is not finished is saved.
    """
    import torch

    device = recordings[0].config.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    with Interruption() as interruption:
        for recording in recordings:
            with alone(recording):
                recording.rest(recording.look(device))
        apart = False
        while recordings := [recording for recording in recordings if recording.outcome is None]:
            interruption.check()
            group = recordings[:1] if apart else _under_equal_conditions(recordings, device)
            try:
                _train_together(group, device, reporter, interruption)
            except UserError:
                raise
            except Exception as error:
                if len(group) > 1:  # one of them may be the reason, and the others need not end with it
                    reporter.warn(
                        f"these {len(group)} runs cannot go on together ({explain(error, group[0].folder.path)}); each goes on alone"
                    )
                    apart = True
                else:
                    group[0].fail(error)
            finally:
                reporter.ended()


def _under_equal_conditions(recordings: list[Recording], device: str) -> list[Recording]:
    """The runs to train next: some that were begun under equal conditions, and those not begun that would get the same."""
    wish = next((recording.wish for recording in recordings if recording.begun is not None), recordings[0].wish)
    fresh = [recording for recording in recordings if recording.begun is None]
    if fresh and wish != fresh[0].wish and Wish.met_by(Conditions.now(_trainer([fresh[0]], fresh[0].wish, device))) == wish:
        return [recording for recording in recordings if recording.wish == wish or recording.begun is None]
    return [recording for recording in recordings if recording.wish == wish]


def _train_together(recordings: list[Recording], device: str, reporter: Reporter, interruption: Interruption) -> None:
    """Train runs as rows of one training until each has an outcome, or has to go on under other conditions.

    Raises:
        Interrupted: a signal asked to stop; what is not finished is saved.
    """
    wish = next((recording.wish for recording in recordings if recording.begun is not None), recordings[0].wish)
    first = recordings[0].experiment
    first.dataset.check_loaded(first.data, first.dataset_info)
    trainer = _trainer(recordings, wish, device, reporter)
    recordings = _going_on(recordings, _restored(recordings, trainer, reporter), trainer, interruption)
    if not recordings:
        return
    reporter.started(
        [
            (recording.experiment, recording.folder.path, packed_run.round, packed_run.done)
            for recording, packed_run in zip(recordings, trainer.runs, strict=True)
        ]
    )
    saved = time.monotonic()
    while recordings:
        trainer.run_round()
        reporter.advanced(max(packed_run.round for packed_run in trainer.runs), min(packed_run.done for packed_run in trainer.runs))
        due = [run for run, recording in enumerate(recordings) if trainer.runs[run].samples >= recording.due]
        rows = trainer.evaluate(due) if due else []
        save_all = bool(interruption.requested) or time.monotonic() - saved >= recordings[0].config.checkpoint.seconds
        for run, recording in enumerate(recordings):
            with alone(recording, partial(recording.save, trainer, run)):
                if run in due:
                    recording.record(rows[due.index(run)], len(recordings))
                if save_all or recording.verdict(trainer.runs[run]) is not None:
                    recording.save(trainer, run)
                elif recording.folder.lost:
                    recording.folder.check()
        if rows:
            reporter.evaluated(rows)
        saved = time.monotonic() if save_all else saved
        recordings = _going_on(recordings, recordings, trainer, interruption)
        if recordings and save_all:
            interruption.check()


def _restored(recordings: list[Recording], trainer: Trainer, reporter: Reporter) -> list[Recording]:
    """Bring a trainer to where its runs are; those that are trained by it. What is not as it was is said, and noted in their folders."""
    here = []
    for run, recording in enumerate(recordings):
        with alone(recording):
            if recording.restore(trainer, run):
                here.append(recording)
    now = Conditions.now(trainer)
    trains = [recording for run, recording in enumerate(recordings) if recording in here and recording.verdict(trainer.runs[run]) is None]
    for note in dict.fromkeys(note for recording in trains if recording.begun is not None for note in recording.begun.changes(now)):
        reporter.warn(note)
    for run, recording in enumerate(recordings):
        if recording not in here:
            continue
        with alone(recording):
            recording.describe_environment(trainer.runs[run].shards, now, len(trains), recording in trains)
    return here


def _going_on(recordings: list[Recording], here: list[Recording], trainer: Trainer, interruption: Interruption) -> list[Recording]:
    """Conclude the runs that have come to their end; the others of those that are trained here, which are then the trainer's only ones."""
    for run, recording in enumerate(recordings):
        if recording in here and recording.outcome is None and (verdict := recording.verdict(trainer.runs[run])):
            with alone(recording, partial(recording.save, trainer, run)):
                recording.conclude(trainer, run, *verdict, interruption.requested)
    going_on = [run for run, recording in enumerate(recordings) if recording in here and recording.outcome is None]
    if going_on and len(going_on) < len(recordings):
        trainer.retain_runs(going_on)
    return [recordings[run] for run in going_on]


@lru_cache(maxsize=1)
def _default_threads() -> int:
    """The threads that PyTorch takes by itself, read before any run has changed them."""
    import torch

    return torch.get_num_threads()


def _trainer(recordings: list[Recording], wish: Wish, device: str, reporter: Reporter | None = None) -> Trainer:
    """A trainer of runs before their first round, under the conditions that are wished for.

    Raises:
        UserError: the shards cannot be made.
    """
    import torch

    from fl_hydra.training.trainer import Trainer

    default = _default_threads()
    torch.set_num_threads(wish.threads or default)
    return Trainer(
        *(recording.experiment for recording in recordings),
        engine=wish.engine,
        device=device,
        client_folders=[recording.folder.checkpoints / "clients" for recording in recordings],
        rows_at_once=wish.rows_at_once,
        samples_at_once=wish.samples_at_once,
        notify=(lambda line: None) if reporter is None else reporter.warn,
    )
