"""What was tuned, and how: from the values that runs took with `tuned=`, and from the section's searches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_hydra.files import CorruptFile, read_file
from fl_hydra.report.axes import AXES
from fl_hydra.report.results import Results
from fl_hydra.report.wording import listed, spelled
from fl_hydra.tuning.kept import KEPT, read_kept


@dataclass(frozen=True)
class Search:
    """A choice of values, and the search that it comes from.

    where: it applies. values: by key. spaces: by key, its range or choices; empty without study.json. sampler, pruner: names of Optuna's
    classes; empty if unknown, or if there was none. rungs: fractions of the budget at which trials were pruned. trials: all; pruned: how
    many were stopped early; None: unknown. budget: training samples of a trial. objective, reached: the deciding figure and its value.
    seeds: of trials. source: the study, or the section of a grid.
    """

    where: Mapping[str, Any]
    values: Mapping[str, Any]
    spaces: Mapping[str, str]
    sampler: str
    pruner: str
    rungs: tuple[float, ...]
    trials: int
    pruned: int | None
    budget: int | None
    objective: str
    reached: float | None
    seeds: tuple[int, ...]
    source: str


@dataclass(frozen=True)
class TunedValue:
    """A row of the table: a tuned key; fields as in :class:`Search`."""

    where: str
    key: str
    value: Any
    searched: str
    sampler: str
    pruner: str
    trials: int
    pruned: int | None
    budget: int | None
    objective: str
    reached: float | None
    seeds: str
    source: str


def searches(results: Results, studies: Sequence[Mapping[str, Any]]) -> list[Search]:
    """The choices that runs took, once each, then the section's best ones that no run took; of a Pareto front, the first."""
    by_name = {str(study["study"]): study for study in studies}
    found: dict[tuple[str, str], Search] = {}
    for setting in results.settings:
        for run in setting.runs:
            if chosen := chosen_of(run.folder):
                source, where = str(chosen.get("study", "")), dict(chosen.get("where") or {})
                told = dict(chosen.get("values") or {}), str(chosen.get("objective", "")), chosen.get("value")
                seeds = tuple(chosen.get("seeds") or ())
                made = _search(by_name.get(source), source, where, told[0], int(chosen.get("trials", 0)), told[1], told[2], seeds)
                found.setdefault((source, _words(where)), made)
    taken = {source for source, _ in found}
    for name, study in by_name.items():
        if name in taken or study["section"] != results.name or not study["best"]:
            continue
        trial = next(each for each in study["trials"] if each["number"] == study["best"][0])
        reached = trial["values"][0] if trial.get("values") else None
        objective, seeds = str(study["objectives"][0]), tuple(study["question"].get("seeds", ()))
        found[name, ""] = _search(study, name, study["where"], trial["params"], len(study["trials"]), objective, reached, seeds)
    return list(found.values())


def _search(
    study: Mapping[str, Any] | None,
    source: str,
    where: Mapping[str, Any],
    values: Mapping[str, Any],
    trials: int,
    objective: str,
    reached: float | None,
    seeds: tuple[int, ...],
) -> Search:
    question = study["question"] if study else {}
    pruner = str((question.get("pruner") or {}).get("_target_", "")).rpartition(".")[2]
    return Search(
        where,
        values,
        {key: _space(question, key) for key in values if _space(question, key)},
        str(study.get("sampler", "")) if study else "",
        pruner,
        tuple(question.get("rungs") or ()) if pruner else (),
        trials,
        None if study is None else sum(trial.get("state") == "pruned" for trial in study["trials"]),
        (question.get("fixed") or {}).get("budget"),
        objective,
        reached,
        seeds,
        source,
    )


def tuned_values(found: Sequence[Search]) -> list[TunedValue]:
    """A row for each key of each search."""
    return [
        TunedValue(
            _words(each.where),
            key,
            value,
            each.spaces.get(key, ""),
            each.sampler,
            each.pruner,
            each.trials,
            each.pruned,
            each.budget,
            each.objective,
            each.reached,
            _words(each.seeds),
            each.source,
        )
        for each in found
        for key, value in each.values.items()
    ]


