"""From what a user types to a run: the name of its folder, the beginning of its hash, or a path."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from fl_hydra.errors import UserError
from fl_hydra.runs.folder import run_folders


def find_run(word: str, outputs: Path) -> Path:
    """The folder of one run.

    Args:
        word: the name of its folder, the first digits of its hash (4 or more), or a path, of the folder or of a file in it.
        outputs: the folder to look in for names.

    Raises:
        UserError: there is none, or there are several.
    """
    folders = run_folders(outputs)
    if "/" in word or word in (".", ".."):
        path = Path(word).expanduser()
        known = {folder.resolve(): folder for folder in folders}
        places = [place for base in (path, outputs / path) for place in (base.resolve(), base.resolve().parent)]
        for place in places:
            if place in known:
                return known[place]
        for place in (path.resolve(), path.resolve().parent):  # of other outputs
            if len(place.parents) > 2 and place in run_folders(place.parents[2]):
                return place
        raise UserError(f"{word}: there is no such run; make runs lists all")
    found = [folder for folder in folders if folder.name == word]
    if not found and re.fullmatch(r"[0-9a-f]{4,10}", word):
        found = [folder for folder in folders if folder.name.rpartition("-")[2].startswith(word)]
    if not found:
        found = [folder for folder in folders if folder.name.startswith(f"{word}-")]
    if len(found) > 1:
        raise UserError(f"{word}: {len(found)} runs match: {_listed(found, outputs)}; give more digits of the hash, or a path")
    if not found:
        close = set(difflib.get_close_matches(word, [folder.name for folder in folders], n=3))
        alike = [folder for folder in folders if folder.name in close]
        hint = f"did you mean {_listed(alike, outputs)}?" if alike else "make runs lists all"
        raise UserError(f"{word}: no run of this name, or with a hash that begins with it (4 or more digits), is in {outputs}; {hint}")
    return found[0]


def _listed(folders: Sequence[Path], outputs: Path) -> str:
    more = f" and {len(folders) - 4} more" if len(folders) > 4 else ""
    return ", ".join(folder.relative_to(outputs).as_posix() for folder in folders[:4]) + more
