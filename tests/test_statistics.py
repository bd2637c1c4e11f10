"""What a section may claim: by simulation, at most one family in twenty where nothing differs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from fl_hydra.report.cost import read_table
from fl_hydra.report.paper import write_paper
from fl_hydra.report.results import Results
from fl_hydra.report.sentences import as_text, numbers, sentences
from fl_hydra.report.spec import Comparison, Spec
from fl_hydra.report.statistics import FEWEST, LEVEL, differences, holm, seeds_needed, welch
from fl_hydra.runs.identity import describe
from fl_hydra.runs.reading import Run
from tests.support.make import experiment


def runs(finals: dict[int, list[float]]) -> list[Run]:
    """Finished runs with these test accuracies, by J."""
    found = []
    for J, accuracies in finals.items():
        for seed, accuracy in enumerate(accuracies):
            config = describe(experiment("algorithm=localsgd", "K=2", f"J={J}", f"seed={seed}"))
            row = {"round": 1, "samples": 64, "val/acc": accuracy, "test/acc": accuracy, "test/loss": 1.0}
            found.append(Run(Path(f"run-{J}{seed}"), config, [row], "finished"))
    return found


SPEC = Spec("Mine", (), (), (Comparison("J", (), 1),))


@pytest.mark.parametrize("n", [3, 5])
def test_where_nothing_differs_at_most_one_section_in_twenty_claims_anything(n: int) -> None:
    """Four settings against one and each other, so that the largest difference, which is the one that is told, is among those tested."""
    generator = np.random.default_rng(n)
    claimed = 0
    families = 400
    for _ in range(families):
        samples = generator.normal(size=(4, n))
        adjusted = holm([welch(list(samples[i]), list(samples[j])) for i in range(4) for j in range(i)])
        claimed += min(p for p in adjusted if p is not None) < LEVEL
    assert claimed / families <= LEVEL + 2.5 * math.sqrt(LEVEL * (1 - LEVEL) / families)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.01, None, 0.03]) == [pytest.approx(0.03), None, pytest.approx(0.06)]  # what could not be tested was asked all the same


def test_so_many_seeds_decide_with_the_power_that_was_asked_for() -> None:
    generator = np.random.default_rng(1)
    n = seeds_needed([0.0, 1.0, 2.0], [1.5, 2.5, 3.5], comparisons=1)  # deviations of 1, a difference of 1.5
    assert n is not None
    decided = [(welch(list(generator.normal(size=n)), list(1.5 + generator.normal(size=n))) or 1.0) < LEVEL for _ in range(500)]
    assert 0.72 < np.mean(decided) < 0.9
    more = seeds_needed([0.0, 1.0, 2.0], [1.5, 2.5, 3.5], comparisons=20)
    assert more is not None and more > n


def test_without_a_spread_or_a_second_seed_there_is_no_test() -> None:
    assert welch([1.0], [2.0, 3.0]) is None
    assert welch([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]) is None
    assert welch([1.0, 1.0, 1.0], [2.0, 2.1, 2.2]) is not None
    assert seeds_needed([1.0], [2.0], 1) is None


def test_nothing_is_claimed_of_fewer_than_three_seeds_or_without_the_test() -> None:
    two = Results.of("mine", runs({1: [0.1, 0.1001], 2: [0.9, 0.9001]}))
    (difference,) = differences(two, SPEC.compare, read_table())
    assert difference.n < FEWEST and difference.adjusted is not None and difference.adjusted < LEVEL and not difference.holds
    three = Results.of("mine", runs({1: [0.1, 0.11, 0.12], 2: [0.9, 0.91, 0.92], 4: [0.1, 0.12, 0.125]}))
    far, near = differences(three, SPEC.compare, read_table())
    assert far.holds and not near.holds and near.seeds is not None and near.seeds > 3
    text = " ".join(as_text(sentence) for paragraph in sentences(three, SPEC, read_table()) for sentence in paragraph)
    assert "1 of 2 differences" in text and "it holds" in text and "significant" not in text


def test_numbers_of_the_paper_are_those_of_the_runs(tmp_path: Path) -> None:
    finals = {1: [0.1, 0.11, 0.12], 2: [0.9, 0.91, 0.95]}
    results = Results.of("mine", runs(finals))
    found = numbers(results, SPEC, read_table())
    for J, accuracies in finals.items():
        name = f"mine/LocalSGD K=2 J={J}/test.acc"
        assert found[f"{name}/mean"] == f"{100 * np.mean(accuracies):.2f}"
        assert found[f"{name}/deviation"] == f"{100 * np.std(accuracies, ddof=1):.2f}"
        assert found[f"{name}/n"] == "3"
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "mine.tex").write_text("My own words.\n")
    write_paper([(results, SPEC)], read_table(), tmp_path, "a")
    written = (tmp_path / "numbers.tex").read_text()
    assert all(f"\\setN{{{name}}}" in written for name in found)
    assert (tmp_path / "words" / "mine.tex").read_text() == "My own words.\n"
    assert "make localsgd" in (tmp_path / "report.tex").read_text().replace("\\texttt{", "").replace("\\allowbreak{}", "")
