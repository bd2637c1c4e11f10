"""Tuned values as a table shows them: from what runs took up with `tuned=`, and from the searches of the section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_hydra.files import CorruptFile, read_file
from fl_hydra.report.results import Results
from fl_hydra.tuning.kept import KEPT, read_kept


@dataclass(frozen=True)
class TunedValue:
    """A key that was tuned. where: it applies. searched: its range or its choices. trials: all; pruned: of them given up early.

    objective, reached: what decided, and how good it was. seeds: that trials had. source: the study, or the section of a grid.
    """

    where: str
    key: str
    value: Any
    searched: str
    trials: int
    pruned: int | None
    objective: str
    reached: float | None
    seeds: str
    source: str


def tuned_values(results: Results, studies: Sequence[Mapping[str, Any]]) -> list[TunedValue]:
    """What runs took, each choice once, then what searches found best that no run took; of several objectives, the front's first."""
    by_name = {str(study["study"]): study for study in studies}
    found: dict[tuple[str, str, str], TunedValue] = {}
    for setting in results.settings:
        for run in setting.runs:
            chosen = chosen_of(run.folder)
            study = by_name.get(str(chosen.get("study", "")))
            for key, value in chosen.get("values", {}).items():
                where, source = _words(chosen.get("where", {})), str(chosen.get("study", ""))
                found.setdefault(
                    (source, where, key),
                    TunedValue(
                        where,
                        key,
                        value,
                        _space(study, key),
                        int(chosen.get("trials", 0)),
                        _pruned(study),
                        str(chosen.get("objective", "")),
                        chosen.get("value"),
                        _words(chosen.get("seeds", [])),
                        source,
                    ),
                )
    taken = {source for source, _, _ in found}
    for name, study in by_name.items():
        if name in taken or not study["best"]:
            continue
        trial = next(each for each in study["trials"] if each["number"] == study["best"][0])
        for key, value in trial["params"].items():
            reached = trial["values"][0] if trial.get("values") else None
            seeds = _words(study["question"].get("seeds", []))
            where = _words(study["where"])
            found[name, where, key] = TunedValue(
                where, key, value, _space(study, key), len(study["trials"]), _pruned(study), study["objectives"][0], reached, seeds, name
            )
    return list(found.values())


def section_studies(section: str, outputs: Path) -> list[dict[str, Any]]:
    """What is kept of the searches with a section's name; one that is damaged or of another version is left out."""
    found = []
    for path in sorted((outputs / "studies").glob(f"*/{KEPT}")):
        with suppress(OSError, CorruptFile):
            study = read_kept(path.parent)
            if study["section"] == section:
                found.append(study)
    return found


def chosen_of(folder: Path) -> dict[str, Any]:
    """What a run took up with `tuned=`, from its config.yaml; empty where it took nothing, or that cannot be read."""
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.load(read_file(folder / "config.yaml"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        chosen = content["config"].get("chosen") or {}
        return dict(chosen)
    except (OSError, CorruptFile, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError):
        return {}


def _space(study: Mapping[str, Any] | None, key: str) -> str:
    """`0.001 to 1, log`, or `a, b`."""
    distribution = (study or {}).get("question", {}).get("space", {}).get(key)
    if not distribution:
        return ""
    attributes = distribution["attributes"]
    if "choices" in attributes:
        return _words(attributes["choices"])
    return f"{attributes['low']:g} to {attributes['high']:g}{', log' if attributes.get('log') else ''}"


def _pruned(study: Mapping[str, Any] | None) -> int | None:
    return None if study is None else sum(trial.get("state") == "pruned" for trial in study["trials"])


def _words(values: Any) -> str:
    if isinstance(values, Mapping):
        return ", ".join(f"{key}={value}" for key, value in values.items())
    return ", ".join(str(value) for value in values)
