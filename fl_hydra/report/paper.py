"""The paper that a student goes on with: `report.tex` in two columns, its numbers, its references, and room for the authors' words.

The class is IEEEtran, as Debian's texlive-publishers and Overleaf have it: a conference's captions, columns and bibliography without a
package of our own. What is generated is written anew each time; what authors write lies in `authors.yaml` and `words/*.tex`, which are
written once and never again.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fl_hydra.errors import UserError, require
from fl_hydra.files import read_file, write_atomically
from fl_hydra.report.axes import AXES
from fl_hydra.report.cost import CostTable
from fl_hydra.report.latex import code, escaped
from fl_hydra.report.results import Results
from fl_hydra.report.sentences import as_macros, numbers, sentences
from fl_hydra.report.spec import FigureSpec, Spec
from fl_hydra.report.tables import Table, as_latex, costs_table, results_table
from fl_hydra.report.tuned import chosen_of

BASE = {
    "a": ("centralized", "large_batch", "localsgd", "slowmo", "outer"),
    "b": ("schedules", "fedavg", "participation", "heterogeneity", "shakespeare"),
}
"""The sections that each track of the assignment asks for, in its order."""

FURTHER = {"a": ("hierarchical", "decentralized", "asynchronous", "local_steps", "learning_rate"), "b": ()}
"""Those that belong to a track's own contribution. A section of another name is the user's own, in both."""

TITLES = {"a": "Distributed Learning", "b": "Federated Learning", None: "Distributed and Federated Learning"}

CITED: Mapping[str | None, Sequence[int]] = {
    "a": (11, *range(16, 24), 25, 26),
    "b": (*range(1, 6), *range(7, 16), 24, *range(27, 33)),
    None: (*range(1, 6), *range(7, 33)),
}
"""The assignment's references of each track."""

MOST_PAGES = 6
"""Of the 8 that are allowed: the others are the authors'."""

WIDE = 300.0
"""Points of width beyond which a figure goes over both columns, which are 252 points wide."""

REFERENCES = Path(__file__).resolve().parents[2] / "conf" / "references.bib"

AUTHORS = """# Of report.tex. Written once: what you change here stays.
title: ""  # nothing: the track's
authors:
  - {name: Name Surname, id: s000000}
"""

WORDS = {
    "abstract": "What you asked, what you did, what came out.",
    "introduction": "Motivation, the literature, and what is yours in this report.",
    "contribution": "Your own contribution: the problem, what you do differently from existing approaches and why, and how it was tested.",
    "conclusion": "What the results say together, and what they do not.",
}
"""Parts that are the authors' alone, and what belongs there."""


@dataclass(frozen=True)
class _Size:
    """How much is shown of a section."""

    rows: int
    figures: int
    costs: bool


SIZES = (_Size(12, 4, True), _Size(8, 3, True), _Size(6, 2, True), _Size(5, 1, True), _Size(4, 1, False), _Size(3, 0, False))
"""From all that may be of use to what fits into few pages: the first that does is taken."""


