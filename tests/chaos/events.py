"""What is done to runs: a table of sorts of events, each a function that enacts one on a stage."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from tests.chaos.damage import Material, NotHere, damages
from tests.chaos.judge import Verdict, from_zero, left_behind, listed_otherwise, printed, reports_why, results, rude, sayings, side_files
from tests.chaos.process import Ended, Process, command, report
from tests.chaos.reference import Reference, make
from tests.chaos.settings import PACKS, Setting, lone, methods, packs
from tests.chaos.watch import Strike, kind

TRIES = 3
"""How often a command is given again before its refusal counts as its last word."""


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


@dataclass
class Stage:
    """Where an event takes place.

    ended: every command given, but those of `reports`. harmed: those that something was done to while they ran. what: in words. wrong:
    what was seen on the way. restarted: runs that were trained from their beginning though they had a checkpoint. may_refuse: whether the
    program may refuse to go on until somebody has removed what is wrong. struck: whether everything planned happened.
    """

    event: Event
    rng: random.Random
    reference: Reference
    folder: Path
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


# --- strikes in the process -------------------------------------------------------------------------------------------------------------

WRITING = ("open", "write", "append", "fsync", "replace", "unlink", "truncate", "mkdir", "flock")


def _pick(stage: Stage, calls: Sequence[str], settings: int, part: float = 1.0, start_up: bool = False) -> tuple[str, str, int]:
    """A sort of call and a kind of file that the setting has, which take turns, and which of its calls."""
    counts = stage.reference.counts
    pairs = sorted(pair for pair in counts if pair[0] in calls and (start_up or pair[1] != "start-up"))
    random.Random(f"{stage.event.seed} {stage.setting.name}").shuffle(pairs)
    pair = pairs[stage.event.turn // settings % len(pairs)]
    return *pair, stage.rng.randint(1, max(1, round(counts[pair] * part)))


def kill(stage: Stage) -> None:
    settings = len(_settings(stage.event))
    call, file, n = _pick(stage, WRITING, settings)
    stage.give(Strike(call, file, n, stage.rng.choice(["kill", "kill", "kill after"])))


def kill_again_and_again(stage: Stage) -> None:
    for _ in range(stage.rng.randint(2, 5)):
        counts = stage.reference.counts
        pair = stage.rng.choice(sorted(pair for pair in counts if pair[0] in WRITING and pair[1] != "start-up"))
        n = stage.rng.randint(1, max(1, counts[pair] // 2))
        if stage.give(Strike(*pair, n, stage.rng.choice(["kill", "kill after"]))).status == stage.reference.status:
            break
    stage.struck = True  # later ones need not


def regroup(stage: Stage) -> None:
    """Members of a killed pack go on alone or in packs of two, are killed there, and come back together."""
    call, file, n = _pick(stage, WRITING, len(_settings(stage.event)))
    if stage.rng.random() < 0.8:
        stage.give(Strike(call, file, n, "kill"))
    for _ in range(stage.rng.randint(1, 2)):
        strikes = [Strike("replace", "checkpoint", stage.rng.randint(1, 6), "kill")] if stage.rng.random() < 0.5 else []
        point = stage.rng.choice(stage.setting.points)
        some = (stage.setting.alone(point, stage.outputs), stage.setting.command(stage.outputs, "hydra.launcher.runs=2"))
        words = stage.rng.choice(some)
        stage.what.append(" ".join(point) if words is some[0] else "two at a time")
        stage.give(*strikes, words=words)
    stage.struck = True


def signalled(stage: Stage) -> None:
    call, file, n = _pick(stage, (*WRITING, "read"), len(_settings(stage.event)), start_up=True)
    action, number = (("SIGTERM", signal.SIGTERM), ("3 SIGINT", signal.SIGINT))[stage.event.turn % 2]
    ended = stage.give(Strike(call, file, n, action))
    if ended.struck and ended.status not in (stage.reference.status, 128 + number) and not rude(ended):
        stage.wrong.append((Verdict.RUDE, f"exit status {ended.status} after {number.name}: {ended.output.strip()}"))


ERRORS = ("EIO", "ENOSPC", "ESTALE", "EACCES", "EDQUOT", "EROFS")
FAILING = tuple(call for call in WRITING if call != "flock")


def _fails(stage: Stage, lasting: bool) -> None:
    name = ERRORS[stage.event.turn % len(ERRORS)]
    if stage.rng.random() < 0.25:  # reading, where a run goes on
        stage.state("half")
        file = stage.rng.choice(["checkpoint", "client state", "metrics", "environment", "config", "summary", "lock"])
        stage.give(Strike("read", file, stage.rng.randint(1, 2), name, lasting))
        stage.struck = True  # not all of these are read
    else:
        call, file, n = _pick(stage, FAILING, len(_settings(stage.event)))
        stage.give(Strike(call, file, n, name, lasting))


def fails_once(stage: Stage) -> None:
    _fails(stage, lasting=False)


def fails_for_ever(stage: Stage) -> None:
    _fails(stage, lasting=True)


def without_flock(stage: Stage) -> None:
    """A file system without flock: a run ends all the same, killed in between or not."""
    name = ("ENOSYS", "EOPNOTSUPP", "ENOLCK")[stage.event.turn % 3]
    strike = Strike("flock", "file", 1, name, lasting=True)
    if stage.rng.random() < 0.5:
        call, file, n = _pick(stage, FAILING, len(_settings(stage.event)))
        stage.give(strike, Strike(call, file, n, "kill"))
    ended = stage.give(strike)
    if ended.status != stage.reference.status:
        stage.wrong.append((Verdict.STUCK, f"nothing runs without flock: {ended.output.strip()}"))
    if ended.status not in (0, 1, 2) and not ended.hung:
        stage.wrong.append((Verdict.RUDE, f"exit status {ended.status}"))


def full_disk(stage: Stage) -> None:
    """A real file system that is too small."""
    disk = stage.folder / "disk"
    disk.mkdir(parents=True)
    pages = stage.reference.bytes // 4096
    size = stage.rng.randint(8, pages + pages // 3)
    stage.what.append(f"{size} pages of 4 KiB, where it needs about {pages}")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size * 4}k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        raise NotHere("a file system of a given size cannot be mounted here")
    stage.outputs = disk / "outputs"
    stage.give()
    stage.harmed.append(stage.ended[-1])
    subprocess.run(["mount", "-o", "remount,size=256m", str(disk)], check=True)


# --- files ------------------------------------------------------------------------------------------------------------------------------

FILES = ("checkpoint", "client state", "metrics", "summary", "timings", "environment", "config", "section", "lock")
WHICH = ("newest", "all", "older")


def damage(stage: Stage, state: str) -> None:
    """One file, or all checkpoints or all client state of a run."""
    files = [file for file in FILES if state == "finished" or file != "summary"]
    combinations = [(file, name) for file in files for name in damages(file)]
    random.Random(f"{stage.event.seed} {state}").shuffle(combinations)
    combinations.sort(key=lambda pair: pair[0] in ("lock", "section", "config"))  # those that decide results come first
    file, name = combinations[stage.event.turn % len(combinations)]
    stage.state(state)
    if file == "client state" and not any(stage.outputs.rglob("clients/*.pt")):
        instead = PACKS[0] if stage.setting.pack else methods("localsgd")[0]
        stage.what.append(instead.name)
        stage.reference = referred(instead, stage.reference.folder.parent)
        stage.state(state)
    run = stage.rng.choice(sorted(stage.reference.runs))
    files_of_run = (path for path in [*(stage.outputs / run).rglob("*"), *stage.outputs.glob("sections/*")] if path.is_file())
    present = sorted(path for path in files_of_run if path.suffix != ".tmp" and kind(path.relative_to(stage.outputs).as_posix()) == file)
    if not present:
        raise NotHere(f"there is no {file}")
    which = stage.rng.choice(WHICH) if len(present) > 1 else "newest"
    paths = {"newest": present[-1:], "all": present, "older": present[:1]}[which]
    stage.what += [f"{state}: {which} {file}" if len(present) > 1 else f"{state}: {file}", name]
    earlier = stage.reference.state("early" if state == "half" else "half")
    for path in paths:
        place = path.relative_to(stage.outputs)
        damages(file)[name](path, Material(stage.rng, _named(earlier, place), _named(_foreign(stage, run, state), place)))
    # What is no file, or another run's, is for the user to move away; any other damage is mended, passed over or made again.
    stage.may_refuse = "in its place" in stage.what[-1] or "another run's" in stage.what[-1]
    if stage.rng.random() < 0.3:
        stage.look_at_report()


def _named(outputs: Path, place: Path) -> Path | None:
    """The file of the same name, or of the same place in the order of names, in the other outputs' run."""
    if place.parts[0] == "sections":
        return outputs / place
    runs = [path for path in outputs.glob("*/*/*") if path.is_dir() and "sections" not in path.parts]
    run = next((run for run in runs if run.name == place.parts[2]), runs[0] if runs else None)
    if run is None:
        return None
    exact = run.joinpath(*place.parts[3:])
    if exact.is_file():
        return exact
    alike = sorted(exact.parent.glob("*.pt" if exact.suffix == ".pt" else exact.name)) if exact.parent.is_dir() else []
    return alike[-1] if alike else None


