"""A search on the disk: what has been asked and told so far, in Optuna's storage, and what is asked next.

A search is a sequence of stages. In each, as many trials as train together are there, new ones in the places of those that have ended;
each trains up to its next milestone; then all of them are told at once, and it is decided which are given up. What is asked and decided
is a function of the study's name, the trial's number and what was told before. A stage is written with one entry, from which all else
follows. So a search that was killed at any moment goes on to the same end, and one whose storage is lost is rebuilt from its runs.
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
"""The study's attributes that hold what was told in a stage: this and a number."""
TRIES = 10
"""How often a sampler is asked again if it proposes a point that was tried before."""


@dataclass(frozen=True)
class Trial:
    """A proposed point. number: from 0. params: by key. passed: milestones that it has come by, and was not given up at."""

    number: int
    params: dict[str, Value]
    passed: int = 0

    @property
    def point(self) -> str:
        """The point as text that equal points share."""
        return json.dumps(self.params, sort_keys=True)

    @property
    def typed(self) -> str:
        """The point as overrides that a shell takes."""
        from fl_hydra.arguments import as_typed

        return " ".join(as_typed(as_override(key, value)) for key, value in self.params.items())


@dataclass(frozen=True)
class Report:
    """What is told of a trial after a stage.

    values: of the objectives, at the milestone or at the end; None if it failed. ended: whether it has ended. why: it failed.
    """

    trial: Trial
    values: list[float] | None
    ended: bool
    why: str = ""


@dataclass(frozen=True)
class Told:
    """A trial that has ended: `complete`, `pruned` (given up at a milestone) or `failed`.

    values: of the objectives, of a pruned trial at the milestone; None if it failed. why: it failed.
    """

    trial: Trial
    state: str
    values: list[float] | None
    why: str = ""


@dataclass(frozen=True)
class _Stage:
    """What one entry of a study holds.

    reports: by trial, {"values", "ended", "why"}. pruned: trials that are given up. remembered: by trial, what the pruner keeps of it.
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
        pruning: when trials are looked at, and who gives them up.
        together: trials that are asked before one is told; a study that was begun keeps its own number.
        storage: one of :data:`STORAGES`; a study that was begun in another one is not found in it, and is rebuilt from its runs.

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
        """The next point; None if the space is used up."""
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
        """Note how far the active trials have come, all of them, and give up those that the pruner finds hopeless."""
        pruned, remembered = self._judged(reports)
        stage = _Stage(
            {str(each.trial.number): {"values": each.values, "ended": each.ended, "why": each.why} for each in reports}, pruned, remembered
        )
        with quietly():
            before = self._stages()
            self._study.set_user_attr(f"{STAGE}{len(before)}", asdict(stage))
            self._apply(stage, before)

    def best(self) -> list[Told]:
        """The best complete trial, of equal ones the first; of two objectives the Pareto front, by number. Empty if none is complete."""
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
        """Within this, what cannot be read is one line."""
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
        """Bring Optuna's trials to where a stage, after others, left them; those that are there already stay."""
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
        """Trials that are given up, and what the pruner remembers of each that it looked at.

        Optuna's pruner is asked in memory about one trial after the other, each as if it were the last of its stage, so that the order
        in which they are asked about does not matter.
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
        """Whether Optuna's pruner gives a trial up, and what it then remembers of it."""
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
        """A point that was not tried, and what the sampler wants to remember of it.

        The sampler is asked in memory, on a copy of what is known, as a trial that is asked for on the disk is there for good.
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
        """Which of Optuna's samplers asks."""
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
        """A generator of numbers that belong to the study's question, a trial and an attempt."""
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
    """Ten hex digits of what a study asks: its fixed configuration, space and objective."""
    return hashlib.sha256(json.dumps(question, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:10]


def ranked(told: Sequence[Told], direction: Direction) -> list[Told]:
    """By the first objective, the best first; then those that were pruned; those that failed last."""
    sign = -1 if direction == "maximize" else 1
    order = {"complete": 0, "pruned": 1, "failed": 2}
    return sorted(told, key=lambda each: (order[each.state], sign * each.values[0] if each.values else 0.0, each.trial.number))
