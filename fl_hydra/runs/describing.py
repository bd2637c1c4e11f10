"""What a sweep notes of its section for the report: the command, and how its file says that results are shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fl_hydra.errors import UserError
from fl_hydra.files import CorruptFile, read_file, write_atomically
from fl_hydra.runs.folder import as_json, section_file, section_locked

MOST_COMMANDS = 20
"""Commands that are kept of a section, the newest ones."""


def describe_section(section: str, outputs: Path, command: str, report: Mapping[str, Any]) -> None:
    """Write `sections/SECTION.json`, with the commands that were given before.

    Raises:
        UserError: nothing can be written there.
    """
    path = description_file(section, outputs)
    try:
        with section_locked(section, outputs):
            before = [each for each in read_description(section, outputs).get("commands", []) if each != command]
            content = {"commands": [*before, command][-MOST_COMMANDS:], "report": dict(report)}
            write_atomically(path, as_json(content))
    except OSError as error:
        raise UserError(
            f"section={section}: {path} cannot be written ({error.strerror or error}); mend that, or choose outputs="
        ) from error


def read_description(section: str, outputs: Path) -> dict[str, Any]:
    """What was written; empty where nothing was, or it cannot be read."""
    try:
        content = json.loads(read_file(description_file(section, outputs)))
    except (OSError, CorruptFile, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def description_file(section: str, outputs: Path) -> Path:
    """Where it lies."""
    return section_file(section, outputs).with_suffix(".json")
