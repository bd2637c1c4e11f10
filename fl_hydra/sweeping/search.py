"""A search over hyper-parameters: `hydra/sweeper=optuna`. Plain lists are a grid, with a study of its own for each point."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_hydra.errors import UserError, require
from fl_hydra.exits import SweepExit
from fl_hydra.runs import course
from fl_hydra.sweeping.grid import GridSweeper, Point, label_points

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from fl_hydra.config import Config
    from fl_hydra.runs.outcome import Outcome
    from fl_hydra.tuning.objective import Objective
    from fl_hydra.tuning.pruning import Pruning
    from fl_hydra.tuning.space import Space
    from fl_hydra.tuning.study import Report, Study, Told, Trial

LETTERS = ("K", "C", "J", "N_c", "gamma", "batch_size")
"""Keys that say where the values found by a search apply, even if the search has a single value of them."""

OF_TRIALS = {"evaluation.test": "false", "until": "null"}
"""Settings of every trial."""

SEED = "seed"
"""Not searched, and not of a section: trials have the seeds `tune.seeds`."""


@dataclass(frozen=True)
class _Search:
    """One study. point: its fixed overrides. where: those that set it apart. config: composed from them."""

    point: Point
    where: dict[str, Any]
    config: Config
    name: str
    question: dict[str, Any]

    @property
    def folder(self) -> Path:
        """The folder of its journal and results."""
        return Path(self.config.outputs) / "studies" / self.name

    def trial_points(self, trial: Trial, until: float | None) -> list[Point]:
        """The overrides of a trial's runs, one for each seed, up to a fraction of their budget."""
        from fl_hydra.tuning.space import as_override

        params = [as_override(key, value) for key, value in trial.params.items()]
        fixed = [*self.point, *params, "evaluation.test=false", "section=null", f"study={self.name}", as_override("until", until)]
        return [[*fixed, f"{SEED}={seed}"] for seed in self.config.tune.seeds]

    def labels(self, trial: Trial) -> list[str]:
        """What sets each of a trial's runs apart."""
        seeds = self.config.tune.seeds
        return [f"trial {trial.number} {trial.typed}{f' {SEED}={seed}' if len(seeds) > 1 else ''}" for seed in seeds]


