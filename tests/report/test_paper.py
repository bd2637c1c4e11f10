"""The tables, sentences and paper of outputs: right for what is there, clear about what is not."""

from __future__ import annotations

import csv
import json
import math
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fl_hydra.errors import UserError
from fl_hydra.report.__main__ import main
from fl_hydra.report.cost import read_table
from fl_hydra.report.latex import join, key
from fl_hydra.report.paper import BASE, FURTHER, MOST_PAGES, has_latex, write_paper
from fl_hydra.report.results import Results, Setting
from fl_hydra.report.sentences import as_text, sentences
from fl_hydra.report.spec import Spec
from fl_hydra.report.tables import results_table
from fl_hydra.runs.identity import describe
from fl_hydra.runs.reading import Run, read_run
from tests.support.make import experiment
from tests.support.synthetic import rows, section, write_run, write_section

REPORT = {"title": "Mine", "compare": [{"axis": "J", "within": ["K"]}]}

needs_latex = pytest.mark.skipif(not has_latex(), reason="no LaTeX is installed")


def config(*overrides: str) -> dict[str, Any]:
    return describe(experiment("algorithm=localsgd", *overrides))


def reported(outputs: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit status of a report on these outputs, on a machine without LaTeX."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", ["report", "--outputs", str(outputs), *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def macros(path: Path) -> dict[str, str]:
    found = dict(re.findall(r"\\setN\{(.*?)\}\{(.*?)\}\n", path.read_text()))
    return {name: text.strip("$") for name, text in found.items()}


def expanded(tex: str, values: dict[str, str]) -> str:
    return re.sub(r"\\N\{(.*?)\}", lambda match: values[match[1]], tex)


def latex_rows(tex: str) -> list[list[str]]:
    """Of the first table, as text."""
    body = tex.split(r"\midrule")[1].split(r"\bottomrule")[0]
    plain = re.sub(r"\\textbf\{(.*?)\}", r"\1", body).replace(r"$\pm$", "±").replace("{}", "")
    return [[cell.strip() for cell in line.split("&")] for line in plain.split(r"\\") if line.strip()]


def markdown_rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().strip("*") for cell in line.strip("|").split("|")] for line in lines]


