"""`python -m fl_hydra.tracking dashboard`: a W&B workspace with the report's panels for each section."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fl_hydra.errors import UserError, require
from fl_hydra.paths import OUTPUTS

if TYPE_CHECKING:
    from fl_hydra.tracking.trackers.wandb import Wandb

FIGURES = ("val/acc", "test/acc", "train/loss", "val/loss")
AXES = {"round": "rounds", "samples": "samples", "bytes": "bytes sent", "seconds": "simulated seconds"}
CONTRASTS = (("K", "J"), ("N_c", "J"))


def main(arguments: list[str]) -> None:
    """Make a workspace for each section, and print where it is."""
    from fl_hydra.report.spec import KINDS, Spec
    from fl_hydra.runs.describing import read_description
    from fl_hydra.runs.sections import sections
    from fl_hydra.tracking.trackers.wandb import Wandb
    from fl_hydra.tracking.wandb_run import connection

    parser = argparse.ArgumentParser(prog="python -m fl_hydra.tracking dashboard", description=main.__doc__)
    parser.add_argument("section", nargs="*", help="sections; all that were trained if none is named")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, help="the folder of the runs; the project's own")
    parser.add_argument("--project", default=Wandb.project, help="at W&B")
    parser.add_argument("--entity", help="the user or team that the project belongs to")
    parser.error = _refuse  # type: ignore[method-assign]
    given = parser.parse_args(arguments)
    outputs = given.outputs.expanduser().absolute()
    require(outputs.is_dir(), f"outputs={outputs}: there is no such folder")
    names = given.section or sections(outputs)
    tracker: Wandb = Wandb(project=given.project, entity=given.entity)
    said: list[str] = []
    there = connection(tracker, outputs, said.append)
    require(not there.offline, f"{there.offline}; fix that, then run the same command again")
    for name in names:
        report = read_description(name, outputs).get("report")
        figures = [figure.name for figure in Spec.of(report, name).figures] if report else list(KINDS)
        view = workspace(name, there.entity, tracker.project, figures)
        try:
            view.save()
        except Exception as error:  # whatever the service raises
            raise UserError(f"section={name}: W&B did not take the dashboard ({' '.join(str(error).split())[:200]}); try again") from error
        print(f"{name}: {view.url}")


def _refuse(message: str) -> NoReturn:
    raise UserError(f"{message}; dashboard takes names of sections, --outputs, --project and --entity")


def workspace(section: str, entity: str, project: str, figures: Sequence[str]) -> Any:
    """A workspace of a section's runs: metrics against each axis, parallel coordinates, and the report's table and figures."""
    panels: Any = importlib.import_module("wandb_workspaces.reports.v2")  # its exports are not typed
    spaces: Any = importlib.import_module("wandb_workspaces.workspaces")

    curves = [
        spaces.Section(
            name=f"{section}: against {label}",
            is_open=axis == "round",
            panels=[panels.LinePlot(title=f"{figure} against {label}", x=axis, y=[figure]) for figure in FIGURES],
        )
        for axis, label in AXES.items()
    ]
    contrasts = [
        panels.ParallelCoordinatesPlot(
            title=f"{first} x {second}",
            columns=[
                *(panels.ParallelCoordinatesPlotColumn(metric=f"c::{key}", display_name=key) for key in (first, second)),
                panels.ParallelCoordinatesPlotColumn(metric="s::val/acc", display_name="val/acc"),
                panels.ParallelCoordinatesPlotColumn(metric="s::test/acc", display_name="test/acc"),
            ],
        )
        for first, second in CONTRASTS
    ]
    tables = [
        panels.WeavePanelSummaryTable(table_name="results"),
        panels.MediaBrowser(media_keys=[f"{section}-{name}" for name in figures]),
    ]
    return spaces.Workspace(
        name=f"fl_hydra: {section}",
        entity=entity,
        project=project,
        sections=[
            *curves,
            spaces.Section(name=f"{section}: which setting", is_open=True, panels=contrasts),
            spaces.Section(name=f"{section}: report", is_open=True, panels=tables),
        ],
        runset_settings=spaces.RunsetSettings(filters=f"Metric('group') == '{section}'"),
    )
