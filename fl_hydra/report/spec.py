"""What a section's report shows: the `report` block of its file, `hydra.sweeper.report` of any sweep, or the default of a grid without one.

report:
  title: LocalSGD
  questions: [Which combination works best?, ...]
  judged: personal
  figures:
    - {kind: curves, x: epoch, y: [train/loss, test/acc], color: optimizer, dash: scheduler}
    - {kind: heat, x: J, y: K, value: test/acc}
  compare:
    - {axis: J, within: [K]}
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fl_hydra.errors import require
from fl_hydra.report.axes import AXES, DIVISION, Axis, Value
from fl_hydra.report.cost import CostTable
from fl_hydra.report.measures import measure
from fl_hydra.report.results import Results, Setting
from fl_hydra.runs.identity import by_key

KINDS = {
    "curves": "figures of every evaluation against x; a panel for each of y, and for each value of facet",
    "lines": "figures of the final models against x, an axis of settings; a panel for each of y",
    "heat": "value of the final models over x and y, two axes of settings; a map for each value of facet",
    "targets": "what it takes to reach an accuracy: a bar for each setting, a panel for each of y",
    "sampling": "how probable each client is in a round, for each value of color",
    "classes": "what clients hold, a panel for each value of facet",
    "clients": "test accuracy of each client's own model, from the best to the worst; a line for each value of color",
    "search": "the searches of the section: how good each trial was over the first two keys that were searched, a map for each study",
}
"""Kinds of figures."""


Task = tuple[str, str]
"""What models learn: a data set, and how it is divided; nothing for the latter where that does not matter."""


@dataclass(frozen=True)
class FigureSpec:
    """One figure of a section.

    kind: one of :data:`KINDS`. x: a measure of :mod:`fl_hydra.report.measures` for curves, else an axis of :mod:`fl_hydra.report.axes`.
    y: measures, one per panel; for a heat map, one axis. value: the measure of a heat map. color, dash, facet: axes. where: values of
    axes to which the figure is narrowed. name: of its files, SECTION-NAME. mark: `reference` marks the largest x within one point of the
    best result at the first x, `best` each line's best point by validation. under: the name of an earlier figure, below which it is drawn
    in the same file. beside: another section whose settings are also shown; without them there is no figure.
    """

    kind: str
    x: str = ""
    y: tuple[str, ...] = ()
    value: str = "test/acc"
    color: str | None = None
    dash: str | None = None
    facet: str | None = None
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    name: str = ""
    mark: str = ""
    target: float | None = None
    under: str = ""
    beside: str = ""

    def __post_init__(self) -> None:
        safe = re.fullmatch(r"[A-Za-z0-9_.-]*", self.name) is not None
        require(safe, f"report.figures: name={self.name}: it becomes a file's; letters, digits, _, - and . are possible")
        require(self.kind in KINDS, f"report.figures: kind={self.kind}: choose {', '.join(KINDS)}")
        needed = {"curves": ("x", "y"), "lines": ("x", "y"), "heat": ("x", "y"), "targets": ("y",)}.get(self.kind, ())
        for field in needed:
            require(bool(getattr(self, field)), f"report.figures: a figure of kind={self.kind} needs {' and '.join(needed)}")


@dataclass(frozen=True)
class Comparison:
    """Differences that the section's sentences are about: between values of an axis, at each point of the axes `within`.

    against: the value with which all others are compared, as :meth:`fl_hydra.report.axes.Axis.text` writes it; None, or a value that no
    setting has: all pairs. only: the values that are compared with it, if not all. where: values of axes to which it is narrowed, as for a
    figure. measure: of the final models. question: the number, from 1, of the section's question that it answers. beside: another section,
    whose settings are compared with its own if they have been trained.
    """

    axis: str
    within: tuple[str, ...] = ()
    against: Any = None
    measure: str = "test/acc"
    only: tuple[str, ...] = ()
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    question: int = 1
    beside: str = ""

    def refers_to(self, compared: Axis, value: Value) -> bool:
        """Whether `against` is this value of the axis."""
        wanted = compared.text(self.against) if isinstance(self.against, int | float) else str(self.against)
        return self.against is not None and compared.text(value) == wanted


@dataclass(frozen=True)
class Spec:
    """A section's report.

    title: its heading. questions: those of the assignment that it answers. reaching: which of them, from 1, the cost of reaching an
    accuracy answers; None: that of the last comparison. judged: `personal` if its accuracies are those of clients' own models wherever
    nothing else is named, `global` if they are those of one model for all; nothing: :meth:`fitting` says it.
    """

    title: str
    figures: tuple[FigureSpec, ...]
    questions: tuple[str, ...] = ()
    compare: tuple[Comparison, ...] = ()
    reaching: int | None = None
    judged: str = ""

    @property
    def personal(self) -> bool:
        """Whether its accuracies are those of clients' own models."""
        return self.judged == "personal"

    @property
    def accuracy(self) -> str:
        """The measure that reports: the test accuracy of one model for all, or of clients' own."""
        return "personal/test/acc" if self.personal else "test/acc"

    @property
    def validation(self) -> str:
        """The measure that chooses."""
        return "personal/val/acc" if self.personal else "val/acc"

    def tasks(self, settings: Sequence[Setting]) -> dict[Task, list[Setting]]:
        """Settings by what they learn: data, and, where models of clients are judged, how it is divided, which makes easier tasks of it."""
        found: dict[Task, list[Setting]] = {}
        for setting in settings:
            division = DIVISION.label(setting.value("N_c")) if self.personal else ""
            found.setdefault((str(setting.value("dataset")), division), []).append(setting)
        return found

    def comparable(self, settings: Sequence[Setting]) -> list[Setting]:
        """Those of each data set's first task, whose accuracies can be put beside each other."""
        firsts: dict[str, list[Setting]] = {}
        for (dataset, _), mine in self.tasks(settings).items():
            firsts.setdefault(dataset, mine)
        return [setting for mine in firsts.values() for setting in mine]

    def fitting(self, results: Results) -> Spec:
        """The spec for these runs: with clients' own models where none of them trains a model for all.

        Then every figure of a model for all becomes that of clients' own models, also one that is named.
        """
        if self.judged:
            return self
        last = [run.rows[-1] for setting in results.settings for run in setting.finished]

        def there(name: str) -> bool:
            return any(row.get(name) is not None for row in last)

        if there("test/acc") or not there("personal/test/acc"):
            return dataclasses.replace(self, judged="global")
        figures = tuple(
            dataclasses.replace(each, y=tuple(map(_of_clients, each.y)), value=_of_clients(each.value)) for each in self.figures
        )
        compare = tuple(dataclasses.replace(each, measure=_of_clients(each.measure)) for each in self.compare)
        return dataclasses.replace(self, figures=figures, compare=compare, judged="personal")

    @classmethod
    def of(cls, block: Mapping[str, Any], section: str) -> Spec:
        """From the block of a section's file.

        Raises:
            UserError: something in it is unknown.
        """
        keys = "title, questions, figures, compare, reaching, judged"
        require(isinstance(block, Mapping), f"report: {_short(block)}: keys and values are needed; choose from {keys}")
        block = dict(block)
        figures = tuple(_typed(FigureSpec, each, "report.figures") for each in _listed(block.pop("figures", None), "report.figures"))
        compare = tuple(_typed(Comparison, each, "report.compare") for each in _listed(block.pop("compare", None), "report.compare"))
        questions = tuple(str(each) for each in _listed(block.pop("questions", None), "report.questions"))
        title = str(block.pop("title", None) or section)
        reaching, judged = block.pop("reaching", None), str(block.pop("judged", None) or "")
        require(not block, f"report.{next(iter(block), '')}: no such key; choose from {keys}")
        for where, asked in [*(("compare.question", each.question) for each in compare), ("reaching", 1 if reaching is None else reaching)]:
            fits = isinstance(asked, int) and not isinstance(asked, bool) and 1 <= asked <= max(1, len(questions))
            require(fits, f"report.{where}: {_short(asked)}: the number of one of the {max(1, len(questions))} questions is needed, from 1")
        require(judged in ("", "personal", "global"), f"report.judged: {_short(judged)}: choose personal or global")
        if judged == "personal":  # what nobody has named
            figures = tuple(dataclasses.replace(each, value=_of_clients(each.value)) for each in figures)
            compare = tuple(dataclasses.replace(each, measure=_of_clients(each.measure)) for each in compare)
        return cls(title, _named(figures), questions, compare, reaching, judged)

    def check(self, table: CostTable) -> None:
        """Check that all named measures exist.

        Raises:
            UserError: one does not.
        """
        for figure in self.figures:
            named = {"curves": (figure.x, *figure.y), "lines": figure.y, "heat": (figure.value,), "targets": (*figure.y, figure.value)}
            for name in named.get(figure.kind, ()):
                measure(name, table)
        for each in self.compare:
            measure(each.measure, table)

    def unknown_axes(self, results: Results) -> list[str]:
        """Named axes that are no key of any run, for example mistyped or removed ones."""
        keys = {key for setting in results.settings for key in by_key(dict(setting.config))} | {*AXES, "division"}
        return [name for name in dict.fromkeys(self._axes()) if name not in keys]

    def _axes(self) -> Iterator[str]:
        for figure in self.figures:
            own = {"lines": (figure.x,), "heat": (figure.x, *figure.y)}.get(figure.kind, ())
            yield from (name for name in (*own, figure.color, figure.dash, figure.facet, *figure.where) if name)
        for each in self.compare:
            yield from (each.axis, *each.within, *each.where)

    @classmethod
    def default(cls, section: str, axes: Sequence[Axis]) -> Spec:
        """The spec of a grid without a block: curves, a heat map if two numbers differ, and the final models against each number."""
        return cls(section, _named(tuple(_default_figures([each.name for each in axes]))), (), _default_comparisons(axes))


