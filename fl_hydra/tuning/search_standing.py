"""The progress of searches, read from their folders without torch and without writing to them."""

from __future__ import annotations

import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from fl_hydra.errors import UserError
from fl_hydra.files import CorruptFile
from fl_hydra.runs.standing import is_written
from fl_hydra.tuning.kept import read_kept
from fl_hydra.tuning.pruning import quietly
from fl_hydra.tuning.study import STORAGES, storage_at

ENDED = ("complete", "pruned", "fail")
"""Optuna's states of a trial that has ended."""


@dataclass(frozen=True)
class SearchStanding:
    """A study: how many trials have ended, were pruned, have failed or are unfinished, and whether it is running."""

    name: str
    ended: int
    pruned: int
    failed: int
    open: int
    running: bool
    best: str


def searches(outputs: Path) -> list[SearchStanding]:
    """Every study of an outputs folder."""
    found = []
    for folder in sorted(path for path in (outputs / "studies").glob("*") if path.is_dir()):
        with suppress(UserError):
            states = trial_states(folder)
            ended = {state: count for state, count in states.items() if state in ENDED}
            open_ones = states.get("running", 0) + states.get("waiting", 0)
            best = _best(folder)
            running = is_written(folder)
            found.append(
                SearchStanding(folder.name, sum(ended.values()), ended.get("pruned", 0), ended.get("fail", 0), open_ones, running, best)
            )
    return found


def print_searches(outputs: Path) -> None:
    """A table of the studies, if there is one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not (studies := searches(outputs)):
        return
    table = Table("search", "trials ended", "pruned", "failed", "open", "", "best")
    for study in studies:
        numbers = [str(study.ended), *(str(count or "") for count in (study.pruned, study.failed, study.open))]
        table.add_row(Text(study.name), *numbers, "running" if study.running else "", study.best)
    Console(width=160).print(table)


def trial_states(folder: Path) -> Counter[str]:
    """How many trials of a study are in each of Optuna's states, in small letters.

    A copy is read, so as not to disturb a running search.

    Raises:
        UserError: the study cannot be read.
    """
    import optuna

    found: Counter[str] = Counter()
    for name in STORAGES.values():
        if not (folder / name).exists():
            continue
        try:
            with TemporaryDirectory() as copies, quietly():
                copy = Path(copies) / name
                shutil.copyfile(folder / name, copy)
                for trial in optuna.load_study(study_name=folder.name, storage=storage_at(copy)).get_trials(deepcopy=False):
                    found[trial.state.name.lower()] += 1
        except Exception as error:  # whatever Optuna and its storages raise over what they cannot read
            reason = " ".join(str(error).split())[:100]
            raise UserError(f"{folder / name} cannot be read ({reason}); the search's command says what to do") from error
    return found


def _best(folder: Path) -> str:
    """The best trial so far, from study.json."""
    try:
        study = read_kept(folder)
        (number,) = study["best"]
        best = next(each for each in study["trials"] if each["number"] == number)
        return f"{study['objectives'][0]} {best['values'][0]:.5g} (trial {number})"
    except (OSError, CorruptFile, ValueError, KeyError, TypeError, StopIteration, IndexError):
        return ""
