"""The loop of runs that train together: rounds, evaluations and checkpoints, until each has come to its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from fl_hydra.interruption import Interruption
from fl_hydra.runs.conditions import Conditions
from fl_hydra.runs.recording import Recording, alone
from fl_hydra.runs.reporter import Reporter
from fl_hydra.runs.trainers import common_wish, new_trainer

if TYPE_CHECKING:
    from fl_hydra.training.evaluation import Metrics
    from fl_hydra.training.trainer import Trainer


def train_together(recordings: Sequence[Recording], device: str, reporter: Reporter, interruption: Interruption) -> None:
    """Train runs together until each has an outcome, or has to continue under other conditions.

    Raises:
        Interrupted: a signal asked to stop; what is not finished is saved.
    """
    first = recordings[0].experiment
    first.dataset.check_loaded(first.data, first.dataset_info)
    trainer = new_trainer(recordings, common_wish(recordings), device, reporter.warn)
    here = _resume_or_start(recordings, trainer, reporter)
    going_on = _finish(recordings, here, trainer, interruption)
    if not going_on:
        return
    reporter.started(
        [(recording.experiment, recording.folder.path, run.round, run.done) for recording, run in zip(going_on, trainer.runs, strict=True)]
    )
    saved = time.monotonic()
    while going_on:
        trainer.run_round()
        reporter.advanced(max(run.round for run in trainer.runs), min(run.done for run in trainer.runs))
        rows = _evaluate(going_on, trainer)
        save_all = bool(interruption.requested) or time.monotonic() - saved >= going_on[0].config.checkpoint.seconds
        for run, recording in enumerate(going_on):
            with alone(recording, partial(recording.save, trainer, run)):
                _write(recording, trainer, run, rows.get(run), save_all)
        if rows:
            reporter.evaluated(list(rows.values()))
        saved = time.monotonic() if save_all else saved
        going_on = _finish(going_on, going_on, trainer, interruption)
        if going_on and save_all:
            interruption.check()


def _resume_or_start(recordings: Sequence[Recording], trainer: Trainer, reporter: Reporter) -> list[Recording]:
    """Restore a trainer's runs from their checkpoints, and return those that it trains. Changed conditions are reported, and noted in their
    folders."""
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
        if recording in here:
            with alone(recording):
                recording.describe(trainer, run, now, len(trains), recording in trains)
    return here


def _evaluate(recordings: Sequence[Recording], trainer: Trainer) -> dict[int, Metrics]:
    """The next row of metrics of each run that is due to have one, by its place in the trainer."""
    due = [run for run, recording in enumerate(recordings) if trainer.runs[run].samples >= recording.due]
    return dict(zip(due, trainer.evaluate(due), strict=True)) if due else {}


def _write(recording: Recording, trainer: Trainer, run: int, row: Metrics | None, save: bool) -> None:
    """Write what a round has brought: a row of metrics, and a checkpoint where it is time for one or the run has come to its end.

    Raises:
        OwnershipLost, OSError: it was not written.
    """
    if row is not None:
        recording.record(row, len(trainer.runs))
    if save or recording.verdict(trainer.runs[run]) is not None:
        recording.save(trainer, run)
    elif recording.folder.lost:
        recording.folder.check()


def _finish(recordings: Sequence[Recording], here: Sequence[Recording], trainer: Trainer, interruption: Interruption) -> list[Recording]:
    """Conclude the runs that have come to their end; the others, which are then the trainer's only ones.

    Args:
        recordings: of the trainer's runs. here: those of them that continue in this trainer.
    """
    for run, recording in enumerate(recordings):
        if recording in here and recording.outcome is None and (verdict := recording.verdict(trainer.runs[run])):
            with alone(recording, partial(recording.save, trainer, run)):
                recording.conclude(trainer, run, *verdict, interruption.requested)
    going_on = [run for run, recording in enumerate(recordings) if recording in here and recording.outcome is None]
    if going_on and len(going_on) < len(recordings):
        trainer.retain_runs(going_on)
    return [recordings[run] for run in going_on]
