"""The command line's arguments: text is taken literally, and what cannot be meant is refused in one line before Hydra reads it."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from fl_hydra.config import REGISTRIES, Checkpoint, Config, Evaluation, Tune
from fl_hydra.errors import UserError, require
from fl_hydra.exits import command
from fl_hydra.paths import CONF, SWEEPS
from fl_hydra.training.averages import SWA

PATHS = frozenset({"data", "outputs", "dataset.path", "dataset.text"})
"""Keys whose value is one path, with whatever characters it has: commas too, so there is no sweep over them."""

OTHER_NAMES = {
    **dict.fromkeys(("learning_rate", "eta"), "lr"),
    **dict.fromkeys(("wd", "l2"), "weight_decay"),
    **dict.fromkeys(("batch", "bs", "b"), "batch_size"),
    **dict.fromkeys(("clients", "num_clients", "n_clients", "workers", "num_workers", "n_workers"), "k"),
    **dict.fromkeys(("fraction", "participation_rate", "sample_rate"), "c"),
    **dict.fromkeys(("steps", "num_local_steps", "h", "tau"), "j"),
    **dict.fromkeys(("num_rounds", "n_rounds", "comm_rounds"), "rounds"),
    **dict.fromkeys(("num_epochs", "n_epochs"), "epochs"),
    **dict.fromkeys(("nc", "classes_per_client"), "n_c"),
}
"""What others call a key, in small letters."""

_OVERRIDE = re.compile(r"(?P<prefix>[+~]*)(?P<key>[^=\s]+)=(?P<value>.*)", re.S)
_PLAIN_LIST = re.compile(r"[\w.+-]+(,[\w.+-]+)*")


def prepare(arguments: Sequence[str]) -> list[str]:
    """The arguments as Hydra should read them: text is quoted for its grammar, everything else is left alone.

    Raises:
        UserError: one of them cannot be meant so; the line says what was probably meant.
    """
    options, unknown = _options(arguments)
    if options.shell_completion or options.hydra_help:
        return list(arguments)
    for word in unknown:
        _refuse_dashes(word, arguments)
    many = bool(options.multirun) or any(re.fullmatch(r"hydra\.mode=[\"']?MULTIRUN[\"']?", word) for word in options.overrides)
    _refuse_bare_words(options.overrides)
    prepared = {word: as_text(word, many=many) for word in options.overrides}
    _refuse_several_sections(options.overrides)
    for word in options.overrides:
        if match := _OVERRIDE.fullmatch(word):
            if match["key"] in PATHS:
                _check_path(match["key"], match["value"])
            _check_key(match["key"], match["value"], appended="+" in match["prefix"])
            if not options.config_dir:
                check_option(match["key"], match["value"])
    require(
        many or bool(options.info or options.cfg) or not any(word.startswith(("+sweep/", "+search=")) for word in options.overrides),
        f"a section is a sweep of many runs, which takes -m: {command(['-m', *arguments])}",
    )
    if not options.info and not options.cfg:
        for word in options.overrides:
            _check_grammar(word, prepared[word], many, arguments)
    if many:
        prepared |= _of_swept_groups(prepared)
    return [prepared.get(word, word) for word in arguments]


def _of_swept_groups(prepared: Mapping[str, str]) -> dict[str, str]:
    """Keys of groups that are swept, as `algorithm.adapters=4` with `algorithm=fedsim,fedalt`: Hydra composes once before the sweep, with
    a group's default option, which need not have the key; what is swept is left out of that. So they are sweeps of one value."""
    matches = {word: match for word, text in prepared.items() if (match := _OVERRIDE.fullmatch(text))}
    swept = {match["key"] for match in matches.values() if match["key"] in groups() and "," in match["value"]}
    return {
        word: f"{match['prefix']}{match['key']}=choice({match['value']})"
        for word, match in matches.items()
        if match["key"].partition(".")[0] in swept and "." in match["key"] and not re.fullmatch(r"\w+\(.*\)|.*,.*", match["value"])
    }