def test_numbers_in_all_files_are_those_of_metrics_jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked out anew from the files of the runs, with the standard library alone."""
    grid_points = [(K, J, seed) for K in (2, 4) for J in (4, 8) for seed in (1, 2, 3)]
    folders = [write_run(config(f"K={K}", f"J={J}", f"seed={seed}"), tmp_path) for K, J, seed in grid_points]
    write_section(tmp_path, "mine", folders, REPORT)
    assert reported(tmp_path, monkeypatch) == 0
    report = tmp_path / "report"
    finals: dict[tuple[int, int], list[dict[str, float]]] = {}
    for (K, J, _), folder in zip(grid_points, folders, strict=True):
        row = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
        sent = row["averages"] * 2 * (K - 1) * row["bytes_up"] / (row["messages"] / 2) / K  # ring and tree put as much on the wire
        n = row["bytes_up"] / (row["messages"] / 2)
        ring, tree = 2 * (K - 1) * (0.05 + 8 * n / K / 1e8), 2 * math.ceil(math.log2(K)) * (0.05 + 8 * n / 1e8)
        row |= {"bytes": sent / 1e6, "WAN": row["seconds"] + row["averages"] * min(ring, tree), "GFLOP": row["flops"] / 1e9}
        finals.setdefault((K, J), []).append(row)

    def of(point: tuple[int, int], name: str, scale: float = 1.0) -> tuple[float, float]:
        values = [scale * row[name] for row in finals[point]]
        return statistics.mean(values), statistics.stdev(values)

    values = macros(report / "numbers.tex")
    with open(report / "mine.csv") as file:
        table = {(int(row["K"]), int(row["J"])): row for row in csv.DictReader(file)}
    with open(report / "mine-cost.csv") as file:
        costs = {(int(row["K"]), int(row["J"])): row for row in csv.DictReader(file)}
    markdown, tex = markdown_rows((report / "mine.md").read_text()), latex_rows((report / "mine.tex").read_text())
    in_paper = latex_rows(expanded((report / "report.tex").read_text().split(r"\caption{Mine: final models")[1], values))
    overview = latex_rows(expanded((report / "report.tex").read_text().split(r"\caption{Computation and communication")[1], values))
    assert len(table) == len(costs) == len(markdown) == len(tex) == len(in_paper) == len(finals)
    for place, point in enumerate(finals):
        K, J = point
        name = f"mine/LocalSGD K={K} J={J}"
        written = [f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in (of(point, "val/acc", 100), of(point, "test/acc", 100))]
        mean, deviation = of(point, "test/loss")
        written.append(f"{mean:.4f} ± {deviation:.4f}")
        for found in (markdown[place], tex[place], in_paper[place]):
            assert found[:5] == [str(K), str(J), *written]
        for figure, scale in (("val/acc", 100), ("test/acc", 100), ("test/loss", 1)):
            mean, deviation = of(point, figure, scale)
            assert float(table[point][f"{figure} mean"]) == pytest.approx(mean)
            assert float(table[point][f"{figure} deviation"]) == pytest.approx(deviation)
            assert table[point][f"{figure} n"] == values[f"{name}/{figure.replace('/', ':')}/n"] == "3"
        for column, figure in (("bytes", "bytes"), ("WAN", "WAN"), ("flops", "GFLOP"), ("round", "round")):
            mean, _ = of(point, figure)
            assert float(costs[point][f"{column} mean"]) == pytest.approx(mean)
            assert float(values[f"{name}/{column}/mean"]) == pytest.approx(mean, rel=0.005)

    best = max(finals, key=lambda point: of(point, "val/acc")[0])
    cheapest = min(finals, key=lambda point: of(point, "bytes")[0])
    for row, point in zip(overview, dict.fromkeys((best, cheapest)), strict=True):
        assert row[1] == "LocalSGD" and "{:.2f} ± {:.2f}".format(*of(point, "test/acc", 100)) in row
        assert float(row[-1]) == pytest.approx(of(point, "WAN")[0], rel=0.005)

    def p(K: int) -> tuple[float, float]:
        """The difference between J=4 and J=8, and p of 2 degrees of freedom, of which there is a closed form."""
        (one, s), (other, r) = of((K, 4), "test/acc", 100), of((K, 8), "test/acc", 100)
        t = abs(one - other) / math.sqrt(s * s / 3 + r * r / 3)
        return one - other, 1 - t / math.sqrt(t * t + 2)

    tested = {K: p(K) for K in (2, 4)}
    smaller, larger = sorted(p for _, p in tested.values())
    adjusted = {smaller: min(1, 2 * smaller), larger: max(min(1, 2 * smaller), larger)}  # Holm of two
    told = max(tested, key=lambda K: abs(tested[K][0]))
    said = "below 0.0001" if adjusted[tested[told][1]] < 1e-4 else f"= {adjusted[tested[told][1]]:.4f}"
    text = (report / "mine-text.md").read_text()
    assert f"The largest is LocalSGD with K={told} and J=4 against J=8: {tested[told][0]:+.2f} points" in text
    assert f"adjusted p {said}" in text
    assert values["mine/compare1/largest/difference"] == f"{tested[told][0]:+.2f}"
    assert values["mine/compare1/hold"] == str(sum(each < 0.05 for each in adjusted.values()))


def test_what_is_missing_is_said_and_in_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One setting with a damaged run and one that still runs, one of one seed, one of none; and no LaTeX."""
    here = [write_run(config("K=2", "J=4", f"seed={seed}"), tmp_path) for seed in (1, 2, 3)]
    here += [write_run(config("K=2", "J=4", "seed=4"), tmp_path, status="unfinished")]
    (here[2] / "metrics.jsonl").write_text((here[2] / "metrics.jsonl").read_text().replace("0", "1", 1))
    one = write_run(config("K=2", "J=8", "seed=1"), tmp_path)
    none = write_run(config("K=2", "J=16", "seed=1"), tmp_path, status="unfinished")
    write_section(tmp_path, "mine", [*here, one, none], REPORT)
    assert reported(tmp_path, monkeypatch, "mine", "--track", "a") == 0
    ended = capsys.readouterr()
    assert len([line for line in ended.out.splitlines() if "no LaTeX" in line]) == 1
    assert [line.partition(": ")[0] for line in ended.err.splitlines()] == ["in no mean of mine"] * 3
    report = tmp_path / "report"
    with open(report / "mine.csv") as file:
        table = {int(row["J"]): row for row in csv.DictReader(file)}
    finals = [100 * json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["test/acc"] for folder in here[:2]]
    assert float(table[4]["test/acc mean"]) == pytest.approx(statistics.mean(finals)) and table[4]["test/acc n"] == "2"
    assert table[8]["test/acc deviation"] == "" and table[8]["test/acc n"] == "1"
    assert table[16]["test/acc mean"] == "" and table[16]["test/acc n"] == "0"
    values = macros(report / "numbers.tex")
    assert "mine/LocalSGD K=2 J=8/test:acc/deviation" not in values and not any("J=16" in name for name in values)
    text = (report / "mine-text.md").read_text()
    assert "The other 3 of 6 runs are in no figure: 1 damaged, 2 unfinished." in text
    assert "± nan" not in text and "it holds" not in text
    (row,) = [row for row in markdown_rows((report / "mine.md").read_text()) if row[0] == "16"]
    assert not any(row[1:6]) and row[-1] == "0 of 1 ended, 1 unfinished"  # nothing, not zero
    assert "make localsgd" in re.sub(r"\\allowbreak\{\}|\\texttt\{", "", (report / "report.tex").read_text())
    assert not (report / "report.pdf").exists()


