"""Figures: legible in a column, nothing that says nothing, nothing missing drawn as a number."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fl_hydra.algorithms.base import algorithms
from fl_hydra.report.colors import METHODS
from fl_hydra.report.cost import TABLE, read_table
from fl_hydra.report.figures import captions, draw_figures, draw_runs, drawing, search
from fl_hydra.report.figures.legends import apart
from fl_hydra.report.figures.style import COLUMN, SMALL, WIDE
from fl_hydra.report.results import Results
from fl_hydra.report.spec import Spec
from fl_hydra.runs.identity import describe
from fl_hydra.runs.reading import Run
from tests.support.make import experiment
from tests.support.synthetic import section

COSTS = read_table(TABLE)
KxJ = [(K, J) for K in (2, 4, 8) for J in (4, 8, 16, 32, 64)]


def run(*overrides: str, acc: float = 0.5, folder: Path = Path("nowhere"), points: int = 6, status: str = "finished") -> Run:
    """A run that rises to an accuracy."""
    config = describe(experiment(*overrides))
    counts = dict.fromkeys(("messages", "served", "block_averages", "exchanges", "exchanged"), 0)
    rows = []
    for n in range(1, points + 1):
        reached = acc * (1 - 0.5**n)
        parts = {f"{part}/acc": reached for part in ("train", "val", "test")} | {
            f"{part}/loss": 4 - reached for part in ("train", "val", "test")
        }
        sent = {"bytes_up": 10_000 * n, "bytes_down": 10_000 * n, "averages": n, **counts, "messages": 2 * n}
        rows.append({"round": n, "samples": 640 * n, "epoch": 0.5 * n, "flops": 6400 * n, "seconds": 1.0 * n, **sent, **parts})
    return Run(folder, config, rows if status == "finished" else [], status)


def grid(seeds: Sequence[int] = (1, 2, 3), points: Sequence[tuple[int, int]] = KxJ) -> list[Run]:
    return [
        run("algorithm=localsgd", f"K={K}", f"J={J}", f"seed={seed}", acc=0.6 - 0.02 * K - 0.001 * J + 0.01 * seed, points=5)
        for K, J in points
        for seed in seeds
    ]


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `look` returned for each figure, before it was closed; none is written, which takes most of the time."""
    from matplotlib import pyplot

    looks: list[Any] = []
    close = pyplot.close

    def look(figure: Any) -> None:
        looks.append(facts(figure))
        close(figure)

    monkeypatch.setattr(pyplot, "close", look)
    monkeypatch.setattr(drawing, "save", lambda figure, target: [target.with_suffix(".pdf"), target.with_suffix(".png")])
    return looks


def looking(monkeypatch: pytest.MonkeyPatch, look: Callable[[Any], Any]) -> list[Any]:
    """What `look` returns for each figure that is drawn from now on; none is written."""
    looks: list[Any] = []

    def save(figure: Any, _: Path) -> list[Path]:
        looks.append(look(figure))
        return []

    monkeypatch.setattr(drawing, "save", save)
    return looks


@dataclasses.dataclass
class Facts:
    width: float
    smallest: float
    lines: list[int]
    bands: int
    texts: list[str]
    overlaps: int
    outside: int
    titles: list[str]


def facts(figure: Any) -> Facts:
    from matplotlib.text import Text

    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    inches, drawn = figure.get_size_inches(), figure.get_tightbbox()
    written = [text for axis in figure.axes for text in axis.texts]
    boxes = [Text.get_window_extent(text) for text in written]  # of the letters, without what leads to them
    overlaps = sum(one.overlaps(other) for index, one in enumerate(boxes) for other in boxes[:index])
    page = figure.bbox
    outside = sum(box.x0 < page.x0 - 1 or box.x1 > page.x1 + 1 or box.y0 < page.y0 - 1 or box.y1 > page.y1 + 1 for box in boxes)
    return Facts(
        figure.get_size_inches()[0],
        min(size for text in texts for size in sizes(text)),
        [len(axis.lines) for axis in figure.axes],
        sum(len(axis.collections) for axis in figure.axes),
        [text.get_text() for text in written],
        overlaps + sum(crowded(axis) for axis in figure.axes),
        outside + bool(min(drawn.x0, drawn.y0, inches[0] - drawn.x1, inches[1] - drawn.y1) < -0.02),
        [axis.get_title(where) for axis in figure.axes for where in ("left", "right")],
    )


