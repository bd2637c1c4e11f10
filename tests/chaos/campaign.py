"""Many events, in processes beside each other; what was done is kept, so that a campaign that is killed goes on."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import os
import platform
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from tests.chaos.events import Event, Result, count, enact
from tests.chaos.judge import Verdict
from tests.chaos.process import adopt, import_what_is_imported
from tests.chaos.settings import WORKERS, Setting
from tests.chaos.stage import unmount
from tests.support.make import PROJECT


def fingerprint() -> str:
    """Of the program, the campaign and what they run on: results of others are not gone on with."""
    digest = hashlib.sha256(f"{platform.python_version()} {version('torch')}".encode())
    for folder, pattern in (("fl_hydra", "*.py"), ("conf", "*.yaml"), ("tests/chaos", "*.py")):
        for path in sorted((PROJECT / folder).rglob(pattern)):
            digest.update(path.relative_to(PROJECT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:10]


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """A folder in memory where there is one, so that nothing waits for a disk; removed at the end."""
    memory = Path("/dev/shm")
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 2**30
    place = memory if roomy else Path(tempfile.gettempdir())
    for path in place.glob("chaos-*-*"):  # of campaigns that were killed
        if not Path(f"/proc/{path.name.split('-')[1]}").exists():
            for disk in path.glob("*/disk"):
                unmount(disk)
            shutil.rmtree(path, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"chaos-{os.getpid()}-", dir=place, ignore_cleanup_errors=True) as folder:
        yield Path(folder).resolve()


def prepare(work: Path, few: bool) -> None:
    """Make this process one that commands can be forked from."""
    import torch

    torch.set_num_threads(1)  # a pool of threads would not survive the fork
    import_what_is_imported(Setting("", WORKERS).command(work / "warm" / "outputs"), work, reports=not few)
    gc.freeze()  # else each fork goes through all of it again, and copies it


def one(seed: int, number: int, few: bool) -> Result:
    """One event, told in full."""
    with workplace() as work:
        prepare(work, few)
        adopt()
        result = enact(Event(seed, number, few), work, print)
    print(_line(result))
    return result


def campaign(seed: int, events: int, few: bool, processes: int) -> list[Result]:
    """Run the events that have no result yet, and print a table of all. The short form begins anew each time."""
    if few:
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
            return _campaign(seed, events, few, processes, Path(folder) / "results.jsonl")
    kept = PROJECT / "outputs" / "chaos" / f"{seed}-{fingerprint()}.jsonl"
    kept.parent.mkdir(parents=True, exist_ok=True)
    return _campaign(seed, events, few, processes, kept)


def _campaign(seed: int, events: int, few: bool, processes: int, kept: Path) -> list[Result]:
    done = {result.number for result in _read(kept)}
    missing = [number for number in range(events) if number not in done]
    if done:
        print(f"{len(done)} events are done already; their results are in {kept}", flush=True)
    began = time.monotonic()
    if missing:
        with workplace() as work:
            prepare(work, few)
            _work([Event(seed, number, few) for number in missing], work, kept, processes)
    results = [result for result in _read(kept) if result.number < events]
    print("\n" + table(results))
    for result in results:
        if not result.verdict.holds:
            print(f"{_line(result)}\n    {Event(seed, result.number, few)}")
    print(f"{len(results)} events, {len(missing)} of them now in {time.monotonic() - began:.0f} s")
    return results


def _work(events: Sequence[Event], work: Path, kept: Path, processes: int) -> None:
    """Give the events to processes, which take the next one from a pipe when they are done with one.

    Raises:
        RuntimeError: one of the processes failed, which is a fault of the campaign.
    """
    taking, giving = os.pipe()
    workers = []
    for _ in range(processes):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(giving)
                adopt()
                while len(place := os.read(taking, 4)) == 4:
                    event = events[struct.unpack("i", place)[0]]
                    result = enact(event, work)
                    with open(kept, "ab") as file:
                        file.write(_write(result))
                    if not result.verdict.holds or sys.stdout.isatty():
                        print(_line(result), flush=True)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        workers.append(pid)
    os.close(taking)
    with contextlib.suppress(BrokenPipeError):
        for position in range(len(events)):
            os.write(giving, struct.pack("i", position))
    os.close(giving)
    failed = [code for pid in workers if (code := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))]
    if failed:
        raise RuntimeError("the campaign itself failed; see above")


def _write(result: Result) -> bytes:
    return (json.dumps({**asdict(result), "verdict": result.verdict.value}) + "\n").encode()


def _read(path: Path) -> list[Result]:
    """Results by number; a line that a kill has torn is done again."""
    results: dict[int, Result] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, TypeError):
            content = json.loads(line)
            result = Result(**{**content, "verdict": Verdict(content["verdict"])})
            results[result.number] = result
    return [results[number] for number in sorted(results)]


def _line(result: Result) -> str:
    missed = "" if result.struck else " (did not strike)"
    return f"{result.number} {result.verdict.value}: {result.sort}, {result.setting}: {result.what}{missed}" + (
        f"\n    {result.why}" if result.why else ""
    )


def table(results: Sequence[Result]) -> str:
    """Verdicts by sort of event, as Markdown. `missed`: what should have struck came too late; `litter`: temporary files stayed."""
    columns = list(Verdict)
    missed = Counter(result.sort for result in results if not result.struck)
    litter = Counter(result.sort for result in results if result.left)
    rows = [["", "events", *(verdict.value for verdict in columns), "missed", "litter"]]
    rows.append(["---"] * len(rows[0]))
    total: Counter[Verdict] = Counter()
    for name, verdicts in count(results).items():
        if verdicts.total():
            total += verdicts
            numbers = [verdicts.total(), *(verdicts[verdict] for verdict in columns), missed[name], litter[name]]
            rows.append([name, *map(str, numbers)])
    numbers = [total.total(), *(total[verdict] for verdict in columns), missed.total(), litter.total()]
    rows.append(["all", *map(str, numbers)])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def write(path: Path, seed: int, results: Sequence[Result]) -> None:
    """The table with what it means."""
    meanings = [
        ("exact", "ended with the results of an undisturbed run, and nothing had to be said"),
        ("said", "the same results after a line that says what was done again or passed over; or refused in a line until it was removed"),
        ("skipped", "cannot be tried there, as reading what root may not read"),
        ("differs", "other weights, metrics, status or printed figures, after a line about something"),
        ("silent", "the same without a line; or from zero, or with a damaged file left lying, without a line that names it"),
        ("stuck", "no results, though nothing stood in the way"),
        ("traceback", "a traceback, or an end without its line"),
        ("hung", "never ended"),
        ("missed, litter", "what should have struck did not come; temporary files stayed"),
    ]
    path.write_text(
        "# What was tried to break it\n\n"
        f"{len(results)} events of `make chaos` (seed {seed}; Python {platform.python_version()}, torch {version('torch')}) on "
        f"{len({result.setting for result in results})} commands: every algorithm, methods with state of their own, and packs. After each\n"
        "event the same command was given again until it ended, and its weights, metrics, status, files and printed figures were compared\n"
        "with those of a run that nothing disturbed. `tests/chaos` says what is done;\n"
        f"`python -m tests.chaos --seed {seed} --only N` does one event alone.\n\n"
        + table(results)
        + "\n"
        + "".join(f"- {word}: {meaning}.\n" for word, meaning in meanings)
    )
