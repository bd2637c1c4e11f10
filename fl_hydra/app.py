"""The command line: Hydra composes, everything else is typed objects. Mistakes become one line and an exit status."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NoReturn

from fl_hydra.exits import FAILED, USAGE_ERROR, SweepExit, UsageExit, command, fail, framed, leave_stopped
from fl_hydra.runs.outcome import Outcome, RunExit

if TYPE_CHECKING:
    from omegaconf import DictConfig


def main() -> None:
    """Run `sys.argv`; leave with 0 if every run is finished, 1 if not, 2 for a mistake in the command, 128 + n after signal n."""
    framed(_train)


def _train() -> None:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from fl_hydra.arguments import help_topics, prepare
    from fl_hydra.paths import CONF
    from fl_hydra.schema import explain, register_schema

    typed = sys.argv[1:]
    if (topics := help_topics(typed)) is not None:
        from fl_hydra.help import help_text

        print(help_text(topics))
        return
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print as a traceback; it is told in one line here
    register_schema()
    sys.argv[1:] = prepare(typed)
    try:
        hydra.main(config_path=str(CONF), config_name="config")(train_point)()
    except RunExit as ended:
        _leave(ended.outcome, typed)
    except SweepExit as ended:
        sys.exit(ended.status)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if full_error:
            raise
        fail(explain(error), USAGE_ERROR)


def train_point(composed: DictConfig) -> Outcome:
    """One run, alone or as a point of a sweep."""
    from dataclasses import replace

    from hydra import compose
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from fl_hydra.config import check_device
    from fl_hydra.errors import UserError, require
    from fl_hydra.interruption import Interruption
    from fl_hydra.resolving import notes, resolve
    from fl_hydra.runs.execution import execute
    from fl_hydra.runs.progress import ConsoleReporter
    from fl_hydra.schema import typed
    from fl_hydra.tuning.chosen import with_chosen

    reporter = ConsoleReporter()
    alone = HydraConfig.get().mode != RunMode.MULTIRUN
    try:
        require(not alone or not HydraConfig.get().sweeper.params, "this is a sweep of many runs: add -m to the command line")
        require(not HydraConfig.get().job.chdir, "hydra.job.chdir=true: runs find their folder by themselves; set outputs= instead")
        overrides = list(HydraConfig.get().overrides.task)
        config = typed(with_chosen(lambda more: compose("config", [*overrides, *more]) if more else composed, overrides))
        if alone:
            require(config.size == "full", f"size={config.size}: sections have sizes, and this is a single run; leave it out")
            if HydraConfig.get().runtime.choices.get("hydra/launcher") == "packed":
                reporter.warn("hydra/launcher=packed packs the points of a sweep; this is a single run (a sweep takes -m)")
            if told := notes(config):
                resolve(config)  # a mistake is all that is said
            for note in told:
                reporter.warn(note)
            if config.dry_run:
                from fl_hydra.runs.foresight import foresee

                check_device(config.device, config.engine)
                foresee([(config, resolve(config))], [""])
                raise SweepExit(0)
        with reporter.preparing():
            outcome = execute(config, reporter)
    except UserError as error:
        raise UsageExit(str(error)) from error
    except OSError as error:  # of a run that has begun it is an outcome
        where = f": {error.filename}" if error.filename else ""
        raise UsageExit(f"{error.strerror or error}{where}; fix that, then run the same command again") from error
    if alone:
        raise RunExit(outcome)
    if number := outcome.signal_number or Interruption.asked:  # the sweep ends, too, where the signal came in a run's last round
        raise RunExit(replace(outcome, status="interrupted", signal_number=number))
    return outcome


def _leave(outcome: Outcome, arguments: list[str]) -> NoReturn:
    import signal

    from fl_hydra.runs.progress import brief

    if outcome.status == "interrupted":
        stopped = signal.Signals(outcome.signal_number).name
        reason = outcome.reason or f"stopped by {stopped}; what was trained is kept: run the same command again to continue"
        leave_stopped(reason, outcome.signal_number, arguments)
    if outcome.status == "finished":
        print(f"{'finished' if outcome.trained else 'finished before'}: {brief(outcome.metrics)} in {outcome.folder}")
        sys.exit(0)
    if outcome.status == "paused":
        print(f"paused {outcome.reason}: {brief(outcome.metrics)} in {outcome.folder}")
        sys.exit(0)
    again = f":\n    {command(arguments)}" if outcome.reason.endswith("give the same command again") else ""
    fail(f"{outcome.status}: {outcome.reason}{again}", FAILED)