def sizes(text: Any) -> list[float]:
    """Of its letters in points, subscripts included."""
    from matplotlib.mathtext import MathTextParser

    if "$" not in text.get_text().replace(r"\$", ""):
        return [text.get_fontsize()]
    return [glyph[1] for glyph in MathTextParser("path").parse(text.get_text(), 72, text.get_fontproperties()).glyphs]


def crowded(axes: Any) -> int:
    """How many numbers of an x axis touch the next one."""
    low, high = sorted(axes.get_xlim())
    ticks = [tick for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high and tick.label1.get_visible()]
    boxes = [tick.label1.get_window_extent() for tick in ticks if tick.label1.get_text() and not tick.label1.get_rotation()]
    return sum(one.overlaps(other) for one, other in itertools.pairwise(boxes))


BLOCK: dict[str, Any] = {
    "figures": [
        {"kind": "heat", "x": "J", "y": "K"},
        {"kind": "lines", "x": "J", "y": "test/acc", "color": "K"},
        {"kind": "curves", "x": "bytes", "y": ["train/loss", "test/acc"], "color": "J", "facet": "K"},
        {"kind": "targets", "y": ["bytes", "WAN"], "color": "K", "facet": "J"},
    ]
}

FIRST: dict[str, Any] = {"figures": BLOCK["figures"][:3]}


def draw(runs: list[Run], target: Path, block: dict[str, Any] = BLOCK) -> list[str]:
    paths = draw_figures(Results.of("mine", runs), Spec.of(block, "mine"), COSTS, target)
    return [path.stem.removeprefix("mine-") for path in paths if path.suffix == ".png"]


def test_figures_of_a_full_grid_are_legible_in_a_column(tmp_path: Path, seen: list[Facts]) -> None:
    assert draw(grid(), tmp_path) == ["heat", "lines", "curves", "targets"]
    assert len(seen) == 4
    for each in seen:
        assert each.width in (COLUMN, WIDE)
        assert each.smallest >= SMALL
        assert max(each.lines) <= 8 + 15 * 3  # dots of targets are lines of their own
        assert each.overlaps == each.outside == 0
    assert max(seen[2].lines) <= 8
    assert "50.0" not in seen[0].texts and all("±1.0" in text for text in seen[0].texts)


PRINTED = ("asynchronous", "centralized", "decentralized", "large_batch", "learning_rate", "participation", "schedules", "shakespeare")
"""Sections whose figures are of all kinds; those of the others are like theirs, or like :data:`BLOCK`."""


@pytest.mark.parametrize("name", PRINTED)
def test_every_figure_of_a_full_section_can_be_read_in_print(name: str, tmp_path: Path, seen: list[Facts]) -> None:
    """As wide as a column or a page, letters of at least 7 points, at most eight series a panel, nothing over another or cut off."""
    results, spec = section(name, seeds=(1, 2), points=12, clients=tmp_path)
    searched = name == "large_batch"
    results = dataclasses.replace(results, studies=[study("sgdm", 30), study("adamw", 30, pruned=False)] if searched else [])
    names = [drawn.stem.removeprefix(f"{name}-") for drawn in draw_figures(results, spec, COSTS, tmp_path)[::2]]
    told = captions(results, spec, COSTS)
    assert names == list(told) and all(
        raw not in words for words in told.values() for raw in ("test/acc", "_lr", "optimizer.lr", "optimizer.w", "e+0")
    )
    asked = [each.name for each in spec.figures if not each.under and (searched or each.kind != "search")]
    missing = {"centralized": ["heat"], "shakespeare": ["images"]}.get(name, [])  # no grid of rates; no images to compare with
    assert names == [each for each in asked if each not in missing]
    assert len(seen) >= len(names)
    for each in seen:
        assert each.width in (COLUMN, WIDE) and each.smallest >= SMALL
        assert each.overlaps == each.outside == 0, each


