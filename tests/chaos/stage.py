"""Where an event takes place, and how it is judged."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.chaos.judge import Verdict, from_zero, listed_otherwise, printed, reports_why, results, rude, sayings, side_files
from tests.chaos.process import Ended, command, report
from tests.chaos.reference import Reference, make
from tests.chaos.settings import Setting
from tests.chaos.watch import Strike

if TYPE_CHECKING:
    from tests.chaos.events import Event

TRIES = 3
"""How often a command is given again before its refusal counts as its last word."""


@dataclass
class Stage:
    """Where an event takes place.

    settings: how many settings the event's sort takes turns with.
    ended: every command given, but those of `reports`. harmed: those that something was done to while they ran. what: in words. wrong:
    what was seen on the way. restarted: runs that were trained from their beginning though they had a checkpoint. may_refuse: whether the
    program may refuse to go on until somebody has removed what is wrong. struck: whether everything planned happened.
    """

    event: Event
    rng: random.Random
    reference: Reference
    folder: Path
    settings: int
    outputs: Path = field(init=False)
    ended: list[Ended] = field(default_factory=list)
    harmed: list[Ended] = field(default_factory=list)
    reports: list[Ended] = field(default_factory=list)
    what: list[str] = field(default_factory=list)
    wrong: list[tuple[Verdict, str]] = field(default_factory=list)
    restarted: list[str] = field(default_factory=list)
    may_refuse: bool = False
    struck: bool = True

    def __post_init__(self) -> None:
        self.outputs = self.folder / "outputs"

    @property
    def setting(self) -> Setting:
        return self.reference.setting

    def state(self, name: str) -> None:
        """Begin with the folders of an undisturbed run, `finished`, `half` or `early`."""
        shutil.rmtree(self.outputs, ignore_errors=True)
        copy(self.reference.state(name), self.outputs)

    def begun(self) -> set[str]:
        """Runs that have a checkpoint."""
        return {
            name for name in self.reference.runs if any(path.is_file() for path in (self.outputs / name).glob("checkpoints/round-*.pt"))
        }

    def give(self, *strikes: Strike, words: Sequence[str] | None = None) -> Ended:
        """Give the command, or another one, and look at what it does to those who read it."""
        had = self.begun()
        self.what += map(str, strikes)
        ended = command(words or self.setting.command(self.outputs), self.outputs, *strikes)
        self.struck = self.struck and (ended.struck or not strikes)
        self.look(ended, had, harmed=bool(strikes), whole=words is None)
        return ended

    def look(self, ended: Ended, had: set[str], harmed: bool, whole: bool = True) -> None:
        """Judge one command by itself. had: runs that had a checkpoint before it. whole: it asks for all runs of the reference."""
        self.ended.append(ended)
        if harmed:
            self.harmed.append(ended)
        self.mind(ended)
        if whole and (problem := printed(self.reference, ended)):
            self.wrong.append((Verdict.DIFFERS, problem))
        if ended.status == 0:
            self.restarted += from_zero(self.reference, ended, had)

    def mind(self, ended: Ended) -> None:
        """Whether a command ended, and how it treated those who read it."""
        if ended.hung:
            self.wrong.append((Verdict.HUNG, f"still there without computing: {ended.lines[-1:]}"))
        elif problem := rude(ended):
            self.wrong.append((Verdict.RUDE, problem))

    def look_at_report(self) -> None:
        """What the report shows of the runs as they are now, which is what they are or comes with a line."""
        listed = command(("--list", "--outputs", str(self.outputs)), self.outputs, main=report)
        self.reports.append(listed)
        self.mind(listed)
        self.what.append("listed")
        if problem := listed_otherwise(self.reference, listed):
            self.wrong.append((Verdict.SILENT, problem))
        if self.rng.random() < 0.3:  # it draws, which takes long
            written = command(("chaos", "--outputs", str(self.outputs)), self.outputs, main=report)
            self.reports.append(written)
            self.mind(written)
            self.what.append("reported")
            table = self.outputs / "report" / "chaos.csv"
            if written.status == 0 and not reports_why(written) and table.read_text() != self.reference.table():
                self.wrong.append((Verdict.SILENT, f"the report shows, without a line: {table.read_text()}"))
            shutil.rmtree(self.outputs / "report", ignore_errors=True)

    def conclude(self) -> tuple[Verdict, str]:
        """Give the command again until it ends, and compare."""
        for _ in range(TRIES):
            last = self.give()
            if last.hung or last.status == self.reference.status:
                break
        for verdict in (Verdict.HUNG, Verdict.RUDE):
            if whys := [why for found, why in self.wrong if found is verdict]:
                return verdict, "; ".join(dict.fromkeys(whys))
        lines = sayings(self.reference, [each for each in self.ended if each not in self.harmed or each.status == self.reference.status])
        if last.status != self.reference.status:
            return self._refused(last)
        different = results(self.reference, self.outputs) + [why for found, why in self.wrong if found is Verdict.DIFFERS]
        if different:
            return (Verdict.DIFFERS if lines else Verdict.SILENT), "; ".join(different)
        silent = [why for found, why in self.wrong if found is Verdict.SILENT]
        silent += side_files(self.reference, self.outputs, lines)
        if not any("checkpoint" in line or "made again" in line for line in lines):
            silent += [f"{name}: from zero, without a line about it" for name in self.restarted]
        if silent:
            return Verdict.SILENT, "; ".join(silent)
        if stuck := [why for found, why in self.wrong if found is Verdict.STUCK]:
            return Verdict.STUCK, "; ".join(stuck)
        return (Verdict.SAID, lines[0].strip()) if lines else (Verdict.EXACT, "")

    def _refused(self, last: Ended) -> tuple[Verdict, str]:
        """The command does not end as it should. If it may refuse and says why, it must end once the runs' folders are removed."""
        lines = sayings(self.reference, [last])
        why = (lines or last.lines or [""])[0].strip()
        if not lines:
            return Verdict.STUCK, f"status {last.status}: {why}"
        if not self.may_refuse:
            return Verdict.STUCK, why
        for name in (*self.reference.runs, "sections"):
            remove(self.outputs / name)
        again = self.give()
        if again.status != self.reference.status or (different := results(self.reference, self.outputs)):
            return Verdict.STUCK, f"{why}; and with the folder removed: {different if again.status == 0 else again.output.strip()}"
        return Verdict.SAID, why


def copy(source: Path, target: Path) -> None:
    """A folder with all that is in it, in place of what is there."""
    remove(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(source, target, symlinks=True)


def remove(path: Path) -> None:
    """Whatever it is, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def unmount(disk: Path) -> None:
    """A small file system, if there is one."""
    if disk.is_mount():
        subprocess.run(["umount", "--lazy", str(disk)], check=False)


def referred(setting: Setting, folder: Path) -> Reference:
    """The reference of a setting, in its own place in the folder of references."""
    return make(setting, folder / setting.name.replace(" ", "-").replace(",", ""))
