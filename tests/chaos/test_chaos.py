"""The short form of the campaign."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.chaos.events import LONG, SHORT, SORTS, Event, setting_of
from tests.chaos.settings import lone, methods
from tests.support.make import PROJECT


@pytest.mark.skipif(sys.platform != "linux", reason="processes are watched through /proc")
def test_nothing_that_happens_to_a_run_changes_its_result() -> None:
    """A few events of every sort; the message has those that did not hold and the command that runs each alone."""
    run = subprocess.run([sys.executable, "-m", "tests.chaos", "--short"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_short_form_has_every_sort_of_event_and_the_long_one_every_setting() -> None:
    assert {Event(0, number, few=True).sort for number in range(SHORT)} == set(SORTS)
    names = {setting_of(Event(0, number)).name for number in range(LONG)}
    assert names >= {setting.name for setting in (*methods(), *lone(few=False))}