def study(optimizer: str, trials: int, pruned: bool = True) -> dict[str, Any]:
    """What is kept of a search over rate and weight decay; two thirds of the trials were given up."""
    rng = np.random.default_rng(trials)
    found: list[dict[str, Any]] = []
    for number in range(trials):
        rate, decay = 10 ** rng.uniform(-4, 0), 10 ** rng.uniform(-5, -1)
        gone = pruned and number % 3 > 0
        value = (0.5 - 0.1 * abs(np.log10(rate / 0.03))) * (0.4 if gone else 1)
        ended = {"state": "pruned", "pruned_at": 1 / 9 if number % 3 == 1 else 1 / 3} if gone else {"state": "complete"}
        found.append({"number": number, "params": {"optimizer.lr": rate, "optimizer.weight_decay": decay}, "values": [value], **ended})
    log = {"attributes": {"log": True}}
    best = max((each for each in found if each["state"] == "complete"), key=lambda each: each["values"][0])
    return {
        "study": optimizer, "section": "mine", "where": {"optimizer": optimizer}, "objectives": ["val/acc"], "best": [best["number"]],
        "question": {"space": {"optimizer.lr": log, "optimizer.weight_decay": log}}, "trials": found,
    }  # fmt: skip


def test_a_map_of_a_search_shows_each_trial_where_it_lies_and_what_was_given_up() -> None:
    kept = study("sgdm", 30)
    shown = search.read([kept])
    assert shown is not None and shown.title == "validation accuracy, %"
    across, up = search.grid(shown)
    for trial, of in zip(kept["trials"], shown.studies[0].trials, strict=True):
        for steps, key in ((across, "optimizer.lr"), (up, "optimizer.weight_decay")):
            column = int(steps.of(of.params[key]))
            assert steps.values[column] <= trial["params"][key] <= steps.values[column + 1]
    gone, done = (next(trial for trial in shown.studies[0].trials if (trial.given_up is None) == complete) for complete in (False, True))
    worst = dataclasses.replace(done, value=0.0)
    assert shown.better([gone, worst]) is worst, "a trial that was given up is compared with no complete one"
    assert search.read([study("sgdm", 1)]) is None and search.read([]) is None


def test_rates_that_are_each_optimizer_s_own_are_no_map(tmp_path: Path) -> None:
    figure: dict[str, Any] = {"figures": [{"kind": "heat", "x": "optimizer.lr", "y": "optimizer.weight_decay", "facet": "optimizer"}]}
    own = [run("algorithm=centralized", f"optimizer={name}", acc=acc) for name, acc in (("sgdm", 0.5), ("adamw", 0.6))]
    assert draw(own, tmp_path, figure) == []
    rates = [
        run("algorithm=centralized", f"optimizer.lr={lr}", f"optimizer.weight_decay={decay}", acc=lr * 5 + decay)
        for lr in (0.01, 0.1)
        for decay in (0.0, 0.001)
    ]
    assert draw(rates, tmp_path, figure) == ["heat"]


def test_probabilities_are_shown_of_clients_too_many_for_counts(tmp_path: Path) -> None:
    runs = []
    for gamma in (0.1, 10):
        folder = tmp_path / str(gamma)
        folder.mkdir()
        probabilities = np.random.default_rng(0).dirichlet(np.full(20, gamma)).tolist()
        content = {"kind": "classes", "names": ["0"], "counts": None, "sizes": [5] * 20, "probabilities": probabilities}
        (folder / "clients.json").write_text(json.dumps(content))
        runs.append(run("algorithm=fedavg", "K=20", "C=0.2", "participation=skewed", f"gamma={gamma}", folder=folder))
    figures = {"figures": [{"kind": "sampling", "color": "gamma"}, {"kind": "classes", "facet": "gamma"}]}
    assert draw(runs, tmp_path, figures) == ["sampling"]


