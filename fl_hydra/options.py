"""What the files of `conf` say of each option, read without composing a configuration."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

from fl_hydra.config import REGISTRIES
from fl_hydra.paths import CONF


@dataclasses.dataclass(frozen=True)
class Option:
    """An option of a group, as its file has it: what it is, its class, its values and what else it chooses."""

    about: str
    part: type[Any]
    values: dict[str, Any]
    chooses: dict[str, str]


def has_option(group: str, name: str) -> bool:
    """Whether `conf` has an option of this name."""
    return (CONF / group / f"{name}.yaml").is_file()


@cache
def read_option(group: str, name: str) -> Option:
    """An option of a group, from its file, without composing a configuration."""
    from omegaconf import OmegaConf

    path = CONF / group / f"{name}.yaml"
    registry = next(registry for registry in REGISTRIES if registry.group == group)
    if not has_option(group, name) and name in registry:  # registered by a notebook or script, without a file
        part = registry[name]
        return Option((part.__doc__ or name).split("\n")[0], part, _defaults(part), {})
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(content, dict)
    defaults = [entry for entry in content.pop("defaults") if isinstance(entry, dict)]
    schema = next(value for entry in defaults for key, value in entry.items() if key.startswith("/schema/"))
    part = registry[schema]
    values = _defaults(part) | {str(key): value for key, value in content.items()}
    return Option(head(path), part, values, _chosen(path))


def option_names(group: str) -> list[str]:
    """The options of a group that `conf` has, sorted."""
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def made(option: Option) -> Any:
    """The part that an option is, with its file's values."""
    return option.part(**option.values)


def _defaults(part: type[Any]) -> dict[str, Any]:
    return {field.name: default_of(field) for field in dataclasses.fields(part) if field.name != "name"}


def head(path: Path) -> str:
    """The comment at the top of a file."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("# @")]
    return "\n".join(line[2:] for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("# "))])


def _chosen(path: Path) -> dict[str, str]:
    """The options of other groups that a file's `defaults` choose, also through a file that it includes."""
    from omegaconf import OmegaConf

    found: dict[str, str] = {}
    for entry in OmegaConf.to_container(OmegaConf.load(path)).get("defaults", ()):  # type: ignore[union-attr]
        if isinstance(entry, str) and entry.startswith("/"):
            found = _chosen(CONF / f"{entry[1:]}.yaml") | found
        elif isinstance(entry, dict):
            found |= {key.split("@")[0].removeprefix("override /"): name for key, name in entry.items() if key.startswith("override /")}
    return found


def default_of(field: dataclasses.Field[Any]) -> Any:
    """The default of a dataclass's field."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
