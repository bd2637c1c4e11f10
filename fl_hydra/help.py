"""`--help` lists what can be chosen and what every key means; `--help KEY` tells the rest of a key, a group or an option.

All of it is read from where it is declared: what a key means from the text below its field, what an option is from the head of its file in
`conf` and the docstring of its class.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from fl_hydra.arguments import check_option, did_you_mean, groups, nearest_keys, sections
from fl_hydra.config import Config
from fl_hydra.errors import UserError, require
from fl_hydra.options import default_of, head, read_option
from fl_hydra.paths import SWEEPS

EXAMPLES = """\
fl_hydra trains and compares distributed and federated learning algorithms.

  python train.py algorithm=fedavg sharding=classes N_c=2 K=20          one run
  python train.py -m algorithm=localsgd K=2,4,8 J=4,8,16,32,64          a grid: every combination
  python train.py -m +sweep/track_a=localsgd                            a section of the report
  python train.py --help KEY | GROUP | GROUP=OPTION                     more about one of them

The same command again continues an interrupted run and returns a finished one.
Packs: docs/running.md. Searches: docs/tuning.md. Hydra's own options: --hydra-help."""


def help_text(topics: Sequence[str] = ()) -> str:
    """What `--help` prints: the overview, or all there is to say about each topic.

    Raises:
        UserError: a topic is no group, option, section or key.
    """
    return "\n\n".join(map(_topic, topics)) if topics else _overview()


def meanings(cls: type[Any]) -> dict[str, str]:
    """What the text below each field of a dataclass says; a subclass that changes only a default need not repeat it."""
    found: dict[str, str] = {}
    for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        for statement, below in pairwise(_body(base)):
            match statement, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    found[name] = " ".join(text.split())
    return found


@cache
def _body(cls: type[Any]) -> list[ast.stmt]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(tree, ast.ClassDef)
    return tree.body


def _fields() -> Iterator[tuple[str, str, str]]:
    """Every key that belongs to no group's option: its name, its default and what it means."""
    for field in dataclasses.fields(Config):
        value = default_of(field)
        if dataclasses.is_dataclass(value):
            told = meanings(type(value))
            yield from ((f"{field.name}.{below}", written(inner), told[below]) for below, inner in dataclasses.asdict(value).items())  # type: ignore[arg-type]
        elif field.name not in groups() and field.name != "chosen":
            yield field.name, written(value), meanings(Config)[field.name]


