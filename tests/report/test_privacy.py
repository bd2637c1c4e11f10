"""Epsilon of private runs in tables: computed from what the run's files say, and a line where it cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from fl_hydra.errors import UserError
from fl_hydra.report.cost import read_table
from fl_hydra.uplinks import accountant
from fl_hydra.uplinks.accountant import epsilon, usual_delta
from tests.support.reports import reported, table, write_run

FEDAVG = ("algorithm=fedavg", "K=50", "C=0.1", "rounds=2")


def test_tables_have_epsilon_where_a_run_has_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, *FEDAVG)
    write_run(tmp_path, *FEDAVG, "uplink=dp", "uplink.noise_multiplier=1.5")
    write_run(tmp_path, *FEDAVG, "uplink=dp", "uplink.noise_multiplier=0")
    assert reported(tmp_path, monkeypatch, "mine") == 0
    found = {row["uplink.noise_multiplier"]: row for row in table(tmp_path, "mine").values()}
    expected = epsilon(50, 5, 1.5, 2, usual_delta(50))
    assert expected is not None and float(found["1.5"]["epsilon mean"]) == expected
    assert [row["epsilon mean"] for name, row in found.items() if name != "1.5"] == ["", ""], "nobody is hidden there"
    text = (tmp_path / "report" / "mine.md").read_text()
    assert "for another client in place of one, at delta 0.014;" in text and f"| {expected:.3f} |" in text


def test_without_the_library_the_table_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, *FEDAVG, "uplink=dp")
    accountant.epsilon.cache_clear()
    monkeypatch.setattr(accountant, "find_spec", lambda name: None)
    assert reported(tmp_path, monkeypatch, "mine") == 0
    accountant.epsilon.cache_clear()
    assert "dp-accounting, which is not installed; pip install 'fl-hydra[privacy]'." in (tmp_path / "report" / "mine.md").read_text()
    assert "epsilon mean" not in (tmp_path / "report" / "mine.csv").read_text()


def test_runs_without_noise_to_account_for_have_no_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, *FEDAVG)
    assert reported(tmp_path, monkeypatch, "mine") == 0
    assert "epsilon" not in (tmp_path / "report" / "mine.md").read_text()


@pytest.mark.parametrize(("written", "delta"), [("null", None), ("1.0e-5", 1e-5), ("1", "delta=1: must be above 0 and below 1")])
def test_delta_is_a_line_of_the_table_of_costs(written: str, delta: float | str | None, tmp_path: Path) -> None:
    path = tmp_path / "cost.yaml"
    path.write_text(f"collective: ring\nnetworks: {{A: {{latency: 1, bandwidth: 1}}}}\ndevices: {{B: {{}}}}\ndelta: {written}\n")
    if isinstance(delta, str):
        with pytest.raises(UserError, match=delta):
            read_table(path)
    else:
        assert read_table(path).delta == delta
