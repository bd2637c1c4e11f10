"""`python -m fl_hydra.tracking sync`: uploads to W&B what it lacks of trained runs, from their own files; a second call adds nothing.

W&B is asked what it has. Each section has a run of type `report`, with the mean and deviation over seeds of each setting, and the
section's figures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fl_hydra.errors import UserError, require
from fl_hydra.files import CorruptFile, read_file, read_verified
from fl_hydra.paths import OUTPUTS
from fl_hydra.tracking.trackers.base import Followed, Held
from fl_hydra.training.client_files import files_of

if TYPE_CHECKING:
    from fl_hydra.tracking.trackers.wandb import Wandb
    from fl_hydra.tracking.wandb_run import Connection

UPLOAD_SECONDS = 3600.0
"""How long W&B may take for one run."""
CONTENT = "tracked/report_sha256"


def main(arguments: list[str]) -> None:
    """Upload what is missing of all runs with `tracker=wandb`, or of the named sections' runs to a project."""
    from fl_hydra.runs.folder import run_folders
    from fl_hydra.runs.sections import section_runs, sections

    parser = argparse.ArgumentParser(prog="python -m fl_hydra.tracking sync", description=main.__doc__)
    parser.add_argument("section", nargs="*", help="upload only the runs of these sections; all runs if none is named")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, help="the folder of the runs; the project's own")
    parser.add_argument("--project", help="upload to this one, also runs that were trained without tracker=wandb")
    parser.add_argument("--entity", help="the user or team that the project belongs to")
    parser.error = _refuse  # type: ignore[method-assign]
    given = parser.parse_args(arguments)
    outputs = given.outputs.expanduser().absolute()
    require(outputs.is_dir(), f"outputs={outputs}: there is no such folder")
    if given.section:
        folders = list(dict.fromkeys(folder for section in given.section for folder in section_runs(section, outputs)))
    else:
        folders = [folder for folder in run_folders(outputs) if len(folder.relative_to(outputs).parts) == 3]
    counts = {"rows": 0, "checkpoints": 0, "runs": 0, "known": 0}
    reports: dict[str, tuple[Wandb, Connection]] = {}
    for folder in folders:
        if (found := _tracked(folder, outputs, given.project, given.entity)) is None:
            continue
        tracker, followed, section = found
        connection = _connected(tracker, outputs)
        _sync_run(tracker, followed, connection, counts)
        if section is not None:
            reports.setdefault(section, (tracker, connection))
    require(
        counts["runs"] + counts["known"] > 0,
        "no run was trained with tracker=wandb; name a project to upload the others, as in --project fl-hydra",
    )
    there = set(sections(outputs)) if (outputs / "sections").is_dir() and any((outputs / "sections").glob("*.txt")) else set()
    written = [name for name, (tracker, at) in reports.items() if name in there and _report(name, outputs, tracker, at)]
    print(
        f"{counts['rows']} rows and {counts['checkpoints']} checkpoints of {counts['runs']} runs were uploaded, {counts['known']} runs "
        f"were there already; {len(written)} section summaries are new"
    )


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; sync takes names of sections, --outputs, --project and --entity")


def _connected(tracker: Wandb, outputs: Path) -> Connection:
    from fl_hydra.tracking.wandb_run import connection

    said: list[str] = []
    there = connection(tracker, outputs, said.append)
    require(not there.offline, f"{there.offline}; fix that, then run the same command again")
    return there


def _tracked(folder: Path, outputs: Path, project: str | None, entity: str | None) -> tuple[Wandb, Followed, str | None] | None:
    """Where to upload a run, and its section; None if it is not to be uploaded or cannot be read."""
    from omegaconf import OmegaConf

    from fl_hydra.runs.identity import hash_of
    from fl_hydra.tracking.trackers.wandb import Wandb

    try:
        content: Any = OmegaConf.to_container(OmegaConf.create(read_file(folder / "config.yaml").decode()))
        resolved, typed = content["resolved"], content["config"]
        run = hash_of(resolved)
        given = typed.get("tracker") or {}
    except Exception:  # whatever YAML and OmegaConf raise over a damaged file, which no result depends on
        return None
    if not folder.name.endswith(run):
        return None
    if given.get("name") != "wandb":
        if project is None:
            return None
        given = {}
    fields = {key: given[key] for key in ("project", "entity", "artifact_minutes", "tags") if key in given}
    fields |= {key: value for key, value in (("project", project), ("entity", entity)) if value is not None}
    section, study = typed.get("section"), typed.get("study")
    group = section or study or resolved["algorithm"]["name"]
    return Wandb(**fields), Followed(folder.absolute(), run, folder.name, resolved, group, study is not None, outputs), section


