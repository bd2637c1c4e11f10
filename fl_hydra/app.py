"""The command line: Hydra composes, everything else is typed objects. Mistakes become one line and an exit status."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fl_hydra.config import unused_keys
from fl_hydra.endings import Mistake, RunEnded, SweepEnded
from fl_hydra.errors import UserError, require
from fl_hydra.runs.execution import Outcome, execute
from fl_hydra.runs.progress import ConsoleReporter, brief
from fl_hydra.schema import explain, register_schema, typed

PROJECT = Path(__file__).resolve().parent.parent
USAGE_ERROR, FAILED = 2, 1


def _task(composed: DictConfig) -> Outcome:
    """One run, alone or as a point of a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    reporter = ConsoleReporter()
    alone = HydraConfig.get().mode != RunMode.MULTIRUN
    try:
        require(not alone or not HydraConfig.get().sweeper.params, "this is a sweep of many runs: add -m to the command line")
        require(not HydraConfig.get().job.chdir, "hydra.job.chdir=true: runs find their folder by themselves; set outputs= instead")
        config = typed(composed)
        if alone:
            if HydraConfig.get().runtime.choices.get("hydra/launcher") == "packed":
                reporter.warn("hydra/launcher=packed packs the points of a sweep; this is a single run (a sweep takes -m)")
            for note in unused_keys(config):
                reporter.warn(note)
        outcome = execute(config, reporter)
    except UserError as error:
        raise Mistake(str(error)) from error
    if alone:
        raise RunEnded(outcome)
    if outcome.signal_number:  # the sweep ends, too, where the signal came in a run's last round
        raise RunEnded(replace(outcome, status="interrupted"))
    return outcome


def main() -> None:
    """Run `sys.argv`; leave with 0 if every run is finished, 1 if not, 2 for a mistake in the command, 128 + n after signal n."""
    full_error = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print as a traceback; it is told in one line here
    register_schema()
    try:
        hydra.main(config_path=str(PROJECT / "conf"), config_name="config")(_task)()
    except RunEnded as ended:
        _leave(ended.outcome)
    except SweepEnded as ended:
        sys.exit(ended.status)
    except KeyboardInterrupt:
        _fail(f"stopped; everything that was trained is kept. To go on:\n    {command()}", 128 + signal.SIGINT)
    except (Mistake, UserError) as error:
        _fail(str(error), USAGE_ERROR)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if full_error:
            raise
        _fail(explain(error), USAGE_ERROR)
    except Exception as error:
        if full_error:
            raise
        _fail(f"{explain(error)} (HYDRA_FULL_ERROR=1 shows where)", FAILED)


def _leave(outcome: Outcome) -> NoReturn:
    if outcome.status == "interrupted":
        stopped = signal.Signals(outcome.signal_number).name
        reason = outcome.reason or f"stopped by {stopped}; what was trained is kept: run the same command again to go on"
        print(f"{reason}:\n    {command()}", file=sys.stderr)
        sys.exit(128 + outcome.signal_number)
    if outcome.status == "finished":
        print(f"{'finished' if outcome.trained else 'finished before'}: {brief(outcome.metrics)} in {outcome.folder}")
        sys.exit(0)
    _fail(f"{outcome.status}: {outcome.reason}", FAILED)


def command() -> str:
    """The command line as it was typed."""
    script = sys.argv[0]
    return shlex.join((["python", script] if script.endswith(".py") else [Path(script).name]) + sys.argv[1:])


def _fail(message: str, status: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)