def help_topics(arguments: Sequence[str]) -> list[str] | None:
    """What `--help` is asked about, nothing in particular if the list is empty; None if it is not asked for.

    Raises:
        UserError: an option of Hydra lacks its value, or has a wrong one.
    """
    options, _ = _options(arguments)
    return list(options.overrides) if options.help and not (options.hydra_help or options.shell_completion) else None


def as_text(override: str, many: bool = False) -> str:
    """`KEY=VALUE` with its value quoted for Hydra's grammar where the key holds text, so that it is neither a number nor a syntax error.

    A value that is quoted already, `null`, and functions of the grammar (`choice(a,b)`) stay as they are. In a sweep a comma separates
    values; but a path (:data:`PATHS`) is always one value.
    """
    match = _OVERRIDE.fullmatch(override)
    if match is None or match["key"] not in texts():
        return override
    prefix, key, value = match["prefix"], match["key"], match["value"]
    if key in PATHS:
        return f"{prefix}{key}={_quoted(value)}"
    if re.fullmatch(r"\w+\(.*\)", value):
        return override
    return f"{prefix}{key}=" + ",".join(map(_quoted, value.split(",") if many else [value]))


def as_typed(override: str) -> str:
    """`KEY=VALUE` as it would be typed: without the quotes that :func:`as_text` puts in, and with those that a shell needs."""
    key, _, value = override.partition("=")
    if (plain := re.fullmatch(r"'([^'\\\\]*)'", value)) and as_text(f"{key}={plain[1]}") == override:
        override = f"{key}={plain[1]}"
    return shlex.quote(override)


def _quoted(value: str) -> str:
    from hydra.core.override_parser.types import Quote, QuotedString

    if value in ("", "null", "???") or re.fullmatch(r"""'([^'\\]|\\.)*'|"([^"\\]|\\.)*\"""", value, re.S):
        return value
    return QuotedString(value, Quote.single).with_quotes()


def _check_path(key: str, value: str) -> None:
    long = next((part for part in value.split("/") if len(os.fsencode(part)) > 255), "")
    require(not long, f"{key}: the name {long[:20]}... has {len(os.fsencode(long))} bytes and a file system takes 255; shorten it")


def texts() -> frozenset[str]:
    """Keys that hold text."""
    return _texts(_parts())


def keys() -> frozenset[str]:
    """Every key, of whichever option, with its group."""
    return _keys(_parts())


def groups() -> dict[str, tuple[str, ...]]:
    """The options of each group."""
    return _groups(_parts())


def _parts() -> tuple[tuple[str, type[Any]], ...]:
    """Every registered part, with its group: a notebook may register another at any time."""
    return tuple((registry.group, part) for registry in REGISTRIES for part in registry.values())


@lru_cache(maxsize=1)
def _texts(parts: tuple[tuple[str, type[Any]], ...]) -> frozenset[str]:
    def of(cls: type[Any], prefix: str = "") -> Iterable[str]:
        # Annotations are text in modules that postpone them, and types in others, as a notebook.
        return (prefix + field.name for field in dataclasses.fields(cls) if field.type in ("str", "str | None", str, str | None))

    return frozenset(of(Config)).union(*(of(part, f"{group}.") for group, part in parts))


@lru_cache(maxsize=1)
def _keys(parts: tuple[tuple[str, type[Any]], ...]) -> frozenset[str]:
    found = {field.name for field in dataclasses.fields(Config)}
    nested: list[tuple[str, type[Any]]] = [("evaluation", Evaluation), ("swa", SWA), ("checkpoint", Checkpoint), ("tune", Tune)]
    nested += parts
    return frozenset(found | {f"{group}.{field.name}" for group, part in nested for field in dataclasses.fields(part)})


@lru_cache(maxsize=1)
def _groups(parts: tuple[tuple[str, type[Any]], ...]) -> dict[str, tuple[str, ...]]:
    found = {registry.group: {path.stem for path in (CONF / registry.group).glob("*.yaml")} for registry in REGISTRIES}
    for group, part in parts:
        if is_guest(part):
            found[group].add(part.name)
    return {group: tuple(sorted(names)) for group, names in found.items()}


def is_guest(part: type[Any]) -> bool:
    """Whether a part was registered from outside of the package, as in a notebook, and is an option without a file in `conf`."""
    return part.__module__.partition(".")[0] != "fl_hydra"


