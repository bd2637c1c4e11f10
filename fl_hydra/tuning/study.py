"""A search on the disk: its proposals and results so far, in Optuna's storage, and its next proposals.

A search is a sequence of stages. In each, a fixed number of trials train together, new ones taking the places of those that have ended, up
to the next milestone of each; then all results are entered at once, and hopeless trials are pruned. Proposals and decisions are functions
of the study's name, the trial's number and earlier results. A stage is stored as one entry, from which everything else follows. So a search
that was killed at any moment continues to the same end, and one whose storage is lost is rebuilt from its runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_hydra.errors import UserError
from fl_hydra.files import read_file, write_atomically
from fl_hydra.randomness import generator
from fl_hydra.tuning.objective import Direction
from fl_hydra.tuning.pruning import Pruning, quietly
from fl_hydra.tuning.space import Space, Value, as_override

if TYPE_CHECKING:
    import optuna
    from omegaconf import DictConfig
    from optuna.trial import FrozenTrial, TrialState

JOURNAL, DATABASE = "journal.log", "study.db"
STORAGES = {"journal": JOURNAL, "sqlite": DATABASE}
"""Where a study is kept in its folder."""
STAGE = "stage "
"""Prefix of the study's attributes that hold the results of a stage; a number follows."""
TRIES = 10
"""How often a sampler is asked again if it proposes a point that was tried before."""


@dataclass(frozen=True)
class Trial:
    """A proposed point. number: from 0. params: by key. passed: milestones that it has passed without being pruned."""

    number: int
    params: dict[str, Value]
    passed: int = 0

    @property
    def point(self) -> str:
        """The point as text, equal for equal points."""
        return json.dumps(self.params, sort_keys=True)

    @property
    def typed(self) -> str:
        """The point as overrides for a shell."""
        from fl_hydra.arguments import as_typed

        return " ".join(as_typed(as_override(key, value)) for key, value in self.params.items())


@dataclass(frozen=True)
class Report:
    """A trial's result after a stage.

    values: of the objectives, at the milestone or at the end; None if it failed. ended: whether it has ended. why: it failed.
    """

    trial: Trial
    values: list[float] | None
    ended: bool
    why: str = ""


@dataclass(frozen=True)
class Told:
    """A trial that has ended: `complete`, `pruned` (at a milestone) or `failed`.

    values: of the objectives, of a pruned trial at the milestone; None if it failed. why: it failed.
    """

    trial: Trial
    state: str
    values: list[float] | None
    why: str = ""


@dataclass(frozen=True)
class _Stage:
    """One entry of a study.

    reports: by trial, {"values", "ended", "why"}. pruned: trials that were pruned. remembered: by trial, the pruner's memory of it.
    """

    reports: dict[str, dict[str, Any]]
    pruned: list[int]
    remembered: dict[str, dict[str, Any]] = field(default_factory=dict)