def test_settings_of_another_section_are_shown_beside_the_own_once_there_are_some(tmp_path: Path, seen: list[Facts]) -> None:
    block = {"figures": [{"kind": "lines", "x": "J", "y": "test/acc", "color": "division", "beside": "images"}]}

    def clients(*overrides: str) -> list[Run]:
        return [run("algorithm=fedavg", "K=20", "C=0.2", f"J={J}", *overrides, acc=0.01 * J + len(overrides) / 10) for J in (4, 8)]

    own, other = Results.of("mine", clients("sharding=dirichlet")), Results.of("images", clients("sharding=classes", "N_c=2") + clients())
    spec = Spec.of(block, "mine")
    assert draw_figures(own, spec, COSTS, tmp_path) == []
    both = dataclasses.replace(own, others={"images": other.settings})
    assert draw_figures(both, spec, COSTS, tmp_path) and seen[0].lines == [3]
    assert "section images" in captions(both, spec, COSTS)["lines"]


def test_a_figure_that_is_no_longer_drawn_is_taken_away(tmp_path: Path) -> None:
    """Else a paper would show it."""
    block = {"figures": [{"kind": "lines", "x": "J", "y": "test/acc"}]}
    runs = [run("algorithm=localsgd", f"J={J}", acc=0.1 * J) for J in (4, 8)]
    assert draw(runs, tmp_path, block) == ["lines"]
    assert draw(runs[:1], tmp_path, block) == [] and list(tmp_path.iterdir()) == []


def test_runs_of_two_seeds_alone_are_each_drawn(tmp_path: Path, seen: list[Facts]) -> None:
    runs = [run("algorithm=localsgd", f"seed={seed}", acc=0.5 + seed / 10) for seed in (1, 2)]
    assert draw_runs(runs, COSTS, tmp_path) and seen[0].lines == [2, 2]


def many(algorithms: Sequence[str]) -> list[Run]:
    """A run of each method, all of which come to the same accuracy at another time."""
    return [run(f"algorithm={name}", "K=20", "C=0.2", "J=4", acc=0.5 + 0.01 * place) for place, name in enumerate(algorithms)]


TEN = ("fedavg", "fedavgm", "fedadam", "fedprox", "scaffold", "feddyn", "ghbm", "fedhbm", "fedsam", "moon")


