"""Runs in a table: those that a filter takes, in an order, with what tells them apart."""

from __future__ import annotations

import difflib
import json
import operator
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_hydra.errors import UserError, require
from fl_hydra.runs.folder import run_folders
from fl_hydra.runs.identity import by_key
from fl_hydra.runs.reading import Run, inner_optimizer, outer_optimizer, read_run
from fl_hydra.runs.sections import section_runs, sections
from fl_hydra.runs.standing import is_written, part_seen, seconds_spent

FIGURES = {
    "val/acc": "val acc %",
    "test/acc": "test acc %",
    "personal/val/acc": "personal val acc %",
    "personal/test/acc": "personal test acc %",
    "personal/test/acc_worst_tenth": "worst tenth %",
}
"""Columns of figures, and their headers. If some run has figures of clients' own models, only columns that some run has are shown."""

MOST_COLUMNS = 8
"""Keys that differ are columns if they are no more than these; else each run is described in one column."""

OFTEN = ("optimizer.lr", "scheduler", "server.lr", "budget", "precision", "seed")
"""Keys that are always said where they differ, also where all are in one column."""

Value = str | int | float | bool | None


@dataclass(frozen=True)
class Listed:
    """A run in a list.

    facts: what can be asked for: every key as it is typed, the last row of metrics, `status`, `section`, `run` and `trained_seconds`.
    """

    run: Run
    facts: dict[str, Any]


def listed(outputs: Path) -> list[Listed]:
    """Every run of an outputs folder."""
    homes: dict[Path, list[str]] = {}
    with suppress(UserError):  # where there is none
        for section in sections(outputs):
            with suppress(UserError):  # where its list cannot be read, which is the report's to say
                for folder in section_runs(section, outputs):
                    homes.setdefault(folder, []).append(section)
    return [_listed(read_run(folder), homes.get(folder, [])) for folder in run_folders(outputs)]


def _listed(run: Run, homes: Sequence[str]) -> Listed:
    facts: dict[str, Any] = {}
    if run.config:
        facts = {key: value for key, value in by_key(run.config).items() if not key.endswith(".version")}
        facts |= {key.removesuffix(".name"): value for key, value in facts.items() if key.endswith(".name")}
        facts |= {"optimizer": inner_optimizer(run.config["optimizer"]), "server": outer_optimizer(run.config.get("server", {}))}
    facts |= {key: value for key, value in run.rows[-1].items() if not isinstance(value, list)} if run.rows else {}
    facts |= {"status": run.status, "section": list(homes), "trained_seconds": seconds_spent(run.folder), "run": run.folder.name}
    if run.status == "unfinished" and is_written(run.folder):
        facts["status"] = "running"
    if run.status == "unfinished" and run.config:
        facts["done"] = part_seen(run.folder, run.config)
    return Listed(run, facts)


# What is asked for

_COMPARED: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"(?P<key>[\w./]+)(?P<sign>!=|<=|>=|=|<|>)(?P<value>.*)", re.S)


@dataclass(frozen=True)
class Condition:
    """`key=value`, also with several values of which one has to be there (`K=2,4`), `key!=value`, `<`, `<=`, `>` or `>=`."""

    key: str
    sign: str
    values: tuple[Value, ...]

    @classmethod
    def of(cls, word: str) -> Condition:
        """From one word of a filter.

        Raises:
            UserError: it is none.
        """
        match = _CONDITION.fullmatch(word)
        if match is None:
            raise UserError(f"{word}: not a condition; write key=value, key!=value, key<number or key>number, as in optimizer.lr<0.1")
        values = tuple(_value(text) for text in match["value"].split(","))
        if match["sign"] in _COMPARED:
            require(len(values) == 1 and _is_number(values[0]), f"{word}: {match['sign']} compares with one number")
        return cls(match["key"], match["sign"], values)

    def holds(self, facts: dict[str, Any]) -> bool:
        """Whether a run is meant; one that has no such fact is not, but for `!=`."""
        fact = facts.get(self.key)
        if self.sign in _COMPARED:
            return _is_number(fact) and _COMPARED[self.sign](fact, self.values[0])
        mine = fact if isinstance(fact, list) else [fact]
        return any(each == value for each in mine for value in self.values) is (self.sign == "=")