class Study:
    """A study in a folder that this process owns.

    Args:
        folder: where it lies.
        space: what is searched.
        directions: of each objective, `maximize` or `minimize`.
        sampler: the configuration of Optuna's sampler, as the sweeper's group `sampler` has it.
        pruning: when trials are compared, and the pruner.
        together: trials proposed before results are entered; a study that was begun keeps its own number.
        storage: one of :data:`STORAGES`; a study that was begun in another one is rebuilt from its runs.

    Raises:
        UserError: what lies there is damaged, or locked.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        directions: Sequence[Direction],
        sampler: DictConfig,
        pruning: Pruning,
        together: int,
        storage: str = "journal",
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name, self.space = folder.name, space
        self._sampler, self._directions = sampler, list(directions)
        self._path = folder / STORAGES[storage]
        with self._readable():
            self._study = optuna.create_study(
                study_name=self.name,
                storage=storage_at(self._path),
                sampler=optuna.samplers.RandomSampler(),  # never asked: see _sample
                directions=self._directions,
                load_if_exists=True,
            )
            if "together" not in self._study.user_attrs:
                self._study.set_user_attr("together", together)
            self.together = int(self._study.user_attrs["together"])
            self.pruning = replace(pruning, lockstep=self.together > 1)
            stages = self._stages()
            for number, stage in enumerate(stages):
                self._apply(stage, stages[:number])
            self.told()  # which needs a stage for each trial that has ended

    def active(self) -> list[Trial]:
        """Proposed trials that have not ended."""
        import optuna

        stages = self._stages()
        return [
            Trial(each.number, each.params, sum(str(each.number) in stage.reports for stage in stages))
            for each in self._trials(optuna.trial.TrialState.RUNNING)
        ]

    def told(self) -> list[Told]:
        """Trials that have ended, by number."""
        from optuna.trial import TrialState

        states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
        stages = self._stages()
        told = []
        for each in self._trials(*states):
            mine = [stage.reports[str(each.number)] for stage in stages if str(each.number) in stage.reports]
            trial = Trial(each.number, each.params, len(mine) - 1)
            told.append(Told(trial, states[each.state], mine[-1]["values"], mine[-1]["why"]))
        return told

    def ask(self) -> Trial | None:
        """The next point; None if the space is exhausted."""
        from optuna.trial import TrialState, create_trial

        number = len(self._trials())
        with quietly():
            sampled = self._sample(number)
            if sampled is None:
                return None
            params, attributes = sampled
            # One entry, with what the sampler remembers of it: half a trial would be another one after a kill.
            self._study.add_trial(
                create_trial(state=TrialState.RUNNING, params=params, distributions=self.space.distributions, system_attrs=attributes)
            )
        return Trial(number, self._trials()[number].params)

    def tell(self, reports: Sequence[Report]) -> None:
        """Enter the results of all active trials, and prune those that the pruner finds hopeless."""
        pruned, remembered = self._judged(reports)
        stage = _Stage(
            {str(each.trial.number): {"values": each.values, "ended": each.ended, "why": each.why} for each in reports}, pruned, remembered
        )
        with quietly():
            before = self._stages()
            self._study.set_user_attr(f"{STAGE}{len(before)}", asdict(stage))
            self._apply(stage, before)

    def best(self) -> list[Told]:
        """The best complete trial, the first of equal ones; with two objectives the Pareto front, by number. Empty if none is complete."""
        complete = [each for each in self.told() if each.state == "complete"]
        if len(self._directions) == 1:
            return ranked(complete, self._directions[0])[:1]
        with quietly():
            front = {each.number for each in self._study.best_trials} if complete else set()
        return [each for each in complete if each.trial.number in front]

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

    def _stages(self) -> list[_Stage]:
        attributes = self._study.user_attrs
        numbers = sorted(int(name.removeprefix(STAGE)) for name in attributes if name.startswith(STAGE))
        return [_Stage(**attributes[f"{STAGE}{number}"]) for number in numbers]

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """A context in which unreadable storage is reported in one line."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            with quietly():
                yield
        except (ValueError, KeyError, TypeError, AssertionError, IndexError, SQLAlchemyError) as error:
            reason = " ".join(str(error).partition("[SQL")[0].split())[:100]
            if "locked" in reason:
                raise UserError(f"{self._path} is locked by another program; end that one, then give the same command again") from error
            raise UserError(
                f"{self._path} is damaged ({reason}); move it away and give the same command again: the study is rebuilt from its runs"
            ) from error

    def _apply(self, stage: _Stage, before: Sequence[_Stage]) -> None:
        """Apply a stage to Optuna's trials, after earlier stages; existing trials stay."""
        from optuna.trial import TrialState

        trials = self._trials()
        for text, report in stage.reports.items():
            trial = trials[int(text)]
            if trial.state.is_finished():
                continue
            storage, number = self._study._storage, trial.number
            if report["ended"]:
                failed = report["values"] is None
                if failed:
                    storage.set_trial_user_attr(trial._trial_id, "why", report["why"])
                self._study.tell(number, report["values"], state=TrialState.FAIL if failed else None)
                continue
            passed = sum(text in other.reports for other in before)
            if (step := self.pruning.step(passed)) is not None:
                storage.set_trial_intermediate_value(trial._trial_id, step, report["values"][0])
                for key, value in stage.remembered.get(text, {}).items():
                    storage.set_trial_system_attr(trial._trial_id, key, value)
            if number in stage.pruned:
                self._study.tell(number, state=TrialState.PRUNED)

    def _judged(self, reports: Sequence[Report]) -> tuple[list[int], dict[str, dict[str, Any]]]:
        """Trials to prune, and the pruner's memory of each trial that it considered.

        Optuna's pruner considers the trials in memory one by one, each as if it were the last of its stage, so that their order does not
        matter.
        """
        looked_at = {
            each.trial.number: (step, each.values[0])
            for each in reports
            if not each.ended and each.values is not None and (step := self.pruning.step(each.trial.passed)) is not None
        }
        if not looked_at:
            return [], {}
        with quietly():
            remembered = {number: self._asked_about(number, looked_at, {})[1] for number in looked_at}
            pruned = [number for number in looked_at if self._asked_about(number, looked_at, remembered)[0]]
        return pruned, {str(number): attributes for number, attributes in remembered.items()}

    def _asked_about(
        self, number: int, looked_at: dict[int, tuple[int, float]], remembered: dict[int, dict[str, Any]]
    ) -> tuple[bool, dict[str, Any]]:
        """Whether Optuna's pruner prunes a trial, and its memory of the trial afterwards."""
        import copy

        import optuna

        scratch = optuna.create_study(directions=self._directions)
        before: dict[str, Any] = {}
        for trial in self._trials():
            known = copy.deepcopy(trial)
            if trial.number in looked_at:
                step, value = looked_at[trial.number]
                known.intermediate_values[step] = value
                if trial.number != number:
                    known.system_attrs |= remembered.get(trial.number, {})
            if trial.number == number:
                before = dict(known.system_attrs)
            scratch.add_trial(known)
        hopeless = self.pruning.pruner().prune(scratch, scratch.get_trials(deepcopy=False)[number])
        after = scratch.get_trials(deepcopy=False)[number].system_attrs
        return bool(hopeless), {key: value for key, value in after.items() if before.get(key) != value}

    def _sample(self, number: int) -> tuple[dict[str, Value], dict[str, Any]] | None:
        """A point that was not tried yet, and the sampler's memory of it.

        The sampler is run in memory, on a copy of the study, as a trial that is created on the disk cannot be removed.
        """
        import optuna

        known = self._trials()
        tried = {Trial(each.number, each.params).point for each in known}
        points = self.space.points()
        if points is not None and all(Trial(0, point).point in tried for point in points):
            return None
        for attempt in range(TRIES):
            scratch = optuna.create_study(directions=self._directions, sampler=self._made(number, attempt))
            scratch.add_trials(known)
            asked = scratch.ask(self.space.distributions)
            if Trial(number, asked.params).point not in tried:
                return dict(asked.params), dict(scratch._storage.get_trial(asked._trial_id).system_attrs)
        if points is None:
            raise UserError(
                f"hydra/sweeper/sampler: {self.sampler} proposes points that were tried before; choose tpe, random, cmaes, gp or nsgaii"
            )
        fresh = [point for point in points if Trial(0, point).point not in tried]
        return fresh[int(self._random(number).integers(len(fresh)))], {}

    @property
    def sampler(self) -> str:
        """The name of Optuna's sampler."""
        return str(self._sampler.get("_target_", "")).rpartition(".")[2]

    def _made(self, number: int, attempt: int) -> optuna.samplers.BaseSampler:
        """The sampler for a trial, seeded for it."""
        from hydra.utils import instantiate

        kind = str(self._sampler.get("_target_", ""))
        more: dict[str, Any] = {"seed": int(self._random(number, attempt).integers(2**31))}
        if self.together > 1 and kind.endswith("TPESampler"):
            more["constant_liar"] = True
        made = instantiate(self._sampler, **more)
        if kind.endswith("GridSampler"):
            points = self.space.points()
            if points is None:
                raise UserError("hydra/sweeper/sampler=grid: an interval has infinitely many points; use choice(...) or range(...)")
            made = made({name: sorted({point[name] for point in points}, key=str) for name in self.space.distributions})
        assert not callable(made)
        return made  # type: ignore[no-any-return]

    def _random(self, *more: int) -> Any:
        """A generator that is a function of the study's name, a trial and an attempt."""
        name = int.from_bytes(hashlib.sha256(f"{self.name.rpartition('-')[2]} {self._sampler.get('seed')}".encode()).digest()[:7], "big")
        return generator(name, "search", *more)


def storage_at(path: Path) -> optuna.storages.BaseStorage:
    """Optuna's storage in a file."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    if path.name == DATABASE:
        return RDBStorage(f"sqlite:///{path}")
    if path.exists() and (content := read_file(path)) and not content.endswith(b"\n"):  # it was killed while it wrote
        write_atomically(path, content[: content.rfind(b"\n") + 1])
    # A lock without symbolic links, which Google Drive has not.
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))


def question_hash(question: dict[str, Any]) -> str:
    """Ten hex digits that identify a study: its fixed configuration, space and objective."""
    return hashlib.sha256(json.dumps(question, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:10]


def ranked(told: Sequence[Told], direction: Direction) -> list[Told]:
    """Sorted by the first objective, the best first, then pruned trials, then failed ones."""
    sign = -1 if direction == "maximize" else 1
    order = {"complete": 0, "pruned": 1, "failed": 2}
    return sorted(told, key=lambda each: (order[each.state], sign * each.values[0] if each.values else 0.0, each.trial.number))
