"""A grid of runs: every point is checked before the first one trains, finished points are skipped, failures are listed at the end."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from fl_hydra.errors import require
from fl_hydra.exits import SweepExit
from fl_hydra.paths import PROJECT
from fl_hydra.sweeping.compose import Composer

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from fl_hydra.config import Config
    from fl_hydra.runs.outcome import Outcome
    from fl_hydra.training.experiment import Experiment

BUDGETS = {"epochs", "rounds", "samples"}
"""A run has only one of these: one on the command line replaces another one of a section."""

Point = list[str]
"""The overrides of one run."""


class GridSweeper(BasicSweeper):
    """The Cartesian product of comma-separated values.

    Args:
        params: keys and values, of a section; the command line comes before them.
        sizes: what each `size` changes in these.
        report: how the section's results are shown (:mod:`fl_hydra.report.spec`).
        own: by `key=value,...`, what points with all of these have in place of what others have (:func:`with_own`).
    """

    def __init__(
        self,
        params: dict[str, str] | None = None,
        sizes: dict[str, dict[str, Any]] | None = None,
        report: dict[str, Any] | None = None,
        own: dict[str, dict[str, Any] | None] | None = None,
    ) -> None:
        super().__init__(max_batch_size=None, params=dict(params or {}))
        self._compose: Composer | None = None
        self._sizes = sizes or {}
        self._report: dict[str, Any] = OmegaConf.to_container(OmegaConf.create(report or {}))  # type: ignore[assignment]
        self._own = dict(own or {})
        self._typed = frozenset[str]()
        """Keys of the command line, and all budgets if one of them is there."""
        self._noted = set[str]()
        """Messages about the points that were printed."""

    def sweep(self, arguments: list[str]) -> Any:
        """Train every point that is not finished yet, and print one table of all of them.

        Raises:
            UserError: some points are not valid; nothing was trained.
            SweepExit: always at the end, with the exit status.
        """
        from fl_hydra.report.spec import Spec
        from fl_hydra.sweeping.outcome_table import print_outcomes

        Spec.of(self._report, "")  # a mistake in it is told now
        points = self._points(arguments)
        labels = label_points(points)
        checked = self._checked(points, labels)
        if checked[0][0].dry_run:
            from fl_hydra.runs.foresight import foresee

            foresee(checked, labels)
            raise SweepExit(0)
        outcomes = self._train(points, checked, labels)
        print_outcomes(labels, outcomes)
        raise SweepExit(0 if all(outcome.status in ("finished", "paused") for outcome in outcomes) else 1)

    def _describe(self, checked: Iterable[tuple[Config, Experiment]]) -> None:
        """Record the command, the `report` block and all planned runs, for the report of each section that the sweep belongs to."""
        import shlex
        import sys

        from fl_hydra.arguments import as_typed
        from fl_hydra.runs.describing import describe_section
        from fl_hydra.runs.identity import describe, run_folder

        command = " ".join(
            ["python", "train.py", *(shlex.quote(word) if word.startswith("-") else as_typed(word) for word in sys.argv[1:])]
        )
        planned: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
        for config, experiment in checked:
            if config.section is not None:
                folder = run_folder(experiment, Path(config.outputs))
                planned.setdefault((config.section, config.outputs), {})[folder.name] = describe(experiment)
        for (section, outputs), runs in planned.items():
            describe_section(section, Path(outputs), command, self._report, runs)

    def _overrides(self, arguments: list[str]) -> list[Override]:
        """The section's parameters, replaced by those on the command line."""
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        given = parser.parse_overrides(arguments)
        named = {override.key_or_group for override in given}
        unsaid = self._typed = frozenset(named | (BUDGETS if named & BUDGETS else set()))
        given = [each for each in parser.parse_overrides(self._of_size(given)) if each.key_or_group not in unsaid] + given
        named = {override.key_or_group for override in given}
        overrides = [each for each in parser.parse_overrides(self._parse_config()) if each.key_or_group not in named] + given
        if named & BUDGETS:  # in place of the section's, whichever it has
            overrides = parser.parse_overrides([f"{budget}=null" for budget in sorted(BUDGETS - named)]) + overrides
        return overrides

    def _of_size(self, given: list[Override]) -> list[str]:
        """What a section changes at a size other than full: its runs are recorded in a section of another name."""
        from fl_hydra.arguments import PATHS, as_text

        assert self.config is not None
        size = next((each for each in given if each.key_or_group == "size"), None)
        require(size is None or not size.is_sweep_override(), "size: a sweep has one size; give one command for each")
        name = str(self.config.size if size is None else size.value())
        if name == "full":
            return []
        require(bool(self._sizes), f"size={name}: only sections have sizes; leave it out")
        require(name in self._sizes, f"size={name}: this section has {', '.join(self._sizes)} and full")
        changed = {key: "null" if value is None else value for key, value in self._sizes[name].items()}
        changed |= {key: str(PROJECT / str(changed[key])) for key in PATHS & set(changed)}
        section = {"section": f"{self.config.section}-{name}"} if self.config.section else {}
        return [as_text(f"{key}={value}", many=True) for key, value in {**section, **changed}.items()]

    def _points(self, arguments: list[str]) -> list[Point]:
        from fl_hydra.arguments import as_typed

        overrides = self._overrides(arguments)
        for override in overrides:
            require(
                not override.is_sweep_override() or override.is_discrete_sweep(),
                f"{as_typed(str(override.input_line))}: a grid takes lists, as key=a,b,c, or range(start,stop); hydra/sweeper=optuna "
                "searches",
            )
            require(
                not override.is_sweep_override() or override.key_or_group != "until",
                f"{as_typed(str(override.input_line))}: a run pauses once; give one command for each",
            )
        points = self._split(overrides)
        require(bool(points), "the grid is empty: a glob matches nothing")
        return points

    def _split(self, overrides: list[Override]) -> list[Point]:
        """The points of a grid, each with what is its own."""
        points = self.split_arguments(overrides, max_batch_size=None)[0]
        return [own for point in points if (own := with_own(point, self._own, self._typed)) is not None]

    def _checked(self, points: list[Point], labels: list[str]) -> list[tuple[Config, Experiment]]:
        """Compose and check every point; all bad ones are named together."""
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from fl_hydra.config import check_device
        from fl_hydra.errors import UserError
        from fl_hydra.resolving import notes, resolve
        from fl_hydra.runs.progress import ConsoleReporter, patience
        from fl_hydra.schema import explain

        assert self.hydra_context is not None and self.config is not None
        checked: list[tuple[Config, Experiment]] = []
        bad: list[tuple[str, str]] = []
        noted: list[str] = []
        compose = self._compose = self._compose or Composer(self.hydra_context, self.config)
        with patience(lambda: f"checked {len(checked) + len(bad)} of {len(points)} points"):
            for point, label in zip(points, labels, strict=True):
                try:
                    config = compose(point)
                    check_device(config.device, config.engine)
                    checked.append((config, resolve(config)))
                    noted += notes(config)
                except (UserError, HydraException, OmegaConfBaseException, OSError) as error:
                    bad.append((label, explain(error)))
        if len(bad) == len(points) > 1 and len({reason for _, reason in bad}) == 1:
            raise UserError(f"{bad[0][1]} (at all {len(points)} points; nothing was trained)")
        if bad and len({reason for _, reason in bad}) == 1 == len(points):
            raise UserError(bad[0][1])
        if bad:
            listed = "\n".join(f"  {label}: {reason}" for label, reason in bad)
            raise UserError(f"{len(bad)} of {len(points)} points are not valid; nothing was trained:\n{listed}")
        for note in noted:
            if note not in self._noted:
                self._noted.add(note)
                ConsoleReporter(live=False).warn(note)
        return checked

    def _train(self, points: list[Point], checked: list[tuple[Config, Experiment]], labels: list[str]) -> list[Outcome]:
        """Outcomes in the order of the points. A run is launched once, however many points need it, and not if it has ended, or if
        its folder cannot be read or holds another run."""
        from fl_hydra.runs import course
        from fl_hydra.runs.ended import known_outcome
        from fl_hydra.runs.identity import describe, run_folder
        from fl_hydra.runs.outcome import Outcome
        from fl_hydra.runs.progress import ConsoleReporter
        from fl_hydra.runs.sections import join_section
        from fl_hydra.runs.standing import part_kept

        assert self.launcher is not None
        warn = ConsoleReporter(live=False).warn
        outcomes: dict[Path, Outcome] = {}
        waiting: dict[Path, Point] = {}
        experiments = []
        folders = []
        asked: dict[Path, tuple[str, float]] = {}
        for point, label, (config, experiment) in zip(points, labels, checked, strict=True):
            folder = run_folder(experiment, Path(config.outputs))
            folders.append(folder)
            if config.section is not None:
                join_section(config.section, folder, Path(config.outputs), warn)
            if (found := known_outcome(experiment, Path(config.outputs), warn)) is not None:
                outcomes[folder] = found
            else:
                waiting.setdefault(folder, point)
                part = (config.until or 1.0) - part_kept(folder, describe(experiment))
                asked.setdefault(folder, (label, experiment.budget * max(0.0, part)))
                experiments.append(experiment)
        check_models(experiments)
        self._describe(checked)
        here = course.current() or course.Course(len(set(folders)), len(outcomes))
        here.ask(asked)
        with course.on(here):
            results = self.launcher.launch(list(waiting.values()), initial_job_idx=0) if waiting else []
        for folder, result in zip(waiting, results, strict=True):
            outcome = result._return_value  # the property would raise what a failed job raised
            outcomes[folder] = outcome if isinstance(outcome, Outcome) else Outcome("failed", folder, {}, " ".join(str(outcome).split()))
        return [outcomes[folder] for folder in folders]


