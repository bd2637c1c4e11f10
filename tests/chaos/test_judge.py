"""The judge sees what it is there to see."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.judge import results, rude, sayings, side_files
from tests.chaos.process import Ended
from tests.chaos.reference import Reference, contents, figures
from tests.chaos.settings import Setting
from tests.chaos.watch import Call

RUN = "digits/fedavg/run-0123456789"


def lay_down(outputs: Path) -> Path:
    """The files of one finished run."""
    run = outputs / RUN
    run.mkdir(parents=True)
    rows = [{"round": round, "test/acc": 0.5 + round / 10} for round in (1, 2)]
    metrics = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (run / "metrics.jsonl").write_bytes(metrics)
    digest = hashlib.sha256(metrics).hexdigest()
    summary = {"status": "finished", "metrics": rows[-1], "weights_sha256": "ab", "metrics_sha256": digest, "config": {"seed": 0}}
    (run / "summary.json").write_text(json.dumps(summary))
    (run / "timings.jsonl").write_text("".join(json.dumps({"round": row["round"], "seconds": 1.5}) + "\n" for row in rows))
    (run / "environment.json").write_text(json.dumps({"engine": "loop", "threads": 1}))
    (run / "config.yaml").write_text("run: 0123456789\nresolved:\n  seed: 0\n")
    (outputs / "sections").mkdir()
    (outputs / "sections" / "chaos.txt").write_text(RUN + "\n")
    return run


@pytest.fixture
def reference(tmp_path: Path) -> Reference:
    run = lay_down(tmp_path / "finished" / "outputs")
    lay_down(tmp_path / "outputs")
    return Reference(Setting("one", ()), tmp_path, {RUN: contents(run)}, 0, [], Counter(), Counter(), frozenset(), [RUN], [], 0)


def replace(file: str, old: str, new: str) -> Callable[[Path], Any]:
    def change(run: Path) -> None:
        text = (run / file).read_text()
        assert old in text
        (run / file).write_text(text.replace(old, new))

    return change


def test_nothing_is_wrong_with_an_undisturbed_run(reference: Reference, tmp_path: Path) -> None:
    assert results(reference, tmp_path / "outputs") == []
    assert side_files(reference, tmp_path / "outputs", []) == []


@pytest.mark.parametrize(
    "change",
    [
        replace("metrics.jsonl", "0.6", "0.7"),
        replace("metrics.jsonl", "\n", "\n\n"),
        replace("summary.json", "0.7", "0.8"),
        replace("summary.json", "finished", "diverged"),
        replace("summary.json", '"ab"', '"ac"'),
        lambda run: (run / "summary.json").unlink(),
        lambda run: (run / "metrics.jsonl").unlink(),
        lambda run: lay_down(run.parents[2] / "more"),
    ],
)
def test_other_results_are_seen(change: Callable[[Path], Any], reference: Reference, tmp_path: Path) -> None:
    change(tmp_path / "outputs" / RUN)
    more = tmp_path / "outputs" / "more" / RUN
    if more.exists():  # a run that nobody asked for
        more.rename(tmp_path / "outputs" / "digits" / "fedavg" / "another")
    assert results(reference, tmp_path / "outputs")


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("timings.jsonl", '{"round": 2, "seconds": 1.5}\n', ""),
        ("timings.jsonl", '1.5}\n{"round"', '1.{"round"'),
        ("timings.jsonl", "1.5", "NaN"),
        ("environment.json", "loop", "stacked"),
        ("environment.json", "}", ""),
        ("config.yaml", "seed: 0", "seed: 1"),
        ("../../../sections/chaos.txt", "\n", "\nx\n"),
    ],
)
def test_other_files_must_be_whole_or_named_in_a_line(file: str, old: str, new: str, reference: Reference, tmp_path: Path) -> None:
    replace(file, old, new)(tmp_path / "outputs" / RUN)
    name = Path(file).name
    assert side_files(reference, tmp_path / "outputs", ["note: something else is damaged"])
    assert side_files(reference, tmp_path / "outputs", [f"note: {name} was damaged"]) == []


def test_a_section_may_list_runs_that_are_gone_as_the_report_says_so(reference: Reference, tmp_path: Path) -> None:
    other = "digits/fedavg/K3-0123456789"
    replace("../../../sections/chaos.txt", "\n", f"\n{other}\n")(tmp_path / "outputs" / RUN)
    assert side_files(reference, tmp_path / "outputs", []) == []
    (tmp_path / "outputs" / other).mkdir(parents=True)
    assert side_files(reference, tmp_path / "outputs", [])


def ended(output: str, status: int = 1) -> Ended:
    return Ended((), status, output, (), hung=False, struck=False)


def test_what_counts_as_a_line_and_what_as_rude(reference: Reference) -> None:
    assert sayings(reference, [ended("note: metrics.jsonl is damaged\n  round 3, 43%: loss 2.3\n")]) == ["note: metrics.jsonl is damaged"]
    assert not sayings(reference, [ended("note: checked 0 of 2 points\nfinished: loss 1.0000\n", 0)])
    assert rude(ended("Traceback (most recent call last):\n")) and rude(ended("")) and rude(ended("x", -15))
    assert rude(ended("error: one\ntwo\n")) and not rude(ended("error: one\n    python train.py\n"))
    assert figures("finished: loss 2.3010, val 9.79%, test 10.03% in x/K3-C0.3-0123\nnote: finished 1.25") == [("2.3010", "9.79", "10.03")]


def test_kinds_of_files_are_told_under_temporary_names_too() -> None:
    kinds = {
        f"{RUN}/checkpoints/.round-000000003.pt.77.tmp": "checkpoint",
        f"{RUN}/checkpoints/clients/7-10-3fa9.rows": "client state",
        f"{RUN}/.summary.json.77.tmp": "summary",
        f"{RUN}/.lock": "lock",
        f"{RUN}": "folder",
        "sections/chaos.txt": "section",
        "conf/config.yaml": "start-up",
    }
    assert {path: Call(0, 0, True, "open", path).kind for path in kinds} == kinds