@lru_cache(maxsize=1)
def sections() -> dict[str, tuple[str, ...]]:
    """The sections of the report in each track, which are the groups of `sweeps/sweep`."""
    tracks = sorted(path for path in (SWEEPS / "sweep").glob("*") if path.is_dir())
    return {track.name: tuple(sorted(path.stem for path in track.glob("*.yaml"))) for track in tracks}


def _options(arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """Hydra's own options, and the ones that it does not know.

    Raises:
        UserError: an option of Hydra lacks its value, or has a wrong one.
    """
    from hydra._internal.utils import get_args_parser

    def refuse(message: str) -> NoReturn:
        raise UserError(f"{message}; keys are given as KEY=VALUE, without dashes; train.py --help lists them")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]  # it would print how to use it, and leave
    options, unknown = parser.parse_known_intermixed_args(list(arguments))
    return options, [word for word in unknown if word.startswith("-")]


def _refuse_dashes(word: str, arguments: Sequence[str]) -> NoReturn:
    name, equals, value = word.lstrip("-").partition("=")
    following = list(arguments)[list(arguments).index(word) + 1 :][:1]
    if not equals and following and "=" not in following[0] and not following[0].startswith("-"):
        word, equals, value = f"{word} {following[0]}", "=", following[0]
    name = name.replace("-", "_") if name.replace("-", "_") in keys() else name
    meant = nearest_keys(name) or [name]
    raise UserError(
        f"{word}: keys have no dashes; " + did_you_mean(shlex.quote(f"{key}={value}") if equals else f"{key}=..." for key in meant)
    )


def _refuse_bare_words(overrides: Sequence[str]) -> None:
    """Refuse what is not KEY=VALUE, with a look at its neighbours: it may be the rest of a value that a space has cut."""
    for position, word in enumerate(overrides):
        if "=" in word[1:] or word.startswith("~"):
            continue
        before = overrides[position - 1] if position else ""
        after = overrides[position + 1] if position + 1 < len(overrides) else ""
        if before.endswith(",") or word.startswith(","):
            raise UserError(f"{before} {word}: a list has no spaces: {before}{word}")
        if before.endswith(("=", "(", "[")) or word.startswith("="):
            raise UserError(f"{before} {word}: there is no space around =: {before}{word}")
        if after.startswith("="):
            rest = overrides[position + 1 : position + (3 if after == "=" else 2)]
            raise UserError(f"{' '.join([word, *rest])}: there is no space around =: {''.join([word, *rest])}")
        if re.match(r"\+?sweep/", word):
            _check_section("sweep", word.rpartition("/")[2], appended=word.startswith("+"))
        wanted = [f"{group}={word}" for group, options in groups().items() if word in options]
        wanted += [f"-m +sweep/{track}={word}" for track, names in sections().items() if word in names]
        wanted += [f"{key}=..." for key in nearest_keys(word)] if not wanted else []
        hint = did_you_mean(wanted) if wanted else "train.py --help lists the keys"
        raise UserError(f"{word}: not of the form KEY=VALUE, as K=4 or optimizer.lr=0.1; {hint}")


def _check_key(key: str, value: str, *, appended: bool) -> None:
    """Refuse a key that is not there, where it can be told which one was meant; Hydra refuses the others."""
    if key.startswith("hydra") or "@" in key or key in keys() or (appended and key == "search"):
        return
    if key.partition("/")[0].rstrip("s") == "sweep" or key in sections():
        _check_section(key, value, appended=appended)
    elif "/" not in key and (meant := nearest_keys(key)):
        raise UserError(f"{key}={value}: no such key; " + did_you_mean(shlex.quote(f"{name}={value}") for name in meant))


