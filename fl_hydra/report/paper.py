"""The draft of a paper: `report.tex` in two columns, with its numbers, references, and space for the authors' words.

The class is IEEEtran, which Debian's texlive-publishers and Overleaf provide: a conference's captions, columns and bibliography without
a package of our own. Generated files are rewritten each time; the authors write in `authors.yaml` and `words/*.tex`, which are created
once and never overwritten.
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
from fl_hydra.report.latex import escaped, join, label
from fl_hydra.report.results import Results
from fl_hydra.report.sentences import Sentence, answers, as_macros, numbers
from fl_hydra.report.spec import FigureSpec, Spec
from fl_hydra.report.tables import as_latex, overview_table, results_table, tuned_numbers, tuned_table
from fl_hydra.report.tuned import Search, how, searches
from fl_hydra.report.wording import DATA, DIVISIONS, HELD_OUT, MODELS, capital, judged_on, listed, plain_name
from fl_hydra.runs.reading import model_of

BASE = {
    "a": ("centralized", "large_batch", "localsgd", "slowmo", "outer"),
    "b": ("schedules", "fedavg", "participation", "heterogeneity", "shakespeare"),
}
"""The sections that each track of the assignment requires, in its order."""

FURTHER = {
    "a": ("hierarchical", "decentralized", "asynchronous", "local_steps", "learning_rate"),
    "b": ("algorithms", "architectures", "compression", "personalised"),
}
"""Sections of a track's own contribution. Sections with other names are the user's own, and belong to both tracks."""

TITLES = {"a": "Distributed Learning", "b": "Federated Learning", None: "Distributed and Federated Learning"}

BACKGROUND: Mapping[str, Mapping[str, Sequence[int]]] = {
    "a": {
        "large batches": (16, 17, 18),
        "local SGD": (19, 20),
        "outer optimizers": (21,),
        "asynchronous and decentralized training": (22, 23, 25),
        "rates and numbers of local steps": (26,),
        "the model": (11,),
    },
    "b": {
        "the federated setting": (2, 3, 10),
        "surveys": (7, 8, 9),
        "heterogeneity, by algorithms": (1, 4, 5),
        "by architectures": (12, 13, 14),
        "data and models": (11, 15),
        "client selection": (24,),
        "personalization": tuple(range(27, 33)),
    },
}
"""The assignment's references for each track, by topic."""

MOST_PAGES = 6
"""Pages with placeholders for the authors' words, of the 8 that are allowed; the others are for these words."""

ALL_PAGES = 8
"""Pages that the assignment allows."""

WIDE = 300.0
"""Width in points above which a figure spans both columns, each 252 points wide."""

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
    "costs": "Pros and cons of the alternatives, large batches and local methods among them, by what they cost.",
    "conclusion": "What the results say together, and what they do not.",
}
"""Parts that only the authors write, and what belongs there."""


NOTES = ("Bold", "In no mean", "In all rows", "The best", "Of each", "Personal figures")
"""How the notes of tables begin that the paper shows; the others are in the Markdown files."""

YOURS = "Your reading of these results: why they may be so, and what the literature says."
"""The same for a section."""


@dataclass(frozen=True)
class _Size:
    """How much the paper shows.

    rows, figures: of a section that the track requires. further_rows, further_figures: of any other. cheapest: whether the table of costs
    also has the setting of each method that communicates least.
    """

    rows: int
    figures: int
    further_rows: int
    further_figures: int
    cheapest: bool


SIZES = (
    _Size(12, 4, 8, 2, True),
    _Size(8, 3, 6, 1, True),
    _Size(6, 2, 5, 1, True),
    _Size(5, 1, 4, 1, True),
    _Size(6, 1, 4, 0, True),
    _Size(4, 1, 3, 0, False),
    _Size(4, 1, 0, 0, False),
    _Size(3, 0, 0, 0, False),
)
"""From the most to the least content: the first that fits is used. All have the sentences and the table of costs."""


@dataclass(frozen=True)
class _Content:
    """The contents of the paper. found: the searches of each section. captions: of figures, by the stems of their files. said: the
    paragraphs of each section, with the number of the question that each answers.
    """

    sections: Sequence[tuple[Results, Spec]]
    table: CostTable
    target: Path
    track: str | None
    captions: Mapping[str, str]
    found: Mapping[str, Sequence[Search]]
    said: Mapping[str, Sequence[tuple[int, Sequence[Sentence]]]]


