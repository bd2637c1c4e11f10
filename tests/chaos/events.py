"""What is done to runs: a table of sorts of events, each a function that enacts one on a stage."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from tests.chaos.damage import NotHere
from tests.chaos.judge import Verdict, left_behind
from tests.chaos.rivals import many_processes, second_process
from tests.chaos.settings import Setting, lone, packs
from tests.chaos.spoiling import copied, damage_finished, damage_pack, damage_unfinished
from tests.chaos.stage import Stage, referred, remove, unmount
from tests.chaos.strikes import fails_for_ever, fails_once, full_disk, kill, kill_again_and_again, regroup, signalled, without_flock


@dataclass(frozen=True)
class Event:
    """One event of a campaign: a function of these three.

    few: of the short form, which has few settings. sort: one of :data:`SORTS`. turn: how many of its sort came before it; the combinations
    of a sort are gone through in a seeded order.
    """

    seed: int
    number: int
    few: bool = False

    @property
    def sort(self) -> str:
        return CYCLE[self.few][self.number % len(CYCLE[self.few])]

    @property
    def turn(self) -> int:
        cycle = CYCLE[self.few]
        cycles, position = divmod(self.number, len(cycle))
        return cycles * cycle.count(self.sort) + cycle[:position].count(self.sort)

    def random(self) -> random.Random:
        return random.Random(f"{self.seed} {self.number}")

    def __str__(self) -> str:
        return f"python -m tests.chaos --seed {self.seed}{' --short' if self.few else ''} --only {self.number}"


@dataclass(frozen=True)
class Result:
    """How an event ended. struck: whether what was planned happened. left: temporary files that stayed."""

    number: int
    sort: str
    setting: str
    what: str
    verdict: Verdict
    why: str = ""
    struck: bool = True
    left: int = 0
    seconds: float = 0.0


# The table --------------------------------------------------------------------------------------------------------------------------


LONE, PACK = lone, packs


@dataclass(frozen=True)
class Sort:
    """A sort of events: how it is enacted, on which settings, and how many of it there are in a cycle of events, and in the short form."""

    enact: Callable[[Stage], None]
    settings: Callable[[bool], tuple[Setting, ...]]
    weight: int
    short: int = 1


SORTS: dict[str, Sort] = {
    "killed": Sort(kill, LONE, 8, short=2),
    "pack killed": Sort(kill, PACK, 6),
    "killed again and again": Sort(kill_again_and_again, LONE, 2),
    "pack killed again and again": Sort(kill_again_and_again, PACK, 3),
    "pack killed and regrouped": Sort(regroup, PACK, 2),
    "signalled": Sort(signalled, LONE, 2),
    "pack signalled": Sort(signalled, PACK, 2),
    "unfinished run damaged": Sort(damage_unfinished, LONE, 10, short=2),
    "finished run damaged": Sort(damage_finished, LONE, 11, short=2),
    "pack damaged": Sort(damage_pack, PACK, 2),
    "files of other runs": Sort(copied, LONE, 2),
    "files of other members of a pack": Sort(copied, PACK, 1),
    "a call fails": Sort(fails_once, LONE, 3),
    "a call fails in a pack": Sort(fails_once, PACK, 1),
    "a call fails for ever": Sort(fails_for_ever, LONE, 2),
    "a call fails for ever in a pack": Sort(fails_for_ever, PACK, 1),
    "no flock": Sort(without_flock, LONE, 1),
    "full disk": Sort(full_disk, LONE, 1),
    "full disk under a pack": Sort(full_disk, PACK, 1),
    "a second process": Sort(second_process, LONE, 2),
    "a second process on a pack": Sort(second_process, PACK, 1),
    "many processes": Sort(many_processes, LONE, 1),
}


def _cycle(few: bool) -> tuple[str, ...]:
    """All sorts once, then again those of which there are more, until each has come as often as its weight."""
    weights = {name: sort.short if few else sort.weight for name, sort in SORTS.items()}
    return tuple(name for turn, (name, weight) in product(range(max(weights.values())), weights.items()) if turn < weight)


CYCLE = {few: _cycle(few) for few in (False, True)}
SHORT, LONG = len(CYCLE[True]), 20 * len(CYCLE[False])
"""Events of the short form, one cycle, and of the long one, in which every damage is done to every file."""


def _settings(event: Event) -> tuple[Setting, ...]:
    return SORTS[event.sort].settings(event.few)


def setting_of(event: Event) -> Setting:
    """The settings of a sort take turns."""
    settings = list(_settings(event))
    random.Random(f"{event.seed} {event.sort}").shuffle(settings)
    return settings[event.turn % len(settings)]


def enact(event: Event, work: Path, say: Callable[[str], None] = lambda text: None) -> Result:
    """Let an event happen and judge it. say: is told everything that the program said."""
    began = time.monotonic()
    setting = setting_of(event)
    folder = work / f"worker-{os.getpid()}"  # always the same, so that commands are
    remove(folder)
    stage = Stage(event, event.random(), referred(setting, work / "references"), folder, len(_settings(event)))
    try:
        SORTS[event.sort].enact(stage)
        verdict, why = stage.conclude()
    except NotHere as error:
        verdict, why = Verdict.SKIPPED, str(error)
    for ended in (*stage.reports, *stage.ended):
        say(f"$ {' '.join(ended.words)}\n{ended.output}[status {ended.status}]\n")
    left = len(left_behind(stage.outputs)) if verdict is not Verdict.SKIPPED else 0
    unmount(folder / "disk")
    remove(folder)
    return Result(
        event.number, event.sort, setting.name, "; ".join(stage.what), verdict, why, stage.struck, left, round(time.monotonic() - began, 2)
    )


def count(results: Sequence[Result]) -> dict[str, Counter[Verdict]]:
    """Verdicts by sort of event."""
    table: dict[str, Counter[Verdict]] = {name: Counter() for name in SORTS}
    for result in results:
        table[result.sort][result.verdict] += 1
    return table
