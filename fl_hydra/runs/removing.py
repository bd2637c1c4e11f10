"""Taking runs away, and changing the lists of sections, so that one always says what the other has."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from fl_hydra.errors import UserError, require
from fl_hydra.runs.describing import description_file
from fl_hydra.runs.folder import SUMMARY
from fl_hydra.runs.ownership import owned
from fl_hydra.runs.sections import leave_sections, section_file, section_locked, section_runs


def remove_runs(folders: Sequence[Path], notify: Callable[[str], None]) -> list[str]:
    """Delete runs and take them out of every section's list; the sections that had one.

    Raises:
        RunBusy: one is being written; those before it are gone, it and those after it are as they were.
        OSError: one cannot be deleted.
    """
    homes: list[str] = []
    for folder in folders:
        with owned(folder, notify):  # refused while another process writes it
            homes += leave_sections(folder, folder.parents[2], notify)
            # First what says that it has ended: if it ends in the middle of this, what is left is a run to begin again.
            (folder / SUMMARY).unlink(missing_ok=True)
            shutil.rmtree(folder)
        with suppress(OSError):  # of the last run of a method, or of a dataset
            folder.parent.rmdir()
            folder.parent.parent.rmdir()
    return sorted(set(homes))


def rename_section(old: str, new: str, outputs: Path, notify: Callable[[str], None]) -> int:
    """Give a section another name; the number of its runs.

    Raises:
        UserError: there is no such section, or there is one of the new name.
    """
    require(old != new, f"{new}: it has this name already")
    runs = section_runs(old, outputs)
    with section_locked(old, outputs, notify), section_locked(new, outputs, notify):
        target = section_file(new, outputs)
        require(not target.exists(), f"{new}: there is such a section; choose another name, or empty it first: section empty {new}")
        try:
            section_file(old, outputs).rename(target)
            with suppress(FileNotFoundError):
                description_file(old, outputs).rename(description_file(new, outputs))
        except OSError as error:
            raise UserError(f"section={old}: it cannot be renamed ({error.strerror or error}); fix that") from error
    return len(runs)


def empty_section(name: str, outputs: Path, notify: Callable[[str], None]) -> int:
    """Forget which runs belong to a section, and return how many they were; the runs stay.

    Raises:
        UserError: there is no such section.
    """
    runs = section_runs(name, outputs)
    with section_locked(name, outputs, notify):
        try:
            section_file(name, outputs).unlink(missing_ok=True)
            description_file(name, outputs).unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"section={name}: it cannot be emptied ({error.strerror or error}); fix that") from error
    return len(runs)