@pytest.mark.parametrize(("against", "shared"), [("FedProx", "FedProx"), ("none of them", "FedAvg")])
def test_more_than_eight_lines_are_split_and_each_part_has_the_one_that_others_are_compared_with(
    against: str, shared: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = {
        "figures": [{"kind": "curves", "x": "samples", "y": "test/acc", "color": "method"}],
        "compare": [{"axis": "method", "against": against}],
    }
    place = [name.lower() for name in ("FedAvg", "FedAvgM", "FedAdam", "FedProx")].index(shared.lower())

    def look(figure: Any) -> list[Any]:
        assert all(axis.lines[0].get_linewidth() > max(line.get_linewidth() for line in axis.lines[1:]) for axis in figure.axes)
        return [(axis.get_title("left"), [round(float(line.get_ydata()[-1]), 1) for line in axis.lines]) for axis in figure.axes]

    drawn = looking(monkeypatch, look)
    draw(many(TEN), tmp_path, block)
    ((first, one), (second, two)) = drawn[0]
    of = [round((50 + each) * (1 - 0.5**6), 1) for each in range(10)]
    rest = [each for each in of if each != of[place]]
    assert (first, second) == ("(1 of 2)", "(2 of 2)")
    assert one == [of[place], *rest[:5]] and two == [of[place], *rest[5:]]
    told = captions(Results.of("mine", many(TEN)), Spec.of(block, "mine"), COSTS)["curves"]
    assert f"The lines are split over several panels, each with {shared}, drawn wide." in told


def test_lines_without_a_result_are_told_of_and_not_split(tmp_path: Path, seen: list[Facts]) -> None:
    block = {"figures": [{"kind": "curves", "x": "samples", "y": "test/acc", "color": "method"}]}
    runs = many(TEN)
    runs[-2:] = [dataclasses.replace(each, rows=[], status="unfinished") for each in runs[-2:]]
    draw(runs, tmp_path, block)
    assert seen[0].lines == [8] and not any("of" in title for title in seen[0].titles)
    assert "No result: FedSAM; MOON." in captions(Results.of("mine", runs), Spec.of(block, "mine"), COSTS)["curves"]


def test_rows_of_what_it_takes_are_named_by_what_differs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = {"figures": [{"kind": "targets", "y": ["bytes"], "color": "method", "target": 45}]}
    rows = looking(monkeypatch, lambda figure: [text.get_text() for text in figure.axes[0].get_yticklabels()])
    draw(many(TEN), tmp_path, block)
    assert rows == [["FedAvg", "FedAvgM", "FedAdam", "FedProx", "SCAFFOLD", "FedDyn", "GHBM", "FedHBM", "FedSAM", "MOON"]]


def test_a_split_axis_of_numbers_repeats_the_first(tmp_path: Path, seen: list[Facts]) -> None:
    runs = [run("algorithm=localsgd", f"J={J}", acc=0.3 + 0.01 * J) for J in range(2, 20)]
    draw(runs, tmp_path, {"figures": [{"kind": "curves", "x": "samples", "y": "test/acc", "color": "J"}]})
    assert seen[0].lines == [7, 7, 6]


def test_one_seed_has_no_band_and_is_said(tmp_path: Path, seen: list[Facts]) -> None:
    draw(grid(seeds=[1]), tmp_path, FIRST)
    assert all(each.bands == 0 for each in seen[:3])
    assert not any("±" in text for each in seen for text in each.texts)
    assert all("n=1" in each.titles for each in seen)
    assert all("n=1" in text for text in captions(Results.of("mine", grid(seeds=[1])), Spec.of(FIRST, "mine"), COSTS).values())


def test_what_is_missing_is_said_and_not_drawn_as_a_number(tmp_path: Path, seen: list[Facts]) -> None:
    runs = [r for r in grid(seeds=[1]) if (r.config["K"], r.config["J"]) not in ((2, 4), (8, 64))]
    runs += [run("algorithm=localsgd", "K=2", "J=4", "seed=1", status="unfinished")]
    draw(runs, tmp_path, FIRST)
    heat, lines, curves = seen
    assert sorted(text for text in heat.texts if not text[0].isdigit()) == ["none", "not run"]
    assert len(heat.texts) == 15 and "0.0" not in heat.texts
    assert any("no result" in title for title in lines.titles)
    assert not curves.texts and len(curves.lines) == 6
    told = captions(Results.of("mine", runs), Spec.of(FIRST, "mine"), COSTS)["curves"]
    assert "No result: J=4 (K=2)." in told


def test_panels_without_results_are_left_out_and_do_not_touch_the_others_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = looking(monkeypatch, lambda figure: [axis.get_ylim() for axis in figure.axes])
    done = [r for r in grid(seeds=[1]) if r.config["K"] != 8]
    for runs in (done, done + [run("algorithm=localsgd", "K=8", f"J={J}", "seed=1", status="unfinished") for J in (4, 8)]):
        draw(runs, tmp_path, {"figures": BLOCK["figures"][2:3]})
    assert limits[0] == limits[1] and len(limits[0]) == 4
    assert "No result yet, so no panel: K=8." in captions(Results.of("mine", runs), Spec.of(FIRST, "mine"), COSTS)["curves"]


def test_each_method_has_a_colour_of_its_own() -> None:
    named = {title for method in algorithms.values() for title in (method.label, *method.variants.values())}
    assert named == METHODS.keys()
    assert len(set(METHODS.values())) == len(METHODS)


def test_all_that_are_equally_good_by_validation_are_framed() -> None:
    runs = [run("algorithm=localsgd", f"K={K}", f"J={J}", acc=0.5 if J == 4 else 0.4) for K in (2, 4) for J in (4, 8)]
    (one,) = drawing.planned(Results.of("mine", runs), Spec.of({"figures": BLOCK["figures"][:1]}, "mine"), COSTS)
    assert one.shown.best == {(0, None): [(4, 2), (4, 4)]}


def test_local_steps_are_drawn_as_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = looking(monkeypatch, lambda figure: [axis.lines[0].get_drawstyle() for axis in figure.axes])
    runs = [run("algorithm=localsgd", f"J={J}", acc=0.1 * J) for J in (2, 4)]
    draw(runs, tmp_path, {"figures": [{"kind": "curves", "x": "samples", "y": ["J", "test/acc"], "color": "J"}]})
    assert looks == [["steps-post", "default"]]


SILENT: dict[str, Callable[[], list[Run]]] = {
    "none has finished": lambda: [run("algorithm=localsgd", f"J={J}", status="unfinished") for J in (4, 8)],
    "one evaluation": lambda: [run("algorithm=localsgd", points=1)],
    "identical": lambda: [run("algorithm=localsgd", f"J={J}") for J in (4, 8)],
    "no runs": list,
}


@pytest.mark.parametrize("how", SILENT)
def test_nothing_is_drawn_of_what_says_nothing(how: str, tmp_path: Path) -> None:
    assert draw(SILENT[how](), tmp_path, {"figures": [*BLOCK["figures"][:2], {"kind": "curves", "x": "samples", "y": "test/acc"}]}) == []
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_repeats_another_is_left_out_and_said(tmp_path: Path) -> None:
    block = {"figures": [{"kind": "curves", "name": x, "x": x, "y": "test/acc", "color": "J"} for x in ("round", "samples", "epoch")]}
    runs = [run("algorithm=localsgd", f"J={J}", acc=0.05 * J) for J in (4, 8)]
    assert draw(runs, tmp_path, block) == ["round"]
    assert "training samples and epochs" in captions(Results.of("mine", runs), Spec.of(block, "mine"), COSTS)["round"]


def test_a_narrowed_grid_is_drawn_without_what_does_not_vary(tmp_path: Path, seen: list[Facts]) -> None:
    assert draw(grid(seeds=[1], points=[(4, 4), (4, 16)]), tmp_path)[:3] == ["heat", "curves", "targets"]
    assert seen[0].width == COLUMN and "K=4" not in seen[1].titles


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    runs = grid(seeds=[1, 2], points=[(2, 4), (2, 8), (4, 4), (4, 8)])
    for name in ("one", "two"):
        draw(runs, tmp_path / name, {"figures": [BLOCK["figures"][0], {**BLOCK["figures"][1], "under": "heat"}]})
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_any_runs_are_drawn(tmp_path: Path) -> None:
    runs = [run("algorithm=localsgd", "K=4", acc=0.5), run("algorithm=centralized", "optimizer=adamw", "batch_size=32", acc=0.6)]
    assert {path.name for path in draw_runs(runs, COSTS, tmp_path)} == {"runs-curves.pdf", "runs-curves.png"}


def test_names_are_as_near_to_their_lines_as_there_is_room() -> None:
    places = apart([0.1, 0.11, 0.5, 0.52, 0.53], 0.1)
    assert np.all(np.diff(places) >= 0.1 - 1e-9)
    assert apart([0.1, 0.5], 0.1) == [0.1, 0.5]


def test_seeds_that_were_evaluated_after_other_samples_are_drawn_together(tmp_path: Path) -> None:
    """Where rounds differ in length, so do the numbers of rows."""
    first, second = run("algorithm=localsgd", "local_steps=loss"), run("algorithm=localsgd", "local_steps=loss", "seed=1")
    runs = [first, dataclasses.replace(second, rows=[second.rows[0], second.rows[-1]])]
    assert draw(runs, tmp_path, {"figures": [{"kind": "curves", "x": "samples", "y": "test/acc"}]}) == ["curves"]