def write_paper(
    sections: Sequence[tuple[Results, Spec]],
    table: CostTable,
    target: Path,
    track: str | None = None,
    captions: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write report.tex with all that it needs, and report.pdf where LaTeX is installed; the files.

    Args:
        sections: with what is shown of them; those of another track are left out.
        table: of networks and devices.
        target: the folder, with the sections' figures as SECTION-NAME.pdf: those that are there are included.
        track: `a` or `b`; None: both.
        captions: of figures, by the stems of their files.

    Raises:
        UserError: there is no such track; authors.yaml cannot be read; LaTeX refuses the text, or a line of it is too wide.
        OSError: a file cannot be written.
    """
    require(track in (None, *BASE), f"track={track}: choose {' or '.join(BASE)}")
    target.mkdir(parents=True, exist_ok=True)
    shown = [each for each in sections if _part(each[0].name, track)]
    _write_once(target, [results.name for results, _ in shown])
    written = _put(target / "references.bib", read_file(REFERENCES).decode())
    found = {name: text for results, spec in shown for name, text in numbers(results, spec, table).items()}
    written += _put(target / "numbers.tex", _macros(found))
    compiler = _compiler()
    for size in SIZES if compiler else SIZES[2:3]:
        paper = _paper(shown, table, target, track, captions or {}, size)
        written_now = _put(target / "report.tex", paper)
        if compiler is None:
            print(f"{target / 'report.tex'} is there to read; no LaTeX (pdflatex, bibtex, IEEEtran) is installed to make a PDF of it")
            return [*written, *written_now]
        pages, overfull = _compile(target)
        if pages <= MOST_PAGES or size is SIZES[-1]:
            break
    require(not overfull, f"{target / 'report.tex'}: {overfull[0] if overfull else ''}; report.pdf shows where; shorten what is there")
    if pages > MOST_PAGES:
        print(f"{target / 'report.pdf'} has {pages} pages: at most {MOST_PAGES} of the 8 are meant to be generated; name fewer sections")
    return [*written, *written_now, target / "report.pdf"]


def _part(section: str, track: str | None) -> str | None:
    """`base` or `further`; None: of another track."""
    name = re.sub("-(smoke|short)$", "", section)
    tracks = [track] if track else list(BASE)
    if any(name in BASE[each] for each in tracks):
        return "base"
    of_another = any(name in (*BASE[each], *FURTHER[each]) for each in BASE if each not in tracks)
    return None if of_another else "further"


def _write_once(target: Path, names: Sequence[str]) -> None:
    """What is the authors' to fill in, where it is not there yet."""
    words = target / "words"
    words.mkdir(exist_ok=True)
    files = {target / "authors.yaml": AUTHORS}
    files |= {words / f"{name}.tex": f"\\room{{{hint}}}\n" for name, hint in WORDS.items()}
    files |= {
        words / f"{name}.tex": "\\room{Your reading of these results: why they may be so, and what the literature says.}\n"
        for name in names
    }
    for path, text in files.items():
        if not path.exists():
            write_atomically(path, text.encode())


def _put(path: Path, text: str) -> list[Path]:
    write_atomically(path, text.encode())
    return [path]


def _macros(found: Mapping[str, str]) -> str:
    r"""\N{NAME} for each number; an unknown name prints ?? and is in the log, so that words stay readable when runs go."""
    lines = [
        r"% \N{SECTION/SETTING/FIGURE/mean}, .../deviation, .../n: for your own words, too.",
        r"\newcommand{\setN}[2]{\expandafter\def\csname N:#1\endcsname{#2}}",
        r"\newcommand{\N}[1]{\ifcsname N:#1\endcsname\csname N:#1\endcsname\else\textbf{??}\typeout{No number #1}\fi}",
    ]
    return "\n".join([*lines, *(rf"\setN{{{name}}}{{{_signed(text)}}}" for name, text in found.items())]) + "\n"


def _signed(text: str) -> str:
    return f"${text}$" if text[:1] in "+-" else text


PREAMBLE = r"""% Generated: what you change here is written over. Your words are in authors.yaml and words/.
\documentclass[conference]{IEEEtran}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage{amsmath,booktabs,graphicx,xcolor,cite}
\input{numbers}
\newcommand{\room}[1]{\par\noindent\colorbox{black!8}{\parbox{\dimexpr\columnwidth-2\fboxsep}{\footnotesize\itshape Authors: #1}}\par}
\IEEEoverridecommandlockouts
\emergencystretch=3em
\hbadness=10000
\sloppy
"""


def _paper(
    sections: Sequence[tuple[Results, Spec]], table: CostTable, target: Path, track: str | None, captions: Mapping[str, str], size: _Size
) -> str:
    title, authors = _authors(target / "authors.yaml", track)
    lines = [PREAMBLE, rf"\title{{{title}}}", rf"\author{{{authors}}}", r"\begin{document}", r"\maketitle"]
    lines += [r"\begin{abstract}", r"\input{words/abstract}", r"\end{abstract}"]
    lines += [r"\section{Introduction}", r"\input{words/introduction}", rf"Background: {_cited(track)}.", *_setup(sections)]
    order = [name for each in ([track] if track else BASE) for name in BASE[each]]
    base = [each for each in sections if _part(each[0].name, track) == "base"]
    base.sort(key=lambda each: order.index(re.sub("-(smoke|short)$", "", each[0].name)))
    trained = {re.sub("-(smoke|short)$", "", results.name) for results, _ in base}
    for results, spec in base:
        lines += _section(results, spec, table, target, captions, size)
    missing = [name for name in order if name not in trained]
    if missing:
        lines.append(rf"\section{{Not trained yet}} {', '.join(code(f'make {name}') for name in missing)}.")
    lines += [r"\section{Personal contribution}", r"\input{words/contribution}"]
    for results, spec in sections:
        if _part(results.name, track) == "further":
            lines += _section(
                results,
                spec,
                table,
                target,
                captions,
                replace(size, rows=min(size.rows, 5), figures=min(size.figures, 1), costs=False),
                sub=True,
            )
    lines += [r"\section{Conclusion}", r"\input{words/conclusion}"]
    lines += [r"\bibliographystyle{IEEEtran}", r"\bibliography{references}", r"\end{document}"]
    return "\n".join(lines) + "\n"


def _cited(track: str | None) -> str:
    return rf"\cite{{{','.join(f'ref{number}' for number in CITED[track])}}}"


def _authors(path: Path, track: str | None) -> tuple[str, str]:
    """The title and the authors with their student IDs."""
    import yaml  # type: ignore[import-untyped]

    try:
        content = yaml.safe_load(read_file(path))
        named = [(str(each["name"]), str(each["id"])) for each in content["authors"]]
        title = str(content.get("title") or TITLES[track])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(
            f"{path}: cannot be read ({type(error).__name__}); needed are authors: [{{name: ..., id: ...}}], and title"
        ) from error
    blocks = [rf"\IEEEauthorblockN{{{escaped(name)}}}\IEEEauthorblockA{{Student ID {escaped(number)}}}" for name, number in named]
    return escaped(title), r"\and ".join(blocks)


def _setup(sections: Sequence[tuple[Results, Spec]]) -> list[str]:
    """How data were divided, how hyper-parameters were searched, how runs were repeated and tested."""
    configurations = [run.config for results, _ in sections for setting in results.settings for run in setting.runs]
    lines = [r"\section{Experimental setup}"]
    for name in dict.fromkeys(str(config["dataset"]["name"]) for config in configurations):
        of_it = [config for config in configurations if config["dataset"]["name"] == name]
        parts = {f"{100 * config['dataset']['validation']:g}" for config in of_it if "validation" in config["dataset"]}
        models = sorted({str(config["model"]["name"]) for config in of_it})
        said = f"{AXES['dataset'].text(name)}, with the model {', '.join(models)}"
        said += f": {' or '.join(sorted(parts))} % of the training set is kept for validation, stratified by label" if parts else ""
        lines.append(escaped(f"{said}."))
    lines.append(
        escaped(
            "Validation chooses and the test set reports; figures are those of the final models, as means ± sample standard deviations "
            "over seeds. Seeds decide shards, initial weights, cohorts and batches. A difference is said to hold if Welch's t test over at "
            "least three seeds of each side, adjusted by Holm over all that its section compares, has p < 0.05; all others are undecided. "
            "The number of seeds that would decide one takes what was observed as true (power 0.8)."
        )
    )
    return [*lines, *sorted({_search(results) for results, _ in sections})]


def _search(results: Results) -> str:
    """How the hyper-parameters of a section were found, in a sentence."""
    found = [chosen for setting in results.settings for run in setting.runs if (chosen := chosen_of(run.folder))]
    if not found:
        return "Where a caption says so, hyper-parameters were not searched: they are the program's own or those on the axes."
    keys = sorted({key for chosen in found for key in chosen["values"]})
    trials = sorted({int(chosen["trials"]) for chosen in found})
    seeds = sorted({seed for chosen in found for seed in chosen["seeds"]})
    return escaped(
        f"In {results.name}, {', '.join(keys)} were searched by {found[0]['objective']} in {trials[0]}"
        f"{f' to {trials[-1]}' if len(trials) > 1 else ''} trials of seed {', '.join(map(str, seeds))}, which no result has."
    )


def facts(results: Results) -> str:
    """What a caption says of a section: data and their division, seeds, and how hyper-parameters were searched."""
    if not results.settings:
        return "No run is known."
    configurations = [setting.config for setting in results.settings]
    said = []
    for name in ("dataset", "sharding"):
        said.append(" and ".join(dict.fromkeys(AXES[name].text(AXES[name].of(config)) for config in configurations)))
    numbers_ = sorted({len(setting.finished) for setting in results.drawn}) or [0]
    seeds = f"{numbers_[0]}" if len(numbers_) == 1 else f"{numbers_[0]} to {numbers_[-1]}"
    budget = sorted({int(config["budget"]) for config in configurations})
    budgets = f"{budget[0]:,}" if len(budget) == 1 else f"{budget[0]:,} to {budget[-1]:,}"
    tuned = any(chosen_of(run.folder) for setting in results.settings for run in setting.runs)
    words = "hyper-parameters searched" if tuned else "hyper-parameters not searched"
    return f"{said[0]}, {said[1]} shards, {budgets} samples, n={seeds}, {words}."


def _section(
    results: Results, spec: Spec, table: CostTable, target: Path, captions: Mapping[str, str], size: _Size, sub: bool = False
) -> list[str]:
    level = "subsection" if sub else "section"
    lines = [rf"\{level}{{{escaped(spec.title)}}}\label{{sec:{results.name}}}"]
    lines += [rf"\emph{{{escaped(' '.join(spec.questions))}}}\par"] if spec.questions else []
    lines += [" ".join(map(as_macros, paragraph)) + "\n" for paragraph in sentences(results, spec, table)]
    columns = ("val/acc", "test/acc", "test/loss", "round")
    if results.drawn:
        shown = results_table(results, spec, table, size.rows, columns)
        lines.append(as_latex(_for_paper(shown, results), results.name, starred=len(shown.header) > 6))
        costs = costs_table(results, spec, table, size.rows)
        sends = any(run.rows[-1].get("messages") for setting in results.drawn for run in setting.finished)
        tells = len(costs.rows) > 1 and len(costs.header) > 1 + len(results.axes)  # else all cost the same, or there is nothing to compare
        if size.costs and sends and tells:
            lines.append(as_latex(replace(_for_paper(costs, results), commands=(), hashes=()), f"{results.name}-cost"))
    figures = [(figure, target / f"{results.name}-{figure.name}.pdf") for figure in spec.figures]
    for figure, path in [each for each in figures if each[1].exists()][: size.figures]:
        caption = captions.get(path.stem) or _caption(figure, spec)
        lines.append(_figure(path, f"{caption.rstrip('.')}. {facts(results)}"))
    return [*lines, rf"\input{{words/{results.name}}}"]


def _for_paper(table: Table, results: Results) -> Table:
    """With the facts in its caption, and below it only what this table alone can say: all else is in its Markdown."""
    said = [note for note in table.notes if note.startswith(("Bold", "In no mean", "In all rows", "The "))]
    return replace(table, caption=f"{table.caption}. {facts(results)}", notes=said, commands=table.commands[-1:])


def _caption(figure: FigureSpec, spec: Spec) -> str:
    what = figure.value if figure.kind == "heat" else ", ".join(figure.y) or figure.kind
    over = f" over {figure.x}" + (f" and {', '.join(figure.y)}" if figure.kind == "heat" else "") if figure.x else ""
    return f"{spec.title}: {what}{over}"


def _figure(path: Path, caption: str) -> str:
    wide = _width(path) > WIDE
    kind, width = ("figure*", r"\textwidth") if wide else ("figure", r"\columnwidth")
    drawn = rf"\sbox0{{\includegraphics{{{path.name}}}}}\ifdim\wd0>{width}\includegraphics[width={width}]{{{path.name}}}\else\usebox0\fi"
    return f"\\begin{{{kind}}}[tbp]\n\\centering\n{drawn}\n\\caption{{{escaped(caption)}}}\n\\label{{fig:{path.stem}}}\n\\end{{{kind}}}"


def _width(path: Path) -> float:
    """Of a page of a PDF, in points of 1/72 inch."""
    box = re.search(rb"/MediaBox\s*\[\s*([-\d.]+)\s+[-\d.]+\s+([-\d.]+)", read_file(path))
    return float(box[2]) - float(box[1]) if box else 0.0


def _compiler() -> str | None:
    """pdflatex, if all that is needed is there."""
    if any(shutil.which(name) is None for name in ("pdflatex", "bibtex", "kpsewhich")):
        return None
    asked = subprocess.run(["kpsewhich", "IEEEtran.cls", "IEEEtran.bst", "booktabs.sty"], capture_output=True, text=True, check=False)
    return shutil.which("pdflatex") if len(asked.stdout.split()) == 3 else None


def _compile(target: Path) -> tuple[int, list[str]]:
    """Make report.pdf, in a folder of its own for all that LaTeX leaves; the number of pages, and a line for each box that is too wide.

    Raises:
        UserError: LaTeX stopped.
    """
    environment: dict[str, Any] = {**os.environ, "max_print_line": "1000", "BIBINPUTS": f"{target.resolve()}:"}
    with tempfile.TemporaryDirectory() as folder:
        latex = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", f"-output-directory={folder}", "report.tex"]
        for command, where in ((latex, target), (["bibtex", "report"], Path(folder)), (latex, target), (latex, target)):
            subprocess.run(command, cwd=where, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
            log = (Path(folder) / "report.log").read_text(errors="replace") if (Path(folder) / "report.log").exists() else "! no log"
            wrong = re.search(r"^! .*$(?:\n(?!l\.).*)*(?:\nl\.\d+.*)?", log, re.MULTILINE)
            require(wrong is None, f"{target / 'report.tex'}: LaTeX stops: {' '.join(wrong[0].split())[:300] if wrong else ''}; mend that")
        write_atomically(target / "report.pdf", (Path(folder) / "report.pdf").read_bytes())
    pages = re.search(r"Output written on .*?\((\d+) page", log)
    return int(pages[1]) if pages else 0, re.findall(r"^Overfull \\[hv]box .*$", log, re.MULTILINE)