def _foreign(stage: Stage, run: str, state: str) -> Path:
    """Outputs with another run: of another seed, or of a pack another member."""
    if not stage.setting.pack:
        return stage.reference.other("sibling") if state == "finished" else stage.reference.unfinished_sibling()
    other = stage.rng.choice([name for name in sorted(stage.reference.runs) if name != run])
    place = stage.folder / "foreign"
    copy(stage.reference.state(state) / other, place / other)
    return place


def damage_unfinished(stage: Stage) -> None:
    damage(stage, "half")


def damage_finished(stage: Stage) -> None:
    damage(stage, "finished")


def damage_pack(stage: Stage) -> None:
    damage(stage, ("half", "finished")[stage.event.turn % 2])


COPIES = (
    "a finished run of another seed in its place",
    "an unfinished run of another seed in its place",
    "a finished run of a smaller budget in its place",
    "checkpoints of another run in the unfinished run",
    "newest checkpoint of another run in the unfinished run",
    "summary of another run in the unfinished run",
    "summary and metrics of another run in the unfinished run",
    "summary of another run in the finished run",
    "metrics of another run in the finished run",
    "everything but the checkpoints of another run in the finished run",
    "checkpoints of another run in the finished run, without its summary",
    "moved while unfinished",
    "moved when finished",
    "an older copy put back",
    "only its checkpoints kept",
    "only its newest checkpoint kept",
)


