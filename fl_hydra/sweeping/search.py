"""A search over hyper-parameters: `hydra/sweeper=optuna`. Plain lists are a grid, with a study of its own for each point."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_hydra.endings import SweepEnded
from fl_hydra.errors import UserError, require
from fl_hydra.sweeping.grid import GridSweeper, Point, label_points

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fl_hydra.config import Config
    from fl_hydra.tuning.objective import Objective
    from fl_hydra.tuning.space import Space
    from fl_hydra.tuning.study import Told, Trial

SEED = "seed"
"""Not searched, and not of a section: trials have the seeds `tune.seeds`."""


@dataclass(frozen=True)
class _Search:
    """What one study asks. point: overrides that are fixed in it. where: of these, what sets it apart. config: composed of them."""

    point: Point
    where: dict[str, Any]
    config: Config
    name: str
    question: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where its journal and its results lie."""
        return Path(self.config.outputs) / "studies" / self.name

    def trial_points(self, trial: Trial) -> list[Point]:
        """The overrides of a trial's runs, one for each seed."""
        from fl_hydra.tuning.space import as_override

        params = [as_override(key, value) for key, value in trial.params.items()]
        fixed = [*self.point, *params, "evaluation.test=false", "section=null"]
        return [[*fixed, f"{SEED}={seed}"] for seed in self.config.tune.seeds]


