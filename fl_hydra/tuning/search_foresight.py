"""What a search would train: `dry_run=true`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_hydra.config import Config
from fl_hydra.runs.foresight import Planned, print_cost
from fl_hydra.training.experiment import Experiment
from fl_hydra.tuning.search_standing import ENDED, trial_states


@dataclass(frozen=True)
class Asked:
    """A study: its folder, present or future, and the configuration of its trials' runs."""

    folder: Path
    config: Config
    experiment: Experiment


def foresee_search(studies: Sequence[Asked], n_trials: int, prunes: bool) -> None:
    """Print how many trials are missing and their cost; those that were begun count in full."""
    ended = [sum(trial_states(study.folder)[state] for state in ENDED) for study in studies]
    missing = [max(0, n_trials - count) for count in ended]
    several = f"{len(studies)} studies of {n_trials} trials" if len(studies) > 1 else f"1 study of {n_trials} trials"
    seeds = [len(study.config.tune.seeds) for study in studies]
    runs = sum(count * each for count, each in zip(missing, seeds, strict=True))
    in_runs = f", {runs} runs" if runs != sum(missing) else ""
    print(f"dry run: {several}: {sum(ended)} trials ended, {sum(missing)} missing{in_runs}")
    if len(studies) > 1:
        for study, count in zip(studies, ended, strict=True):
            print(f"  {study.folder.name}: {count} of {n_trials}")
    planned = [
        (Planned(study.config, study.experiment, study.folder.name, "to train", 0.0), count * each)
        for study, count, each in zip(studies, missing, seeds, strict=True)
        if count
    ]
    print_cost([run for run, _ in planned], [count for _, count in planned], at_most=prunes)