def with_own(point: Point, own: Mapping[str, Mapping[str, Any] | None], typed: Collection[str] = ()) -> Point | None:
    """A point with what is its own in place of what others have, but for keys that were typed; None where there is no such point.

    own: by `key=value,...`, the keys and values of points with all of these, or None if they are left out; in the order in which they are
    put in, so that a later one sees what earlier ones have changed.
    """
    from fl_hydra.arguments import as_text

    for condition, its_own in own.items():
        if not set(condition.split(",")) <= set(point):
            continue
        if its_own is None:
            return None
        changed = {key: value for key, value in its_own.items() if key not in typed}
        replaced = changed.keys() | (BUDGETS if changed.keys() & BUDGETS else set())
        kept = [each for each in point if each.partition("=")[0] not in replaced]
        nothing = [f"{budget}=null" for budget in sorted(BUDGETS & replaced - changed.keys())]
        point = [*kept, *nothing, *(as_text(f"{key}={value}") for key, value in changed.items())]
    return point


def check_models(experiments: list[Experiment]) -> None:
    """Build each model once before the first run is trained, as a mistake in one would stop the sweep halfway.

    Raises:
        UserError: one cannot be trained.
    """
    if experiments:
        from fl_hydra.training.architecture import Architecture, together

        for e in {(repr(each.models), each.dataset_info, repr(each.algorithm)): each for each in experiments}.values():
            together([Architecture.of(model, e.dataset_info, e.algorithm) for model in e.models])


def label_points(points: list[Point]) -> list[str]:
    """Points named by the overrides in which they differ, as for a shell; a single point by all of them."""
    from fl_hydra.arguments import as_typed

    common = set(points[0]).intersection(*points) if len(points) > 1 else {f"{budget}=null" for budget in BUDGETS}
    where = ("hydra.", "outputs=", "data=")
    apart = ([override for override in point if override not in common and not override.startswith(where)] for point in points)
    return [" ".join(map(as_typed, overrides)) for overrides in apart]
