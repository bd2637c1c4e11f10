"""Training points of a sweep together: `hydra/launcher=packed`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher

from fl_hydra.errors import UserError, require
from fl_hydra.exits import UsageExit
from fl_hydra.runs.outcome import Outcome, RunExit
from fl_hydra.sweeping.compose import Composer

if TYPE_CHECKING:
    from hydra.types import HydraContext, TaskFunction
    from omegaconf import DictConfig


class PackedLauncher(Launcher):
    """Trains points that differ only in values that change no shapes as rows of one training, each in its own run directory.

    Points of other shapes form other packs, one after the other; so do more than `runs` of one shape.
    """

    def __init__(self, runs: int = 16) -> None:
        self._runs = runs
        self._compose: Composer | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        whole = isinstance(self._runs, int) and not isinstance(self._runs, bool) and self._runs >= 1
        require(whole, f"hydra.launcher.runs={self._runs}: a whole number of runs, at least 1, is needed in a pack")
        self._compose = Composer(hydra_context, config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Outcomes in the order of the points.

        Raises:
            RunExit: a signal asked to stop.
        """
        from fl_hydra.resolving import resolve
        from fl_hydra.runs.execution import execute_together
        from fl_hydra.runs.packing import packs, shape
        from fl_hydra.runs.progress import ConsoleReporter

        assert self._compose is not None
        points = [list(overrides) for overrides in job_overrides]
        configs = list(map(self._compose, points))
        outcomes: dict[int, Outcome] = {}
        for pack in packs([shape(config, resolve(config)) for config in configs], self._runs):
            reporter = ConsoleReporter()
            try:
                with reporter.preparing():
                    ended = execute_together([configs[position] for position in pack], reporter)
            except UserError as error:
                raise UsageExit(str(error)) from error
            for outcome in ended:
                if outcome.signal_number:
                    raise RunExit(replace(outcome, status="interrupted"))
            outcomes.update(zip(pack, ended, strict=True))
        return [
            JobReturn(overrides=point, status=JobStatus.COMPLETED, _return_value=outcomes[position])
            for position, point in enumerate(points)
        ]
