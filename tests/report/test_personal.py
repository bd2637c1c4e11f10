"""Clients' own models in the report: what they are judged by, and how the mean and the worst ones are shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_hydra.report.cost import TABLE, read_table
from fl_hydra.report.figures import captions, draw_figures
from fl_hydra.report.figures.ranked import accuracies, ranked
from fl_hydra.report.figures.style import COLUMN, SMALL, WIDE
from fl_hydra.report.measures import measure, validation
from fl_hydra.report.results import Results
from fl_hydra.report.sentences import as_text, sentences
from fl_hydra.report.spec import Spec
from fl_hydra.report.statistics import differences, holm
from fl_hydra.report.tables import as_markdown, clients_table, costs_table, overview_table, results_csv, results_table
from fl_hydra.runs.identity import describe
from fl_hydra.runs.listing import Listed, print_runs
from fl_hydra.runs.reading import Run
from tests.report.test_figures import facts, looking
from tests.support.make import experiment

COSTS = read_table(TABLE)
CLIENTS = ("K=12", "C=0.5", "J=4", "sharding=classes")


def run(method: str, *overrides: str, mean: float = 0.5, seed: int = 1, model_for_all: bool = True, personal: bool = True) -> Run:
    """A run of twelve clients, of which one has no samples; their accuracies go from 0.2 below the mean to 0.2 above it."""
    config = describe(experiment(f"algorithm={method}", *CLIENTS, f"seed={seed}", *("N_c=2",) * ("N_c" not in str(overrides)), *overrides))
    rows = []
    for n in (1, 2, 3):
        own = [None, *(mean - 0.2 + 0.04 * client - 0.1 * (3 - n) + 0.01 * seed for client in range(11))]
        kept = np.sort(np.array(own[1:], float))
        figures: dict[str, Any] = {
            "train/loss": 1.0,
            "train/acc": 0.5,
            "val/loss": None,
            "val/acc": None,
            "test/loss": None,
            "test/acc": None,
        }
        if model_for_all:
            figures |= {"val/loss": 2.0, "val/acc": 0.3 + mean / 10, "test/loss": 2.0, "test/acc": 0.3 + mean / 10}
        for part in ("val", "test") if personal else ():
            by_name = {"loss": 1.0, "acc": kept.mean(), "acc_weighted": kept.mean() + 0.01, "acc_worst_tenth": kept[:2].mean()}
            by_name |= {"acc_deviation": kept.std(), "clients": 11}
            by_name |= {"accs": own, "sizes": [0, *[10] * 11]} if n == 3 else {}
            figures |= {f"personal/{part}/{key}": value for key, value in by_name.items()}
        counts = dict.fromkeys(("served", "block_averages", "exchanges", "exchanged"), 0)
        sent = {"bytes_up": 10_000 * n, "bytes_down": 10_000 * n, "averages": n, **counts, "messages": 2 * n}
        rows.append({"round": n, "samples": 640 * n, "epoch": 0.5 * n, "flops": 6400 * n, "seconds": 1.0 * n, **sent, **figures})
    return Run(Path("nowhere"), config, rows, "finished")


def of(methods: dict[str, float], *overrides: str, seeds: Sequence[int] = (1, 2, 3), **how: Any) -> list[Run]:
    return [run(method, *overrides, mean=mean, seed=seed, **how) for method, mean in methods.items() for seed in seeds]


def fitting(runs: Sequence[Run], **block: Any) -> tuple[Results, Spec]:
    results = Results.of("mine", runs)
    return results, Spec.of({"title": "Mine", **block}, "mine").fitting(results)


def with_worst(run: Run, accuracy: float) -> Run:
    """The run, with another accuracy of the worst tenth on validation samples."""
    return dataclasses.replace(run, rows=[{**row, "personal/val/acc_worst_tenth": accuracy} for row in run.rows])


OWN = of({"fedper": 0.5, "fedbn": 0.7}, "model=lenet_bn", model_for_all=False)
"""Methods without a model for all."""

BESIDE = [*of({"fedavg": 0.4}), *of({"fedper": 0.6}, model_for_all=False)]
"""Methods of both kinds."""


def test_where_no_run_has_a_model_for_all_every_figure_is_of_clients_own_models() -> None:
    block: dict[str, Any] = {
        "figures": [{"kind": "curves", "x": "round", "y": ["train/loss", "test/acc"]}],
        "compare": [{"axis": "method"}],
    }
    results, spec = fitting(OWN, **block)
    assert spec.personal and spec.figures[0].y == ("train/loss", "personal/test/acc")
    assert spec.compare[0].measure == spec.figures[0].value == "personal/test/acc"
    table = results_table(results, spec, COSTS)
    assert {"personal validation accuracy, %", "personal test accuracy, %"} < set(table.header) and "test accuracy, %" not in table.header
    others, judged_by_all = fitting(of({"fedavg": 0.4, "fedprox": 0.5}, personal=False), **block)
    assert not judged_by_all.personal and judged_by_all.compare[0].measure == "test/acc"
    assert not any("personal" in title for title in results_table(others, judged_by_all, COSTS).header)


def test_methods_of_both_kinds_have_both_figures_beside_each_other_and_the_section_says_which_counts() -> None:
    for judged, first in (("personal", "personal"), ("", "")):
        results, spec = fitting(BESIDE, judged=judged, compare=[{"axis": "method", "against": "FedAvg"}])
        table = results_table(results, spec, COSTS)
        columns = dict(zip(table.header, zip(*[[cell.text for cell in row] for row in table.rows], strict=True), strict=True))
        assert columns["personal test accuracy, %"] == ("42.00 ± 1.00", "62.00 ± 1.00")
        assert columns["test accuracy, %"] == ("34.00 ± 0.00", "")
        assert table.header.index(f"{first} test accuracy, %".strip()) < table.header.index(
            "test accuracy, %" if judged else "personal test accuracy, %"
        )
        (difference,) = differences(results, spec.compare, COSTS)
        assert difference.known == (judged == "personal")
    with pytest.raises(Exception, match=r"report.judged: clients: choose personal or global"):
        Spec.of({"judged": "clients"}, "mine")


def test_holm_s_family_is_of_personal_figures() -> None:
    """p of each difference from the figures by hand, adjusted over all of them; one of methods without figures counts, too."""
    runs = [*BESIDE, *of({"ditto": 0.41}), *of({"fedprox": 0.5}, personal=False)]
    results, spec = fitting(runs, judged="personal", compare=[{"axis": "method", "against": "FedAvg"}])
    found = {each.setting.method: each for each in differences(results, spec.compare, COSTS)}
    assert list(found) == ["FedPer", "Ditto", "FedProx"] and not found["FedProx"].known
    assert found["FedPer"].size == pytest.approx(20) and found["Ditto"].size == pytest.approx(1)
    ps = [np.nan if each.p is None else each.p for each in found.values()]
    assert [found["FedPer"].adjusted, found["Ditto"].adjusted] == pytest.approx(list(holm(ps)[:2]))
    assert found["FedPer"].holds and not found["Ditto"].holds
    said = " ".join(as_text(each) for paragraph in sentences(results, spec, COSTS) for each in paragraph)
    assert "1 of 2 differences in personal test accuracy holds (p adjusted over 3 comparisons)" in said
    assert "a personal validation accuracy of 62.00 ± 1.00 %, n=3 and a personal test accuracy of 62.00 ± 1.00 %, n=3" in said


def test_a_division_is_a_task_of_its_own() -> None:
    """Two classes are told apart more easily than five: the best, and what is bold, is named for each."""
    runs = [*of({"fedper": 0.8, "ditto": 0.7}, "N_c=2"), *of({"fedper": 0.4, "ditto": 0.5}, "N_c=5")]
    results, spec = fitting(runs, judged="personal")
    said = " ".join(as_text(each) for paragraph in sentences(results, spec, COSTS) for each in paragraph)
    assert "Best by validation with N_c=2 is FedPer, with" in said and "Best by validation with N_c=5 is Ditto, with" in said
    table = clients_table(results, spec, COSTS)
    bold = {(row[0].text, row[1].text) for row in table.rows if row[2].bold}
    assert bold == {("FedPer", "2"), ("Ditto", "5")}
    assert len(overview_table([(results, spec)], COSTS).rows) == 2, "accuracies of one division alone are beside each other"


def test_the_best_of_a_figure_is_chosen_by_the_same_figure_of_validation_samples() -> None:
    chosen = {"train/loss": "val/loss", "test/acc": "val/acc", "flops": "val/acc"}
    chosen |= {f"personal/test/{each}": f"personal/val/{each}" for each in ("loss", "acc", "acc_worst_tenth", "acc_deviation")}
    for name, by in chosen.items():
        assert validation(measure(name, COSTS), COSTS).name == by


def test_the_table_of_clients_has_the_mean_the_worst_tenth_and_the_costs() -> None:
    results, spec = fitting(BESIDE, judged="personal")
    table = clients_table(results, spec, COSTS)
    assert table.header == ["method", "mean, %", "by samples, %", "worst tenth, %", "deviation, %", "model for all, %"]
    first, second = ([cell.text for cell in row] for row in table.rows)
    assert first == ["FedAvg", "42.00 ± 1.00", "43.00 ± 1.00", "24.00 ± 1.00", "12.65 ± 0.00", "34.00 ± 0.00"]
    assert second[5] == "" and "MB per client" in " ".join(table.notes), "what all have in common is said below"
    assert "the mean of the worst tenth of clients" in as_markdown(table)


def test_computation_of_the_server_is_a_column_where_some_run_has_it() -> None:
    results, spec = fitting(BESIDE, judged="personal")
    assert "computation of the server, GFLOP" not in costs_table(results, spec, COSTS).header
    runs = [dataclasses.replace(each, rows=[{**row, "server_flops": 3_000_000_000} for row in each.rows]) for each in BESIDE[3:]]
    results, spec = fitting([*BESIDE[:3], *runs], judged="personal")
    table = costs_table(results, spec, COSTS)
    place = list(table.header).index("computation of the server, GFLOP")
    assert [row[place].text for row in table.rows] == ["", "3"]
    assert "The server's computation is in no time." in table.notes
    raw = results_csv(results, [measure("server_flops", COSTS)])
    assert raw[2][raw[0].index("server_flops mean")] == 3.0


def test_curves_by_client_are_means_over_seeds_at_each_rank() -> None:
    (setting,) = Results.of("mine", of({"fedper": 0.5}, seeds=(1, 3))).settings
    curve = ranked(setting)
    assert curve is not None and curve.deviation is not None
    assert curve.x == pytest.approx((np.arange(11) + 0.5) * 100 / 11), "the client without samples has no place"
    assert curve.mean == pytest.approx(np.linspace(72, 32, 11))
    assert curve.deviation == pytest.approx(np.full(11, np.sqrt(2)))
    fewer = setting.runs[1].rows[-1] | {"personal/test/accs": [None, 0.5, 0.7, *[None] * 9]}
    both = dataclasses.replace(setting, runs=[setting.runs[0], dataclasses.replace(setting.runs[1], rows=[fewer])])
    curve = ranked(both)
    assert curve is not None and len(curve.x) == 11 and curve.mean[0] == pytest.approx((71 + 70) / 2)
    assert ranked(Results.of("mine", of({"fedavg": 0.5}, personal=False)).settings[0]) is None
    (away,) = Results.of("mine", of({"fedper": 0.5}, "participation.held_out=1-2|11")).settings
    assert away.finished and accuracies(away.runs[0]) == pytest.approx(np.linspace(67, 39, 8)), (
        "the best and the two worst were never trained"
    )


WORST = "personal/test/acc_worst_tenth"

NINE = ("local", "fedavg", "fedavg_ft", "fedper", "fedrep", "fedbabu", "ditto", "apfl", "knn_per")


@pytest.mark.parametrize("many", [3, 9])
def test_curves_by_client_can_be_read_in_print(many: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    means = {name: 0.3 + 0.06 * place for place, name in enumerate(NINE[:many])}
    divisions = ("N_c=2", "N_c=5") if many == 9 else ("N_c=2",)
    results, spec = fitting(
        [each for division in divisions for each in of(means, division)],
        judged="personal",
        figures=[{"kind": "clients", "color": "method", "facet": "N_c"}],
        compare=[{"axis": "method", "against": "FedAvg"}],
    )
    looks = looking(monkeypatch, lambda figure: (facts(figure), [axis.get_title("left") for axis in figure.axes]))
    draw_figures(results, spec, COSTS, tmp_path)
    ((seen, titles),) = looks
    assert seen.width == (COLUMN if many == 3 else WIDE) and seen.smallest >= SMALL and seen.overlaps == seen.outside == 0, seen
    assert "worst tenth" in seen.texts
    if many == 3:
        assert {"Local", "FedAvg"} <= set(seen.texts), "names are at the ends of lines"
    else:
        assert titles == ["2 classes (1 of 2)", "2 classes (2 of 2)", "5 classes (1 of 2)", "5 classes (2 of 2)"]
    told = captions(results, spec, COSTS)["clients"]
    assert told.startswith("Test accuracy of each client's own model, clients sorted by it, by method") and "n=3" in told


def test_a_map_compares_within_a_division() -> None:
    from fl_hydra.report.figures.drawing import planned

    heat = {"kind": "heat", "x": "division", "y": "method"}
    runs = [*of({"fedper": 0.8, "ditto": 0.7}, "N_c=2"), *of({"fedper": 0.4, "ditto": 0.5}, "N_c=5")]
    runs[:3] = [with_worst(each, 0.1) for each in runs[:3]]  # of FedPer with two classes
    results, spec = fitting(runs, judged="personal", figures=[heat, {**heat, "name": "worst", "value": WORST, "under": "heat"}])
    one, worst = planned(results, spec, COSTS)
    assert one.shown.best == {(0, 2): [(2, "FedPer")], (0, 5): [(5, "Ditto")]}
    assert worst.shown.value.name == WORST and worst.shown.best == one.shown.best | {(0, 2): [(2, "Ditto")]}
    told = captions(results, spec, COSTS)["heat"]
    assert "darker is better within a column" in told and told.count("Means over seeds (n=3); ±: one standard deviation.") == 1


def test_a_list_of_runs_has_personal_figures_where_some_run_has_them(capsys: pytest.CaptureFixture[str]) -> None:
    def shown(runs: Sequence[Run]) -> str:
        print_runs([Listed(each, {**each.rows[-1], "status": each.status, "K": 12}) for each in runs])
        return capsys.readouterr().out

    both = shown([BESIDE[0], BESIDE[3]])
    assert all(word in both for word in ("val acc %", "personal test acc %", "worst tenth %", "61.00", "23.00", "34.00"))
    assert "personal" not in shown(of({"fedavg": 0.5}, personal=False))
    assert " val acc %" not in shown([BESIDE[3]]).replace("personal val acc %", "")
