"""`study.json`: a study's content for the report and for choosing values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fl_hydra.files import CorruptFile, read_file

KEPT = "study.json"
PARTS = ("study", "section", "where", "question", "together", "objectives", "best", "trials")


def read_kept(folder: Path) -> dict[str, Any]:
    """The stored content of the study in a folder.

    Raises:
        CorruptFile: it is damaged, or of another version.
        OSError: it cannot be read, or is not there.
    """
    content = read_file(folder / KEPT)
    try:
        kept = dict(json.loads(content))
    except (ValueError, TypeError) as error:
        raise CorruptFile(f"{KEPT} is damaged") from error
    if missing := [part for part in PARTS if part not in kept]:
        raise CorruptFile(f"{KEPT} has no {', '.join(missing)}")
    return kept