class SearchSweeper(GridSweeper):
    """Optuna's samplers over the same runs, files and launchers as a grid.

    Args:
        sampler: one of Hydra's Optuna sweeper, from the group `hydra/sweeper/sampler`.
        n_trials: of each study in total, however often the command is given.
        max_failure_rate: the part of the trials told that may have failed; more end the search, and are tried again by the same command.
        n_jobs: trials that are asked for at once; None: as many as train together, but at most a quarter of `n_trials`.
        params: as in a grid.
    """

    def __init__(
        self,
        sampler: DictConfig,
        n_trials: int = 20,
        max_failure_rate: float = 0.0,
        n_jobs: int | None = None,
        params: dict[str, str] | None = None,
    ) -> None:
        super().__init__(params)
        whole = isinstance(n_trials, int) and not isinstance(n_trials, bool) and n_trials >= 1
        require(whole, f"hydra.sweeper.n_trials={n_trials}: a whole number of trials, at least 1, is needed")
        require(0 <= max_failure_rate <= 1, f"hydra.sweeper.max_failure_rate={max_failure_rate}: a part from 0 to 1 is needed")
        require(n_jobs is None or n_jobs >= 1, f"hydra.sweeper.n_jobs={n_jobs}: at least 1 trial is asked for at once")
        self._sampler, self._n_trials, self._failing, self._n_jobs = sampler, n_trials, max_failure_rate, n_jobs

    def sweep(self, arguments: list[str]) -> Any:
        """Search at each point of the grid, and print what was found.

        Raises:
            UserError: something cannot be searched; nothing was trained.
            SweepEnded: always at the end, with the exit status.
        """
        from fl_hydra.tuning.objective import Objective
        from fl_hydra.tuning.space import Space, as_override, is_grid

        given = {word.partition("=")[0] for word in arguments}
        require(SEED not in given, f"{SEED}: trials have seeds of their own, other than those reported: leave it out, or give tune.seeds")
        overrides = [each for each in self._overrides(arguments) if each.key_or_group != SEED]
        searched = [each for each in overrides if each.is_sweep_override() and not is_grid(each)]
        require(
            bool(searched),
            "hydra/sweeper=optuna: there is nothing to search; give a key as interval(low,high), tag(log,interval(low,high)), choice(a,b) "
            "or range(start,stop)",
        )
        space = Space.of(searched)
        points = self.split_arguments([each for each in overrides if each not in searched], max_batch_size=None)[0]
        labels = label_points(points)
        searches = self._asked(points, labels, space)
        objective = Objective.of(searches[0].config.objective)
        corners = [[*points[0], *(as_override(key, value) for key, value in corner.items())] for corner in space.corners()]
        self._checked(corners, label_points(corners))
        statuses = [self._search(search, space, objective) for search in searches]
        raise SweepEnded(max(statuses))

    def _asked(self, points: list[Point], labels: list[str], space: Space) -> list[_Search]:
        """What each study asks: its fixed configuration, without what is searched, its space and objective."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        from fl_hydra.runs.identity import by_key, describe
        from fl_hydra.tuning.study import question_hash

        parser = OverridesParser.create()
        common = set(points[0]).intersection(*points)
        searches = []
        for point, (config, experiment) in zip(points, self._checked(points, labels), strict=True):
            apart = [parser.parse_override(word) for word in point if word not in common]
            fixed = {
                key: value
                for key, value in by_key(describe(experiment)).items()
                if key != SEED and not any(key == name or key.startswith(f"{name}.") for name in space.distributions)
            }
            question = {
                "fixed": fixed,
                "space": space.identity(),
                "objective": config.objective,
                "seeds": config.tune.seeds,
            }
            readable = "-".join([config.section or config.algorithm.option, *(f"{each.get_key_element()}{each.value()}" for each in apart)])
            name = f"{re.sub(r'[^A-Za-z0-9_-]', '', readable)[:80]}-{question_hash(question)}"
            searches.append(_Search(point, {each.get_key_element(): each.value() for each in apart}, config, name, question))
        return searches

    def _search(self, search: _Search, space: Space, objective: Objective) -> int:
        """Go on with a study until it has all its trials; the exit status."""
        from fl_hydra.files import write_atomically
        from fl_hydra.runs.folder import as_json
        from fl_hydra.runs.ownership import owned
        from fl_hydra.runs.progress import ConsoleReporter
        from fl_hydra.tuning.study import Study

        warn = ConsoleReporter(live=False).warn
        try:
            search.folder.mkdir(parents=True, exist_ok=True)
            with owned(search.folder, warn):
                study = Study(search.folder, space, objective.maximised, self._sampler, self._together)
                waiting = study.open()
                failed: list[Told] = []
                while True:
                    told = study.told()
                    while len(waiting) < study.together and len(told) + len(waiting) < self._n_trials and (trial := study.ask()):
                        waiting.append(trial)
                    if not waiting:
                        if len(told) < self._n_trials:
                            warn(f"{search.name}: the space is used up after {len(told)} trials")
                        break
                    results = self._tried(search, waiting, objective)
                    failures = [each for each in [*told, *results] if each.value is None]
                    if len(failures) > self._failing * (len(told) + len(results)):
                        failed = [each for each in results if each.value is None]
                    for each in results:
                        if each not in failed:
                            study.tell(each)
                    waiting = []
                    if failed:
                        break
                told, best = study.told(), study.best()
                write_atomically(search.folder / "study.json", as_json(_summary(search, objective, told, best)))
        except OSError as error:
            raise UserError(f"{search.folder}: {error.strerror or error}; mend that, then give the same command again") from error
        _print(search, objective, told, best, self._n_trials)
        for each in failed:
            print(f"trial {each.trial.number} failed, and will be tried again by the same command: {each.why}")
        return 1 if failed or best is None else 0

    @property
    def _together(self) -> int:
        """Trials that are asked for before one is told."""
        if self._n_jobs is not None:
            return self._n_jobs
        assert self.config is not None
        packed = self.config.hydra.launcher.get("runs", 1)
        return max(1, min(int(packed), self._n_trials // 4))

    def _tried(self, search: _Search, trials: Sequence[Trial], objective: Objective) -> list[Told]:
        """Train the runs of some trials, which is over when all have ended.

        Raises:
            UserError: another process trains one of them.
        """
        from fl_hydra.runs.folder import read_ended
        from fl_hydra.tuning.study import Told

        good: list[Trial] = []
        told: dict[int, Told] = {}
        checked = []
        for trial in trials:
            points = search.trial_points(trial)
            try:
                checked += self._checked(points, label_points(points))
                good.append(trial)
            except UserError as error:
                told[trial.number] = Told(trial, None, " ".join(str(error).split()))
        points = [point for trial in good for point in search.trial_points(trial)]
        outcomes = self._train(points, checked) if points else []
        seeds = len(search.config.tune.seeds)
        for position, trial in enumerate(good):
            mine = outcomes[position * seeds : (position + 1) * seeds]
            for outcome in mine:
                require(outcome.status != "busy", outcome.reason)
            if bad := [outcome.reason for outcome in mine if outcome.status not in ("finished", "diverged")]:
                told[trial.number] = Told(trial, None, bad[0])
                continue
            values = []
            for outcome in mine:
                ended = read_ended(outcome.folder)
                assert ended is not None
                values.append(objective.value(outcome.status, ended.rows))
            told[trial.number] = Told(trial, statistics.fmean(values))
        return [told[trial.number] for trial in trials]


def _summary(search: _Search, objective: Objective, told: Sequence[Told], best: Told | None) -> dict[str, Any]:
    """What is kept of a study for the report, and for those who choose by it."""
    return {
        "study": search.name,
        "section": search.config.section or search.config.algorithm.option,
        "where": search.where,
        "question": search.question,
        "objective": str(objective),
        "best": None if best is None else best.trial.number,
        "trials": [
            {"number": each.trial.number, "params": each.trial.params, "value": each.value, **({"why": each.why} if each.why else {})}
            for each in told
        ],
    }


def _print(search: _Search, objective: Objective, told: Sequence[Told], best: Told | None, n_trials: int) -> None:
    """A table of a study's trials, the best first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fl_hydra.tuning.study import ranked

    table = Table(title=f"{search.name}: {len(told)} of {n_trials} trials")
    keys = list(told[0].trial.params) if told else []
    table.add_column("trial", justify="right")
    for key in keys:
        table.add_column(key, justify="right")
    table.add_column(str(objective), justify="right")
    for each in ranked(told, objective.maximised)[:20]:
        value = "failed" if each.value is None else f"{each.value:.5g}"
        table.add_row(str(each.trial.number), *(Text(_shown(each.trial.params[key])) for key in keys), value)
    Console(width=140).print(table)
    if best is not None:
        from fl_hydra.tuning.space import as_override

        chosen = " ".join(as_override(key, value) for key, value in best.trial.params.items())
        print(f"best of {search.name}: trial {best.trial.number}, {objective} {best.value:.5g}: {chosen}")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
