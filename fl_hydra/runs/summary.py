"""summary.json, which says how a run has ended, and is believed where it agrees with what lies beside it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_hydra.files import CorruptFile, read_file
from fl_hydra.runs.folder import METRICS, SUMMARY, not_finite, rows_of

FORMAT = 2
"""Of summary.json, as its `format`; the first had none."""
SEAL = "summary_sha256"
"""The key of summary.json for the SHA-256 over all others."""


@dataclass(frozen=True)
class Ended:
    """A run that has ended, as its files say, which agree with each other.

    summary: of summary.json: `status` (`finished` or `diverged`), `reason`, `run` (the run's hash), `metrics` (the last row), `config`
    and digests. rows: of metrics.jsonl.
    """

    summary: dict[str, Any]
    rows: list[dict[str, Any]]


def read_ended(folder: Path) -> Ended | None:
    """How a run has ended; None if it has not. Everything that can be verified without its weights is.

    Raises:
        CorruptFile: summary.json or metrics.jsonl is damaged, or they do not belong together; the text says which.
        OddFile: something else lies where one of them should be.
        OSError: one cannot be read now.
    """
    try:
        text = read_file(folder / SUMMARY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        summary = json.loads(text)
        status, last, config, digest = (summary[key] for key in ("status", "metrics", "config", "metrics_sha256"))
        sealed = SEAL in summary or "format" in summary  # those of earlier versions were not
        sound = not sealed or summary[SEAL] == seal(summary)
        sound = sound and isinstance(config, dict) and isinstance(summary["run"], str) and status in ("finished", "diverged")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFile(f"{SUMMARY} is damaged") from error
    if not sound:
        raise CorruptFile(f"{SUMMARY} is damaged")
    try:
        content = read_file(folder / METRICS)
    except FileNotFoundError as error:
        raise CorruptFile(f"{METRICS} is missing") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise CorruptFile(f"{METRICS} is not what {SUMMARY} was written for")
    rows = rows_of(content)
    if not rows or rows[-1] != last or (status == "diverged") != bool(not_finite(last)):
        raise CorruptFile(f"{SUMMARY} does not say what {METRICS} says")
    return Ended(summary, rows)


def damaged_beside(folder: Path, ended: Ended) -> list[str]:
    """Of the files that are for the reader alone, those that are not what they were when the run had ended."""
    damaged = []
    for name, digest in ended.summary.get("beside_sha256", {}).items():
        try:
            content = read_file(folder / name)
        except OSError:
            content = b""
        if hashlib.sha256(content).hexdigest() != digest:
            damaged.append(name)
    return damaged


def seal(summary: dict[str, Any]) -> str:
    """The SHA-256 over a summary's other keys, 64 hex digits."""
    text = json.dumps({key: value for key, value in summary.items() if key != SEAL}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