def how(found: Sequence[Search]) -> list[str]:
    """Sentences on how values were searched; searches that differ only in where they apply share one."""
    alike: dict[tuple[Any, ...], list[Search]] = {}
    for each in found:
        spaces = tuple((key, each.spaces.get(key, "")) for key in each.values)
        alike.setdefault((spaces, each.sampler, each.pruner, each.trials, each.budget, each.objective, each.seeds), []).append(each)
    return [_how(group) for group in alike.values()]


def _how(group: Sequence[Search]) -> str:
    one = group[0]
    keys = list(dict.fromkeys(key for each in group for key in each.where))
    if len(group) > 1:
        where = f"for each {listed([spelled(key) for key in keys])}" if keys else "for each study"
    else:
        where = f"for {listed([_place(key, value) for key, value in one.where.items()])}" if one.where else ""
    what = listed([f"{spelled(key)}{f' ({one.spaces[key]})' if key in one.spaces else ''}" for key in one.values])
    numbers = sorted({each.pruned for each in group if each.pruned is not None})
    pruned = f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}" if numbers else ""
    early = ""
    if one.pruner and pruned:
        rungs = f" after {listed([_part(each) for each in one.rungs])} of the budget" if one.rungs else ""
        early = f" ({pruned} given up{rungs} by {PRUNERS.get(one.pruner, one.pruner)})"
    said = f"{where}{', ' if where else ''}{what} {'were' if len(one.values) > 1 else 'was'} searched in {one.trials} trials"
    said += f" by {SAMPLERS.get(one.sampler, one.sampler)}" if one.sampler else ""
    said += early + (f" of {'up to ' if early else ''}{one.budget:,} training samples" if one.budget else "")
    said += f" with seed{'s' if len(one.seeds) > 1 else ''} {_words(one.seeds)}" if one.seeds else ""
    return f"{said}; {objective(one.objective)} decided"


SAMPLERS = {"TPESampler": "a tree-structured Parzen estimator", "RandomSampler": "random search", "GridSampler": "grid search"}
PRUNERS = {"SuccessiveHalvingPruner": "successive halving", "MedianPruner": "the median rule"}
"""Names of Optuna's classes in sentences."""


def objective(name: str) -> str:
    """The deciding figure, in words."""
    parts = {"val": "validation", "train": "training"}
    part, _, figure = name.partition("/")
    if part in parts:
        return f"the final model's {parts[part]} {'accuracy' if figure == 'acc' else figure}"
    what, at, target = name.partition("@")
    return f"the {what} that it takes to a validation accuracy of {target}" if at else name


def _place(key: str, value: Any) -> str:
    return AXES[key].label(value) if key in AXES else f"{spelled(key)} {value}"


def _part(number: float) -> str:
    whole = round(1 / number) if number else 0
    return f"1/{whole}" if whole > 1 and abs(number - 1 / whole) < 1e-6 else f"{number:g}"


def section_studies(results: Results, outputs: Path) -> list[dict[str, Any]]:
    """The stored searches with a section's name and those that its runs name, except damaged ones and those of other versions."""
    named = {str(chosen["study"]) for setting in results.settings for run in setting.runs if (chosen := chosen_of(run.folder)).get("study")}
    found = []
    for path in sorted((outputs / "studies").glob(f"*/{KEPT}")):
        with suppress(OSError, CorruptFile):
            study = read_kept(path.parent)
            if study["section"] == results.name or study["study"] in named:
                found.append(study)
    return found


def chosen_of(folder: Path) -> dict[str, Any]:
    """What a run took with `tuned=`, from its config.yaml; empty if it took nothing, or the file cannot be read."""
    import yaml  # type: ignore[import-untyped]

    try:
        text = read_file(folder / "config.yaml")
        if b"chosen:" not in text:
            return {}
        content = yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return dict(content["config"].get("chosen") or {})
    except (OSError, CorruptFile, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return {}


def _space(question: Mapping[str, Any], key: str) -> str:
    """`0.001 to 1, log`, or `a, b`."""
    distribution = question.get("space", {}).get(key)
    if not distribution:
        return ""
    attributes = distribution["attributes"]
    if "choices" in attributes:
        return _words(attributes["choices"])
    return f"{attributes['low']:g} to {attributes['high']:g}{', log' if attributes.get('log') else ''}"


def _words(values: Any) -> str:
    if isinstance(values, Mapping):
        return ", ".join(f"{key}={value}" for key, value in values.items())
    return ", ".join(str(value) for value in values)