def nearest_keys(key: str) -> list[str]:
    """The keys that were probably meant: in other letters, without their group, of another group, or with a slip."""
    plain = key.lower().replace("-", "_")
    plain = OTHER_NAMES.get(plain.rpartition(".")[2], plain)
    leaf = plain.rpartition(".")[2]
    whole: Callable[[str], bool] = lambda known: known.lower() == plain  # noqa: E731
    tail: Callable[[str], bool] = lambda known: known.lower().rpartition(".")[2] == leaf and not known.endswith(".name")  # noqa: E731
    for alike in (whole, tail):
        if found := sorted(filter(alike, keys()), key=_importance):
            return found[:3]
    group = plain.rpartition(".")[0]
    close = [known for known in keys() if difflib.SequenceMatcher(None, known.lower().rpartition(".")[2], leaf).ratio() >= 0.8]
    return sorted((known for known in close if known.startswith(f"{group}.")), key=_importance) or sorted(close, key=_importance)[:3]


def _importance(key: str) -> tuple[int, str]:
    """The groups in the order in which the configuration has them: the optimizer before the server."""
    order = [field.name for field in dataclasses.fields(Config)]
    return order.index(key.partition(".")[0]), key


def _check_section(key: str, value: str, *, appended: bool) -> None:
    """Refuse a section that is not named as `+sweep/TRACK=NAME`."""
    track = key.rpartition("/")[2]
    if appended and key == f"sweep/{track}" and value in sections().get(track, ()):
        return
    name = value.rpartition("/")[2]
    homes = [home for home, names in sections().items() if name in names]
    if not homes and (close := difflib.get_close_matches(name.lower(), [each for names in sections().values() for each in names], n=1)):
        name, homes = close[0], [home for home, names in sections().items() if close[0] in names]
    if not homes and key == f"sweep/{track}" and track in sections():
        if appended:
            return  # Hydra lists the options
        homes, name = [track], value
    what = f"{'+' if appended else ''}{key}={value}"
    if homes:
        raise UserError(f"{what}: a section is chosen as +sweep/TRACK=NAME; " + did_you_mean(f"-m +sweep/{home}={name}" for home in homes))
    listed = "; ".join(f"+sweep/{home}= has {', '.join(names)}" for home, names in sections().items())
    raise UserError(f"{what}: a section is chosen as +sweep/TRACK=NAME: {listed}")


def _refuse_several_sections(overrides: Sequence[str]) -> None:
    chosen = [
        (match[1], name) for word in overrides if (match := re.fullmatch(r"\+sweep/(\w+)=(.*)", word)) for name in match[2].split(",")
    ]
    if len(chosen) > 1:
        each = " and ".join(f"-m +sweep/{track}={name}" for track, name in chosen)
        raise UserError(f"{len(chosen)} sections in one command; a command trains one: give {each} one after the other")


def check_option(key: str, value: str) -> None:
    """Refuse an option that is not there, where it can be told which one was meant; Hydra refuses the others.

    Raises:
        UserError: naming the option that was probably meant.
    """
    options = groups().get(key)
    if options is None or not _PLAIN_LIST.fullmatch(value):
        return
    for name in value.split(","):
        if name in options or name == "null":
            continue
        plain = {_letters(option): option for option in options}
        close = [_letters(name)] if _letters(name) in plain else difflib.get_close_matches(_letters(name), plain, n=1, cutoff=0.7)
        elsewhere = [f"{group}={name}" for group, others in groups().items() if name in others]
        if close or elsewhere:
            hint = did_you_mean([f"{key}={plain[letters]}" for letters in close] or elsewhere)
            raise UserError(f"{key}={name}: no such option; {hint} There are {', '.join(options)}")


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _check_grammar(typed: str, override: str, many: bool, arguments: Sequence[str]) -> None:
    """Refuse what Hydra's grammar cannot read, and several values in a command for one run."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        reason = " ".join(str(error).partition(" expecting {")[0].split())
        key = override.partition("=")[0]
        hint = f"""a value with special characters needs quotes of its own: "{key}='...'\""""
        hint = "a list ends without a comma" if typed.endswith(",") else hint
        raise UserError(f"{shlex.quote(typed)}: cannot be read ({reason}); {hint}") from error
    require(
        many or not parsed.is_sweep_override(),
        f"{shlex.quote(typed)}: several values are a sweep of many runs, which takes -m: {command(['-m', *arguments])}",
    )


def did_you_mean(choices: Iterable[str]) -> str:
    """The end of a message that names what was probably meant."""
    return f"did you mean {' or '.join(choices)}?"
