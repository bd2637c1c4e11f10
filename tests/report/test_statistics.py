"""What a section may claim: by simulation, at most one family in twenty where nothing differs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fl_hydra.report.cost import read_table
from fl_hydra.report.figures.drawing import planned
from fl_hydra.report.marks import reachable
from fl_hydra.report.measures import measure
from fl_hydra.report.results import Results
from fl_hydra.report.sentences import as_text, sentences
from fl_hydra.report.spec import Comparison, Spec
from fl_hydra.report.statistics import FEWEST, LEVEL, difference_p, differences, holding, holm, largest, seeds_needed
from fl_hydra.report.tables import results_table
from fl_hydra.runs.describing import describe_section, planned_runs, read_description
from fl_hydra.runs.identity import describe, hash_of
from fl_hydra.runs.reading import Run
from tests.support.make import experiment
from tests.support.synthetic import rows


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

ALL = list(itertools.combinations(range(4), 2))
APART = [(2 * pair, 2 * pair + 1) for pair in range(16)]
FAMILIES = {  # deviations of the settings, their means, and which are compared
    "equal deviations": ([1.0] * 4, [0.0] * 4, ALL),
    "unequal deviations": ([1.0, 3.0, 10.0, 30.0], [0.0] * 4, ALL),
    "comparisons that share no run": ([1.0, 10.0] * 16, [0.0] * 32, APART),
    "one setting does differ": ([1.0, 10.0, 1.0, 10.0], [0.0, 0.0, 0.0, 200.0], ALL),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("n", [3, 5])
def test_at_most_one_family_in_twenty_claims_what_is_not(family: str, n: int) -> None:
    """Any claim of settings that do not differ counts; and apart from it the claim of the largest difference, which was chosen by its size.

    The upper limit of the exact 99 % interval (Clopper and Pearson) of 20,000 families has to lie below the level.
    """
    deviations, means, pairs = FAMILIES[family]
    count = 20_000
    samples = np.random.default_rng(n).normal(size=(count, len(means), n)) * np.reshape(deviations, (-1, 1)) + np.reshape(means, (-1, 1))
    sides = [(samples[:, one], samples[:, other]) for one, other in pairs]
    held = holding(holm(np.stack([difference_p(*each) for each in sides], -1)), n)
    same = np.array([means[one] == means[other] for one, other in pairs])
    told = largest(np.stack([one.mean(-1) - other.mean(-1) for one, other in sides], -1))
    any_wrong = (held & same).any(-1).sum()
    told_wrong = (np.take_along_axis(held, told[:, None], -1)[:, 0] & same[told]).sum()
    for wrong in (any_wrong, told_wrong):
        assert stats.beta.ppf(0.99, wrong + 1, count - wrong) <= LEVEL


def test_what_is_claimed_is_claimed_by_the_test_of_welch_too() -> None:
    samples = np.random.default_rng(0).normal(size=(2, 1000, 3)) * [[[1.0]], [[4.0]]]
    welch = stats.ttest_ind(samples[0], samples[1], axis=-1, equal_var=False).pvalue
    assert (difference_p(samples[0], samples[1]) >= welch - 1e-12).all()


def test_p_by_hand() -> None:
    """Of 2 degrees of freedom the t distribution has a closed form: p = 1 - t / sqrt(t^2 + 2)."""
    t = 3.0 / np.sqrt(1 / 3 + 4 / 3)
    assert float(difference_p([1.0, 2.0, 3.0], [3.0, 5.0, 7.0])) == pytest.approx(1 - t / np.sqrt(t * t + 2))


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    asked = holm([0.01, np.nan, 0.03])  # what could not be tested was asked all the same
    assert np.isnan(asked[1]) and asked[[0, 2]] == pytest.approx([0.03, 0.06])
    assert holm([[0.01, 0.04], [0.9, 0.8]]) == pytest.approx(np.array([[0.02, 0.04], [1.0, 1.0]]))


def decided(n: int, shift: float, comparisons: int) -> float:
    """How often so many seeds decide such a difference, of deviations 1."""
    generator = np.random.default_rng(1)
    ps = difference_p(generator.normal(size=(20_000, n)), shift + generator.normal(size=(20_000, n)))
    return float(np.mean(ps < LEVEL / comparisons))


@pytest.mark.parametrize("comparisons", [1, 20])
def test_so_many_seeds_decide_with_the_power_that_was_asked_for(comparisons: int) -> None:
    n = seeds_needed([0.0, 1.0, 2.0], [1.5, 2.5, 3.5], comparisons)  # deviations of 1, a difference of 1.5
    assert n is not None
    assert decided(n, 1.5, comparisons) >= 0.8
    assert decided(n - 3, 1.5, comparisons) < 0.8


def test_without_a_spread_or_a_second_seed_there_is_no_test() -> None:
    none: Sequence[tuple[list[float], list[float]]] = (([1.0], [2.0, 3.0]), ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0]))
    assert all(np.isnan(difference_p(*each)) for each in none)
    assert not np.isnan(difference_p([1.0, 1.0, 1.0], [2.0, 2.1, 2.2]))
    assert seeds_needed([1.0], [2.0], 1) is None


def test_nothing_is_claimed_of_fewer_than_three_seeds_or_without_the_test() -> None:
    two = Results.of("mine", runs({1: [0.1, 0.1000001], 2: [0.9, 0.9000001]}))
    (difference,) = differences(two, SPEC.compare, read_table())
    assert difference.n < FEWEST and difference.adjusted is not None and difference.adjusted < LEVEL and not difference.holds
    three = Results.of("mine", runs({1: [0.1, 0.11, 0.12], 2: [0.9, 0.91, 0.92], 4: [0.1, 0.12, 0.125]}))
    far, near = differences(three, SPEC.compare, read_table())
    assert far.holds and not near.holds and near.seeds is not None and near.seeds > 3
    text = " ".join(as_text(sentence) for paragraph in sentences(three, SPEC, read_table()) for sentence in paragraph)
    assert "1 of 2 differences" in text and "it holds" in text and "significant" not in text


def test_a_comparison_is_narrowed_and_says_to_what() -> None:
    found = [
        Run(Path(f"run-{J}{name}{seed}"), config, [{"round": 1, "samples": 64, "test/acc": acc + seed / 100}], "finished")
        for J, acc in ((4, 0.3), (8, 0.5))
        for name in ("constant", "cosine")
        for seed in (1, 2, 3)
        for config in [describe(experiment("algorithm=localsgd", "K=2", f"J={J}", f"scheduler={name}", f"seed={seed}"))]
    ]
    mine = Results.of("mine", found)
    for where, schedules in (({}, ["constant", "cosine"]), ({"scheduler": "cosine"}, ["cosine"]), ({"scheduler": "gone"}, ["constant"])):
        spec = Spec.of({"compare": [{"axis": "J", "against": 4, "within": ["scheduler"], "where": where}]}, "mine")
        told = differences(mine, spec.compare, read_table())
        assert [each.setting.value("scheduler") for each in told] == schedules
        assert {(each.setting.value("J"), each.other.value("J")) for each in told} == {(8, 4)}
        text = " ".join(as_text(sentence) for paragraph in sentences(mine, spec, read_table()) for sentence in paragraph)
        assert ("with the cosine schedule: " in text) == (where == {"scheduler": "cosine"})
    assert Spec.of({"compare": [{"axis": "J", "where": {"schedular": "x"}}]}, "mine").unknown_axes(mine) == ["schedular"]


def test_what_was_asked_for_and_has_not_begun_counts_among_all_comparisons(tmp_path: Path) -> None:
    """Of 11 values of J 6 have runs: p of the 5 comparisons that are there is adjusted over 10, not 5."""
    there = runs({J: [0.1 + J / 90, 0.11 + J / 80, 0.125 + J / 70] for J in range(1, 7)})
    asked = [run.config for run in runs({J: [0.0] * 3 for J in range(1, 12)})]
    names = {f"mine-s{config['seed']}-{hash_of(config)}": config for config in asked}
    there = [replace(run, folder=Path(name)) for run in there for name, config in names.items() if config == run.config]
    absent = [Run(Path(name), {}, [], "missing") for name, config in names.items() if config["J"] > 6]
    half = dict(list(names.items())[:15])
    for asked_for in (half, names):  # several commands add up
        describe_section("mine", tmp_path, "python train.py -m", {}, asked_for)
    assert planned_runs(read_description("mine", tmp_path)) == names
    complete = Results.of("mine", [*there, *absent], read_description("mine", tmp_path))
    assert len(complete.settings) == 11 and len(complete.drawn) == 6 and complete.settings[-1].state == "0 of 3 ended, 3 missing"
    found = differences(complete, SPEC.compare, read_table())
    assert len(found) == 10 and sum(each.known for each in found) == 5
    ps = [each.p for each in found if each.p is not None]
    assert [each.adjusted for each in found if each.known] == pytest.approx(holm([*ps, *[np.nan] * 5])[:5])
    assert min(each.adjusted or 1 for each in found) == pytest.approx(10 * min(ps))
    older = Results.of("mine", [*there, *absent])
    text = " ".join(as_text(sentence) for paragraph in sentences(older, SPEC, read_table()) for sentence in paragraph)
    assert len(differences(older, SPEC.compare, read_table())) == 5 and "15 further runs" in text and older.unknown == 15
    table = results_table(complete, SPEC, read_table())
    assert [row[0].text for row in table.rows] == [str(J) for J in range(1, 12)]
    assert [cell.text for cell in table.rows[-1]][-2:] == ["0", "0 of 3 ended, 3 missing"]


def test_a_section_is_compared_with_another_at_equal_axes() -> None:
    """Each of two values of J with the one setting of the other section that has it; what is not there is not compared."""

    def made(method: str, finals: dict[int, float]) -> Results:
        found = []
        for J, accuracy in finals.items():
            for seed in (1, 2, 3):
                config = describe(experiment(f"algorithm={method}", "K=2", f"J={J}", f"seed={seed}"))
                row = {"round": 1, "samples": 64, "val/acc": accuracy, "test/acc": accuracy + seed / 1000, "test/loss": 1.0}
                found.append(Run(Path(f"{method}-{J}{seed}"), config, [row], "finished"))
        return Results.of(method, found)

    spec = Spec("Mine", (), (), (Comparison("method", ("K", "J"), "LocalSGD", beside="localsgd"),))
    mine = made("slowmo", {4: 0.5, 8: 0.4})
    assert differences(mine, spec.compare, read_table()) == []
    with_other = replace(mine, others={"localsgd": made("localsgd", {2: 0.9, 4: 0.1, 8: 0.2}).settings})
    found = differences(with_other, spec.compare, read_table())
    assert [(each.setting.method, each.other.method, each.setting.value("J"), each.other.value("J")) for each in found] == [
        ("SlowMo", "LocalSGD", J, J) for J in (4, 8)
    ]
    assert [round(each.size) for each in found] == [40, 20] and all(each.holds for each in found)


def test_the_largest_batch_that_holds_is_told_as_it_is_ringed() -> None:
    mine = Results.of("mine", runs({1: [0.9, 0.9], 2: [0.895, 0.895], 4: [0.8, 0.8]}))
    for mark, told in (
        ("reference", "Largest local steps J whose mean test accuracy is within 1 point of the best one at 1"),
        ("best", "1"),
    ):
        spec = Spec.of({"figures": [{"kind": "lines", "x": "J", "y": "test/acc", "mark": mark}]}, "mine")
        text = " ".join(as_text(sentence) for paragraph in sentences(mine, spec, read_table()) for sentence in paragraph)
        assert told in text and (": 2 for LocalSGD." if mark == "reference" else "by validation: 1 for LocalSGD.") in text


def test_one_accuracy_is_told_and_drawn_and_a_grid_is_compared_by_each_axis(tmp_path: Path) -> None:
    grid = [(J, K, seed) for J in (4, 8) for K in (2, 4) for seed in (1, 2, 3)]
    configs = [describe(experiment("algorithm=localsgd", f"K={K}", f"J={J}", f"seed={seed}")) for J, K, seed in grid]
    mine = Results.of("mine", [Run(tmp_path / str(place), each, list(rows(each)), "finished") for place, each in enumerate(configs)])
    default = Spec.default("mine", mine.axes)
    assert [(each.axis, each.within) for each in default.compare] == [("K", ("J",)), ("J", ("K",))]
    assert len(differences(mine, default.compare, read_table())) == 4
    spec = Spec.of({"figures": [{"kind": "targets", "y": "bytes", "color": "J", "facet": "K"}]}, "mine")
    (target,) = [each.shown.target for each in planned(mine, spec, read_table())]
    assert target == reachable(mine.settings, measure("test/acc", read_table()))
    text = " ".join(as_text(sentence) for paragraph in sentences(mine, spec, read_table()) for sentence in paragraph)
    assert f"A test accuracy of {target:g} % was reached" in text


def test_ties_are_no_winners_and_counts_are_read_as_they_are() -> None:
    def told(finals: dict[int, list[float]]) -> str:
        return " ".join(as_text(each) for part in sentences(Results.of("mine", runs(finals)), SPEC, read_table()) for each in part)

    assert "By validation all 3 settings are level; the first is" in told({1: [0.5], 2: [0.5], 4: [0.5]})
    assert "are 2 settings that are level; the first is LocalSGD with J=2" in told({1: [0.4], 2: [0.5], 4: [0.5]})
    assert "; 1 more is within one deviation of it" in told({1: [0.5, 0.6], 2: [0.5, 0.61]})
    assert "; 1 of the other 2 is within one deviation" in told({1: [0.5, 0.6], 2: [0.5, 0.61], 4: [0.1, 0.1]})
    unfinished = replace(runs({8: [0.1]})[0], rows=[], status="unfinished")
    one = Results.of("mine", [*runs({1: [0.5], 2: [0.4]}), unfinished])
    text = " ".join(as_text(each) for part in sentences(one, SPEC, read_table()) for each in part)
    assert "One more run is in no figure: 1 unfinished." in text
    assert "Bold: the test accuracy of what is best by validation." in results_table(one, SPEC, read_table()).notes


@pytest.mark.parametrize(
    ("peaks", "target"),
    [((0.228, 0.21, 0.15, 0.133), 15.0), ((0.126, 0.12, 0.025, 0.022, 0.01, 0.01), 12.0), ((0.97, 0.96, 0.955, 0.5), 95.0)],
)
def test_the_accuracy_to_reach_is_not_that_of_settings_that_hardly_learn(peaks: tuple[float, ...], target: float) -> None:
    def setting(peak: float) -> Any:
        return SimpleNamespace(finished=[SimpleNamespace(rows=[{"test/acc": 0.01}, {"test/acc": peak}], config={})])

    assert reachable([setting(peak) for peak in peaks], measure("test/acc", read_table())) == target
