"""The runs of each section of the report: a list in `outputs/sections`. Sections may share runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fl_hydra.errors import UserError, require
from fl_hydra.files import read_file, remove_abandoned, write_atomically
from fl_hydra.runs.ownership import locked

_RUN = re.compile(r"[^/\0\ufffd]+/[^/\0\ufffd]+/[^/\0\ufffd]+-[0-9a-f]{10}")
"""A run's folder below the outputs."""

SECTION_SECONDS = 10.0
"""How long a section's list is waited for, while another process holds it."""


def join_section(section: str, run: Path, outputs: Path, notify: Callable[[str], None] = lambda line: None) -> None:
    """Note that a section of the report asked for a run; sections that need the same run share it.

    Raises:
        UserError: nothing can be written there.
    """
    path = section_file(section, outputs)
    name = run.relative_to(outputs).as_posix()
    try:
        with section_locked(section, outputs, notify):
            # Without flock another process may write in between: what counts is that the name is there in the end.
            for _ in range(5):
                listed = _listed(path) if path.exists() else []
                names = list(dict.fromkeys(filter(_RUN.fullmatch, listed)))
                if len(names) < len(listed):
                    spoiled = f"{len(listed) - len(names)} of {len(listed)} lines"
                    notify(f"{path} is damaged: what names no run, or one twice, was taken out of the section's list ({spoiled})")
                elif name in names:
                    break
                remove_abandoned(path.parent)
                write_atomically(path, "\n".join([*names, *([] if name in names else [name]), ""]).encode())
    except OSError as error:
        raise UserError(f"section={section}: {path} cannot be written ({error.strerror or error}); fix that, or choose outputs=") from error


def section_file(section: str, outputs: Path) -> Path:
    """Where a section's list of runs lies."""
    return outputs / "sections" / f"{section}.txt"


@contextmanager
def section_locked(section: str, outputs: Path, notify: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Be the only one that changes a section's list.

    Raises:
        UserError: another process does not let go of it.
        OSError: nothing can be written there.
    """
    lock = section_file(section, outputs).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, SECTION_SECONDS, notify) as taken:
        require(
            taken,
            f"section={section}: another process has held {lock} for {SECTION_SECONDS:.0f} s; see which one is stopped or hangs, end it, "
            "and give the same command again",
        )
        yield


def leave_sections(run: Path, outputs: Path, notify: Callable[[str], None] = lambda line: None) -> list[str]:
    """Take a run out of every section's list; the sections that had it.

    Raises:
        UserError, OSError: a list cannot be changed.
    """
    name = run.relative_to(outputs).as_posix()
    left = []
    for path in sorted((outputs / "sections").glob("*.txt")):
        with section_locked(path.stem, outputs, notify):
            listed = _listed(path)
            if name not in listed:
                continue
            left.append(path.stem)
            if rest := [line for line in listed if line != name]:
                write_atomically(path, "\n".join([*rest, ""]).encode())
            else:
                path.unlink()
    return left


def sections(outputs: Path) -> list[str]:
    """Every section that runs were asked for with.

    Raises:
        UserError: there is none.
    """
    names = sorted(path.stem for path in (outputs / "sections").glob("*.txt"))
    require(bool(names), f"no run was asked for with section=NAME and outputs={outputs}: train some first")
    return names


def section_runs(section: str, outputs: Path) -> list[Path]:
    """The runs that a section asked for, in that order.

    Raises:
        UserError: there is no such section, or its list cannot be read.
    """
    path = section_file(section, outputs)
    require(path.exists(), f"no run was asked for with section={section} and outputs={outputs}: train with section={section} first")
    try:
        return [outputs / name for name in dict.fromkeys(_listed(path))]
    except OSError as error:
        raise UserError(f"section={section}: {path} cannot be read ({error.strerror or error}); fix that or remove it") from error


def _listed(path: Path) -> list[str]:
    """The lines of a section's list, which should each name a run."""
    return read_file(path).decode(errors="replace").splitlines()