def _held(folder: Path) -> tuple[Held, str] | None:
    """The verified content of a run's files, and how the run ended; None if nothing can be verified."""
    from fl_hydra.runs.checkpoint import Checkpoint, Checkpoints
    from fl_hydra.runs.folder import METRICS
    from fl_hydra.runs.summary import read_ended

    checkpoints = Checkpoints(folder / "checkpoints")
    newest, path = None, None
    for round in checkpoints.rounds():
        with suppress(CorruptFile):
            newest, path = Checkpoint.of(read_verified(checkpoints.path(round))), checkpoints.path(round)
            break
    clients = () if newest is None else files_of(newest.trainer["clients"])
    try:
        ended = read_ended(folder)
    except CorruptFile:
        ended = None
    if ended is not None:
        lines = read_file(folder / METRICS).decode().splitlines()
        whole = newest is not None and newest.metrics.splitlines() == lines
        return Held(lines, path if whole else None, 0 if newest is None else newest.round, clients), str(ended.summary["status"])
    if newest is None:
        return None
    return Held(newest.metrics.splitlines(), path, newest.round, clients), "interrupted"


def _sync_run(tracker: Wandb, followed: Followed, connection: Connection, counts: dict[str, int]) -> None:
    from fl_hydra.runs.folder import RunFolder
    from fl_hydra.runs.ownership import RunBusy
    from fl_hydra.tracking.wandb_run import Unreachable, WandbRun, rows_there

    try:
        with RunFolder(followed.folder).owned(print):
            if (found := _held(followed.folder)) is None or not found[0].lines:
                return
            held, status = found
            there = connection.attempt(followed.run, held.lines)[1]
            missing = len(held.lines) - (0 if there is None else rows_there(there))
            upload = (
                tracker.artifact_minutes is not None and held.checkpoint is not None and not _uploaded(held, status, followed, connection)
            )
            said = None if there is None else dict(there.summary).get("status")
            if missing <= 0 and not upload and (said == status or (status == "interrupted" and said is not None)):
                counts["known"] += 1
                return
            notes: list[str] = []
            run = WandbRun(tracker, followed, connection, notes.append, UPLOAD_SECONDS)
            run.held(held if upload else Held(held.lines))
            run.ended(status)
            while run.poll():
                time.sleep(0.05)
            uploads = run.uploads
            counts["checkpoints"] += 0 if uploads is None else uploads.count
            run.close()
            require(not connection.offline, f"{followed.folder}: {connection.offline}; run the same command again to continue")
            counts["rows"] += max(0, missing)
            counts["runs"] += 1
    except RunBusy as error:
        print(f"{followed.folder}: {error}")
    except Unreachable as error:
        raise UserError(f"{error}; run the same command again to continue") from error


def _uploaded(held: Held, status: str, followed: Followed, connection: Connection) -> bool:
    """Whether W&B has this checkpoint."""
    from fl_hydra.tracking.artifacts import sound_sha256, versions

    assert held.checkpoint is not None
    newest = next(iter(versions(connection, followed.run)), None)
    if newest is None or newest.metadata.get("sha256") != sound_sha256(held.checkpoint):
        return False
    return status == "interrupted" or "final" in newest.aliases


def _report(section: str, outputs: Path, tracker: Wandb, connection: Connection) -> bool:
    """Upload a section's summary and figures unless W&B has them already; True if they were uploaded."""
    import wandb

    from fl_hydra.report.runs import by_setting, read_run
    from fl_hydra.runs.sections import section_runs, sections

    columns = ("val/acc", "val/loss", "test/acc", "test/loss")
    rows: list[list[Any]] = []
    summary: dict[str, Any] = {}
    for label, group in by_setting([read_run(folder) for folder in section_runs(section, outputs)]):
        last = [run.rows[-1] for run in group if run.finished]
        row: list[Any] = [label, len(last)]
        for column in columns:
            values = [each[column] for each in last if each.get(column) is not None]
            mean = statistics.fmean(values) if values and len(values) == len(last) else None
            deviation = statistics.stdev(values) if mean is not None and len(values) > 1 else None
            row += [mean, deviation]
            key = label.replace("/", " ").replace(".", "_")
            summary |= {f"{key}/{column} mean": mean} if mean is not None else {}
            summary |= {f"{key}/{column} deviation": deviation} if deviation is not None else {}
        rows.append(row)
    others = tuple(f"{name}-" for name in sections(outputs) if name.startswith(f"{section}-"))
    figures = sorted(path for path in (outputs / "report").glob(f"{section}-*.png") if not path.name.startswith(others))
    content = hashlib.sha256(json.dumps(rows).encode() + b"".join(map(read_file, figures))).hexdigest()
    there = connection.find(f"report-{section}")
    if there is not None and dict(there.summary).get(CONTENT) == content:
        return False
    run = wandb.init(
        project=tracker.project,
        entity=tracker.entity,
        id=f"report-{section}",
        name=f"{section} (report)",
        group=section,
        job_type="report",
        dir=str(connection.folder),
        resume="allow",
        reinit="create_new",
        settings=connection.settings(finish_timeout=UPLOAD_SECONDS),
    )
    header: list[str | int] = ["setting", "seeds", *(f"{column} {part}" for column in columns for part in ("mean", "deviation"))]
    table = wandb.Table(columns=header, data=rows)
    run.log({"results": table, **{path.stem: wandb.Image(str(path)) for path in figures}})
    run.summary.update({**summary, CONTENT: content})
    run.finish()
    return True