class SearchSweeper(GridSweeper):
    """Optuna's samplers over the same runs, files and launchers as a grid.

    Args:
        sampler: one of Hydra's Optuna sweeper, from the group `hydra/sweeper/sampler`.
        n_trials: of each study in total, however often the command is given.
        max_failure_rate: fraction of the finished trials that may fail; beyond it the search ends, and the same command tries them again.
        n_jobs: trials that are proposed at once; None: as many as train together, but at most a quarter of `n_trials`.
        pruner: one of Optuna's, from the group `hydra/sweeper/pruner`; None: every trial is trained to its end.
        rungs: fractions of the budget at which trials are compared; None: the pruner's defaults.
        storage: of studies, one of :data:`fl_hydra.tuning.study.STORAGES`.
        params, sizes, report, own: as in a grid.
    """

    def __init__(
        self,
        sampler: DictConfig,
        pruner: DictConfig | None = None,
        n_trials: int = 20,
        max_failure_rate: float = 0.0,
        n_jobs: int | None = None,
        rungs: list[float] | None = None,
        storage: str = "journal",
        params: dict[str, str] | None = None,
        sizes: dict[str, dict[str, Any]] | None = None,
        report: dict[str, Any] | None = None,
        own: dict[str, dict[str, Any] | None] | None = None,
    ) -> None:
        from fl_hydra.tuning.pruning import Pruning
        from fl_hydra.tuning.study import STORAGES

        super().__init__(params, sizes, report, own)
        whole = isinstance(n_trials, int) and not isinstance(n_trials, bool) and n_trials >= 1
        require(whole, f"hydra.sweeper.n_trials={n_trials}: a whole number of trials, at least 1, is needed")
        rate = isinstance(max_failure_rate, int | float) and 0 <= max_failure_rate <= 1
        require(rate, f"hydra.sweeper.max_failure_rate={max_failure_rate}: a fraction from 0 to 1 is needed")
        require(n_jobs is None or (isinstance(n_jobs, int) and n_jobs >= 1), f"hydra.sweeper.n_jobs={n_jobs}: at least 1 trial at once")
        require(storage in STORAGES, f"hydra.sweeper.storage={storage}: choose {' or '.join(STORAGES)}; it lies in the study's folder")
        self._sampler, self._n_trials, self._failing, self._n_jobs = sampler, n_trials, max_failure_rate, n_jobs
        self._pruning, self._storage = Pruning.of(pruner, rungs), storage
        self._searches: Sequence[_Search] = []
        self._course = course.Course(0, 0)

    def sweep(self, arguments: list[str]) -> Any:
        """Search at each point of the grid, and print what was found.

        Raises:
            UserError: something cannot be searched; nothing was trained.
            SweepExit: always at the end, with the exit status.
        """
        from fl_hydra.tuning.objective import Objective
        from fl_hydra.tuning.space import Space, is_grid

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
        for key, value in OF_TRIALS.items():
            require(
                not any(each.get_key_element() == key and each not in searched for each in overrides),
                f"{key}: trials have {key}={value}, whatever is typed; leave it out",
            )
        points = self._split([each for each in overrides if each not in searched])
        searches = self._asked(points, space)
        objectives = Objective.several(searches[0].config.objective)
        self._check_pruning(objectives)
        if searches[0].config.dry_run:
            self._foresee(searches, space)
            raise SweepExit(0)
        self._searches = searches
        with course.on(self._course):
            statuses = [self._search(search, space, objectives) for search in searches]
        raise SweepExit(max(statuses))

    def _foresee(self, searches: Sequence[_Search], space: Space) -> None:
        """Print what the search would do."""
        from fl_hydra.tuning.search_foresight import Asked, foresee_search
        from fl_hydra.tuning.space import as_override

        corner = [as_override(key, value) for key, value in space.corners()[0].items()]
        checked = self._checked(
            [[*search.point, *corner, "evaluation.test=false"] for search in searches], [each.name for each in searches]
        )
        asked = [Asked(search.folder, *each) for search, each in zip(searches, checked, strict=True)]
        foresee_search(asked, self._n_trials, bool(self._pruning.rungs))

    def _say(self, search: _Search, told: int, active: Sequence[Trial], pruning: Pruning) -> None:
        """Pass the search's progress to the reporters of runs."""
        from fl_hydra.resolving import resolve

        at, studies = self._searches.index(search), len(self._searches)
        of_study = f" of study {at + 1} of {studies}" if studies > 1 else ""
        self._course.said = f"{told} of {self._n_trials} trials{of_study} over"
        self._course.at_most = bool(pruning.rungs)
        missing = self._n_trials * (studies - at) - told - len(active)
        later = sum(1.0 - (pruning.until(trial.passed) or 1.0) for trial in active)
        self._course.further = (missing + later) * len(search.config.tune.seeds) * resolve(search.config).budget

    def _check_pruning(self, objectives: Sequence[Objective]) -> None:
        """Refuse to prune by an objective that is not known before the end."""
        if not self._pruning.rungs:
            return
        typed = "+".join(map(str, objectives))
        require(len(objectives) == 1, f"objective={typed}: trials are pruned by one objective; name one, or leave the pruner out")
        require(
            objectives[0].target is None,
            f"objective={typed}: a cost is not known before the accuracy is reached, so that nothing can be pruned by it; choose a figure, "
            "such as val/acc, or leave the pruner out",
        )

    def _asked(self, points: list[Point], space: Space) -> list[_Search]:
        """The identity of each study: its fixed configuration without the searched keys, its space and its objective.

        The configuration is described at each corner of the space, as a searched option may decide which other keys have an effect.

        Raises:
            UserError: a corner cannot be run, or a key of the space changes nothing.
        """
        from hydra.core.override_parser.overrides_parser import OverridesParser

        from fl_hydra.runs.identity import by_key, describe
        from fl_hydra.tuning.objective import Objective
        from fl_hydra.tuning.space import as_override
        from fl_hydra.tuning.study import question_hash

        parser = OverridesParser.create()
        common = set(points[0]).intersection(*points)
        corners = space.corners()
        at_corners = [[*point, *(as_override(key, value) for key, value in corner.items())] for point in points for corner in corners]
        checked = self._checked(at_corners, label_points(at_corners))
        searches: dict[str, _Search] = {}
        for position, point in enumerate(points):
            mine = checked[position * len(corners) : (position + 1) * len(corners)]
            budgets = sorted({experiment.budget for _, experiment in mine})
            if len(budgets) > 1:
                print(f"note: trials have {budgets[0]:,} to {budgets[-1]:,} samples, as rounds= gives some more; epochs= gives all as many")
            described = [by_key(describe(experiment)) for _, experiment in mine]
            for key in space.distributions:
                tried = [each for corner, each in zip(corners, described, strict=True) if corner[key] != corners[0][key]]
                require(not tried or any(each != described[0] for each in tried), f"{key}: changes nothing in a run; search another key")
            fixed: list[dict[str, Any]] = []
            for each in described:
                left = {key: value for key, value in each.items() if key != SEED and key not in space.distributions}
                if left not in fixed:
                    fixed.append(left)
            config = mine[0][0]
            question = {
                "fixed": fixed[0] if len(fixed) == 1 else fixed,
                "space": space.identity(),
                "objective": "+".join(map(str, Objective.several(config.objective))),
                "seeds": config.tune.seeds,
                **self._pruning.identity(),
            }
            words = map(parser.parse_override, point)
            named = {
                each.get_key_element(): each.value() for each in words if each.input_line not in common or each.key_or_group in LETTERS
            }
            # What has no effect at a point, as N_c under iid, sets nothing apart: such points are one study.
            where = {key: value for key, value in named.items() if any(each.get(key, True) is not None for each in fixed)}
            apart = [f"{key}{value}" for key, value in where.items() if f"{key}={value}" not in common]
            for group in sorted({key.partition(".")[0] for key in space.distributions if "." in key}):
                if group not in where and group not in space.distributions and f"{group}.name" in fixed[0]:
                    where[group] = fixed[0][f"{group}.name"]  # a rate that was searched for SGD is none for AdamW
            readable = re.sub(r"[^A-Za-z0-9_-]", "", "-".join([config.section or config.algorithm.option, *apart]))[:80]
            digits = question_hash(question)
            known = sorted(path.name for path in (Path(config.outputs) / "studies").glob(f"*-{digits}"))
            searches.setdefault(digits, _Search(point, where, config, known[0] if known else f"{readable}-{digits}", question))
        return list(searches.values())

    def _search(self, search: _Search, space: Space, objectives: Sequence[Objective]) -> int:
        """Continue a study until it has all its trials; returns the exit status."""
        from fl_hydra.files import write_atomically
        from fl_hydra.runs.folder import as_json
        from fl_hydra.runs.ownership import owned
        from fl_hydra.runs.progress import ConsoleReporter
        from fl_hydra.tuning.kept import KEPT
        from fl_hydra.tuning.study import Study

        warn = ConsoleReporter(live=False).warn
        directions = [each.direction for each in objectives]
        try:
            search.folder.mkdir(parents=True, exist_ok=True)
            with owned(search.folder, warn):
                together = _kept_together(search.folder) or self._together
                study = Study(search.folder, space, directions, self._sampler, self._pruning, together, self._storage)
                failed: list[Report] = []
                while True:
                    told, active = study.told(), study.active()
                    while len(active) < study.together and len(told) + len(active) < self._n_trials and (trial := study.ask()):
                        active.append(trial)
                    if not active:
                        if len(told) < self._n_trials:
                            warn(f"{search.name}: the space is used up after {len(told)} trials")
                        break
                    self._say(search, len(told), active, study.pruning)
                    reports = self._advanced(search, active, study.pruning, objectives)
                    failed = [each for each in reports if each.values is None]
                    failures = len(failed) + sum(each.state == "failed" for each in told)
                    if failed and failures > self._failing * (len(told) + sum(each.ended for each in reports)):
                        break  # what the others have come to is in their runs, where the same command finds it
                    failed = []
                    study.tell(reports)
                told, best = study.told(), study.best()
                write_atomically(search.folder / KEPT, as_json(_summary(search, objectives, study, told, best)))
        except OSError as error:
            raise UserError(f"{search.folder}: {error.strerror or error}; fix that, then give the same command again") from error
        _print(search, objectives, told, best, self._n_trials)
        for each in failed:
            print(f"trial {each.trial.number} failed, and will be tried again by the same command: {each.why}")
        return 1 if failed or not best else 0

    @property
    def _together(self) -> int:
        """Trials that are proposed before a result is entered."""
        if self._n_jobs is not None:
            return self._n_jobs
        assert self.config is not None
        packed = self.config.hydra.launcher.get("runs", 1)
        return max(1, min(int(packed), self._n_trials // 4))

    def _advanced(self, search: _Search, trials: Sequence[Trial], pruning: Pruning, objectives: Sequence[Objective]) -> list[Report]:
        """Train the runs of some trials up to each one's next milestone, or to the end.

        Raises:
            UserError: another process trains one of them.
        """
        from fl_hydra.tuning.study import Report

        good: list[Trial] = []
        reports: dict[int, Report] = {}
        checked = []
        for trial in trials:
            points = search.trial_points(trial, pruning.until(trial.passed))
            try:
                checked += self._checked(points, label_points(points))
                good.append(trial)
            except UserError as error:
                reports[trial.number] = Report(trial, None, True, " ".join(str(error).split()))
        points = [point for trial in good for point in search.trial_points(trial, pruning.until(trial.passed))]
        labels = [label for trial in good for label in search.labels(trial)]
        outcomes = self._train(points, checked, labels) if points else []
        seeds = len(search.config.tune.seeds)
        for position, trial in enumerate(good):
            mine = outcomes[position * seeds : (position + 1) * seeds]
            for outcome in mine:
                require(outcome.status != "busy", outcome.reason)
            if bad := [outcome.reason for outcome in mine if outcome.status not in ("finished", "diverged", "paused")]:
                reports[trial.number] = Report(trial, None, True, bad[0])
                continue
            until = pruning.until(trial.passed)
            budgets = [experiment.budget for _, experiment in checked[position * seeds : (position + 1) * seeds]]
            seen = [_seen(*each, until, objectives) for each in zip(mine, budgets, strict=True)]
            means = [statistics.fmean(column) for column in zip(*(values for _, values in seen), strict=True)]
            reports[trial.number] = Report(trial, means, all(ended for ended, _ in seen))
        return [reports[trial.number] for trial in trials]


def _seen(outcome: Outcome, budget: int, until: float | None, objectives: Sequence[Objective]) -> tuple[bool, list[float]]:
    """Whether a run has ended at a fraction of its budget (None: the whole), and its values there.

    A run that was trained further before counts as if it had paused there, so that the search stays the same.
    """
    from fl_hydra.runs.summary import read_ended

    if outcome.status == "paused":
        return False, [each.at(outcome.metrics) for each in objectives]
    ended = read_ended(outcome.folder)
    assert ended is not None
    if until is not None:
        row = next((row for row in ended.rows if row["samples"] >= until * budget), ended.rows[-1])
        if row is not ended.rows[-1]:
            return False, [each.at(row) for each in objectives]
    return True, [each.value(outcome.status, ended.rows) for each in objectives]


def _kept_together(folder: Path) -> int | None:
    """How many trials of a study were proposed at once, from its stored content; None if unknown."""
    from fl_hydra.files import CorruptFile
    from fl_hydra.tuning.kept import read_kept

    try:
        return int(read_kept(folder)["together"])
    except (OSError, CorruptFile, ValueError, TypeError):
        return None


def _summary(search: _Search, objectives: Sequence[Objective], study: Study, told: Sequence[Told], best: Sequence[Told]) -> dict[str, Any]:
    """The content of `study.json`, for the report and for choosing values.

    best: one trial, or the Pareto front. pruned_at: the fraction of its budget at which a trial was pruned.
    """
    return {
        "study": search.name,
        "section": search.config.section,
        "where": search.where,
        "question": search.question,
        "sampler": study.sampler,
        "together": study.together,
        "objectives": [str(each) for each in objectives],
        "best": [each.trial.number for each in best],
        "trials": [
            {
                "number": each.trial.number,
                "params": each.trial.params,
                "state": each.state,
                "values": each.values,
                **({"pruned_at": study.pruning.until(each.trial.passed)} if each.state == "pruned" else {}),
                **({"why": each.why} if each.why else {}),
            }
            for each in told
        ],
    }


def _print(search: _Search, objectives: Sequence[Objective], told: Sequence[Told], best: Sequence[Told], n_trials: int) -> None:
    """A table of a study's trials, the best first."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fl_hydra.tuning.study import ranked

    pruned = any(each.state == "pruned" for each in told)
    table = Table(title=f"{search.name}: {len(told)} of {max(len(told), n_trials)} trials")
    keys = list(told[0].trial.params) if told else []
    for column in ("trial", *keys, *map(str, objectives), *(["state"] if pruned else [])):
        table.add_column(column, justify="right")
    for each in ranked(told, objectives[0].direction)[:20]:
        values = ["failed" for _ in objectives] if each.values is None else [f"{value:.5g}" for value in each.values]
        states = [each.state] if pruned else []
        table.add_row(str(each.trial.number), *(Text(_shown(each.trial.params[key])) for key in keys), *values, *states)
    Console(width=140).print(table)
    for each in best:
        reached = ", ".join(f"{objective} {value:.5g}" for objective, value in zip(objectives, each.values or [], strict=True))
        what = "best" if len(objectives) == 1 else "on the front"
        print(f"{what} of {search.name}: trial {each.trial.number}, {reached}: {each.trial.typed}")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