def _of_clients(name: str) -> str:
    """A figure of a model for all, as that of clients' own models; others as they are."""
    return f"personal/{name}" if name in ("val/acc", "val/loss", "test/acc", "test/loss") else name


def _short(given: Any) -> str:
    text = str(given)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _listed(given: Any, where: str) -> Sequence[Any]:
    require(given is None or isinstance(given, list | tuple), f"{where}: {_short(given)}: a list is needed, [..., ...]")
    return given or ()


def _typed(cls: Any, given: Any, where: str) -> Any:
    names = {field.name: field for field in dataclasses.fields(cls)}
    require(isinstance(given, Mapping), f"{where}: {_short(given)}: keys and values are needed, as {{{', '.join(names)}}}")
    for key, value in given.items():
        require(key in names, f"{where}.{key}: no such key; choose from {', '.join(names)}")
        kind = str(names[key].type)
        if value is not None and kind in FITTING:
            fits, needed = FITTING[kind]
            require(fits(value), f"{where}.{key}: {_short(value)}: {needed}")
    values = {
        key: (tuple(value) if isinstance(value, list | tuple) else (value,)) if "tuple" in str(names[key].type) else value
        for key, value in given.items()
        if value is not None
    }
    missing = [
        name for name, field in names.items() if field.default is field.default_factory is dataclasses.MISSING and name not in values
    ]
    require(not missing, f"{where}: {', '.join(missing)}: missing in {dict(given)}")
    return cls(**values)


