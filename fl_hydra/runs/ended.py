"""Whether a run had ended before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fl_hydra.files import CorruptFile
from fl_hydra.runs.failure import ForeignRun, explain
from fl_hydra.runs.identity import by_key, describe, run_folder, run_hash
from fl_hydra.runs.outcome import Outcome
from fl_hydra.runs.summary import damaged_beside, read_ended
from fl_hydra.training.experiment import Experiment


def find(experiment: Experiment, outputs: Path, warn: Callable[[str], None] = lambda line: None) -> Outcome | None:
    """The result of a run that has ended before; None if it has to be trained.

    A folder that cannot be read, or that holds another run, is an outcome, too: this run has failed. If its files are
    damaged, `warn` is told, and it has to be trained: from its last checkpoint, which repairs it, if there is one.
    """
    folder = run_folder(experiment, outputs)
    try:
        ended = read_ended(folder)
        if ended is None:
            return None
        refuse_foreign(experiment, folder, ended.summary["run"], ended.summary["config"])
        if beside := damaged_beside(folder, ended):
            what = f"{folder}: {' and '.join(beside)} {'is' if len(beside) == 1 else 'are'} damaged or missing"
            if odd := [name for name in beside if (folder / name).is_dir()]:
                warn(f"{what}, which changes no result; move {odd[0]}, which is a folder, away")
            elif any((folder / "checkpoints").glob("round-*.pt")):
                warn(f"{what}; written again from the last checkpoint")
                return None
            else:
                warn(f"{what}, which changes no result; there is no checkpoint to rebuild from")
    except CorruptFile as error:
        warn(f"{folder}: this run had ended, but {error}; it is repaired from its last checkpoint, or made again where there is none")
        return None
    except (OSError, ForeignRun) as error:
        return Outcome("failed", folder, {}, explain(error, folder))
    return Outcome(ended.summary["status"], folder, ended.summary["metrics"], ended.summary.get("reason", ""), trained=False)


def known_outcome(experiment: Experiment, outputs: Path, warn: Callable[[str], None]) -> Outcome | None:
    """As :func:`find`, but without messages about a run that has to be trained."""
    notes: list[str] = []
    if (outcome := find(experiment, outputs, notes.append)) is not None:
        for note in notes:
            warn(note)
    return outcome


def refuse_foreign(experiment: Experiment, folder: Path, run: str, config: dict[str, Any]) -> None:
    """Check that a file belongs to the run of its folder.

    Args:
        experiment: of the run that the folder is named after.
        folder: of the run.
        run, config: what the file says of the run that it belongs to: its hash, and what decides its result.

    Raises:
        ForeignRun: it is another run's.
    """
    if run == run_hash(experiment):
        return
    own, other = by_key(describe(experiment)), by_key(config)
    different = [key for key in {**own, **other} if own.get(key) != other.get(key)]
    shown = ", ".join(f"{key}={other.get(key)} where this run has {own.get(key)}" for key in different[:4])
    more = f", and {len(different) - 4} more" if len(different) > 4 else ""
    longer = "a run of another length is a run of its own, from its first round on: " if different == ["budget"] else ""
    raise ForeignRun(
        f"{folder} holds another run, {run} ({shown}{more}); {longer}move this folder away, for instance to {folder.name}.of-{run}, and "
        "give the same command again"
    )
