"""Runs from their configurations to their results: found finished, continued or started, and never lost.

One run: its folder is owned (:meth:`Recording.begin`), its conditions are those of its last checkpoint or new ones (`trainers.py`), it goes
on from there or starts (:meth:`Recording.restore`), and the loop trains, evaluates and saves it until it has an outcome (`loop.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from fl_hydra.config import Config
from fl_hydra.errors import UserError
from fl_hydra.interruption import Interrupted, Interruption
from fl_hydra.resolving import resolve
from fl_hydra.runs.failure import explain
from fl_hydra.runs.loop import train_together
from fl_hydra.runs.outcome import Outcome
from fl_hydra.runs.ownership import observe
from fl_hydra.runs.recording import Recording, alone
from fl_hydra.runs.reporter import Reporter
from fl_hydra.runs.trainers import chosen_device, under_equal_conditions


def execute(config: Config, reporter: Reporter) -> Outcome:
    """Run a configuration, or find its result.

    Raises:
        UserError: the configuration cannot be run; nothing was trained.
    """
    return execute_together([config], reporter)[0]


def execute_together(configs: Sequence[Config], reporter: Reporter) -> list[Outcome]:
    """Run configurations of one shape (:func:`fl_hydra.runs.packing.shape`) as rows of one training, each in its own folder.

    Finished runs are found, runs that another process writes are left to it, and when one ends early the others continue. Runs that
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
        reason = f"stopped by {error}; everything up to the last checkpoint is kept: run the same command again to continue"
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
    device = chosen_device(recordings[0].config.device)
    with Interruption() as interruption:
        for recording in recordings:
            with alone(recording):
                recording.pause_if_reached(recording.look(device))
        apart = False
        while recordings := [recording for recording in recordings if recording.outcome is None]:
            interruption.check()
            group = recordings[:1] if apart else under_equal_conditions(recordings, device)
            try:
                train_together(group, device, reporter, interruption)
            except UserError:
                raise
            except Exception as error:
                if len(group) > 1:  # one of them may be the reason, and the others need not end with it
                    reporter.warn(
                        f"these {len(group)} runs cannot continue together ({explain(error, group[0].folder.path)}); each continues alone"
                    )
                    apart = True
                else:
                    group[0].fail(error)
            finally:
                reporter.ended()