def _is_word(value: Any) -> bool:
    return isinstance(value, str)


FITTING: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "str": (_is_word, "one name is needed"),
    "str | None": (_is_word, "one name is needed"),
    "tuple[str, ...]": (lambda value: all(map(_is_word, value if isinstance(value, list | tuple) else [value])), "names are needed"),
    "float | None": (lambda value: isinstance(value, int | float), "a number is needed"),
    "Mapping[str, Any]": (lambda value: isinstance(value, Mapping), "axes and values are needed, as {K: 4}"),
}
"""By the type of a field: whether a value fits, and the message if it does not."""


def _named(figures: tuple[FigureSpec, ...]) -> tuple[FigureSpec, ...]:
    """Give every figure a name: its kind, and a number if several have the same kind."""
    named: list[FigureSpec] = []
    for figure in figures:
        name, number = figure.name or figure.kind, 2
        while name in [each.name for each in named]:
            name, number = f"{figure.name or figure.kind}-{number}", number + 1
        before = ", ".join(each.name for each in named if not each.under)
        require(
            not figure.under or figure.under in before.split(", "),
            f"report.figures: under={figure.under}: no such figure before it: {before}",
        )
        named.append(dataclasses.replace(figure, name=name))
    return tuple(named)


NUMBERS = ("K", "J", "N_c", "gamma", "batch_size", "optimizer.lr", "optimizer.weight_decay", "server.lr")
"""Numeric axes, in the order in which they are chosen for a figure's axis."""


def _default_figures(axes: list[str]) -> list[FigureSpec]:
    names = [name for name in axes if name not in NUMBERS]
    numbers = [name for name in axes if name in NUMBERS]
    look: dict[str, Any] = dict(zip(("color", "dash", "facet"), (names + numbers)[:3], strict=False))
    figures = [FigureSpec("curves", "samples", ("train/loss", "test/acc"), **look)]
    if len(numbers) >= 2:
        facet = names[0] if names else None
        figures.append(FigureSpec("heat", numbers[1], (numbers[0],), facet=facet))
    elif numbers:
        look = dict(zip(("color", "dash"), names[:2], strict=False))
        figures.append(FigureSpec("lines", numbers[0], ("test/acc",), **look))
    return [*figures, FigureSpec("search")]


def _default_comparisons(axes: Sequence[Axis]) -> tuple[Comparison, ...]:
    names = [each.name for each in axes]
    return tuple(Comparison(name, tuple(other for other in names if other != name)) for name in names)