def written(value: Any) -> str:
    """A value as it is typed."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"[{','.join(map(written, value))}]" if isinstance(value, list) else str(value)


def _first_sentence(text: str) -> str:
    return text.split(". ")[0].rstrip(".")


def _width() -> int:
    return min(120, max(60, shutil.get_terminal_size((110, 50)).columns))


def _row(*cells: str, widths: Sequence[int] = ()) -> str:
    """Columns of these widths; the last one is wrapped."""
    start = "  " + "".join(cell.ljust(width - 1) + " " for cell, width in zip(cells, widths, strict=False))
    return textwrap.fill(cells[-1], _width(), initial_indent=start, subsequent_indent=" " * (2 + sum(widths)), break_on_hyphens=False)


def _overview() -> str:
    lines = [EXAMPLES, "", "Groups, as GROUP=OPTION:"]
    lines += [_row(group, ", ".join(options), widths=[15]) for group, options in groups().items()]
    lines += [_row(f"+sweep/{track}", ", ".join(names), widths=[15]) for track, names in sections().items()]
    lines += [_row("+search", ", ".join(_searches()), widths=[15])]
    lines += ["", "Keys of the options, as GROUP.KEY=VALUE:"]
    for group, options in groups().items():
        named = list(dict.fromkeys(name for option in options for name in read_option(group, option).values))
        lines += [_row(group, ", ".join(named), widths=[15])] if named else []
    together = ("evaluation", "swa")
    for part in together:
        named = [key.partition(".")[2] for key, _, _ in _fields() if key.startswith(f"{part}.")]
        lines += [_row(part, ", ".join(named), widths=[15])]
    lines += ["", "Other keys, as KEY=VALUE, with their defaults:"]
    shown = {"data": "data/", "outputs": "outputs/"}
    others = [field for field in _fields() if field[0].partition(".")[0] not in (*together, "study")]  # searches set study, not users
    lines += [_row(key, shown.get(key, value), _first_sentence(meaning), widths=[20, 9]) for key, value, meaning in others]
    return "\n".join(lines)


def _searches() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in (SWEEPS / "search").glob("*.yaml")))


def _topic(topic: str) -> str:
    """All there is to say about a group, an option, a section or a key."""
    group, _, name = topic.lstrip("+").partition("=")
    if name in groups().get(group, ()):
        return _about_option(group, name)
    if name in sections().get(group.removeprefix("sweep/"), ()) or (group == "search" and name in _searches()):
        return f"+{group}={name}\n{textwrap.indent(head(SWEEPS / group / f'{name}.yaml'), '  ')}"
    if group in groups() and not name:
        return _about_group(group)
    plain = {key: (value, meaning) for key, value, meaning in _fields()}
    if topic in plain:
        value, meaning = plain[topic]
        return f"{topic}={value}\n{_row(meaning)}"
    owner, _, field = topic.partition(".")
    if owner in groups() and (found := _about_field(owner, field)):
        return found
    require(not topic.startswith("hydra"), f"--help {topic}: --hydra-help, docs/running.md and docs/tuning.md describe Hydra's keys")
    check_option(group, name)
    nested = [key for key in plain if key.startswith(f"{topic}.")]
    if nested:
        return "\n\n".join(map(_topic, nested))
    wanted = [f"{option_group}={topic}" for option_group, options in groups().items() if topic in options]
    wanted += [f"+sweep/{track}={topic}" for track, names in sections().items() if topic in names]
    wanted = wanted or [key for key in nearest_keys(topic) if key != topic]
    hint = did_you_mean(f"--help {each}" for each in wanted) if wanted else "train.py --help lists them all"
    raise UserError(f"--help {topic}: no such group, option, section or key; {hint}")


def _about_option(group: str, name: str) -> str:
    option = read_option(group, name)
    lines = [f"{group}={name}", textwrap.indent(option.about, "  ")]
    lines += ["", textwrap.indent(inspect.cleandoc(option.part.__doc__ or ""), "  ")]
    defaults = [f"{key}={written(getattr(option.part, key))}" for key in ("K", "C", "J") if getattr(option.part, key, None) is not None]
    lines += ["", f"  Defaults: {' '.join(defaults)}"] if defaults else []
    lines += ["", f"  Also chooses: {' '.join(f'{key}={value}' for key, value in option.chooses.items())}"] if option.chooses else []
    told = meanings(option.part)
    if option.values:
        widths = [2 + max(len(f"{group}.{key}") for key in option.values), 2 + max(len(written(value)) for value in option.values.values())]
        lines += [""] + [_row(f"{group}.{key}", written(value), told[key], widths=widths) for key, value in option.values.items()]
    return "\n".join(lines)


def _about_group(group: str) -> str:
    options = {name: read_option(group, name) for name in groups()[group]}
    width = [2 + max(map(len, options))]
    lines = [f"{group}: {meanings(Config)[group]}", ""]
    lines += [_row(name, " ".join(option.about.split()), widths=width) for name, option in options.items()]
    fields = list(dict.fromkeys(name for option in options.values() for name in option.values))
    return "\n".join([*lines, *(f"\n{_about_field(group, field)}" for field in fields)])


def _about_field(group: str, field: str) -> str:
    """What a key of a group's options means, and its value in each option that has it; empty where none has."""
    told: dict[str, dict[str, list[str]]] = {}
    for name in groups()[group]:
        if field in (option := read_option(group, name)).values:
            told.setdefault(meanings(option.part)[field], {}).setdefault(written(option.values[field]), []).append(name)
    lines = []
    for meaning, values in told.items():
        having = ("every option" if names == list(groups()[group]) else ", ".join(names) for names in values.values())
        lines += [_row(meaning), _row("; ".join(f"{value} in {names}" for value, names in zip(values, having, strict=True)))]
    return "\n".join([f"{group}.{field}", *lines] if lines else [])