def copied(stage: Stage) -> None:
    """Folders and files of other runs, or of this run from elsewhere, in this run's place."""
    name = COPIES[stage.event.turn % len(COPIES)]
    stage.what.append(name)
    stage.state("half" if "unfinished" in name or "older" in name else "finished")
    run = stage.rng.choice(sorted(stage.reference.runs))
    place = stage.outputs / run

    def others(state: str) -> Path:
        outputs = stage.reference.other("shorter") if "budget" in name and not stage.setting.pack else _foreign(stage, run, state)
        return next(path.parent for path in outputs.glob("*/*/*/config.yaml"))

    match name.split(" in ")[0]:
        case "a finished run of another seed" | "a finished run of a smaller budget":
            copy(others("finished"), place)
        case "an unfinished run of another seed":
            copy(others("half"), place)
        case "checkpoints of another run":
            copy(others("half" if "unfinished" in name else "finished") / "checkpoints", place / "checkpoints")
            if "without" in name:
                remove(place / "summary.json")
        case "newest checkpoint of another run":
            newest = max((place / "checkpoints").glob("round-*.pt"))
            shutil.copyfile(max((others("half") / "checkpoints").glob("round-*.pt")), newest)
        case "summary of another run":
            shutil.copyfile(others("finished") / "summary.json", place / "summary.json")
        case "summary and metrics of another run":
            other = others("finished")
            for file in ("summary.json", "metrics.jsonl"):
                shutil.copyfile(other / file, place / file)
        case "metrics of another run":
            shutil.copyfile(others("finished") / "metrics.jsonl", place / "metrics.jsonl")
        case "everything but the checkpoints of another run":
            for path in others("finished").iterdir():
                if path.is_file():
                    shutil.copyfile(path, place / path.name)
        case "an older copy put back":
            copy(stage.reference.state("early") / run, place)
        case "only its checkpoints kept" | "only its newest checkpoint kept":
            for path in place.iterdir():
                if path.name != "checkpoints":
                    remove(path)
            rounds = sorted((place / "checkpoints").glob("round-*.pt"))
            for path in rounds[:-1] if "newest" in name else ():
                remove(path)
    stage.may_refuse = not name.startswith(("moved", "an older", "only"))
    if stage.rng.random() < 0.3:
        stage.look_at_report()


# --- several processes ------------------------------------------------------------------------------------------------------------------

MEANWHILE = ("nothing else", "the lock is removed", "the run's folder is removed", "the outputs are removed", "the checkpoints are removed")


def _meanwhile(stage: Stage, what: str) -> None:
    for name in stage.reference.runs:
        match what:
            case "the lock is removed":
                for path in (stage.outputs / name).glob("*"):
                    if path.is_file() and kind(f"{name}/{path.name}") == "lock":
                        path.unlink(missing_ok=True)
            case "the run's folder is removed":
                remove(stage.outputs / name)
            case "the checkpoints are removed":
                remove(stage.outputs / name / "checkpoints")
    if what == "the outputs are removed":
        remove(stage.outputs)