def _value(text: str) -> Value:
    if text in ("null", "none", "None"):
        return None
    try:
        value = json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        try:
            return float(text) if re.fullmatch(r"[+-]?[\d.]+([eE][+-]?\d+)?", text) else text
        except ValueError:
            return text
    return value if isinstance(value, str | int | float | bool) else text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def chosen(runs: Sequence[Listed], words: Sequence[str], order: Sequence[str] = ()) -> list[Listed]:
    """The runs that meet all conditions, in an order.

    Args:
        words: of the filter, as :class:`Condition` takes them.
        order: keys, with a minus in front where the greatest comes first; runs without the first of them come last.

    Raises:
        UserError: a condition is none, or no run has such a key.
    """
    conditions = [Condition.of(word) for word in words]
    known = {key for each in runs for key in each.facts}
    for key in [*(each.key for each in conditions), *(key.lstrip("-") for key in order)]:
        if runs and key not in known:
            close = difflib.get_close_matches(key, known, n=3) or sorted(name for name in known if name.endswith(f".{key}"))[:3]
            hint = f"did you mean {' or '.join(close)}?" if close else "python -m fl_hydra.runs show RUN lists those of a run"
            raise UserError(f"{key}: no run has such a key; {hint}")
    found = [each for each in runs if all(condition.holds(each.facts) for condition in conditions)]
    for key in reversed(order):  # sorts are stable: the first key counts most
        found.sort(key=lambda each: _rank(each.facts.get(key.lstrip("-"))), reverse=key.startswith("-"))
        found.sort(key=lambda each: each.facts.get(key.lstrip("-")) is None)
    return found


def _rank(value: Any) -> tuple[bool, float, str]:
    return (False, float(value), "") if isinstance(value, int | float) else (True, 0.0, str(value))


# What is shown


def tells_apart(runs: Sequence[Listed]) -> list[str]:
    """Keys that are not the same in all of some runs, as they are typed; of a part that some have another of, the part alone."""
    configured = [each for each in runs if each.run.config]
    keys = list(dict.fromkeys(key for each in configured for key in by_key(each.run.config)))
    differing = []
    for key in keys:
        group, _, field = key.rpartition(".")
        if field == "version" or key.startswith("revisions"):
            continue
        shown = group if field == "name" else key
        # A field of an option says nothing about runs that have another option.
        having = [each for each in configured if key in each.facts]
        if len({json.dumps(each.facts.get(shown)) for each in having}) > 1:
            differing.append(shown)
    said = {"fingerprint"} | ({"m"} if all(each.facts.get("m") in (each.facts.get("K"), None) for each in configured) else set())
    return [key for key in differing if key not in said]


def print_runs(runs: Sequence[Listed]) -> None:
    """A table: what tells the runs apart, how far each is, its last accuracies, and the name of its folder."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    keys = tells_apart(runs)
    columns = keys if len(keys) <= MOST_COLUMNS else []
    settings = [] if columns else _settings(runs, keys)
    judged = _judged(runs)
    heads = [FIGURES[name] for name in judged]
    table = Table(*(["setting"] if not columns else []), *columns, "status", *heads, "run", title=f"{len(runs)} runs")
    for position, each in enumerate(runs):
        setting = [] if columns else [Text(settings[position])]
        cells = [Text(shown(each.facts[key]) if key in each.facts else "") for key in columns]
        figures = [_accuracy(each.facts.get(name)) for name in judged]
        table.add_row(*setting, *cells, status(each), *figures, Text(each.run.folder.name))
    Console(width=160).print(table)


def _judged(runs: Sequence[Listed]) -> list[str]:
    """The figures that some run has; without clients' own models, those of a model for all."""
    there = [name for name in FIGURES if any(each.facts.get(name) is not None for each in runs)]
    return there if any(name.startswith("personal/") for name in there) else list(FIGURES)[:2]


def _settings(runs: Sequence[Listed], keys: Sequence[str]) -> list[str]:
    """Each run's label, what is often looked for, and what else sets it apart from the others of the same label."""
    often = [key for key in keys if key in OFTEN]
    texts = [", ".join([each.run.label, *_typed(each, often)]) if each.run.config else "" for each in runs]
    alike: dict[str, list[Listed]] = {}
    for each, text in zip(runs, texts, strict=True):
        alike.setdefault(text, []).append(each)
    further = {text: [key for key in tells_apart(group) if key not in often] for text, group in alike.items()}
    return [", ".join([text, *_typed(each, further[text])]) for each, text in zip(runs, texts, strict=True)]


def _typed(each: Listed, keys: Sequence[str]) -> list[str]:
    return [f"{key}={shown(each.facts[key])}" for key in keys if key in each.facts]


def status(each: Listed) -> str:
    """How a run has ended, or how far it is, and why where that is short."""
    if "done" in each.facts:
        return f"{each.facts['status']} ({each.facts['done']:.0%})"
    return f"damaged ({each.run.why})" if each.run.status == "damaged" else each.run.status


def shown(value: Any) -> str:
    """A value as it is typed."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return ",".join(map(shown, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _accuracy(value: float | None) -> str:
    return "" if value is None else f"{value * 100:.2f}"
