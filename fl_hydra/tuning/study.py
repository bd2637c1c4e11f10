"""A search on the disk: what has been asked and told so far, in Optuna's journal, and what is asked next.

What is asked is a function of the study's name, the trial's number and what was told before. So a search that was killed goes on to the
same end, and one whose journal is lost is rebuilt from its runs, which are found finished.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fl_hydra.errors import UserError
from fl_hydra.randomness import generator
from fl_hydra.tuning.space import Space, Value

if TYPE_CHECKING:
    import optuna
    from omegaconf import DictConfig

JOURNAL = "journal.log"
TRIES = 10
"""How often a sampler is asked for another point where it gives one that was tried before."""


@dataclass(frozen=True)
class Trial:
    """A point that was asked for. number: from 0. params: by key."""

    number: int
    params: dict[str, Value]

    @property
    def point(self) -> str:
        """The point as text that equal points share."""
        return json.dumps(self.params, sort_keys=True)


@dataclass(frozen=True)
class Told:
    """A trial that has ended. value: of the objective; None if it failed. why: it failed."""

    trial: Trial
    value: float | None
    why: str = ""


class Study:
    """A study in a folder that this process owns.

    Args:
        folder: where its journal lies.
        space: what is searched.
        maximised: whether more is better.
        sampler: the configuration of Optuna's sampler, as the sweeper's group `sampler` has it.
        together: trials that are asked before one is told; a study that was begun keeps its own number.

    Raises:
        UserError: the journal is damaged.
    """

    def __init__(self, folder: Path, space: Space, maximised: bool, sampler: DictConfig, together: int) -> None:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.name, self.space = folder.name, space
        self._sampler = sampler
        self._direction: Literal["maximize", "minimize"] = "maximize" if maximised else "minimize"
        path = folder / JOURNAL
        try:
            with _quietly():
                # A lock without symbolic links, which Google Drive has not.
                backend = JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path)))
                self._study = optuna.create_study(
                    study_name=self.name,
                    storage=JournalStorage(backend),
                    sampler=optuna.samplers.RandomSampler(),  # never asked: see _sample
                    direction=self._direction,
                    load_if_exists=True,
                )
                if "together" not in self._study.user_attrs:
                    self._study.set_user_attr("together", together)
                self.together = int(self._study.user_attrs["together"])
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise UserError(
                f"{path} is damaged ({' '.join(str(error).split())[:100]}); move it away and give the same command again: the study is "
                "rebuilt from its runs"
            ) from error

    def open(self) -> list[Trial]:
        """Trials that were asked for and not told, by an earlier process; to be told first."""
        import optuna

        with _quietly():
            while self._trials(optuna.trial.TrialState.WAITING):
                self._study.ask(self.space.distributions)
        return [Trial(each.number, each.params) for each in self._trials(optuna.trial.TrialState.RUNNING)]

    def told(self) -> list[Told]:
        """Trials that have ended, by number."""
        import optuna

        ended = self._trials(optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
        return [
            Told(Trial(each.number, each.params), each.value if each.values else None, each.user_attrs.get("why", "")) for each in ended
        ]

    def ask(self) -> Trial | None:
        """The next point; None if the space is used up."""
        number = len(self._trials())
        with _quietly():
            sampled = self._sample(number)
            if sampled is None:
                return None
            params, attributes = sampled
            self._study.enqueue_trial(params)
            asked = self._study.ask(self.space.distributions)
            for key, value in attributes.items():  # what the sampler remembers of it
                self._study._storage.set_trial_system_attr(asked._trial_id, key, value)
        return Trial(asked.number, dict(asked.params))

    def tell(self, told: Told) -> None:
        """Note how a trial has ended."""
        import optuna

        failed = told.value is None
        if failed:
            (running,) = [each for each in self._trials() if each.number == told.trial.number]
            self._study._storage.set_trial_user_attr(running._trial_id, "why", told.why)
        with _quietly():
            self._study.tell(told.trial.number, told.value, state=optuna.trial.TrialState.FAIL if failed else None)

    def best(self) -> Told | None:
        """The trial with the best value, of equal ones the first; None if none has a value."""
        first = next(iter(ranked(self.told(), self._direction == "maximize")), None)
        return None if first is None or first.value is None else first

    def _trials(self, *states: optuna.trial.TrialState) -> list[optuna.trial.FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

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
            scratch = optuna.create_study(direction=self._direction, sampler=self._made(number, attempt))
            scratch.add_trials(known)
            asked = scratch.ask(self.space.distributions)
            if Trial(number, asked.params).point not in tried:
                return dict(asked.params), dict(scratch._storage.get_trial(asked._trial_id).system_attrs)
        if points is None:
            kind = str(self._sampler.get("_target_", "")).rpartition(".")[2]
            raise UserError(
                f"hydra/sweeper/sampler: {kind} asks for points that were tried before; choose tpe, random, cmaes, gp or nsgaii"
            )
        fresh = [point for point in points if Trial(0, point).point not in tried]
        return fresh[int(self._random(number).integers(len(fresh)))], {}

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
                raise UserError("hydra/sweeper/sampler=grid: an interval has no end of points; use choice(...) or range(...)")
            made = made({name: sorted({point[name] for point in points}, key=str) for name in self.space.distributions})
        assert not callable(made)
        return made  # type: ignore[no-any-return]

    def _random(self, *more: int) -> Any:
        """A generator of numbers that belong to the study, a trial and an attempt."""
        name = int.from_bytes(hashlib.sha256(f"{self.name} {self._sampler.get('seed')}".encode()).digest()[:7], "big")
        return generator(name, "search", *more)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Optuna's warnings that something is experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def question_hash(question: dict[str, Any]) -> str:
    """Ten hex digits of what a study asks: its fixed configuration, space and objective."""
    return hashlib.sha256(json.dumps(question, sort_keys=True, separators=(",", ":")).encode()).hexdigest()[:10]


def ranked(told: Sequence[Told], maximised: bool) -> list[Told]:
    """The best first; those that failed last."""
    sign = -1 if maximised else 1
    return sorted(told, key=lambda each: (each.value is None, sign * (each.value or 0.0), each.trial.number))