def _written_by_two(stage: Stage, ended: Sequence[Ended]) -> None:
    """A process that goes on writing a run after another has begun to. One write may be under way when it loses the run."""
    kept = {"checkpoint", "client state", "metrics", "timings", "summary"}
    calls = sorted(
        (call.seconds, call.process, call.path)
        for each in ended
        for call in each.trace
        if call.done and call.call in ("replace", "append") and call.kind in kept
    )
    for name in stage.reference.runs:
        writes = [process for _, process, path in calls if path.startswith(name + "/")]
        for process in dict.fromkeys(writes):
            others = [position for position, writer in enumerate(writes) if writer != process]
            own = [position for position, writer in enumerate(writes) if writer == process]
            late = [position for position in own if others and own[0] < others[0] < position]
            if len(late) > 1:
                stage.wrong.append((Verdict.DIFFERS, f"{name}: two processes wrote it"))
                return


def second_process(stage: Stage) -> None:
    """The first is held at some call; what protects the run goes, or stays; a second one is given the same command; the first goes on."""
    what = MEANWHILE[stage.event.turn % len(MEANWHILE)]
    call, file, n = _pick(stage, ("open", "append", "fsync", "replace"), len(_settings(stage.event)))
    strike = Strike(call, file, n, "pause")
    stage.what += [f"{strike}; meanwhile {what}, and a second process starts"]
    words = stage.setting.command(stage.outputs)
    first = Process.start(words, stage.outputs, [strike])
    os.set_blocking(first.asks, False)
    asked: list[bytes] = []

    def paused() -> bool:
        try:
            asked.append(os.read(first.asks, 1))
        except BlockingIOError:
            return False
        return True

    stage.struck = first.wait(paused)
    had: set[str] = set()
    if stage.struck:
        _meanwhile(stage, what)
        had = stage.begun()
        second = command(words, stage.outputs)
        os.write(first.tells, b"g")
    both = [first.end(), *([second] if stage.struck else [])]
    stage.look(both[0], set(), harmed=True)
    for each in both[1:]:
        stage.look(each, had, harmed=True)
    _written_by_two(stage, both)


def many_processes(stage: Stage) -> None:
    """Two to eight start at once, and more when something is removed under them."""
    number = stage.rng.randint(2, 4) if stage.event.few else stage.rng.randint(2, 8)
    what = MEANWHILE[stage.event.turn % 4]
    words = stage.setting.command(stage.outputs)
    stage.what += [f"{number} processes at once; {what}"]
    processes = [Process.start(words, stage.outputs) for _ in range((number + 1) // 2)]
    after = stage.rng.randint(1, 60)
    processes[0].wait(lambda: sum(call.done for each in processes for call in each.trace()) > after)
    _meanwhile(stage, what)
    processes += [Process.start(words, stage.outputs) for _ in range(number // 2)]
    ended = [process.end() for process in processes]
    for each in ended:
        stage.look(each, set(), harmed=True)
    _written_by_two(stage, ended)


# --- the table --------------------------------------------------------------------------------------------------------------------------

LONE, PACK = lone, packs


@dataclass(frozen=True)
class Sort:
    """A sort of events: how it is enacted, on which settings, and how many of it there are in a cycle of events, and in the short form."""

    enact: Callable[[Stage], None]
    settings: Callable[[bool], tuple[Setting, ...]]
    weight: int
    short: int = 1


SORTS: dict[str, Sort] = {
    "killed": Sort(kill, LONE, 8, short=3),
    "pack killed": Sort(kill, PACK, 6, short=2),
    "killed again and again": Sort(kill_again_and_again, LONE, 2),
    "pack killed again and again": Sort(kill_again_and_again, PACK, 3),
    "pack killed and regrouped": Sort(regroup, PACK, 2),
    "signalled": Sort(signalled, LONE, 2),
    "pack signalled": Sort(signalled, PACK, 2),
    "unfinished run damaged": Sort(damage_unfinished, LONE, 10, short=3),
    "finished run damaged": Sort(damage_finished, LONE, 11, short=3),
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


def referred(setting: Setting, folder: Path) -> Reference:
    """The reference of a setting, in its own place in the folder of references."""
    return make(setting, folder / setting.name.replace(" ", "-").replace(",", ""))


def enact(event: Event, work: Path, say: Callable[[str], None] = lambda text: None) -> Result:
    """Let an event happen and judge it. say: is told everything that the program said."""
    began = time.monotonic()
    setting = setting_of(event)
    folder = work / f"worker-{os.getpid()}"  # always the same, so that commands are
    remove(folder)
    stage = Stage(event, event.random(), referred(setting, work / "references"), folder)
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
