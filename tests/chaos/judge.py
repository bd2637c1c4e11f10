"""What came out of an event, compared with the undisturbed reference."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from tests.chaos.process import Ended
from tests.chaos.reference import Reference, checkpoints, contents, figures, plain, read


class Verdict(Enum):
    """How an event ended. Only the first three hold what is promised.

    skipped: it cannot be tried here. exact: the reference's results, and nothing was left to say. said: the same, with a line that says
    what was passed over or made again; or refused in a line, for as long as what is wrong lies there. differs: other results, though a
    line said something. silent: other results, or from zero, without a line. stuck: no results, though nothing stands in the way.
    traceback: one, or an end without a line. hung: it never ended.
    """

    SKIPPED = "skipped"
    EXACT = "exact"
    SAID = "said"
    DIFFERS = "differs"
    SILENT = "silent"
    STUCK = "stuck"
    RUDE = "traceback"
    HUNG = "hung"

    @property
    def holds(self) -> bool:
        return self in (Verdict.SKIPPED, Verdict.EXACT, Verdict.SAID)


def sayings(reference: Reference, ended: Sequence[Ended]) -> list[str]:
    """Lines that tell of something wrong: errors, failures, and notes on files and folders, that an undisturbed run does not print."""
    wrong = re.compile(r"^\s*(warning|error)\b|: (failed|busy|diverged|interrupted|damaged)\b", re.IGNORECASE)
    note = re.compile(r"^\s*note\b.*(\.(jsonl?|yaml|pt|txt)\b|checkpoint|client|folder|lock|section|/|begun|again)", re.IGNORECASE)
    lines = (line for each in ended for line in each.lines if wrong.search(line) or note.search(line))
    return [line for line in lines if plain(line) not in reference.lines]


def rude(ended: Ended) -> str:
    """What was not one line, if anything was."""
    for sign in ("Traceback (most recent call last)", "Exception ignored in", "Fatal Python error"):
        if sign in ended.output:
            return sign
    if ended.status < 0 and ended.status != -9 and not ended.hung:
        return f"ended by signal {-ended.status} without a line"
    if ended.status > 0 and not ended.output.strip():
        return f"ended with status {ended.status} without a line"
    lines = [line for line in ended.lines if line.strip()]
    errors = [number for number, line in enumerate(lines) if line.startswith("error:")]
    if errors:
        after = [line for line in lines[errors[0] + 1 :] if not line.startswith((" ", "\t", "error:", "note:"))]
        if after:
            return f"an error of several lines: {after[0]!r}"
    return ""


def results(reference: Reference, outputs: Path) -> list[str]:
    """In what the results differ from the reference's: weights, metrics, status, and runs that are missing or that nobody asked for."""
    different = []
    for name, expected in reference.runs.items():
        try:
            found = contents(outputs / name)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            different.append(f"{name}: {type(error).__name__}: {error}")
            continue
        different += [f"{name}: {key}" for key, value in expected.items() if not _equal(found[key], value)]
    names = {path.parent.relative_to(outputs).as_posix() for path in outputs.glob("*/*/*/summary.json")}
    return different + [f"{name}: a run that nobody asked for" for name in sorted(names - reference.runs.keys())]


def side_files(reference: Reference, outputs: Path, said: Sequence[str]) -> list[str]:
    """What is wrong with timings, environment, configuration and section, which must be rebuilt, unless a line that was said names them."""
    wrong = []
    for name, run in reference.runs.items():
        folder, original = outputs / name, reference.state("finished") / name
        for file, problem in (
            ("timings.jsonl", _timings_problem(folder / "timings.jsonl", run["metrics.jsonl"])),
            ("environment.json", _environment_problem(folder / "environment.json", original / "environment.json")),
            ("config.yaml", _config_problem(folder / "config.yaml", original / "config.yaml")),
        ):
            if problem:
                wrong.append(f"{name}/{file}: {problem}")
    try:
        listed = Counter(read(outputs / "sections" / "chaos.txt").decode().splitlines())
        more = listed - Counter(reference.section)
        # The report says of a run that is listed and not there that it is missing.
        missing = [name for name in more if re.fullmatch(r"[^/\0]+/[^/\0]+/[^/\0]+-[0-9a-f]{10}", name) and not (outputs / name).exists()]
        if Counter(reference.section) - listed or set(more) - set(missing):
            wrong.append("sections/chaos.txt: other runs")
    except (OSError, ValueError) as error:
        wrong.append(f"sections/chaos.txt: {error}")
    return [each for each in wrong if not any(Path(each.split(":")[0]).name in line for line in said)]


def _equal(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _timings_problem(path: Path, metrics: list[dict[str, Any]]) -> str:
    try:
        rows = [json.loads(line) for line in read(path).splitlines()]
        rounds = {row["round"] for row in rows}
        if not all(isinstance(row["seconds"], (int, float)) and math.isfinite(row["seconds"]) and row["seconds"] >= 0 for row in rows):
            return "times that are none"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    expected = {row["round"] for row in metrics}
    return "" if rounds == expected else f"rounds {sorted(rounds, key=str)} in place of {sorted(expected)}"


def _environment_problem(path: Path, original: Path) -> str:
    try:
        found: dict[str, Any] = json.loads(read(path))
        expected: dict[str, Any] = json.loads(read(original))
        differ = [key for key in ("engine", "threads", "device", "torch") if key in expected and found.get(key) != expected[key]]
    except (OSError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return f"another {', '.join(differ)}" if differ else ""


def _config_problem(path: Path, original: Path) -> str:
    try:
        found, expected = (OmegaConf.to_container(OmegaConf.create(read(file).decode())) for file in (path, original))
        assert isinstance(expected, dict)
        if not isinstance(found, dict):
            return "not a mapping"
        differ = [str(key) for key in expected if key != "config" and not _equal(found.get(key), expected.get(key))]
    except Exception as error:  # whatever YAML and OmegaConf raise over it
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return f"another {' and '.join(differ)}" if differ else ""


def left_behind(outputs: Path) -> list[str]:
    """Temporary files that nobody has removed."""
    return sorted(path.relative_to(outputs).as_posix() for path in outputs.rglob("*.tmp"))


def from_zero(reference: Reference, ended: Ended, had: set[str]) -> list[str]:
    """Of the runs that had a checkpoint before a command, those that it trained from their beginning."""
    kept = checkpoints(ended)
    return sorted(name for name in had if kept[name] >= reference.checkpoints[name])


def printed(reference: Reference, ended: Ended) -> str:
    """What a command that ended well printed of its results, if it is not what the reference printed."""
    found = figures(ended.output)
    return "" if ended.status != reference.status or found == reference.figures else f"printed {found} in place of {reference.figures}"


def reports_why(ended: Ended) -> bool:
    """Whether the report says that something is not as it should be."""
    words = "not finished|unfinished|not ended|left out|note:|error:|warning|damaged|unreadable|cannot|missing"
    return re.search(words, ended.output, re.IGNORECASE) is not None


def listed_otherwise(reference: Reference, listed: Ended) -> str:
    """What the list of runs shows that is not the reference's, or leaves out without a word."""
    found, theirs = figures(listed.output), reference.listed
    wrong = [row for row in found if row not in theirs] or (len(found) != len(theirs) and not reports_why(listed))
    return f"the list of runs has {found} in place of {theirs}" if wrong else ""