def write_paper(
    sections: Sequence[tuple[Results, Spec]],
    table: CostTable,
    target: Path,
    track: str | None = None,
    captions: Mapping[str, str] | None = None,
    studies: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> list[Path]:
    """Write report.tex with all that it needs, and report.pdf if LaTeX is installed; returns the files.

    Args:
        sections: with their specs; those of another track are left out.
        table: of networks and devices.
        target: the folder, with the sections' figures as SECTION-NAME.pdf, which are included if they exist.
        track: `a` or `b`; None: both.
        captions: of figures, by the stems of their files.
        studies: by section, what its searches stored (:func:`fl_hydra.report.tuned.section_studies`).

    Raises:
        UserError: there is no such track; two numbers have the same name; authors.yaml cannot be read; LaTeX refuses the text, or a
            line of it is too wide.
        OSError: a file cannot be written.
    """
    require(track in (None, *BASE), f"track={track}: choose {' or '.join(BASE)}")
    target.mkdir(parents=True, exist_ok=True)
    shown = [each for each in sections if _part(each[0].name, track)]
    found = {results.name: searches(results, (studies or {}).get(results.name, ())) for results, _ in shown}
    said = {results.name: answers(results, spec, table) for results, spec in shown}
    content = _Content(shown, table, target, track, captions or {}, found, said)
    own = _write_once(target, [label(results.name) for results, _ in shown])
    written = _put(target / "references.bib", read_file(REFERENCES).decode())
    values: dict[str, str] = {}
    for results, _ in shown:
        join(values, numbers(results, [paragraph for _, paragraph in said[results.name]], table))
        join(values, tuned_numbers(results, found[results.name]))
    written += _put(target / "numbers.tex", _macros(values))
    for line in _untrained(content):
        print(f"{target / 'report.tex'}: {line}")
    if not has_latex():
        written += _put(target / "report.tex", _paper(content, SIZES[2]))
        print(f"{target / 'report.tex'} is there to read; no LaTeX (pdflatex, bibtex, IEEEtran) is installed to make a PDF of it")
        return written
    pages, overfull = _fit(content, own)
    require(not overfull, f"{target / 'report.tex'}: {overfull[0] if overfull else ''}; report.pdf shows where; shorten what is there")
    most = ALL_PAGES if own else MOST_PAGES
    if pages > most:
        why = f"at most {most} are meant to be{'' if own else ' generated, of the 8 that are allowed'}"
        instead = "TRACK=a and TRACK=b make one for each track" if track is None else "leave sections out"
        print(f"{target / 'report.pdf'} has {pages} pages: {why}; {'shorten your words, or ' if own else ''}{instead}")
    return [*written, target / "report.tex", target / "report.pdf"]


def _fit(content: _Content, own: bool) -> tuple[int, list[str]]:
    """Write as much as fits with placeholders for words, then with the authors' own words; returns pages and boxes that are too wide."""
    with tempfile.TemporaryDirectory() as folder:
        compiled = _Latex(content.target, Path(folder))
        for size in SIZES:
            paper = _paper(content, size)
            pages, overfull = compiled.pages(paper if not own else paper.replace(OWN_WORDS, ROOM_FOR_WORDS))
            if pages <= MOST_PAGES:
                break
        _put(content.target / "report.tex", paper)
        pages, overfull = compiled.pages(paper, last=True)
        write_atomically(content.target / "report.pdf", (Path(folder) / "report.pdf").read_bytes())
        return pages, overfull


def _part(section: str, track: str | None) -> str | None:
    """`base` or `further`; None for sections of another track."""
    name = plain_name(section)
    tracks = [track] if track else list(BASE)
    if any(name in BASE[each] for each in tracks):
        return "base"
    of_another = any(name in (*BASE[each], *FURTHER[each]) for each in BASE if each not in tracks)
    return None if of_another else "further"


def _write_once(target: Path, names: Sequence[str]) -> bool:
    """Create missing files for the authors to fill in; returns whether they have written anything."""
    words = target / "words"
    words.mkdir(exist_ok=True)
    files = {words / f"{name}.tex": hint for name, hint in WORDS.items()} | {words / f"{name}.tex": YOURS for name in names}
    own = False
    for path, hint in files.items():
        room = f"\\room{{{hint}}}\n".encode()
        if not path.exists():
            write_atomically(path, room)
        own |= read_file(path) != room
    if not (target / "authors.yaml").exists():
        write_atomically(target / "authors.yaml", AUTHORS.encode())
    return own


def _put(path: Path, text: str) -> list[Path]:
    write_atomically(path, text.encode())
    return [path]


def _macros(found: Mapping[str, str]) -> str:
    r"""\N{NAME} for each number; an unknown name prints ?? and is logged, so that the authors' text still compiles without runs."""
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
\usepackage{amsmath,array,booktabs,graphicx,xcolor,cite}
\input{numbers}
\newcommand{\room}[1]{\par\noindent\colorbox{black!8}{\parbox{\dimexpr\columnwidth-2\fboxsep}{\footnotesize\itshape Authors: #1}}\par}
\newcommand{\words}[1]{\input{words/#1}}
\newcommand{\question}[1]{\par\addvspace{0.5\baselineskip}\noindent{\itshape #1\par}\nobreak}
\ifdefined\pdfsuppressptexinfo\pdfsuppressptexinfo=-1\fi % else figures carry the folders of this machine
\IEEEoverridecommandlockouts
\emergencystretch=3em
\hbadness=10000
\sloppy
"""


OWN_WORDS = r"\newcommand{\words}[1]{\input{words/#1}}"
ROOM_FOR_WORDS = rf"\newcommand{{\words}}[1]{{\room{{{YOURS}}}}}"


def _paper(content: _Content, size: _Size) -> str:
    track, sections = content.track, content.sections
    title, authors = _authors(content.target / "authors.yaml", track)
    lines = [PREAMBLE, rf"\title{{{title}}}", rf"\author{{{authors}}}", r"\begin{document}", r"\maketitle", r"\suppressfloats[t]"]
    lines += [r"\begin{abstract}", r"\words{abstract}", r"\end{abstract}"]
    lines += [r"\section{Introduction}", r"\words{introduction}", _background(track), *_setup(content, size)]
    order = [name for each in ([track] if track else BASE) for name in BASE[each]]
    base = [each for each in sections if _part(each[0].name, track) == "base"]
    base.sort(key=lambda each: order.index(plain_name(each[0].name)))
    further = [each for each in sections if _part(each[0].name, track) == "further"]
    for results, spec in base:
        lines += _section(content, results, spec, size.rows, size.figures)
    lines += [f"% {line}" for line in _untrained(content)]
    if any(results.drawn for results, _ in sections):
        lines += [r"\section{Costs}\label{sec:costs}", r"Table~\ref{tab:costs} has what each method computes and communicates."]
        lines.append(as_latex(overview_table([*base, *further], content.table, size.cheapest), "costs", macros=True))
        lines.append(r"\words{costs}")
    lines += [r"\section{Personal contribution}", r"\words{contribution}"]
    for results, spec in further:
        lines += _section(content, results, spec, size.further_rows, size.further_figures, sub=True)
    lines += [r"\section{Conclusion}", r"\words{conclusion}"]
    lines += [r"\bibliographystyle{IEEEtran}", r"\bibliography{references}", r"\end{document}"]
    return "\n".join(lines) + "\n"


def _untrained(content: _Content) -> list[str]:
    """A line that lists the assignment's sections without results."""
    there = {plain_name(results.name) for results, _ in content.sections}
    missing = [name for each in ([content.track] if content.track else BASE) for name in BASE[each] if name not in there]
    return [f"Not trained yet: {', '.join(f'make {name}' for name in missing)}."] if missing else []


def _background(track: str | None) -> str:
    """The reading that the assignment recommends, by topic."""
    about: dict[str, list[int]] = {}
    for each in [track] if track else BASE:
        for subject, found in BACKGROUND[each].items():
            about.setdefault(subject, []).extend(found)
    cited = [rf"{subject}~\cite{{{','.join(f'ref{number}' for number in found)}}}" for subject, found in about.items()]
    return f"Background: {'; '.join(cited)}."


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


def _setup(content: _Content, size: _Size) -> list[str]:
    """How data were divided, hyper-parameters searched, and runs repeated and tested."""
    configurations = [run.config for results, _ in content.sections for setting in results.settings for run in setting.runs]
    lines = [r"\section{Experimental setup}\label{sec:setup}", r"\textbf{Data.}"]
    for name in dict.fromkeys(str(config["dataset"]["name"]) for config in configurations):
        of_it = [config for config in configurations if config["dataset"]["name"] == name]
        parts = sorted({f"{100 * config['dataset']['validation']:g}" for config in of_it if "validation" in config["dataset"]})
        models = dict.fromkeys(model_of(config["model"]) for config in of_it)
        said = f"{DATA.get(name, name)} with {listed([MODELS.get(model, model) for model in models])}"
        held_out = HELD_OUT.get(name, "drawn from each class alike")
        said += f"; {' or '.join(parts)} % of the training set is kept for validation, {held_out}" if parts else ""
        lines.append(escaped(f"{capital(said)}."))
    divided = dict.fromkeys(str(config["sharding"]["name"]) for config in configurations if config["K"] > 1)
    if divided:
        told = "; ".join(DIVISIONS.get(name, name) for name in divided)
        lines.append(escaped(f"The training set is divided among workers or clients: {told}."))
    lines.append(r"\par\textbf{Figures.}")
    lines.append(
        escaped(
            "Validation chooses and the test set reports. Figures are those of the final models, as mean ± sample standard deviation "
            "over n seeds, which decide initial weights, shards, cohorts and batches. A difference is said to hold if both sides have at "
            "least three seeds and p < 0.05: of Welch's t statistic with the degrees of freedom of the smaller side, so that variances may "
            "differ, adjusted by Holm over all that its section compares. All others are undecided; how many seeds would decide one (power "
            "0.8) takes what was observed as true."
        )
    )
    if judged := [results for results, spec in content.sections if spec.personal]:
        titles = listed([f"“{spec.title}”" for _, spec in content.sections if spec.personal])
        on = judged_on([setting.config for results in judged for setting in results.settings])
        lines.append(escaped(f"In {titles} every client is judged with its own model, on {on}; figures are means over clients."))
    lines.append(r"\par\textbf{Hyper-parameters.}")
    tuned = [(results, spec, content.found[results.name]) for results, spec in content.sections if content.found[results.name]]
    for _, spec, found in tuned:
        lines.append(escaped(f"{spec.title}: {'; '.join(how(found))}."))
    rest = "Those of all others" if tuned else "They"
    lines.append(escaped(f"{rest} were not searched: they are the defaults of the program, or lie on the axes that a section compares."))
    if tuned:
        lines.append(as_latex(replace(tuned_table(tuned, size.rows), notes=[]), "tuned", starred=False, macros=True))
    return lines


def _facts(results: Results, found: Sequence[Search], seeds: bool = True) -> str:
    """A section's facts for a caption: data and their division, budget, seeds, and whether hyper-parameters were searched."""
    if not results.settings:
        return "No run is known."
    configurations = [setting.config for setting in results.settings]
    said = [listed([AXES["dataset"].text(name) for name in dict.fromkeys(str(config["dataset"]["name"]) for config in configurations)])]
    divided = dict.fromkeys(AXES["sharding"].text(str(config["sharding"]["name"])) for config in configurations if config["K"] > 1)
    names = {"classes": "by classes", "natural": "by role"}
    said += [f"divided {' or '.join(names.get(name, name) for name in divided)}"] if divided else []
    budget = sorted({int(config["budget"]) for config in configurations})
    said.append(f"{' to '.join(f'{each:,}' for each in dict.fromkeys((budget[0], budget[-1])))} training samples")
    numbers_ = sorted({len(setting.finished) for setting in results.drawn}) or [0]
    said += [f"n={' to '.join(str(each) for each in dict.fromkeys((numbers_[0], numbers_[-1])))}"] if seeds else []
    said.append("hyper-parameters searched (Section II)" if found else "hyper-parameters not searched")
    return f"{capital(', '.join(said))}."


def _section(content: _Content, results: Results, spec: Spec, rows: int, figures: int, sub: bool = False) -> list[str]:
    level = "subsection" if sub else "section"
    found = content.found[results.name]
    lines = [rf"\{level}{{{escaped(spec.title)}}}\label{{sec:{label(results.name)}}}"]
    for number, question in enumerate(["", *spec.questions]):
        lines += [rf"\{'question' if sub else 'subsection'}{{{escaped(question)}}}"] if question else []
        lines += [" ".join(map(as_macros, paragraph)) + "\n" for asked, paragraph in content.said[results.name] if asked == number]
    if results.drawn and rows:
        shown = results_table(results, spec, content.table, rows, short=True)
        said = [note for note in shown.notes if note.startswith(NOTES)]
        shown = replace(shown, caption=f"{shown.caption}. {_facts(results, found)}", notes=said, commands=shown.commands[-1:])
        lines.append(as_latex(shown, label(results.name), macros=True))
    drawn = [(figure, content.target / f"{results.name}-{figure.name}.pdf") for figure in spec.figures]
    for figure, path in [each for each in drawn if each[1].exists()][:figures]:
        caption = content.captions.get(path.stem) or _caption(figure, spec)
        plain = path.with_name(label(path.name))
        if plain != path:  # LaTeX cannot read the original file name
            write_atomically(plain, read_file(path))
        lines.append(_figure(plain, f"{caption.rstrip('.')}. {_facts(results, found, seeds=False)}"))
    return [*lines, rf"\words{{{label(results.name)}}}"]


def _caption(figure: FigureSpec, spec: Spec) -> str:
    what = figure.value if figure.kind == "heat" else ", ".join(figure.y) or figure.kind
    over = f" over {figure.x}" + (f" and {', '.join(figure.y)}" if figure.kind == "heat" else "") if figure.x else ""
    return f"{spec.title}: {what}{over}"


def _figure(path: Path, caption: str) -> str:
    wide = _width(path) > WIDE
    kind, width = ("figure*", r"\textwidth") if wide else ("figure", r"\columnwidth")
    drawn = rf"\sbox0{{\includegraphics{{{path.name}}}}}\ifdim\wd0>{width}\includegraphics[width={width}]{{{path.name}}}\else\usebox0\fi"
    return (
        f"\\begin{{{kind}}}[tbp]\n\\centering\n{drawn}\n\\caption{{{escaped(caption)}}}\n\\label{{fig:{label(path.stem)}}}\n\\end{{{kind}}}"
    )


def _width(path: Path) -> float:
    """The width of a PDF's page, in points of 1/72 inch."""
    box = re.search(rb"/MediaBox\s*\[\s*([-\d.]+)\s+[-\d.]+\s+([-\d.]+)", read_file(path))
    return float(box[2]) - float(box[1]) if box else 0.0


def has_latex() -> bool:
    """Whether everything needed for a PDF is installed."""
    if any(shutil.which(name) is None for name in ("pdflatex", "bibtex", "kpsewhich")):
        return False
    asked = subprocess.run(["kpsewhich", "IEEEtran.cls", "IEEEtran.bst", "booktabs.sty"], capture_output=True, text=True, check=False)
    return len(asked.stdout.split()) == 3


class _Latex:
    """pdflatex in its own folder, which keeps references between versions of the paper."""

    def __init__(self, target: Path, folder: Path) -> None:
        self._target, self._folder, self._cited = target, folder, False

    def pages(self, paper: str, last: bool = False) -> tuple[int, list[str]]:
        """The number of pages, and a line for each box that is too wide; report.pdf is in the folder, complete if `last`.

        Raises:
            UserError: LaTeX stopped.
        """
        (self._folder / "report.tex").write_text(paper)
        if not self._cited:
            self._run("pdflatex")
            self._run("bibtex")
            self._cited = True
        log = self._run("pdflatex")
        if last or "Rerun to get" in log or "undefined references" in log:
            log = self._run("pdflatex")
        pages = re.search(r"Output written on .*?\((\d+) page", log)
        wide = [" ".join(each.split())[:300] for each in re.findall(r"^Overfull \\[hv]box .*\n.*$", log, re.MULTILINE)]
        return int(pages[1]) if pages else 0, wide

    def _run(self, program: str) -> str:
        latex = ["-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "report.tex"]
        there = f".:{self._target.resolve()}:"
        environment = {**os.environ, "max_print_line": "1000", "TEXINPUTS": there, "BIBINPUTS": there}
        command = [program, *(latex if program == "pdflatex" else ["report"])]
        subprocess.run(command, cwd=self._folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        file = self._folder / "report.log"
        log = file.read_text(errors="replace") if file.exists() else "! no log"
        wrong = re.search(r"^! .*$(?:\n(?!l\.).*)*(?:\nl\.\d+.*)?", log, re.MULTILINE)
        where = self._target / "report.tex"
        require(wrong is None, f"{where}: LaTeX stops: {' '.join(wrong[0].split())[:300] if wrong else ''}; fix that")
        return log
