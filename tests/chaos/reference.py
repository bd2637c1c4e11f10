"""What a setting's runs are when nothing disturbs them, and their folders as they are on the way."""

from __future__ import annotations

import fcntl
import hashlib
import json
import pickle
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.process import Ended, command, report, train_from_its_beginning
from tests.chaos.settings import Setting
from tests.chaos.watch import Strike

TRAINED = ("checkpoint", "replace")
"""The call by which a round is kept: as many of them as the reference has mean that a run began at its beginning."""


@dataclass(frozen=True)
class Reference:
    """An undisturbed setting.

    runs: its run folders under the outputs, with what :func:`contents` found in each. figures: what the command printed of them.
    counts: how often each sort of call was tried on each kind of file. checkpoints: how often
    each run kept a round. lines: what was printed, without numbers. listed: figures in the list of runs. bytes: on the disk.
    """

    setting: Setting
    folder: Path
    runs: dict[str, dict[str, Any]]
    status: int
    figures: list[tuple[str, ...]]
    counts: Counter[tuple[str, str]]
    checkpoints: Counter[str]
    lines: frozenset[str]
    section: list[str]
    listed: list[tuple[str, ...]]
    bytes: int

    def state(self, name: str) -> Path:
        """The outputs folder of `finished`, `half` (killed on the way) or `early` (killed before that); made when first asked for."""
        if name == "finished":
            return self.folder / name / "outputs"
        return self._made(name, (), self._strike({"half": 0.6, "early": 0.3}[name]))

    def other(self, name: str) -> Path:
        """The outputs of the setting with another seed (`sibling`), or with a smaller budget (`shorter`); made when first asked for."""
        words = {"sibling": ("seed=1001",), "shorter": self.setting.shorter}[name]
        return self._made(name, words)

    def unfinished_sibling(self) -> Path:
        """The same with another seed, killed on the way."""
        return self._made("unfinished-sibling", ("seed=1001",), self._strike(0.6))

    def table(self) -> str:
        """The table of its section that the report writes."""
        place = self.folder / "report"
        with _alone(self.folder / "report.lock"):
            if not place.exists():
                outputs = self.state("finished")
                command(("chaos", "--outputs", str(outputs)), outputs, main=report)
                shutil.move(outputs / "report", place)
        return (place / "chaos.csv").read_text()

    def _strike(self, part: float) -> Strike:
        """What kills it before a checkpoint, when a part of them is there."""
        return Strike("replace", "checkpoint", max(2, round(self.counts["replace", "checkpoint"] * part)), "kill")

    def _made(self, name: str, words: tuple[str, ...], *strikes: Strike) -> Path:
        outputs = self.folder / name / "outputs"
        with _alone(self.folder / f"{name}.lock"):
            if not outputs.exists():
                ended = command(self.setting.command(outputs, *words), outputs, *strikes)
                if ended.status != (-9 if strikes else 0):
                    raise RuntimeError(f"{name} of {self.setting.name}: {ended.output}")
        return outputs


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock. It is given back by word: processes forked meanwhile have the file open, too."""
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)


def figures(output: str) -> list[tuple[str, ...]]:
    """The figures of every line that says `finished` or `diverged`, in order."""
    lines = (line for line in output.splitlines() if re.search("finished|diverged", line) and not re.match(r"\s*(note|error)", line))
    found = (tuple(re.findall(r"(?<![\w.])\d+\.\d{2,}(?![\w.])", line)) for line in lines)
    return sorted(each for each in found if each)


def read(path: Path) -> bytes:
    """All of a file; unlike `open`, it does not wait for the other end of a pipe.

    Raises:
        OSError: it is none, or cannot be read.
    """
    if path.exists() and not path.is_file():
        raise OSError(f"{path.name} is no file")
    return path.read_bytes()


def contents(run: Path) -> dict[str, Any]:
    """What has to be as in the reference, of one run.

    Raises:
        OSError, ValueError, KeyError, TypeError: something is missing or cannot be read.
    """
    summary = json.loads(read(run / "summary.json"))
    metrics = read(run / "metrics.jsonl")
    return {
        **{f"summary.json: {key}": summary[key] for key in ("status", "metrics", "weights_sha256", "metrics_sha256", "config")},
        "metrics.jsonl": [json.loads(line) for line in metrics.splitlines()],
        "metrics.jsonl: SHA-256": hashlib.sha256(metrics).hexdigest(),
        "metrics.jsonl: the summary's SHA-256": summary["metrics_sha256"] == hashlib.sha256(metrics).hexdigest(),
    }


def checkpoints(ended: Ended) -> Counter[str]:
    """How often each run kept a round, by its folder under the outputs."""
    names = (call.path.split("/checkpoints/")[0] for call in ended.trace if call.done and (call.kind, call.call) == TRAINED)
    return Counter(names)


def make(setting: Setting, folder: Path) -> Reference:
    """Run a setting undisturbed; kept for other processes to read.

    Raises:
        RuntimeError: the setting cannot be run, or the campaign cannot see what it does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = folder / "reference.pickle"
    with _alone(folder / ".lock"):
        if kept.exists():
            return pickle.loads(kept.read_bytes())  # type: ignore[no-any-return]
        reference = _make(setting, folder)
        kept.write_bytes(pickle.dumps(reference))
        return reference


def _make(setting: Setting, folder: Path) -> Reference:
    outputs = folder / "finished" / "outputs"
    shutil.rmtree(folder / "finished", ignore_errors=True)
    first = command(setting.command(outputs), outputs, main=train_from_its_beginning)
    counts = first.counts()
    if first.status != 0 or counts["replace", "checkpoint"] < 3:
        raise RuntimeError(f"{setting.name} cannot be run or seen: status {first.status}\n{first.output}")
    bytes_used = sum(-(-path.stat().st_size // 4096) * 4096 for path in outputs.rglob("*") if path.is_file())
    again = command(setting.command(outputs), outputs)
    if figures(first.output) != figures(again.output) or not figures(first.output):
        raise RuntimeError(f"{setting.name}: figures differ when it is asked for again\n{first.output}{again.output}")
    listed = command(("--list", "--outputs", str(outputs)), outputs, main=report)
    runs = {path.parent.relative_to(outputs).as_posix(): contents(path.parent) for path in outputs.glob("*/*/*/summary.json")}
    return Reference(
        setting,
        folder,
        runs,
        first.status,
        figures(first.output),
        counts,
        checkpoints(first),
        frozenset(plain(line) for line in (*first.lines, *again.lines)),
        sorted((outputs / "sections" / "chaos.txt").read_text().split()),
        figures(listed.output),
        bytes_used,
    )


def plain(line: str) -> str:
    """A line without its numbers, which may be times."""
    return re.sub(r"\d+", "0", line.strip())
