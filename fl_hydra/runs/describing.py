"""What a sweep records about its section for the report: the command, the `report` block of its file, and what is to be trained.

Comparisons count as planned: a section that is half trained must not claim more than it could when it is complete.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_hydra.errors import UserError
from fl_hydra.files import CorruptFile, read_file, write_atomically
from fl_hydra.runs.folder import as_json
from fl_hydra.runs.identity import hash_of
from fl_hydra.runs.sections import section_file, section_locked

MOST_COMMANDS = 20
"""The most commands of a section that are kept, the newest ones."""


def describe_section(
    section: str, outputs: Path, command: str, report: Mapping[str, Any], planned: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write `sections/SECTION.json`, with the commands that were given before and what they planned.

    planned: the described configuration of every requested run, by the name of its folder.

    Raises:
        UserError: nothing can be written there.
    """
    path = description_file(section, outputs)
    try:
        with section_locked(section, outputs):
            noted = read_description(section, outputs)
            before = [each for each in noted.get("commands", []) if each != command]
            plan = _folded({**planned_runs(noted), **(planned or {})})
            content = {"commands": [*before, command][-MOST_COMMANDS:], "report": dict(report), "planned": plan}
            write_atomically(path, as_json(content))
    except OSError as error:
        raise UserError(f"section={section}: {path} cannot be written ({error.strerror or error}); fix that, or choose outputs=") from error


def planned_runs(description: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The configurations of all requested runs, by the names of their folders; empty if none are recorded, or they cannot be read."""
    try:
        noted = {key: json.loads(text) for key, text in description["planned"].items()}
        common, values = noted["common"], noted["values"]
        found = {
            str(name): common | {key: values[key][place] for key, place in zip(values, places, strict=True) if place >= 0}
            for name, places in noted["runs"].items()
        }
        return {name: config for name, config in found.items() if name.endswith(hash_of(config))}
    except (KeyError, ValueError, TypeError, AttributeError, IndexError):
        return {}


def _folded(planned: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What all configurations share, each value of the other keys once, and the places of these for each run: three lines of JSON, as
    hundreds of runs are mostly alike.
    """
    values: dict[str, dict[str, Any]] = {}  # by what JSON makes of them
    for config in planned.values():
        for key, value in config.items():
            values.setdefault(key, {})[json.dumps(value)] = value
    varying = {key for key, known in values.items() if len(known) > 1 or any(key not in config for config in planned.values())}
    places = {key: {text: place for place, text in enumerate(known)} for key, known in values.items() if key in varying}
    content = {
        "common": {key: next(iter(known.values())) for key, known in values.items() if key not in varying},
        "values": {key: list(values[key].values()) for key in places},
        "runs": {
            name: [known[json.dumps(config[key])] if key in config else -1 for key, known in places.items()]
            for name, config in planned.items()
        },
    }
    return {key: json.dumps(each, separators=(",", ":")) for key, each in content.items()}


def read_description(section: str, outputs: Path) -> dict[str, Any]:
    """What was written; empty if nothing was, or it cannot be read."""
    try:
        content = json.loads(read_file(description_file(section, outputs)))
    except (OSError, CorruptFile, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def description_file(section: str, outputs: Path) -> Path:
    """Where it lies."""
    return section_file(section, outputs).with_suffix(".json")