def test_a_report_of_nothing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert reported(tmp_path, monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: no run was asked for with section=NAME and outputs={tmp_path}")


def test_what_was_searched_is_said_with_space_trials_pruner_budget_seeds_and_objective(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study of one section whose best values runs of another took up."""
    chosen = {"where": {"optimizer": "sgdm"}, "values": {"optimizer.lr": 0.023}, "objective": "val/acc", "value": 0.41}
    chosen |= {"study": "first-abc", "trials": 24, "seeds": [100], "date": "2026-01-01"}
    folders = [write_run(config("K=2", "J=4", f"seed={seed}"), tmp_path, chosen=chosen) for seed in (1, 2, 3)]
    write_section(tmp_path, "mine", folders, REPORT)
    trials = [{"number": n, "params": {"optimizer.lr": 0.1}, "state": "pruned" if n else "complete", "values": [0.4]} for n in range(24)]
    rate = {"name": "FloatDistribution", "attributes": {"low": 0.001, "high": 0.3, "log": True, "step": None}}
    pruner = {"_target_": "optuna.pruners.SuccessiveHalvingPruner"}
    question = {"fixed": {"budget": 270_000}, "space": {"optimizer.lr": rate}, "seeds": [100], "pruner": pruner, "rungs": [1 / 9, 1 / 3]}
    study: dict[str, Any] = {
        "study": "first-abc",
        "section": "first",
        "where": {"optimizer": "sgdm"},
        "question": question,
        "sampler": "TPESampler",
    }
    study |= {"together": 6, "objectives": ["val/acc"], "best": [0], "trials": trials}
    (tmp_path / "studies" / "first-abc").mkdir(parents=True)
    (tmp_path / "studies" / "first-abc" / "study.json").write_text(json.dumps(study))
    assert reported(tmp_path, monkeypatch) == 0
    said = (
        "for SGDM, learning rate (0.001 to 0.3, log) was searched in 24 trials by a tree-structured Parzen estimator (23 given up after "
        "1/9 and 1/3 of the budget by successive halving) of up to 270,000 training samples with seed 100; the final model's validation "
        "accuracy decided."
    )
    report = tmp_path / "report"
    assert said in (report / "mine-tuned.md").read_text()
    paper = (report / "report.tex").read_text()
    assert said in paper and "Hyper-parameters searched (Section II)" not in paper and "hyper-parameters searched (Section II)" in paper
    values = macros(report / "numbers.tex")
    assert values["mine/tuned/optimizer=sgdm/optimizer.lr"] == "0.023"
    assert latex_rows(expanded(paper.split(r"\label{tab:tuned}")[1], values)) == [["SGDM", "learning rate", "0.023", "0.41"]]
    with open(report / "mine-tuned.csv") as file:
        (row,) = csv.DictReader(file)
    assert (row["value"], row["trials"], row["pruned"], row["budget"]) == ("0.023", "24", "23", "270000")


def results(name: str, configurations: Sequence[dict[str, Any]]) -> Results:
    return Results.of(name, [Run(Path(f"run-{place}"), each, list(rows(each)), "finished") for place, each in enumerate(configurations)])


@needs_latex
def test_any_text_is_set_and_a_line_that_is_too_wide_is_a_mistake(tmp_path: Path) -> None:
    odd = r"50 % & {more} #1_x ~ ^ \alpha $5 < γ ± 日本 “é”"
    spec = Spec(odd, (), (odd,))
    (tmp_path / "authors.yaml").write_text(f"title: '{odd}'\nauthors:\n  - {{name: '{odd}', id: 's_1%'}}\n  - {{name: O'Brien, id: s2}}\n")
    (tmp_path / "words").mkdir()
    words = tmp_path / "words" / "odd_name-50..tex"  # LaTeX would stop at a % in the name of a file
    words.write_text("My own words: \\N{no such number}, 5\\,\\%.\n")
    section = results("odd_name-50%", [config("K=2", f"J={J}", f"seed={seed}") for J in (4, 8) for seed in (1, 2)])
    written = write_paper([(section, spec)], read_table(), tmp_path, "a")
    assert tmp_path / "report.pdf" in written and (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert words.read_text().startswith("My own words")
    words.write_text(f"\\mbox{{{'wide ' * 30}}}\n")
    with pytest.raises(UserError, match=r"^[^\n]*Overfull \\hbox[^\n]*shorten what is there$"):
        write_paper([(section, spec)], read_table(), tmp_path, "a")
    words.write_text("\\nosuchcommand\n")
    with pytest.raises(UserError, match=r"^[^\n]*LaTeX stops: ! Undefined control sequence[^\n]*$"):
        write_paper([(section, spec)], read_table(), tmp_path, "a")


@needs_latex
def test_the_paper_of_all_sections_at_full_size_has_at_most_six_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Track A, which has most of them: their true grids, three seeds each, and a figure for each that is asked for."""
    import matplotlib.figure

    narrow, wide = (matplotlib.figure.Figure(figsize=(width, 2.6)) for width in (3.3, 6.9))
    sections = []
    for name in (*BASE["a"], *FURTHER["a"]):
        full, spec = section(name)
        sections.append((full, spec))
        for figure in spec.figures:
            (wide if figure.facet else narrow).savefig(tmp_path / f"{name}-{figure.name}.pdf")
    write_paper(sections, read_table(), tmp_path, "a")
    assert "pages" not in capsys.readouterr().out  # it says so if there are more than MOST_PAGES
    count = len(re.findall(rb"/Type\s*/Page\b", (tmp_path / "report.pdf").read_bytes()))
    assert count in (0, *range(1, MOST_PAGES + 1))  # 0: pages lie in compressed objects
    tex = (tmp_path / "report.tex").read_text()
    assert all(f"sec:{results.name}" in tex for results, _ in sections) and r"\label{tab:costs}" in tex


def test_a_finished_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    """What tests make up is what the program reads."""
    folder = write_run(config("K=2", "J=4"), tmp_path)
    assert read_run(folder).finished and read_run(write_run(config("K=2", "J=8"), tmp_path, "unfinished")).status == "unfinished"


def test_every_number_has_a_macro_of_its_own() -> None:
    names = ["mygrid", "my_grid", "my grid", "my  grid", "my,grid", "my.grid", "my%grid", "my!25!grid", "my/grid", "my:grid", "mýgrid"]
    assert len({key(name, "x") for name in names} | {key("my", "grid", "x")}) == len(names) + 1
    assert all(re.fullmatch(r"[A-Za-z0-9_=.,+:!/ -]*", key(name)) and "  " not in key(name) for name in names)
    found = {"mine/x": "1"}
    join(found, {"mine/x": "1", "mine/y": "2"})
    with pytest.raises(UserError, match="1 and 2: two numbers have the same name"):
        join(found, {"mine/x": "2"})


def test_what_is_said_of_runs_and_settings_is_so(tmp_path: Path) -> None:
    """A reason with a folder in it is told as it is, a learning rate of each optimizer's own is not common, and an axis is known."""
    configurations = [config("K=2", "J=4", f"optimizer={name}", f"seed={seed}") for name in ("sgdm", "adamw") for seed in (1, 2)]
    mine = results("mine", configurations)
    failed = Run(Path("a/b/run-1234567890"), config("K=2", "J=4"), [], "unfinished", "it failed, as /tmp/x/error.txt says")
    table = results_table(Results("mine", [*mine.settings, Setting("mine", [failed])]), Spec("Mine", ()), read_table())
    assert "In no mean: run-1234567890: unfinished (it failed, as /tmp/x/error.txt says)." in table.notes
    (told,) = [as_text(each) for each in sentences(mine, Spec("Mine", ()), read_table())[0] if as_text(each).startswith("Common")]
    assert "K=2" in told and "batch size 64" in told and not re.search("SGDM|AdamW|learning rate| or ", told)
    lines = {"kind": "lines", "x": "J", "y": "test/acc", "color": "division"}
    assert Spec.of({"figures": [lines]}, "mine").unknown_axes(mine) == []
